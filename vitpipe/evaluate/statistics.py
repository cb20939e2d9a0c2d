"""Statistics of an evaluation: intervals that know of groups (`vitpipe.intervals`), and what compares two models."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import stats

from vitpipe.intervals import (
    BLOCK_COUNTS,
    MIN_BOOTSTRAP_GROUPS,
    Counts,
    Estimate,
    Floats,
    Sampling,
    Statistic,
    Values,
    at_all,
    bootstrap,
    draw_counts,
    exact_bound,
    interval,
    jackknife,
    jackknife_error,
    percentile_interval,
    spread,
    t_interval,
)

__all__ = [
    "MIN_BOOTSTRAP_GROUPS",
    "Counts",
    "Estimate",
    "Floats",
    "Sampling",
    "Statistic",
    "Values",
    "at_all",
    "bootstrap",
    "bootstrap_p",
    "draw_counts",
    "exact_bound",
    "interval",
    "jackknife",
    "jackknife_error",
    "percentile_interval",
    "ratio_statistic",
    "sign_flip_p",
    "simultaneous_factor",
    "spread",
    "t_interval",
]


def simultaneous_factor(draws: Floats, estimates: Floats, confidence: float) -> float:
    """Factor c of simultaneous intervals ``estimate +- c * error`` by the max-T bootstrap.

    ``c = quantile(max_g |draw_g - estimate_g| / error_g)``: all intervals hold together with the stated confidence.

    Args:
        draws: (draws, subgroups), from the same draws of groups.
        estimates: (subgroups,).
        confidence: of all intervals together.
    """
    errors = np.array([spread(column) for column in draws.T])
    varying = np.isfinite(errors) & (errors > 1e-12)
    if not varying.any():
        return float(stats.norm.ppf(0.5 + confidence / 2.0))
    scaled = np.abs(draws[:, varying] - estimates[varying]) / errors[varying]
    largest = np.nanmax(np.where(np.isfinite(scaled), scaled, 0.0), axis=1)
    return float(np.quantile(largest, confidence))


def sign_flip_p(differences: Floats, permutations: int, seed: int) -> float:
    """Two-sided p of "the two models are alike" from one summed difference a group, by flipping whole groups.

    ``p = (1 + #{|sum s_c d_c| >= |sum d_c|}) / (1 + M)``, ``s_c`` = +-1. Valid for clustered data, where McNemar's test
    promotes falsely about every fourth time.
    """
    generator = np.random.default_rng(seed)
    observed = abs(float(differences.sum()))
    # Equal sums added in another order differ in the last bits; they must count as equal.
    tolerance = 1e-9 * max(1.0, float(np.abs(differences).sum()))
    block = max(1, BLOCK_COUNTS // max(1, differences.size))
    reached = 0
    for start in range(0, permutations, block):
        rows = min(block, permutations - start)
        signs = generator.integers(0, 2, size=(rows, differences.size), dtype=np.int8) * 2.0 - 1.0
        reached += int(np.count_nonzero(np.abs(signs @ differences) >= observed - tolerance))
    return (1 + reached) / (1 + permutations)


def bootstrap_p(draws: Floats) -> float:
    """Two-sided p of "no difference" from bootstrap differences: ``2 min(share <= 0, share >= 0)``, never 0."""
    defined = draws[np.isfinite(draws)]
    below = (1 + np.count_nonzero(defined <= 0)) / (1 + defined.size)
    above = (1 + np.count_nonzero(defined >= 0)) / (1 + defined.size)
    return float(min(1.0, 2.0 * min(below, above)))


def ratio_statistic(numerators: Mapping[str, Floats], denominator: Floats) -> Statistic:
    """Make a statistic of ratios of per-group sums.

    Args:
        numerators: name to sums (n_groups,).
        denominator: sums (n_groups,).
    """
    names = list(numerators)
    sums = np.column_stack([*(numerators[name] for name in names), denominator])

    def statistic(counts: Counts) -> Values:
        drawn = counts @ sums
        with np.errstate(invalid="ignore", divide="ignore"):
            ratios = np.where(drawn[:, -1:] > 0, drawn[:, :-1] / drawn[:, -1:], np.nan)
        return {name: ratios[:, index] for index, name in enumerate(names)}

    return statistic
