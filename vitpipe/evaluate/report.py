"""The report of a run: one HTML file that needs nothing else and holds no patient data."""

from __future__ import annotations

from html import escape
from typing import Final

import pandas as pd

from vitpipe.evaluate import metrics
from vitpipe.evaluate.judged import Judged
from vitpipe.evaluate.report_figures import (
    ranking_curves,
    reliability,
    risk_coverage_curve,
)
from vitpipe.evaluate.report_gallery import gallery, stretch
from vitpipe.evaluate.report_page import report_page
from vitpipe.evaluate.report_parts import errors, header, levels, part, per_class, read_estimate
from vitpipe.evaluate.report_style import bullets, number, section, span, table
from vitpipe.records import Level, Split
from vitpipe.store import TileStore

_CARDS: Final = ("accuracy", "balanced_accuracy", "macro_f1", "auroc")
_CLASSES: Final = "The bar shows recall and its interval."
_LEVELS: Final = (
    "Sources and groups are judged by the mean probability of their tiles. The interval resamples whole groups; deff, "
    "the design effect, says how many times larger the variance is than if units were independent."
)


def report_html(judged: Judged) -> str:
    """Write the report.

    Args:
        judged: the numbers and where they are from.

    Returns:
        A whole HTML page: pictures are data URIs, no script, nothing is fetched.
    """
    top = [header(judged, _CARDS, f"{len(judged.manifest.classes)} classes"), levels(judged, metrics.METRICS, _LEVELS)]
    own = [
        errors(judged, judged.config.evaluate.level),
        per_class(judged, "recall", ("precision", "f1", "auroc", "average_precision"), "support", _CLASSES),
        _calibration(judged),
        _curves(judged),
    ]
    return report_page(judged, top, own, _gallery(judged))


def _calibration(judged: Judged) -> str:
    level = Level.TILE.value
    ece = part(judged.numbers.get(level), "ece")
    estimate, null = read_estimate(dict(ece)), ece.get("null_95")
    if estimate is None:
        return ""
    p = ece.get("p_value")
    verdict = ""
    if isinstance(p, float):
        verdict = (
            f"The calibration error is larger than chance explains (p = {p:.3f})."
            if p < 0.05
            else f"The calibration error is within what a perfectly calibrated model would show (p = {p:.2f})."
        )
    figures = reliability(judged.units[level], estimate, null if isinstance(null, float) else None)
    sets = _sets(judged)
    return section(
        "Probabilities",
        "What the model claims of tiles against what came true; sets and abstentions on the test split.",
        f"<p>{escape(verdict)}</p><div class='figures'>{figures}{risk_coverage_curve(judged.units[level])}</div>",
        sets,
        bullets(judged.calibration.notes),
    )


def _sets(judged: Judged) -> str:
    found = part(judged.numbers.get("conformal"))
    if not found:
        return ""
    rows = []
    for label, key in (
        ("Label is in the set", "coverage"),
        ("Abstained from (set is not one class)", "abstained"),
        ("Accuracy where not abstained", "accuracy_without_abstained"),
    ):
        each = read_estimate(found.get(key))
        if each is not None:
            rows.append(
                f"<tr><td>{label}</td><td class='r'><b>{number(each.estimate)}</b></td>"
                f"<td class='nowrap'>{span(each)}</td><td class='r'>{each.n}</td></tr>"
            )
    sizes = ", ".join(f"{count} &times; {size}" for size, count in part(found, "sizes").items())
    alpha = found.get("alpha")
    wanted = f"{1 - alpha:.0%}" if isinstance(alpha, float) else ""
    return (
        f"<h3>Prediction sets of tiles, meant to hold the label {wanted} of the time</h3>"
        f"{table(('', '>share', 'interval', '>tiles'), rows)}"
        f"<p class='small'>Sets by size (count &times; classes): {sizes}</p>"
    )


def _curves(judged: Judged) -> str:
    level = judged.config.evaluate.level
    per_class = part(judged.numbers.get("per_class"), level)
    areas: list[tuple[float | None, float | None]] = []
    for name in judged.manifest.classes:
        pair = [read_estimate(part(per_class, name).get(which)) for which in ("auroc", "average_precision")]
        areas.append((pair[0].estimate if pair[0] else None, pair[1].estimate if pair[1] else None))
    drawn = ranking_curves(judged.units[level], tuple(judged.manifest.classes), areas)
    return section(
        "Ranking", f"Each class against the rest, by {level}.", f"<div class='figures'>{drawn}</div>" if drawn else ""
    )


def _gallery(judged: Judged) -> str:
    if judged.manifest.multi_label:
        return ""
    test: pd.DataFrame = judged.predictions.loc[judged.predictions["split"] == str(Split.TEST)]
    manifest = judged.manifest
    store = TileStore(manifest.tiles_folder)
    window, seen = stretch(judged.config.preprocess.clip, manifest, store)
    return section(
        "Tiles to look at",
        "What the model said with which probability; under an error, the label and the probability it was given. Each "
        f"tile {seen}; hatched pixels are not valid.",
        gallery(test, manifest.table, tuple(manifest.classes), store, window),
    )
