"""How right a class map is, and how much ground each class truly covers, from a sample with reference labels.

Counting the pixels of a map gives biased areas: what the map confuses is counted wrongly. The estimators here weigh the
sample by the strata it was drawn from (Olofsson et al. 2014, Remote Sensing of Environment 148; Stehman 2014,
International Journal of Remote Sensing 35). Both are one estimator: every number is a mean or a ratio ``Y / X`` of
stratified totals, with the variance of its linearised residuals ``y - R x``. Where the strata are the map's classes
this is equations 4 to 11 of Olofsson et al. exactly; where they are not, it is Stehman's.

Where units were drawn in clusters (pixels of a scene, of a block of ground, of a polygon), the variance is that between
the totals of the clusters ("ultimate clusters"; Cochran 1977, section 11; Saerndal et al. 1992, section 4.6).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from vitpipe.errors import DataError
from vitpipe.records import Json

Floats = NDArray[np.float64]

MIN_STRATUM_UNITS = 2
"""A variance needs two."""
STRATUM_TOO_FEW = "STRATUM_TOO_FEW"
TOO_FEW_CLUSTERS = "TOO_FEW_CLUSTERS"
UNKNOWN_STRATUM = "UNKNOWN_STRATUM"


@dataclass(frozen=True, slots=True)
class Share:
    """An estimated share, with its standard error and interval (not cut to 0..1)."""

    estimate: float | None
    """None: not defined on this sample, such as the user's accuracy of a class no sampled unit was mapped as."""
    error: float | None = None
    low: float | None = None
    high: float | None = None
    note: str = ""

    def times(self, factor: float) -> Share:
        """Scale it, such as by an area."""

        def scaled(value: float | None) -> float | None:
            return None if value is None else value * factor

        return Share(scaled(self.estimate), scaled(self.error), scaled(self.low), scaled(self.high), note=self.note)

    def to_json(self) -> dict[str, Json]:
        """Give a JSON form."""
        return {"estimate": self.estimate, "se": self.error, "low": self.low, "high": self.high, "note": self.note}


@dataclass(frozen=True, slots=True)
class Design:
    """How the sample was drawn."""

    sizes: Mapping[str, float]
    """Stratum to its size: area or number of pixels. Every stratum of the map, sampled or not."""
    population: Mapping[str, float] | None = None
    """Stratum to its number of units (pixels): then the variance is less by the share sampled (``1 - n/N``). None: as
    if drawn with replacement, as Olofsson et al. do. Not used for clusters."""
    confidence: float = 0.95


@dataclass(frozen=True, slots=True)
class MapAccuracy:
    """What a sample says of a map. Rows are map classes, columns reference classes, in the order of `classes`."""

    classes: tuple[str, ...]
    counts: NDArray[np.int64]
    """(K, K) sampled units, map x reference."""
    proportions: Floats
    """(K, K) error matrix in shares of the area; sums to 1."""
    overall: Share
    users: Mapping[str, Share]
    """Class to user's accuracy: of what is mapped as the class, the share that is it (1 - commission)."""
    producers: Mapping[str, Share]
    """Class to producer's accuracy: of what is the class, the share mapped as it (1 - omission)."""
    areas: Mapping[str, Share]
    """Class to the error-adjusted share of the area that it truly covers."""
    n: int
    n_clusters: int | None
    notes: tuple[str, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class _Sample:
    """The rows of a sample as arrays; a row stands for `count` units that are alike."""

    weights: Floats
    """Size of the stratum / units sampled in it."""
    counts: Floats
    strata: NDArray[np.intp]
    clusters: NDArray[np.intp] | None
    of_cluster: NDArray[np.intp] | None
    """Stratum in which a cluster was drawn; all 0 where clusters cross strata."""
    units: Floats
    """Units sampled, a stratum."""
    shrink: Floats
    """``1 - n/N`` a stratum; ones without a finite population."""
    total: float
    reach: float
    """Standard errors on each side of an interval."""


def map_accuracy(sample: pd.DataFrame, design: Design, classes: Sequence[str] | None = None) -> MapAccuracy:
    """Estimate accuracies and areas.

    Args:
        sample: a row for units that are alike: `stratum`, `map`, `reference` (text), `count` (1 if it is not there),
            and `cluster` where units were drawn in clusters (scene, block of ground, polygon).
        design: sizes of the strata.
        classes: order of the classes; those of map and reference, sorted, if not given.

    Returns:
        Shares of 1; for areas multiply by the total area.

    Raises:
        DataError: ``STRATUM_TOO_FEW``, a stratum with fewer than two sampled units; ``UNKNOWN_STRATUM``, a unit of a
            stratum without a size; ``TOO_FEW_CLUSTERS``, fewer than two clusters in a stratum of clusters.
    """
    names = tuple(classes) if classes is not None else tuple(sorted({*sample["map"], *sample["reference"]}))
    drawn = _arranged(sample, design)
    mapped = pd.Index(names).get_indexer(pd.Index(sample["map"]))
    truth = pd.Index(names).get_indexer(pd.Index(sample["reference"]))
    count = len(names)
    cells = np.bincount(mapped * count + truth, weights=drawn.counts, minlength=count**2).reshape(count, count)
    areas = np.bincount(mapped * count + truth, weights=drawn.weights * drawn.counts, minlength=count**2).reshape(
        count, count
    )
    right = (mapped == truth).astype(np.float64)
    everything = np.ones(len(sample))
    users, producers, covered = {}, {}, {}
    for index, name in enumerate(names):
        is_mapped, is_class = (mapped == index).astype(np.float64), (truth == index).astype(np.float64)
        users[name] = _ratio(drawn, right * is_mapped, is_mapped)
        producers[name] = _ratio(drawn, right * is_class, is_class)
        covered[name] = _ratio(drawn, is_class, everything, known=True)
    return MapAccuracy(
        classes=names,
        counts=cells.round().astype(np.int64),
        proportions=areas / drawn.total,
        overall=_ratio(drawn, right, everything, known=True),
        users=users,
        producers=producers,
        areas=covered,
        n=round(float(drawn.counts.sum())),
        n_clusters=None if drawn.of_cluster is None else int(drawn.of_cluster.size),
        notes=tuple(_notes(drawn)),
    )


def _arranged(sample: pd.DataFrame, design: Design) -> _Sample:
    strata = list(design.sizes)
    place = pd.Index(strata).get_indexer(pd.Index(sample["stratum"]))
    if (place < 0).any():
        unknown = sorted({str(name) for name in sample["stratum"][place < 0]})
        raise DataError(
            f"{UNKNOWN_STRATUM}: sampled units lie in strata without a size ({', '.join(unknown)}); the strata are "
            f"{', '.join(strata)}"
        )
    counts = sample["count"].to_numpy(np.float64) if "count" in sample else np.ones(len(sample))
    units: Floats = np.bincount(place, weights=counts, minlength=len(strata)).astype(np.float64)
    few = [f"{name} ({n:g})" for name, n in zip(strata, units, strict=True) if n < MIN_STRATUM_UNITS]
    if few:
        raise DataError(
            f"{STRATUM_TOO_FEW}: fewer than {MIN_STRATUM_UNITS} reference units lie in the strata {', '.join(few)}, so "
            "nothing can be said of their part of the map; label more there (50 and more a class is good practice), or "
            "merge them with others (`--pool-small`)"
        )
    sizes = np.array([design.sizes[name] for name in strata], dtype=np.float64)
    shrink = np.ones(len(strata))
    clusters = of_cluster = None
    reach = float(stats.norm.ppf(0.5 + design.confidence / 2))
    if "cluster" in sample:
        codes, found = pd.factorize(sample["cluster"])
        clusters, of_cluster = codes.astype(np.intp), _strata_of_clusters(codes, place, len(found))
        drawn_in = np.bincount(of_cluster)
        if (drawn_in[drawn_in > 0] < 2).any():
            raise DataError(
                f"{TOO_FEW_CLUSTERS}: a stratum holds one cluster only, so there is no variance between clusters; take "
                "smaller clusters or more of them"
            )
        freedom = of_cluster.size - np.unique(of_cluster).size
        reach = float(stats.t.ppf(0.5 + design.confidence / 2, freedom))
    elif design.population is not None:
        shrink = 1.0 - units / np.array([design.population[name] for name in strata])
    return _Sample(
        weights=(sizes / units)[place],
        counts=counts,
        strata=place,
        clusters=clusters,
        of_cluster=of_cluster,
        units=units,
        shrink=np.maximum(shrink, 0.0),
        total=float(sizes.sum()),
        reach=reach,
    )


def _strata_of_clusters(clusters: NDArray[np.intp], strata: NDArray[np.intp], count: int) -> NDArray[np.intp]:
    """Give the stratum of each cluster; all 0 where any cluster crosses strata.

    Strata are then post-strata, which sharpen the estimate but do not part the clusters.
    """
    first = np.full(count, -1, dtype=np.intp)
    first[clusters[::-1]] = strata[::-1]
    return first if (first[clusters] == strata).all() else np.zeros(count, dtype=np.intp)


def _ratio(sample: _Sample, values: Floats, base: Floats, *, known: bool = False) -> Share:
    """Estimate ``R = Y / X`` of stratified totals, ``V(R) = sum_h N_h^2 s_h^2(y - R x) / n_h / X^2`` (Stehman 2014).

    `known`: X is the whole area, which has no error.
    """
    weighted = sample.weights * sample.counts
    whole = sample.total if known else float(weighted @ base)
    if whole <= 0:
        return Share(None, note="no sampled unit has it")
    estimate = float(weighted @ values) / whole
    residual = values if known else values - estimate * base
    means = np.bincount(sample.strata, weights=residual * sample.counts, minlength=sample.units.size) / sample.units
    deviation = (residual - means[sample.strata]) * sample.weights
    if sample.clusters is None or sample.of_cluster is None:
        squares = np.bincount(sample.strata, weights=deviation**2 * sample.counts, minlength=sample.units.size)
        spread = sample.units / (sample.units - 1) * sample.shrink
    else:
        totals = np.bincount(sample.clusters, weights=deviation * sample.counts, minlength=sample.of_cluster.size)
        squares = np.bincount(sample.of_cluster, weights=totals**2)
        drawn = np.bincount(sample.of_cluster)
        spread = drawn / np.maximum(drawn - 1, 1)
    error = math.sqrt(float(spread @ squares)) / whole
    note = "" if error > 0 else "nothing varied in the sample: its interval has no width, which is no proof"
    return Share(estimate, error, estimate - sample.reach * error, estimate + sample.reach * error, note)


def _notes(sample: _Sample) -> list[str]:
    notes = []
    if sample.of_cluster is not None:
        crossing = np.unique(sample.of_cluster).size == 1 and sample.units.size > 1
        notes.append(
            f"{sample.of_cluster.size} clusters: the variance is that between clusters, with Student's t"
            + (
                " (clusters cross strata, so the strata weigh the estimate but do not part the clusters)"
                if crossing
                else ""
            )
        )
    few = int((sample.units < 30).sum())
    if few:
        notes.append(f"{few} of {sample.units.size} strata have fewer than 30 sampled units: their intervals are rough")
    return notes


def sample_size(weights: Mapping[str, float], users: Mapping[str, float], target_error: float) -> int:
    """Say how many units to label for a wanted standard error of the overall accuracy.

    ``n = (sum_i W_i sqrt(U_i (1 - U_i)) / S(O))^2`` (Olofsson et al. 2014, equation 13; Cochran 1977, 5.25).

    Args:
        weights: class to its size on the map, in any unit.
        users: class to the user's accuracy that one expects, 0..1.
        target_error: S(O), the wanted standard error; half the wanted interval / 1.96.

    Raises:
        ValueError: a share outside 0..1, or no positive target.
    """
    if not 0 < target_error < 1 or any(not 0 <= users[name] <= 1 for name in weights):
        raise ValueError(f"the target error and user's accuracies are shares, got {target_error} and {dict(users)}")
    total = sum(weights.values())
    summed = sum(size / total * math.sqrt(users[name] * (1 - users[name])) for name, size in weights.items())
    return math.ceil((summed / target_error) ** 2 - 1e-9)


def allocate(weights: Mapping[str, float], total: int, least: int = 50) -> dict[str, int]:
    """Deal a sample out to map classes: `least` to each class whose share is smaller, the rest by area.

    Olofsson et al. 2014, section 5.1.1: rare classes get 50 to 100, or their user's accuracy is not known; the rest is
    proportional, so that the overall accuracy and the areas of large classes stay precise.

    Args:
        weights: class to its size on the map, in any unit.
        total: units to deal out; raised where the least ones alone need more.
        least: for a rare class.
    """
    rare: set[str] = set()
    while True:
        rest = {name: size for name, size in weights.items() if name not in rare}
        left = max(0, total - least * len(rare))
        whole = sum(rest.values())
        small = {name for name, size in rest.items() if left * size / whole < least} if rest else set()
        if not small:
            break
        rare |= small
    dealt = dict.fromkeys(rare, least)
    shares = {name: left * size / whole for name, size in rest.items()}
    dealt |= {name: math.floor(share) for name, share in shares.items()}
    # What rounding left over goes to the largest remainders.
    over = left - sum(math.floor(share) for share in shares.values())
    for name in sorted(shares, key=lambda each: (math.floor(shares[each]) - shares[each], each))[:over]:
        dealt[name] += 1
    return {name: dealt[name] for name in weights}


def pool_small(sample: pd.DataFrame, sizes: Mapping[str, float]) -> tuple[pd.DataFrame, dict[str, float], list[str]]:
    """Merge strata with fewer than two sampled units, with each other and, while that is not enough, the next smallest.

    The estimators hold for any strata; a merged one takes it that its units were drawn evenly from all of it.

    Returns:
        Sample and sizes with the merged stratum, and the names that went into it (none: nothing was merged).
    """
    counts = sample["count"] if "count" in sample else pd.Series(1, index=sample.index)
    units = counts.groupby(sample["stratum"]).sum()
    by_units = sorted(sizes, key=lambda name: (units.get(name, 0), name))
    merged: list[str] = [name for name in by_units if units.get(name, 0) < MIN_STRATUM_UNITS]
    if not merged:
        return sample, dict(sizes), []
    rest = by_units[len(merged) :]
    while rest and (len(merged) < 2 or sum(units.get(name, 0) for name in merged) < MIN_STRATUM_UNITS):
        merged.append(rest.pop(0))
    one = " + ".join(merged)
    kept = {name: size for name, size in sizes.items() if name not in merged}
    strata = sample["stratum"].where(~sample["stratum"].isin(merged), one)
    return sample.assign(stratum=strata), {**kept, one: sum(sizes[name] for name in merged)}, merged
