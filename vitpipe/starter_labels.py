"""Guess which table, key and column label the sources: from the values, not from the names alone."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pandas as pd

from vitpipe.labels.read import as_attribute, as_text, read_table
from vitpipe.pseudonym import Pseudonymiser
from vitpipe.records import Json, Source

KEYED_KINDS = ("instance_uid", "series_uid", "study_uid", "patient")
PLAIN_KINDS = ("path", "scene")
_MIN_MATCH = 0.5
_MAX_CLASSES = 100
_DRAWN_KINDS = {
    "dicom_seg": ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"),
    "dicom_rtstruct": ("1.2.840.10008.5.1.4.1.1.481.3",),
}
_DRAWN_NAMES = {"dicom_seg": "DICOM segmentation(s)", "dicom_rtstruct": "DICOM structure set(s)"}
_LABEL_NAMES = (
    "label",
    "class",
    "target",
    "y",
    "diagnosis",
    "category",
    "finding",
    "species",
    "landcover",
    "land_cover",
)
_GROUP_NAMES = ("patient", "subject", "group", "block", "site", "photographer", "person", "case")
_NOT_A_SUBGROUP = ("name", "path", "file", "uid", "md5", "hash", "latitude", "longitude", "date")


@dataclass(frozen=True, slots=True)
class LabelGuess:
    """A label recipe, and why."""

    values: Mapping[str, Json]
    """The `labels` of the configuration; `path` is absolute."""
    lines: tuple[str, ...]
    n_labelled: int
    """Things with a label: sources, or tiles of scenes."""
    tile_px: int | None = None
    """Edge of the tiles that suit the labels; None: they say nothing of it."""
    stride_px: int | None = None
    """Step between them; None: their edge."""


def guess_table_labels(
    table: Path, root: Path, sources: Sequence[Source], pseudonym: Pseudonymiser
) -> LabelGuess | None:
    """Guess the key, label, group and attribute columns of a table; None where nothing matches or no column fits.

    Raises:
        LabelError: the file is no table.
    """
    text = read_table(table)
    key = _find_key(text, table, root, sources, pseudonym)
    if key is None:
        return None
    kind, key_column, share, matched = key
    labelled = pd.DataFrame({name: as_attribute(text[name]) for name in text.columns})[matched]
    label = find_label(labelled, key_column)
    if label is None:
        return None
    classes = sorted(labelled[label].dropna().astype(str).unique())
    values: dict[str, Json] = {"kind": "table", "path": str(table), "key": kind, "column": label}
    if key_column != kind:
        values["key_column"] = key_column
    lines = [
        f"labels: {table.name}, column `{label}` ({len(classes)} classes: {', '.join(classes[:6])}"
        f"{', ...' if len(classes) > 6 else ''}), matched by `{key_column}` for {share:.0%} of the sources"
    ]
    group = _find_group(labelled, key_column, label, sources)
    if group is not None:
        values["group"] = group
        lines.append(f"groups that never straddle splits: column `{group}`")
    attributes = _find_attributes(labelled, (key_column, label, group))
    if attributes:
        values["attributes"] = list(attributes)
        lines.append(f"subgroups: {', '.join(attributes)}")
    return LabelGuess(values=values, lines=tuple(lines), n_labelled=int(labelled[label].notna().sum()))


def guess_drawn_labels(passed_over: Sequence[Path]) -> LabelGuess | None:
    """Find DICOM segmentations or structure sets among the files that are no images; None where there is none.

    Args:
        passed_over: files that the domain does not take as images.
    """
    found: dict[str, list[Path]] = {kind: [] for kind in _DRAWN_KINDS}
    for path in passed_over:
        for kind, sop_classes in _DRAWN_KINDS.items():
            if _sop_class(path) in sop_classes:
                found[kind].append(path)
    kind = max(found, key=lambda name: len(found[name]))
    files = found[kind]
    if not files:
        return None
    place = files[0] if len(files) == 1 else Path(os.path.commonpath([path.parent for path in files]))
    line = (
        f"labels: {len(files)} {_DRAWN_NAMES[kind]} in {place.name}, by their position in the patient; a tile is of "
        "the class that covers half of it (`labels.min_share`), else background"
    )
    return LabelGuess(values={"kind": kind, "path": str(place)}, lines=(line,), n_labelled=len(files))


def _sop_class(path: Path) -> str:
    """Read the kind of a DICOM object; empty for anything else."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        meta = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SOPClassUID"])
    except (InvalidDicomError, OSError, ValueError, EOFError):
        # What it is instead stands among the rejected files already.
        return ""
    return str(meta.get("SOPClassUID", ""))


def guess_folder_labels(sources: Sequence[Source]) -> LabelGuess | None:
    """Take the folder above each file as its class, where there are a few classes with several files each."""
    paths = [PurePosixPath(source.keys["path"][0]) for source in sources if source.keys.get("path")]
    folders = pd.Series([path.parent.name for path in paths if path.parent.name])
    counts = folders.value_counts()
    if not 2 <= len(counts) <= _MAX_CLASSES or counts.min() < 5 or len(folders) < len(paths):
        return None
    names = ", ".join(sorted(counts.index)[:6])
    line = f"labels: the folder names ({len(counts)} classes: {names}{', ...' if len(counts) > 6 else ''})"
    return LabelGuess(values={"kind": "folder"}, lines=(line,), n_labelled=len(folders))


def _find_key(
    rows: pd.DataFrame, table: Path, root: Path, sources: Sequence[Source], pseudonym: Pseudonymiser
) -> tuple[str, str, float, pd.Series[bool]] | None:
    """Find (kind, column, share of sources matched, rows matched): the pair that matches most sources, plain first."""
    best: tuple[str, str, float, pd.Series[bool]] | None = None
    for kind in (*PLAIN_KINDS, *KEYED_KINDS):
        known = {value for source in sources for value in source.keys.get(kind, ())}
        if not known:
            continue
        for column in rows.columns:
            text = as_text(rows[column])
            if kind in KEYED_KINDS:
                text = text.map({value: pseudonym(kind, value) for value in text.unique()})
            elif kind == "path":
                text = text.map(lambda value: _below(value, table, root))
            matched = text.isin(known)
            share = text[matched].nunique() / len(known)
            if share >= _MIN_MATCH and (best is None or share > best[2] + 1e-9):
                best = (kind, str(column), share, matched)
    return best


def _below(value: str, table: Path, root: Path) -> str:
    """Give a path of the table relative to the data's folder: as it stands, or from the table's own folder."""
    path = PurePosixPath(value.replace("\\", "/"))
    from_table = Path(table.parent, path)
    folder = root if root.is_dir() else root.parent
    if from_table.is_relative_to(folder) and from_table.exists():
        return from_table.relative_to(folder).as_posix()
    return path.as_posix().removeprefix("./")


def find_label(rows: pd.DataFrame, key_column: str) -> str | None:
    """Name the column that holds classes, by its name and its values; None where none or several fit.

    Args:
        rows: the labelled things.
        key_column: names them, and is no label.
    """

    def fits(column: str) -> bool:
        values = rows[column].dropna()
        if pd.api.types.is_float_dtype(values) and (values % 1 != 0).any():
            return False
        counts = values.astype(str).value_counts()
        return 2 <= len(counts) <= _MAX_CLASSES and counts.min() >= 2 and len(values) >= 4 * len(counts)

    columns = [str(column) for column in rows.columns if column != key_column]
    named = [name for name in _LABEL_NAMES for column in columns if column.lower() == name and fits(column)]
    if named:
        return next(column for column in columns if column.lower() == named[0])
    free = [
        c for c in columns if not any(part in c.lower() for part in (*_GROUP_NAMES, *_NOT_A_SUBGROUP, "split", "fold"))
    ]
    fitting = [column for column in free if fits(column) and pd.api.types.is_string_dtype(rows[column])]
    return fitting[0] if len(fitting) == 1 else None


def _find_group(rows: pd.DataFrame, key_column: str, label: str, sources: Sequence[Source]) -> str | None:
    """Name a column of groups, where the data do not carry groups themselves (patients, ground)."""
    if all(source.keys.get("patient") or source.grid.crs for source in sources):
        return None
    for column in map(str, rows.columns):
        if column in (key_column, label) or not any(part in column.lower() for part in _GROUP_NAMES):
            continue
        if 3 <= rows[column].nunique() < len(rows):
            return column
    return None


def _find_attributes(rows: pd.DataFrame, taken: Sequence[str | None]) -> tuple[str, ...]:
    found = []
    for column in map(str, rows.columns):
        if column in taken or any(
            part in column.lower() for part in (*_NOT_A_SUBGROUP, *_GROUP_NAMES, "split", "fold")
        ):
            continue
        counts = rows[column].dropna().astype(str).value_counts()
        if 2 <= len(counts) <= 12 and counts.iloc[1] >= 5:
            found.append(column)
    return tuple(found[:6])
