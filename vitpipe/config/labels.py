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


class RegionLabelRecipe(Recipe):
    """What kinds of drawn labels share: how the parts of a tile become its class."""

    path: str = Field(title="Path", description="Folder (or one file) of the label objects.", min_length=1)
    min_share: float = Field(
        0.5, gt=0, le=1, title="Least share", description="Of a tile's valid pixels that a class must cover."
    )
    background: str | None = Field(
        "background", title="Background", description="Class of tiles that no other covers; empty: they have no label."
    )
    multi_label: bool = Field(
        False, title="Multi-label", description="A tile is of every class over the least share, not of the largest."
    )


class DicomSegLabels(RegionLabelRecipe):
    """DICOM segmentations (SEG), mapped onto the images by their position in the patient."""

    model_config = ConfigDict(title="DICOM SEG")
    kind: Literal["dicom_seg"] = "dicom_seg"
    name: Literal["label", "code"] = Field(
        "label", title="Name", description="A segment is named by its label, or by the meaning of its coded type."
    )
    segments: dict[str, str] | None = Field(
        None, title="Segments", description="Name of a segment to class; all by their own names if empty."
    )
    threshold: float = Field(
        0.5, gt=0, le=1, title="Threshold", description="Least value of a fractional segmentation, of 1."
    )


class DicomRtstructLabels(RegionLabelRecipe):
    """Contours of DICOM structure sets (RTSTRUCT), drawn on the images by their position in the patient."""

    model_config = ConfigDict(title="DICOM RTSTRUCT")
    kind: Literal["dicom_rtstruct"] = "dicom_rtstruct"
    rois: dict[str, str] | None = Field(
        None, title="ROIs", description="Name of a ROI to class; all by their own names if empty."
    )


# The title is the tab of the form, beside "None".
LabelRecipe = Annotated[
    TableLabels | FolderLabels | DicomSegLabels | DicomRtstructLabels, Field(discriminator="kind", title="Labels")
]
