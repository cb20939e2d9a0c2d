"""Scenes that are warped to another CRS strip by strip: the same as a whole-scene warp, and no nodata bleeds in."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine
from numpy.typing import NDArray
from pydantic import ValidationError
from rasterio.enums import Resampling
from rasterio.warp import reproject
from rasterio.warp import transform as warp_points
from scipy.ndimage import binary_erosion, map_coordinates

from tests.labels.ground_cases import Run, make_config, write_tif
from tests.tiling_cases import MemoryRaster
from vitpipe.config import TileRecipe
from vitpipe.cutting import cut, planned_windows
from vitpipe.errors import UnreadableSource
from vitpipe.pixel_targets import IGNORE
from vitpipe.records import Grid, Window
from vitpipe.resample import preparation, prepare, prepared_grid
from vitpipe.tile_places import TilePlaces, tile_grid

_PLACE = (10.0, 0.0, 520_000.0, 0.0, -10.0, 5_300_000.0)
_HEIGHT, _WIDTH = 300, 260


def _scene(
    transform: tuple[float, ...] | None = _PLACE,
    crs: str | None = "EPSG:32632",
    valid: Any = None,
    block_rows: int = 16,
) -> MemoryRaster:
    """A smooth field with a gradient of at most 12 a pixel."""
    rows, cols = np.mgrid[:_HEIGHT, :_WIDTH].astype(np.float32)
    field = np.stack([1000 + 200 * np.sin(rows / 25) + 3 * cols, 500 + 100 * np.cos(cols / 20) + rows])[np.newaxis]
    grid = Grid(1, _HEIGHT, _WIDTH, transform=transform, crs=crs)  # type: ignore[arg-type]
    mask = np.ones((1, _HEIGHT, _WIDTH), bool) if valid is None else valid
    return MemoryRaster(field, mask, block_rows=16, grid=grid)


def _whole(raster: MemoryRaster, grid: Grid, scale: float) -> NDArray[np.float32]:
    assert raster.grid.transform is not None
    assert grid.transform is not None
    out = np.zeros((2, grid.height, grid.width), np.float32)
    reproject(
        raster.pixels[0], out, src_transform=Affine(*raster.grid.transform), src_crs=raster.grid.crs,
        dst_transform=Affine(*grid.transform), dst_crs=grid.crs, resampling=Resampling.bilinear,
        XSCALE=scale, YSCALE=scale,
    )  # fmt: skip
    return out


@pytest.mark.parametrize("crs", ["EPSG:3857", "EPSG:3035", "EPSG:32633"])
@pytest.mark.parametrize("gsd_m", [None, 6.0, 31.0])
@pytest.mark.parametrize("turned", [False, True])
def test_strips_are_what_the_whole_scene_gives(
    crs: str, gsd_m: float | None, turned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tuple(Affine(*_PLACE) @ Affine.rotation(25))[:6] if turned else _PLACE
    raster = _scene(place)
    recipe = TileRecipe(crs=crs, gsd_m=gsd_m)
    grid = prepared_grid(raster.grid, recipe, uri="x")
    monkeypatch.setattr("vitpipe.resample.warped._STRIP_VALUES", 2 * grid.width * 37)
    pixels, valid = prepare(raster, recipe, uri="x").read(Window(0, 0, 0, grid.height + 5, grid.width + 3))
    assert pixels.shape == (2, grid.height + 5, grid.width + 3)
    assert not valid[grid.height :].any()
    assert not valid[:, grid.width :].any()
    pixels, valid = pixels[:, : grid.height, : grid.width], valid[: grid.height, : grid.width]
    # Both may be 1/8 of a pixel off the exact coordinates, along rows and columns.
    pixel = (grid.transform or (0,))[0] / 10
    scale = 1 / max(1.0, pixel * _stretch(crs))
    step = 12 * (1 / 8) * 2
    # At the very edge 1/8 of a pixel may decide whether there is one.
    inner = binary_erosion(valid, iterations=3)
    assert np.abs(pixels - _whole(raster, grid, scale))[:, inner].max() <= step / 2
    if scale > 0.99:
        assert np.abs(pixels - _exact(raster, grid))[:, inner].max() <= step
    # What is valid covers the ground of the scene, but for the kernel's reach at its edges.
    ground = valid.sum() * (pixel * _stretch(crs)) ** 2
    assert ground == pytest.approx(_HEIGHT * _WIDTH, rel=0.08)
    assert not pixels[:, ~valid].any()


def _exact(raster: MemoryRaster, grid: Grid) -> NDArray[np.float64]:
    """Look every pixel up at its exact coordinates, between its four neighbours."""
    assert raster.grid.transform is not None
    assert grid.transform is not None
    rows, cols = np.mgrid[: grid.height, : grid.width] + 0.5
    x, y = Affine(*grid.transform) @ (cols.ravel(), rows.ravel())
    moved = warp_points(grid.crs, raster.grid.crs, x, y)
    col, row = ~Affine(*raster.grid.transform) @ (np.array(moved[0]), np.array(moved[1]))
    places = np.stack([row - 0.5, col - 0.5])
    return np.stack([map_coordinates(band, places, order=1) for band in raster.pixels[0]]).reshape(
        2, grid.height, grid.width
    )


def _stretch(crs: str) -> float:
    """Ground metres a metre of the CRS in the middle of the scene."""
    xs, ys = warp_points("EPSG:32632", crs, [521_300.0, 521_310.0], [5_298_500.0, 5_298_500.0])
    return 10 / math.hypot(xs[1] - xs[0], ys[1] - ys[0])


def test_no_nodata_bleeds_in() -> None:
    valid = np.random.default_rng(3).random((1, _HEIGHT, _WIDTH)) > 0.02
    valid[:, 100:140, 50:90] = False
    raster = _scene(valid=valid)
    raster.pixels[:] = np.where(valid[:, np.newaxis], 777, -30_000)
    pixels, mask = prepare(raster, TileRecipe(crs="EPSG:3857"), uri="x").read(Window(0, 0, 0, 500, 500))
    assert 0.5 < mask.sum() / valid.sum() < 1
    assert np.allclose(pixels[:, mask], 777, rtol=2e-3)


def test_tiles_lie_on_the_new_grid_and_no_row_is_read_twice() -> None:
    raster = _scene()
    recipe = TileRecipe(size=64, crs="EPSG:3857", min_valid_fraction=0)
    grid = prepared_grid(raster.grid, recipe, uri="x")
    assert grid.crs == "EPSG:3857"
    assert grid.transform is not None
    edge, _, left, _, _, top = grid.transform
    assert left / edge == pytest.approx(round(left / edge), abs=1e-6)
    assert top / edge == pytest.approx(round(top / edge), abs=1e-6)
    whole, mask = prepare(_scene(), recipe, uri="x").read(Window(0, 0, 0, grid.height, grid.width))
    windows = 0
    for block in cut(raster, recipe, source_id="x"):
        for window, tile, valid in zip(block.windows, block.tiles, block.valid, strict=True):
            windows += 1
            part = whole[:, window.row : window.row + 64, window.col : window.col + 64]
            inside = mask[window.row : window.row + 64, window.col : window.col + 64]
            seen = valid[: inside.shape[0], : inside.shape[1]]
            # Strips of other rows interpolate coordinates elsewhere.
            assert (seen != inside).mean() < 0.05
            both = seen & inside
            assert np.abs(tile[:, : part.shape[1], : part.shape[2]] - part)[:, both].max(initial=0) < 6
    assert windows == planned_windows(raster.grid, recipe, uri="x")
    rows = raster.rows_read()
    assert sorted(set(rows)) == list(range(_HEIGHT))
    assert len(rows) == _HEIGHT
    assert tile_grid(raster.grid, recipe, uri="x") == grid
    assert TilePlaces.of(raster.grid, recipe, uri="x").sizes == (grid.width, grid.height, 1)
    assert preparation(raster.grid, recipe, uri="x").startswith("warped from EPSG:32632 to EPSG:3857, pixels of 1")


def test_a_scene_that_lies_there_already_is_left_as_it_is() -> None:
    raster = _scene()
    assert prepare(raster, TileRecipe(crs="EPSG:32632"), uri="x") is raster
    assert prepare(raster, TileRecipe(crs="utm"), uri="x") is raster
    assert prepared_grid(raster.grid, TileRecipe(crs="utm"), uri="x") == raster.grid
    assert preparation(raster.grid, TileRecipe(crs="utm"), uri="x") == ""
    degrees = _scene((0.0001, 0.0, -58.0, 0.0, -0.0001, -34.0), "EPSG:4326")
    assert prepared_grid(degrees.grid, TileRecipe(crs="utm"), uri="x").crs == "EPSG:32721"


@pytest.mark.parametrize(
    ("place", "crs", "target", "code"),
    [
        (None, None, "EPSG:3857", "NO_CRS"),
        (_PLACE, "EPSG:32632", "EPSG:4326", "BAD_TARGET_CRS"),
        (_PLACE, "EPSG:32632", "EPSG:999999", "BAD_TARGET_CRS"),
        ((1000.0, 0.0, -130_000.0, 0.0, -1000.0, 150_000.0), "EPSG:3413", "EPSG:3857", "BAD_TARGET_CRS"),
        ((0.001, 0.0, 10.0, 0.0, -0.001, 89.0), "EPSG:4326", "utm", "BAD_TARGET_CRS"),
    ],
)
def test_what_cannot_be_warped_has_a_code(place: Any, crs: str | None, target: str, code: str) -> None:
    with pytest.raises(UnreadableSource) as error:
        prepared_grid(_scene(place, crs).grid, TileRecipe(crs=target), uri="x")
    assert error.value.code == code


def test_the_key_changes_no_digest_where_it_is_not_used_and_is_for_scenes() -> None:
    assert "crs" not in TileRecipe().model_dump()
    assert TileRecipe(crs="utm").model_dump()["crs"] == "utm"
    with pytest.raises(ValidationError, match="scenes on the ground"):
        TileRecipe(crs="utm", depth=8)
    with pytest.raises(ValidationError):
        TileRecipe(crs="mars")


def test_labels_follow_the_tiles_onto_the_new_grid(tmp_path: Path) -> None:
    small = np.random.default_rng(1).integers(1, 4, (12, 15))
    drawn = np.kron(small, np.ones((6, 6), int)).astype(np.uint8)
    write_tif(tmp_path / "scenes" / "a.tif", np.stack([drawn * 60, drawn * 60]), nodata=0)
    write_tif(tmp_path / "labels.tif", drawn, nodata=0)
    labels = {"kind": "raster", "path": str(tmp_path / "labels.tif"), "classes": {1: "a", 2: "b", 3: "c"}}
    run = Run(make_config(tmp_path, labels, crs="EPSG:3857", gsd_m=9.0))
    (folder,) = {path.parent for path in run.workspace.root.glob("tiles/*/*/tiles.npy")}
    tiles = np.load(folder / "tiles.npy")[:, 0].astype(int)
    table = run.store.table()
    targets = run.targets()[1]["a"]
    agreed = seen = 0
    for tile, row, col in zip(tiles[table["shard_row"]], table["row"], table["col"], strict=True):
        part = targets[row : row + 16, col : col + 16]
        shown = tile[: part.shape[0], : part.shape[1]]
        both = (shown > 0) & (part != IGNORE)
        # Inside a square the pixel is a class's own; at its edge it is between two.
        pure = both & (shown % 60 == 0)
        seen += int(pure.sum())
        agreed += int((shown[pure] // 60 - 1 == part[pure]).sum())
        assert (part[shown == 0] == IGNORE).all(), "what is not valid has no target"
    assert seen > 4000
    assert agreed > 0.97 * seen


def test_threads_warp_the_same_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def noted(*rest: Any, num_threads: int, **options: Any) -> Any:
        asked.append(num_threads)
        return reproject(*rest, num_threads=num_threads, **options)

    monkeypatch.setattr("rasterio.warp.reproject", noted)
    recipe = TileRecipe(size=64, crs="EPSG:3857", min_valid_fraction=0)
    one, three = (list(cut(_scene(), recipe, source_id="x", threads=threads)) for threads in (1, 3))
    assert set(asked[: len(asked) // 2]) == {1}
    assert set(asked[len(asked) // 2 :]) == {3}
    for block, again in zip(one, three, strict=True):
        assert np.array_equal(block.tiles, again.tiles)
        assert np.array_equal(block.valid, again.valid)
