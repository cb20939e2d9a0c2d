"""What a manifest holds, in sentences, and whether a model can be trained on it."""

from __future__ import annotations

from typing import Final

import numpy as np
import pandas as pd

from vitpipe.errors import SplitError
from vitpipe.labels.base import CLASS_SEPARATOR, LabelSet
from vitpipe.records import Split, Task

_EXAMPLES: Final = 5
_MOST_LISTED: Final = 12
_SPLIT_ORDER: Final = (Split.TRAIN, Split.VAL, Split.CALIBRATION, Split.TEST)


def describe(table: pd.DataFrame, labels: LabelSet, unlabelled: int, pixels: pd.Series | None) -> list[str]:
    """Say what is in each split and what is missing.

    Args:
        table: of the manifest.
        labels: of the tiles.
        unlabelled: tiles that are not in the table.
        pixels: of a per-pixel task: the labelled pixels a class of each row of the table.
    """
    notes = []
    by_class = _class_counts(table, labels) if pixels is None else _pixel_counts(table, labels, pixels)
    counts_of = "groups by class: " if pixels is None else "pixels by class: "
    for split in _SPLIT_ORDER:
        chosen = table["split"] == split
        part = table[chosen]
        if part.empty:
            notes.append(f"{split}: no group")
            continue
        counted = by_class.loc[str(split)]
        shown = ", ".join(f"{name} {count}" for name, count in counted.items()) if len(counted) <= _MOST_LISTED else ""
        more = f"; {counts_of}{shown}" if shown else ""
        if labels.task is Task.REGRESSION:
            more = f"; {int(part['labelled_px'].sum())} pixels with a value"
        notes.append(
            f"{split}: {len(part)} tile(s) of {part['source_id'].nunique()} source(s) in {part['group_id'].nunique()} "
            f"group(s){more}"
        )
        if missing := [str(name) for name, count in counted.items() if count == 0]:
            others = ", ..." if len(missing) > _EXAMPLES else ""
            notes.append(
                f"{split} has no {'group' if pixels is None else 'pixel'} of {len(missing)} class(es): "
                f"{', '.join(missing[:_EXAMPLES])}{others}; more labelled groups of them would be spread over the "
                "splits"
            )
    if unlabelled:
        notes.append(f"{unlabelled} tile(s) have no label and are not used")
    without = labels.rows["source_id"].nunique() - table["source_id"].nunique()
    if without:
        notes.append(f"{without} labelled source(s) gave no tile (too few valid pixels, or not tiled)")
    return notes


def check_train(table: pd.DataFrame, labels: LabelSet, pixels: pd.Series | None) -> None:
    """Refuse a train split that nothing can be learned from.

    Raises:
        SplitError: it holds one class only, or nothing.
    """
    chosen = table["split"] == Split.TRAIN
    train = table.loc[chosen, ["group_id", "label"]]
    present = sorted(train["label"].unique())
    if pixels is not None and labels.task is Task.SEGMENTATION and len(train):
        counts = _pixel_counts(table, labels, pixels).loc[str(Split.TRAIN)]
        present = [str(name) for name, count in counts.items() if count]
    if len(present) < (1 if labels.task is Task.REGRESSION else 2):
        only = present[0] if present else "none"
        many = f" of {len(labels.classes)}" if labels.classes else ""
        raise SplitError(
            f"the train split holds one class only (`{only}`, {train['group_id'].nunique()} group(s)){many}; label "
            f"more groups of the other classes{_drawn_remedy(labels)}"
        )


def _drawn_remedy(labels: LabelSet) -> str:
    """Say what else helps where classes are drawn: in large tiles the commonest one covers the others."""
    if labels.regions is None or labels.task is not Task.CLASSIFICATION:
        return ""
    several = "" if labels.multi_label else ", or set `labels.multi_label: true`"
    return f"; or cut smaller tiles (`tiles.size`) or lower `labels.min_share`{several}, so that other classes show"


def _class_counts(table: pd.DataFrame, labels: LabelSet) -> pd.DataFrame:
    """Count distinct groups: a row a split, a column a class."""
    pairs = table[["split", "group_id", "label"]].drop_duplicates()
    if labels.multi_label:
        pairs = pairs.assign(label=pairs["label"].str.split(CLASS_SEPARATOR)).explode("label")
        pairs = pairs.drop_duplicates()
    counts = pairs.groupby(["split", "label"]).size().unstack(fill_value=0)
    return counts.reindex(index=[str(split) for split in _SPLIT_ORDER], columns=list(labels.classes), fill_value=0)


def _pixel_counts(table: pd.DataFrame, labels: LabelSet, pixels: pd.Series) -> pd.DataFrame:
    """Count labelled pixels: a row a split, a column a class."""
    counts = np.stack([np.asarray(found, np.int64) for found in pixels])
    splits = table["split"].to_numpy()
    rows = {str(split): counts[splits == str(split)].sum(axis=0) for split in _SPLIT_ORDER}
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(labels.classes))
