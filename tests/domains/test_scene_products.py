"""Scenes of many files: a Sentinel-2 SAFE folder becomes one source in reflectance, on one grid."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from scene_cases import (
    look,
    one,
    read,
    refused,
    refused_codes,
    sentinel2_metadata,
    write_band,
    write_safe,
)

from vitpipe.domains.geotiff import Geotiff
from vitpipe.domains.geotiff.products.bands import SENTINEL2, choose
from vitpipe.errors import DataError, UnreadableSource
from vitpipe.ingest import ingest
from vitpipe.loading import parse_config
from vitpipe.records import Window
from vitpipe.workspace import Workspace

_RNG = np.random.default_rng(5)


def _dn(size: int, low: int = 1001) -> np.ndarray[Any, Any]:
    return _RNG.integers(low, 9000, (size, size), dtype=np.uint16)


def _bands() -> dict[tuple[str, int], np.ndarray[Any, Any]]:
    return {("B02", 10): _dn(120), ("B04", 10): _dn(120), ("B8A", 20): _dn(60), ("B01", 60): _dn(20)}


def _repeat(pixels: np.ndarray[Any, Any], step: int) -> np.ndarray[Any, Any]:
    return pixels.repeat(step, axis=0).repeat(step, axis=1)


@pytest.mark.parametrize("suffix", ["jp2", "tif"])
def test_a_safe_folder_is_one_source_in_reflectance(tmp_path: Path, suffix: str) -> None:
    bands = _bands()
    bands["B02", 10][3:9, 4:7] = 0
    bands["B8A", 20][10, 12] = 65535
    safe = write_safe(tmp_path, bands, suffix=suffix)
    # What else lies in a product is listed and not read.
    write_band(safe / "GRANULE" / "x" / "QI_DATA" / f"MSK_CLASSI_B00.{suffix}", _dn(20), 60)
    write_band(safe / "GRANULE" / "x" / "IMG_DATA" / f"T33TXM_20210708T101031_TCI_10m.{suffix}", _dn(20), 60)
    (safe / "manifest.safe").write_text("<xml/>")
    sources, rejected = look(tmp_path)
    assert {(Path(item.uri).name, item.junk) for item in rejected} == {
        (f"MSK_CLASSI_B00.{suffix}", True), (f"T33TXM_20210708T101031_TCI_10m.{suffix}", True), ("manifest.safe", True)
    }  # fmt: skip
    (source,) = sources
    assert source.channels == ("B01", "B02", "B04", "B8A")
    assert (source.units, source.dtype, source.grid.height, source.uri) == ("reflectance", "float32", 120, str(safe))
    assert source.acquired_at == "2021-07-08T10:14:10"
    attributes = {"platform": "sentinel-2a", "product": "L2A", "processing_baseline": "05.11", "cloud_cover": 12.5}
    assert attributes.items() <= source.attributes.items()
    assert source.attributes["sun_elevation_deg"] == 64.5
    assert (source.attributes["season"], source.attributes["gsd_m"]) == ("JJA", 10.0)
    assert source.notes == ("BANDS_RESAMPLED",)
    assert source.keys["scene"] == (safe.name.removesuffix(".SAFE"),)
    assert source.group_id.startswith("ground-")
    assert source.keys["path"] == one(safe).keys["path"] == (safe.name,)
    stored = np.stack([_repeat(bands["B01", 60], 6), bands["B02", 10], bands["B04", 10], _repeat(bands["B8A", 20], 2)])
    pixels, valid = read(source)
    assert np.array_equal(valid, (stored != 0).all(axis=0) & (stored != 65535).all(axis=0))
    assert np.allclose(pixels[:, valid], (stored[:, valid].astype(np.float64) - 1000) / 10_000, atol=1e-7)
    for window in (Window(0, 7, 11, 50, 33), Window(0, 100, 90, 64, 64), Window(0, 13, 0, 40, 120)):
        part, part_valid = read(source, window)
        rows, cols = slice(window.row, window.row + window.height), slice(window.col, window.col + window.width)
        inside = valid[rows, cols]
        assert np.array_equal(part[:, : inside.shape[0], : inside.shape[1]], pixels[:, rows, cols])
        assert np.array_equal(part_valid[: inside.shape[0], : inside.shape[1]], inside)
        assert part_valid.sum() == inside.sum()


def test_baselines_with_and_without_the_offset_agree(tmp_path: Path) -> None:
    """Scenes of before and after baseline 04.00 mix: the offset of each is its own."""
    old = _dn(60)
    write_safe(tmp_path / "old", {("B04", 10): old}, metadata=sentinel2_metadata(baseline="03.01", offset=None))
    write_safe(tmp_path / "new", {("B04", 10): old + np.uint16(1000)}, day="20220708")
    sources, _ = look(tmp_path)
    assert {source.units for source in sources} == {"reflectance"}
    first, second = (read(source)[0] for source in sources)
    assert np.allclose(first, second, atol=1e-7)
    assert np.allclose(first[0], old / 10_000, atol=1e-7)


def test_level_1c_is_another_quantity(tmp_path: Path) -> None:
    write_safe(tmp_path, {("B04", 10): _dn(60)}, level="L1C")
    source = one(tmp_path)
    assert (source.units, source.channels, source.attributes["product"]) == ("toa_reflectance", ("B04",), "L1C")
    assert one(tmp_path, units="reflectance").units == "reflectance"


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        (sentinel2_metadata(offset=None), "no BOA_ADD_OFFSET, which processing baseline 05.11"),
        (sentinel2_metadata().replace("10000<", "0<"), "a scale is 0"),
        (sentinel2_metadata(head='<!DOCTYPE x [<!ENTITY a "b"><!ENTITY c "&a;&a;&a;">]>'), "declares a document type"),
        (sentinel2_metadata()[:300], "no element found"),
        (sentinel2_metadata().replace("PROCESSING_BASELINE", "P"), "no 'PROCESSING_BASELINE'"),
    ],
)
def test_metadata_that_cannot_be_trusted_has_a_code(tmp_path: Path, metadata: str, words: str) -> None:
    safe = write_safe(tmp_path, {("B04", 10): _dn(60)}, metadata=metadata)
    sources, rejected = look(tmp_path)
    assert sources == []
    by_code = {item.code: item for item in rejected if not item.junk}
    assert set(by_code) == {"BAD_METADATA", "NO_METADATA"}
    assert words in by_code["BAD_METADATA"].reason
    assert by_code["NO_METADATA"].uri == str(safe)


def test_a_wide_document_is_not_an_entity_bomb(tmp_path: Path) -> None:
    bomb = (
        '<!DOCTYPE x [<!ENTITY a0 "ha">'
        + "".join(f'<!ENTITY a{at} "{f"&a{at - 1};" * 10}">' for at in range(1, 20))
        + "]>"
    )
    metadata = sentinel2_metadata(head=bomb).replace("Sentinel-2A", "&a19;")
    write_safe(tmp_path, {("B04", 10): _dn(60)}, metadata=metadata)
    assert look(tmp_path)[0] == []


def test_bands_by_common_name_and_by_wavelength(tmp_path: Path) -> None:
    bands = {**_bands(), ("B08", 10): _dn(120)}
    write_safe(tmp_path, bands)
    source = one(tmp_path, bands=("red", "865nm", "B02", "0.83um"))
    assert source.channels == ("red", "865nm", "B02", "0.83um")
    pixels, _ = read(source)
    for channel, key, step in ((0, ("B04", 10), 1), (1, ("B8A", 20), 2), (2, ("B02", 10), 1), (3, ("B08", 10), 1)):
        assert np.allclose(pixels[channel], (_repeat(bands[key], step) - 1000.0) / 10_000, atol=1e-7)
    rejection = refused(tmp_path, bands=("B04", "1000nm"))
    assert rejection.code == "MISSING_BAND"
    assert "no band 1000nm" in rejection.reason
    assert "B8A (nir08, 864.7 nm)" in rejection.reason


def test_a_wavelength_is_never_guessed() -> None:
    bands = list(SENTINEL2.items())
    found = {text: choose(text, bands) for text in ("865nm", "840nm", "1.6um")}
    names = {text: bands[place][0] for text, place in found.items() if place is not None}
    assert names == {"865nm": "B8A", "840nm": "B08", "1.6um": "B11"}
    assert [choose(text, bands) for text in ("1000nm", "865", "865 m", "B8", "infrared")] == [None] * 5


def test_unused_bands_are_listed_as_junk(tmp_path: Path) -> None:
    write_safe(tmp_path, {**_bands(), ("B02", 20): _dn(60)})
    sources, rejected = look(tmp_path, bands=("B02", "B04"))
    assert [item.code for item in rejected] == ["BAND_NOT_USED"] * 3
    assert all(item.junk for item in rejected)
    # Two bands and two files of metadata.
    assert len(sources[0].files) == 4


def test_finer_bands_are_averaged_onto_a_stated_grid(tmp_path: Path) -> None:
    bands = _bands()
    bands["B02", 10][2, 2] = 0
    write_safe(tmp_path, bands)
    source = one(tmp_path, bands=("B02", "B8A", "B01"), grid="B8A")
    assert (source.grid.height, source.grid.transform) == (60, (20.0, 0.0, 600_000.0, 0.0, -20.0, 5_000_040.0))
    pixels, valid = read(source)
    fine = bands["B02", 10].reshape(60, 2, 60, 2)
    assert not valid[1, 1]
    assert valid.sum() == 3599
    mean = (fine.mean(axis=(1, 3)) - 1000) / 10_000
    assert np.allclose(pixels[0][valid], mean[valid], atol=1e-6)
    assert np.allclose(pixels[2][valid], ((_repeat(bands["B01", 60], 3) - 1000.0) / 10_000)[valid], atol=1e-7)
    part, _ = read(source, Window(0, 9, 13, 30, 31))
    assert np.array_equal(part, pixels[:, 9:39, 13:44])
    # The product's own band on that grid comes before an average.
    own = _dn(60)
    write_band(next(tmp_path.rglob("R20m")) / "T33TXM_20210708T101031_B02_20m.jp2", own, 20)
    pixels, _ = read(one(tmp_path, bands=("B02",), grid="B8A"))
    assert np.allclose(pixels[0], (own - 1000.0) / 10_000, atol=1e-7)


def test_clouds_are_dropped_by_the_scene_classes(tmp_path: Path) -> None:
    scl = np.full((60, 60), 4, np.uint8)
    for row, code in enumerate(range(12)):
        scl[row] = code
    bands = {("B04", 10): _dn(120), ("B8A", 20): _dn(60), ("SCL", 20): scl}
    write_safe(tmp_path, bands)
    source = one(tmp_path, clouds="drop")
    assert source.channels == ("B04", "B8A")
    clear = ~np.isin(scl, (0, 1, 3, 8, 9, 10))
    assert np.array_equal(read(source)[1], _repeat(clear, 2))
    assert read(one(tmp_path))[1].all()
    # On a coarser grid a pixel is seen where all of it is seen.
    shutil.rmtree(tmp_path)
    scl[30, 31] = 9
    write_safe(tmp_path, {("B01", 60): _dn(20), ("SCL", 20): scl})
    clear = ~np.isin(scl, (0, 1, 3, 8, 9, 10))
    assert np.array_equal(read(one(tmp_path, clouds="drop"))[1], clear.reshape(20, 3, 20, 3).all(axis=(1, 3)))
    next(tmp_path.rglob("*SCL*")).unlink()
    assert refused(tmp_path, clouds="drop").code == "NO_CLOUD_MASK"
    shutil.rmtree(tmp_path)
    write_band(tmp_path / "a.tif", _dn(60), 10)
    assert refused(tmp_path, clouds="drop").code == "NO_CLOUD_MASK"


def test_a_file_that_was_changed_is_not_scaled_twice(tmp_path: Path) -> None:
    write_safe(tmp_path, {("B04", 10): (_dn(60) / 10_000).astype(np.float32)}, suffix="tif")
    assert refused(tmp_path).code == "PRODUCT_CHANGED"
    shutil.rmtree(tmp_path)
    write_safe(tmp_path, {("B04", 10): _dn(60)}, suffix="tif")
    with rasterio.open(next(tmp_path.rglob("*B04*")), "r+") as dataset:
        dataset.scales = (0.0001,)
    assert "a scale of its own" in refused(tmp_path).reason


def test_grids_that_do_not_nest_have_a_code(tmp_path: Path) -> None:
    safe = write_safe(tmp_path, {("B04", 10): _dn(120)})
    folder = next(safe.rglob("R10m")).parent / "R20m"
    shifted = rasterio.transform.from_origin(600_005, 5_000_040, 20, 20)
    write_band(folder / "T33TXM_20210708T101031_B05_20m.jp2", _dn(60), 20, transform=shifted)
    rejection = refused(tmp_path)
    assert (rejection.code, rejection.uri) == ("GRIDS_DIFFER", str(safe))
    assert one(tmp_path, bands=("B04",)).channels == ("B04",)
    write_band(folder / "T33TXM_20210708T101031_B05_20m.jp2", _dn(61), 20)
    assert refused(tmp_path).code == "GRIDS_DIFFER"


def test_a_cut_off_jp2_is_told(tmp_path: Path) -> None:
    """The decoder gives some pixels of a file that lacks its end, without an error."""
    safe = write_safe(tmp_path, {("B04", 10): _dn(120), ("B02", 10): _dn(120)})
    band = next(safe.rglob("*B04*"))
    whole = band.read_bytes()
    for length in (len(whole) - 1, len(whole) - 200, len(whole) // 2, 300, 20):
        band.write_bytes(whole[:length])
        (rejected,) = [item for item in look(tmp_path)[1] if not item.junk]
        assert (rejected.code, rejected.uri) == ("TRUNCATED", str(band)), length
    # A box that states no length reaches to the end of the file, which then must be that of the pixels.
    place = whole.index(b"jp2c") - 4
    open_ended = whole[:place] + bytes(4) + whole[place + 4 :]
    band.write_bytes(open_ended)
    assert one(tmp_path).channels == ("B02", "B04")
    band.write_bytes(open_ended[:-200])
    # What is left of the product is a scene of fewer bands; the configuration says whether that will do.
    assert one(tmp_path).channels == ("B02",)
    assert refused_codes(tmp_path, bands=("B04",)) == {"TRUNCATED", "MISSING_BAND"}


def test_jpeg_2000_is_read_inside_a_safe_folder_alone(tmp_path: Path) -> None:
    write_band(tmp_path / "T33TXM_20210708T101031_B04_10m.jp2", _dn(60), 10)
    (rejected,) = look(tmp_path)[1]
    assert (rejected.code, rejected.junk) == ("NOT_GEOTIFF", True)
    # Named as the band of a product, but no JPEG 2000.
    folder = tmp_path / "x.SAFE"
    write_band(folder / "T33TXM_20210708T101031_B04_10m.jp2", _dn(60), 10)
    (folder / "T33TXM_20210708T101031_B03_10m.jp2").write_text('<VRTDataset rasterXSize="2" rasterYSize="2"/>')
    codes = {Path(item.uri).name: item.code for item in look(tmp_path)[1]}
    assert codes["T33TXM_20210708T101031_B03_10m.jp2"] == "NOT_GEOTIFF"
    assert codes["x.SAFE"] == "NO_METADATA"


def test_a_band_twice_is_told(tmp_path: Path) -> None:
    safe = write_safe(tmp_path, {("B04", 10): _dn(60)})
    write_band(next(safe.rglob("R10m")) / "T33TXM_20210708T101031_B04_10m.tif", _dn(60), 10)
    assert refused(tmp_path).code == "DUPLICATE_BAND"


def test_a_product_that_changed_after_ingest_is_said(tmp_path: Path) -> None:
    safe = write_safe(tmp_path, _bands())
    source = one(tmp_path)
    band = next(safe.rglob("*B04*"))
    write_band(band, _dn(60), 20)
    with pytest.raises(UnreadableSource, match="CHANGED"), Geotiff().open(source):
        pass
    band.unlink()
    with pytest.raises(UnreadableSource, match="UNREADABLE_FILE"), Geotiff().open(source):
        pass


def test_strips_are_decoded_once_whatever_the_height_of_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitpipe.domains.geotiff.raster import GeotiffRaster

    bands = {("B04", 10): _dn(600), ("B05", 20): _dn(300)}
    write_safe(tmp_path, bands)
    source = one(tmp_path)
    counted: dict[str, int] = {}
    plain = GeotiffRaster.read

    def count(raster: GeotiffRaster, window: Window) -> Any:
        name = raster._source.uri
        counted[name] = counted.get(name, 0) + window.height
        return plain(raster, window)

    monkeypatch.setattr(GeotiffRaster, "read", count)
    with Geotiff().open(source) as raster:
        rows = [raster.read(Window(0, row, 0, 37, 600))[0] for row in range(0, 600, 37)]
    assert sorted(counted.values()) == [300, 600]
    whole = np.concatenate(rows, axis=1)[:, :600]
    assert np.allclose(whole[1], (_repeat(bands["B05", 20], 2) - 1000.0) / 10_000, atol=1e-7)


def test_granules_of_an_old_product_are_a_scene_each(tmp_path: Path) -> None:
    safe = tmp_path / "S2A_OPER_PRD_MSIL1C_PDMC_20150905T104813_R002_V20150905T005712.SAFE"
    stored = {tile: _dn(60) for tile in ("33TXM", "33TXN")}
    for tile, pixels in stored.items():
        granule = f"S2A_OPER_MSI_L1C_TL_SGS__20150905T073438_A006291_T{tile}"
        write_band(safe / "GRANULE" / granule / "IMG_DATA" / f"{granule}_B04.jp2", pixels, 10)
    metadata = sentinel2_metadata("L1C", baseline="02.04", offset=None)
    (safe / "S2A_OPER_MTD_SAFL1C_PDMC_20150905T104813_R002_V20150905T005712.xml").write_text(metadata)
    sources, rejected = look(tmp_path)
    assert rejected == []
    assert [source.channels for source in sources] == [("B04",), ("B04",)]
    assert [source.keys["scene"][0][-5:] for source in sources] == list(stored)
    for source, pixels in zip(sources, stored.values(), strict=True):
        assert np.allclose(read(source)[0][0], pixels / 10_000, atol=1e-7)


def test_wavelengths_of_tags_name_bands_of_a_single_file(tmp_path: Path) -> None:
    stored = _RNG.integers(1, 9000, (3, 20, 20), dtype=np.uint16)
    profile = {"driver": "GTiff", "count": 3, "height": 20, "width": 20, "dtype": "uint16", "crs": "EPSG:32633"}
    transform = rasterio.transform.from_origin(500_000, 5_000_000, 10, 10)
    with rasterio.open(tmp_path / "a.tif", "w", transform=transform, **profile) as dataset:
        dataset.write(stored)
        dataset.update_tags(1, ns="IMAGERY", CENTRAL_WAVELENGTH_UM="0.665", FWHM_UM="0.030")
        dataset.update_tags(2, wavelength="842", wavelength_units="Nanometers", fwhm="115")
        # Without a width nothing is known of what it covers.
        dataset.update_tags(3, wavelength="1610", wavelength_units="nm")
    source = one(tmp_path, bands=("0.83um", "670nm"))
    assert source.channels == ("0.83um", "670nm")
    assert np.array_equal(read(source)[0], stored[[1, 0]])
    for missing in ("1610nm", "700nm"):
        assert refused(tmp_path, bands=(missing,)).code == "MISSING_BAND"


def test_values_of_two_meanings_do_not_go_into_one_run(tmp_path: Path) -> None:
    root = tmp_path / "data"
    write_safe(root / "surface", {("B04", 10): _dn(60)})
    write_safe(root / "top", {("B04", 10): _dn(60)}, level="L1C")
    path = write_band(root / "numbers.tif", _dn(60), 10)
    with rasterio.open(path, "r+") as dataset:
        dataset.descriptions = ("B04",)
    source = {"kind": "geotiff", "path": str(root)}
    config = parse_config({"name": "x", "source": source, "workspace": str(tmp_path / "ws")}, origin="test")
    with pytest.raises(DataError, match="mean different things: dn, reflectance, toa_reflectance"):
        ingest(config, Workspace(tmp_path / "ws"))


def test_scenes_beside_copied_metadata_stay_scenes(tmp_path: Path) -> None:
    """Band files exported to a plain folder, with the metadata beside them; other scenes lie there too."""
    red, other = _dn(60), _dn(60)
    write_band(tmp_path / "T33TXM_20210708T101031_B04.tif", red, 10)
    write_band(tmp_path / "T33TXM_20210708T101031_TCI.tif", red, 10)
    write_band(tmp_path / "other" / "scene.tif", other, 10)
    (tmp_path / "MTD_MSIL2A.xml").write_text(sentinel2_metadata())
    sources, rejected = look(tmp_path)
    assert [(item.code, Path(item.uri).stem[-3:]) for item in rejected] == [("PRODUCT_FILE", "TCI")]
    product, scene = sources
    assert (product.channels, product.units, scene.channels, scene.units) == (("B04",), "reflectance", ("b1",), "dn")
    assert np.allclose(read(product)[0][0], (red - 1000.0) / 10_000, atol=1e-7)
    assert np.array_equal(read(scene)[0][0], other)
    # A rejection names the product's files, not the folder that it shares.
    rejected = look(tmp_path, clouds="drop")[1]
    names = {Path(item.uri).name for item in rejected if item.code == "NO_CLOUD_MASK"}
    assert names == {"T33TXM_20210708T101031_B04.tif", "MTD_MSIL2A.xml", "scene.tif"}
