"""What a model says of the judged pixels, in two tables: sums of every tile, and a sample of its labelled pixels.

A pixel that lies in several tiles counts in one of them, see `vitpipe.learn.counted`.

``pixels.parquet``: `tile_id, split, n`; of classes `counts` (K * K int64, row-major, reference x predicted), of values
`sum_y, sum_y2, sum_p, sum_p2, sum_yp, sum_abs_error, sum_sq_error` (float64, the label's units).
``pixel_sample.parquet``: `tile_id, split`, of volumes `frame`, then `row, col, weight, truth`, and `logit_<i>` or
`predicted`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vitpipe.atomic import write_file
from vitpipe.digest import digest
from vitpipe.learn.counted import JudgedTiles
from vitpipe.manifest import Manifest
from vitpipe.pixel_targets import IGNORE
from vitpipe.records import Split, Task
from vitpipe.store import TileStore

PIXELS_FILE = "pixels.parquet"
SAMPLE_FILE = "pixel_sample.parquet"
SAMPLED_PIXELS = 256
"""At most, of each tile."""
_BLOCK_BYTES = 64 << 20
_JUDGED = (Split.VAL, Split.CALIBRATION, Split.TEST)

PixelLogits: TypeAlias = Callable[[NDArray[np.float32], NDArray[np.bool_]], NDArray[np.float32]]
"""Gives (N, K, *size) of tiles (N, C, *size) in physical units and their valid masks; values (N, 1, *size)."""


def write_pixel_tables(
    folder: Path, manifest: Manifest, store: TileStore, predict: PixelLogits, batch_size: int = 1
) -> None:
    """Judge the val, calibration and test tiles, block by block; both tables are written whole or not at all.

    Args:
        folder: where to.
        manifest: of a task of pixels.
        store: its tiles.
        predict: the model.
        batch_size: blocks hold multiples of it.
    """
    classes = len(manifest.classes)
    with ExitStack() as stack:
        sample = stack.enter_context(_Table(folder / SAMPLE_FILE))
        sums = stack.enter_context(_Table(folder / PIXELS_FILE))
        for split in _JUDGED:
            tiles = JudgedTiles(manifest, store, split.value)
            for ids, truth, logits in judged_blocks(tiles, predict, classes, batch_size):
                head = {"tile_id": ids, "split": [split.value] * len(ids)}
                sums.write(head | pixel_sums(truth, logits, manifest.task))
                sample.write(_sample(head, truth, logits, manifest.task))


def judged_blocks(
    tiles: JudgedTiles, predict: PixelLogits, classes: int, batch_size: int
) -> Iterator[tuple[list[str], NDArray[np.generic], NDArray[np.float32]]]:
    """Give tile_ids, targets and logits; tiles and logits of a block stay within some 64 MiB.

    A pixel of several tiles of the split has a target in one of them alone.
    """
    pixels = math.prod(tiles.tile_shape[1:])
    tile_bytes = 4 * pixels * max(tiles.tile_shape[0], 2 * classes)
    block = batch_size * max(1, _BLOCK_BYTES // (tile_bytes * batch_size))
    for start in range(0, len(tiles), block):
        places = np.arange(start, min(len(tiles), start + block))
        values, valid = tiles.read(places)
        truth = tiles.targets_at(places, valid).numpy()
        yield tiles.tile_ids[start : start + block], truth, predict(values, valid)


def pixel_sums(truth: NDArray[np.generic], logits: NDArray[np.float32], task: Task) -> dict[str, object]:
    """Give `n` and `counts`, or `n` and the sums of values, of each tile.

    Args:
        truth: (N, *size).
        logits: (N, K, *size), or values (N, 1, *size).
        task: segmentation or regression.
    """
    return _class_sums(truth, logits) if task is Task.SEGMENTATION else _sums(truth, logits)


def _class_sums(truth: NDArray[np.generic], logits: NDArray[np.float32]) -> dict[str, object]:
    count, classes = logits.shape[:2]
    labelled = truth != IGNORE
    number = np.broadcast_to(np.arange(count).reshape(-1, *(1 for _ in truth.shape[1:])), truth.shape)
    cell = (number[labelled] * classes + truth[labelled]) * classes + logits.argmax(1)[labelled]
    counts = np.bincount(cell, minlength=count * classes * classes).reshape(count, -1)
    return {"n": counts.sum(1), "counts": list(counts)}


def _sums(truth: NDArray[np.generic], logits: NDArray[np.float32]) -> dict[str, object]:
    axes = tuple(range(1, truth.ndim))
    labelled = np.isfinite(truth)
    said = np.where(labelled, logits[:, 0], 0.0).astype(np.float64)
    true = np.where(labelled, truth, 0.0).astype(np.float64)
    error = said - true
    values = {
        "sum_y": true,
        "sum_y2": true * true,
        "sum_p": said,
        "sum_p2": said * said,
        "sum_yp": true * said,
        "sum_abs_error": np.abs(error),
        "sum_sq_error": error * error,
    }
    return {"n": labelled.sum(axes), **{name: value.sum(axes) for name, value in values.items()}}


def _sample(
    head: dict[str, list[str]], truth: NDArray[np.generic], logits: NDArray[np.float32], task: Task
) -> dict[str, object]:
    """Draw labelled pixels of each tile by its tile_id alone: the same ones in every run, and for every model."""
    size = truth.shape[1:]
    flat = truth.reshape(len(truth), -1)
    labelled = flat != IGNORE if task is Task.SEGMENTATION else np.isfinite(flat)
    number, place, weight = list[NDArray[np.int64]](), list[NDArray[np.int64]](), list[NDArray[np.float64]]()
    for tile, tile_id in enumerate(head["tile_id"]):
        found = np.flatnonzero(labelled[tile])
        chosen = found
        if len(found) > SAMPLED_PIXELS:
            draw = np.random.default_rng(int(digest(["pixel sample", tile_id]), 16))
            chosen = found[np.sort(draw.choice(len(found), SAMPLED_PIXELS, replace=False, shuffle=False))]
        number.append(np.full(len(chosen), tile))
        place.append(chosen)
        weight.append(np.full(len(chosen), len(found) / max(1, len(chosen))))
    tiles, places = np.concatenate(number), np.concatenate(place)
    *frame, row, col = np.unravel_index(places, size)
    said = logits.reshape(*logits.shape[:2], -1)[tiles, :, places]
    true = flat[tiles, places]
    columns: dict[str, object] = {name: np.asarray(values, dtype=object)[tiles] for name, values in head.items()}
    columns |= {"frame": frame[0].astype(np.int32)} if frame else {}
    columns |= {"row": row.astype(np.int32), "col": col.astype(np.int32), "weight": np.concatenate(weight)}
    if task is Task.SEGMENTATION:
        logit = {f"logit_{each}": said[:, each] for each in range(said.shape[1])}
        return columns | {"truth": true.astype(np.int64), **logit}
    return columns | {"truth": true, "predicted": said[:, 0]}


class _Table:
    """A Parquet file that grows by blocks and is there whole once the context is left without an error."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stack = ExitStack()
        self._partial: Path | None = None
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> _Table:
        self._partial = self._stack.enter_context(write_file(self._path))
        return self

    def __exit__(self, *error: object) -> None:
        if self._writer is not None:
            self._writer.close()
        elif error[0] is None and self._partial is not None:
            # No tile to judge: a table without rows, rather than none.
            pd.DataFrame({"tile_id": [], "split": []}, dtype="str").to_parquet(self._partial, index=False)
        self._stack.__exit__(*error)  # type: ignore[arg-type]

    def write(self, columns: dict[str, object]) -> None:
        """Append rows."""
        # A block may hold no row, which says nothing of what its columns are.
        texts = ("tile_id", "split")
        arrays = {name: pa.array(values, pa.string() if name in texts else None) for name, values in columns.items()}
        table = pa.table(arrays)
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._partial, table.schema, compression="zstd")
        self._writer.write_table(table.cast(self._writer.schema))
