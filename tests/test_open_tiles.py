"""Memory that is lent again, and the bound on tiles that are open at once."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np

from vitpipe.lent import Lender
from vitpipe.open_tiles import Wanted, can_be_open
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
