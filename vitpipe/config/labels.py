"""Where labels come from: one model a kind."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

from pydantic import ConfigDict, Field, JsonValue, SerializerFunctionWrapHandler, model_serializer, model_validator

from vitpipe.config.base import Recipe

_SINCE_FIRST: Final = ("per", "tile_class", "priority")
"""Keys of drawn labels that came later: left out of dumps at their default, so that labels from before keep their
digest."""

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
    aoi: str | None = Field(
        None,
        title="Area of interest",
        description="Vector file of polygons; of scenes, tiles whose centre lies outside them have no label.",
    )

    @model_serializer(mode="wrap")
    def _without_what_changes_nothing(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave the area out of dumps where there is none: it came later, and digests from before stay."""
        values: dict[str, Any] = dump(self)
        return {key: value for key, value in values.items() if key != "aoi" or value is not None}


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
    per: Literal["tile", "pixel"] = Field(
        "tile", title="Per", description="tile: a class a tile; pixel: what is drawn is learned pixel by pixel."
    )
    tile_class: Literal["majority", "centre"] = Field(
        "majority",
        title="Class of a tile",
        description="majority: what covers most of it; centre: what lies at its centre. Both over the least share.",
    )
    priority: tuple[str, ...] = Field(
        (),
        title="Priority",
        description="Where classes overlap the one listed first wins; those not listed come after, by their names.",
    )

    @model_serializer(mode="wrap")
    def _without_what_changes_nothing(self, dump: SerializerFunctionWrapHandler) -> dict[str, JsonValue]:
        values: dict[str, JsonValue] = dump(self)
        plain = {name: type(self).model_fields[name].default for name in _SINCE_FIRST}
        return {key: value for key, value in values.items() if key not in plain or getattr(self, key) != plain[key]}

    @model_validator(mode="after")
    def _one_class_a_pixel(self) -> Self:
        if self.per == "pixel" and self.multi_label:
            raise ValueError("with `per: pixel` a pixel is of one class: remove multi_label, or set `per: tile`")
        if self.tile_class == "centre" and (self.multi_label or self.per == "pixel"):
            raise ValueError("`tile_class: centre` gives a tile one class: remove multi_label, and set `per: tile`")
        return self


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


class RasterLabels(RegionLabelRecipe):
    """GeoTIFF rasters of classes or values, warped to the grid of the scenes that they overlap."""

    model_config = ConfigDict(title="Label raster")
    kind: Literal["raster"] = "raster"
    path: str = Field(title="Path", description="A GeoTIFF, or a folder of them.", min_length=1)
    per: Literal["tile", "pixel"] = Field(
        "pixel", title="Per", description="pixel: learned pixel by pixel; tile: a class a tile."
    )
    background: str | None = Field(
        None, title="Background", description="Class of tiles that no other covers; empty: they have no label."
    )
    values: Literal["classes", "continuous"] = Field(
        "classes", title="Values", description="classes, or a continuous value a pixel (regression)."
    )
    classes: dict[int, str] = Field(
        {},
        title="Classes",
        description="Value to class. Empty: the names that come with the raster, or else the values themselves.",
    )
    ignore: tuple[int, ...] = Field((), title="Ignored values", description="Such as 0 for unlabelled; nodata always.")
    band: int = Field(1, ge=1, title="Band", description="Counted from 1, as GDAL does.")
    units: str = Field("", title="Units", description="Of continuous values; those of the band if empty.")
    match: Literal["place", "name"] = Field(
        "place",
        title="Match",
        description="place: a raster belongs to the scenes that it overlaps; name: to the one of the same file name.",
    )
    suffix: str = Field(
        "", title="Suffix", description="match: name: what the raster's name has after the scene's, such as _label."
    )
    aoi: str | None = Field(
        None, title="Area of interest", description="Vector file of polygons; outside them nothing is labelled."
    )

    @model_validator(mode="after")
    def _values_fit(self) -> Self:
        if self.values == "continuous":
            if self.classes or self.multi_label or self.background is not None or self.priority:
                raise ValueError("`values: continuous` has no classes, multi_label, background or priority")
            if self.per != "pixel":
                raise ValueError("`values: continuous` is learned pixel by pixel: set `per: pixel`")
        elif self.units:
            raise ValueError("units are for `values: continuous`; classes have none")
        if self.per == "pixel" and self.background is not None:
            raise ValueError(
                "with `per: pixel` the raster itself says what is background: name its value in `labels.classes`"
            )
        if self.suffix and self.match != "name":
            raise ValueError("suffix is for `match: name`")
        if both := sorted(set(self.classes) & set(self.ignore)):
            raise ValueError(f"value {both[0]} stands in classes and in ignore")
        if self.priority:
            raise ValueError("priority is for labels that overlap; of rasters the first by its path wins")
        return self


class VectorLabels(RegionLabelRecipe):
    """Polygons, lines and points of GeoJSON, GeoPackage or Shapefile."""

    model_config = ConfigDict(title="Polygons and points")
    kind: Literal["vector"] = "vector"
    path: str = Field(title="Path", description="A GeoJSON, GPKG or SHP file, or a folder of them.", min_length=1)
    background: str | None = Field(
        None,
        title="Background",
        description="Class of ground that nothing is drawn on (with an area of interest: inside it); empty: no label.",
    )
    layer: str | None = Field(None, title="Layer", description="Of a GeoPackage; its only one if empty.")
    column: str = Field(title="Class column", description="Attribute that holds the class.", min_length=1)
    classes: dict[str, str] | None = Field(
        None, title="Classes", description="Value of the column to class; all by their own names if empty."
    )
    all_touched: bool = Field(
        False, title="All touched", description="Every pixel that is touched, not those whose centre lies inside."
    )
    buffer_m: float | None = Field(
        None, gt=0, title="Buffer (m)", description="Radius around points and lines; empty: the pixels they lie in."
    )
    aoi: str | None = Field(
        None, title="Area of interest", description="Vector file of polygons; outside them nothing is labelled."
    )


# The title is the tab of the form, beside "None".
LabelRecipe = Annotated[
    TableLabels | FolderLabels | DicomSegLabels | DicomRtstructLabels | RasterLabels | VectorLabels,
    Field(discriminator="kind", title="Labels"),
]
