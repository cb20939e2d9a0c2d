"""The curves of the report, as pictures that stand in the page itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from scipy import stats
from sklearn import metrics as sklearn_metrics

from vitpipe.evaluate.metrics import ECE_BINS, bin_of, confidence_and_hit
from vitpipe.evaluate.report_style import BLUE, CYCLE, FAINT, GREEN, GREY, INK, ORANGE
from vitpipe.evaluate.selective import risk_coverage
from vitpipe.evaluate.statistics import Estimate
from vitpipe.evaluate.units import Units
from vitpipe.learn.progress import EPOCH, Progress

_MOST_CURVES: Final = 8
_MOST_INSIDE: Final = 3
"""Curves whose names stand in the axes; those of more stand below."""
_MOST_POINTS: Final = 600
_VALIDATED: Final = {
    "val_mean_iou": "Mean IoU of validation pixels",
    "val_r2": "R² of validation pixels",
    "val_balanced_accuracy": "Balanced accuracy of validation tiles",
}
RC: Final[dict[Any, Any]] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.edgecolor": "#9CA3AF",
    "axes.labelcolor": INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#EEF0F2",
    "axes.axisbelow": True,
    "xtick.color": "#4B5563",
    "ytick.color": "#4B5563",
    "legend.framealpha": 0.8,
    "legend.edgecolor": "none",
    "legend.fontsize": 8.5,
    "text.color": INK,
    # Outlines: the page looks the same whatever fonts there are. The salt makes the same figure the same bytes.
    "svg.fonttype": "path",
    "svg.hashsalt": "vitpipe",
}


def picture(figure: Figure, alternative: str, caption: str = "") -> str:
    """Put a figure into the page as an SVG that needs nothing else."""
    buffer = io.BytesIO()
    # What is read at saving holds here too, where a caller has left its own settings.
    with mpl.rc_context({name: RC[name] for name in ("svg.fonttype", "svg.hashsalt")}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    source = f"data:image/svg+xml;base64,{data}"
    return f"<figure><img alt='{escape(alternative, quote=True)}' src='{source}'>{below}</figure>"


def _figure(width: float = 4.9, height: float = 4.2) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def reliability(units: Units, ece: Estimate, null_95: float | None) -> str:
    """Draw how often what is claimed comes true, with the band in which a perfect model would lie."""
    confidence, hit, _ = confidence_and_hit(units)
    bins = bin_of(confidence)
    count = np.bincount(bins, minlength=ECE_BINS)
    with np.errstate(invalid="ignore"):
        claimed = np.bincount(bins, weights=confidence, minlength=ECE_BINS) / count
        true = np.bincount(bins, weights=hit, minlength=ECE_BINS) / count
    some = count > 0
    with mpl.rc_context(RC):
        figure = _figure()
        upper, lower = figure.subplots(2, 1, height_ratios=[4, 1], sharex=True)
        upper.plot([0, 1], [0, 1], color=GREY, lw=1)
        low, high = (stats.binom.ppf(q, count[some], claimed[some]) / count[some] for q in (0.025, 0.975))
        upper.fill_between(claimed[some], low, high, color=FAINT, step=None, label="perfect model, 95 % per bin", lw=0)
        upper.plot(claimed[some], true[some], "o-", color=BLUE, ms=5, lw=1.5, label="this model")
        upper.set(ylabel="share that came true", xlim=(0, 1), ylim=(0, 1.02), title="Reliability")
        figure.legend(loc="outside lower center", ncols=2)
        lower.bar((np.arange(ECE_BINS) + 0.5) / ECE_BINS, count, width=0.9 / ECE_BINS, color=BLUE, alpha=0.6)
        lower.set(xlabel="claimed probability", ylabel="count")
        lower.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
        value = "not defined" if ece.estimate is None else f"{ece.estimate:.3f}"
        null = (
            ""
            if null_95 is None
            else f"; a perfectly calibrated model stays below {null_95:.3f} in 95 % of such splits"
        )
        return picture(figure, "reliability diagram", f"ECE {value}{null}.")


def _thin(values: NDArray[np.float64]) -> NDArray[np.intp]:
    """Give places of at most 600 points, first and last among them: a long curve is not drawn point by point."""
    if len(values) <= _MOST_POINTS:
        return np.arange(len(values), dtype=np.intp)
    return np.unique(np.linspace(0, len(values) - 1, _MOST_POINTS).astype(np.intp))


def ranking_curves(units: Units, classes: Sequence[str], areas: Sequence[tuple[float | None, float | None]]) -> str:
    """Draw ROC and precision-recall curves, each class against the rest; of two classes, the last alone.

    Args:
        units: of one level.
        classes: names.
        areas: AUROC and average precision of each class.
    """
    drawable = [k for k in range(len(classes)) if areas[k][0] is not None]
    if len(classes) == 2 and not units.multi_label:
        drawable = drawable[-1:]
    if not drawable:
        return ""
    # Many classes: the hardest are named, the others drawn in grey.
    named = sorted(drawable, key=lambda k: areas[k][0] or 0.0)[:_MOST_CURVES]
    with mpl.rc_context(RC):
        roc, precision = _figure(), _figure()
        left, right = roc.subplots(), precision.subplots()
        left.plot([0, 1], [0, 1], color=GREY, lw=1, ls=(0, (3, 3)))
        for k in sorted(drawable, key=lambda k: k in named):
            colour, width = (CYCLE[sorted(named).index(k)], 1.8) if k in named else (FAINT, 1.0)
            _draw_class(
                left,
                right,
                (units.truth[:, k], units.probabilities[:, k]),
                (colour, width),
                _curve_labels(k, named, classes, areas),
            )
        left.set(
            xlabel="false positive rate", ylabel="true positive rate", title="ROC", xlim=(-0.01, 1), ylim=(0, 1.02)
        )
        right.set(xlabel="recall", ylabel="precision", title="Precision and recall", xlim=(-0.01, 1.01), ylim=(0, 1.02))
        if len(named) > _MOST_INSIDE:
            # Beside many curves there is no free place in the axes.
            for figure, axes in ((roc, left), (precision, right)):
                figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=7.5)
        else:
            left.legend(loc="lower right")
            right.legend(loc="best")
        grey = "" if len(named) == len(drawable) else f"The {len(named)} hardest classes are named, the others grey."
        return picture(roc, "ROC curves", grey) + picture(precision, "precision-recall curves")


def _curve_labels(
    k: int, named: Sequence[int], classes: Sequence[str], areas: Sequence[tuple[float | None, float | None]]
) -> tuple[str | None, str | None]:
    if k not in named:
        return None, None
    area, average = areas[k]
    return f"{_short(classes[k])}  AUROC {area:.3f}", f"{_short(classes[k])}  AP {average or 0.0:.3f}"


def _draw_class(
    left: Axes,
    right: Axes,
    scores: tuple[NDArray[np.bool_], NDArray[np.float64]],
    look: tuple[str, float],
    labels: tuple[str | None, str | None],
) -> None:
    false, true, _ = sklearn_metrics.roc_curve(*scores)
    kept = _thin(false)
    left.plot(false[kept], true[kept], label=labels[0], color=look[0], lw=look[1])
    precision, recall, _ = sklearn_metrics.precision_recall_curve(*scores)
    kept = _thin(recall)
    right.step(recall[kept], precision[kept], where="post", label=labels[1], color=look[0], lw=look[1])


def risk_coverage_curve(units: Units) -> str:
    """Draw the error among the units that are kept when the least sure ones are deferred."""
    if units.multi_label or units.n < 2:
        return ""
    confidence, hit, _ = confidence_and_hit(units)
    coverage, risk = risk_coverage(confidence, ~hit)
    kept = _thin(coverage)
    with mpl.rc_context(RC):
        figure = _figure()
        axes = figure.subplots()
        axes.plot(coverage[kept], risk[kept], color=BLUE, lw=1.8, label="most confident first")
        axes.axhline(risk[-1], color=GREY, lw=1, ls=(0, (3, 3)), label="no unit deferred")
        top = max(0.02, float(risk[coverage >= min(1.0, 0.1)].max()) * 1.15)
        axes.set(xlabel="share kept", ylabel="error among those kept", title="Risk and coverage", xlim=(0, 1))
        axes.set_ylim(0, top)
        axes.legend(loc="lower right")
        said = ", ".join(
            f"{risk[max(0, round(share * len(risk)) - 1)]:.1%} at {share:.0%}" for share in (0.5, 0.8, 0.9, 1.0)
        )
        return picture(figure, "risk-coverage curve", f"Error among those kept: {said}.")


def training_curves(events: Sequence[Progress]) -> str:
    """Draw losses and validation accuracy by epoch."""
    epochs = [event for event in events if event.event == EPOCH and event.epoch is not None]
    # A resumed run writes an epoch again: the last word counts.
    last = {event.epoch: event for event in epochs if event.epoch is not None}
    rows = [last[epoch] for epoch in sorted(last)]
    if not rows:
        return ""
    numbers = [int(row.epoch or 0) + 1 for row in rows]
    with mpl.rc_context(RC):
        # One of these is what validation chose the weights by.
        chosen = next(
            (name for name in _VALIDATED if any(getattr(row, name) is not None for row in rows)),
            "val_balanced_accuracy",
        )
        judged = any(getattr(row, chosen) is not None for row in rows)
        figure = _figure(9.8, 3.3)
        left, right = figure.subplots(1, 2)
        for axes, name, colour, label in (
            (left, "train_loss", ORANGE, "train"),
            (left, "val_loss", BLUE, "validation"),
            (right, chosen, GREEN, "validation"),
        ):
            points = [(x, y) for x, row in zip(numbers, rows, strict=True) if (y := getattr(row, name)) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), "o-", ms=3, lw=1.6, color=colour, label=label)
        right.set_visible(judged)
        left.set(title="Loss (cross-entropy, nats)" if chosen == "val_balanced_accuracy" else "Loss", xlabel="epoch")
        right.set(title=_VALIDATED[chosen], xlabel="epoch")
        for axes in (left, right):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if left.lines:
            left.legend()
        return picture(figure, "training curves")


def confusion_picture(counts: NDArray[np.int64], classes: Sequence[str]) -> str:
    """Draw a confusion matrix of many classes, rows normalised."""
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = np.nan_to_num(counts / counts.sum(axis=1, keepdims=True))
    size = min(11.0, max(6.0, 0.28 * len(classes) + 2.0))
    with mpl.rc_context(RC | {"axes.grid": False, "font.size": 7.5}):
        figure = _figure(size, size)
        axes = figure.subplots()
        drawn = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        if len(classes) <= 60:
            axes.set_xticks(range(len(classes)), [_short(name) for name in classes], rotation=90)
            axes.set_yticks(range(len(classes)), [_short(name) for name in classes])
        axes.set(xlabel="predicted", ylabel="label")
        figure.colorbar(drawn, ax=axes, shrink=0.6, label="share of the label")
        return picture(figure, "confusion matrix")


def _short(name: str) -> str:
    return name if len(name) <= 22 else f"{name[:21]}…"
