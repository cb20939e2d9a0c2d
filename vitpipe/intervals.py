"""Intervals that know of groups: tiles of one patient, or of one block of ground, are no independent evidence.

A statistic is a function of how often each group is drawn: ``statistic(counts (draws, groups)) -> {name: (draws,) or
(draws, classes)}``. Point estimate, bootstrap, jackknife and naive error are that one function at other counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from vitpipe.records import Json

Floats = NDArray[np.float64]
Counts = NDArray[np.int32]
Values = dict[str, Floats]
Statistic = Callable[[Counts], Values]

MIN_BOOTSTRAP_GROUPS = 20
"""Below it the percentile bootstrap is too narrow: Student's t on the group jackknife is used instead."""
BLOCK_COUNTS = 4_000_000
"""Numbers that a block of draws holds at most."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its interval. Undefined numbers are None, never 0."""

    estimate: float | None
    low: float | None
    high: float | None
    n: int
    """Units: tiles, sources or groups, as the level says."""
    n_groups: int
    design_effect: float | None = None
    """(standard error by groups / standard error as if units were independent) squared; None: not computed."""
    method: str = "bootstrap"
    """bootstrap, jackknife-t, bootstrap-t (a class in few of many groups), exact (nothing varied) or none."""
    draws: int = 0
    note: str = ""

    def to_json(self) -> dict[str, Json]:
        """Give a JSON form."""
        return {
            "estimate": self.estimate,
            "low": self.low,
            "high": self.high,
            "n": self.n,
            "n_groups": self.n_groups,
            "design_effect": self.design_effect,
            "method": self.method,
            "draws": self.draws,
            "note": self.note,
        }


def draw_counts(n_groups: int, draws: int, seed: int) -> Iterator[Counts]:
    """Draw groups with replacement, in blocks of bounded memory.

    Args:
        n_groups: how many groups there are.
        draws: how many bootstrap draws.
        seed: of the generator; the same draws come whatever the block size.

    Yields:
        Counts (block, n_groups): how often each group was drawn; each row sums to `n_groups`.
    """
    generator = np.random.default_rng(seed)
    block = max(1, BLOCK_COUNTS // max(1, n_groups))
    for start in range(0, draws, block):
        rows = min(block, draws - start)
        picked = generator.integers(0, n_groups, size=(rows, n_groups))
        picked += np.arange(rows)[:, None] * n_groups
        flat = np.bincount(picked.ravel(), minlength=rows * n_groups)
        yield flat.reshape(rows, n_groups).astype(np.int32)


def bootstrap(statistic: Statistic, n_groups: int, draws: int, seed: int) -> Values:
    """Evaluate a statistic at bootstrap draws of groups (the cluster bootstrap; Field & Welsh 2007).

    Returns:
        Name to values (draws,) or (draws, classes); NaN where a draw leaves the statistic undefined.
    """
    parts = [statistic(counts) for counts in draw_counts(n_groups, draws, seed)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def at_all(statistic: Statistic, n_groups: int) -> Values:
    """Evaluate a statistic with each group once: the point estimates, first axis of length one."""
    return statistic(np.ones((1, n_groups), dtype=np.int32))


def jackknife(statistic: Statistic, present: NDArray[np.intp], n_groups: int) -> Values:
    """Evaluate a statistic with each group of `present` left out in turn; first axis: the group left out."""
    counts = np.ones((present.size, n_groups), dtype=np.int32)
    counts[np.arange(present.size), present] = 0
    return statistic(counts)


def jackknife_error(left_out: Floats) -> float:
    """Standard error from leave-one-group-out values (Efron & Tibshirani 1993): ``sqrt((C-1)/C sum (v - mean)^2)``."""
    defined = left_out[np.isfinite(left_out)]
    if defined.size < 2:
        return float("nan")
    deviations = defined - defined.mean()
    return float(np.sqrt((defined.size - 1) / defined.size * np.sum(deviations**2)))


def spread(values: Floats) -> float:
    """Standard deviation of the defined values (one degree of freedom lost); NaN when fewer than two are defined."""
    defined = values[np.isfinite(values)]
    return float(np.std(defined, ddof=1)) if defined.size > 1 else float("nan")


def percentile_interval(values: Floats, confidence: float) -> tuple[float, float]:
    """Percentile interval of the defined values."""
    defined = values[np.isfinite(values)]
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(defined, [tail, 1.0 - tail])
    return float(low), float(high)


def t_interval(estimate: float, error: float, n_groups: int, confidence: float) -> tuple[float, float]:
    """Interval ``estimate +- t(C-1) * error``."""
    reach = float(stdtrit(n_groups - 1, 0.5 + confidence / 2.0)) * error
    return estimate - reach, estimate + reach


def exact_bound(n_groups: int, confidence: float) -> float:
    """Lower bound of a share when every one of `n_groups` groups was right (Clopper & Pearson 1934): ``(a/2)^(1/n)``.

    Nothing varies, so a bootstrap would give an interval of no width: 30 of 30 only says "above 0.884".
    """
    return float(((1.0 - confidence) / 2.0) ** (1.0 / n_groups))


@dataclass(frozen=True, slots=True)
class Sampling:
    """What an interval is made from, for one number."""

    draws: Floats
    """Bootstrap values."""
    left_out: Floats
    """Jackknife values; empty where there are enough groups."""
    n: int
    n_groups: int
    confidence: float
    limits: tuple[float, float] = (0.0, 1.0)
    """Range of the number; intervals are cut to it."""


def interval(estimate: float, sampling: Sampling) -> Estimate:
    """Put an interval around a number.

    20 groups and more: percentile bootstrap. Fewer: t on the group jackknife. Where nothing varies and the number is at
    the edge of its range (no error seen at all): the exact bound on the number of groups.
    """
    n, n_groups = sampling.n, sampling.n_groups
    if not np.isfinite(estimate):
        return Estimate(None, None, None, n, n_groups, method="none", note="not defined on these data")
    if n_groups < 2:
        return Estimate(estimate, None, None, n, n_groups, method="none", note="one group: no interval can be given")
    small = n_groups < MIN_BOOTSTRAP_GROUPS
    # A class may lie in few of many groups: there the draws give the error, and t its few degrees of freedom.
    jackknifed = small and sampling.left_out.size > 0
    error = jackknife_error(sampling.left_out) if jackknifed else spread(sampling.draws)
    if not np.isfinite(error):
        note = "without some groups the number is not defined: no interval can be given"
        return Estimate(estimate, None, None, n, n_groups, method="none", note=note)
    if error < 1e-12:
        return _without_spread(estimate, sampling)
    lowest, highest = sampling.limits
    if small:
        low, high = t_interval(estimate, error, n_groups, sampling.confidence)
        method = "jackknife-t" if jackknifed else "bootstrap-t"
        draws = sampling.left_out if jackknifed else sampling.draws
        note = f"{n_groups} groups, fewer than {MIN_BOOTSTRAP_GROUPS}: Student's t"
        used = int(np.isfinite(draws).sum())
        return Estimate(estimate, max(low, lowest), min(high, highest), n, n_groups, None, method, used, note)
    low, high = percentile_interval(sampling.draws, sampling.confidence)
    defined = int(np.isfinite(sampling.draws).sum())
    share = 1.0 - defined / sampling.draws.size
    note = f"{share:.0%} of the draws left out, where the number was not defined" if share > 0.01 else ""
    return Estimate(estimate, max(low, lowest), min(high, highest), n, n_groups, None, "bootstrap", defined, note)


def _without_spread(estimate: float, sampling: Sampling) -> Estimate:
    n, n_groups = sampling.n, sampling.n_groups
    bound = exact_bound(n_groups, sampling.confidence)
    note = "every group agrees: exact bound on the number of groups"
    if sampling.limits == (0.0, 1.0) and estimate > 1.0 - 1e-12:
        return Estimate(estimate, bound, 1.0, n, n_groups, method="exact", note=note)
    if sampling.limits == (0.0, 1.0) and estimate < 1e-12:
        return Estimate(estimate, 0.0, 1.0 - bound, n, n_groups, method="exact", note=note)
    return Estimate(estimate, estimate, estimate, n, n_groups, method="exact", note="every group agrees")
