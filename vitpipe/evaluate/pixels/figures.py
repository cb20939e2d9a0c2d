"""Pictures of values: what the model says against what is true."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from vitpipe.evaluate.report_figures import RC, picture
from vitpipe.evaluate.report_style import BLUE, GREY, ORANGE
from vitpipe.evaluate.statistics import Floats


def agreement(truth: Floats, predicted: Floats, unit: str) -> str:
    """Draw predicted against true values of sampled pixels, and the error along the true value.

    Args:
        truth: (N,).
        predicted: (N,).
        unit: of both; empty if not known.
    """
    shown = f" ({unit})" if unit else ""
    low, high = (float(np.quantile(np.concatenate([truth, predicted]), q)) for q in (0.001, 0.999))
    if not high > low:
        low, high = low - 0.5, high + 0.5
    with mpl.rc_context(RC):
        figure = Figure(figsize=(4.9, 4.4), layout="constrained")
        axes = figure.subplots()
        cells = axes.hexbin(truth, predicted, gridsize=45, bins="log", mincnt=1, cmap="cividis", extent=(low, high) * 2)
        axes.plot([low, high], [low, high], color=ORANGE, lw=1.2)
        axes.set(xlabel=f"true{shown}", ylabel=f"predicted{shown}", xlim=(low, high), ylim=(low, high))
        axes.set_title("Predicted against true")
        figure.colorbar(cells, ax=axes, label="sampled pixels", shrink=0.8)
    first = picture(figure, "Predicted against true values of sampled pixels", "Orange: perfect agreement.")
    return first + _errors(truth, predicted, shown)


def _errors(truth: Floats, predicted: Floats, shown: str) -> str:
    edges = np.unique(np.quantile(truth, np.linspace(0, 1, 11)))
    if edges.size < 3:
        return ""
    place = np.clip(np.searchsorted(edges, truth, side="right") - 1, 0, edges.size - 2)
    error = predicted - truth
    middles = np.array([float(truth[place == each].mean()) for each in range(edges.size - 1) if (place == each).any()])
    lines = np.array(
        [np.quantile(error[place == each], (0.1, 0.5, 0.9)) for each in range(edges.size - 1) if (place == each).any()]
    )
    with mpl.rc_context(RC):
        figure = Figure(figsize=(4.9, 4.4), layout="constrained")
        axes = figure.subplots()
        axes.axhline(0, color=GREY, lw=1)
        axes.fill_between(middles, lines[:, 0], lines[:, 2], color=BLUE, alpha=0.2, lw=0, label="10 % to 90 %")
        axes.plot(middles, lines[:, 1], "o-", color=BLUE, ms=4, lw=1.5, label="median")
        axes.set(xlabel=f"true{shown}", ylabel=f"predicted minus true{shown}", title="Error along the true value")
        axes.legend(loc="best")
    caption = "A line that falls from left to right: low values are said too high and high ones too low."
    return picture(figure, "Error of sampled pixels along the true value", caption)
