"""Where sources come from: one model a kind."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, JsonValue, SerializerFunctionWrapHandler, model_serializer, model_validator

from vitpipe.config.base import Recipe

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
    url: str = Field(title="URL", description="Root of the service, such as https://pacs.example.org/dicom-web.")
    query: DicomwebQuery = DicomwebQuery()
    connections: int = Field(4, ge=1, le=32, title="Connections", description="Studies that are fetched side by side.")
    page_size: int = Field(200, ge=1, le=5000, title="Page size", description="Entries asked for in one query.")
    plain_http: bool = Field(
        False, title="Allow plain HTTP", description="Images and credentials travel unencrypted to another machine."
    )

    # Not the field's own validator: its error would repeat the address, and a wrong one may hold a password.
    @model_validator(mode="after")
    def _has_a_plain_address(self) -> Self:
        try:
            parts = urlsplit(self.url)
            host, _ = parts.hostname, parts.port
        except ValueError:
            raise ValueError("`url` is no address; write one such as https://pacs.example.org/dicom-web") from None
        if "@" in parts.netloc:
            raise ValueError(
                "`url` holds credentials; take them out and set VITPIPE_DICOMWEB_USER and VITPIPE_DICOMWEB_PASSWORD"
            )
        if parts.scheme not in ("http", "https") or not host:
            raise ValueError("`url` must be an address such as https://pacs.example.org/dicom-web")
        if parts.query or parts.fragment:
            raise ValueError("`url` must end with the path of the service; what to ask for stands in `source.query`")
        if parts.scheme == "http" and not self.plain_http and not _is_this_machine(host):
            raise ValueError(
                "`url` is plain http to another machine, so images could be read on the way; use https, or set"
                " `plain_http: true` where the network is trusted"
            )
        return self

    def fetched(self, folder: str) -> DicomSource:
        """Give the fetched studies as the plain DICOM source that they are.

        Args:
            folder: where they lie if `path` names no folder.
        """
        options = self.model_dump(include=set(DicomSource.model_fields) - {"kind", "path"})
        return DicomSource.model_validate({**options, "path": self.path or folder})


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


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
    block_m: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        10_000.0,
        title="Ground block (m)",
        description="Edge of the ground blocks that never straddle splits; auto: as far as labels resemble each other, "
        "chosen once for a workspace.",
    )

    @property
    def grouping_m(self) -> float:
        """The size by which a reader groups tiles; with ``auto`` they are grouped anew once labels are known."""
        return 10_000.0 if self.block_m == "auto" else self.block_m


class ImagesSource(Recipe):
    """A tree of JPEG, PNG or TIFF photographs."""

    model_config = ConfigDict(title="Images")
    kind: Literal["images"] = "images"
    path: DataPath
    max_reject_share: RejectShare = 0.2


SourceRecipe = Annotated[DicomSource | DicomwebSource | GeotiffSource | ImagesSource, Field(discriminator="kind")]
