"""GeoTIFF scenes: physical units, masks, bands, ground blocks, and a code for everything that is not one."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from geotiff_cases import RNG, assemble, only_source, read_window, write_scene
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin
from rasterio.warp import transform as warp_points

from vitpipe.digest import digest_file, digest_of_digests
from vitpipe.domains.geotiff import Geotiff
from vitpipe.records import Grid, Rejected, Source, Window

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


@pytest.mark.parametrize("interleave", ["pixel", "band"])
@pytest.mark.parametrize("layout", [{}, {"tiled": True, "blockxsize": 64, "blockysize": 32}, {"BIGTIFF": "YES"}])
@pytest.mark.parametrize(
    "dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "float32", "float64"]
)
def test_every_dtype_and_layout_is_read_as_written(tmp_path: Path, dtype: str, layout: Any, interleave: str) -> None:
    stored = RNG.integers(0, 100, (3, 70, 130)).astype(dtype)
    write_scene(tmp_path / "scene", stored, interleave=interleave, compress="deflate", **layout)
    source = only_source(tmp_path)
    assert (source.channels, source.dtype, source.units) == (("b1", "b2", "b3"), dtype, "dn")
    pixels, valid = read_window(source)
    assert np.array_equal(pixels, stored)
    assert valid.all()


def test_a_scene_says_where_and_when_it_is(tmp_path: Path) -> None:
    path = write_scene(tmp_path / "S2_x.tif", np.ones((1, 50, 60), np.uint8))
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(TIFFTAG_DATETIME="2021:07:08 10:11:12")
    source = only_source(tmp_path)
    assert source.grid == Grid(1, 50, 60, transform=(10.0, 0.0, 500_000.0, 0.0, -10.0, 5_000_000.0), crs="EPSG:32633")
    assert source.acquired_at == "2021-07-08T10:11:12"
    expected = {"crs": "EPSG:32633", "gsd_m": 10.0, "year": "2021", "month": "07", "season": "JJA"}
    assert {**source.attributes} == expected
    assert {**source.keys} == {"path": ("S2_x.tif",), "scene": ("S2_x",)}
    assert source.source_id == digest_of_digests([digest_file(path)])
    assert source.bytes == path.stat().st_size
    assert source.notes == ()


def test_the_acquisition_tag_comes_before_the_time_of_writing(tmp_path: Path) -> None:
    path = write_scene(tmp_path / "a.tif", np.ones((1, 5, 5), np.uint8))
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(TIFFTAG_DATETIME="2024:01:01 00:00:00", acquisition_date="2019-12-31")
    source = only_source(tmp_path)
    assert source.acquired_at == "2019-12-31T00:00:00"
    assert source.attributes["season"] == "DJF"


def test_bands_are_chosen_and_ordered_by_name(tmp_path: Path) -> None:
    stored = RNG.integers(1, 9000, (4, 20, 30), dtype=np.uint16)
    path = write_scene(tmp_path / "a.tif", stored)
    with rasterio.open(path, "r+") as dataset:
        dataset.descriptions = ("B02", "B03", None, "B08")
    assert only_source(tmp_path).channels == ("B02", "B03", "b3", "B08")
    source = only_source(tmp_path, bands=("B08", "b3", "B02"))
    assert source.channels == ("B08", "b3", "B02")
    assert np.array_equal(read_window(source)[0], stored[[3, 2, 0]])
    (rejected,) = assemble(tmp_path, bands=("B08", "B11"))
    assert isinstance(rejected, Rejected)
    assert rejected.code == "MISSING_BAND"
    assert "no band B11" in rejected.reason
    assert "B02, B03, b3, B08" in rejected.reason


def test_equal_band_names_name_nothing(tmp_path: Path) -> None:
    path = write_scene(tmp_path / "a.tif", np.ones((2, 5, 5), np.uint8))
    with rasterio.open(path, "r+") as dataset:
        dataset.descriptions = ("sr", "sr")
    source = only_source(tmp_path)
    assert source.channels == ("b1", "b2")
    assert source.notes == ("DUPLICATE_BAND_NAMES",)


def test_scale_and_offset_give_physical_units(tmp_path: Path) -> None:
    stored = RNG.integers(0, 10_000, (2, 20, 30), dtype=np.uint16)
    stored[0, :3] = 0
    path = write_scene(tmp_path / "a.tif", stored, nodata=0)
    with rasterio.open(path, "r+") as dataset:
        dataset.scales, dataset.offsets = (0.0001, 0.5), (-0.1, 2.0)
    source = only_source(tmp_path)
    assert (source.dtype, source.units, source.notes) == ("float32", "scaled", ("SCALED",))
    pixels, valid = read_window(source)
    # Validity is a matter of the stored value: 0 is nodata, though it would scale to -0.1.
    assert np.array_equal(valid, (stored != 0).all(axis=0))
    expected = stored * np.array([0.0001, 0.5]).reshape(2, 1, 1) + np.array([-0.1, 2.0]).reshape(2, 1, 1)
    assert np.allclose(pixels[:, valid], expected[:, valid], rtol=1e-6, atol=1e-6)
    assert only_source(tmp_path, units="reflectance").units == "reflectance"


@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [("uint8", 0), ("int16", -9999), ("uint16", 65535), ("float32", -3.4028234663852886e38), ("float64", -9999.5)],
)
def test_nodata_by_value(tmp_path: Path, dtype: str, nodata: float) -> None:
    stored = RNG.integers(1, 100, (2, 20, 30)).astype(dtype)
    stored[0, 2:5] = nodata
    stored[1, :, 7] = nodata
    write_scene(tmp_path / "a.tif", stored, nodata=nodata)
    pixels, valid = read_window(only_source(tmp_path))
    assert np.array_equal(valid, (stored != np.array(nodata, dtype)).all(axis=0))
    assert np.array_equal(pixels[:, valid], stored[:, valid])
    # Only the bands that are used count.
    _, valid = read_window(only_source(tmp_path, bands=("b2",)))
    assert np.array_equal(valid, stored[1] != np.array(nodata, dtype))


@pytest.mark.parametrize("nodata", [None, np.nan, 5.0])
def test_what_is_not_finite_is_not_valid(tmp_path: Path, nodata: float | None) -> None:
    stored = RNG.integers(1, 5, (2, 20, 30)).astype(np.float32)
    stored[0, 0, 0], stored[1, 1, 1], stored[0, 2, 2] = np.nan, np.inf, 5.0
    write_scene(tmp_path / "a.tif", stored, nodata=nodata)
    _, valid = read_window(only_source(tmp_path))
    expected = np.isfinite(stored).all(axis=0) & ((stored != 5.0).all(axis=0) if nodata == 5.0 else True)
    assert np.array_equal(valid, expected)


@pytest.mark.parametrize("layout", [{}, {"tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "deflate"}])
def test_nodata_that_a_float_does_not_hold(tmp_path: Path, layout: dict[str, Any]) -> None:
    """rasterio writes and reads nodata as a float: the digits are put in by hand, as GDAL writes them."""
    pixels = np.full((1, 32, 32), 5, np.int64)
    pixels[0, 0, :3] = 2**53 + np.arange(3)
    path = write_scene(tmp_path / "a.tif", pixels, nodata=1234567890123456, **layout)
    content = path.read_bytes()
    assert content.count(b"1234567890123456") == 1
    path.write_bytes(content.replace(b"1234567890123456", str(2**53 + 1).encode()))
    source = only_source(tmp_path)
    read, valid = read_window(source)
    assert np.argwhere(~valid).tolist() == [[0, 1]]
    assert read[0, 0, [0, 2]].tolist() == [2**53, 2**53 + 2]


def test_mask_band_inside_the_file(tmp_path: Path) -> None:
    mask = np.zeros((20, 30), np.uint8)
    mask[4:9] = 255
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        path = write_scene(tmp_path / "a.tif", np.full((3, 20, 30), 7, np.uint8), photometric="rgb")
        with rasterio.open(path, "r+") as dataset:
            dataset.write_mask(mask)
    assert [item.name for item in tmp_path.iterdir()] == ["a.tif"]
    _, valid = read_window(only_source(tmp_path), Window(0, 2, 3, 10, 11))
    assert np.array_equal(valid, mask[2:12, 3:14] > 0)


def test_mask_file_beside_the_scene_is_part_of_it(tmp_path: Path) -> None:
    mask = np.zeros((20, 30), np.uint8)
    mask[4:9] = 255
    path = write_scene(tmp_path / "a.tif", np.full((1, 20, 30), 7, np.uint8))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(mask)
    beside = tmp_path / "a.tif.msk"
    source = only_source(tmp_path)
    assert source.files == (str(path), str(beside))
    assert source.notes == ("MASK_FILE",)
    assert source.source_id == digest_of_digests([digest_file(path), digest_file(beside)])
    assert np.array_equal(read_window(source)[1], mask > 0)
    path.unlink()
    (found,) = assemble(tmp_path)
    assert isinstance(found, Rejected)
    assert (found.code, found.junk) == ("SIDECAR", True)
    write_scene(path, np.full((1, 21, 30), 7, np.uint8))
    (found,) = assemble(tmp_path)
    assert isinstance(found, Rejected)
    assert found.code == "BAD_MASK_FILE"


def test_a_vrt_dressed_as_a_mask_is_not_opened(tmp_path: Path) -> None:
    write_scene(tmp_path / "a.tif", np.full((1, 20, 30), 7, np.uint8))
    secret = write_scene(tmp_path / "secret.tif", np.zeros((1, 20, 30), np.uint8))
    text = (
        '<VRTDataset rasterXSize="30" rasterYSize="20"><Metadata><MDI key="INTERNAL_MASK_FLAGS_1">2</MDI></Metadata>'
        f'<VRTRasterBand dataType="Byte" band="1"><SimpleSource><SourceFilename>{secret}</SourceFilename>'
        "<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    (tmp_path / "a.tif.msk").write_text(text)
    with rasterio.open(tmp_path / "a.tif", driver="GTiff") as dataset:
        assert not dataset.read_masks(1).any(), "GDAL reads the VRT when it is let"
    first = assemble(tmp_path)[0]
    assert isinstance(first, Source)
    assert read_window(first)[1].all()


def test_alpha_is_a_mask_unless_it_has_a_name_or_is_asked_for(tmp_path: Path) -> None:
    stored = RNG.integers(1, 255, (4, 20, 30), dtype=np.uint8)
    stored[3, :5] = 0
    path = write_scene(tmp_path / "a.tif", stored, photometric="rgb", alpha="yes")
    with rasterio.open(path) as dataset:
        assert dataset.colorinterp[3] == ColorInterp.alpha
    source = only_source(tmp_path)
    assert (source.channels, source.notes) == (("b1", "b2", "b3"), ("ALPHA",))
    assert np.array_equal(read_window(source)[1], stored[3] > 0)
    source = only_source(tmp_path, bands=("b4", "b1"))
    pixels, valid = read_window(source)
    assert np.array_equal(pixels, stored[[3, 0]])
    assert valid.all()
    with rasterio.open(path, "r+") as dataset:
        dataset.set_band_description(4, "nir")
    source = only_source(tmp_path)
    assert (source.channels, source.notes) == (("b1", "b2", "b3", "nir"), ())
    assert read_window(source)[1].all()


def test_colour_tables_hold_class_codes(tmp_path: Path) -> None:
    path = write_scene(tmp_path / "a.tif", np.full((1, 5, 5), 3, np.uint8), photometric="palette")
    with rasterio.open(path, "r+") as dataset:
        dataset.write_colormap(1, {3: (200, 100, 50, 255)})
    source = only_source(tmp_path)
    assert source.notes == ("COLORMAP",)
    assert (read_window(source)[0] == 3).all()


def test_windows_past_the_edge_are_padded_and_masked(tmp_path: Path) -> None:
    stored = RNG.integers(1, 255, (2, 50, 60), dtype=np.uint8)
    write_scene(tmp_path / "a.tif", stored)
    source = only_source(tmp_path)
    pixels, valid = read_window(source, Window(0, 40, 50, 32, 32))
    assert np.array_equal(pixels[:, :10, :10], stored[:, 40:, 50:])
    assert valid[:10, :10].all()
    assert valid.sum() == 100
    pixels, valid = read_window(source, Window(0, 90, 0, 4, 4))
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
    write_scene(tmp_path / "a.tif", np.ones((1, 1000, 700), np.uint8), compress="deflate", **profile)
    with Geotiff().open(only_source(tmp_path)) as raster:
        assert raster.block_rows == expected


def test_groups_are_blocks_of_one_grid_whatever_the_crs(tmp_path: Path) -> None:
    corner = warp_points(CRS.from_epsg(32633), CRS.from_epsg(32632), [500_000.0], [5_000_000.0])
    near = {"crs": "EPSG:32632", "transform": from_origin(corner[0][0], corner[1][0], 10, 10)}
    write_scene(tmp_path / "a.tif", np.ones((1, 600, 600), np.uint8))
    write_scene(tmp_path / "b.tif", np.full((1, 600, 600), 2, np.uint8), **near)
    sources = [item for item in assemble(tmp_path, block_m=1000.0) if isinstance(item, Source)]
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
    (wider,) = {item.group_id for item in assemble(tmp_path, block_m=1e6) if isinstance(item, Source)}
    assert wider == f"ground-{int(x[0] // 1e6)}-{int(y[0] // 1e6)}"


def test_windows_on_no_ground_are_a_group_of_the_scene(tmp_path: Path) -> None:
    geos = "+proj=geos +lon_0=0 +h=35785831 +a=6378137 +b=6356752.3 +units=m +no_defs"
    edge = 5_500_000.0
    profile = {"crs": CRS.from_proj4(geos), "transform": from_origin(-edge, edge, edge / 50, edge / 50)}
    write_scene(tmp_path / "disk.tif", np.ones((1, 100, 100), np.uint8), **profile)
    source = only_source(tmp_path)
    with Geotiff().open(source) as raster:
        corner, middle = raster.groups([Window(0, 0, 0, 2, 2), Window(0, 50, 50, 4, 4)])
    assert corner == f"scene-{source.source_id}"
    assert middle.startswith("ground-")


def test_scenes_without_a_crs_are_kept(tmp_path: Path) -> None:
    write_scene(tmp_path / "a.tif", np.ones((1, 9, 9), np.uint8), crs=None, transform=None)
    source = only_source(tmp_path)
    assert source.notes == ("NO_CRS",)
    assert source.grid.transform is None
    assert source.group_id == f"scene-{source.source_id}"
    with Geotiff().open(source) as raster:
        assert raster.groups([Window(0, 0, 0, 4, 4)] * 3) == [source.group_id] * 3


def test_control_points_give_the_ground_but_no_transform(tmp_path: Path) -> None:
    points = [GroundControlPoint(row, col, 10 + col / 1000, 50 - row / 1000) for row in (0, 100) for col in (0, 100)]
    write_scene(tmp_path / "a.tif", np.ones((1, 100, 100), np.uint8), crs=None, transform=None)
    with rasterio.open(tmp_path / "a.tif", "r+") as dataset:
        dataset.gcps = (points, CRS.from_epsg(4326))
    source = only_source(tmp_path)
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
    write_scene(tmp_path / "degrees.tif", np.ones((1, 9, 9), np.uint8), **degrees)
    mercator = {"crs": "EPSG:3857", "transform": from_origin(1e6, 8_399_737.9, 10, 10)}  # 60 degrees north
    write_scene(tmp_path / "mercator.tif", np.full((1, 9, 9), 2, np.uint8), **mercator)
    by_name = {source.keys["scene"][0]: source.attributes["gsd_m"] for source in assemble(tmp_path)}  # type: ignore[union-attr]
    assert by_name["degrees"] == pytest.approx(111_300 * 0.001 * 0.5**0.5, rel=0.01)
    assert by_name["mercator"] == pytest.approx(5.0, rel=0.01)


def test_rotated_scenes_keep_their_transform(tmp_path: Path) -> None:
    turned = rasterio.Affine(8, 3, 500_000, 3, -8, 5_000_000)
    write_scene(tmp_path / "a.tif", np.ones((1, 9, 9), np.uint8), transform=turned)
    source = only_source(tmp_path)
    assert source.notes == ("ROTATED",)
    assert source.grid.transform == tuple(turned)[:6]


def test_sidecars_that_others_heed_are_noted(tmp_path: Path) -> None:
    path = write_scene(tmp_path / "a.tif", np.ones((1, 20, 20), np.uint8), crs=None, transform=None)
    path.with_name("a.tif.aux.xml").write_text("<PAMDataset><SRS>EPSG:4326</SRS></PAMDataset>")
    path.with_suffix(".tfw").write_text("10\n0\n0\n-10\n0\n0\n")
    source = only_source(tmp_path)
    assert source.notes == ("NO_CRS", "AUX_XML_IGNORED", "WORLD_FILE_IGNORED")
    assert (source.grid.crs, source.grid.transform) == (None, None)


def _checksum_in_child(raster: Any, window: Window, results: Any) -> None:
    results.put(int(raster.read(window)[0].astype(np.int64).sum()))


def test_a_fork_reads_through_its_own_handle(tmp_path: Path) -> None:
    noise = RNG.integers(0, 60_000, (1, 600, 600), dtype=np.uint16)
    write_scene(tmp_path / "a.tif", noise, tiled=True, blockxsize=64, blockysize=64)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    with Geotiff().open(only_source(tmp_path)) as raster:
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
