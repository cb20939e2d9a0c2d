"""GeoTIFF files that are damaged, changed or of a kind that is not read: a code and a sentence."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
from geotiff_cases import RNG, UTM, context_of, only_source, read_window, write_scene

from vitpipe.domains.base import ScanContext
from vitpipe.domains.geotiff import Geotiff
from vitpipe.errors import ConfigError, UnreadableSource
from vitpipe.opening import gdal_environment, open_tiff
from vitpipe.pseudonym import Pseudonymiser
from vitpipe.records import Rejected, Window

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def test_what_is_no_geotiff_has_a_code_and_a_sentence(tmp_path: Path) -> None:
    whole = write_scene(tmp_path / "whole", np.ones((1, 300, 300), np.uint8)).read_bytes()
    vrt = b'<VRTDataset rasterXSize="2" rasterYSize="2"><VRTRasterBand dataType="Byte" band="1"/></VRTDataset>'
    files = {
        "a.vrt.tif": (vrt, "NOT_GEOTIFF", False, "a GDAL VRT"),
        "a.nc.tif": (b"\x89HDF\r\n\x1a\n" + bytes(50), "NOT_GEOTIFF", False, "netCDF"),
        "a.gml.tif": (b"<?xml version='1.0'?><gml/>", "NOT_GEOTIFF", False, "an XML text"),
        "hello.tif": (b"hello", "NOT_GEOTIFF", False, "no TIFF header"),
        "._mac.tif": (b"\x00\x05\x16\x07", "NOT_GEOTIFF", True, ""),
        "labels.csv": (b"path,label\n", "NOT_GEOTIFF", True, ""),
        "a.tif.aux.xml": (b"<PAMDataset/>", "NOT_GEOTIFF", True, ""),
        "zero.tif": (b"", "ZERO_BYTES", False, ""),
        "zero.txt": (b"", "ZERO_BYTES", True, ""),
        "magic.tif": (b"II*\x00" + bytes(4), "BAD_HEADER", False, ""),
        "cut.tif": (whole[: len(whole) // 2], "TRUNCATED", False, "past the end of the file"),
        "a.tif.ovr": (whole, "SIDECAR", True, ""),
        "b.tif.msk": (vrt, "SIDECAR", True, ""),
    }
    for name, (content, code, junk, words) in files.items():
        (tmp_path / name).write_bytes(content)
        found = Geotiff().index(tmp_path / name, context_of(tmp_path))
        assert isinstance(found, Rejected), name
        assert (found.code, found.junk) == (code, junk), (name, found)
        assert words in found.reason
    found = Geotiff().index(tmp_path / "gone.tif", context_of(tmp_path))
    assert isinstance(found, Rejected)
    assert found.code == "UNREADABLE_FILE"
    with gdal_environment(), pytest.raises(rasterio.errors.RasterioIOError):
        open_tiff(tmp_path / "a.vrt.tif")


def test_complex_pixels_are_refused(tmp_path: Path) -> None:
    for number, dtype in enumerate(("complex64", "complex_int16")):
        profile = {"driver": "GTiff", "count": 1, "height": 4, "width": 4, "dtype": dtype, **UTM}
        with rasterio.open(tmp_path / f"{number}.tif", "w", **profile):
            pass
        found = Geotiff().index(tmp_path / f"{number}.tif", context_of(tmp_path))
        assert isinstance(found, Rejected)
        assert found.code == "UNSUPPORTED_DTYPE"
        assert dtype in found.reason


def test_sizes_that_a_header_only_promises_allocate_nothing(tmp_path: Path) -> None:
    profile = {"driver": "GTiff", "count": 200, "dtype": "float64", "SPARSE_OK": True, "BIGTIFF": "YES", **UTM}
    profile |= {"tiled": True, "blockxsize": 512, "blockysize": 512, "interleave": "band", "compress": "deflate"}
    with rasterio.open(tmp_path / "wide.tif", "w", height=600, width=300_000, **profile):
        pass
    found = Geotiff().index(tmp_path / "wide.tif", context_of(tmp_path))
    assert isinstance(found, Rejected)
    assert found.code == "BLOCK_TOO_LARGE"
    assert "gdal_translate -of COG" in found.reason


def test_damage_inside_is_said_when_it_is_read(tmp_path: Path) -> None:
    noise = RNG.integers(0, 60_000, (2, 300, 300), dtype=np.uint16)
    path = write_scene(tmp_path / "a.tif", noise, tiled=True, blockxsize=128, blockysize=128, compress="deflate")
    source = only_source(tmp_path)
    content = bytearray(path.read_bytes())
    # More than a block, so that the head of one is hit: GDAL verifies no checksum of what inflates.
    content[len(content) // 2 : len(content) // 2 + 70_000] = bytes(70_000)
    path.write_bytes(content)
    with Geotiff().open(source) as raster:
        assert raster.read(Window(0, 0, 0, 50, 50))[1].all()
        with pytest.raises(UnreadableSource) as caught:
            raster.read(Window(0, 0, 0, 300, 300))
        assert (caught.value.code, caught.value.uri) == ("UNDECODABLE", str(path))
        path.write_bytes(content[: len(content) // 3])
        with pytest.raises(UnreadableSource) as caught:
            raster.read(Window(0, 250, 250, 50, 50))
        assert caught.value.code == "TRUNCATED"


def test_a_scene_that_changed_or_went_is_said(tmp_path: Path) -> None:
    path = write_scene(tmp_path / "a.tif", np.ones((2, 20, 20), np.uint8))
    source = only_source(tmp_path)
    for pixels in (np.ones((2, 19, 20), np.uint8), np.ones((1, 20, 20), np.uint8)):
        write_scene(path, pixels)
        with pytest.raises(UnreadableSource, match="CHANGED"), Geotiff().open(source):
            pass
    path.unlink()
    with pytest.raises(UnreadableSource, match="UNREADABLE_FILE"), Geotiff().open(source):
        pass


def test_the_wrong_recipe_is_a_sentence(tmp_path: Path) -> None:
    from vitpipe.config import ImagesSource

    context = ScanContext(tmp_path, Pseudonymiser(b"key"), ImagesSource(path=str(tmp_path)))
    with pytest.raises(ConfigError, match="kind: geotiff"):
        list(Geotiff().assemble([], context))


def test_broken_bytes_never_escape_as_another_error(tmp_path: Path) -> None:
    """Flip header bytes: each file ends as a source that reads, or with a code."""
    path = write_scene(tmp_path / "whole.tif", RNG.integers(0, 255, (2, 40, 40), dtype=np.uint8), compress="deflate")
    whole = path.read_bytes()
    path.unlink()
    outcomes = set()
    for trial in range(250):
        rng = np.random.default_rng(trial)
        broken = bytearray(whole)
        for place in rng.integers(4, 420, 4):
            broken[place] = rng.integers(256)
        shutil.rmtree(tmp_path / "one", ignore_errors=True)
        (tmp_path / "one").mkdir()
        (tmp_path / "one" / "a.tif").write_bytes(broken)
        found = Geotiff().index(tmp_path / "one" / "a.tif", context_of(tmp_path))
        if isinstance(found, Rejected):
            outcomes.add(found.code)
            continue
        source = only_source(tmp_path / "one")
        try:
            read_window(source, Window(0, 0, 0, 64, 64))
            outcomes.add("read")
        except UnreadableSource as error:
            outcomes.add(error.code)
    assert {"read", "BAD_HEADER"} <= outcomes
