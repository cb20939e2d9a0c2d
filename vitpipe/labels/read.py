"""Reading a label table: CSV or Parquet, every cell as text, nothing guessed away."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from vitpipe.errors import ConfigError, LabelError

_PARQUET = {".parquet", ".pq"}
_CSV = {".csv", ".tsv", ".txt"}
_SEPARATORS = (",", ";", "\t")
_MISSING = {"", "nan"}
_NEEDED = "it needs a header line and a row for each labelled thing"
_LOOKS_MISSING = ("NA", "N/A", "n/a", "null", "NULL", "None", "none", "<NA>", "-")


def read_table(path: Path) -> pd.DataFrame:
    """Read a CSV (comma, semicolon or tab; UTF-8) or Parquet file.

    Returns:
        CSV: text columns, "" where a cell is empty. Parquet: as typed there.

    Raises:
        ConfigError: there is no such file.
        LabelError: it cannot be read as what its name says.
    """
    if not path.is_file():
        raise ConfigError(f"no label table at {path}; check `labels.path` (it is relative to the pipeline file)")
    suffix = path.suffix.lower()
    if suffix not in _PARQUET | _CSV:
        raise LabelError(f"{path}: label tables are .csv, .tsv or .parquet files, not `{suffix}`; convert the table")
    try:
        table = pd.read_parquet(path) if suffix in _PARQUET else _read_csv(path)
    except UnicodeDecodeError as error:
        raise LabelError(
            f"{path} is not UTF-8 ({error.reason} at byte {error.start}); save the table as UTF-8"
        ) from error
    except pd.errors.EmptyDataError as error:
        raise LabelError(f"{path} is empty; {_NEEDED}") from error
    except (pd.errors.ParserError, OSError, ValueError) as error:
        said = " ".join(str(error).split()).removeprefix("Error tokenizing data. C error: ")
        raise LabelError(f"{path} cannot be read as a table ({said}); correct it, or save it anew") from error
    table.columns = pd.Index([str(name).strip() for name in table.columns])
    if table.empty:
        raise LabelError(f"{path} has no rows; {_NEEDED}")
    return table.reset_index(drop=True)


def _read_csv(path: Path) -> pd.DataFrame:
    with path.open(encoding="utf-8-sig") as stream:
        header = stream.readline()
    separator = max(_SEPARATORS, key=header.count)
    return pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, na_filter=False, encoding="utf-8-sig")


def need_columns(table: pd.DataFrame, names: Sequence[str], path: Path, option: str) -> None:
    """Check that columns are there.

    Args:
        table: as read.
        names: what the recipe names.
        path: of the table, for the error.
        option: the key of the configuration that names them, for the error.

    Raises:
        LabelError: one is not; lists the columns there are and the nearest.
    """
    columns = table.columns.tolist()
    for name in names:
        if name not in columns:
            folded = {column.lower(): column for column in columns}
            near = difflib.get_close_matches(name.lower(), list(folded), n=1)
            guess = f"; did you mean `{folded[near[0]]}`?" if near else "."
            raise LabelError(
                f"{path} has no column `{name}`{guess} It has: {', '.join(columns)}. Set `{option}` to one of them"
            )
        if columns.count(name) > 1:
            raise LabelError(f"{path} has {columns.count(name)} columns named `{name}`; rename all but one")


def as_text(column: pd.Series) -> pd.Series:
    """Give a column as stripped text, "" where a value is missing (empty or NaN).

    Whole numbers that a table program wrote as ``1.0`` are ``1`` again where the whole column is numbers; leading
    zeros stay.
    """
    if pd.api.types.is_float_dtype(column.dtype) and not (column.dropna() % 1).any():
        column = column.astype("Int64")
    text = column.astype("object").where(column.notna(), "").astype("str").str.strip()
    text = text.mask(text.str.lower().isin(_MISSING), "")
    given = text[text != ""]
    if len(given) and given.str.endswith(".0").any() and given.str.fullmatch(r"[+-]?\d+(\.0)?").all():
        text = text.str.removesuffix(".0")
    return text


def as_attribute(column: pd.Series) -> pd.Series:
    """Give an attribute column: numbers stay numbers (NaN where missing), anything else is text (None where missing).

    Codes with leading zeros are text.
    """
    if pd.api.types.is_bool_dtype(column.dtype):
        return column.astype("str")
    text = as_text(column)
    given = text[text != ""]
    numbers = pd.to_numeric(given, errors="coerce")
    if len(given) and numbers.notna().all() and not given.str.match(r"[+-]?0\d").any():
        return numbers.astype("float64").reindex(text.index)
    return text.astype("object").where(text != "", None)


def looks_missing(labels: pd.Series) -> list[str]:
    """Name values that may be meant as `no label` but are taken as classes."""
    return [name for name in _LOOKS_MISSING if (labels == name).any()]
