"""Batches of the model's size out of tiles as they come, whichever source they are of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray


class SharedBatches:
    """Collects tiles and runs the model whenever batches are full; only the very last one is padded.

    A source of one tile would else have a batch for itself, nearly all of it padding. The logits are the same bit for
    bit: a tile's do not depend on its neighbours in a batch (see `vitpipe.learn.model`).

    Args:
        logits: the model: tiles (N, C, H, W) or (N, C, D, H, W) and masks to logits (N, K).
        tiles: how many are run at once: a whole number of batches.
    """

    def __init__(self, logits: Callable[[NDArray[np.float32], NDArray[np.bool_]], NDArray[Any]], tiles: int) -> None:
        self._logits = logits
        self._size = tiles
        self._waiting: list[tuple[NDArray[np.float32], NDArray[np.bool_]]] = []
        self._count = 0
        self._done: list[NDArray[Any]] = []

    def add(self, tiles: NDArray[Any], valid: NDArray[np.bool_]) -> None:
        """Add tiles and their masks; what is kept of them is less than one batch."""
        start = 0
        while start < len(tiles):
            part = slice(start, start + self._size - self._count)
            # A copy where it waits: a view would keep the whole block that it was cut in.
            self._waiting.append((tiles[part].astype(np.float32), valid[part].copy()))
            self._count += len(tiles[part])
            start = part.stop
            if self._count == self._size:
                self._run()

    def finish(self) -> NDArray[Any]:
        """Run what is left; gives the logits of all tiles in the order in which they were added."""
        self._run()
        return np.concatenate(self._done) if self._done else np.empty((0, 0), np.float32)

    def _run(self) -> None:
        if not self._waiting:
            return
        tiles, valid = (np.concatenate(parts) for parts in zip(*self._waiting, strict=True))
        self._waiting, self._count = [], 0
        self._done.append(self._logits(tiles, valid))
