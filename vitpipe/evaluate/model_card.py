"""The model card: what the model is for, what it was made from, how good it is, and what it must not be used for."""

from __future__ import annotations

import json
from typing import Final

from vitpipe import __version__
from vitpipe.evaluate import metrics
from vitpipe.evaluate.beside import NAMES
from vitpipe.evaluate.judged import Judged, estimate_of, shown
from vitpipe.evaluate.report_style import words
from vitpipe.records import Json, Level, Split, Task

_UNKNOWN: Final = "not stated"


def model_card(judged: Judged) -> str:
    """Write the card as Markdown."""
    parts = [
        f"# {judged.config.name}",
        _use(judged),
        _data(judged),
        _training(judged),
        _numbers(judged),
        _limits(judged),
        _digests(judged),
    ]
    return "\n\n".join(parts) + "\n"


def _record(judged: Judged) -> dict[str, Json]:
    path = judged.run_folder / "model" / "model.json"
    value = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return value if isinstance(value, dict) else {}


def _use(judged: Judged) -> str:
    manifest = judged.manifest
    kind = "one or more of the classes" if manifest.multi_label else "one of the classes"
    if manifest.task is not Task.CLASSIFICATION:
        return _use_of_pixels(judged)
    return (
        "## Intended use\n\n"
        f"Research. The model gives tiles of {' x '.join(map(str, manifest.tile_shape[1:]))} pixels "
        f"({', '.join(manifest.channels)}; {manifest.units}) {kind} {', '.join(manifest.classes)}, and with it "
        "probabilities, a prediction set and a flag to abstain. It is no medical device: it must not decide on the "
        "care of a patient, nor on anything else without a person who can overrule it."
    )


def _use_of_pixels(judged: Judged) -> str:
    manifest = judged.manifest
    given = "a value" if manifest.task is Task.REGRESSION else f"one of the classes {', '.join(manifest.classes)}"
    return (
        "## Intended use\n\n"
        f"Research. The model gives every pixel of tiles of {' x '.join(map(str, manifest.tile_shape[1:]))} pixels "
        f"({', '.join(manifest.channels)}; {manifest.units}) {given}, and so makes a map of a whole source. It is no "
        "medical device: it must not decide on the care of a patient, nor on anything else without a person who can "
        "overrule it. Areas must not be read off a map by counting its pixels: `vitpipe accuracy` gives them with "
        "intervals, from reference labels."
    )


def _data(judged: Judged) -> str:
    table = judged.manifest.table
    lines = ["| split | groups | sources | tiles |", "|---|---:|---:|---:|"]
    for split in Split:
        part = table.loc[table["split"] == split.value]
        lines.append(f"| {split.value} | {part['group_id'].nunique()} | {part['source_id'].nunique()} | {len(part)} |")
    return (
        "## Data\n\n"
        f"{len(table)} labelled tiles of {table['source_id'].nunique()} sources in {table['group_id'].nunique()} "
        f"groups; {judged.manifest.unlabelled} tiles without a label were not used. A group never straddles splits.\n\n"
        + "\n".join(lines)
    )


def _training(judged: Judged) -> str:
    model, train = judged.config.model, judged.config.train
    record = _record(judged)
    weights = record.get("weights")
    stated = weights if isinstance(weights, dict) else {}
    source = model.weights.source if model is not None else _UNKNOWN
    rows = [
        ("Architecture", model.name if model is not None else _UNKNOWN),
        ("Recipe", f"{train.recipe}, at most {train.epochs} epochs, seed {train.seed}"),
        ("Starting weights", str(stated.get("id") or source)),
        ("Licence of the starting weights", _licence(stated, source)),
        ("SHA-256 of the starting weights", str(stated.get("sha256") or ("none" if source == "random" else _UNKNOWN))),
    ]
    return "## Training\n\n" + "\n".join(f"- {name}: {value}" for name, value in rows)


def _licence(stated: dict[str, Json], source: str) -> str:
    if source == "random":
        return "none: the weights were drawn at random"
    return str(stated.get("licence") or _UNKNOWN)


def _numbers(judged: Judged) -> str:
    numbers = dict(judged.numbers)
    lines = ["| metric | by tile | by source | by group |", "|---|---|---|---|"]
    for name in _metric_names(judged):
        cells = " | ".join(shown(estimate_of(numbers, level.value, name)) for level in Level)
        lines.append(f"| {words(name)} | {cells} |")
    confidence = judged.config.evaluate.confidence
    text = [
        "## Numbers on the test split",
        f"{numbers['verdict']} Intervals of {confidence:.0%} resample whole groups.",
        "\n".join(lines),
    ]
    headline, beside = numbers["headline"], numbers["baselines"]
    if isinstance(headline, dict) and isinstance(beside, dict):
        level, metric = str(headline["level"]), str(headline["metric"])
        rows = [
            f"- {NAMES.get(name, name)}: {shown(estimate_of(table, level, metric))}; the model's difference to it is "
            f"{shown(estimate_of(table, f'{level}_difference', metric))}"
            for name, table in beside.items()
            if isinstance(table, dict)
        ]
        text.append(f"{words(metric)} by {level} of the baselines:\n\n" + "\n".join(rows))
    return "\n\n".join(text)


def _metric_names(judged: Judged) -> tuple[str, ...]:
    if judged.manifest.task is Task.CLASSIFICATION:
        return metrics.METRICS
    found = judged.numbers[Level.TILE.value]
    return tuple(found) if isinstance(found, dict) else ()


def _limits(judged: Judged) -> str:
    notes = judged.numbers["notes"]
    said = [str(note) for note in notes] if isinstance(notes, list) else []
    subgroups = judged.numbers["subgroups"]
    weak = [
        f"{item['attribute']} = {item['value']}"
        for item in (subgroups if isinstance(subgroups, list) else [])
        if isinstance(item, dict) and item["state"] != "ok"
    ]
    if weak:
        said.append(f"Too few groups to judge these subgroups: {', '.join(weak)}.")
    said.append("Data of other devices, regions or seasons than those of the splits above were not tested.")
    return "## Limits\n\n" + "\n".join(f"- {sentence}" for sentence in said)


def _digests(judged: Judged) -> str:
    digests = judged.numbers["digests"]
    rows = [f"- {name}: `{value}`" for name, value in digests.items()] if isinstance(digests, dict) else []
    return "## Digests\n\n" + "\n".join([f"- run: `{judged.run_folder.name}`", *rows, f"- vitpipe {__version__}"])
