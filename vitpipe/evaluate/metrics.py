"""Numbers from units, at any draw of groups.

Accuracy, F1, Brier, NLL and ECE are functions of sums over groups: the sums are made once, and a draw is one product
of matrices. AUROC and average precision are read from weighted ranks, a block of draws at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from vitpipe.evaluate.statistics import Counts, Floats, Statistic, Values
from vitpipe.evaluate.units import Units

ECE_BINS: Final = 15
SUM_METRICS: Final = ("accuracy", "balanced_accuracy", "macro_f1", "brier", "nll", "ece")
RANK_METRICS: Final = ("auroc", "average_precision")
METRICS: Final = ("accuracy", "balanced_accuracy", "macro_f1", "auroc", "average_precision", "brier", "nll", "ece")
CLASS_SUMS: Final = ("class_precision", "class_recall", "class_f1")
CLASS_RANKS: Final = ("class_auroc", "class_average_precision")
LOWER_IS_BETTER: Final = frozenset({"brier", "nll", "ece", "rmse", "mae"})
LIMITS: Final[dict[str, tuple[float, float]]] = {
    "brier": (0.0, 2.0),
    "nll": (0.0, float("inf")),
    "rmse": (0.0, float("inf")),
    "mae": (0.0, float("inf")),
    "bias": (-float("inf"), float("inf")),
    "r2": (-float("inf"), 1.0),
    "pearson_r": (-1.0, 1.0),
}
"""Range of a metric where it is not 0 to 1."""
LEAST_PROBABILITY: Final = 1e-12
"""A probability is no smaller in the NLL, so that one sure error does not make it infinite."""

_RANK_BUDGET: Final = 100_000_000
_RANK_BLOCK: Final = 2_000_000


def better_by(name: str) -> float:
    """+1 where more is better, -1 where less is."""
    return -1.0 if name in LOWER_IS_BETTER else 1.0


def rank_draws(units: Units, draws: int) -> int:
    """Bootstrap draws of the ranked metrics: fewer on very large tables, never fewer than 200."""
    cells = units.n * int(units.truth.shape[1])
    return min(draws, max(200, _RANK_BUDGET // max(1, cells)))


def sum_statistic(units: Units) -> Statistic:
    """Make the statistic of the metrics that are functions of sums.

    Macro means run over the classes that have a unit in the draw. A class that was never predicted and has no unit has
    no precision; F1 is ``2 tp / (2 tp + fp + fn)``. Multi-label: accuracy is that of the whole set of labels, and
    balanced accuracy the mean over classes of ``(sensitivity + specificity) / 2``.
    """
    return _functions_of_sums(_group_sums(units, _row_sums(units)), units.truth.shape[1], units.multi_label)


def _row_sums(units: Units) -> sparse.csr_array:
    """Sums of each unit: n, correct, brier, nll, then tp, support and predicted by class, then the bins of ECE."""
    truth, probabilities = units.truth, units.probabilities
    bins = _bin_sums(units)
    blocks = [
        sparse.csr_array(np.ones((units.n, 1))),
        sparse.csr_array(units.correct[:, None].astype(np.float64)),
        sparse.csr_array(brier_of(truth, probabilities, multi_label=units.multi_label)[:, None]),
        sparse.csr_array(nll_of(truth, probabilities, multi_label=units.multi_label)[:, None]),
        sparse.csr_array((truth & units.decided).astype(np.float64)),
        sparse.csr_array(truth.astype(np.float64)),
        sparse.csr_array(units.decided.astype(np.float64)),
        bins,
    ]
    rows = sparse.csr_array(sparse.hstack(blocks, format="csr"))
    return rows if units.weights is None else sparse.csr_array(sparse.diags_array(units.weights) @ rows)


def _group_sums(units: Units, rows: sparse.csr_array) -> sparse.csr_array:
    member = sparse.csr_array((np.ones(units.n), (units.groups, np.arange(units.n))), shape=(units.n_groups, units.n))
    return sparse.csr_array(member @ rows)


def brier_of(truth: NDArray[np.bool_], probabilities: Floats, *, multi_label: bool) -> Floats:
    """Brier score of each unit: ``sum_k (p_k - y_k)^2`` (0 to 2); multi-label: the mean over classes."""
    squares = (probabilities - truth) ** 2
    return np.asarray(squares.mean(axis=1) if multi_label else squares.sum(axis=1))


def nll_of(truth: NDArray[np.bool_], probabilities: Floats, *, multi_label: bool) -> Floats:
    """Negative log-likelihood of each unit, in nats; multi-label: the mean over classes."""
    clipped = np.clip(probabilities, LEAST_PROBABILITY, 1.0)
    if not multi_label:
        return np.asarray(-np.log((clipped * truth).sum(axis=1)))
    other = np.clip(1.0 - probabilities, LEAST_PROBABILITY, 1.0)
    return np.asarray(-np.where(truth, np.log(clipped), np.log(other)).mean(axis=1))


def confidence_and_hit(units: Units) -> tuple[Floats, NDArray[np.bool_], NDArray[np.intp]]:
    """Give what calibration is about: confidence, whether it came true, and the unit it belongs to.

    Single-label: the probability of the decided class. Multi-label: every class of every unit.
    """
    rows = np.arange(units.n, dtype=np.intp)
    if units.multi_label:
        return units.probabilities.ravel(), units.truth.ravel(), np.repeat(rows, units.truth.shape[1])
    return units.probabilities[units.decided], units.correct, rows


def bin_of(confidence: Floats) -> NDArray[np.intp]:
    """Bin of a confidence among 15 of equal width, closed above as usual."""
    return np.clip(np.ceil(confidence * ECE_BINS).astype(np.intp) - 1, 0, ECE_BINS - 1)


def _bin_sums(units: Units) -> sparse.csr_array:
    """Per unit and bin: count, hits, confidence (units, 45). ECE needs sum |hits - confidence| / count alone."""
    confidence, hit, rows = confidence_and_hit(units)
    bins = bin_of(confidence)
    values = np.concatenate([np.ones(bins.size), hit.astype(np.float64), confidence])
    columns = np.concatenate([bins, bins + ECE_BINS, bins + 2 * ECE_BINS])
    shape = (units.n, 3 * ECE_BINS)
    return sparse.csr_array(sparse.coo_array((values, (np.tile(rows, 3), columns)), shape=shape))


def _functions_of_sums(sums: sparse.csr_array, classes: int, multi_label: bool) -> Statistic:  # noqa: FBT001
    columns = sparse.csr_array(sums.T)

    def statistic(counts: Counts) -> Values:
        drawn = np.asarray((columns @ counts.T.astype(np.float64)).T)
        n = drawn[:, 0]
        hits, support, predicted = (drawn[:, 4 + k * classes : 4 + (k + 1) * classes] for k in range(3))
        count, hit, confidence = (
            drawn[:, 4 + 3 * classes + k * ECE_BINS : 4 + 3 * classes + (k + 1) * ECE_BINS] for k in range(3)
        )
        recall = ratio(hits, support)
        f1 = np.where(support > 0, ratio(2 * hits, support + predicted), np.nan)
        balanced = recall
        if multi_label:
            others = n[:, None] - support
            balanced = (recall + ratio(others - (predicted - hits), others)) / 2
        return {
            "accuracy": ratio(drawn[:, 1], n),
            "balanced_accuracy": mean_of_defined(balanced),
            "macro_f1": mean_of_defined(f1),
            "brier": ratio(drawn[:, 2], n),
            "nll": ratio(drawn[:, 3], n),
            "ece": ratio(np.abs(hit - confidence).sum(axis=1), count.sum(axis=1)),
            "class_precision": ratio(hits, predicted),
            "class_recall": recall,
            "class_f1": f1,
        }

    return statistic


def ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Divide; NaN where the denominator is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(denominator > 0, numerator / denominator, np.nan))


def mean_of_defined(values: Floats) -> Floats:
    """Mean over the last axis of what is defined; NaN where nothing is."""
    defined = np.isfinite(values)
    return ratio(np.where(defined, values, 0.0).sum(axis=-1), defined.sum(axis=-1).astype(np.float64))


def rank_statistic(units: Units) -> Statistic:
    """Make the statistic of AUROC and average precision, each class against the rest, and their means over classes.

    AUROC counts ties one half; average precision is ``sum (R_i - R_(i-1)) P_i`` over distinct scores, without
    interpolation. A class without a positive, or without a negative, unit has neither.
    """
    classes = units.truth.shape[1]
    of_units = units.groups, units.weights
    curves = [_ranked(units.truth[:, k], units.probabilities[:, k], *of_units) for k in range(classes)]

    def statistic(counts: Counts) -> Values:
        area, precision = np.empty((len(counts), classes)), np.empty((len(counts), classes))
        step = max(1, _RANK_BLOCK // max(1, units.n))
        for k, curve in enumerate(curves):
            for start in range(0, len(counts), step):
                rows = slice(start, start + step)
                area[rows, k], precision[rows, k] = curve(counts[rows])
        return {
            "auroc": mean_of_defined(area),
            "average_precision": mean_of_defined(precision),
            "class_auroc": area,
            "class_average_precision": precision,
        }

    return statistic


def _ranked(
    positive: NDArray[np.bool_], scores: Floats, groups: NDArray[np.intp], weights: Floats | None = None
) -> Callable[[Counts], tuple[Floats, Floats]]:
    """Sort one class once; then give (AUROC, average precision) of a block of draws."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)) if ranked.size else np.empty(0, np.intp)
    is_positive, group = positive[order], groups[order]
    weight = None if weights is None else weights[order]

    def curve(counts: Counts) -> tuple[Floats, Floats]:
        # Whole numbers add up without rounding.
        drawn = counts[:, group].astype(np.int64) if weight is None else counts[:, group] * weight
        total = np.cumsum(drawn, axis=1)[:, ends].astype(np.float64)
        true = np.cumsum(drawn * is_positive, axis=1)[:, ends].astype(np.float64)
        false = total - true
        gained = np.diff(true, axis=1, prepend=0.0)
        missed = np.diff(false, axis=1, prepend=0.0)
        positives, negatives = gained.sum(axis=1), missed.sum(axis=1)
        # A positive outranks every negative further down, and half of those at its own score.
        outranked = gained * (negatives[:, None] - false + missed / 2.0)
        area = ratio(outranked.sum(axis=1), positives * negatives)
        steps = np.where(gained > 0, gained * true / np.where(total > 0, total, 1.0), 0.0)
        precision = np.where(negatives > 0, ratio(steps.sum(axis=1), positives), np.nan)
        return area, np.asarray(precision)

    return curve


def metric_statistic(units: Units, name: str) -> Statistic:
    """Make the statistic that holds the metric `name`."""
    return rank_statistic(units) if name in RANK_METRICS else sum_statistic(units)


def confusion(units: Units) -> NDArray[np.int64]:
    """Count units by (label, predicted); single-label only."""
    classes = units.truth.shape[1]
    cells = units.truth.argmax(axis=1) * classes + units.decided.argmax(axis=1)
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes).astype(np.int64)


def ece_null(units: Units, seed: int, resamples: int = 1000) -> tuple[float, float, float]:
    """Say what ECE a perfectly calibrated model would show on as many units (consistency resampling).

    ECE is biased upwards: at 100 units a perfect model shows about 0.09. Outcomes are drawn from the confidences
    themselves, as if units were independent (Broecker & Smith 2007).

    Returns:
        Mean and 95 % quantile of the null, and p of the ECE observed.
    """
    confidence, hit, _ = confidence_and_hit(units)
    if confidence.size == 0:
        return float("nan"), float("nan"), float("nan")
    bins = bin_of(confidence)
    sums = np.bincount(bins, weights=confidence, minlength=ECE_BINS)
    observed = np.abs(np.bincount(bins, weights=hit, minlength=ECE_BINS) - sums).sum() / confidence.size
    member = sparse.csr_array((np.ones(bins.size), (bins, np.arange(bins.size))), shape=(ECE_BINS, bins.size))
    generator = np.random.default_rng(seed)
    resamples = max(100, min(resamples, _RANK_BUDGET // confidence.size))
    null = np.empty(resamples)
    step = max(1, _RANK_BLOCK // confidence.size)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = (generator.random((rows, confidence.size)) < confidence).astype(np.float64)
        null[start : start + rows] = np.abs((member @ drawn.T).T - sums).sum(axis=1) / confidence.size
    p = (1 + np.count_nonzero(null >= observed - 1e-12)) / (1 + resamples)
    return float(null.mean()), float(np.quantile(null, 0.95)), float(p)
