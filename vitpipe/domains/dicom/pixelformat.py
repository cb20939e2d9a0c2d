"""What a file says about its pixels: shape, bits, colours, and the way from stored to physical values."""

from __future__ import annotations

import dataclasses
import math
import struct
from dataclasses import dataclass
from typing import Final, Literal, cast

import numpy as np
from pydicom import Dataset
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.uid import UID, ExplicitVRBigEndian

from vitpipe.domains.dicom.fields import children, is_empty, number, text, value_of
from vitpipe.domains.dicom.files import DicomFile
from vitpipe.errors import UnreadableSource

LARGEST_FRAME_BYTES: Final = 1 << 30
_MONOCHROME: Final = ("MONOCHROME1", "MONOCHROME2")
_COLOURS: Final = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT")
# Units that DICOM defines for the output of the modality transformation (C.11.1.1.2), other than HU and unspecified.
_PHYSICAL_TYPES: Final = frozenset({"OD", "MGML", "Z_EFF", "ED", "EDW", "HU_MOD", "PCT"})
_UNSPECIFIED: Final = "stored"
_BROKEN_RESCALE: Final = (
    "of its rescale slope and intercept one is missing or no number, or the slope is zero; export the file again"
)
_MOST_FRAMES: Final = 1 << 18
_ITEMS: Final = 0xFFFE
_ITEM_END: Final = 0xE00D
_UNDEFINED: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class PixelFormat:
    """How the stored values of one file are to be read."""

    frames: int
    rows: int
    cols: int
    samples: int
    bits_allocated: int
    bits_stored: int
    signed: bool
    photometric: str
    float_bits: int
    """32 or 64 where the pixels are floating point numbers, else 0."""
    slopes: tuple[float, ...]
    """One for all frames, or one a frame."""
    intercepts: tuple[float, ...]
    lut_bits: int | None
    """Bits of the modality LUT's output, which replaces slope and intercept."""
    palette_bits: int | None
    units: str
    inverted: bool
    """High stored values mean dark, and the values have no physical unit: they are inverted by the stored range."""
    encapsulated: bool = False
    """The frames lie in fragments, compressed as a rule."""
    planar: bool = False
    """Colours lie plane by plane, in a frame that is not compressed."""
    padding: tuple[float, float] | None = None
    """Lowest and highest stored value that stand for no pixel (C.7.5.1.1.2)."""
    needs_header: bool = False
    """A read needs more of the header: lookup tables, offset tables, or the order of the bytes."""

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels that a read gives."""
        colour = self.samples == 3 or self.palette_bits is not None
        return ("red", "green", "blue") if colour else ("intensity",)

    @property
    def stored_range(self) -> tuple[int, int]:
        """Lowest and highest stored value that the bits allow."""
        if self.signed:
            return -(1 << (self.bits_stored - 1)), (1 << (self.bits_stored - 1)) - 1
        return 0, (1 << self.bits_stored) - 1

    @property
    def stored_dtype(self) -> np.dtype[np.generic]:
        """Dtype of the stored values, in the machine's byte order."""
        if self.float_bits:
            return np.dtype(f"f{self.float_bits // 8}")
        size = max(1, self.bits_allocated // 8)
        return np.dtype(f"{'i' if self.signed else 'u'}{size}")

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Of one decoded frame: (rows, cols), or (rows, cols, samples) where there are several."""
        return (self.rows, self.cols) if self.samples == 1 else (self.rows, self.cols, self.samples)

    @property
    def frame_bits(self) -> int:
        """Bits of one frame as it is stored uncompressed."""
        samples = 2 if self.photometric == "YBR_FULL_422" else self.samples
        return self.rows * self.cols * samples * self.bits_allocated

    def rescale(self, frame: int) -> tuple[float, float]:
        """Give slope and intercept of a frame."""
        return self.slopes[frame % len(self.slopes)], self.intercepts[frame % len(self.intercepts)]


def physical_dtype(formats: list[PixelFormat]) -> np.dtype[np.generic]:
    """Choose one dtype that holds every value of every frame of a source.

    Returns:
        The smallest integer dtype where all slopes and intercepts are whole numbers, else float32: a PET series has
        another slope a slice, and a dtype taken from the first slice would wrap.
    """
    lowest, highest = 0, 0
    for item in formats:
        if item.float_bits:
            return np.dtype("f4")
        if item.lut_bits is not None or item.palette_bits is not None:
            highest = max(highest, (1 << (item.lut_bits or item.palette_bits or 16)) - 1)
            continue
        if item.samples == 3:
            # Colours are never rescaled.
            lowest, highest = min(lowest, item.stored_range[0]), max(highest, item.stored_range[1])
            continue
        for slope, intercept in set(zip(item.slopes, item.intercepts, strict=True)):
            if not (slope.is_integer() and intercept.is_integer()):
                return np.dtype("f4")
            ends = [int(slope) * end + int(intercept) for end in item.stored_range]
            lowest, highest = min(lowest, *ends), max(highest, *ends)
    for name in ("u1", "i1", "u2", "i2", "u4", "i4", "i8"):
        limits = np.iinfo(name)
        if limits.min <= lowest and highest <= limits.max:
            return np.dtype(name)
    return np.dtype("f4")


def read_format(item: DicomFile) -> PixelFormat:
    """Read the pixel description of a file and check it against the file's length.

    Raises:
        UnreadableSource: ``NO_PIXELS``, ``PIXELS_MISSING``, ``TRUNCATED``, ``UNSUPPORTED``, ``MALFORMED_HEADER``.
    """
    dataset, path = item.dataset, str(item.path)
    if item.pixels is None:
        if "Rows" in dataset:
            raise UnreadableSource(
                "TRUNCATED", "the header announces pixels, but the file ends before them; copy it again", path
            )
        kind = UID(text(dataset, "SOPClassUID") or "").name
        if "Image Storage" in kind:
            raise UnreadableSource("PIXELS_MISSING", f"{kind} without its pixels; export the file again", path)
        raise UnreadableSource("NO_PIXELS", "the object carries no pixels, and its kind needs none", path)
    rows, cols = _whole(item, "Rows"), _whole(item, "Columns")
    frames = _whole(item, "NumberOfFrames", default=1) or 1
    samples = _whole(item, "SamplesPerPixel", default=1)
    float_bits = {"FloatPixelData": 32, "DoubleFloatPixelData": 64}.get(item.pixels.keyword, 0)
    allocated = _whole(item, "BitsAllocated", default=float_bits or None)
    slopes, intercepts = _rescale(dataset, frames, path)
    photometric = (text(dataset, "PhotometricInterpretation") or "MONOCHROME2").upper()
    lut = next(iter(_groups(dataset, "ModalityLUTSequence", path)), None)
    units = _units(dataset, photometric, lut)
    described = PixelFormat(
        frames=frames,
        rows=rows,
        cols=cols,
        samples=samples,
        bits_allocated=allocated,
        bits_stored=_whole(item, "BitsStored", default=allocated),
        signed=_whole(item, "PixelRepresentation", default=0) == 1,
        photometric=photometric,
        float_bits=float_bits,
        slopes=slopes,
        intercepts=intercepts,
        lut_bits=_lut_bits(lut, "LUTDescriptor") if lut is not None else None,
        palette_bits=_palette_bits(dataset) if photometric == "PALETTE COLOR" else None,
        units=units,
        inverted=units == _UNSPECIFIED
        and not float_bits
        and (photometric == "MONOCHROME1" or text(dataset, "PresentationLUTShape") == "INVERSE"),
        encapsulated=item.pixels.length is None,
        planar=number(dataset, "PlanarConfiguration") == 1,
    )
    _check(described, path)
    high = number(dataset, "HighBit")
    if high is not None and not float_bits and high != described.bits_stored - 1:
        raise UnreadableSource(
            "UNSUPPORTED", "HighBit is not BitsStored - 1: it cannot be told which bits hold the values", path
        )
    return dataclasses.replace(
        described, padding=_padding(item, described), needs_header=_needs_header(item, described)
    )


def _needs_header(item: DicomFile, described: PixelFormat) -> bool:
    tables = described.lut_bits is not None or described.palette_bits is not None
    deflated = item.pixels is not None and item.pixels.inflated is not None
    big_endian = item.transfer_syntax == ExplicitVRBigEndian
    return tables or deflated or big_endian or "ExtendedOffsetTable" in item.dataset


def _padding(item: DicomFile, described: PixelFormat) -> tuple[float, float] | None:
    """Give the range of stored values that stand for no pixel, or None."""
    first = _stored_number(item, "PixelPaddingValue", described)
    if first is None:
        return None
    last = _stored_number(item, "PixelPaddingRangeLimit", described)
    return _kept(min(first, first if last is None else last), max(first, first if last is None else last), described)


def _kept(first: float, last: float, described: PixelFormat) -> tuple[float, float] | None:
    """Give what is left of a range of values when a read keeps BitsStored bits of each pixel."""
    lowest, highest = described.stored_range
    if described.float_bits or lowest <= first <= last <= highest:
        return first, last
    span = 1 << described.bits_stored
    moved = (first - lowest) % span + lowest, (last - lowest) % span + lowest
    if moved[1] - moved[0] == last - first:
        return moved
    # Its ends do not move together: the part outside the stored bits may fall on any value, of true pixels too.
    first, last = max(first, lowest), min(last, highest)
    return (first, last) if first <= last else None


def _stored_number(item: DicomFile, keyword: str, described: PixelFormat) -> float | None:
    """Read a value whose VR follows PixelRepresentation: writers often give the other sign, then the bits are meant."""
    prefix = {32: "Float", 64: "DoubleFloat"}.get(described.float_bits, "")
    value = value_of(item.dataset, prefix + keyword)
    if isinstance(value, bytes):
        order: Literal["big", "little"] = "big" if item.transfer_syntax == ExplicitVRBigEndian else "little"
        value = int.from_bytes(value, order) if value else None
    if not isinstance(value, int | float):
        return None
    if described.float_bits:
        return float(value)
    span = 1 << max(16, described.bits_allocated)
    wrapped = int(value) % span
    return float(wrapped - span if described.signed and wrapped >= span // 2 else wrapped)


def _whole(item: DicomFile, keyword: str, default: int | None = None) -> int:
    if text(item.dataset, keyword) is None and default is not None:
        return default
    value = number(item.dataset, keyword)
    if value is None or not value.is_integer() or value < 0:
        raise UnreadableSource(
            "MALFORMED_HEADER", f"{keyword} is absent or no whole number; export the file again", str(item.path)
        )
    return int(value)


def _rescale(dataset: Dataset, frames: int, path: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Give slopes and intercepts: of the functional groups where they are, else of the data set, else 1 and 0.

    Source: PS3.3 C.7.6.16.2.9 (Pixel Value Transformation), C.11.1.1.2.
    """
    per_frame = [_group_rescale(group, path) for group in _groups(dataset, "PerFrameFunctionalGroupsSequence", path)]
    if any(per_frame):
        pairs = [item for item in per_frame[:frames] if item is not None]
        if len(pairs) < frames:
            raise UnreadableSource("MALFORMED_HEADER", "some frames have a rescale and others have none", path)
        if len(set(pairs)) == 1:
            pairs = pairs[:1]
        return tuple(item[0] for item in pairs), tuple(item[1] for item in pairs)
    for group in _groups(dataset, "SharedFunctionalGroupsSequence", path):
        shared = _group_rescale(group, path)
        if shared is not None:
            return (shared[0],), (shared[1],)
    # Either both or neither are there (type 1C).
    if is_empty(dataset, "RescaleSlope") and is_empty(dataset, "RescaleIntercept"):
        return (1.0,), (0.0,)
    slope, intercept = _pair(dataset, path)
    return (slope,), (intercept,)


def _group_rescale(group: Dataset, path: str) -> tuple[float, float] | None:
    for transform in _groups(group, "PixelValueTransformationSequence", path):
        return _pair(transform, path)
    return None


def _pair(holder: Dataset, path: str) -> tuple[float, float]:
    slope, intercept = number(holder, "RescaleSlope"), number(holder, "RescaleIntercept")
    # A slope of zero would erase the pixels.
    if not slope or intercept is None:
        raise UnreadableSource("MALFORMED_HEADER", _BROKEN_RESCALE, path)
    return slope, intercept


def _groups(holder: Dataset, keyword: str, path: str) -> list[Dataset]:
    """Give the items of a sequence on which the physical values depend: they must parse, and be whole."""
    if keyword not in holder:
        return []
    whole = _is_whole(holder, keyword)
    found = list(children(holder, keyword)) if whole else []
    if not whole or (not found and not is_empty(holder, keyword)):
        raise UnreadableSource(
            "MALFORMED_HEADER", f"{keyword}, on which the values depend, is broken; export the file again", path
        )
    return found


def _is_whole(holder: Dataset, keyword: str) -> bool:
    """Tell whether the items of a sequence end within it; pydicom takes what there is of the last one."""
    raw = cast("DataElement | RawDataElement", holder.get_item(keyword))
    if not isinstance(raw, RawDataElement) or not isinstance(raw.value, bytes):
        return True
    item, place = struct.Struct("<HHI" if raw.is_little_endian else ">HHI"), 0
    while place + item.size <= len(raw.value):
        group, _, length = item.unpack_from(raw.value, place)
        if group != _ITEMS:
            return False
        if length == _UNDEFINED:
            # Its length is known to who parses it; it has an end at least.
            return raw.value.find(item.pack(_ITEMS, _ITEM_END, 0), place) >= 0
        place += item.size + length
    return place == len(raw.value)


def _rescale_type(dataset: Dataset) -> str | None:
    own = text(dataset, "RescaleType")
    if own:
        return own.upper()
    for place in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for group in children(dataset, place):
            for transform in children(group, "PixelValueTransformationSequence"):
                return (text(transform, "RescaleType") or "").upper() or None
    return None


def _has_rescale(dataset: Dataset) -> bool:
    if number(dataset, "RescaleIntercept") is not None:
        return True
    places = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
    return any("PixelValueTransformationSequence" in group for place in places for group in children(dataset, place))


def _units(dataset: Dataset, photometric: str, lut: Dataset | None) -> str:
    """Give the physical unit: HU, a PET unit, what RescaleType names, or ``stored`` where there is none.

    The rescale of an MR is the maker's own scale (vtk-dicom #200), never a unit.
    """
    if photometric not in _MONOCHROME:
        return _UNSPECIFIED
    modality = (text(dataset, "Modality") or "").upper()
    named = ((text(lut, "ModalityLUTType") if lut is not None else _rescale_type(dataset)) or "").upper()
    if named in _PHYSICAL_TYPES:
        return named
    if modality == "PT":
        return (text(dataset, "Units") or _UNSPECIFIED)[:16]
    if modality == "CT" and lut is None and _has_rescale(dataset) and named in ("", "HU"):
        return "HU"
    return "HU" if named == "HU" else _UNSPECIFIED


def _lut_bits(holder: Dataset, keyword: str) -> int:
    """Give the bits of a LUT's entries: the third value of its descriptor."""
    descriptor = (text(holder, keyword) or "").split("/")
    return 8 if len(descriptor) == 3 and descriptor[2] == "8" else 16


def _palette_bits(dataset: Dataset) -> int:
    """Give the bits that the palette's entries have in the file: 8-bit entries may lie in 16 bits."""
    descriptor = (text(dataset, "RedPaletteColorLookupTableDescriptor") or "").split("/")
    data = value_of(dataset, "RedPaletteColorLookupTableData")
    if data and len(descriptor) == 3 and descriptor[0].isdigit():
        return 8 if len(data) <= (int(descriptor[0]) or 1 << 16) else 16
    return _lut_bits(dataset, "RedPaletteColorLookupTableDescriptor")


def _check(item: PixelFormat, path: str) -> None:
    """Refuse what no decoder here reads, before anything is allocated."""
    if item.rows < 1 or item.cols < 1:
        raise UnreadableSource("MALFORMED_HEADER", f"an image of {item.rows} x {item.cols} pixels has no pixels", path)
    if not 1 <= item.bits_stored <= item.bits_allocated or item.bits_allocated not in (1, 8, 16, 32, 64):
        found = f"{item.bits_stored} of {item.bits_allocated} bits"
        raise UnreadableSource("UNSUPPORTED", f"pixels of {found} are not read; 1, 8, 16, 32 and 64 bits are", path)
    monochrome = item.samples == 1 and item.photometric in (*_MONOCHROME, "PALETTE COLOR")
    if not monochrome and not (item.samples == 3 and item.photometric in _COLOURS):
        known = item.photometric in (*_MONOCHROME, *_COLOURS, "PALETTE COLOR")
        found = f"{item.photometric if known else 'an unknown photometric interpretation'} with {item.samples} samples"
        raise UnreadableSource("UNSUPPORTED", f"{found} a pixel is not read; convert it to RGB or MONOCHROME2", path)
    if item.frames > _MOST_FRAMES:
        raise UnreadableSource("UNSUPPORTED", f"{item.frames} frames in one file; {_MOST_FRAMES} are read", path)
    if math.ceil(item.frame_bits / 8) > LARGEST_FRAME_BYTES:
        raise UnreadableSource(
            "UNSUPPORTED", f"one frame of {item.rows} x {item.cols} pixels takes more than 1 GiB", path
        )
