"""Where labels come from: one model a kind."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from vitpipe.config.base import Recipe

KeyKind = Literal["path", "scene", "patient", "study_uid", "series_uid", "instance_uid"]


class TableLabels(Recipe):
    """A CSV or Parquet table, a row a labelled thing."""

    model_config = ConfigDict(title="Table")
    kind: Literal["table"] = "table"
    path: str = Field(title="Table", description="CSV or Parquet file.", min_length=1)
    key: KeyKind = Field("path", title="Key", description="What the key column names.")
    key_column: str | None = Field(
        None, title="Key column", description="Column of the key; named as the key if empty."
    )
    column: str | tuple[str, ...] = Field(
        title="Label column", description="One column of classes, or a list of 0/1 columns (multi-label)."
    )
    group: str | None = Field(None, title="Group column", description="Column of what must not straddle splits.")
    attributes: tuple[str, ...] = Field((), title="Attribute columns", description="Columns kept as subgroups.")


class FolderLabels(Recipe):
    """The name of a folder above the file is the class."""

    model_config = ConfigDict(title="Folder names")
    kind: Literal["folder"] = "folder"
    level: int = Field(
        1, ge=1, title="Level", description="1: the folder that holds the file, 2: the one above it, ..."
    )


# The title is the tab of the form, beside "None".
LabelRecipe = Annotated[TableLabels | FolderLabels, Field(discriminator="kind", title="Labels")]
