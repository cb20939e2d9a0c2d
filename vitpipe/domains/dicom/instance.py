"""One file as the index keeps it: pixels, geometry, what sets it apart in its series, and pseudonyms. No identifier."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from pydicom import Dataset

from vitpipe.domains.dicom.fields import acquired_year, attributes, children, number, numbers, text
from vitpipe.domains.dicom.files import DicomFile
from vitpipe.domains.dicom.functional import NO_KINDS, FrameKinds, read_frame_kinds
from vitpipe.domains.dicom.pixelformat import PixelFormat, read_format
from vitpipe.domains.dicom.pixels import check_decodable, check_length
from vitpipe.errors import UnreadableSource
from vitpipe.pseudonym import Pseudonymiser
from vitpipe.records import Attribute, Json

Vector = tuple[float, ...]

_UNIT_TOLERANCE: Final = 1e-2
# Segmentations and doses lie on the grid of an image and speak about it: labels and plans, never sources.
_NOT_IMAGES: Final = {
    "1.2.840.10008.5.1.4.1.1.66.4": "a segmentation",
    "1.2.840.10008.5.1.4.1.1.66.7": "a label map segmentation",
    "1.2.840.10008.5.1.4.1.1.481.2": "a dose grid",
    "1.2.840.10008.5.1.4.1.1.66.1": "a spatial registration",
}
# What a series may hold several stacks of (rule 1), told apart in any case.
_STACK_FIELDS: Final = (
    "EchoNumbers",
    "EchoTime",
    "InversionTime",
    "TemporalPositionIdentifier",
    "DiffusionBValue",
    "DiffusionGradientOrientation",
)
STACK_TIME: Final = _STACK_FIELDS.index("TemporalPositionIdentifier")
"""Place of the temporal position in `Instance.stack`."""
# Image types (value 3 and following) of pictures of a screen: a picture of an image, or of text, is no image.
_SCREENS: Final = frozenset({"SCREEN SAVE", "SCREEN_SAVE", "SCREENSAVE", "DOSE_INFO", "DOSE INFO", "DOSE REPORT"})
# And what tells them apart only where positions repeat: many machines count them up slice by slice.
_MOMENT_FIELDS: Final = ("AcquisitionNumber", "TriggerTime", "AcquisitionTime", "ContentTime")


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where the frames of one file lie, LPS millimetres."""

    positions: tuple[Vector, ...]
    """ImagePositionPatient, one a frame; empty where the file gives none."""
    orientations: tuple[Vector, ...]
    """ImageOrientationPatient, renormalised, one for all frames or one a frame; empty where there is none."""
    spacing_mm: Vector | None
    """Between rows, between columns; None where it is absent or differs between frames."""
    notes: tuple[str, ...]
    spacings: tuple[Vector, ...] = ()
    """One a frame where they differ."""


@dataclass(frozen=True, slots=True)
class Instance:
    """One indexed file."""

    patient: str | None
    """Pseudonym, as the four that follow; None where the file has no such identifier."""
    study_uid: str | None
    series_uid: str | None
    instance_uid: str | None
    frame_of_reference: str | None
    modality: str
    sop_class: str
    transfer_syntax: str
    pixels: PixelFormat
    geometry: Geometry
    image_type: tuple[str, ...]
    """Values 3 and following."""
    stack: tuple[str, ...]
    moments: tuple[str, ...]
    acquired_at: str | None
    attributes: Mapping[str, Attribute]
    notes: tuple[str, ...]
    frame_kinds: FrameKinds = NO_KINDS
    """What tells the frames of a multi-frame file apart."""

    def to_json(self) -> dict[str, Json]:
        """Give a JSON form that :meth:`from_json` reads back exactly."""
        value: dict[str, Json] = json.loads(json.dumps(dataclasses.asdict(self)))
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> Instance:
        """Read what :meth:`to_json` wrote."""
        fields: dict[str, Any] = {name: _tuples(item) for name, item in value.items()}
        fields["pixels"] = PixelFormat(**fields["pixels"])
        fields["geometry"] = Geometry(**fields["geometry"])
        fields["frame_kinds"] = FrameKinds(**fields.get("frame_kinds", {}))
        return cls(**fields)


def _tuples(value: object) -> object:
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, tuple | list) else value


def read_instance(item: DicomFile, pseudonym: Pseudonymiser) -> Instance:
    """Make the record of a file.

    Raises:
        UnreadableSource: ``NOT_AN_IMAGE``, ``LOCALIZER``, ``NO_PIXELS``, ``PIXELS_MISSING``, ``TRUNCATED``,
            ``UNDECODABLE``, ``UNSUPPORTED`` or ``MALFORMED_HEADER``.
    """
    dataset = item.dataset
    sop_class = text(dataset, "SOPClassUID") or ""
    image_type = tuple((text(dataset, "ImageType") or "").upper().split("/"))
    if sop_class in _NOT_IMAGES:
        raise UnreadableSource("NOT_AN_IMAGE", f"{_NOT_IMAGES[sop_class]}, not an image", str(item.path))
    described = read_format(item)
    if "LOCALIZER" in image_type:
        raise UnreadableSource("LOCALIZER", "a localizer (scout), taken to plan the scan", str(item.path))
    if not _SCREENS.isdisjoint(image_type[2:]):
        raise UnreadableSource("NOT_AN_IMAGE", "a picture of a screen or of a dose report", str(item.path))
    check_decodable(item)
    check_length(item, described)

    def named(kind: str, keyword: str) -> str | None:
        value = text(dataset, keyword)
        return pseudonym(kind, value) if value else None

    return Instance(
        patient=named("patient", "PatientID"),
        study_uid=named("study_uid", "StudyInstanceUID"),
        series_uid=named("series_uid", "SeriesInstanceUID"),
        instance_uid=named("instance_uid", "SOPInstanceUID"),
        frame_of_reference=named("frame_of_reference", "FrameOfReferenceUID"),
        modality=(text(dataset, "Modality") or "")[:16].upper(),
        sop_class=sop_class,
        transfer_syntax=str(item.transfer_syntax),
        pixels=described,
        geometry=read_geometry(dataset, described.frames),
        image_type=image_type[2:],
        stack=tuple(_stack_value(dataset, keyword) for keyword in _STACK_FIELDS),
        # A time of day may point to a person.
        moments=tuple(named("moment", keyword) or "" for keyword in _MOMENT_FIELDS),
        acquired_at=acquired_year(dataset),
        attributes=attributes(dataset),
        notes=tuple(_notes(dataset)),
        frame_kinds=read_frame_kinds(dataset, described.frames),
    )


def _stack_value(dataset: Dataset, keyword: str) -> str:
    """Give a value as text; numbers so that `4.60` and `4.6`, one value in two decimal strings, are one."""
    value = number(dataset, keyword)
    return f"{value:.6g}" if value is not None else text(dataset, keyword) or ""


def _notes(dataset: Dataset) -> Iterator[str]:
    if (text(dataset, "BurnedInAnnotation") or "").upper() == "YES":
        yield "BURNED_IN_ANNOTATION"
    if text(dataset, "LossyImageCompression") == "01":
        yield "LOSSY"


def read_geometry(dataset: Dataset, frames: int) -> Geometry:
    """Read positions, orientations and spacing, of the functional groups where they are, else of the data set.

    Source: PS3.3 C.7.6.2.1.1, C.7.6.16.2.1 to .4; PixelSpacing is row spacing, then column spacing (10.7.1.3).
    """
    per_frame = list(islice(children(dataset, "PerFrameFunctionalGroupsSequence"), frames))
    shared = list(children(dataset, "SharedFunctionalGroupsSequence"))[:1]
    groups = per_frame if len(per_frame) == frames else []
    positions = _each(groups, shared, dataset, ("PlanePositionSequence", "ImagePositionPatient", 3))
    orientations = _each(groups, shared, dataset, ("PlaneOrientationSequence", "ImageOrientationPatient", 6))
    each_spacing = _each(groups, shared, dataset, ("PixelMeasuresSequence", "PixelSpacing", 2))
    spacings = set(each_spacing)
    notes: list[str] = []
    if len(positions) != frames:
        positions = ()
    cosines = tuple(item for item in map(_cosines, orientations) if item is not None)
    if len(cosines) != len(orientations):
        cosines = ()
        notes.append("BAD_ORIENTATION")
    spacing = None
    if len(spacings) == 1:
        spacing = spacings.pop()
        notes.extend(_calibration(dataset, spacing))
    elif not spacings:
        spacing = numbers(dataset, "ImagerPixelSpacing", 2)
        if spacing is not None:
            notes.append("DETECTOR_SPACING")
    else:
        notes.append("MIXED_SPACING")
    if spacing is not None and min(spacing) <= 0:
        spacing = None
        notes.append("BAD_SPACING")
    several = each_spacing if len(set(each_spacing)) > 1 and min(map(min, each_spacing)) > 0 else ()
    return Geometry(positions, cosines, spacing, tuple(notes), several)


def _calibration(dataset: Dataset, spacing: Vector) -> Iterator[str]:
    """Say which spacing a projection image gives (PS3.3 10.7.1.1): at the detector, or calibrated to the body."""
    detector = numbers(dataset, "ImagerPixelSpacing", 2)
    if detector is None:
        return
    calibrated = text(dataset, "PixelSpacingCalibrationType") is not None or detector != spacing
    yield "CALIBRATED_SPACING" if calibrated else "DETECTOR_SPACING"


def _each(
    groups: list[Dataset], shared: list[Dataset], dataset: Dataset, what: tuple[str, str, int]
) -> tuple[Vector, ...]:
    """Give a value of every frame; or the one for all frames; or nothing."""
    sequence, keyword, count = what

    def within(holder: Dataset) -> Vector | None:
        for item in children(holder, sequence):
            return numbers(item, keyword, count)
        return None

    each = [within(group) for group in groups]
    if each and all(item is not None for item in each):
        return tuple(item for item in each if item is not None)
    for holder in shared:
        value = within(holder)
        if value is not None:
            return (value,)
    value = numbers(dataset, keyword, count)
    return (value,) if value is not None else ()


def _cosines(orientation: Vector) -> Vector | None:
    """Renormalise row and column cosines, 16-character decimals in the file; None where they are no two axes."""
    row, col = orientation[:3], orientation[3:]
    lengths = math.hypot(*row), math.hypot(*col)
    dot = sum(a * b for a, b in zip(row, col, strict=True))
    if max(abs(lengths[0] - 1), abs(lengths[1] - 1), abs(dot)) > _UNIT_TOLERANCE:
        return None
    return (*(item / lengths[0] for item in row), *(item / lengths[1] for item in col))
