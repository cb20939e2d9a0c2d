"""Where sources come from: one model a kind."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from vitpipe.config.base import Recipe

DataPath = Annotated[str, Field(title="Path", description="Folder (or one file) that holds the data.", min_length=1)]
RejectShare = Annotated[
    float,
    Field(ge=0, le=1, title="Largest share of rejects", description="The run stops when more sources are rejected."),
]


class DicomSource(Recipe):
    """A tree of DICOM files; names and extensions do not matter."""

    model_config = ConfigDict(title="DICOM")
    kind: Literal["dicom"] = "dicom"
    path: DataPath
    max_reject_share: RejectShare = 0.2
    modality: str | None = Field(None, title="Modality", description="Keep this modality alone, such as CT.")
    geometry: Literal["strict", "repair"] = Field(
        "strict",
        title="Geometry",
        description="strict: what is odd about positions is told by code. repair: copies are dropped, tilt and unequal "
        "steps resampled away, and each repair is reported.",
    )


class GeotiffSource(Recipe):
    """GeoTIFF scenes."""

    model_config = ConfigDict(title="GeoTIFF")
    kind: Literal["geotiff"] = "geotiff"
    path: DataPath
    max_reject_share: RejectShare = 0.2
    bands: tuple[str, ...] | None = Field(
        None,
        title="Bands",
        description="Names of the bands to use, in this order (B04, or b1 for the first unnamed). All when empty.",
    )
    units: str = Field("dn", title="Units", description="What the pixel values mean: reflectance, dn, m, ...")
    block_m: float = Field(
        10_000.0, gt=0, title="Ground block (m)", description="Edge of the ground blocks that never straddle splits."
    )


class ImagesSource(Recipe):
    """A tree of JPEG, PNG or TIFF photographs."""

    model_config = ConfigDict(title="Images")
    kind: Literal["images"] = "images"
    path: DataPath
    max_reject_share: RejectShare = 0.2


SourceRecipe = Annotated[DicomSource | GeotiffSource | ImagesSource, Field(discriminator="kind")]
