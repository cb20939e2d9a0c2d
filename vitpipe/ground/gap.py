"""How much a random split would flatter: the nearest neighbour in colour, judged by tiles and by groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from vitpipe.records import Json
from vitpipe.store import TileStore

MOST_TILES: Final = 3000
_FOLDS: Final = 5
_REPEATS: Final = 3
_CHUNK: Final = 512
_FEWEST_GROUPS: Final = 10
_FEWEST_TILES: Final = 200
_MOST_VALUES: Final = 1 << 28
"""Pixels that are read for it: some seconds."""
_BLOCK_VALUES: Final = 1 << 22


@dataclass(frozen=True, slots=True)
class SplitGap:
    """Balanced accuracy of one nearest neighbour on the mean and deviation of each channel, in five folds."""

    random_split: float
    """Folds of single tiles."""
    group_split: float
    """Folds of whole groups: blocks of ground."""
    tiles: int
    groups: int

    def sentence(self) -> str:
        """Say it."""
        return (
            f"a random split would claim {self.random_split:.3f} balanced accuracy, the split by blocks "
            f"{self.group_split:.3f} (nearest neighbour in colour, {self.tiles} tiles of {self.groups} groups)"
        )

    def to_json(self) -> dict[str, Json]:
        """Give a JSON form."""
        return {
            "random_split": round(self.random_split, 4),
            "group_split": round(self.group_split, 4),
            "tiles": self.tiles,
            "groups": self.groups,
        }


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
    number, names = _factorize(groups)
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


def _factorize(values: NDArray[np.object_]) -> tuple[NDArray[np.intp], list[object]]:
    names = list(dict.fromkeys(values.tolist()))
    place = {name: number for number, name in enumerate(names)}
    return np.array([place[value] for value in values.tolist()], dtype=np.intp), names


def colour_features(tiles: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Give mean and deviation of each channel over the valid pixels: tiles (N, C, H, W) to (N, 2 C)."""
    mask = valid[:, None]
    count = np.maximum(mask.sum(axis=(2, 3)), 1)
    mean = np.where(mask, tiles, 0).sum(axis=(2, 3), dtype=np.float64) / count
    centred = np.where(mask, tiles - mean[:, :, None, None], 0)
    return np.concatenate([mean, np.sqrt(np.square(centred).sum(axis=(2, 3), dtype=np.float64) / count)], axis=1)


def gap_of_tiles(table: pd.DataFrame, store: TileStore, seed: int) -> SplitGap | None:
    """Measure the gap on a sample of the labelled tiles of a run.

    Args:
        table: a row a tile: `group_id`, `label`, and its place in the store.
        store: the pixels.
        seed: draws the sample and deals folds.
    """
    classes = table["label"].nunique()
    if classes < 2 or store.depth is not None:
        return None
    tile_values = len(store.channels) * store.tile_size**2
    most = int(np.clip(_MOST_VALUES // tile_values, _FEWEST_TILES, MOST_TILES))
    rows = table.iloc[sample_of_groups(table["group_id"].to_numpy(dtype=object), seed, most)]
    block = max(1, _BLOCK_VALUES // tile_values)
    places = rows[["shard_id", "shard_row", "valid_fraction"]]
    parts = [colour_features(*store.gather(places.iloc[start : start + block])) for start in range(0, len(rows), block)]
    if not parts:
        return None
    labels, groups = (rows[name].to_numpy(dtype=object) for name in ("label", "group_id"))
    return measure_gap(np.concatenate(parts), labels, groups, seed)


def measure_gap(
    features: NDArray[np.float64], labels: NDArray[np.object_], groups: NDArray[np.object_], seed: int
) -> SplitGap | None:
    """Compare a random split with a split by groups.

    Args:
        features: (N, F).
        labels: (N,) one class each.
        groups: (N,).
        seed: deals folds.

    Returns:
        None where there are fewer than ten groups or two classes.
    """
    number, names = _factorize(groups)
    truth, classes = _factorize(labels)
    if len(names) < _FEWEST_GROUPS or len(classes) < 2:
        return None
    spread = features.std(axis=0)
    features = features[:, spread > 0] / spread[spread > 0]
    rng = np.random.default_rng(seed)
    by_tile, by_group = [], []
    for _ in range(_REPEATS):
        by_tile.append(_accuracy(features, truth, rng.permutation(len(truth)) % _FOLDS))
        by_group.append(_accuracy(features, truth, _folds_of_groups(number, rng)))
    return SplitGap(float(np.mean(by_tile)), float(np.mean(by_group)), len(truth), len(names))


def _folds_of_groups(number: NDArray[np.intp], rng: np.random.Generator) -> NDArray[np.intp]:
    """Deal groups to folds, each to the one with the fewest tiles so far."""
    sizes = np.bincount(number)
    fold, filled = np.empty(len(sizes), np.intp), np.zeros(_FOLDS, np.intp)
    for group in rng.permutation(len(sizes)):
        fold[group] = int(np.argmin(filled))
        filled[fold[group]] += sizes[group]
    found: NDArray[np.intp] = fold[number]
    return found


def _accuracy(features: NDArray[np.float64], truth: NDArray[np.intp], fold: NDArray[np.intp]) -> float:
    """Give the balanced accuracy of the nearest neighbour among the tiles of other folds."""
    right = np.zeros(len(truth), bool)
    for each in range(_FOLDS):
        test, train = np.flatnonzero(fold == each), np.flatnonzero(fold != each)
        for start in range(0, len(test), _CHUNK):
            part = test[start : start + _CHUNK]
            nearest = cdist(features[part], features[train], "sqeuclidean").argmin(axis=1)
            right[part] = truth[train[nearest]] == truth[part]
    hits, all_of = np.bincount(truth, right), np.bincount(truth)
    return float((hits / all_of).mean())
