"""What the gap between splits is measured on: a sample of tiles in whole groups, their colours, and what is on them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vitpipe.ground.gap import FEWEST_GROUPS, Examples, SplitGap, measure_gap, numbered
from vitpipe.labels.base import CLASS_SEPARATOR
from vitpipe.pixel_targets import IGNORE, PixelTargets
from vitpipe.records import Task
from vitpipe.store import TileStore

MOST_TILES: Final = 3000
_MOST_PIXELS: Final = 4000
_MOST_PIXEL_TILES: Final = 1000
"""Of labels of pixels, so that each tile gives four of them and more."""
_MOST_PER_TILE: Final = 64
_FEWEST_TILES: Final = 200
_MOST_VALUES: Final = 1 << 28
"""Pixels that are read for it: some seconds."""
_BLOCK_VALUES: Final = 1 << 22


@dataclass(frozen=True, slots=True)
class Labelled:
    """What the labels of a run are."""

    task: Task
    multi_label: bool = False
    targets: PixelTargets | None = None
    """Of a task of pixels."""

    @property
    def metric(self) -> str:
        """The metric that stands at the top of the task's report where no gate names another one."""
        if self.task is Task.CLASSIFICATION:
            return "macro_f1" if self.multi_label else "balanced_accuracy"
        return "mean_iou" if self.task is Task.SEGMENTATION else "r2"


def sample_of_groups(groups: NDArray[np.object_], seed: int, most: int = MOST_TILES) -> NDArray[np.intp]:
    """Draw whole groups until there are `most` tiles; a group gives a twentieth of them at most.

    Single tiles drawn would have no neighbours left, and a random split would not flatter.

    Args:
        groups: (N,) in an order made of content.
        seed: draws.
        most: tiles.

    Returns:
        Places, sorted.
    """
    rng = np.random.default_rng(seed)
    number, names = numbered(groups)
    order = np.argsort(number, kind="stable")
    starts = np.searchsorted(number[order], np.arange(len(names) + 1))
    chosen: list[NDArray[np.intp]] = []
    taken = 0
    for group in rng.permutation(len(names)):
        part = order[starts[group] : starts[group + 1]][: max(1, most // 20)]
        if taken + len(part) > most:
            break
        chosen.append(part)
        taken += len(part)
    return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, np.intp)


def colour_features(tiles: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Give mean and deviation of each channel over the valid pixels: tiles (N, C, H, W) to (N, 2 C)."""
    mask = valid[:, None]
    count = np.maximum(mask.sum(axis=(2, 3)), 1)
    mean = np.where(mask, tiles, 0).sum(axis=(2, 3), dtype=np.float64) / count
    centred = np.where(mask, tiles - mean[:, :, None, None], 0)
    return np.concatenate([mean, np.sqrt(np.square(centred).sum(axis=(2, 3), dtype=np.float64) / count)], axis=1)


def examples_of_tiles(features: NDArray[np.float64], rows: pd.DataFrame, *, multi_label: bool) -> Examples:
    """Make an example of each tile.

    Args:
        features: (N, F).
        rows: (N) `label` and `group_id`.
        multi_label: whether a label holds several classes.
    """
    if multi_label:
        truth = rows["label"].str.get_dummies(CLASS_SEPARATOR).to_numpy(bool)
    else:
        number, names = numbered(rows["label"].to_numpy(dtype=object))
        truth = number[:, None] == np.arange(len(names))
    groups = rows["group_id"].to_numpy(dtype=object)
    metric = Labelled(Task.CLASSIFICATION, multi_label).metric
    return Examples(features, truth, groups, np.arange(len(rows), dtype=np.intp), metric)


def gap_of_tiles(table: pd.DataFrame, store: TileStore, labelled: Labelled, seed: int) -> SplitGap | None:
    """Measure the gap on a sample of the labelled tiles of a run.

    Args:
        table: a row a tile: `group_id`, `label`, and its place in the store; in an order made of content.
        store: the pixels.
        labelled: what the labels are.
        seed: draws the sample and deals folds.

    Returns:
        None for volumes, and where :func:`vitpipe.ground.gap.measure_gap` gives none.

    Raises:
        ContractError: the arrays of the targets do not fit the tiles.
    """
    if store.depth is not None:
        return None
    tile_values = len(store.channels) * store.tile_size**2
    most_tiles = MOST_TILES if labelled.targets is None else _MOST_PIXEL_TILES
    most = int(np.clip(_MOST_VALUES // tile_values, _FEWEST_TILES, most_tiles))
    rows = table.iloc[sample_of_groups(table["group_id"].to_numpy(dtype=object), seed, most)]
    alike = labelled.targets is None and rows["label"].nunique() < 2
    if alike or rows["group_id"].nunique() < FEWEST_GROUPS:
        return None  # Before a pixel is read.
    if labelled.targets is not None:
        examples = _examples_of_pixels(rows, store, labelled, seed)
    else:
        parts = [colour_features(tiles, valid) for _, tiles, valid in _blocks(rows, store)]
        examples = examples_of_tiles(np.concatenate(parts), rows, multi_label=labelled.multi_label)
    return measure_gap(examples, seed) if len(examples.truth) else None


def _blocks(
    rows: pd.DataFrame, store: TileStore
) -> Iterator[tuple[pd.DataFrame, NDArray[np.float32], NDArray[np.bool_]]]:
    """Give the rows, pixels and valid masks of tiles, some at a time."""
    step = max(1, _BLOCK_VALUES // (len(store.channels) * store.tile_size**2))
    places = rows[["shard_id", "shard_row", "valid_fraction"]]
    for start in range(0, len(rows), step):
        yield rows.iloc[start : start + step], *store.gather(places.iloc[start : start + step])


def _examples_of_pixels(rows: pd.DataFrame, store: TileStore, labelled: Labelled, seed: int) -> Examples:
    """Make examples of labelled pixels: its colour, and the mean colour of its tile."""
    assert labelled.targets is not None
    rng = np.random.default_rng([seed, len(rows)])
    per_tile = int(np.clip(_MOST_PIXELS // len(rows), 1, _MOST_PER_TILE))
    features, truth, tile_of = [], [], []
    done = 0
    for part, tiles, valid in _blocks(rows, store):
        targets = labelled.targets.gather(part)
        tile, place = _draw(_has_target(targets) & valid, per_tile, rng)
        colours = tiles.reshape(*tiles.shape[:2], -1)[tile, :, place]
        means = colour_features(tiles, valid)[:, : len(store.channels)]
        features.append(np.concatenate([colours, means[tile]], axis=1))
        truth.append(targets.reshape(len(part), -1)[tile, place])
        tile_of.append(tile + done)
        done += len(part)
    found, numbers = np.concatenate(truth), np.concatenate(tile_of)
    groups = rows["group_id"].to_numpy(dtype=object)[numbers]
    # Tiles without a valid pixel left no number behind.
    numbers = np.unique(numbers, return_inverse=True)[1].astype(np.intp)
    known = found.astype(np.float64) if labelled.task is Task.REGRESSION else found[:, None] == np.unique(found)
    return Examples(np.concatenate(features), known, groups, numbers, labelled.metric, of_pixels=True)


def _has_target(targets: NDArray[Any]) -> NDArray[np.bool_]:
    there: NDArray[np.bool_] = targets != IGNORE if targets.dtype == np.uint8 else np.isfinite(targets)
    return there


def _draw(there: NDArray[np.bool_], most: int, rng: np.random.Generator) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Draw places of each tile (N, H, W) where it has any, `most` at most: tile and place, by tiles."""
    flat = there.reshape(len(there), -1)
    most = min(most, flat.shape[1])
    keys = np.where(flat, rng.random(flat.shape, np.float32), 2.0)
    chosen = np.argpartition(keys, most - 1, axis=1)[:, :most]
    tile, drawn = np.nonzero(np.take_along_axis(flat, chosen, axis=1))
    return tile, chosen[tile, drawn]
