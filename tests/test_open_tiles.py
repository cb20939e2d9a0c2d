"""Memory that is lent again, and the bound on tiles that are open at once."""

from __future__ import annotations

import contextlib
import gc
import time
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from vitpipe.domains.base import Visit
from vitpipe.errors import UnreadableSource
from vitpipe.lent import Lender
from vitpipe.open_tiles import OpenTiles, Wanted, can_be_open, filled
from vitpipe.records import Grid


def _address(array: np.ndarray[Any, Any]) -> int:
    return int(array.__array_interface__["data"][0])


def test_memory_is_lent_again_only_when_no_view_of_it_is_held() -> None:
    lender, dtype = Lender(), np.dtype(np.uint16)
    first = lender.lend((4, 100), dtype)
    first[...] = 7
    view, at = first[1:, ::2].T, _address(first)
    del first
    gc.collect()
    second = lender.lend((4, 100), dtype)
    second[...] = 9
    assert (view == 7).all()
    assert _address(second) != at
    del view
    third = lender.lend((2, 100, 2), np.dtype(np.uint8))
    assert third.nbytes < second.nbytes
    assert _address(third) == at
    assert third.flags.writeable


def test_memory_outlives_its_lender() -> None:
    lender = Lender()
    held = lender.lend((1000,), np.dtype(np.float64))
    held[...] = 3
    del lender
    gc.collect()
    assert held.sum() == 3000


class _Scene:
    """All that is asked of a raster."""

    channels, dtype, block_rows = ("a", "b"), np.dtype(np.uint16), 512
    grid = Grid(1, 4096, 40_000)


def _grid(size: int, step: int) -> list[Wanted]:
    cols = np.arange(0, 40_000 - size, step)
    return [Wanted(np.full(len(cols), row), cols, (size, size)) for row in range(0, 4096 - size, step)]


def test_tiles_that_overlap_much_are_not_all_open_at_once() -> None:
    scene: Any = _Scene()
    assert can_be_open(_grid(256, 256), scene)
    assert can_be_open(_grid(224, 224), scene)
    # A row of blocks is 78 MiB; tiles at an eighth of their size are 64 times the scene.
    assert not can_be_open(_grid(256, 32), scene)
    # Calls for tiles so small cost more than is gained.
    assert not can_be_open(_grid(32, 32), scene)


class _Rows:
    """A scene of one band, whose pixels are the number of their row; notes what is decoded, and can be told to fail."""

    channels, dtype, block_rows = ("a",), np.dtype(np.uint16), 64

    def __init__(self, grid: Grid, *, fails_at: int | None = None) -> None:
        self.grid, self.fails_at = grid, fails_at
        self.begun: list[int] = []
        self.at_work = self.most_at_work = 0

    def begins(self, count: int) -> bool:
        """Wait for so many rows of blocks to be begun."""
        last = time.monotonic() + 10
        while len(self.begun) < count and time.monotonic() < last:
            time.sleep(0.001)
        return len(self.begun) >= count

    def visit_blocks(self, start: int, stop: int, visit: Visit, *, pool: Executor | None = None) -> None:
        self.begun.append(start)
        self.at_work += 1
        self.most_at_work = max(self.most_at_work, self.at_work)
        try:
            if start == self.fails_at:
                raise UnreadableSource("TRUNCATED", "cut off", "x")

            def show(col: int) -> None:
                time.sleep(0.005)
                pixels = np.repeat(np.arange(start, stop, dtype=np.uint16)[np.newaxis, :, np.newaxis], 64, axis=2)
                visit(start, col, pixels, None)

            list((pool.map if pool else map)(show, range(0, self.grid.width, 64)))
        finally:
            self.at_work -= 1


def _rows_of_tiles(grid: Grid, size: int) -> list[Wanted]:
    cols = np.arange(0, grid.width, size)
    return [Wanted(np.full(len(cols), row), cols, (size, size)) for row in range(0, grid.height, size)]


@pytest.mark.parametrize("ahead_bytes", [0, 1 << 30])
def test_rows_are_decoded_ahead_as_far_as_the_memory_goes(ahead_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitpipe.open_tiles._AHEAD_BYTES", ahead_bytes)
    scene: Any = _Rows(Grid(1, 640, 512))
    wanted = _rows_of_tiles(scene.grid, 128)
    with ThreadPoolExecutor(2) as pool, contextlib.closing(filled(scene, wanted, pool)) as tiles:
        for number, done in enumerate(tiles):
            rows = np.arange(number * 128, number * 128 + 128)
            assert (done.tiles == rows[np.newaxis, np.newaxis, :, np.newaxis]).all()
            assert done.masks.all()
            if number == 0:
                # Of five rows of tiles, each of two rows of blocks.
                assert scene.begins(3) if ahead_bytes else scene.begun == [0, 64]
    assert sorted(scene.begun) == list(range(0, 640, 64))


@pytest.mark.parametrize(("ahead_bytes", "at_once"), [(230_000, 1), (270_000, 2)])
def test_rows_that_are_decoded_count_as_memory(ahead_bytes: int, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitpipe.open_tiles._AHEAD_BYTES", ahead_bytes)
    scene: Any = _Rows(Grid(1, 640, 512))
    # A row of tiles with its masks is 98 304 bytes, a row of blocks 65 536.
    with (
        ThreadPoolExecutor(2) as pool,
        contextlib.closing(filled(scene, _rows_of_tiles(scene.grid, 64), pool)) as tiles,
    ):
        assert len(list(tiles)) == 10
    assert scene.most_at_work == at_once


def test_tiles_that_were_given_are_no_longer_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    # Three rows of tiles, each of two rows of blocks.
    monkeypatch.setattr("vitpipe.open_tiles._AHEAD_BYTES", 3 * 128 * 512 * 3 + 2 * 64 * 512 * 2)
    scene: Any = _Rows(Grid(1, 1280, 512))
    with (
        ThreadPoolExecutor(2) as pool,
        contextlib.closing(filled(scene, _rows_of_tiles(scene.grid, 128), pool)) as tiles,
    ):
        for number in range(8):
            next(tiles)
            assert scene.begins(2 * number + 3)


def test_nothing_is_written_any_more_once_the_tiles_are_closed() -> None:
    scene: Any = _Rows(Grid(1, 640, 512))
    with ThreadPoolExecutor(2) as pool:
        tiles = filled(scene, _rows_of_tiles(scene.grid, 64), pool)
        next(tiles)
        assert scene.begins(3)
        tiles.close()
        assert scene.at_work == 0
        assert len(scene.begun) < 10


def test_a_row_that_fails_ahead_is_said_when_its_tiles_are_asked_for() -> None:
    scene: Any = _Rows(Grid(1, 640, 512), fails_at=128)
    with ThreadPoolExecutor(2) as pool:
        tiles = filled(scene, _rows_of_tiles(scene.grid, 64), pool)
        assert [next(tiles).top for _ in range(2)] == [0, 64]
        with pytest.raises(UnreadableSource):
            next(tiles)
        assert scene.at_work == 0


def test_tiles_take_memory_when_their_first_block_comes() -> None:
    lent: list[tuple[int, ...]] = []

    class Noted(Lender):
        def lend(self, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> np.ndarray[Any, Any]:
            lent.append(shape)
            return super().lend(shape, dtype)

    scene: Any = _Rows(Grid(1, 200, 512))
    tiles = OpenTiles(Wanted(np.array([128, 128]), np.array([0, 100]), (100, 100)), scene, Noted())
    block = np.ones((1, 64, 64), np.uint16)
    tiles.fill(64, 0, block, None)
    tiles.fill(128, 256, block, None)
    assert lent == []
    tiles.fill(128, 64, block, None)
    tiles.fill(192, 64, block[:, :8], None)
    assert lent == [(2, 1, 100, 100), (2, 100, 100)]
    # The scene ends 28 rows before the tiles do.
    assert not tiles.whole
    assert not tiles.masks[:, 72:].any()
    assert tiles.masks[:, :72].all()
