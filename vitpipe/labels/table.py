"""Labels from a table: a row a labelled thing, matched to sources by path, scene, patient, study, series or instance.

Keys that could identify a patient are turned into pseudonyms before they are matched, and never stand in a note, an
error or a file: such rows are named by their number (1 is the first below the header).
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from vitpipe.config import TableLabels
from vitpipe.errors import LabelError
from vitpipe.labels.base import (
    ATTRIBUTE_PREFIX,
    CLASS_SEPARATOR,
    EXAMPLES,
    LabelSet,
    frame_keys,
    make_label_set,
    unique_labels,
)
from vitpipe.labels.read import as_attribute, as_text, looks_missing, need_columns, read_table
from vitpipe.pseudonym import Pseudonymiser
from vitpipe.records import Source

_PLAIN_KINDS = ("path", "scene")
_TRUTH = {"1": True, "0": False, "true": True, "false": False}


def read_table_labels(recipe: TableLabels, sources: Sequence[Source], pseudonym: Pseudonymiser) -> LabelSet:
    """Read a label table and match it to the sources.

    Args:
        recipe: names the table and its columns; its path is absolute.
        sources: the catalog.
        pseudonym: maps patients, studies, series, instances and groups as the domains do.

    Raises:
        ConfigError: the table is not there.
        LabelError: a column is absent, a key has two labels, no key names a source, a multi-label cell is not 0 or 1,
            or there is one class only.
    """
    path = Path(recipe.path)
    table = read_table(path)
    key_column = recipe.key_column or recipe.key
    need_columns(table, [key_column], path, "labels.key_column")
    names = [recipe.column] if isinstance(recipe.column, str) else list(recipe.column)
    need_columns(table, names, path, "labels.column")
    need_columns(table, [recipe.group] if recipe.group else [], path, "labels.group")
    need_columns(table, recipe.attributes, path, "labels.attributes")

    rows = pd.DataFrame({"row": range(1, len(table) + 1), "key": as_text(table[key_column])})
    # As written, for the sentences; the key itself is normalised or turned into a pseudonym.
    rows["shown"] = rows["key"] if recipe.key in _PLAIN_KINDS else "row " + rows["row"].astype("str")
    rows["label"] = _labels(table, recipe, path)
    rows["group_id"] = _groups(table, recipe, pseudonym)
    for name in recipe.attributes:
        rows[ATTRIBUTE_PREFIX + name] = as_attribute(table[name])
    notes = _missing_notes(rows, recipe)
    rows = rows[rows["label"].notna() & (rows["key"] != "")]
    if rows.empty:
        raise LabelError(f"{path}: no row has both a key (`{key_column}`) and a label ({', '.join(names)})")

    keys = _source_keys(recipe, sources)
    if recipe.key == "path":
        rows, keys = _match_paths(rows, keys, sources, path.parent)
    elif recipe.key not in _PLAIN_KINDS:
        rows["key"] = _pseudonyms(rows["key"], recipe.key, pseudonym)
    rows = _one_row_a_key(rows, recipe, path)
    matched = keys.merge(rows, on="key", how="inner")
    if matched.empty:
        raise _no_match(rows, keys, recipe, path)
    notes += _orphan_notes(rows, keys, recipe)
    kept = unique_labels(matched.drop(columns=["key", "row", "shown"]), f"{path}: rows with different keys")
    multi_label = not isinstance(recipe.column, str)
    classes = names if multi_label else kept["label"].unique().tolist()
    if multi_label and (absent := _never_positive(kept["label"], names)):
        notes.append(f"no labelled source is positive for: {', '.join(absent)}")
    origin = f"{path}, column {', '.join(f'`{name}`' for name in names)}"
    return make_label_set(kept, classes, sources, notes, multi_label=multi_label, origin=origin)


# ------------------------------------------------------------------------------------------------- values of the table


def _labels(table: pd.DataFrame, recipe: TableLabels, path: Path) -> pd.Series:
    """Give a label a row; None where it is unlabelled."""
    if isinstance(recipe.column, str):
        text = as_text(table[recipe.column])
        return text.astype("object").where(text != "", None)
    names = sorted(recipe.column)
    if len(names) != len(set(names)):
        raise LabelError(f"`labels.column` names a column twice: {', '.join(names)}")
    if len(names) < 2:
        raise LabelError(
            f"`labels.column` lists one column only ({', '.join(names)}); for one column of classes (0 and 1 too) "
            f"write `column: {names[0] if names else 'NAME'}`"
        )
    joined = pd.Series("", index=table.index, dtype="object")
    missing = pd.Series(data=False, index=table.index)
    for name in names:
        text = as_text(table[name]).str.lower()
        empty = text == ""
        wrong = ~empty & ~text.isin(list(_TRUTH))
        if wrong.any():
            row = int(wrong.to_numpy().argmax())
            raise LabelError(
                f"{path}: row {row + 1}, column `{name}` holds {str(table[name].iloc[row])!r}; a multi-label column "
                "holds 0, 1 or nothing (for a column of class names write `column: NAME`, without a list)"
            )
        positive = text.map(_TRUTH).fillna(value=False).astype(bool)
        joined = joined.mask(positive, joined + CLASS_SEPARATOR + name)
        missing |= empty
    return joined.str.removeprefix(CLASS_SEPARATOR).astype("object").mask(missing, None)


def _never_positive(labels: pd.Series, names: Sequence[str]) -> list[str]:
    seen = {name for label in labels.unique() for name in label.split(CLASS_SEPARATOR)}
    return sorted(set(names) - seen)


def _groups(table: pd.DataFrame, recipe: TableLabels, pseudonym: Pseudonymiser) -> pd.Series:
    if recipe.group is None:
        return pd.Series("", index=table.index, dtype="str")
    return _pseudonyms(as_text(table[recipe.group]), "group", pseudonym)


def _pseudonyms(values: pd.Series, kind: str, pseudonym: Pseudonymiser) -> pd.Series:
    """Map each distinct value once; "" stays ""."""
    codes, distinct = pd.factorize(values)
    names = pd.Series([pseudonym(kind, value) if value else "" for value in distinct], dtype="str")
    return pd.Series(names.to_numpy()[codes], index=values.index, dtype="str")


def _missing_notes(rows: pd.DataFrame, recipe: TableLabels) -> list[str]:
    notes = []
    if empty := int(rows["label"].isna().sum()):
        notes.append(f"{empty} row(s) of the label table have no label")
    if keyless := int((rows["key"] == "").sum()):
        notes.append(f"{keyless} row(s) of the label table have no key")
    if isinstance(recipe.column, str) and (doubtful := looks_missing(rows["label"])):
        notes.append(f"taken as classes: {', '.join(doubtful)}; leave the cell empty where there is no label")
    if recipe.group is not None and (without := int(((rows["group_id"] == "") & rows["label"].notna()).sum())):
        notes.append(
            f"{without} labelled row(s) have no value in the group column; there the group of the source holds"
        )
    return notes


def _one_row_a_key(rows: pd.DataFrame, recipe: TableLabels, path: Path) -> pd.DataFrame:
    """Leave one row a key, the first; two labels or groups of one key are an error."""
    for column, name in (("label", "labels"), ("group_id", "groups")):
        pairs = rows.drop_duplicates(["key", column])
        torn = pairs.loc[pairs["key"].duplicated(keep=False)]
        if len(torn):
            first = torn.iloc[0]
            other = torn.loc[torn["key"] == first["key"], "row"].iloc[1]
            shown = f" (`{first['shown']}`)" if recipe.key in _PLAIN_KINDS else ""
            raise LabelError(
                f"{path}: {torn['key'].nunique()} key(s) have different {name} in different rows, first rows "
                f"{first['row']} and {other}{shown}; leave one {name.removesuffix('s')} a key, or set `labels.key` to "
                "what tells the rows apart"
            )
    return rows.drop_duplicates("key")


# ------------------------------------------------------------------------------------------------------------- matching


def _source_keys(recipe: TableLabels, sources: Sequence[Source]) -> pd.DataFrame:
    keys = frame_keys(sources, lambda source: source.keys.get(recipe.key, ()))
    if keys.empty:
        known = sorted({kind for source in sources for kind in source.keys})
        raise LabelError(
            f"the sources have no key of kind `{recipe.key}`; set `labels.key` to one of: {', '.join(known) or 'none'}"
        )
    return keys


def _normalise(paths: pd.Series) -> pd.Series:
    """Forward slashes, no ``./``, no ``//``, no ``..`` that can be resolved."""
    plain = paths.str.replace("\\", "/", regex=False)
    odd = plain.str.contains(r"(?:^|/)\.{0,2}/|/\.{0,2}$", regex=True)
    if odd.any():
        return plain.where(~odd, plain[odd].map(posixpath.normpath).reindex(plain.index))
    return plain


def _match_paths(
    rows: pd.DataFrame, keys: pd.DataFrame, sources: Sequence[Source], folder: Path
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read the paths of the table as relative to the data, or to the table's folder: whichever names more sources.

    Never a mixture: one path could then name two files.
    """
    rows = rows.assign(key=_normalise(rows["key"]))
    relative = keys.assign(key=_normalise(keys["key"]))
    base = folder.as_posix()
    absolute_rows = rows.assign(
        key=_normalise(rows["key"].where(rows["key"].str.startswith("/"), base + "/" + rows["key"]))
    )
    absolute = frame_keys(sources, lambda source: source.files)
    if absolute_rows["key"].isin(absolute["key"]).sum() > rows["key"].isin(relative["key"]).sum():
        return absolute_rows, absolute
    return rows, relative


def _orphan_notes(rows: pd.DataFrame, keys: pd.DataFrame, recipe: TableLabels) -> list[str]:
    notes = []
    orphans = rows[~rows["key"].isin(keys["key"])]
    if len(orphans):
        # By their rows: notes go to Prefect and into reports, and a file's name may be a patient's.
        shown = ", ".join(f"row {row}" for row in orphans["row"].head(EXAMPLES))
        notes.append(f"{len(orphans)} label(s) name no source (not there, rejected, or a duplicate), such as {shown}")
    if recipe.key == "scene":
        named = keys[keys["key"].isin(rows["key"])].drop_duplicates(["key", "source_id"])
        if shared := int(named["key"].duplicated().sum()):
            notes.append(f"{shared} more source(s) share a scene name with another one and get the same label")
    return notes


def _no_match(rows: pd.DataFrame, keys: pd.DataFrame, recipe: TableLabels, path: Path) -> LabelError:
    counts = f"{path}: none of its {len(rows)} labelled key(s) names one of the {keys['source_id'].nunique()} source(s)"
    if recipe.key not in _PLAIN_KINDS:
        return LabelError(
            f"{counts}; check that `labels.key: {recipe.key}` is what the key column holds, as written in the DICOM "
            "header (leading zeros too)"
        )
    shown = f"the table has `{rows['shown'].iloc[0]}`, the sources have `{keys['key'].iloc[0]}`"
    return LabelError(f"{counts}: {shown}; {_path_remedy(rows['key'], keys['key'], recipe)}")


def _path_remedy(table: pd.Series, sources: pd.Series, recipe: TableLabels) -> str:
    if recipe.key == "scene":
        return "a scene is the file's name without its extension; or set `labels.key: path`"
    last = table.str.rsplit("/", n=1).str[-1]
    have = sources.str.rsplit("/", n=1).str[-1]
    if last.isin(have).any():
        return (
            "the file names agree but the folders do not: write paths relative to `source.path` or to the folder of "
            "the table"
        )
    stems = have.str.replace(r"\.[^.]*$", "", regex=True)
    if last.isin(stems).any():
        return "the table has names without extension: set `labels.key: scene`, or add the extension"
    return "set `labels.key_column` to the column that holds the paths, and `labels.key` to what it names"
