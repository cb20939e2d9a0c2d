"""Where sources come from: one model a kind."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal, Self

from pydantic import ConfigDict, Field, JsonValue, SerializerFunctionWrapHandler, model_serializer, model_validator

from vitpipe.config.address import WITHOUT_SECRET, address_problem, is_address, service_problem
from vitpipe.config.base import Recipe
from vitpipe.config.scenes import SceneFiles, SceneSeries
from vitpipe.config.stac import StacQuery, stac_file_label

DataPath = Annotated[str, Field(title="Path", description="Folder (or one file) that holds the data.", min_length=1)]
RejectShare = Annotated[
    float,
    Field(ge=0, le=1, title="Largest share of rejects", description="The run stops when more sources are rejected."),
]


_SINCE_FIRST: Final[dict[str, JsonValue]] = {"geometry": "strict", "burned_in": "keep"}
"""Keys of DICOM sources that came later, with the value that means what was done before."""


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
    burned_in: Literal["keep", "reject"] = Field(
        "keep",
        title="Text in pixels",
        description="keep: what states that text is burned in is marked. reject: files whose headers make names in the "
        "pixels likely are left out; `vitpipe deidentify` masks what can be masked.",
    )

    @model_serializer(mode="wrap")
    def _without_what_changes_nothing(self, dump: SerializerFunctionWrapHandler) -> dict[str, JsonValue]:
        """Leave a key that came later out of every dump, thus of every digest, where it means what was done before."""
        values: dict[str, JsonValue] = dump(self)
        return {key: value for key, value in values.items() if key not in _SINCE_FIRST or value != _SINCE_FIRST[key]}


IDENTIFYING_KEYS: Final = ("PatientID", "AccessionNumber", "StudyInstanceUID")
"""Query keys that name a person: never in a pipeline file, only in the private one of ``VITPIPE_DICOMWEB_QUERY``."""


class DicomwebQuery(Recipe):
    """Which studies and series to ask for, by DICOM's keywords. None of these keys names a person."""

    model_config = ConfigDict(title="Query", coerce_numbers_to_str=True)
    StudyDate: str | None = Field(
        None,
        title="Study date",
        description="A day or a range, such as 20190101-20191231 or 20190101-.",
        pattern=r"^(\d{8}(-(\d{8})?)?|-\d{8})$",
    )
    ModalitiesInStudy: str | None = Field(
        None, title="Modalities in study", description="Studies that have a series of it, such as CT."
    )
    Modality: str | None = Field(None, title="Modality", description="Series of this modality alone, such as CT.")
    BodyPartExamined: str | None = Field(None, title="Body part", description="Series that state it, such as CHEST.")

    @model_validator(mode="before")
    @classmethod
    def _names_no_person(cls, values: object) -> object:
        found = [key for key in IDENTIFYING_KEYS if isinstance(values, dict) and key in values]
        if found:
            raise ValueError(
                f"{found[0]} names a person and does not belong into a pipeline file; write it into a private JSON file"
                f' such as {{"{found[0]}": ["..."]}}, and name that file in VITPIPE_DICOMWEB_QUERY'
            )
        return values


class DicomwebSource(DicomSource):
    """Studies of a DICOMweb server (QIDO-RS, WADO-RS): fetched into a folder, then read as DICOM files.

    Who asks stands in the environment: VITPIPE_DICOMWEB_TOKEN, or VITPIPE_DICOMWEB_USER and VITPIPE_DICOMWEB_PASSWORD.
    """

    model_config = ConfigDict(title="DICOMweb")
    # The tag of the union: no code takes this kind for the other one.
    kind: Literal["dicomweb"] = "dicomweb"  # type: ignore[assignment]
    path: str = Field(
        "", title="Folder", description="Where fetched studies are kept; `studies` in the workspace when empty."
    )
    url: str = Field(
        title="URL",
        description="Root of the service, such as https://pacs.example.org/dicom-web.",
        json_schema_extra=WITHOUT_SECRET,
    )
    query: DicomwebQuery = DicomwebQuery()
    connections: int = Field(4, ge=1, le=32, title="Connections", description="Studies that are fetched side by side.")
    page_size: int = Field(200, ge=1, le=5000, title="Page size", description="Entries asked for in one query.")
    plain_http: bool = Field(
        False, title="Allow plain HTTP", description="Images and credentials travel unencrypted to another machine."
    )

    # Not the field's own validator: its error would repeat the address, and a wrong one may hold a password.
    @model_validator(mode="after")
    def _has_a_plain_address(self) -> Self:
        problem = service_problem(
            self.url,
            plain_http=self.plain_http,
            example="https://pacs.example.org/dicom-web",
            secrets="VITPIPE_DICOMWEB_TOKEN, or VITPIPE_DICOMWEB_USER and VITPIPE_DICOMWEB_PASSWORD",
        )
        if problem:
            raise ValueError(f"`url` {problem}")
        return self

    def fetched(self, folder: str) -> DicomSource:
        """Give the fetched studies as the plain DICOM source that they are.

        Args:
            folder: where they lie if `path` names no folder.
        """
        options = self.model_dump(include=set(DicomSource.model_fields) - {"kind", "path"})
        return DicomSource.model_validate({**options, "path": self.path or folder})


_SCENE_KEYS_SINCE_FIRST: Final[dict[str, JsonValue]] = {
    "plain_http": False,
    "grid": None,
    "clouds": "keep",
    "scenes": None,
    "series": None,
    "verify": False,
    "sign": None,
    "jpeg2000": False,
}
"""Keys of scenes that came later, with the value that means what was done before."""


class GeotiffSource(Recipe):
    """Scenes: GeoTIFF files, Sentinel-2 SAFE folders, Landsat Collection 2 band files."""

    model_config = ConfigDict(title="GeoTIFF")
    kind: Literal["geotiff"] = "geotiff"
    path: Annotated[
        str,
        Field(
            title="Path",
            description="Folder or file of scenes; or an address (https://host/x.tif, s3://bucket/x.tif), a folder "
            "of S3 (s3://bucket/folder/), or a list of them (.txt, .csv), which are read where they lie.",
            min_length=1,
            json_schema_extra=WITHOUT_SECRET,
        ),
    ]
    max_reject_share: RejectShare = 0.2
    bands: tuple[str, ...] | None = Field(
        None,
        title="Bands",
        description="Names of the bands to use, in this order: B04, red, b1 for the first unnamed, or a wavelength "
        "such as 865nm (the nearest band that covers it). All when empty; of products their reflectance bands.",
    )
    grid: str | None = Field(
        None,
        title="Grid",
        description="The band onto whose grid others are brought, of scenes with several resolutions; the finest when "
        "empty. Coarser bands are repeated pixel by pixel, finer ones averaged.",
    )
    clouds: Literal["keep", "drop"] = Field(
        "keep",
        title="Clouds",
        description="drop: pixels that Sentinel-2's SCL or Landsat's QA_PIXEL calls cloud, cirrus or cloud shadow are "
        "not valid; of a STAC item that asset is fetched, too.",
    )
    scenes: SceneFiles | None = Field(
        None, title="Scene files", description="How band files are named, in folders of one-band GeoTIFFs."
    )
    series: SceneSeries | None = Field(
        None, title="Series", description="Stacks scenes of one place at several dates into one source."
    )
    units: str = Field("dn", title="Units", description="What the pixel values mean: reflectance, dn, m, ...")
    verify: bool = Field(
        False,
        title="Verify",
        description="Verifies the checksum of every deflate block when a file is first looked at: its pixels are "
        "inflated (and, from afar, sent) once more, but no changed byte of them goes unseen.",
    )
    block_m: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        10_000.0,
        title="Ground block (m)",
        description="Edge of the ground blocks that never straddle splits; auto: as far as labels resemble each other, "
        "chosen once for a workspace.",
    )
    plain_http: bool = Field(
        False, title="Allow plain HTTP", description="Scenes and tokens travel unencrypted to another machine."
    )

    @property
    def grouping_m(self) -> float:
        """The size by which a reader groups tiles; with ``auto`` they are grouped anew once labels are known."""
        return 10_000.0 if self.block_m == "auto" else self.block_m

    @model_validator(mode="after")
    def _may_be_read_where_it_lies(self) -> Self:
        problem = address_problem(self.path, plain_http=self.plain_http) if is_address(self.path) else ""
        if problem:
            raise ValueError(f"`path`: {problem}")
        if self.bands and len(set(self.bands)) < len(self.bands):
            raise ValueError(f"`bands` names a band twice: {', '.join(self.bands)}")
        return self

    @model_serializer(mode="wrap")
    def _without_what_changes_nothing(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave a key that came later out of every dump, thus of every digest, where it means what was done before."""
        values: dict[str, Any] = dump(self)
        plain = _SCENE_KEYS_SINCE_FIRST
        return {key: value for key, value in values.items() if key not in plain or value != plain[key]}


class StacSource(GeotiffSource):
    """Scenes of a STAC catalog, file or API: fetched into a folder, then read as GeoTIFF scenes.

    Who asks stands in the environment: VITPIPE_STAC_TOKEN, or headers in the file named by VITPIPE_STAC_HEADERS.
    """

    model_config = ConfigDict(title="STAC")
    # The tag of the union: no code takes this kind for the other one.
    kind: Literal["stac"] = "stac"  # type: ignore[assignment]
    path: str = Field(
        "", title="Folder", description="Where fetched scenes are kept; `scenes` in the workspace when empty."
    )
    url: str = Field(
        title="Catalog",
        description="A catalog, collection, item or API: an address such as https://stac.example.org/v1, or a file.",
        min_length=1,
        json_schema_extra=WITHOUT_SECRET,
    )
    query: StacQuery = StacQuery()
    assets: tuple[str, ...] = Field(
        (),
        title="Assets",
        description="Files to fetch of each item: keys of assets, or names of bands (B04, red). May be empty where an "
        "item has one GeoTIFF of data. Several become one scene, a band a file.",
    )
    scaling: Literal["item", "none"] = Field(
        "item",
        title="Scale and offset",
        description="item: what the item states of scale and offset holds where the file states none. none: it is "
        "passed over, where a catalog is known to be wrong.",
    )
    jpeg2000: bool = Field(
        False,
        title="JPEG 2000",
        description="Takes assets that are JPEG 2000 files, too; a band that there is as a GeoTIFF is taken from that.",
    )
    sign: str | None = Field(
        None,
        title="Signing service",
        description="Gives short-lived signatures that assets are fetched with, such as "
        "https://planetarycomputer.microsoft.com/api/sas/v1/token (one for each Azure container); one that ends with "
        "/sign is asked for each address. None when empty.",
        json_schema_extra=WITHOUT_SECRET,
    )
    max_items: int = Field(1000, ge=1, title="Most items", description="No more than the first so many are taken.")
    page_size: int = Field(100, ge=1, le=10_000, title="Page size", description="Items asked for in one query.")
    connections: int = Field(4, ge=1, le=32, title="Connections", description="Files that are fetched side by side.")

    @model_validator(mode="after")
    def _names_each_asset_once(self) -> Self:
        if len({stac_file_label(name) for name in self.assets}) < len(self.assets):
            raise ValueError(
                f"`assets` names a file twice, or two by names that differ in marks alone: {', '.join(self.assets)}"
            )
        return self

    # Not the field's own validator: its error would repeat the address, and a signed one holds a secret.
    @model_validator(mode="after")
    def _has_a_plain_address(self) -> Self:
        for key, url in (("url", self.url), ("sign", self.sign)):
            # A catalog may be a file, too.
            if url is None or (key == "url" and "://" not in url):
                continue
            problem = service_problem(
                url,
                plain_http=self.plain_http,
                example="https://stac.example.org/v1",
                secrets="VITPIPE_STAC_TOKEN or VITPIPE_STAC_HEADERS",
            )
            if problem:
                raise ValueError(f"`{key}` {problem}")
        return self

    def fetched(self, folder: str) -> GeotiffSource:
        """Give the fetched scenes as the plain GeoTIFF source that they are.

        Args:
            folder: where they lie if `path` names no folder.
        """
        options = self.model_dump(mode="json", include=set(GeotiffSource.model_fields) - {"kind", "path"})
        if self.scenes is None and len(self.assets) > 1:
            bands = "|".join(re.escape(stac_file_label(name)) for name in self.assets)
            # The folder says where the scene's name ends: B10 is the end of ST_B10, too.
            ending = "(?:tif|jp2)" if self.jpeg2000 else "tif"
            options["scenes"] = {"pattern": rf"^(?P<scene>[^/]+)/(?P=scene)_(?P<band>{bands})\.{ending}$"}
        return GeotiffSource.model_validate({**options, "path": self.path or folder})


class ImagesSource(Recipe):
    """A tree of JPEG, PNG or TIFF photographs."""

    model_config = ConfigDict(title="Images")
    kind: Literal["images"] = "images"
    path: DataPath
    max_reject_share: RejectShare = 0.2


SourceRecipe = Annotated[
    DicomSource | DicomwebSource | GeotiffSource | StacSource | ImagesSource, Field(discriminator="kind")
]
