"""One file as the index keeps it: pixels, geometry, what sets it apart in its series, and pseudonyms. No identifier."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from pydicom import Dataset

from vitpipe.domains.dicom.fields import acquired_year, attributes, children, number, numbers, text
from vitpipe.domains.dicom.files import DicomFile
from vitpipe.domains.dicom.functional import NO_KINDS, FrameKinds, read_frame_kinds
from vitpipe.domains.dicom.pixelformat import PixelFormat, read_format
from vitpipe.domains.dicom.pixels import check_decodable, check_length, head_of
from vitpipe.domains.dicom.ultrasound import region_spacing
from vitpipe.errors import UnreadableSource
from vitpipe.records import Attribute, Json

Vector = tuple[float, ...]

_GROUPS: Final = ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence")
_MOST_KNOWN: Final = 10_000
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
    head: tuple[int, int] | None = None
    """Bytes before the pixels and their CRC-32; None in a deflated file."""

    def to_json(self) -> dict[str, Json]:
        """Give a JSON form that :meth:`from_json` reads back exactly."""
        value: dict[str, Json] = {name: _lists(getattr(self, name)) for name in _INSTANCE_FIELDS if name not in _NESTED}
        value["pixels"] = pixels_json(self.pixels)
        value["geometry"] = {name: _lists(getattr(self.geometry, name)) for name in _GEOMETRY_FIELDS}
        value["frame_kinds"] = {name: _lists(getattr(self.frame_kinds, name)) for name in _KINDS_FIELDS}
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Json], known: dict[int, tuple[Json, Any]] | None = None) -> Instance:
        """Read what :meth:`to_json` wrote.

        Args:
            value: the JSON form.
            known: parts that were read before, by the identity of their JSON forms; where many records share a part, it
                is read once. None: nothing is shared.
        """
        known = {} if known is None else known
        if len(known) >= _MOST_KNOWN:
            known.clear()
        fields: dict[str, Any] = {}
        for name, item in value.items():
            if not isinstance(item, dict | list):
                fields[name] = item
                continue
            if id(item) not in known:
                # The JSON form is kept too: another object must not come to its identity.
                known[id(item)] = (item, _read_part(name, item))
            fields[name] = known[id(item)][1]
        return cls(**fields)


def _read_part(name: str, value: dict[str, Json] | list[Json]) -> object:
    part: Any = _tuples(value)
    if name == "pixels":
        return PixelFormat(**part)
    if name == "frame_kinds":
        return FrameKinds(**part)
    return Geometry(**part) if name == "geometry" else part


_INSTANCE_FIELDS: Final = tuple(field.name for field in dataclasses.fields(Instance))
_PIXEL_FIELDS: Final = tuple(field.name for field in dataclasses.fields(PixelFormat))
_GEOMETRY_FIELDS: Final = tuple(field.name for field in dataclasses.fields(Geometry))
_KINDS_FIELDS: Final = tuple(field.name for field in dataclasses.fields(FrameKinds))
_NESTED: Final = ("pixels", "geometry", "frame_kinds")


def pixels_json(described: PixelFormat) -> dict[str, Json]:
    """Give the JSON form of a pixel format."""
    return {name: _lists(getattr(described, name)) for name in _PIXEL_FIELDS}


def _tuples(value: object) -> object:
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, tuple | list) else value


def _lists(value: Any) -> Json:  # noqa: ANN401
    if isinstance(value, Mapping):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, tuple) else value


@dataclass(frozen=True, slots=True)
class Planes:
    """A geometry without its positions. See :class:`Geometry`."""

    orientations: tuple[Vector, ...]
    spacing_mm: Vector | None
    notes: tuple[str, ...]
    spacings: tuple[Vector, ...]


@dataclass(frozen=True, slots=True)
class Fixed:
    """What the files of a series share, as a rule, but for their pixel format. See :class:`Instance`."""

    patient: str | None
    study_uid: str | None
    series_uid: str | None
    frame_of_reference: str | None
    modality: str
    sop_class: str
    planes: Planes
    image_type: tuple[str, ...]
    stack: tuple[str, ...]
    acquired_at: str | None
    attributes: Mapping[str, Attribute]
    notes: tuple[str, ...]
    frame_kinds: FrameKinds


@dataclass(frozen=True, slots=True)
class Moving:
    """What differs from file to file. See :class:`Instance`."""

    instance_uid: str | None
    positions: tuple[Vector, ...]
    moments: tuple[str, ...]
    head: tuple[int, int] | None = None


def read_instance(item: DicomFile, pseudonym: Callable[[str, str], str]) -> Instance:
    """Make the record of a file.

    Args:
        item: the file.
        pseudonym: a :class:`vitpipe.pseudonym.Pseudonymiser`, or one that remembers.

    Raises:
        UnreadableSource: ``NOT_AN_IMAGE``, ``LOCALIZER``, ``NO_PIXELS``, ``PIXELS_MISSING``, ``TRUNCATED``,
            ``UNDECODABLE``, ``UNSUPPORTED`` or ``MALFORMED_HEADER``.
    """
    described = read_pixels(item)
    check_length(item, described)
    fixed = read_fixed(item.dataset, pseudonym, described.frames)
    moving = dataclasses.replace(read_moving(item.dataset, pseudonym, described.frames), head=head_of(item))
    return compose(str(item.transfer_syntax), described, fixed, moving)


def compose(transfer_syntax: str, described: PixelFormat, fixed: Fixed, moving: Moving) -> Instance:
    """Put the record together from its parts."""
    return Instance(
        patient=fixed.patient,
        study_uid=fixed.study_uid,
        series_uid=fixed.series_uid,
        instance_uid=moving.instance_uid,
        frame_of_reference=fixed.frame_of_reference,
        modality=fixed.modality,
        sop_class=fixed.sop_class,
        transfer_syntax=transfer_syntax,
        pixels=described,
        geometry=_geometry(moving.positions, fixed.planes),
        image_type=fixed.image_type,
        stack=fixed.stack,
        moments=moving.moments,
        acquired_at=fixed.acquired_at,
        attributes=fixed.attributes,
        notes=fixed.notes,
        frame_kinds=fixed.frame_kinds,
        head=moving.head,
    )


def read_pixels(item: DicomFile) -> PixelFormat:
    """Read the pixel format of what is an image and can be decoded; how long the pixels are is not looked at.

    It follows from the header and the stated length of the pixels alone, and from the elements that `header.PIXELS`
    names: the index keeps it for all files in which these are the same.

    Raises:
        UnreadableSource: see :func:`read_instance`.
    """
    sop_class = text(item.dataset, "SOPClassUID") or ""
    if sop_class in _NOT_IMAGES:
        raise UnreadableSource("NOT_AN_IMAGE", f"{_NOT_IMAGES[sop_class]}, not an image", str(item.path))
    described = read_format(item)
    image_type = _image_type(item.dataset)
    if "LOCALIZER" in image_type:
        raise UnreadableSource("LOCALIZER", "a localizer (scout), taken to plan the scan", str(item.path))
    if not _SCREENS.isdisjoint(image_type[2:]):
        raise UnreadableSource("NOT_AN_IMAGE", "a picture of a screen or of a dose report", str(item.path))
    check_decodable(item)
    return described


def read_fixed(dataset: Dataset, pseudonym: Callable[[str, str], str], frames: int) -> Fixed:
    """Read what the files of a series share: it follows from the elements that `header.FIXED` names alone."""

    def named(kind: str, keyword: str) -> str | None:
        value = text(dataset, keyword)
        return pseudonym(kind, value) if value else None

    return Fixed(
        patient=named("patient", "PatientID"),
        study_uid=named("study_uid", "StudyInstanceUID"),
        series_uid=named("series_uid", "SeriesInstanceUID"),
        frame_of_reference=named("frame_of_reference", "FrameOfReferenceUID"),
        modality=(text(dataset, "Modality") or "")[:16].upper(),
        sop_class=text(dataset, "SOPClassUID") or "",
        planes=read_planes(dataset, frames),
        image_type=_image_type(dataset)[2:],
        stack=tuple(_stack_value(dataset, keyword) for keyword in _STACK_FIELDS),
        acquired_at=acquired_year(dataset),
        attributes=attributes(dataset),
        notes=tuple(_notes(dataset)),
        frame_kinds=read_frame_kinds(dataset, frames),
    )


def _stack_value(dataset: Dataset, keyword: str) -> str:
    """Give a value as text; numbers so that `4.60` and `4.6`, one value in two decimal strings, are one."""
    value = number(dataset, keyword)
    return f"{value:.6g}" if value is not None else text(dataset, keyword) or ""


def read_moving(dataset: Dataset, pseudonym: Callable[[str, str], str], frames: int) -> Moving:
    """Read what differs from file to file: the elements that `header.MOVING` names."""
    uid = text(dataset, "SOPInstanceUID")
    moments = []
    for keyword in _MOMENT_FIELDS:
        value = text(dataset, keyword)
        # A time of day may point to a person.
        moments.append(pseudonym("moment", value) if value else "")
    return Moving(
        instance_uid=pseudonym("instance_uid", uid) if uid else None,
        positions=read_positions(dataset, frames),
        moments=tuple(moments),
    )


def _image_type(dataset: Dataset) -> tuple[str, ...]:
    return tuple((text(dataset, "ImageType") or "").upper().split("/"))


def _notes(dataset: Dataset) -> Iterator[str]:
    if (text(dataset, "BurnedInAnnotation") or "").upper() == "YES":
        yield "BURNED_IN_ANNOTATION"
    if text(dataset, "LossyImageCompression") == "01":
        yield "LOSSY"


def read_geometry(dataset: Dataset, frames: int) -> Geometry:
    """Read positions, orientations and spacing, of the functional groups where they are, else of the data set.

    Source: PS3.3 C.7.6.2.1.1, C.7.6.16.2.1 to .4; PixelSpacing is row spacing, then column spacing (10.7.1.3).
    """
    return _geometry(read_positions(dataset, frames), read_planes(dataset, frames))


def _geometry(positions: tuple[Vector, ...], planes: Planes) -> Geometry:
    return Geometry(positions, planes.orientations, planes.spacing_mm, planes.notes, planes.spacings)


def read_positions(dataset: Dataset, frames: int) -> tuple[Vector, ...]:
    """Read one position a frame, or none at all."""
    positions = _each(dataset, frames, ("PlanePositionSequence", "ImagePositionPatient", 3))
    return positions if len(positions) == frames else ()


def read_planes(dataset: Dataset, frames: int) -> Planes:
    """Read orientations and spacing, and what is odd about them."""
    orientations = _each(dataset, frames, ("PlaneOrientationSequence", "ImageOrientationPatient", 6))
    each_spacing = _each(dataset, frames, ("PixelMeasuresSequence", "PixelSpacing", 2))
    spacings = set(each_spacing)
    notes: list[str] = []
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
            spacing, note = region_spacing(dataset)
            notes.extend([note] if note else [])
    else:
        notes.append("MIXED_SPACING")
    if spacing is not None and min(spacing) <= 0:
        spacing = None
        notes.append("BAD_SPACING")
    several = each_spacing if len(set(each_spacing)) > 1 and min(map(min, each_spacing)) > 0 else ()
    return Planes(cosines, spacing, tuple(notes), several)


def _calibration(dataset: Dataset, spacing: Vector) -> Iterator[str]:
    """Say which spacing a projection image gives (PS3.3 10.7.1.1): at the detector, or calibrated to the body."""
    detector = numbers(dataset, "ImagerPixelSpacing", 2)
    if detector is None:
        return
    calibrated = text(dataset, "PixelSpacingCalibrationType") is not None or detector != spacing
    yield "CALIBRATED_SPACING" if calibrated else "DETECTOR_SPACING"


def _each(dataset: Dataset, frames: int, what: tuple[str, str, int]) -> tuple[Vector, ...]:
    """Give a value of every frame; or the one for all frames; or nothing."""
    sequence, keyword, count = what
    if not any(place in dataset for place in _GROUPS):
        value = numbers(dataset, keyword, count)
        return (value,) if value is not None else ()
    per_frame = list(islice(children(dataset, "PerFrameFunctionalGroupsSequence"), frames))
    groups = per_frame if len(per_frame) == frames else []
    shared = list(islice(children(dataset, "SharedFunctionalGroupsSequence"), 1))

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
