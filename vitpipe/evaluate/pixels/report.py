"""The report of a model of pixels; the parts that every task has come from `report_parts`."""

from __future__ import annotations

from html import escape
from typing import Final

import numpy as np

from vitpipe.evaluate.judged import Judged, estimate_of
from vitpipe.evaluate.pixels.assess import Asked, sample_units
from vitpipe.evaluate.pixels.figures import agreement
from vitpipe.evaluate.pixels.sums import COUNTED, SAMPLED, VALUES
from vitpipe.evaluate.pixels.tables import read_sample, read_tiles, thinned
from vitpipe.evaluate.regions import ground_of
from vitpipe.evaluate.report_cohort import cohort
from vitpipe.evaluate.report_figures import reliability
from vitpipe.evaluate.report_ground import ground_section
from vitpipe.evaluate.report_parts import (
    baselines,
    errors,
    header,
    levels,
    notes,
    page,
    part,
    read_estimate,
    recipe,
    subgroups,
    training,
)
from vitpipe.evaluate.report_style import bar, number, section, span, span_of, table
from vitpipe.records import Level, Split, Task

_MOST_ROWS: Final = 60
_LEVELS: Final = (
    "By tile every labelled pixel counts once; by source or group every source (group) counts once, however many of "
    "its pixels are labelled. The interval resamples whole groups; deff, the design effect, says how many times larger "
    "the variance is than if tiles (sources) were independent."
)


def pixel_report(judged: Judged) -> str:
    """Write the report of a segmentation or of values of pixels.

    Args:
        judged: the numbers and where they are from.

    Returns:
        A whole HTML page: pictures are data URIs, no script, nothing is fetched.
    """
    values = judged.manifest.task is Task.REGRESSION
    pixels = judged.numbers.get("pixels", 0)
    about = f"{pixels:,} labelled pixels" if values else f"{len(judged.manifest.classes)} classes of {pixels:,} pixels"
    shown = [name for name in ((*VALUES,) if values else (*COUNTED, *SAMPLED)) if _has(judged, name)]
    parts = [
        header(judged, VALUES if values else COUNTED, about, () if values or not _has(judged, "ece") else ("ece",)),
        levels(judged, shown, _LEVELS),
        baselines(judged),
        "" if values else errors(judged, Level.TILE.value, "counted in labelled pixels"),
        "" if values else _per_class(judged),
        _agreement(judged) if values else _probabilities(judged),
        ground_section(ground_of(judged)),
        subgroups(judged),
        cohort(judged),
        training(judged),
        notes(judged),
        recipe(judged),
    ]
    return page(judged, parts)


def _has(judged: Judged, name: str) -> bool:
    return name in part(judged.numbers.get(Level.TILE.value))


def _per_class(judged: Judged) -> str:
    level = judged.config.evaluate.level
    found = part(judged.numbers.get("per_class"), level)
    names = list(found)[:_MOST_ROWS]
    overlaps = {name: read_estimate(part(found, name).get("iou")) for name in names}
    scale = span_of([each for each in overlaps.values() if each is not None])
    rows = []
    for name, overlap in overlaps.items():
        if overlap is None:
            continue
        numbers = part(found, name)
        cells = []
        for which in ("recall", "precision", "f1", "auroc"):
            each = read_estimate(numbers.get(which))
            cells.append(
                f"<td class='r'>{number(each.estimate if each else None)}<br>"
                f"<span class='dim small nowrap'>{span(each, 2) if each else ''}</span></td>"
            )
        support = numbers.get("support")
        rows.append(
            f"<tr><td>{escape(name)}</td><td class='r'>{support if not isinstance(support, int) else f'{support:,}'}"
            f"</td><td class='r'>{overlap.n_groups}</td><td>{bar(overlap, scale)}</td>"
            f"<td class='r'><b>{number(overlap.estimate)}</b><br>"
            f"<span class='dim small nowrap'>{span(overlap, 2)}</span></td>{''.join(cells)}</tr>"
        )
    head = ("Class", ">pixels", ">groups", "IoU", ">IoU", ">recall", ">precision", ">F1", ">AUROC")
    more = f"<p class='small'>{len(found) - len(names)} more classes stand in metrics.json.</p>"
    return section(
        "By class",
        f"Each class against the rest, by {level}. The bar shows the intersection over union and its interval; pixels "
        "are all that carry the label, groups those that hold any.",
        table(head, rows),
        more if len(found) > len(names) else "",
    )


def _probabilities(judged: Judged) -> str:
    if not _has(judged, "ece"):
        return ""
    manifest = judged.manifest
    tiles = read_tiles(judged.run_folder, manifest)
    test = tiles.loc[tiles["split"] == str(Split.TEST)].reset_index(drop=True)
    sampled = read_sample(judged.run_folder, manifest, Split.TEST)
    if sampled is None or sampled.empty:
        return ""
    asked = Asked(manifest, judged.config.evaluate, judged.calibration)
    units = sample_units(test, thinned(sampled, judged.config.evaluate.seed), asked, Level.TILE)
    figure = reliability(units, estimate_of(dict(judged.numbers), Level.TILE.value, "ece"), None)
    said = "".join(f"<li>{escape(note)}</li>" for note in judged.calibration.notes)
    return section(
        "Probabilities",
        f"What the model claims of pixels against what came true, on {units.n:,} sampled pixels. The band takes them "
        "as independent; those of one tile are not.",
        f"<div style='max-width:500px'>{figure}</div><ul class='notes'>{said}</ul>",
    )


def _agreement(judged: Judged) -> str:
    sampled = read_sample(judged.run_folder, judged.manifest, Split.TEST)
    if sampled is None or sampled.empty:
        return ""
    rows = thinned(sampled, judged.config.evaluate.seed)
    drawn = agreement(rows["truth"].to_numpy(np.float64), rows["predicted"].to_numpy(np.float64), "")
    return section(
        "Predicted and true values",
        f"{len(rows):,} sampled pixels of the test split, as many of each tile as it has labelled ones, 256 at most.",
        f"<div class='figures'>{drawn}</div>",
    )
