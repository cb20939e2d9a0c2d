"""The parts that reports of every task share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import Final

import numpy as np

from vitpipe.evaluate.beside import BETTER, NAMES, NETWORK, WORSE
from vitpipe.evaluate.judged import Judged, estimate_of
from vitpipe.evaluate.report_figures import (
    confusion_picture,
    training_curves,
)
from vitpipe.evaluate.report_style import (
    BLUE,
    GREY,
    ORANGE,
    bar,
    bullets,
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

_LEADS: Final = {
    False: "A model that cannot beat these has learnt nothing of use.",
    True: "A model that cannot beat the trivial ones has learnt nothing of use; the U-Net saw the same tiles as often "
    "and takes as much arithmetic.",
}
_MOST_ROWS: Final = 60
_MOST_CELLS: Final = 12
_MOST_LETTERS: Final = 60
_IN_UNITS: Final = ("rmse", "mae", "bias")
_SHORT: Final = {"f1": "F1", "auroc": "AUROC", "average_precision": "AP", "iou": "IoU"}
"""Names of metrics above columns."""


def part(value: Json, *keys: str) -> dict[str, Json]:
    """Give a mapping inside the numbers; empty where it is not there."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def _numbers(judged: Judged) -> dict[str, Json]:
    return dict(judged.numbers)


def read_estimate(value: Json) -> Estimate | None:
    """Read an estimate; None where there is none."""
    if not isinstance(value, dict) or "estimate" not in value:
        return None
    return Estimate(**{name: value[name] for name in Estimate.__dataclass_fields__})  # type: ignore[arg-type]


def _metric(judged: Judged, name: str) -> str:
    """Name a metric for people; an error of values carries their unit."""
    units = judged.manifest.target_units
    return f"{words(name)} ({units})" if units and name in _IN_UNITS else words(name)


def header(judged: Judged, cards_of: Sequence[str], about: str, tail: Sequence[str] = ("ece",)) -> str:
    """Put the verdict and the cards of some metrics on top.

    Args:
        judged: the run.
        cards_of: metrics shown beside the headline, as many as there is room for.
        about: what the model knows, such as ``3 classes``.
        tail: metrics that are shown by tile, whatever the level of the headline.
    """
    numbers = _numbers(judged)
    headline = part(numbers, "headline")
    level, metric = str(headline["level"]), str(headline["metric"])
    verdicts = set(part(numbers, "beats_baseline").values())
    kind = "bad" if WORSE in verdicts else "" if verdicts == {BETTER} else "warn"
    test = judged.predictions["split"] == str(Split.TEST)
    groups = judged.predictions.loc[test, "group_id"].nunique()
    chosen = [(name, level) for name in (metric, *(other for other in cards_of if other != metric))][:4]
    # Calibration is about the probability of a tile; the mean over a group is unsure by its making.
    chosen += [(name, Level.TILE.value) for name in tail]
    cards = []
    for name, of_level in chosen:
        each = estimate_of(numbers, of_level, name)
        units = "" if of_level == Level.GROUP else f"{each.n} {_unit(judged, Level(of_level), each)}, "
        cards.append(
            f"<div class='card'><div class='name'>{escape(_metric(judged, name))}</div>"
            f"<div class='value'>{number(each.estimate)}</div><div class='range'>{span(each)}</div>"
            f"<div class='n'>{units}{each.n_groups} groups</div></div>"
        )
    confidence = judged.config.evaluate.confidence
    return (
        f"<header class='top {kind}'><h1>{escape(judged.config.name)}</h1>"
        f"<div class='dim'>Run {escape(judged.run_folder.name)} · {escape(about)} · "
        f"{int(test.sum())} test tiles of {groups} groups that the model has not seen · "
        f"judged by {level} · {confidence:.0%} intervals by groups</div>"
        f"<div class='verdict'>{escape(str(numbers['verdict']))}</div>"
        f"<div class='cards'>{''.join(cards)}</div></header>"
    )


def levels(judged: Judged, names: Sequence[str], lead: str) -> str:
    """Show metrics at every level; `lead` says what a level means."""
    numbers = _numbers(judged)
    rows = []
    for name in names:
        cells = []
        for level in Level:
            each = estimate_of(numbers, level.value, name)
            effect = "" if each.design_effect is None else f"{each.design_effect:.1f}"
            title = f" title='{escape(each.note, quote=True)}'" if each.note else ""
            cells.append(
                f"<td class='r'{title}><b>{number(each.estimate)}</b></td><td class='nowrap dim'>{span(each)}</td>"
                f"<td class='r dim'>{effect}</td>"
            )
        rows.append(f"<tr><td>{escape(_metric(judged, name))}</td>{''.join(cells)}</tr>")
    sizes, groups = "", ""
    for level in Level:
        each = estimate_of(numbers, level.value, names[0])
        sizes += f"<td class='r'>{each.n}</td><td class='dim'>{_unit(judged, level, each)}</td><td></td>"
        groups += f"<td class='r'>{each.n_groups}</td><td class='dim'>groups</td><td></td>"
    head = ("Metric", *(part for level in Level for part in (f">by {level.value}", "interval", ">deff")))
    return section(
        "Numbers by level",
        lead,
        table(head, [*rows, f"<tr><td>Units</td>{sizes}</tr>", f"<tr><td>Groups</td>{groups}</tr>"]),
    )


def baselines(judged: Judged) -> str:
    """Put the baselines beside the model."""
    numbers = _numbers(judged)
    headline = part(numbers, "headline")
    level, metric = str(headline["level"]), str(headline["metric"])
    beside = part(numbers, "baselines")
    if not beside:
        return ""
    rows: list[tuple[str, Estimate, str]] = [
        (f"{_metric(judged, metric)}, by {level}", Estimate(None, None, None, 0, 0), "")
    ]
    rows.append(("this model", estimate_of(numbers, level, metric), BLUE))
    gaps: list[tuple[str, Estimate, str]] = []
    for name in beside:
        rows.append((NAMES.get(name, name), estimate_of(part(beside, name), level, metric), GREY))
        gaps.append((f"model minus {name}", estimate_of(part(beside, name), f"{level}_difference", metric), ORANGE))
    return section(
        "Beside the baselines" if NETWORK in beside else "Beside trivial baselines",
        f"{_LEADS[NETWORK in beside]} Differences are paired: the same draws of groups for both; an interval that "
        "holds 0 means that the two cannot be told apart.",
        forest(rows, ""),
        "<h3>Difference to the model</h3>",
        forest(gaps, "", reference=0.0),
    )


def errors(judged: Judged, level: str, units: str = "") -> str:
    """Show the confusion matrix of a level; `units` says what is counted, if not the units of the level."""
    found = part(judged.numbers.get("confusion"), level)
    if not found:
        return ""
    counts = np.asarray(found["counts"], dtype=np.int64)
    classes = tuple(judged.manifest.classes)
    lead = f"Rows are labels, columns predictions, {units or f'by {level}'}; the colour is the share of the row."
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


def per_class(judged: Judged, drawn: str, others: Sequence[str], counted: str, lead: str = "") -> str:
    """Show each class against the rest, at the level of the headline.

    Args:
        judged: the run.
        drawn: the metric that is drawn with its interval.
        others: metrics that stand beside it.
        counted: what of a class is counted.
        lead: how to read the table, after what all such tables have.
    """
    level = judged.config.evaluate.level
    found = part(judged.numbers.get("per_class"), level)
    names = list(found)[:_MOST_ROWS]
    first = {name: read_estimate(part(found, name).get(drawn)) for name in names}
    scale = span_of([each for each in first.values() if each is not None])
    # Of units every class has some in most groups; of pixels a class may lie in one group alone.
    in_groups = counted == "pixels"
    rows = []
    for name, each in first.items():
        if each is None:
            continue
        numbers = part(found, name)
        beside = (read_estimate(numbers.get(which)) for which in others)
        cells = "".join(_with_span(other) for other in beside)
        groups = f"<td class='r'>{each.n_groups}</td>" if in_groups else ""
        rows.append(
            f"<tr><td>{escape(name)}</td><td class='r'>{numbers.get('support'):,}</td>{groups}"
            f"<td>{bar(each, scale)}</td>{_with_span(each, bold=True)}{cells}</tr>"
        )
    head = ("Class", f">{counted}", *((">groups",) if in_groups else ()), _short(drawn), f">{_short(drawn)}")
    more = f"<p class='small'>{len(found) - len(names)} more classes stand in metrics.json.</p>"
    return section(
        "By class",
        f"Each class against the rest, by {level}. {lead}",
        table((*head, *(f">{_short(which)}" for which in others)), rows),
        more if len(found) > len(names) else "",
    )


def _with_span(each: Estimate | None, *, bold: bool = False) -> str:
    value = number(each.estimate if each else None)
    return (
        f"<td class='r'>{f'<b>{value}</b>' if bold else value}<br>"
        f"<span class='dim small nowrap'>{span(each, 2) if each else ''}</span></td>"
    )


def _short(metric: str) -> str:
    return _SHORT.get(metric, metric)


def subgroups(judged: Judged) -> str:
    """Show the headline metric by subgroup."""
    found = judged.numbers.get("subgroups")
    if not isinstance(found, list) or not found:
        return ""
    headline = part(_numbers(judged), "headline")
    metric, level = str(headline["metric"]), str(headline["level"])
    rows: list[tuple[str, Estimate, str]] = []
    attribute = ""
    for item in found:
        if not isinstance(item, dict) or (each := read_estimate(item)) is None:
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
        f"{_metric(judged, metric)} by {level}. The intervals hold together for all subgroups (max-T bootstrap by "
        "groups); the dashed line is the whole test split. Grey: too few groups or units for an interval, shown all "
        "the same. The lowest of many subgroups lies below the whole by chance alone.",
        forest(rows, "", reference=overall),
    )


def training(judged: Judged) -> str:
    """Show the curves of the training."""
    drawn = training_curves(read_progress(judged.run_folder / "progress.jsonl"))
    validated = (judged.manifest.table["split"] == str(Split.VAL)).any()
    chosen = "Validation chose the weights" if validated else "There is no validation split: the last weights were kept"
    return section("Training", f"{chosen}; the test split was not looked at.", drawn)


def notes(judged: Judged) -> str:
    """List what a reader must know."""
    notes = judged.numbers.get("notes")
    said = [str(note) for note in notes] if isinstance(notes, list) else []
    if use := judged.numbers.get("test_use"):
        said.append(f"This was use number {use} of the test split of this workspace.")
    return section(
        "Notes on the data and the numbers", "What to know before these numbers are believed.", bullets(said)
    )


def recipe(judged: Judged) -> str:
    """Give configuration and digests."""
    model = judged.model_record
    digests = part(_numbers(judged), "digests")
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


def _unit(judged: Judged, level: Level, each: Estimate) -> str:
    """Name the units of a level: what carries several labels, or lies in several groups, is a unit for each."""
    if level is Level.GROUP and each.n != each.n_groups:
        return "pairs of group and label"
    if level is Level.SOURCE:
        test = judged.predictions["split"] == str(Split.TEST)
        sources = judged.predictions.loc[test, "source_id"].nunique()
        if each.n != sources:
            return f"parts of {sources} source{'' if sources == 1 else 's'}"
    return f"{level}s"
