"""Every metric of one set of units, with intervals; and the paired difference of two predictors on the same units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vitpipe.config import EvaluateRecipe
from vitpipe.evaluate import metrics
from vitpipe.evaluate.statistics import (
    MIN_BOOTSTRAP_GROUPS,
    Estimate,
    Floats,
    Sampling,
    Statistic,
    Values,
    at_all,
    bootstrap,
    interval,
    jackknife,
    jackknife_error,
    ratio_statistic,
    spread,
)
from vitpipe.evaluate.units import Units
from vitpipe.records import Json

_NAIVE_DRAWS = 400
_NAIVE_BUDGET = 40_000_000


@dataclass(frozen=True, slots=True)
class Sampled:
    """The values of some metrics: on the data, at bootstrap draws, and without each group in turn."""

    estimates: Values
    draws: Values
    left_out: Values
    """Empty where there are enough groups for the bootstrap."""


@dataclass(frozen=True, slots=True)
class Assessment:
    """The numbers of one level."""

    overall: Mapping[str, Estimate]
    per_class: Mapping[str, Mapping[str, Estimate]]
    """Class to metric (precision, recall, f1, auroc, average_precision)."""
    support: Mapping[str, int]
    """Class to units."""
    sampled: Sampled
    """What paired differences are made from."""


class Grouped(Protocol):
    """Units of any kind that lie in groups."""

    @property
    def n(self) -> int:
        """Number of units."""

    @property
    def n_groups(self) -> int:
        """Groups that are drawn from."""

    @property
    def present(self) -> NDArray[np.intp]:
        """Numbers of the groups that have a unit, ascending."""


def sample(units: Grouped, statistic: Statistic, draws: int, seed: int) -> Sampled:
    """Evaluate a statistic on the data, at draws of groups, and, with few groups, without each group in turn."""
    estimates = {name: values[0] for name, values in at_all(statistic, units.n_groups).items()}
    present = units.present
    if present.size >= MIN_BOOTSTRAP_GROUPS:
        return Sampled(estimates, bootstrap(statistic, units.n_groups, draws, seed), {})
    # Few groups: intervals come from the jackknife, the draws serve simultaneous intervals and p values alone.
    return Sampled(
        estimates,
        bootstrap(statistic, units.n_groups, draws, seed),
        jackknife(statistic, present, units.n_groups),
    )


def assess(units: Units, classes: Sequence[str], recipe: EvaluateRecipe, *, design_effect: bool = True) -> Assessment:
    """Give every metric an interval by groups.

    Args:
        units: of one level.
        classes: names, in the order of the columns.
        recipe: draws, confidence, seed.
        design_effect: also draw units as if they were independent, to say what the groups cost.
    """
    ranks, sums = metrics.rank_statistic(units), metrics.sum_statistic(units)
    parts = [
        sample(units, sums, recipe.bootstrap, recipe.seed),
        sample(units, ranks, metrics.rank_draws(units, recipe.bootstrap), recipe.seed),
    ]
    sampled = Sampled(
        parts[0].estimates | parts[1].estimates,
        parts[0].draws | parts[1].draws,
        parts[0].left_out | parts[1].left_out,
    )
    naive = _naive(units, recipe.seed) if design_effect else {}
    overall = {name: _estimate(name, units, sampled, (naive, None), recipe.confidence) for name in metrics.METRICS}
    per_class = {
        label: {
            name.removeprefix("class_"): _estimate(name, units, sampled, (naive, column), recipe.confidence)
            for name in (*metrics.CLASS_SUMS, *metrics.CLASS_RANKS)
        }
        for column, label in enumerate(classes)
    }
    support = {label: int(units.truth[:, column].sum()) for column, label in enumerate(classes)}
    return Assessment(overall, per_class, support, sampled)


def _naive(units: Units, seed: int) -> Values:
    """Draw units instead of groups; empty where every group has one unit (the design effect is 1 by definition)."""
    if units.n == units.present.size:
        return {}
    alone = replace(units, groups=np.arange(units.n, dtype=np.intp), n_groups=units.n)
    draws = max(100, min(_NAIVE_DRAWS, _NAIVE_BUDGET // (units.n * units.truth.shape[1])))
    # Another seed: the same one would tie these draws to those of the groups.
    sums = bootstrap(metrics.sum_statistic(alone), units.n, draws, seed + 1)
    return sums | bootstrap(metrics.rank_statistic(alone), units.n, draws, seed + 1)


def _column(values: Values, name: str, column: int | None) -> Floats:
    if name not in values:
        return np.empty(0)
    return values[name] if column is None else values[name][:, column]


def _estimate(
    name: str, units: Units, sampled: Sampled, naive: tuple[Values, int | None], confidence: float
) -> Estimate:
    """Estimate one metric, or one class's column of it."""
    rows, column = naive
    value = sampled.estimates[name]
    estimate = float(value) if column is None else float(np.asarray(value)[column])
    draws, left_out = _column(sampled.draws, name, column), _column(sampled.left_out, name, column)
    groups = _groups_behind(name, units, column)
    sampling = Sampling(draws, left_out, units.n, groups, confidence, metrics.LIMITS.get(name, (0.0, 1.0)))
    if name == "ece":
        # ECE is biased upwards, and a draw of groups adds to it: the draws are moved back by what they show of that.
        sampling = replace(sampling, draws=draws - (np.nanmean(draws) - estimate))
    found = interval(estimate, sampling)
    error = jackknife_error(left_out) if left_out.size else spread(draws)
    return replace(found, n_groups=groups, design_effect=_design_effect(error, _column(rows, name, column), units))


def _groups_behind(name: str, units: Units, column: int | None) -> int:
    """Groups that an interval rests on: of a class's recall, those that hold the class; else all."""
    if column is not None and name != "class_precision":
        return int(np.unique(units.groups[units.truth[:, column]]).size)
    if column is not None:
        return int(np.unique(units.groups[units.decided[:, column]]).size)
    return int(units.present.size)


def _design_effect(error: float, rows: Floats, units: Units) -> float | None:
    if units.n == units.present.size:
        return 1.0
    independent = spread(rows)
    if not np.isfinite(error) or not np.isfinite(independent) or independent < 1e-12:
        return None
    return float((error / independent) ** 2)


def difference(name: str, first: Sampled, second: Sampled, units: Grouped, confidence: float) -> Estimate:
    """Estimate `first` minus `second` of a metric, from the same draws of groups (a paired bootstrap)."""
    rows = min(len(first.draws[name]), len(second.draws[name]))
    draws = first.draws[name][:rows] - second.draws[name][:rows]
    left_out = first.left_out[name] - second.left_out[name] if name in first.left_out else np.empty(0, dtype=np.float64)
    low, high = metrics.LIMITS.get(name, (0.0, 1.0))
    sampling = Sampling(draws, left_out, units.n, int(units.present.size), confidence, (low - high, high - low))
    return interval(float(first.estimates[name]) - float(second.estimates[name]), sampling)


def share(hits: NDArray[np.bool_], units: Units, recipe: EvaluateRecipe) -> Estimate:
    """Estimate the share of units with a property, with its interval by groups."""
    sums = np.bincount(units.groups, weights=hits.astype(np.float64), minlength=units.n_groups).astype(np.float64)
    sizes = np.bincount(units.groups, minlength=units.n_groups).astype(np.float64)
    sampled = sample(units, ratio_statistic({"share": sums}, sizes), recipe.bootstrap, recipe.seed)
    left_out = sampled.left_out.get("share", np.empty(0))
    sampling = Sampling(sampled.draws["share"], left_out, units.n, int(units.present.size), recipe.confidence)
    return interval(float(sampled.estimates["share"]), sampling)


def assessment_json(assessment: Assessment) -> tuple[dict[str, Json], dict[str, Json]]:
    """Give the JSON forms of the overall and of the per-class numbers."""
    overall: dict[str, Json] = {name: estimate.to_json() for name, estimate in assessment.overall.items()}
    per_class: dict[str, Json] = {
        label: {
            "support": assessment.support[label],
            **{name: estimate.to_json() for name, estimate in numbers.items()},
        }
        for label, numbers in assessment.per_class.items()
    }
    return overall, per_class
