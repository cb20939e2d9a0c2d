"""The page of a map's accuracy: the tables of Olofsson et al. 2014, and the areas that the map should be read with."""

from __future__ import annotations

from html import escape
from typing import Final

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vitpipe.evaluate.map_accuracy import Share
from vitpipe.evaluate.map_assess import MapFindings
from vitpipe.evaluate.map_blocks import BLOCKS_FILE, BlockErrors
from vitpipe.evaluate.report_figures import RC, picture
from vitpipe.evaluate.report_page import html_page
from vitpipe.evaluate.report_style import BLUE, GREY, ORANGE, bullets, number, section, table

_WORST: Final = 5
_ENOUGH: Final = 0.25
"""Of the median number of units: a block with fewer is not among the worst."""
_MOST_CLASSES: Final = 20
"""A matrix with more is shown by its numbers in accuracy.json alone."""


def map_html(found: MapFindings, name: str) -> str:
    """Write the page.

    Args:
        found: the numbers.
        name: of the map.
    """
    parts = (
        _header(found, name),
        _areas(found),
        _accuracies(found),
        _matrices(found),
        _errors_on_the_ground(found),
        _reading(found),
    )
    return html_page(f"{name}: accuracy", parts)


def half_width(share: Share) -> float | None:
    """Half of the interval."""
    return None if share.high is None or share.estimate is None else share.high - share.estimate


def _pm(share: Share, digits: int = 3) -> str:
    if share.estimate is None:
        return "&ndash;"
    half = half_width(share)
    return f"<b>{share.estimate:,.{digits}f}</b>" + ("" if half is None else f" &plusmn; {half:,.{digits}f}")


def _header(found: MapFindings, name: str) -> str:
    accuracy = found.accuracy
    clusters = f" in {accuracy.n_clusters} clusters" if accuracy.n_clusters is not None else ""
    return (
        f"<header class='top'><h1>Accuracy of {escape(name)}</h1>"
        f"<p class='verdict'>Overall accuracy {_pm(accuracy.overall)}</p>"
        f"<p>{accuracy.n:,} reference units{clusters}; intervals of {found.confidence:.0%}, weighted by the area of "
        f"the strata.</p><p class='small'>{escape(found.design)}</p></header>"
    )


def _areas(found: MapFindings) -> str:
    """Put first what a reader of the map needs most: how much ground there is of each class."""
    accuracy, total = found.accuracy, found.total
    unit, scale, digits = ("ha", 1e-4, 1) if found.total_m2 is not None else ("px", 1.0, 0)
    rows = []
    for name in accuracy.classes:
        pixels, ground = found.mapped.get(name, (0, 0.0))
        mapped = (ground if found.total_m2 is not None else pixels) * scale
        area = accuracy.areas[name].times(total * scale)
        bias = mapped / area.estimate - 1 if area.estimate else None
        rows.append(
            f"<tr><td>{escape(name)}</td><td class='r'>{pixels:,}</td><td class='r'>{mapped:,.{digits}f}</td>"
            f"<td class='r nowrap'>{_pm(area, digits)}</td>"
            f"<td class='r'>{'&ndash;' if bias is None else f'{bias:+.1%}'}</td></tr>"
        )
    head = ("class", ">pixels on the map", f">mapped ({unit})", f">error-adjusted ({unit})", ">map against adjusted")
    return section(
        "Area of each class",
        "Counting the pixels of a map is biased by what the map confuses. The adjusted areas come from the reference "
        "labels and are the ones to quote, with their intervals.",
        table(head, rows),
        _area_figure(found, unit, scale),
    )


def _area_figure(found: MapFindings, unit: str, scale: float) -> str:
    accuracy = found.accuracy
    places = np.arange(len(accuracy.classes))[::-1]
    mapped = [found.mapped.get(name, (0, 0.0))[0 if found.total_m2 is None else 1] * scale for name in accuracy.classes]
    areas = [accuracy.areas[name].times(found.total * scale) for name in accuracy.classes]
    with mpl.rc_context(RC):
        figure = Figure(figsize=(8.4, 0.9 + 0.42 * len(places)), layout="constrained")
        axes = figure.subplots()
        axes.barh(places + 0.18, mapped, 0.34, color=GREY, alpha=0.45, label="pixels of the map")
        axes.barh(places - 0.18, [area.estimate or 0 for area in areas], 0.34, color=BLUE, label="error-adjusted")
        for place, area in zip(places, areas, strict=True):
            if area.low is not None and area.high is not None:
                axes.plot([max(0.0, area.low), area.high], [place - 0.18] * 2, color=ORANGE, lw=2.5)
        axes.set_yticks(places, accuracy.classes)
        axes.set(xlabel=unit)
        axes.grid(visible=False, axis="y")
        figure.legend(loc="outside upper center", ncols=2)
    return picture(figure, "Mapped and error-adjusted area of each class", "Orange: interval of the adjusted area.")


def _accuracies(found: MapFindings) -> str:
    accuracy = found.accuracy
    rows = []
    for index, name in enumerate(accuracy.classes):
        cells = "".join(
            f"<td class='r nowrap'>{_pm(share[name])}</td>" for share in (accuracy.users, accuracy.producers)
        )
        counts = accuracy.counts
        rows.append(
            f"<tr><td>{escape(name)}</td>{cells}<td class='r'>{int(counts[index].sum()):,}</td>"
            f"<td class='r'>{int(counts[:, index].sum()):,}</td></tr>"
        )
    head = ("class", ">user's accuracy", ">producer's accuracy", ">units mapped as it", ">units that are it")
    return section(
        "Accuracy of each class",
        "User's: of what is mapped as the class, the share that is it. Producer's: of what is the class, the share "
        "that the map shows as it.",
        table(head, rows),
    )


def _matrices(found: MapFindings) -> str:
    accuracy = found.accuracy
    if len(accuracy.classes) > _MOST_CLASSES:
        return ""
    names = [f">{name}" for name in accuracy.classes]
    by_area, by_count = [], []
    for index, name in enumerate(accuracy.classes):
        of_area, of_count = accuracy.proportions[index], accuracy.counts[index]
        cells = "".join(f"<td class='r'>{_bold(f'{value:.4f}', at == index)}</td>" for at, value in enumerate(of_area))
        by_area.append(f"<tr><td>{escape(name)}</td>{cells}<td class='r'>{of_area.sum():.4f}</td></tr>")
        cells = "".join(f"<td class='r'>{_bold(f'{value:,}', at == index)}</td>" for at, value in enumerate(of_count))
        by_count.append(f"<tr><td>{escape(name)}</td>{cells}<td class='r'>{of_count.sum():,}</td></tr>")
    total = "".join(f"<td class='r'>{number(float(value), 4)}</td>" for value in accuracy.proportions.sum(axis=0))
    by_area.append(f"<tr class='head'><td>true share</td>{total}<td class='r'>1</td></tr>")
    head = ("map \\ reference", *names, ">mapped")
    return section(
        "Error matrix",
        "Rows are the map, columns the reference. The first table is in shares of the area, which the numbers above "
        "are made from; the second holds the units as they were sampled.",
        "<h3>Shares of the area</h3>",
        table(head, by_area),
        "<h3>Units</h3>",
        table((*head[:-1], ">total"), by_count),
    )


def _bold(text: str, is_right: bool) -> str:  # noqa: FBT001
    return f"<b>{text}</b>" if is_right else text


def _errors_on_the_ground(found: MapFindings) -> str:
    """Show the errors of the blocks, and the worst of those that hold enough units to be told apart from chance."""
    by_block = found.by_block
    if by_block is None:
        return ""
    error, units = by_block.error, by_block.units
    there = units > 0
    enough = np.flatnonzero(units >= max(1.0, _ENOUGH * float(np.median(units[there]))))
    worst = enough[np.argsort(-error.flat[enough], kind="stable")[:_WORST]]
    rows = []
    for at in zip(*np.unravel_index(worst, error.shape), strict=True):
        x, y = by_block.transform @ (at[1] + 0.5, at[0] + 0.5)
        rows.append(
            f"<tr><td>{x:,.6g}</td><td>{y:,.7g}</td><td class='r'>{units[at]:,}</td>"
            f"<td class='r'><b>{number(float(error[at]))}</b></td></tr>"
        )
    return section(
        "Errors on the ground",
        f"The {int(there.sum()):,} blocks of {by_block.blocks.edge_m:,.0f} m that count as clusters, and the share of "
        f"their reference units that the map has wrong. The layer {BLOCKS_FILE} holds the same and opens in a GIS. A "
        "block of few units looks good or bad by chance.",
        _block_figure(by_block),
        "<h3>Blocks with the largest error</h3>",
        table(("x of its centre", "y of its centre", ">units", ">error"), rows),
    )


def _block_figure(by_block: BlockErrors) -> str:
    error, place = by_block.error, by_block.transform
    height, width = error.shape
    with mpl.rc_context(RC):
        figure = Figure(figsize=(5.2, 4.6), layout="constrained")
        axes = figure.subplots()
        turned = place.b != 0 or place.d != 0
        right, bottom = place.c + place.a * width, place.f + place.e * height
        edges = (0.0, width, height, 0.0) if turned else (place.c, right, bottom, place.f)
        drawn = axes.imshow(error, cmap="cividis_r", vmin=0, vmax=max(1e-9, float(np.nanmax(error))), extent=edges)
        axes.set(title="Error by block", xlabel="block" if turned else "x", ylabel="block" if turned else "y")
        axes.ticklabel_format(useOffset=False, style="plain")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.grid(visible=False)
        figure.colorbar(drawn, ax=axes, shrink=0.75, label="share of reference units that are wrong")
    caption = "Coordinates are those of the map. White: no reference unit."
    drawing = picture(figure, "Error of each block of the map", "White: no reference unit." if turned else caption)
    return f"<div class='figures'>{drawing}</div>"


def _reading(found: MapFindings) -> str:
    return section(
        "How this was made",
        "Stratified estimators of Olofsson et al. 2014 (Remote Sensing of Environment 148) and, where the strata are "
        "not the classes of the map, Stehman 2014 (International Journal of Remote Sensing 35).",
        bullets((*found.notes, found.advice)),
    )
