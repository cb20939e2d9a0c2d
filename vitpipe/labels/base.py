"""What every kind of label gives: rows that say which class a source, or a frame of it, belongs to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vitpipe.digest import digest_bytes
from vitpipe.errors import LabelError
from vitpipe.labels.ground import GroundLabels
from vitpipe.labels.regions import SEPARATOR, RegionLabels
from vitpipe.pseudonym import Pseudonymiser
from vitpipe.records import WHOLE_SOURCE, Plane, Rejected, Source, Task

CLASS_SEPARATOR = SEPARATOR
"""Between the positive classes of a multi-label row."""
ATTRIBUTE_PREFIX = "attr_"
EXAMPLES = 3


PlanesOf = Callable[[Source, Pseudonymiser], Sequence[Plane]]
"""Reads where the frames of a source lie; nothing where its domain knows no such place."""


class Area(Protocol):
    """An area of interest on the ground."""

    def covers(self, points: NDArray[np.float64], crs: str) -> NDArray[np.bool_]:
        """Tell which points (N, 2), x, y of a CRS, lie in it."""


@dataclass(frozen=True, slots=True)
class LabelSet:
    """The labels of a catalog."""

    rows: pd.DataFrame
    """`source_id`, `frame` (WHOLE_SOURCE: every frame), `label` (multi-label: the positive classes joined by ``|``,
    empty for none), `group_id` ("" where the labels give none), `attr_<name>`; sorted by source and frame, labelled
    rows alone."""
    classes: tuple[str, ...]
    """Sorted."""
    multi_label: bool
    notes: tuple[str, ...]
    """Sentences for the user: what has no label, which labels have no source."""
    digest: str
    """Of the rows and classes; the same labels in another order, or in another file format, have the same."""
    regions: RegionLabels | GroundLabels | None = None
    """Labels that are drawn on the image: then each tile asks them, and the rows only say what is drawn where."""
    rejected: tuple[Rejected, ...] = ()
    """Label objects that are not used, or not wholly, and why."""
    task: Task = Task.CLASSIFICATION
    """What is learned: a class of each tile, or a class or a value of each pixel (then `regions` says which)."""
    units: str = ""
    """Of the values, where they are continuous."""
    aoi: Area | None = None
    """Of labels that do not lie on the image: tiles whose centre is outside this area have none."""

    def quarantine_rows(self) -> pd.DataFrame:
        """Give the rejected as rows of the quarantine table: `uri`, `code`, `reason`, `junk`."""
        rows = [(item.uri, item.code, item.reason, item.junk) for item in self.rejected]
        return pd.DataFrame(rows, columns=["uri", "code", "reason", "junk"]).astype({"junk": "bool"})


def make_label_set(
    rows: pd.DataFrame,
    classes: Sequence[str],
    sources: Sequence[Source],
    notes: Sequence[str],
    *,
    multi_label: bool,
    origin: str = "the labels",
) -> LabelSet:
    """Sort, check and digest label rows.

    Args:
        rows: see :attr:`LabelSet.rows`, in any order.
        classes: in any order.
        sources: the catalog, to count what has no label.
        notes: sentences so far.
        multi_label: whether rows hold several classes.
        origin: where the labels are from, for the error.

    Raises:
        LabelError: a class name holds ``|``, or all labels are the same: nothing could be learned.
    """
    names = tuple(sorted(classes))
    check_class_names(names)
    found = rows["label"].drop_duplicates()
    if len(found) < 2:
        only = f"{found.iloc[0]!r}" if len(found) else "none"
        raise LabelError(
            f"{origin}: the labelled sources have one class only ({only}, {len(rows)} label row(s)); at least two are "
            "needed: check that these are the labels that you mean, and that the other classes have sources that are "
            "there and can be read"
        )
    unlabelled = len(sources) - rows["source_id"].nunique()
    counted = (
        [f"{unlabelled} of {len(sources)} source(s) have no label: kept for prediction, not trained on"]
        if unlabelled
        else []
    )
    ordered = rows.sort_values(["source_id", "frame"], kind="stable", ignore_index=True)
    return LabelSet(
        rows=ordered,
        classes=names,
        multi_label=multi_label,
        notes=(*notes, *counted),
        digest=table_digest(ordered, *names, "multi" if multi_label else "single"),
    )


def check_class_names(names: Sequence[str]) -> None:
    """Refuse names that tables could not hold.

    Raises:
        LabelError: a class name holds ``|``.
    """
    if wrong := [name for name in names if CLASS_SEPARATOR in name]:
        raise LabelError(
            f"class name {wrong[0]!r} holds `{CLASS_SEPARATOR}`, which separates classes in tables; rename the class"
        )


def table_digest(table: pd.DataFrame, *more: str) -> str:
    """Digest a table by its column names and the texts of its values, in the order given."""
    parts = ["\x1e".join(more)]
    for name in table.columns:
        values = table[name].astype("object").where(table[name].notna(), "").astype(str)
        parts.append("\x1f".join((name, *values)))
    return digest_bytes("\x1d".join(parts).encode("utf-8"))


def frame_keys(sources: Sequence[Source], values_of: Callable[[Source], Sequence[str]]) -> pd.DataFrame:
    """List the keys of all sources.

    Args:
        sources: the catalog.
        values_of: gives the keys of a source.

    Returns:
        A row a key: `source_id`, `key`, `frame`: the frame where there are as many keys as frames (and more than one),
        else WHOLE_SOURCE.
    """
    ids: list[str] = []
    keys: list[str] = []
    frames: list[int] = []
    for source in sources:
        values = values_of(source)
        per_frame = len(values) == source.grid.frames > 1
        ids.extend([source.source_id] * len(values))
        keys.extend(values)
        frames.extend(range(len(values)) if per_frame else [WHOLE_SOURCE] * len(values))
    return pd.DataFrame(
        {
            "source_id": pd.Series(ids, dtype="str"),
            "key": pd.Series(keys, dtype="str"),
            "frame": pd.Series(frames, dtype="int64"),
        }
    )


def unique_labels(rows: pd.DataFrame, what: str) -> pd.DataFrame:
    """Leave one row for each source and frame.

    Args:
        rows: with `source_id`, `frame`, `label`, `group_id`.
        what: names the labels in the error.

    Raises:
        LabelError: one source (or frame) has two labels or two groups.
    """
    for column in ("label", "group_id"):
        pairs = rows[["source_id", "frame", column]].drop_duplicates()
        twice = pairs[pairs.duplicated(["source_id", "frame"])]
        if len(twice):
            torn = twice[["source_id", "frame"]].drop_duplicates()
            first = torn.iloc[0]
            place = "" if first["frame"] == WHOLE_SOURCE else f", frame {first['frame']}"
            raise LabelError(
                f"{what} give {len(torn)} source(s) two different {'labels' if column == 'label' else 'groups'}, first "
                f"source {first['source_id']}{place}; leave one each (or key the labels by what tells them apart)"
            )
    return rows.drop_duplicates(["source_id", "frame"], ignore_index=True)
