"""Where scenes lie: across the date line, at the poles, upside down, turned, by control points alone, nowhere."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.rpc import RPC
from rasterio.transform import Affine, from_origin
from rasterio.warp import transform as warp_points
from scene_cases import look, one, read, write_band

from vitpipe.domains.geotiff import Geotiff
from vitpipe.domains.geotiff.ground import block_names, gsd_m, to_equal_area
from vitpipe.records import Source, Window

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

_BLOCK_M = 5_000.0
_SIZE = 64
# CRS, transform of 64 x 64 pixels, metres a pixel on the ground.
PLACES: dict[str, tuple[str, Affine, float]] = {
    "date line in degrees": ("EPSG:4326", from_origin(179.968, -16.0, 0.001, 0.001), 109.0),
    "date line from 0 to 360": ("EPSG:4326", from_origin(-180.032, -16.0, 0.001, 0.001), 109.0),
    "date line in UTM 60": ("EPSG:32760", Affine(100, 0, 817_000, 0, -100, 8_230_000), 100.0),
    "date line in UTM 1": ("EPSG:32701", Affine(100, 0, 175_800, 0, -100, 8_230_000), 100.0),
    "date line in Mercator": ("EPSG:3857", Affine(100, 0, 20_034_300, 0, -100, -1_800_000), 96.0),
    "north pole": ("EPSG:3413", Affine(100, 0, -3200, 0, -100, 3200), 103.0),
    "beside the north pole": ("EPSG:3413", Affine(100, 0, 40_000, 0, -100, -300_000), 103.0),
    "south pole": ("EPSG:3031", Affine(100, 0, -3200, 0, -100, 3200), 103.0),
    "at 180 degrees in the south": ("EPSG:3031", Affine(100, 0, -3200, 0, -100, -1_496_800), 101.0),
    "degrees at the north pole": ("EPSG:4326", from_origin(20, 90, 0.001, 0.001), 2.63),
    "degrees at the south pole": ("EPSG:4326", Affine(0.001, 0, -20, 0, -0.001, -89.936), 2.63),
    "south up": ("EPSG:32633", Affine(100, 0, 500_000, 0, 100, 5_000_000), 100.0),
    "mirrored": ("EPSG:32633", Affine(-100, 0, 506_400, 0, -100, 5_000_000), 100.0),
    "turned": ("EPSG:32633", Affine(80, 60, 500_000, 60, -80, 5_000_000), 100.0),
    "feet": ("EPSG:2272", Affine(328.0833, 0, 2_700_000, 0, -328.0833, 250_000), 100.0),
}


def _write(path: Path, place: str, **profile: Any) -> np.ndarray[Any, Any]:
    crs, transform, _ = PLACES[place]
    stored = np.arange(1, _SIZE**2 + 1, dtype=np.uint16).reshape(_SIZE, _SIZE)
    write_band(path, stored, 1, crs=crs, transform=transform, **profile)
    return stored


def _lon_lat(source: Source, window: Window) -> tuple[float, float]:
    """Give the centre of a window by the CRS alone, the longitude from -180 to 180."""
    assert source.grid.transform is not None
    x, y = Affine(*source.grid.transform) @ (window.col + window.width / 2, window.row + window.height / 2)
    (lon,), (lat,) = warp_points(CRS.from_user_input(source.grid.crs), CRS.from_epsg(4326), [x], [y])
    return (lon + 180) % 360 - 180, lat


def _block_of(lon: float, lat: float) -> tuple[int, int]:
    """EASE-Grid 2.0 by its formula (Brodzik et al. 2012): cylindrical equal area, true at 30 degrees."""
    a, e2 = 6378137.0, 0.0066943799901413165
    e = math.sqrt(e2)

    def authalic(phi: float) -> float:
        s = math.sin(phi)
        return (1 - e2) * (s / (1 - e2 * s * s) - math.log((1 - e * s) / (1 + e * s)) / (2 * e))

    k0 = math.cos(math.radians(30)) / math.sqrt(1 - e2 * math.sin(math.radians(30)) ** 2)
    x, y = a * k0 * math.radians(lon), a * authalic(math.radians(lat)) / (2 * k0)
    return math.floor(x / _BLOCK_M), math.floor(y / _BLOCK_M)


@pytest.mark.parametrize("place", PLACES)
def test_every_window_has_its_ground(tmp_path: Path, place: str) -> None:
    stored = _write(tmp_path / "a.tif", place)
    source = one(tmp_path, block_m=_BLOCK_M)
    crs, transform, expected_m = PLACES[place]
    assert CRS.from_user_input(source.grid.crs) == CRS.from_string(crs)
    assert source.grid.transform == pytest.approx(tuple(transform)[:6], abs=1e-9)
    assert source.attributes["gsd_m"] == pytest.approx(expected_m, rel=0.02)
    assert source.notes == (("ROTATED",) if place == "turned" else ())
    pixels, valid = read(source, Window(0, 10, 20, 16, 16))
    assert np.array_equal(pixels[0], stored[10:26, 20:36])
    assert valid.all()
    windows = [Window(0, row, col, 16, 16) for row in range(0, 49, 4) for col in range(0, 49, 4)]
    with Geotiff().open(source) as raster:
        names = raster.groups(windows)
        assert raster.groups([Window(0, 0, 0, _SIZE, _SIZE)]) == [source.group_id]
    for window, name in zip(windows, names, strict=True):
        lon, lat = _lon_lat(source, window)
        i, j = _block_of(lon, lat)
        # A hair beside a border (and the pole, where every longitude meets) either side is right.
        near = {_block_of(lon + dx, max(-90.0, min(90.0, lat + dy))) for dx in (-1e-9, 1e-9) for dy in (-1e-9, 1e-9)}
        at_pole = abs(lat) > 89.9999
        assert at_pole or name in {f"ground-{x}-{y}" for x, y in {(i, j), *near}}, (window, lon, lat)
        assert name.startswith("ground-")


@pytest.mark.parametrize("place", [name for name in PLACES if name.startswith("date line")])
def test_sliding_over_the_date_line_stays_on_this_side_of_the_world(tmp_path: Path, place: str) -> None:
    """Neighbours share a block or lie in blocks that touch, where east of 180 degrees follows west of it."""
    _write(tmp_path / "a.tif", place)
    source = one(tmp_path, block_m=_BLOCK_M)
    windows = [Window(0, 24, col, 16, 16) for col in range(0, 49)]
    with Geotiff().open(source) as raster:
        names = raster.groups(windows)
    columns = [int(name.split("-", 1)[1].rsplit("-", 1)[0].rstrip("-")) for name in names]
    first, last = _block_of(-180.0, 0.0)[0], _block_of(math.nextafter(180.0, 0), 0.0)[0]
    steps = [after - before for before, after in itertools.pairwise(columns)]
    around = [step for step in steps if abs(step) > 1]
    assert around == [first - last]
    assert {first, last} <= set(columns)
    assert sum(step in (0, 1) for step in steps) == len(steps) - 1


def test_scenes_on_both_sides_of_the_date_line_share_blocks(tmp_path: Path) -> None:
    for place in PLACES:
        if place.startswith("date line in"):
            _write(tmp_path / f"{place}.tif", place)
    sources, _ = look(tmp_path, block_m=200_000.0)
    found = []
    for source in sources:
        with Geotiff().open(source) as raster:
            windows = [Window(0, row, col, 4, 4) for row in range(0, 64, 4) for col in range(0, 64, 4)]
            found.append(set(raster.groups(windows)))
    assert len(set.intersection(*found)) == 2


def test_the_date_line_has_one_name() -> None:
    points = to_equal_area(CRS.from_epsg(4326), np.array([180.0, -180.0, 540.0]), np.array([-16.0] * 3))
    assert len(set(block_names(points, _BLOCK_M, otherwise="none"))) == 1
    assert len(set(block_names(points, 1e-3, otherwise="none"))) == 1


def test_the_ground_of_a_pixel_is_measured_where_it_is() -> None:
    degrees = CRS.from_epsg(4326)
    at_zero, at_line = (gsd_m(degrees, (0.001, 0, x, 0, -0.001, 10), 0, 0) for x in (0.0, 180.0))
    assert at_zero == at_line == pytest.approx(110.0, rel=0.01)
    assert gsd_m(CRS.from_epsg(3413), (10, 0, 0, 0, -10, 0), 0, 0) == pytest.approx(10.3, rel=0.01)
    # Half of the pixel would lie beyond the pole.
    assert gsd_m(degrees, (0.001, 0, 0, 0, -0.001, 90), 0, 0) is None


def test_rows_beyond_the_pole_are_a_group_of_the_scene(tmp_path: Path) -> None:
    """Grids of climate models have pixel centres at the pole: half of the first row lies on no ground."""
    write_band(
        tmp_path / "a.tif", np.ones((360, 720), np.float32), 1, crs="EPSG:4326", transform=from_origin(0, 91, 0.5, 0.5)
    )
    source = one(tmp_path)
    assert source.group_id.startswith("ground-")
    with Geotiff().open(source) as raster:
        above, below = raster.groups([Window(0, 0, 0, 2, 2), Window(0, 10, 0, 2, 2)])
    assert above == f"scene-{source.source_id}"
    assert below.startswith("ground-")


def test_control_points_across_the_date_line(tmp_path: Path) -> None:
    _write(tmp_path / "a.tif", "south up")
    points = [
        GroundControlPoint(row, col, 179.968 + col / 1000, -16 - row / 1000) for row in (0, _SIZE) for col in (0, _SIZE)
    ]
    with rasterio.open(tmp_path / "a.tif", "r+") as dataset:
        dataset.crs, dataset.transform = CRS(), Affine.identity()
        dataset.gcps = (points, CRS.from_epsg(4326))
    source = one(tmp_path, block_m=_BLOCK_M)
    assert source.notes == ("GCP_ONLY",)
    assert source.grid.transform is None
    i, j = _block_of(-180.0 + 1e-7, -16.032)
    with Geotiff().open(source) as raster:
        (right,) = raster.groups([Window(0, 24, 34, 16, 16)])
    assert right == f"ground-{i}-{j}"


@pytest.mark.parametrize(
    "places",
    [[(0, 0), (50, 50), (100, 100)], [(0, 0)] * 4, [(0, 0), (0, 50), (0, 100)]],
    ids=["diagonal", "one", "row"],
)
def test_control_points_on_a_line_tell_no_ground(tmp_path: Path, places: list[tuple[int, int]]) -> None:
    points = [GroundControlPoint(row, col, 10 + col / 1000, 50 - row / 1000) for row, col in places]
    _write(tmp_path / "a.tif", "south up")
    with rasterio.open(tmp_path / "a.tif", "r+") as dataset:
        dataset.crs, dataset.transform = CRS(), Affine.identity()
        dataset.gcps = (points, CRS.from_epsg(4326))
    source = one(tmp_path)
    assert source.notes == ("GCP_ONLY",)
    assert (source.grid.transform, source.grid.gcps) == (None, ())
    assert source.group_id == f"scene-{source.source_id}"


def test_what_does_not_say_where_it_is_has_a_note(tmp_path: Path) -> None:
    plain = {"crs": None, "transform": Affine.identity()}
    write_band(tmp_path / "none" / "a.tif", np.ones((8, 8), np.uint8), 1, **plain)
    rpcs = RPC(
        err_bias=1.0, err_rand=1.0, height_off=0, height_scale=1, lat_off=0, lat_scale=1, line_den_coeff=[1.0] * 20,
        line_num_coeff=[1.0] * 20, line_off=0, line_scale=1, long_off=0, long_scale=1, samp_den_coeff=[1.0] * 20,
        samp_num_coeff=[1.0] * 20, samp_off=0, samp_scale=1,
    )  # fmt: skip
    write_band(tmp_path / "rpc" / "a.tif", np.ones((8, 8), np.uint8), 1, rpcs=rpcs, **plain)
    for name, note in (("none", "NO_CRS"), ("rpc", "RPC_ONLY")):
        source = one(tmp_path / name)
        assert source.notes == (note,)
        assert (source.grid.crs, source.grid.transform, source.attributes["gsd_m"]) == (None, None, None)
        assert source.group_id == f"scene-{source.source_id}"
