"""The report of a run: one HTML file that needs nothing else and holds no patient data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import Final

import numpy as np
import pandas as pd

from vitpipe import __version__
from vitpipe.evaluate import metrics
from vitpipe.evaluate.beside import BETTER, NAMES, WORSE
from vitpipe.evaluate.judged import Judged, estimate_of
from vitpipe.evaluate.report_cohort import cohort
from vitpipe.evaluate.report_figures import (
    confusion_picture,
    ranking_curves,
    reliability,
    risk_coverage_curve,
    training_curves,
)
from vitpipe.evaluate.report_gallery import gallery, window_of
from vitpipe.evaluate.report_style import (
    BLUE,
    GREY,
    ORANGE,
    STYLE,
    bar,
    forest,
    number,
    section,
    span,
    span_of,
    table,
    words,
)
from vitpipe.evaluate.statistics import Estimate
from vitpipe.learn.progress import read_progress
from vitpipe.records import Json, Level, Split
from vitpipe.store import TileStore

_CARDS: Final = ("accuracy", "balanced_accuracy", "macro_f1", "auroc")
_MOST_CELLS: Final = 12
_MOST_ROWS: Final = 60
_MOST_LETTERS: Final = 60


def report_html(judged: Judged) -> str:
    """Write the report.

    Args:
        judged: the numbers and where they are from.

    Returns:
        A whole HTML page: pictures are data URIs, no script, nothing is fetched.
    """
    name = escape(judged.config.name)
    parts = [
        _header(judged),
        _levels(judged),
        _baselines(judged),
        _errors(judged),
        _per_class(judged),
        _calibration(judged),
        _curves(judged),
        _subgroups(judged),
        _gallery(judged),
        cohort(judged),
        _training(judged),
        _notes(judged),
        _recipe(judged),
    ]
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{name}: evaluation</title>"
        f"<meta name='viewport' content='width=device-width,initial-scale=1'><style>{STYLE}</style></head>"
        f"<body><main>{''.join(parts)}<footer>vitpipe {escape(__version__)}. For research, not for clinical use. "
        "Names of groups are keyed pseudonyms, cut to six characters.</footer></main></body></html>\n"
    )


def _part(value: Json, *keys: str) -> dict[str, Json]:
    """Give a mapping inside the numbers; empty where it is not there."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def _numbers(judged: Judged) -> dict[str, Json]:
    return dict(judged.numbers)


def _estimate(value: Json) -> Estimate | None:
    if not isinstance(value, dict) or "estimate" not in value:
        return None
    return Estimate(**{name: value[name] for name in Estimate.__dataclass_fields__})  # type: ignore[arg-type]


def _header(judged: Judged) -> str:
    numbers = _numbers(judged)
    headline = _part(numbers, "headline")
    level, metric = str(headline["level"]), str(headline["metric"])
    verdicts = set(_part(numbers, "beats_baseline").values())
    kind = "bad" if WORSE in verdicts else "" if verdicts == {BETTER} else "warn"
    test = judged.predictions["split"] == str(Split.TEST)
    groups = judged.predictions.loc[test, "group_id"].nunique()
    chosen = [(name, level) for name in (metric, *(other for other in _CARDS if other != metric))][:4]
    # Calibration is about the probability of a tile; the mean over a group is unsure by its making.
    chosen.append(("ece", Level.TILE.value))
    cards = []
    for name, of_level in chosen:
        each = estimate_of(numbers, of_level, name)
        units = "" if of_level == Level.GROUP else f"{each.n} {of_level}s, "
        cards.append(
            f"<div class='card'><div class='name'>{escape(words(name))}</div>"
            f"<div class='value'>{number(each.estimate)}</div><div class='range'>{span(each)}</div>"
            f"<div class='n'>{units}{each.n_groups} groups</div></div>"
        )
    confidence = judged.config.evaluate.confidence
    return (
        f"<header class='top {kind}'><h1>{escape(judged.config.name)}</h1>"
        f"<div class='dim'>Run {escape(judged.run_folder.name)} · {len(judged.manifest.classes)} classes · "
        f"{int(test.sum())} test tiles of {groups} groups that the model has not seen · "
        f"judged by {level} · {confidence:.0%} intervals by groups</div>"
        f"<div class='verdict'>{escape(str(numbers['verdict']))}</div>"
        f"<div class='cards'>{''.join(cards)}</div></header>"
    )


def _levels(judged: Judged) -> str:
    numbers = _numbers(judged)
    rows = []
    for name in metrics.METRICS:
        cells = []
        for level in Level:
            each = estimate_of(numbers, level.value, name)
            effect = "" if each.design_effect is None else f"{each.design_effect:.1f}"
            title = f" title='{escape(each.note, quote=True)}'" if each.note else ""
            cells.append(
                f"<td class='r'{title}><b>{number(each.estimate)}</b></td><td class='nowrap dim'>{span(each)}</td>"
                f"<td class='r dim'>{effect}</td>"
            )
        rows.append(f"<tr><td>{escape(words(name))}</td>{''.join(cells)}</tr>")
    sizes = "".join(
        f"<td class='r'>{units.n}</td><td class='dim'>{_unit(level, units.n, units.present.size)}</td><td></td>"
        for level, units in judged.units.items()
    )
    groups = "".join(
        f"<td class='r'>{units.present.size}</td><td class='dim'>groups</td><td></td>"
        for units in judged.units.values()
    )
    head = ("Metric", *(part for level in Level for part in (f">by {level.value}", "interval", ">deff")))
    return section(
        "Numbers by level",
        "Sources and groups are judged by the mean probability of their tiles. The interval resamples whole groups; "
        "deff, the design effect, says how many times larger the variance is than if units were independent.",
        table(head, [*rows, f"<tr><td>Units</td>{sizes}</tr>", f"<tr><td>Groups</td>{groups}</tr>"]),
    )


def _unit(level: str, n: int, groups: int) -> str:
    """Name the units of a level; a group that carries several labels is a unit a label."""
    return "pairs of group and label" if level == Level.GROUP and n != groups else f"{level}s"


def _baselines(judged: Judged) -> str:
    numbers = _numbers(judged)
    headline = _part(numbers, "headline")
    level, metric = str(headline["level"]), str(headline["metric"])
    beside = _part(numbers, "baselines")
    if not beside:
        return ""
    rows: list[tuple[str, Estimate, str]] = [(f"{words(metric)}, by {level}", Estimate(None, None, None, 0, 0), "")]
    rows.append(("this model", estimate_of(numbers, level, metric), BLUE))
    gaps: list[tuple[str, Estimate, str]] = []
    for name in beside:
        rows.append((NAMES.get(name, name), estimate_of(_part(beside, name), level, metric), GREY))
        gaps.append((f"model minus {name}", estimate_of(_part(beside, name), f"{level}_difference", metric), ORANGE))
    return section(
        "Beside trivial baselines",
        "A model that cannot beat these has learnt nothing of use. Differences are paired: the same draws of groups "
        "for both; an interval that holds 0 means that the two cannot be told apart.",
        forest(rows, ""),
        "<h3>Difference to the model</h3>",
        forest(gaps, "", reference=0.0),
    )


def _errors(judged: Judged) -> str:
    level = judged.config.evaluate.level
    found = _part(judged.numbers.get("confusion"), level)
    if not found:
        return ""
    counts = np.asarray(found["counts"], dtype=np.int64)
    classes = tuple(judged.manifest.classes)
    lead = f"Rows are labels, columns predictions, by {level}; the colour is the share of the row."
    if len(classes) > _MOST_CELLS:
        return section("Confusion", lead, confusion_picture(counts, classes), _confused_pairs(counts, classes))
    head = "".join(f"<th><span>{escape(name)}</span></th>" for name in classes)
    # Long names above narrow columns are written upwards.
    look = "confusion long" if sum(map(len, classes)) > _MOST_LETTERS else "confusion"
    rows = []
    for label, row in zip(classes, counts, strict=True):
        total = max(1, int(row.sum()))
        cells = "".join(_cell(int(count), int(count) / total) for count in row)
        rows.append(f"<tr><th>{escape(label)}</th>{cells}</tr>")
    grid = (
        f"<div class='scroll'><table class='{look}'><thead><tr><th></th>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
    return section("Confusion", lead, grid, _confused_pairs(counts, classes) if len(classes) > 2 else "")


def _cell(count: int, share: float) -> str:
    # From white to the palette's blue.
    red, green, blue = (round(255 + share * (end - 255)) for end in (0, 114, 178))
    ink = "#fff" if share > 0.5 else "#1f2937"
    return f"<td style='background:rgb({red},{green},{blue});color:{ink}'>{count}<small>{share:.0%}</small></td>"


def _confused_pairs(counts: np.ndarray, classes: Sequence[str]) -> str:
    """List the pairs most often confused: ``(n_ij + n_ji) / (n_i + n_j)``."""
    support = counts.sum(axis=1)
    pairs = [
        ((counts[i, j] + counts[j, i]) / max(1, support[i] + support[j]), i, j)
        for i in range(len(classes))
        for j in range(i + 1, len(classes))
        if counts[i, j] + counts[j, i] > 0
    ]
    rows = [
        f"<tr><td>{escape(classes[i])} and {escape(classes[j])}</td><td class='r'>{rate:.1%}</td>"
        f"<td class='r'>{counts[i, j]}</td><td class='r'>{counts[j, i]}</td></tr>"
        for rate, i, j in sorted(pairs, key=lambda pair: (-pair[0], pair[1], pair[2]))[:5]
    ]
    return (
        f"<h3>Most often confused</h3>{table(('Pair', '>rate', '>first as second', '>second as first'), rows)}"
        if rows
        else ""
    )


def _per_class(judged: Judged) -> str:
    level = judged.config.evaluate.level
    found = _part(judged.numbers.get("per_class"), level)
    names = list(found)[:_MOST_ROWS]
    recalls = {name: _estimate(_part(found, name).get("recall")) for name in names}
    scale = span_of([each for each in recalls.values() if each is not None])
    rows = []
    for name in names:
        numbers = _part(found, name)
        recall = recalls[name]
        if recall is None:
            continue
        cells = []
        for which in ("precision", "f1", "auroc", "average_precision"):
            each = _estimate(numbers.get(which))
            cells.append(
                f"<td class='r'>{number(each.estimate if each else None)}<br>"
                f"<span class='dim small nowrap'>{span(each, 2) if each else ''}</span></td>"
            )
        rows.append(
            f"<tr><td>{escape(name)}</td><td class='r'>{numbers.get('support')}</td>"
            f"<td>{bar(recall, scale)}</td><td class='r'><b>{number(recall.estimate)}</b><br>"
            f"<span class='dim small nowrap'>{span(recall, 2)}</span></td>{''.join(cells)}</tr>"
        )
    more = (
        f"<p class='small'>{len(found) - len(names)} more classes stand in metrics.json.</p>"
        if len(found) > len(names)
        else ""
    )
    head = ("Class", ">support", "recall", ">recall", ">precision", ">F1", ">AUROC", ">AP")
    return section(
        "By class",
        f"Each class against the rest, by {level}. The bar shows recall and its interval.",
        table(head, rows),
        more,
    )


def _calibration(judged: Judged) -> str:
    level = Level.TILE.value
    ece = _part(judged.numbers.get(level), "ece")
    estimate, null = _estimate(dict(ece)), ece.get("null_95")
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
    notes = "".join(f"<li>{escape(note)}</li>" for note in judged.calibration.notes)
    return section(
        "Probabilities",
        "What the model claims of tiles against what came true; sets and abstentions on the test split.",
        f"<p>{escape(verdict)}</p><div class='figures'>{figures}{risk_coverage_curve(judged.units[level])}</div>",
        sets,
        f"<ul class='notes'>{notes}</ul>",
    )


def _sets(judged: Judged) -> str:
    found = _part(judged.numbers.get("conformal"))
    if not found:
        return ""
    rows = []
    for label, key in (
        ("Label is in the set", "coverage"),
        ("Abstained from (set is not one class)", "abstained"),
        ("Accuracy where not abstained", "accuracy_without_abstained"),
    ):
        each = _estimate(found.get(key))
        if each is not None:
            rows.append(
                f"<tr><td>{label}</td><td class='r'><b>{number(each.estimate)}</b></td>"
                f"<td class='nowrap'>{span(each)}</td><td class='r'>{each.n}</td></tr>"
            )
    sizes = ", ".join(f"{count} &times; {size}" for size, count in _part(found, "sizes").items())
    alpha = found.get("alpha")
    wanted = f"{1 - alpha:.0%}" if isinstance(alpha, float) else ""
    return (
        f"<h3>Prediction sets of tiles, meant to hold the label {wanted} of the time</h3>"
        f"{table(('', '>share', 'interval', '>tiles'), rows)}"
        f"<p class='small'>Sets by size (count &times; classes): {sizes}</p>"
    )


def _curves(judged: Judged) -> str:
    level = judged.config.evaluate.level
    per_class = _part(judged.numbers.get("per_class"), level)
    areas: list[tuple[float | None, float | None]] = []
    for name in judged.manifest.classes:
        pair = [_estimate(_part(per_class, name).get(which)) for which in ("auroc", "average_precision")]
        areas.append((pair[0].estimate if pair[0] else None, pair[1].estimate if pair[1] else None))
    drawn = ranking_curves(judged.units[level], tuple(judged.manifest.classes), areas)
    return section(
        "Ranking", f"Each class against the rest, by {level}.", f"<div class='figures'>{drawn}</div>" if drawn else ""
    )


def _subgroups(judged: Judged) -> str:
    found = judged.numbers.get("subgroups")
    if not isinstance(found, list) or not found:
        return ""
    headline = _part(_numbers(judged), "headline")
    metric, level = str(headline["metric"]), str(headline["level"])
    rows: list[tuple[str, Estimate, str]] = []
    attribute = ""
    for item in found:
        if not isinstance(item, dict) or (each := _estimate(item)) is None:
            continue
        if str(item["attribute"]) != attribute:
            attribute = str(item["attribute"])
            rows.append((attribute.replace("_", " "), each, ""))
        enough = item["state"] == "ok"
        label = str(item["value"]) if enough else f"{item['value']} (insufficient)"
        rows.append((label, each, BLUE if enough else "#B6BCC6"))
    overall = estimate_of(judged.numbers, level, metric).estimate
    return section(
        "Subgroups",
        f"{words(metric)} by {level}. The intervals hold together for all subgroups (max-T bootstrap by groups); the "
        "dashed line is the whole test split. Grey: too few groups or units for an interval, shown all the same. The "
        "lowest of many subgroups lies below the whole by chance alone.",
        forest(rows, "", reference=overall),
    )


def _gallery(judged: Judged) -> str:
    if judged.manifest.multi_label:
        return ""
    test: pd.DataFrame = judged.predictions.loc[judged.predictions["split"] == str(Split.TEST)]
    manifest = judged.manifest
    store = TileStore(manifest.tiles_folder)
    window = window_of(
        judged.config.preprocess.clip,
        manifest.units,
        {str(store.dtype(shard)) for shard in manifest.table["shard_id"].unique()},
    )
    seen = (
        "is stretched to its own percentiles 2 and 98"
        if window is None
        else f"shows {window[0]:g} to {window[1]:g} {manifest.units} from black to white"
    )
    return section(
        "Tiles to look at",
        "What the model said with which probability; under an error, the label and the probability it was given. Each "
        f"tile {seen}; hatched pixels are not valid.",
        gallery(test, manifest.table, tuple(manifest.classes), store, window),
    )


def _training(judged: Judged) -> str:
    drawn = training_curves(read_progress(judged.run_folder / "progress.jsonl"))
    validated = (judged.manifest.table["split"] == str(Split.VAL)).any()
    chosen = "Validation chose the weights" if validated else "There is no validation split: the last weights were kept"
    return section("Training", f"{chosen}; the test split was not looked at.", drawn)


def _notes(judged: Judged) -> str:
    notes = judged.numbers.get("notes")
    items = "".join(f"<li>{escape(str(note))}</li>" for note in notes) if isinstance(notes, list) else ""
    use = judged.numbers.get("test_use")
    ledger = f"<li>This was use number {use} of the test split of this workspace.</li>" if use else ""
    return section(
        "Notes on the data and the numbers",
        "What to know before these numbers are believed.",
        f"<ul class='notes'>{items}{ledger}</ul>",
    )


def _recipe(judged: Judged) -> str:
    model = judged.run_folder / "model" / "model.json"
    digests = _part(_numbers(judged), "digests")
    rows = [
        f"<tr><td>{escape(name)}</td><td><code>{escape(str(value))}</code></td></tr>" for name, value in digests.items()
    ]
    about = (
        f"<details><summary>Model record</summary><pre>{escape(model.read_text(encoding='utf-8'))}</pre></details>"
        if model.is_file()
        else ""
    )
    text = escape(json.dumps(judged.config.without_places(), indent=2, ensure_ascii=False))
    return section(
        "Recipe and digests",
        "The same digests give the same numbers.",
        table(("What", "Digest"), rows),
        f"<details><summary>Configuration</summary><pre>{text}</pre></details>",
        about,
    )
