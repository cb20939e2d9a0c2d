"""Who was looked at: from sources to tiles to splits, and what was left out and why."""

from __future__ import annotations

from html import escape
from typing import Final

import pandas as pd

from vitpipe.evaluate.judged import Judged
from vitpipe.evaluate.report_style import section, table
from vitpipe.evaluate.units import truth_matrix
from vitpipe.records import Split, Task

_MOST_CLASSES: Final = 24


def cohort(judged: Judged) -> str:
    """Show the flow of the cohort, the splits, and the quarantine by code."""
    manifest = judged.manifest.table
    return section(
        "Cohort",
        "Groups (patients, blocks of ground) never straddle splits.",
        _flow(judged),
        _splits(
            manifest,
            () if judged.manifest.task is Task.REGRESSION else tuple(judged.manifest.classes),
            multi_label=judged.manifest.multi_label,
        ),
        _quarantine(judged),
    )


def _flow(judged: Judged) -> str:
    manifest = judged.manifest.table
    boxes = []
    if judged.workspace.catalog.is_file():
        catalog = pd.read_parquet(judged.workspace.catalog, columns=["source_id"])
        boxes.append(_box(catalog["source_id"].nunique(), "sources in the catalog"))
    boxes.append(_box(manifest["source_id"].nunique(), "labelled sources with tiles"))
    boxes.append(_box(len(manifest), "labelled tiles"))
    boxes.append(_box(manifest["group_id"].nunique(), "groups"))
    arrow = "<div class='arrow'>→</div>"
    out = ""
    if judged.manifest.unlabelled:
        out = f"<div class='out'><b>{judged.manifest.unlabelled}</b>tiles without a label, not used</div>"
    return f"<div class='flow'>{arrow.join(boxes)}{out}</div>"


def _box(count: int, what: str) -> str:
    return f"<div><b>{count:,}</b>{escape(what)}</div>"


def _splits(manifest: pd.DataFrame, classes: tuple[str, ...], *, multi_label: bool) -> str:
    rows = []
    for split in Split:
        part = manifest.loc[manifest["split"] == split.value]
        rows.append(
            f"<tr><td>{split.value}</td><td class='r'>{part['group_id'].nunique()}</td>"
            f"<td class='r'>{part['source_id'].nunique()}</td><td class='r'>{len(part)}</td></tr>"
        )
    made = table(("Split", ">groups", ">sources", ">tiles"), rows)
    if len(classes) > _MOST_CLASSES or not classes:
        return made
    counts = class_counts(manifest, classes, multi_label=multi_label)
    by_class = [f"<tr><td>{escape(name)}</td>{_cells(counts[name])}</tr>" for name in classes]
    return f"{made}<h3>Tiles by class</h3>{table(('Class', *(f'>{split.value}' for split in Split)), by_class)}"


def _cells(counts: list[int]) -> str:
    return "".join(f"<td class='r'>{count}</td>" for count in counts)


def class_counts(manifest: pd.DataFrame, classes: tuple[str, ...], *, multi_label: bool) -> dict[str, list[int]]:
    """Count the tiles of each class in each split; a multi-label tile counts for each of its classes."""
    truth = truth_matrix(manifest["label"].astype(str).tolist(), classes, multi_label=multi_label)
    splits = manifest["split"].to_numpy()
    return {
        name: [int(truth[splits == split.value, column].sum()) for split in Split]
        for column, name in enumerate(classes)
    }


def _quarantine(judged: Judged) -> str:
    path = judged.workspace.quarantine
    if not path.is_file():
        return ""
    rejected = pd.read_parquet(path, columns=["code", "junk"])
    if rejected.empty:
        return "<p class='small'>Nothing was rejected.</p>"
    counts = rejected.groupby(["junk", "code"], as_index=False).size()
    rows = [
        f"<tr><td><code>{escape(str(code))}</code></td><td>{'not of this kind of data' if junk else 'rejected'}</td>"
        f"<td class='r'>{count}</td></tr>"
        for junk, code, count in zip(counts["junk"], counts["code"], counts["size"], strict=True)
    ]
    return f"<h3>Left out at ingest</h3>{table(('Code', 'Kind', '>files'), rows)}"
