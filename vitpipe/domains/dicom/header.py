"""A scanned header that reads like pydicom's data set, as far as an indexed record needs it.

`get` and `in` give what `fields.text` and `fields.numbers` make the same of as of pydicom's values (decimal strings
stay strings: both look at the text). A value that is not plain raises `InDoubt`.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, NoReturn, Protocol, TypeAlias

from pydicom.datadict import dictionary_VR, tag_for_keyword

from vitpipe.domains.dicom.scan import InDoubt

MOVING: Final = (
    "SOPInstanceUID", "ImagePositionPatient", "AcquisitionNumber", "TriggerTime", "AcquisitionTime", "ContentTime",
)  # fmt: skip
"""What differs from file to file: all that `instance.read_moving` reads."""

PIXELS: Final = (
    "SOPClassUID", "ImageType", "Modality", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated",
    "BitsStored", "HighBit", "PixelRepresentation", "PhotometricInterpretation", "PresentationLUTShape", "RescaleSlope",
    "RescaleIntercept", "RescaleType", "Units", "PlanarConfiguration", "PixelPaddingValue", "PixelPaddingRangeLimit",
)  # fmt: skip
"""All that `instance.read_pixels` reads."""

FIXED: Final = (
    "SOPClassUID", "ImageType", "Modality", "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID",
    "EchoNumbers", "EchoTime", "InversionTime", "TemporalPositionIdentifier", "DiffusionBValue",
    "DiffusionGradientOrientation", "ImageOrientationPatient", "PixelSpacing", "ImagerPixelSpacing",
    "PixelSpacingCalibrationType", "AcquisitionDateTime", "AcquisitionDate", "ContentDate", "SeriesDate", "StudyDate",
    "PatientSex", "PatientAge",
    "PatientBirthDate", "Manufacturer", "ManufacturerModelName", "BodyPartExamined", "ViewPosition", "KVP",
    "SliceThickness", "ConvolutionKernel", "MagneticFieldStrength", "BurnedInAnnotation", "LossyImageCompression",
)  # fmt: skip
"""All that `instance.read_fixed` reads."""

Value: TypeAlias = str | int | float | list[str] | list[float] | None
Reader: TypeAlias = Callable[[bytes], Value]


def tag_of(keyword: str) -> int:
    """Give the tag of a keyword of the standard's dictionary."""
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise InDoubt
    return tag


VR_OF: Final = {tag_of(keyword): dictionary_VR(keyword) for keyword in (*MOVING, *PIXELS, *FIXED)}

_LARGEST_VALUE: Final = 1024
_plain = re.compile(rb"[ -~]*\x00*").fullmatch
_decimals = re.compile(
    rb" *[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d\d?)? *(?:\\ *[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d\d?)? *)*"
).fullmatch
_integers = re.compile(rb" *[+-]?\d{1,9} *(?:\\ *[+-]?\d{1,9} *)*").fullmatch
_us = struct.Struct("<H").unpack


class Places(Protocol):
    """Where the values of a header lie."""

    def value(self, tag: int) -> bytes:
        """Give the bytes of a value of the data set; none where the element is empty or absent.

        Raises:
            InDoubt: it has another VR than the dictionary says.
        """

    def has(self, tag: int) -> bool:
        """Tell whether the data set has the element."""


class Header:
    """A view of a scanned header.

    Args:
        places: where its values lie.
        view: what may be asked for: what was made of a view may be kept for as long as these values stay the same.
    """

    __slots__ = ("_places", "_view")

    def __init__(self, places: Places, view: Mapping[str, tuple[int, Reader]]) -> None:
        self._places = places
        self._view = view

    def __contains__(self, keyword: str) -> bool:
        return self._places.has(tag_of(keyword))

    def get(self, keyword: str) -> Value:
        """Give a value; None where the element is absent or empty.

        Raises:
            InDoubt: the value is not plain, or nothing here reads this element.
        """
        known = self._view.get(keyword)
        if known is None:
            if keyword in self:
                raise InDoubt
            return None
        tag, reader = known
        value = self._places.value(tag)
        if not value:
            return None
        if len(value) > _LARGEST_VALUE:
            raise InDoubt
        return reader(value)

    def get_item(self, _: str) -> NoReturn:
        """Leave sequences to pydicom.

        Raises:
            InDoubt: always.
        """
        raise InDoubt


def _strings(value: bytes) -> str | list[str]:
    if not _plain(value):
        raise InDoubt
    text = value.rstrip(b"\0 ").decode("ascii")
    return text.split("\\") if "\\" in text else text


def _identifier(value: bytes) -> str:
    found = _strings(value)
    if not isinstance(found, str) or " " in found:
        raise InDoubt
    return found


def _texts(value: bytes) -> str | list[str]:
    found = _strings(value)
    return found if isinstance(found, str) else [item.rstrip(" ") for item in found]


def _numerals(value: bytes, matches: Callable[[bytes], Any]) -> str | list[str]:
    if not matches(value):
        raise InDoubt
    text = value.decode("ascii")
    return [item.strip(" ") for item in text.split("\\")] if "\\" in text else text.strip(" ")


def _decimal_strings(value: bytes) -> str | list[str]:
    return _numerals(value, _decimals)


def _integer_strings(value: bytes) -> str | list[str]:
    return _numerals(value, _integers)


def _unsigned_short(value: bytes) -> int:
    if len(value) != 2:
        raise InDoubt
    return int(_us(value)[0])


def _doubles(value: bytes) -> float | list[float]:
    if len(value) % 8:
        raise InDoubt
    found = struct.unpack(f"<{len(value) // 8}d", value)
    return found[0] if len(found) == 1 else list(found)


_READERS: Final[dict[str, Reader]] = {
    **dict.fromkeys(("AS", "CS", "DA", "DT", "TM"), _strings),
    **dict.fromkeys(("LO", "SH"), _texts),
    "UI": _identifier,
    "DS": _decimal_strings,
    "IS": _integer_strings,
    "US": _unsigned_short,
    # Whoever asks for one of these takes the bits, not the sign.
    "US or SS": _unsigned_short,
    "FD": _doubles,
}


def view_of(keywords: Collection[str]) -> dict[str, tuple[int, Reader]]:
    """Give the view of a header that shows these values alone."""
    return {keyword: (tag_of(keyword), _READERS[VR_OF[tag_of(keyword)]]) for keyword in keywords}
