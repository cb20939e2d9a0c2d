"""Footprints on the equal-area grid, distances on the ground, and what two splits share."""

from __future__ import annotations

import time

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.warp import transform as warp_points

from tests.ground.ground_cases import RECIPE, corner_at, footprints_of, scene, tiles_of
from vitpipe.config import TileRecipe
from vitpipe.errors import LeakageError
from vitpipe.ground import Footprints, distance_to_train, ground_audit, left_out, tile_footprints
from vitpipe.ground.audit import check_audit
from vitpipe.ground.equal_area import WORLD_M, distance_m, from_mercator, to_mercator
from vitpipe.ground.spacing import nearest_m, overlaps
from vitpipe.records import Grid, Source, Split


def test_mercator_is_that_of_gdal_and_back() -> None:
    longitude, latitude = np.meshgrid(np.linspace(-179, 179, 41), np.linspace(-84, 84, 43))
    world = CRS.from_epsg(4326)
    equal_area = np.array(warp_points(world, CRS.from_epsg(6933), longitude.ravel(), latitude.ravel())).T
    mercator = np.array(warp_points(world, CRS.from_epsg(3395), longitude.ravel(), latitude.ravel())).T
    # Near the pole a millimetre of EPSG:6933 is centimetres of Mercator.
    np.testing.assert_allclose(to_mercator(equal_area), mercator, atol=0.05)
    np.testing.assert_allclose(from_mercator(mercator), equal_area, atol=0.001)


@pytest.mark.parametrize(
    ("longitude", "latitude"), [(9.1, 0.2), (15.0, 47.0), (-70.0, -33.0), (20.0, 69.9), (25.0, 80.0)]
)
def test_area_and_distance_are_those_of_the_ground(longitude: float, latitude: float) -> None:
    """A UTM zone's scale is 0.9996 to 1.001: EPSG:6933 alone would be off by a factor of 2.9 at 80 degrees."""
    epsg = (32600 if latitude > 0 else 32700) + int((longitude + 180) // 6) + 1
    source = scene("a", epsg, corner_at(epsg, longitude, latitude))
    ground = footprints_of(tiles_of([source]), [source])
    assert shapely.area(ground.polygons) == pytest.approx(np.full(100, 640.0**2), rel=2.5e-3)
    across, down = ground.centres[[0, 9]], ground.centres[[0, 90]]
    assert distance_m(across[:1], across[1:]) == pytest.approx([9 * 640], rel=1.5e-3)
    assert distance_m(down[:1], down[1:]) == pytest.approx([9 * 640], rel=1.5e-3)
    # From edge to edge: the first column of tiles and the fourth.
    first, fourth = ground.where(np.array([0])), ground.where(np.array([3]))
    assert nearest_m(first, fourth) == pytest.approx([2 * 640], rel=1.5e-3)


def test_tiles_of_one_grid_touch_and_share_nothing() -> None:
    source = scene("a", 32633, corner_at(32633, 15.0, 61.0))
    ground = footprints_of(tiles_of([source]), [source])
    left, right = ground.where(np.arange(0, 100, 2)), ground.where(np.arange(1, 100, 2))
    assert len(overlaps(left.polygons, right.polygons)[0]) == 0
    assert nearest_m(left, right).max() < 1e-3


def test_footprints_follow_padding_whole_sources_and_resampling() -> None:
    source = scene("a", 32633, (500_000.0, 5_000_000.0), size=100)
    padded = footprints_of(tiles_of([source]), [source])
    # 100 = 64 + 36 pixels: what reaches past the edge is no ground of the tile.
    assert sorted(shapely.area(padded.polygons) / 100) == pytest.approx([36 * 36, 36 * 64, 36 * 64, 64 * 64], rel=2e-3)
    whole = TileRecipe(size=64, cut="whole")
    (area,) = shapely.area(footprints_of(tiles_of([source], whole), [source], whole).polygons)
    assert area == pytest.approx(1000.0**2, rel=2e-3)
    coarse = TileRecipe(size=16, gsd_m=50.0)
    resampled = footprints_of(tiles_of([source], coarse), [source], coarse)
    assert shapely.area(shapely.union_all(resampled.polygons)) == pytest.approx(area, rel=1e-3)


def test_sources_without_a_map_have_no_ground() -> None:
    plain = Source("p", "p", "images", "p", ("p",), Grid(1, 640, 640), ("r",), "dn", "uint8")
    mapped = scene("a", 32633, (500_000.0, 5_000_000.0))
    table = tiles_of([mapped])
    assert tile_footprints(table.assign(source_id="p"), [plain], RECIPE) is None
    mixed = table.assign(source_id=np.where(np.arange(100) < 30, "p", "a"))
    ground = footprints_of(mixed, [plain, mapped])
    assert ground.known.tolist() == [False] * 30 + [True] * 70
    splits = np.where(np.arange(100) % 2, "train", "test").astype(object)
    assert not np.stack(left_out(splits, ground, 0.0)).any()
    (pair,) = ground_audit(splits, ground)
    assert (pair.shared_m2, pair.least_m) == (0.0, pytest.approx(0.0, abs=1e-3))


def test_scenes_of_two_zones_share_their_ground() -> None:
    """The same ten kilometres imaged in zone 32 and in zone 33 are the same ground, to a pixel."""
    first, second = (scene(str(epsg), epsg, corner_at(epsg, 12.0, 50.0)) for epsg in (32632, 32633))
    ground = footprints_of(tiles_of([first, second]), [first, second])
    splits = np.repeat(["train", "test"], 100).astype(object)
    (pair,) = ground_audit(splits, ground)
    # Turned against each other by 4.6 degrees about their common corner.
    union = shapely.union_all(ground.polygons[:100]).intersection(shapely.union_all(ground.polygons[100:]))
    assert pair.shared_m2 == pytest.approx(union.area, rel=1e-6)
    assert pair.shared_m2 > 0.9 * 6400**2
    assert pair.least_m == 0.0
    with pytest.raises(LeakageError, match=r"train and test share 3\d,\d{3},\d{3} m2 of ground, expected none"):
        check_audit((pair,), 0.0)


def test_across_the_antimeridian_ground_is_one() -> None:
    """Fiji: zones 60 and 1 meet at 180 degrees; a scene across it is one piece, and has neighbours on both sides."""
    west = scene("w", 32760, corner_at(32760, 179.99, -17.0))
    east = scene("e", 32701, corner_at(32701, -179.98, -17.0))
    ground = footprints_of(tiles_of([west, east]), [west, east])
    assert shapely.area(ground.polygons) == pytest.approx(np.full(200, 640.0**2), rel=2.5e-3)
    assert (shapely.bounds(ground.polygons)[:, 2] > WORLD_M / 2).any()
    splits = np.repeat(["train", "test"], 100).astype(object)
    (pair,) = ground_audit(splits, ground)
    assert 0.1 * 6400**2 < pair.shared_m2 < 0.9 * 6400**2
    alone = ground.where(np.array([0, 109]))
    (gap,) = nearest_m(alone.where(np.array([0])), alone.where(np.array([1])))
    # From the first tile's east edge (179.996) to the far scene's last tile, 1.07 degrees of longitude cos(17) less.
    assert 5_000 < gap < 9_000


def _crosswise(seed: int, buffer_m: float) -> tuple[np.ndarray[tuple[int], np.dtype[np.object_]], Footprints]:
    rng = np.random.default_rng(seed)
    recipe = TileRecipe(size=64, stride=48)
    sources = [
        scene(
            f"s{number}", epsg, tuple(np.add(corner_at(epsg, 12.0, 50.0), rng.integers(-300, 300, 2) * 10.0)), size=320
        )
        for number, epsg in enumerate([32632, 32633, 32632])
    ]
    table = tiles_of(sources, recipe, block_m=2500.0)
    ground = footprints_of(table, sources, recipe)
    names = np.array([str(split) for split in Split], dtype=object)
    of_group = dict(zip(sorted(set(table["group_id"])), rng.choice(names, table["group_id"].nunique()), strict=True))
    return table["group_id"].map(of_group).to_numpy(dtype=object), ground


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 300.0, 1500.0]))
def test_what_is_kept_shares_no_ground_and_keeps_the_buffer(seed: int, buffer_m: float) -> None:
    splits, ground = _crosswise(seed, buffer_m)
    overlapping, near = left_out(splits, ground, buffer_m)
    assert not (overlapping & near).any()
    gone = overlapping | near
    assert not (gone & (splits == "test")).any()
    if buffer_m == 0:
        assert not near.any()
    pairs = ground_audit(splits[~gone], ground.where(~gone))
    check_audit(pairs, buffer_m)
    # No tile went without need: each that is gone shares ground with, or is near to, one that gives way later or never.
    rank = {"test": 0, "calibration": 1, "val": 2, "train": 3}
    for place in np.flatnonzero(gone):
        before = np.array([rank[other] < rank[splits[place]] for other in splits]) & ~gone
        (gap,) = nearest_m(ground.where(np.array([place])), ground.where(before))
        assert gap <= buffer_m * 1.01


def test_the_audit_names_the_distance_that_is_too_small() -> None:
    source = scene("a", 32633, (500_000.0, 5_000_000.0))
    ground = footprints_of(tiles_of([source]), [source])
    splits = np.where(np.arange(100) % 10 < 5, "train", "val").astype(object)
    pairs = ground_audit(splits, ground)
    check_audit(pairs, 0.0)
    with pytest.raises(LeakageError, match=r"train and val come as near as 0\.0 m, expected 500 m"):
        check_audit(pairs, 500.0)
    assert pairs[0].to_json() == {"splits": ["train", "val"], "shared_m2": 0.0, "least_distance_m": 0.0}


def test_distance_to_train_is_for_tiles_outside_train() -> None:
    source = scene("a", 32633, (500_000.0, 5_000_000.0))
    ground = footprints_of(tiles_of([source]), [source])
    splits = np.where(np.arange(100) % 10 < 2, "train", "test").astype(object)
    found = distance_to_train(splits, ground).reshape(10, 10)
    assert np.isnan(found[:, :2]).all()
    # Column after column 640 m further; the scale of the zone is 0.9996 here.
    assert found[:, 2:] == pytest.approx(np.tile(np.arange(8) * 640.0, (10, 1)), rel=1e-3, abs=1e-3)


def test_thirty_thousand_tiles_take_seconds() -> None:
    sources = [
        scene(f"s{n}", 32632, (300_000.0 + (n % 10) * 64_000, 5.0e6 + n // 10 * 64_000), size=6400) for n in range(3)
    ]
    table = tiles_of(sources)
    assert len(table) == 30_000
    began = time.process_time()
    ground = footprints_of(table, sources)
    names = np.array(["train", "train", "test", "val"], dtype=object)
    splits = names[[int.from_bytes(name.encode()[-3:]) % 4 for name in table["group_id"]]]
    left = np.logical_or(*left_out(splits, ground, 1000.0))
    pairs = ground_audit(splits[~left], ground.where(~left))
    distance_to_train(splits[~left], ground.where(~left))
    check_audit(pairs, 1000.0)
    assert time.process_time() - began < 9


def test_thirty_dates_of_one_scene_are_one_ground() -> None:
    source = scene("a", 32633, (500_000.0, 5_000_000.0), size=1280)
    once = footprints_of(tiles_of([source]), [source])
    many = once.where(np.tile(np.arange(400), 30))
    assert len(many.distinct().centres) == 400
    began = time.process_time()
    splits = np.where(np.arange(12_000) // 400 < 20, "train", "test").astype(object)
    (pair,) = ground_audit(splits, many)
    assert time.process_time() - began < 2
    assert pair.shared_m2 == pytest.approx(float(shapely.area(once.polygons).sum()), rel=1e-9)
    assert left_out(splits, many, 0.0)[0].tolist() == (splits == "train").tolist()
