"""Masks of stacks: exact for a model that gives its input back, blended in depth, of bounded memory, in their place."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.tiling_cases import MemoryRaster
from tests.volume_cases import affine_of, field_raster, grid_of, places_mm
from vitpipe.config import TileRecipe
from vitpipe.domains.base import Raster
from vitpipe.errors import ContractError
from vitpipe.infer.mapping import Blend, MapPlan, PixelModel, stitch_stack
from vitpipe.infer.maps import as_cut
from vitpipe.infer.volumes import NO_CLASS, on_source


def above(level: float) -> PixelModel:
    """Make a model that gives the pixel as a probability of 0 or 1: of two classes, below the level and above."""

    def model(tiles: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        # 2.5-D: the middle frame.
        high = (tiles[:, tiles.shape[1] // 2] > level).astype(np.float32)
        return np.stack([1 - high, high], axis=1)

    return model


def itself(tiles: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Give the tiles as they are."""
    return tiles


def positional(tiles: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Give what depends on the place in the tile, as models do near a tile's rim."""
    places = [np.linspace(0, 1, size, dtype=np.float32) for size in tiles.shape[2:]]
    return tiles * (1 + np.multiply.outer(np.multiply.outer(places[0], places[1] ** 2), 1 - places[2]))


def whole(raster: Raster, model: PixelModel, plan: MapPlan) -> NDArray[np.float32]:
    """Put the frames together (outputs, frames, height, width); NaN where a pixel is not valid."""
    frames = []
    for number, item in enumerate(stitch_stack(raster, model, plan)):
        assert item.frame == number
        frames.append(np.where(item.valid, item.values, np.nan))
    assert len(frames) == raster.grid.frames
    return np.stack(frames, axis=1)


def in_memory(raster: MemoryRaster, model: PixelModel, plan: MapPlan) -> NDArray[np.float64]:
    """Give ``sum(w v) / sum(w)`` of all tiles in float64, the stack held as a whole."""
    pixels = (raster.pixels * raster.valid[:, None]).transpose(1, 0, 2, 3).astype(np.float32)
    sizes = (plan.depth or 1, plan.size, plan.size)
    missing = [max(0, size - have) for size, have in zip(sizes, pixels.shape[1:], strict=True)]
    room = [(0, count) for count in missing]
    padded = np.pad(pixels, [(0, 0), *room], mode="reflect")
    valid = np.pad(raster.valid, room, mode="reflect")
    windows, starts = [], []
    for size, have in zip(sizes, padded.shape[1:], strict=True):
        windows.append(np.maximum(np.sin(np.pi * (np.arange(size) + 0.5) / size) ** 2, 1e-3))
        step = max(1, round(size * (1 - plan.overlap)))
        starts.append(sorted({*range(0, max(1, have - size), step), have - size}))
    weight = np.multiply.outer(np.multiply.outer(windows[0], windows[1]), windows[2])
    total, sums = np.zeros(padded.shape[1:]), np.zeros((plan.outputs, *padded.shape[1:]))
    for corner in np.stack(np.meshgrid(*starts, indexing="ij"), -1).reshape(-1, 3):
        place = tuple(slice(first, first + size) for first, size in zip(corner, sizes, strict=True))
        if valid[place].any():
            sums[:, *place] += weight * model(padded[:, *place][None], valid[place][None])[0]
            total[place] += weight
    with np.errstate(invalid="ignore"):
        found = np.where(valid, sums / total, np.nan)
    return found[:, : raster.grid.frames, : raster.grid.height, : raster.grid.width]


@st.composite
def stacks(draw: st.DrawFn) -> MemoryRaster:
    """Draw a stack of any shape, with holes and frames of nothing."""
    shape = draw(st.integers(1, 17)), draw(st.integers(1, 30)), draw(st.integers(1, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    pixels = rng.normal(0, 10.0 ** draw(st.integers(-3, 6)), (shape[0], draw(st.integers(1, 2)), *shape[1:]))
    valid = np.ones(shape, bool)
    kind = draw(st.sampled_from(["none", "noise", "block", "frames"]))
    if kind == "noise":
        valid = rng.random(shape) > 0.3
    elif kind == "block":
        corner = [rng.integers(size) for size in shape]
        valid[corner[0] :, corner[1] :, corner[2] :] = False
    elif kind == "frames":
        valid[rng.random(shape[0]) < 0.5] = False
    return MemoryRaster(pixels.astype(np.float32), valid)


@given(
    stacks(),
    st.sampled_from([None, 2, 5, 8]),
    st.sampled_from([8, 11]),
    st.sampled_from([0.0, 0.25, 0.5, 0.9]),
    st.sampled_from(list(Blend)),
    st.booleans(),
)
@settings(max_examples=50, deadline=None)
def test_a_stack_that_a_model_gives_back_is_the_stack(
    raster: MemoryRaster, depth: int | None, size: int, overlap: float, blend: Blend, d4: bool
) -> None:
    plan = MapPlan(size, len(raster.channels), overlap, blend, d4, batch=5, depth=depth)
    expected = np.where(raster.valid[:, None], raster.pixels, np.nan).transpose(1, 0, 2, 3)
    np.testing.assert_array_equal(whole(raster, itself, plan), expected)
    # Each frame is read once, however tiles overlap.
    assert sorted(read.frame for read in raster.reads) == list(range(raster.grid.frames))


@given(stacks(), st.sampled_from([2, 5, 8]), st.sampled_from([0.0, 0.3, 0.5, 0.8]))
@settings(max_examples=25, deadline=None)
def test_layer_by_layer_is_as_in_memory(raster: MemoryRaster, depth: int, overlap: float) -> None:
    plan = MapPlan(8, len(raster.channels), overlap, batch=7, depth=depth)
    expected = in_memory(raster, positional, plan)
    scale = np.abs(raster.pixels).max() + 1
    np.testing.assert_allclose(whole(raster, positional, plan), expected, rtol=0, atol=4e-6 * scale)


CODES = ["LPS", "RAS", "SLA", "ILP", "PSR"]


@given(
    st.tuples(st.integers(2, 11), st.integers(1, 20), st.integers(1, 20)),
    st.sampled_from([None, *CODES]),
    st.sampled_from([{}, {"depth": 2}, {"depth": 7}, {"neighbours": 1}]),
    st.sampled_from([None, 0.5, 1.0 / 3]),
    st.sampled_from([0.0, 0.25, 0.6]),
)
@settings(max_examples=60, deadline=None)
def test_the_mask_of_a_thresholding_model_is_the_thresholded_volume(
    shape: tuple[int, int, int], code: str | None, through: dict[str, int], finer: float | None, overlap: float
) -> None:
    """Flips, swapped axes and finer slices (every source frame is one of theirs) move no pixel of the mask."""
    # Sides that differ, so that no axis passes for another one.
    affine = affine_of((2.0, 0.9, 0.7), angles=(0.2, -0.1))
    rng = np.random.default_rng(sum(shape))
    pixels = rng.normal(0, 1, (shape[0], 1, *shape[1:])).astype(np.float32)
    valid = rng.random(shape) > 0.1
    raster = MemoryRaster(pixels, valid, grid=grid_of(*shape, affine))
    recipe = TileRecipe.model_validate({"size": 8, "orientation": code, **through})
    frames = turned_frames(raster, recipe)
    if frames < 2:
        return
    if finer is not None:
        # Slices are resampled after the turn: along whichever axis is the frames' then.
        recipe = recipe.model_copy(update={"slice_spacing_mm": step_mm(raster, recipe) * finer})
    shown = as_cut(raster, recipe, uri="here")
    plan = MapPlan(8, 2, overlap, batch=3, depth=recipe.depth)
    found = on_source(stitch_stack(shown, above(0.3), plan), raster.grid, recipe, uri="here")
    np.testing.assert_array_equal(found, np.where(valid, pixels[:, 0] > 0.3, NO_CLASS))


def turned_frames(raster: MemoryRaster, recipe: TileRecipe) -> int:
    return as_cut(raster, recipe.model_copy(update={"depth": None, "neighbours": 0}), uri="here").grid.frames


def step_mm(raster: MemoryRaster, recipe: TileRecipe) -> float:
    spacing = as_cut(raster, recipe, uri="here").grid.spacing_mm
    assert spacing is not None
    return spacing[0]


@pytest.mark.parametrize("code", [None, "RAS", "SLA"])
@pytest.mark.parametrize(
    "changes",
    [
        {"spacing_mm": 1.3},
        {"spacing_mm": 0.4, "slice_spacing_mm": 3.0},
        {"slice_spacing_mm": 9.0, "depth": 3},
        {"cut": "whole"},
        {"cut": "whole", "depth": 5},
    ],
)
def test_a_class_comes_from_the_nearest_place_in_the_patient(code: str | None, changes: dict[str, Any]) -> None:
    """The class of a pixel is the number of its column, row or frame on the grid of the tiles, at their spacing."""
    affine = affine_of((3.0, 0.8, 0.5), angles=(0.15, 0.3))
    shape = (9, 24, 40)
    raster = field_raster(shape, affine)
    recipe = TileRecipe.model_validate({"size": 16, "orientation": code, **changes})
    shown = as_cut(raster, recipe, uri="here")
    assert shown.grid.affine is not None
    grid = shown.grid
    centres = places_mm(affine, *shape)
    inverse = np.linalg.inv(np.asarray(grid.affine).reshape(4, 4))
    exact = centres @ inverse[:3, :3].T + inverse[:3, 3]
    for axis, length in enumerate((grid.width, grid.height, grid.frames)):
        numbers = np.arange(length, dtype=np.float32)
        line = np.zeros((grid.frames, 1, grid.height, grid.width), np.float32)
        line += numbers.reshape([-1 if axis == 2 - place else 1 for place in range(3)])[:, None]
        flat = MemoryRaster(line, grid=grid)
        outputs = max(2, length)

        def one_hot(tiles: NDArray[np.float32], _valid: NDArray[np.bool_], outputs: int = outputs) -> NDArray[Any]:
            return (tiles == np.arange(outputs).reshape(-1, *[1] * (tiles.ndim - 2))).astype(np.float32)

        plan = MapPlan(16, outputs, 0.25, depth=recipe.depth)
        found = on_source(stitch_stack(flat, one_hot, plan), raster.grid, recipe, uri="here")
        expected = np.clip(exact[..., axis], 0, length - 1)
        assert np.abs(found - expected).max() <= 0.5 + 1e-5, axis


def test_memory_is_that_of_a_layer_however_many_frames_there_are() -> None:
    class Generated(MemoryRaster):
        """Makes a frame when it is read."""

        def read(self, window: Any) -> tuple[NDArray[Any], NDArray[np.bool_]]:
            shape = window.height, window.width
            return np.full((1, *shape), window.frame, np.int16), np.ones(shape, bool)

    def peak(frames: int) -> int:
        pixels = np.broadcast_to(np.int16(0), (frames, 1, 160, 160))
        raster = Generated(pixels, np.broadcast_to(np.True_, (frames, 160, 160)))
        tracemalloc.start()
        for item in stitch_stack(raster, above(7), MapPlan(64, 2, 0.5, batch=2, depth=8)):
            assert item.values[1].all() == (item.frame > 7)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(160) < 1.15 * peak(40)


def test_a_model_of_tiles_is_refused() -> None:
    raster = MemoryRaster(np.zeros((3, 1, 9, 9), np.float32))
    with pytest.raises(ContractError, match="a value of each pixel"):
        list(stitch_stack(raster, lambda tiles, _valid: tiles[:, :, 0, 0, 0], MapPlan(8, 1, depth=2)))
