"""Seamless maps: exact, the same strip by strip, and of bounded memory."""

from __future__ import annotations

import threading
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.infer.map_cases import MemoryRaster, identity, in_memory, positional, whole
from vitpipe.errors import ContractError, TransientError
from vitpipe.infer.mapping import Blend, MapPlan, stitch, stitching
from vitpipe.records import Window


@st.composite
def scenes(draw: st.DrawFn) -> MemoryRaster:
    """Draw a scene of any shape, with holes, blocks and lines of nodata."""
    height, width = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    pixels = rng.normal(0, 10.0 ** draw(st.integers(-3, 6)), (draw(st.integers(1, 3)), height, width))
    valid = np.ones((height, width), bool)
    kind = draw(st.sampled_from(["none", "noise", "block", "triangle", "all"]))
    if kind == "noise":
        valid = rng.random((height, width)) > 0.3
    elif kind == "block":
        row, col = rng.integers(height), rng.integers(width)
        valid[row : row + rng.integers(90), col : col + rng.integers(90)] = False
    elif kind == "triangle":
        valid = np.add.outer(np.arange(height) / height, np.arange(width) / width) > 1
    elif kind == "all":
        valid[:] = False
    return MemoryRaster(pixels.astype(np.float32), valid, block_rows=draw(st.sampled_from([1, 7, 16, 64])))


@given(
    scenes(),
    st.sampled_from([8, 16, 31]),
    st.sampled_from([0.0, 0.25, 0.5, 0.7, 0.9]),
    st.sampled_from(list(Blend)),
    st.booleans(),
)
@settings(max_examples=120, deadline=None)
def test_the_map_of_the_identity_is_the_scene_itself(
    raster: MemoryRaster, size: int, overlap: float, blend: Blend, d4: bool
) -> None:
    plan = MapPlan(size, len(raster.pixels), overlap, blend, d4, batch=5)
    expected = np.where(raster.valid, raster.pixels, np.nan)
    np.testing.assert_array_equal(whole(raster, identity, plan), expected)


@given(scenes(), st.sampled_from([8, 16]), st.sampled_from([0.0, 0.3, 0.5, 0.8]), st.sampled_from(["hann", "mean"]))
@settings(max_examples=60, deadline=None)
def test_strip_by_strip_is_as_in_memory(raster: MemoryRaster, size: int, overlap: float, blend: str) -> None:
    plan = MapPlan(size, len(raster.pixels), overlap, Blend(blend), batch=7)
    expected = in_memory(raster, positional, plan)
    scale = np.abs(raster.pixels).max() + 1
    np.testing.assert_allclose(whole(raster, positional, plan), expected, rtol=0, atol=2e-6 * scale)


@given(scenes(), st.sampled_from([8, 16]), st.sampled_from([0.0, 0.3, 0.8]), st.floats(0, 1), st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_a_map_that_begins_further_down_is_the_same_bit_for_bit(
    raster: MemoryRaster, size: int, overlap: float, share: float, batch: int
) -> None:
    first = int(share * (raster.grid.height - 1))
    plan = MapPlan(size, len(raster.pixels), overlap)
    other = MapPlan(size, len(raster.pixels), overlap, batch=batch)
    np.testing.assert_array_equal(
        whole(raster, positional, other, first_row=first), whole(raster, positional, plan)[:, first:]
    )


def test_trim_takes_each_pixel_from_the_nearest_tile() -> None:
    raster = MemoryRaster(np.zeros((1, 16, 48), np.float32))

    def distance(tiles: NDArray, _valid: NDArray) -> NDArray:
        far = np.abs(np.arange(16) - 7.5)
        return np.broadcast_to(np.maximum.outer(far, far).astype(np.float32), tiles.shape).copy()

    found = whole(raster, distance, MapPlan(16, 1, 0.5, Blend.TRIM))
    # Along the middle row the distance to the nearest middle is never more than half a step.
    assert found[0, 7, 8:40].max() == 3.5
    assert whole(raster, distance, MapPlan(16, 1, 0.5, Blend.MEAN))[0, 7, 8:40].max() > 3.5


def test_turns_and_flips_are_undone() -> None:
    rng = np.random.default_rng(0)
    raster = MemoryRaster(rng.normal(size=(1, 40, 40)).astype(np.float32))

    def leaning(tiles: NDArray, _valid: NDArray) -> NDArray:
        return tiles + np.arange(16, dtype=np.float32)

    found = whole(raster, leaning, MapPlan(16, 1, 0.0, d4=True))
    # A lean to one side is averaged away: what is left is its mean.
    np.testing.assert_allclose(found, raster.pixels + 7.5, atol=1e-5)


def test_tiles_without_a_valid_pixel_are_not_computed() -> None:
    valid = np.zeros((64, 64), bool)
    valid[20, 50] = True
    raster = MemoryRaster(np.ones((1, 64, 64), np.float32), valid)
    seen: list[bool] = []

    def counting(tiles: NDArray, mask: NDArray) -> NDArray:
        seen.extend(mask.any(axis=(1, 2)))
        return tiles

    found = whole(raster, counting, MapPlan(16, 1, 0.0))
    assert seen == [True]
    assert np.isfinite(found).sum() == 1


def test_rows_are_read_once() -> None:
    raster = MemoryRaster(np.zeros((1, 300, 40), np.float32), block_rows=13)
    whole(raster, identity, MapPlan(16, 1, 0.5))
    assert raster.rows_read == 300


def test_low_blocks_are_read_together() -> None:
    # A scene that is warped costs a warp a read; its blocks are rows.
    raster = MemoryRaster(np.zeros((1, 300, 40), np.float32))
    whole(raster, identity, MapPlan(32, 1, 0.5))
    assert raster.rows_read == 300
    assert raster.reads == 18


def test_the_model_runs_while_rows_are_used() -> None:
    # A row of tiles is one tile, and a batch: a row begins with each call.
    raster = MemoryRaster(np.zeros((1, 100, 16), np.float32))
    calls, ahead = [0], threading.Event()

    def model(tiles: NDArray, _valid: NDArray) -> NDArray:
        calls[0] += 1
        if calls[0] == 2:
            ahead.set()
        return tiles

    rows = stitch(raster, model, MapPlan(16, 1, batch=1))
    assert next(rows).row == 0
    assert ahead.wait(10), "the model waits for the rows of the first batch to be used"
    assert sum(part.values.shape[1] for part in rows) == 100 - 12


def test_rows_without_a_tile_do_not_wait_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stitching, "_WAITING_BYTES", 2_000)
    raster = MemoryRaster(np.zeros((1, 4_000, 20), np.float32), np.zeros((4_000, 20), bool))
    rows = stitch(raster, identity, MapPlan(16, 1))
    assert next(rows).row == 0
    assert raster.rows_read < 1_000
    assert sum(part.values.shape[1] for part in rows) == 4_000 - 12


def test_an_output_that_is_none_of_pixels_is_refused() -> None:
    raster = MemoryRaster(np.zeros((1, 40, 40), np.float32))
    with pytest.raises(ContractError, match="a value of each pixel"):
        list(stitch(raster, lambda tiles, _: tiles.mean(axis=(2, 3)), MapPlan(16, 1)))


def test_an_error_of_the_reader_comes_out() -> None:
    raster = MemoryRaster(np.zeros((1, 100, 40), np.float32))
    inner = raster.read

    def read(window: Window) -> tuple[NDArray, NDArray]:
        if window.row > 50:
            raise TransientError("gone")
        return inner(window)

    raster.read = read
    with pytest.raises(TransientError, match="gone"):
        list(stitch(raster, identity, MapPlan(16, 1)))


def test_memory_is_set_by_the_width_and_not_by_the_height() -> None:
    def peak(height: int) -> int:
        raster = MemoryRaster(np.broadcast_to(np.float32(1), (1, height, 400)))
        raster.valid = np.broadcast_to(np.True_, (height, 400))
        tracemalloc.start()
        for _ in stitch(raster, identity, MapPlan(32, 1, 0.5)):
            pass
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    # Up to two batches more wait where a thread is faster.
    assert peak(12_000) < 2 * peak(600)
