"""GeoTIFF scenes: physical units, masks, bands, ground blocks, and a code for everything that is not one."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin
from rasterio.warp import transform as warp_points

from vitpipe.config import GeotiffSource
from vitpipe.digest import digest_file, digest_of_digests
from vitpipe.domains.base import ScanContext
from vitpipe.domains.geotiff import Geotiff
from vitpipe.errors import ConfigError, UnreadableSource
from vitpipe.opening import gdal_environment, open_tiff
from vitpipe.pseudonym import Pseudonymiser
from vitpipe.records import FileRecord, Grid, Rejected, Source, Window

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

_RNG = np.random.default_rng(3)
_UTM = {"crs": "EPSG:32633", "transform": from_origin(500_000, 5_000_000, 10, 10)}


def _context(root: Path, **recipe: Any) -> ScanContext:
    return ScanContext(root, Pseudonymiser(b"key"), GeotiffSource(path=str(root), **recipe))


def _write(path: Path, pixels: np.ndarray[Any, Any], **profile: Any) -> Path:
    count, height, width = pixels.shape
    chosen = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": pixels.dtype, **_UTM}
    with rasterio.open(path, "w", **(chosen | profile)) as dataset:
        dataset.write(pixels)
    return path


def _assemble(root: Path, **recipe: Any) -> list[Source | Rejected]:
    context, domain = _context(root, **recipe), Geotiff()
    records = []
    for path in sorted(item for item in root.rglob("*") if item.is_file()):
        header = domain.index(path, context)
        if not isinstance(header, Rejected):
            json.dumps(header, allow_nan=False)
            records.append(FileRecord(str(path), path.stat().st_size, 0, digest_file(path), header))
    return list(domain.assemble(records, context))


def _one(root: Path, **recipe: Any) -> Source:
    (source,) = _assemble(root, **recipe)
    assert isinstance(source, Source), source
    return source


def _read(source: Source, window: Window | None = None) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    with Geotiff().open(source) as raster:
        pixels, valid = raster.read(window or Window(0, 0, 0, source.grid.height, source.grid.width))
    assert pixels.dtype == source.dtype
    assert not pixels[:, ~valid].any()
    return pixels, valid


@pytest.mark.parametrize("interleave", ["pixel", "band"])
@pytest.mark.parametrize("layout", [{}, {"tiled": True, "blockxsize": 64, "blockysize": 32}, {"BIGTIFF": "YES"}])
@pytest.mark.parametrize(
    "dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "float32", "float64"]
)
def test_every_dtype_and_layout_is_read_as_written(tmp_path: Path, dtype: str, layout: Any, interleave: str) -> None:
    stored = _RNG.integers(0, 100, (3, 70, 130)).astype(dtype)
    _write(tmp_path / "scene", stored, interleave=interleave, compress="deflate", **layout)
    source = _one(tmp_path)
    assert (source.channels, source.dtype, source.units) == (("b1", "b2", "b3"), dtype, "dn")
    pixels, valid = _read(source)
    assert np.array_equal(pixels, stored)
    assert valid.all()


def test_a_scene_says_where_and_when_it_is(tmp_path: Path) -> None:
    path = _write(tmp_path / "S2_x.tif", np.ones((1, 50, 60), np.uint8))
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(TIFFTAG_DATETIME="2021:07:08 10:11:12")
    source = _one(tmp_path)
    assert source.grid == Grid(1, 50, 60, transform=(10.0, 0.0, 500_000.0, 0.0, -10.0, 5_000_000.0), crs="EPSG:32633")
    assert source.acquired_at == "2021-07-08T10:11:12"
    expected = {"crs": "EPSG:32633", "gsd_m": 10.0, "year": "2021", "month": "07", "season": "JJA"}
    assert {**source.attributes} == expected
    assert {**source.keys} == {"path": ("S2_x.tif",), "scene": ("S2_x",)}
    assert source.source_id == digest_of_digests([digest_file(path)])
    assert source.bytes == path.stat().st_size
    assert source.notes == ()


def test_the_acquisition_tag_comes_before_the_time_of_writing(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.tif", np.ones((1, 5, 5), np.uint8))
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(TIFFTAG_DATETIME="2024:01:01 00:00:00", acquisition_date="2019-12-31")
    source = _one(tmp_path)
    assert source.acquired_at == "2019-12-31T00:00:00"
    assert source.attributes["season"] == "DJF"


def test_bands_are_chosen_and_ordered_by_name(tmp_path: Path) -> None:
    stored = _RNG.integers(1, 9000, (4, 20, 30), dtype=np.uint16)
    path = _write(tmp_path / "a.tif", stored)
    with rasterio.open(path, "r+") as dataset:
        dataset.descriptions = ("B02", "B03", None, "B08")
    assert _one(tmp_path).channels == ("B02", "B03", "b3", "B08")
    source = _one(tmp_path, bands=("B08", "b3", "B02"))
    assert source.channels == ("B08", "b3", "B02")
    assert np.array_equal(_read(source)[0], stored[[3, 2, 0]])
    (rejected,) = _assemble(tmp_path, bands=("B08", "B11"))
    assert isinstance(rejected, Rejected)
    assert rejected.code == "MISSING_BAND"
    assert "no band B11" in rejected.reason
    assert "B02, B03, b3, B08" in rejected.reason


def test_equal_band_names_name_nothing(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.tif", np.ones((2, 5, 5), np.uint8))
    with rasterio.open(path, "r+") as dataset:
        dataset.descriptions = ("sr", "sr")
    source = _one(tmp_path)
    assert source.channels == ("b1", "b2")
    assert source.notes == ("DUPLICATE_BAND_NAMES",)


def test_scale_and_offset_give_physical_units(tmp_path: Path) -> None:
    stored = _RNG.integers(0, 10_000, (2, 20, 30), dtype=np.uint16)
    stored[0, :3] = 0
    path = _write(tmp_path / "a.tif", stored, nodata=0)
    with rasterio.open(path, "r+") as dataset:
        dataset.scales, dataset.offsets = (0.0001, 0.5), (-0.1, 2.0)
    source = _one(tmp_path)
    assert (source.dtype, source.units, source.notes) == ("float32", "scaled", ("SCALED",))
    pixels, valid = _read(source)
    # Validity is a matter of the stored value: 0 is nodata, though it would scale to -0.1.
    assert np.array_equal(valid, (stored != 0).all(axis=0))
    expected = stored * np.array([0.0001, 0.5]).reshape(2, 1, 1) + np.array([-0.1, 2.0]).reshape(2, 1, 1)
    assert np.allclose(pixels[:, valid], expected[:, valid], rtol=1e-6, atol=1e-6)
    assert _one(tmp_path, units="reflectance").units == "reflectance"


@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [("uint8", 0), ("int16", -9999), ("uint16", 65535), ("float32", -3.4028234663852886e38), ("float64", -9999.5)],
)
def test_nodata_by_value(tmp_path: Path, dtype: str, nodata: float) -> None:
    stored = _RNG.integers(1, 100, (2, 20, 30)).astype(dtype)
    stored[0, 2:5] = nodata
    stored[1, :, 7] = nodata
    _write(tmp_path / "a.tif", stored, nodata=nodata)
    pixels, valid = _read(_one(tmp_path))
    assert np.array_equal(valid, (stored != np.array(nodata, dtype)).all(axis=0))
    assert np.array_equal(pixels[:, valid], stored[:, valid])
    # Only the bands that are used count.
    _, valid = _read(_one(tmp_path, bands=("b2",)))
    assert np.array_equal(valid, stored[1] != np.array(nodata, dtype))


@pytest.mark.parametrize("nodata", [None, np.nan, 5.0])
def test_what_is_not_finite_is_not_valid(tmp_path: Path, nodata: float | None) -> None:
    stored = _RNG.integers(1, 5, (2, 20, 30)).astype(np.float32)
    stored[0, 0, 0], stored[1, 1, 1], stored[0, 2, 2] = np.nan, np.inf, 5.0
    _write(tmp_path / "a.tif", stored, nodata=nodata)
    _, valid = _read(_one(tmp_path))
    expected = np.isfinite(stored).all(axis=0) & ((stored != 5.0).all(axis=0) if nodata == 5.0 else True)
    assert np.array_equal(valid, expected)


@pytest.mark.parametrize("layout", [{}, {"tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "deflate"}])
def test_nodata_that_a_float_does_not_hold(tmp_path: Path, layout: dict[str, Any]) -> None:
    """rasterio writes and reads nodata as a float: the digits are put in by hand, as GDAL writes them."""
    pixels = np.full((1, 32, 32), 5, np.int64)
    pixels[0, 0, :3] = 2**53 + np.arange(3)
    path = _write(tmp_path / "a.tif", pixels, nodata=1234567890123456, **layout)
    content = path.read_bytes()
    assert content.count(b"1234567890123456") == 1
    path.write_bytes(content.replace(b"1234567890123456", str(2**53 + 1).encode()))
    source = _one(tmp_path)
    read, valid = _read(source)
    assert np.argwhere(~valid).tolist() == [[0, 1]]
    assert read[0, 0, [0, 2]].tolist() == [2**53, 2**53 + 2]


def test_mask_band_inside_the_file(tmp_path: Path) -> None:
    mask = np.zeros((20, 30), np.uint8)
    mask[4:9] = 255
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        path = _write(tmp_path / "a.tif", np.full((3, 20, 30), 7, np.uint8), photometric="rgb")
        with rasterio.open(path, "r+") as dataset:
            dataset.write_mask(mask)
    assert [item.name for item in tmp_path.iterdir()] == ["a.tif"]
    _, valid = _read(_one(tmp_path), Window(0, 2, 3, 10, 11))
    assert np.array_equal(valid, mask[2:12, 3:14] > 0)


def test_mask_file_beside_the_scene_is_part_of_it(tmp_path: Path) -> None:
    mask = np.zeros((20, 30), np.uint8)
    mask[4:9] = 255
    path = _write(tmp_path / "a.tif", np.full((1, 20, 30), 7, np.uint8))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(mask)
    beside = tmp_path / "a.tif.msk"
    source = _one(tmp_path)
    assert source.files == (str(path), str(beside))
    assert source.notes == ("MASK_FILE",)
    assert source.source_id == digest_of_digests([digest_file(path), digest_file(beside)])
    assert np.array_equal(_read(source)[1], mask > 0)
    path.unlink()
    (found,) = _assemble(tmp_path)
    assert isinstance(found, Rejected)
    assert (found.code, found.junk) == ("SIDECAR", True)
    _write(path, np.full((1, 21, 30), 7, np.uint8))
    (found,) = _assemble(tmp_path)
    assert isinstance(found, Rejected)
    assert found.code == "BAD_MASK_FILE"


def test_a_vrt_dressed_as_a_mask_is_not_opened(tmp_path: Path) -> None:
    _write(tmp_path / "a.tif", np.full((1, 20, 30), 7, np.uint8))
    secret = _write(tmp_path / "secret.tif", np.zeros((1, 20, 30), np.uint8))
    text = (
        '<VRTDataset rasterXSize="30" rasterYSize="20"><Metadata><MDI key="INTERNAL_MASK_FLAGS_1">2</MDI></Metadata>'
        f'<VRTRasterBand dataType="Byte" band="1"><SimpleSource><SourceFilename>{secret}</SourceFilename>'
        "<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    (tmp_path / "a.tif.msk").write_text(text)
    with rasterio.open(tmp_path / "a.tif", driver="GTiff") as dataset:
        assert not dataset.read_masks(1).any(), "GDAL reads the VRT when it is let"
    first = _assemble(tmp_path)[0]
    assert isinstance(first, Source)
    assert _read(first)[1].all()


def test_alpha_is_a_mask_unless_it_has_a_name_or_is_asked_for(tmp_path: Path) -> None:
    stored = _RNG.integers(1, 255, (4, 20, 30), dtype=np.uint8)
    stored[3, :5] = 0
    path = _write(tmp_path / "a.tif", stored, photometric="rgb", alpha="yes")
    with rasterio.open(path) as dataset:
        assert dataset.colorinterp[3] == ColorInterp.alpha
    source = _one(tmp_path)
    assert (source.channels, source.notes) == (("b1", "b2", "b3"), ("ALPHA",))
    assert np.array_equal(_read(source)[1], stored[3] > 0)
    source = _one(tmp_path, bands=("b4", "b1"))
    pixels, valid = _read(source)
    assert np.array_equal(pixels, stored[[3, 0]])
    assert valid.all()
    with rasterio.open(path, "r+") as dataset:
        dataset.set_band_description(4, "nir")
    source = _one(tmp_path)
    assert (source.channels, source.notes) == (("b1", "b2", "b3", "nir"), ())
    assert _read(source)[1].all()


def test_colour_tables_hold_class_codes(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.tif", np.full((1, 5, 5), 3, np.uint8), photometric="palette")
    with rasterio.open(path, "r+") as dataset:
        dataset.write_colormap(1, {3: (200, 100, 50, 255)})
    source = _one(tmp_path)
    assert source.notes == ("COLORMAP",)
    assert (_read(source)[0] == 3).all()


def test_windows_past_the_edge_are_padded_and_masked(tmp_path: Path) -> None:
    stored = _RNG.integers(1, 255, (2, 50, 60), dtype=np.uint8)
    _write(tmp_path / "a.tif", stored)
    source = _one(tmp_path)
    pixels, valid = _read(source, Window(0, 40, 50, 32, 32))
    assert np.array_equal(pixels[:, :10, :10], stored[:, 40:, 50:])
    assert valid[:10, :10].all()
    assert valid.sum() == 100
    pixels, valid = _read(source, Window(0, 90, 0, 4, 4))
    assert not valid.any()
    with Geotiff().open(source) as raster, pytest.raises(ValueError, match="rows and cols from 0"):
        raster.read(Window(0, -1, 0, 4, 4))


@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        ({"tiled": True, "blockxsize": 512, "blockysize": 512}, 512),
        ({"tiled": True, "blockxsize": 64, "blockysize": 64}, 256),
        ({"blockysize": 1}, 256),
        ({"blockysize": 100}, 200),
    ],
)
def test_block_rows_are_whole_blocks_and_about_256(tmp_path: Path, profile: Mapping[str, Any], expected: int) -> None:
    _write(tmp_path / "a.tif", np.ones((1, 1000, 700), np.uint8), compress="deflate", **profile)
    with Geotiff().open(_one(tmp_path)) as raster:
        assert raster.block_rows == expected


def test_groups_are_blocks_of_one_grid_whatever_the_crs(tmp_path: Path) -> None:
    corner = warp_points(CRS.from_epsg(32633), CRS.from_epsg(32632), [500_000.0], [5_000_000.0])
    near = {"crs": "EPSG:32632", "transform": from_origin(corner[0][0], corner[1][0], 10, 10)}
    _write(tmp_path / "a.tif", np.ones((1, 600, 600), np.uint8))
    _write(tmp_path / "b.tif", np.full((1, 600, 600), 2, np.uint8), **near)
    sources = [item for item in _assemble(tmp_path, block_m=1000.0) if isinstance(item, Source)]
    window = Window(0, 100, 100, 64, 64)
    names = []
    for source in sources:
        with Geotiff().open(source) as raster:
            names.append(raster.groups([window])[0])
    assert names[0] == names[1]
    x, y = warp_points(CRS.from_epsg(32633), CRS.from_epsg(6933), [501_320.0], [4_998_680.0])
    assert names[0] == f"ground-{int(x[0] // 1000)}-{int(y[0] // 1000)}"
    with Geotiff().open(sources[0]) as raster:
        many = raster.groups([Window(0, row, col, 50, 50) for row in range(0, 600, 50) for col in range(0, 600, 50)])
        assert 25 <= len(set(many)) <= 64  # 6 km over blocks of 1 km
        whole = raster.groups([Window(0, 0, 0, 600, 600), Window(0, 0, 0, 5000, 5000)])
        # The part past the edge does not move the centre.
        assert whole == [sources[0].group_id] * 2
        assert raster.groups([]) == []
    (wider,) = {item.group_id for item in _assemble(tmp_path, block_m=1e6) if isinstance(item, Source)}
    assert wider == f"ground-{int(x[0] // 1e6)}-{int(y[0] // 1e6)}"


def test_windows_on_no_ground_are_a_group_of_the_scene(tmp_path: Path) -> None:
    geos = "+proj=geos +lon_0=0 +h=35785831 +a=6378137 +b=6356752.3 +units=m +no_defs"
    edge = 5_500_000.0
    profile = {"crs": CRS.from_proj4(geos), "transform": from_origin(-edge, edge, edge / 50, edge / 50)}
    _write(tmp_path / "disk.tif", np.ones((1, 100, 100), np.uint8), **profile)
    source = _one(tmp_path)
    with Geotiff().open(source) as raster:
        corner, middle = raster.groups([Window(0, 0, 0, 2, 2), Window(0, 50, 50, 4, 4)])
    assert corner == f"scene-{source.source_id}"
    assert middle.startswith("ground-")


def test_scenes_without_a_crs_are_kept(tmp_path: Path) -> None:
    _write(tmp_path / "a.tif", np.ones((1, 9, 9), np.uint8), crs=None, transform=None)
    source = _one(tmp_path)
    assert source.notes == ("NO_CRS",)
    assert source.grid.transform is None
    assert source.group_id == f"scene-{source.source_id}"
    with Geotiff().open(source) as raster:
        assert raster.groups([Window(0, 0, 0, 4, 4)] * 3) == [source.group_id] * 3


def test_control_points_give_the_ground_but_no_transform(tmp_path: Path) -> None:
    points = [GroundControlPoint(row, col, 10 + col / 1000, 50 - row / 1000) for row in (0, 100) for col in (0, 100)]
    _write(tmp_path / "a.tif", np.ones((1, 100, 100), np.uint8), crs=None, transform=None)
    with rasterio.open(tmp_path / "a.tif", "r+") as dataset:
        dataset.gcps = (points, CRS.from_epsg(4326))
    source = _one(tmp_path)
    assert source.notes == ("GCP_ONLY",)
    assert (source.grid.crs, source.grid.transform) == (None, None)
    assert source.grid.gcps == tuple((point.row, point.col, point.x, point.y) for point in points)
    assert source.grid.gcp_crs == "EPSG:4326"
    assert Grid.from_json(json.loads(json.dumps(source.grid.to_json()))) == source.grid
    x, y = warp_points(CRS.from_epsg(4326), CRS.from_epsg(6933), [10.05], [49.95])
    assert source.group_id == f"ground-{int(x[0] // 10_000)}-{int(y[0] // 10_000)}"
    with Geotiff().open(source) as raster:
        assert raster.groups([Window(0, 0, 0, 100, 100)]) == [source.group_id]


def test_ground_sampling_distance_is_that_of_the_ground(tmp_path: Path) -> None:
    degrees = {"crs": "EPSG:4326", "transform": from_origin(10, 60, 0.001, 0.001)}
    _write(tmp_path / "degrees.tif", np.ones((1, 9, 9), np.uint8), **degrees)
    mercator = {"crs": "EPSG:3857", "transform": from_origin(1e6, 8_399_737.9, 10, 10)}  # 60 degrees north
    _write(tmp_path / "mercator.tif", np.full((1, 9, 9), 2, np.uint8), **mercator)
    by_name = {source.keys["scene"][0]: source.attributes["gsd_m"] for source in _assemble(tmp_path)}  # type: ignore[union-attr]
    assert by_name["degrees"] == pytest.approx(111_300 * 0.001 * 0.5**0.5, rel=0.01)
    assert by_name["mercator"] == pytest.approx(5.0, rel=0.01)


def test_rotated_scenes_keep_their_transform(tmp_path: Path) -> None:
    turned = rasterio.Affine(8, 3, 500_000, 3, -8, 5_000_000)
    _write(tmp_path / "a.tif", np.ones((1, 9, 9), np.uint8), transform=turned)
    source = _one(tmp_path)
    assert source.notes == ("ROTATED",)
    assert source.grid.transform == tuple(turned)[:6]


def test_what_is_no_geotiff_has_a_code_and_a_sentence(tmp_path: Path) -> None:
    whole = _write(tmp_path / "whole", np.ones((1, 300, 300), np.uint8)).read_bytes()
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
        found = Geotiff().index(tmp_path / name, _context(tmp_path))
        assert isinstance(found, Rejected), name
        assert (found.code, found.junk) == (code, junk), (name, found)
        assert words in found.reason
    found = Geotiff().index(tmp_path / "gone.tif", _context(tmp_path))
    assert isinstance(found, Rejected)
    assert found.code == "UNREADABLE_FILE"
    with gdal_environment(), pytest.raises(rasterio.errors.RasterioIOError):
        open_tiff(tmp_path / "a.vrt.tif")


def test_complex_pixels_are_refused(tmp_path: Path) -> None:
    for number, dtype in enumerate(("complex64", "complex_int16")):
        profile = {"driver": "GTiff", "count": 1, "height": 4, "width": 4, "dtype": dtype, **_UTM}
        with rasterio.open(tmp_path / f"{number}.tif", "w", **profile):
            pass
        found = Geotiff().index(tmp_path / f"{number}.tif", _context(tmp_path))
        assert isinstance(found, Rejected)
        assert found.code == "UNSUPPORTED_DTYPE"
        assert dtype in found.reason


def test_sizes_that_a_header_only_promises_allocate_nothing(tmp_path: Path) -> None:
    profile = {"driver": "GTiff", "count": 200, "dtype": "float64", "SPARSE_OK": True, "BIGTIFF": "YES", **_UTM}
    profile |= {"tiled": True, "blockxsize": 512, "blockysize": 512, "interleave": "band", "compress": "deflate"}
    with rasterio.open(tmp_path / "wide.tif", "w", height=600, width=300_000, **profile):
        pass
    found = Geotiff().index(tmp_path / "wide.tif", _context(tmp_path))
    assert isinstance(found, Rejected)
    assert found.code == "BLOCK_TOO_LARGE"
    assert "gdal_translate -of COG" in found.reason


def test_damage_inside_is_said_when_it_is_read(tmp_path: Path) -> None:
    noise = _RNG.integers(0, 60_000, (2, 300, 300), dtype=np.uint16)
    path = _write(tmp_path / "a.tif", noise, tiled=True, blockxsize=128, blockysize=128, compress="deflate")
    source = _one(tmp_path)
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
    path = _write(tmp_path / "a.tif", np.ones((2, 20, 20), np.uint8))
    source = _one(tmp_path)
    for pixels in (np.ones((2, 19, 20), np.uint8), np.ones((1, 20, 20), np.uint8)):
        _write(path, pixels)
        with pytest.raises(UnreadableSource, match="CHANGED"), Geotiff().open(source):
            pass
    path.unlink()
    with pytest.raises(UnreadableSource, match="UNREADABLE_FILE"), Geotiff().open(source):
        pass


def test_sidecars_that_others_heed_are_noted(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.tif", np.ones((1, 20, 20), np.uint8), crs=None, transform=None)
    path.with_name("a.tif.aux.xml").write_text("<PAMDataset><SRS>EPSG:4326</SRS></PAMDataset>")
    path.with_suffix(".tfw").write_text("10\n0\n0\n-10\n0\n0\n")
    source = _one(tmp_path)
    assert source.notes == ("NO_CRS", "AUX_XML_IGNORED", "WORLD_FILE_IGNORED")
    assert (source.grid.crs, source.grid.transform) == (None, None)


def _checksum_in_child(raster: Any, window: Window, results: Any) -> None:
    results.put(int(raster.read(window)[0].astype(np.int64).sum()))


def test_a_fork_reads_through_its_own_handle(tmp_path: Path) -> None:
    noise = _RNG.integers(0, 60_000, (1, 600, 600), dtype=np.uint16)
    _write(tmp_path / "a.tif", noise, tiled=True, blockxsize=64, blockysize=64)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    with Geotiff().open(_one(tmp_path)) as raster:
        raster.read(Window(0, 0, 0, 64, 64))
        windows = [Window(0, row, 0, 100, 600) for row in range(0, 600, 100)]
        children = [context.Process(target=_checksum_in_child, args=(raster, window, results)) for window in windows]
        for child in children:
            child.start()
        found = sorted(results.get(timeout=30) for _ in children)
        for child in children:
            child.join()
        assert set(raster._handles) == {multiprocessing.current_process().pid}
    assert found == sorted(int(noise[0, row : row + 100].astype(np.int64).sum()) for row in range(0, 600, 100))
    assert raster._handles == {}


def test_the_wrong_recipe_is_a_sentence(tmp_path: Path) -> None:
    from vitpipe.config import ImagesSource

    context = ScanContext(tmp_path, Pseudonymiser(b"key"), ImagesSource(path=str(tmp_path)))
    with pytest.raises(ConfigError, match="kind: geotiff"):
        list(Geotiff().assemble([], context))


def test_broken_bytes_never_escape_as_another_error(tmp_path: Path) -> None:
    """Flip header bytes: each file ends as a source that reads, or with a code."""
    path = _write(tmp_path / "whole.tif", _RNG.integers(0, 255, (2, 40, 40), dtype=np.uint8), compress="deflate")
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
        found = Geotiff().index(tmp_path / "one" / "a.tif", _context(tmp_path))
        if isinstance(found, Rejected):
            outcomes.add(found.code)
            continue
        source = _one(tmp_path / "one")
        try:
            _read(source, Window(0, 0, 0, 64, 64))
            outcomes.add("read")
        except UnreadableSource as error:
            outcomes.add(error.code)
    assert {"read", "BAD_HEADER"} <= outcomes
