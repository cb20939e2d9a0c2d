"""Who was looked at: from sources to tiles to splits, and what was left out and why."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Final

import pandas as pd

from vitpipe.evaluate.judged import Judged
from vitpipe.evaluate.report_style import section, table
from vitpipe.evaluate.units import truth_matrix
from vitpipe.ground.gap import METRIC_WORDS
from vitpipe.records import Json, Split, Task

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
        leakage_audit(judged.manifest.audit),
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


def leakage_audit(audit: Mapping[str, Json]) -> str:
    """Show what the splits have in common: ground, distance, pixels and groups.

    Args:
        audit: of the manifest, see `vitpipe.partition`; empty in runs from before it was measured.
    """
    if not audit:
        return ""
    common = f"Groups in two splits: {audit['torn_groups']}. Equal pixels in two splits: {audit['equal_pixels']}."
    pairs = audit.get("pairs")
    if not isinstance(pairs, list):
        alone = f"{common} The sources have no place on the ground: nothing else could be compared."
        return f"<h3>Leakage audit</h3><p class='small'>{alone}</p>"
    rows = []
    for pair in pairs:
        assert isinstance(pair, dict)
        assert isinstance(pair["splits"], list)
        rows.append(
            f"<tr><td>{escape(' and '.join(map(str, pair['splits'])))}</td><td class='r'>{pair['shared_m2']:,.0f}</td>"
            f"<td class='r'>{pair['least_distance_m']:,.0f}</td></tr>"
        )
    left = audit["left_out"]
    assert isinstance(left, dict)
    said = [
        common,
        f"Left out so that no two splits share ground: {left['shared_ground']} tile(s); for the buffer of "
        f"{audit['buffer_m']:g} m: {left['buffer']}.",
    ]
    if audit["without_ground"]:
        said.append(f"{audit['without_ground']} tile(s) lie on no known ground: only pixels and groups are compared.")
    if audit.get("same_ground"):
        said.append("The same ground may be in train and in test at different dates (`split.same_ground`).")
    gap = audit.get("gap")
    if isinstance(gap, dict):
        said.append(_gap(gap))
    made = table(("Splits", ">shared ground (m²)", ">least distance (m)"), rows)
    return f"<h3>Leakage audit</h3>{made}<p class='small'>{' '.join(said)}</p>"


def _gap(gap: Mapping[str, Json]) -> str:
    """Say what a random split would claim; runs from before other metrics were measured have neither their interval."""
    metric, found = str(gap.get("metric", "balanced_accuracy")), gap.get("difference")
    reach = ""
    if isinstance(found, dict) and found["low"] is not None:
        reach = f" a gap of {found['estimate']:.3f} [{found['low']:.3f}, {found['high']:.3f}] by groups,"
    probe = gap.get("probe", f"nearest neighbour in colour, {gap['tiles']} tiles")
    return (
        f"A random split would claim {gap['random_split']:.3f} {METRIC_WORDS[metric]}, the split by blocks "
        f"{gap['group_split']:.3f}:{reach} measured with a cheap probe in five folds ({probe})."
    )


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
