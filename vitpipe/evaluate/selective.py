"""What deferring the least confident units to a person would buy."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from vitpipe.config import EvaluateRecipe
from vitpipe.evaluate.assess import sample
from vitpipe.evaluate.metrics import confidence_and_hit, rank_draws
from vitpipe.evaluate.statistics import Counts, Estimate, Floats, Sampling, Statistic, Values, interval
from vitpipe.evaluate.units import Units


def risk_coverage(confidence: Floats, errors: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Give coverage ``i / n`` and selective risk ``sum of the first i errors / i``, most confident first."""
    order = np.argsort(-confidence, kind="stable")
    numbers = np.arange(1, errors.size + 1)
    return numbers / max(1, errors.size), np.cumsum(errors[order]) / numbers


def selective_statistic(confidence: Floats, errors: NDArray[np.bool_], groups: NDArray[np.intp]) -> Statistic:
    """Make the statistic of AURC, excess AURC and AUGRC.

    ``AURC = mean R_i``; ``E-AURC = AURC - (e + (1 - e) ln(1 - e))`` (Geifman, Uziel & El-Yaniv 2019);
    ``AUGRC = mean (sum of the first i errors / n)`` (Traub et al. 2024).
    """
    order = np.argsort(-confidence, kind="stable")
    wrong, group = errors[order], groups[order]

    def statistic(counts: Counts) -> Values:
        areas = np.empty((len(counts), 3))
        step = max(1, 2_000_000 // max(1, errors.size))
        for start in range(0, len(counts), step):
            weights = counts[start : start + step][:, group]
            seen = np.cumsum(weights, axis=1).astype(np.float64)
            missed = np.cumsum(weights * wrong, axis=1).astype(np.float64)
            with np.errstate(invalid="ignore", divide="ignore"):
                n = seen[:, -1:]
                aurc = np.where(seen > 0, weights * missed / seen, 0.0).sum(axis=1) / n[:, 0]
                rate = missed[:, -1] / n[:, 0]
                oracle = rate + np.where(rate < 1, (1 - rate) * np.log1p(-np.minimum(rate, 1 - 1e-15)), 0.0)
                augrc = (weights * missed / n).sum(axis=1) / n[:, 0]
            areas[start : start + step] = np.column_stack([aurc, aurc - oracle, augrc])
        return {"aurc": areas[:, 0], "excess_aurc": areas[:, 1], "augrc": areas[:, 2]}

    return statistic


def selective_numbers(units: Units, recipe: EvaluateRecipe) -> dict[str, Estimate]:
    """Estimate AURC, excess AURC and AUGRC with intervals by groups; empty for multi-label units."""
    if units.multi_label or units.n == 0:
        return {}
    confidence, hit, _ = confidence_and_hit(units)
    statistic = selective_statistic(confidence, ~hit, units.groups)
    sampled = sample(units, statistic, rank_draws(units, recipe.bootstrap), recipe.seed)
    numbers = {}
    for name, value in sampled.estimates.items():
        left_out = sampled.left_out.get(name, np.empty(0))
        limits = (-math.inf, math.inf)
        sampling = Sampling(sampled.draws[name], left_out, units.n, int(units.present.size), recipe.confidence, limits)
        numbers[name] = interval(float(value), sampling)
    return numbers
