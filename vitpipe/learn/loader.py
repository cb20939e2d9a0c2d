"""Batches straight from the memory-mapped shards: a block of tiles a read, one step ahead of the model, in a thread."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from vitpipe.errors import ConfigError, ContractError, DataError
from vitpipe.pixel_targets import IGNORE, PixelTargets
from vitpipe.records import Task

if TYPE_CHECKING:
    import pandas as pd

    from vitpipe.manifest import Manifest
    from vitpipe.store import TileStore

_AHEAD = 2
"""Batches that wait for the model: bounds the memory."""
_BUFFERS = _AHEAD + 2
"""Memory that is filled again and again: one batch is being read, one is being used, the others wait."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's part of one step's batch, in host memory that is filled anew once the next batch is taken."""

    step: int
    """Zero-based, within the epoch."""
    start: int
    """Place of the first tile in the global batch."""
    stop: int
    total: int
    """Tiles of the global batch."""
    tiles: torch.Tensor
    """float32 (N, C, H, W), volumes (N, C, D, H, W), physical units."""
    valid: torch.Tensor
    """bool (N, H, W), volumes (N, D, H, W)."""
    targets: torch.Tensor
    """int64 (N,), or float32 (N, K) for multi-label; of every pixel uint8 (N, H, W) with `IGNORE`, or float32 with NaN,
    volumes (N, D, H, W)."""


def encode_targets(labels: pd.Series[str], classes: Sequence[str], *, multi_label: bool) -> torch.Tensor:
    """Give class indices (N,) int64, or indicators (N, K) float32 of labels such as ``"ship|harbour"``.

    Raises:
        DataError: a label is not among the classes.
    """
    place = {name: number for number, name in enumerate(classes)}
    values = labels.tolist()
    try:
        if not multi_label:
            return torch.tensor([place[value] for value in values], dtype=torch.int64)
        targets = torch.zeros((len(values), len(classes)))
        for row, value in enumerate(values):
            for name in filter(None, value.split("|")):
                targets[row, place[name]] = 1.0
    except KeyError as error:
        raise DataError(
            f"label {error} is not among the classes {', '.join(classes)}; build the manifest again"
        ) from error
    return targets


def pixel_targets(manifest: Manifest) -> PixelTargets | None:
    """Open the targets of every pixel; None where a tile has one label.

    Raises:
        ContractError: the manifest names no folder of them.
    """
    if manifest.task is Task.CLASSIFICATION:
        return None
    if manifest.targets_folder is None:
        raise ContractError(f"the manifest asks for a {manifest.task} but names no targets; prepare the run again")
    return PixelTargets(manifest.targets_folder, manifest.task, manifest.tile_shape[1:])


class SplitTiles:
    """The tiles of one split with their targets.

    Args:
        manifest: the table, classes and channels.
        store: its tiles.
        split: which rows.
    """

    def __init__(self, manifest: Manifest, store: TileStore, split: str) -> None:
        table = manifest.table[manifest.table["split"] == split]
        self._store = store
        self._rows = table[["shard_id", "shard_row", "valid_fraction"]].reset_index(drop=True)
        self.tile_shape = manifest.tile_shape
        self.tile_ids: list[str] = table["tile_id"].tolist()
        self.places = table[["source_id", "frame", "row", "col"]].reset_index(drop=True)
        """Where the tiles lie in their sources."""
        self._pixels = pixel_targets(manifest)
        self.targets = (
            encode_targets(table["label"], manifest.classes, multi_label=manifest.multi_label)
            if self._pixels is None
            else torch.empty(0)
        )
        """Of all tiles; empty where every pixel has its own."""

    def __len__(self) -> int:
        return len(self._rows)

    def read(
        self, places: NDArray[np.int64], out: NDArray[np.float32] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Read tiles, into `out` where given, and their valid masks, at places of this split."""
        return self._store.gather(self._rows.iloc[places], out)

    def targets_at(self, places: NDArray[np.int64], valid: NDArray[np.bool_] | None) -> torch.Tensor:
        """Give the targets of tiles.

        Args:
            places: within this split.
            valid: their valid masks: of every pixel, what is not valid has no target. None: it is not looked at.

        Returns:
            As in :class:`Batch`.
        """
        if self._pixels is None:
            return self.targets[torch.from_numpy(places)]
        found = self._pixels.gather(self._rows.iloc[places])
        if valid is not None and not valid.all():
            found[~valid] = IGNORE if found.dtype == np.uint8 else np.nan
        return torch.from_numpy(found)


def epoch_order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Give the order of the tiles in an epoch: a function of (count, seed, epoch) alone."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def steps_per_epoch(count: int, batch_size: int, processes: int) -> int:
    """Give the number of steps in which every tile is seen once, in batches of nearly one size.

    Raises:
        ConfigError: a step would leave a process without a tile.
    """
    steps = max(1, -(-count // batch_size))
    if count // steps < processes:
        raise ConfigError(
            f"train.processes is {processes}, but a step has only {count // steps} tiles (train.batch_size "
            f"{batch_size}, {count} tiles in the train split); set fewer processes or a larger batch_size"
        )
    return steps


def epoch_parts(
    order: NDArray[np.int64], steps: int, rank: int, processes: int, first_step: int = 0
) -> Iterator[tuple[int, int, int, int, NDArray[np.int64]]]:
    """Cut an epoch's order into steps, and each step into contiguous parts of ranks.

    Yields:
        step, start and stop within the global batch, size of the global batch, places of this rank's tiles.
    """
    for step, places in enumerate(np.array_split(order, steps)):
        if step >= first_step:
            start, stop = len(places) * rank // processes, len(places) * (rank + 1) // processes
            yield step, start, stop, len(places), places[start:stop]


class Prefetcher:
    """Reads batches in a thread, a few ahead; leaving the context ends the thread.

    Args:
        tiles: the split.
        parts: as :func:`epoch_parts` gives them.
        pin_memory: whether the device copies from pinned memory.
    """

    def __init__(
        self,
        tiles: SplitTiles,
        parts: Iterator[tuple[int, int, int, int, NDArray[np.int64]]],
        *,
        pin_memory: bool,
    ) -> None:
        self._tiles = tiles
        self._parts = enumerate(parts)
        self._pin_memory = pin_memory
        self._buffers: list[torch.Tensor] = []
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="vitpipe-prefetch")

    def __enter__(self) -> Iterator[Batch]:
        """Start to read; gives the batches in order. What a read raises is raised where its batch is taken."""
        return self._batches()

    def __exit__(self, *_: object) -> None:
        """End the thread, whether all batches were taken or not."""
        self._pool.shutdown(cancel_futures=True)

    def _batches(self) -> Iterator[Batch]:
        waiting = deque(self._submit(_AHEAD))
        while waiting:
            batch = waiting.popleft().result()
            waiting.extend(self._submit(1))
            yield batch

    def _submit(self, count: int) -> Iterator[Future[Batch]]:
        for number, part in itertools.islice(self._parts, count):
            yield self._pool.submit(self._read, number, part)

    def _read(self, number: int, part: tuple[int, int, int, int, NDArray[np.int64]]) -> Batch:
        step, start, stop, total, places = part
        if number < _BUFFERS:
            # One more than this batch: the parts of an epoch differ by one tile.
            shape = (len(places) + 1, *self._tiles.tile_shape)
            self._buffers.append(torch.empty(shape, pin_memory=self._pin_memory))
        buffer = self._buffers[number % _BUFFERS]
        _, valid = self._tiles.read(places, buffer.numpy())
        targets = self._tiles.targets_at(places, valid)
        return Batch(step, start, stop, total, buffer[: len(places)], torch.from_numpy(valid), targets)
