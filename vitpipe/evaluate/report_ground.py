"""The report's map of errors, and its curve of error against distance to training ground."""

from __future__ import annotations

from typing import Final

import matplotlib as mpl
import numpy as np
from matplotlib.collections import Collection, PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from vitpipe.evaluate.regions import LAYER_FILE, Ground
from vitpipe.evaluate.report_figures import RC, picture
from vitpipe.evaluate.report_style import BLUE, number, section, span, table

_LEAST_SHARE: Final = 0.015
"""Of the picture's width: smaller blocks are drawn as marks of one size."""


def ground_section(ground: Ground | None, what: str = "test blocks") -> str:
    """Show where the model errs; empty for sources without ground."""
    if ground is None:
        return ""
    blocks = ground.blocks
    worst = blocks.sort_values(["error", "group_id"], ascending=[False, True]).head(5)
    rows = []
    for _, block in worst.iterrows():
        left, right, bottom, top = (float(block[name]) / 1000 for name in ("left", "right", "bottom", "top"))
        rows.append(
            f"<tr><td>{left:,.0f} to {right:,.0f}</td><td>{bottom:,.0f} to {top:,.0f}</td>"
            f"<td class='r'>{block['tiles']}</td><td class='r'><b>{number(float(block['error']))}</b></td>"
            f"<td class='nowrap'>{_range(float(block['low']), float(block['high']))}</td></tr>"
        )
    head = ("x (km)", "y (km)", ">tiles", ">error", "interval")
    return section(
        "Errors on the ground",
        f"The {len(blocks)} {what} (groups) and their error: {ground.measure}. Coordinates are those of the equal-area "
        f"grid EPSG:6933; the layer {LAYER_FILE} in the run's folder opens in a GIS. The interval of one block takes "
        "its tiles as independent, so it is too narrow where they are alike; the worst of many blocks looks bad by "
        "chance.",
        f"<div class='figures'>{_map(ground)}{_curve(ground)}</div>",
        "<h3>Blocks with the largest error</h3>",
        table(head, rows),
        _distances(ground),
    )


def _km(metres: float) -> str:
    """Write kilometres to three digits, and all digits before the point."""
    km = metres / 1000
    return f"{km:,.0f}" if km >= 100 else f"{km:.3g}"


def _range(low: float, high: float) -> str:
    return f"{low:.3f} to {high:.3f}" if np.isfinite(low) and np.isfinite(high) else "no interval"


def _map(ground: Ground) -> str:
    blocks = ground.blocks
    left, bottom = blocks["left"].to_numpy() / 1000, blocks["bottom"].to_numpy() / 1000
    width = blocks["right"].to_numpy() / 1000 - left
    height = blocks["top"].to_numpy() / 1000 - bottom
    extent = max(float((left + width).max() - left.min()), float((bottom + height).max() - bottom.min()))
    with mpl.rc_context(RC):
        figure = Figure(figsize=(4.9, 4.6), layout="constrained")
        axes = figure.subplots()
        drawn: Collection
        # A share starts at none wrong; an RMSE has no such floor, and all blocks would look alike.
        least = 0.0 if ground.is_share else float(blocks["error"].min())
        limit = max(float(blocks["error"].max()), least + 1e-9)
        if float(np.median(width)) < _LEAST_SHARE * extent:
            drawn = axes.scatter(
                left + width / 2, bottom + height / 2, c=blocks["error"], marker="s", s=26, cmap="cividis_r",
                vmin=least, vmax=limit, edgecolors="#6B7280", linewidths=0.4,
            )  # fmt: skip
        else:
            shapes = [Rectangle(*each) for each in zip(zip(left, bottom, strict=True), width, height, strict=True)]
            drawn = PatchCollection(shapes, cmap="cividis_r", edgecolor="#6B7280", linewidth=0.4)
            drawn.set_array(blocks["error"].to_numpy())
            drawn.set_clim(least, limit)
            axes.add_collection(drawn)
            axes.autoscale_view()
        axes.set_aspect("equal", adjustable="datalim")
        axes.set(xlabel="x (km)", ylabel="y (km)", title="Error by block")
        figure.colorbar(drawn, ax=axes, shrink=0.75, label=ground.measure)
    return picture(figure, "Error of each test block on the equal-area grid", "")


def _curve(ground: Ground) -> str:
    if len(ground.by_distance) < 2:
        return ""
    middles = np.array([(low + high) / 2000 for low, high, _ in ground.by_distance])
    values = [each for _, _, each in ground.by_distance]
    with mpl.rc_context(RC):
        figure = Figure(figsize=(4.9, 4.6), layout="constrained")
        axes = figure.subplots()
        axes.plot(middles, [each.estimate or 0.0 for each in values], "o-", color=BLUE, ms=5, lw=1.5)
        for middle, each in zip(middles, values, strict=True):
            if each.low is not None and each.high is not None:
                axes.plot([middle] * 2, [each.low, each.high], color=BLUE, lw=4, alpha=0.3, solid_capstyle="round")
        axes.set(xlabel="distance to training ground (km)", ylabel=ground.measure, title="Error by distance")
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
    return picture(figure, "Error against the distance to the nearest training tile", "")


def _distances(ground: Ground) -> str:
    if not ground.by_distance:
        return ""
    rows = [
        f"<tr><td>{_km(low)} to {_km(high)} km</td><td class='r'>{each.n}</td>"
        f"<td class='r'>{each.n_groups}</td><td class='r'><b>{number(each.estimate)}</b></td>"
        f"<td class='nowrap'>{span(each)}</td></tr>"
        for low, high, each in ground.by_distance
    ]
    head = ("Distance to training ground", ">tiles", ">groups", ">error", "interval by groups")
    return (
        "<h3>By distance to the nearest training tile</h3>"
        "<p class='small'>Where the error grows with distance, the model knows the ground near its training data "
        "better than new ground, and a map far from it is worse than the mean says.</p>" + table(head, rows)
    )
