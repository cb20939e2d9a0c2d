"""How much a random split would flatter: nearest neighbours in colour, judged by tiles and by groups.

The same examples are judged twice in five folds: once tiles are dealt to the folds, once whole groups (blocks of
ground). What the first claims beyond the second is what neighbours give away. Of pixels, tiles are dealt too: pixels of
one tile are never on both sides. Tiles that reach across the border of two blocks stay in, although a run leaves them
out, so the gap is rather too small.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from vitpipe.intervals import (
    MIN_BOOTSTRAP_GROUPS,
    Counts,
    Estimate,
    Floats,
    Sampling,
    Values,
    at_all,
    bootstrap,
    interval,
    jackknife,
)
from vitpipe.records import Json

FEWEST_GROUPS: Final = 10
"""Of fewer no gap is measured."""
METRIC_WORDS: Final = {
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "mean_iou": "mean IoU",
    "r2": "R²",
}
CONFIDENCE: Final = 0.95
_FOLDS: Final = 5
_REPEATS: Final = 3
_CHUNK: Final = 512
_DRAWS: Final = 1000
_NEIGHBOURS_OF_VALUES: Final = 5
"""The value of a single neighbour carries its own noise, which would hide what the colours tell."""


@dataclass(frozen=True, slots=True)
class Examples:
    """What the probe learns from and is judged on: tiles (N), or pixels (N) of tiles."""

    features: Floats
    """(N, F)."""
    truth: NDArray[np.bool_] | Floats
    """Classes that an example has (N, K), or its value (N,)."""
    groups: NDArray[np.object_]
    """(N,)."""
    tiles: NDArray[np.intp]
    """(N,) the number of its tile, without holes."""
    metric: str
    """One of `METRIC_WORDS`."""
    of_pixels: bool = False


@dataclass(frozen=True, slots=True)
class SplitGap:
    """What a metric of the probe says in folds of tiles, and in folds of groups."""

    metric: str
    random_split: float
    """Folds of single tiles."""
    group_split: float
    """Folds of whole groups: blocks of ground."""
    difference: Estimate
    """The first minus the second; groups are drawn, so what is alike in a block counts once."""
    tiles: int
    pixels: int | None = None
    """Of labels of pixels: those that were drawn."""

    @property
    def groups(self) -> int:
        """Groups that the examples lie in."""
        return self.difference.n_groups

    @property
    def probe(self) -> str:
        """Say what learned, and from how much."""
        who = "5 nearest neighbours" if self.metric == "r2" else "nearest neighbour"
        what = f"{self.tiles} tiles" if self.pixels is None else f"{self.pixels} pixels of {self.tiles} tiles"
        return f"{who} in colour, {what} of {self.groups} groups"

    def sentence(self) -> str:
        """Say it."""
        found = self.difference
        reach = "" if found.low is None or found.high is None else f" [{found.low:.3f}, {found.high:.3f}]"
        return (
            f"a random split would claim {self.random_split:.3f} {METRIC_WORDS[self.metric]}, the split by blocks "
            f"{self.group_split:.3f}: a gap of {self.random_split - self.group_split:.3f}{reach} ({self.probe})"
        )

    def to_json(self) -> dict[str, Json]:
        """Give a JSON form; `pixels` stands in it where labels are per pixel."""
        return {
            "metric": self.metric,
            "random_split": round(self.random_split, 4),
            "group_split": round(self.group_split, 4),
            "difference": self.difference.to_json(),
            "probe": self.probe,
            "tiles": self.tiles,
            "groups": self.groups,
            **({} if self.pixels is None else {"pixels": self.pixels}),
        }


def numbered(values: NDArray[np.object_]) -> tuple[NDArray[np.intp], list[object]]:
    """Number values as they come, and list them."""
    names = list(dict.fromkeys(values.tolist()))
    place = {name: number for number, name in enumerate(names)}
    return np.array([place[value] for value in values.tolist()], dtype=np.intp), names


def measure_gap(examples: Examples, seed: int) -> SplitGap | None:
    """Compare a random split with a split by groups.

    Args:
        examples: in an order made of content.
        seed: deals folds and draws groups.

    Returns:
        None where there are fewer than ten groups, or nothing to tell apart.
    """
    number, names = numbered(examples.groups)
    truth = examples.truth
    if len(names) < FEWEST_GROUPS or (truth == truth[0]).all():
        return None
    spread = examples.features.std(axis=0)
    if not (spread > 0).any():
        return None  # All are as near, and the first would be everyone's neighbour.
    features = examples.features[:, spread > 0] / spread[spread > 0]
    values = truth.ndim == 1
    rng = np.random.default_rng(seed)
    sums = [np.zeros((len(names), 4 if values else 3 * truth.shape[1])) for _ in range(2)]
    for _ in range(_REPEATS):
        deal = rng.permutation(int(examples.tiles.max()) + 1) % _FOLDS
        for place, fold in enumerate((deal[examples.tiles], _folds_of_groups(number, rng))):
            near = _neighbours(features, fold, _NEIGHBOURS_OF_VALUES if values else 1)
            found = _sums_of_values(truth, near) if values else _sums_of_classes(truth, near)
            np.add.at(sums[place], number, found)
    return _gap(examples, sums, (_r2 if values else _class_metric(examples.metric)), seed)


def _gap(examples: Examples, sums: list[Floats], metric: Callable[[Floats], Floats], seed: int) -> SplitGap:
    def statistic(counts: Counts) -> Values:
        random_split, group_split = (metric(counts @ each) for each in sums)
        return {"random": random_split, "group": group_split, "gap": random_split - group_split}

    n_groups = len(sums[0])
    found = at_all(statistic, n_groups)
    few = n_groups < MIN_BOOTSTRAP_GROUPS
    left_out = jackknife(statistic, np.arange(n_groups), n_groups)["gap"] if few else np.empty(0)
    draws = bootstrap(statistic, n_groups, _DRAWS, seed)["gap"]
    limits = (-np.inf, np.inf) if examples.metric == "r2" else (-1.0, 1.0)
    sampling = Sampling(draws, left_out, len(examples.truth), n_groups, CONFIDENCE, limits)
    return SplitGap(
        examples.metric,
        float(found["random"][0]),
        float(found["group"][0]),
        interval(float(found["gap"][0]), sampling),
        int(examples.tiles.max()) + 1,
        len(examples.truth) if examples.of_pixels else None,
    )


def _folds_of_groups(number: NDArray[np.intp], rng: np.random.Generator) -> NDArray[np.intp]:
    """Deal groups to folds, each to the one with the fewest examples so far."""
    sizes = np.bincount(number)
    fold, filled = np.empty(len(sizes), np.intp), np.zeros(_FOLDS, np.intp)
    for group in rng.permutation(len(sizes)):
        fold[group] = int(np.argmin(filled))
        filled[fold[group]] += sizes[group]
    found: NDArray[np.intp] = fold[number]
    return found


def _neighbours(features: Floats, fold: NDArray[np.intp], count: int) -> NDArray[np.intp]:
    """Give (N, count): the nearest examples of other folds, in no order."""
    near = np.empty((len(features), count), np.intp)
    for each in range(_FOLDS):
        test, train = np.flatnonzero(fold == each), np.flatnonzero(fold != each)
        for start in range(0, len(test), _CHUNK):
            part = test[start : start + _CHUNK]
            far = cdist(features[part], features[train], "sqeuclidean")
            found = far.argmin(axis=1)[:, None] if count == 1 else far.argpartition(count - 1, axis=1)[:, :count]
            near[part] = train[found]
    return near


def _sums_of_classes(truth: NDArray[np.bool_] | Floats, near: NDArray[np.intp]) -> NDArray[np.float64]:
    """Give (N, 3 K): hits, support and predicted of each class."""
    said = truth[near[:, 0]]
    return np.concatenate([truth * said, truth, said], axis=1).astype(np.float64)


def _sums_of_values(truth: NDArray[np.bool_] | Floats, near: NDArray[np.intp]) -> NDArray[np.float64]:
    """Give (N, 4): count, value, its square, squared error; values from their mean, which keeps their digits."""
    centred = truth - truth.mean()
    error = centred[near].mean(axis=1) - centred
    return np.column_stack([np.ones(len(truth)), centred, centred**2, error**2])


def _r2(sums: Floats) -> Floats:
    count, value, square, error = sums.T
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Floats = 1 - error / (square - value**2 / count)
    return found


def _class_metric(name: str) -> Callable[[Floats], Floats]:
    """Give the mean over the classes with support of recall, F1 or intersection over union."""

    def metric(sums: Floats) -> Floats:
        hits, support, predicted = np.split(sums, 3, axis=1)
        there = support > 0
        below = {
            "balanced_accuracy": support,
            "macro_f1": (support + predicted) / 2,
            "mean_iou": support + predicted - hits,
        }[name]
        shares = np.where(there, hits / np.where(there, below, 1), 0)
        with np.errstate(invalid="ignore"):
            found: Floats = shares.sum(axis=1) / there.sum(axis=1)
        return found

    return metric
