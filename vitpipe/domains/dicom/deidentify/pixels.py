"""The pixels of a file that is de-identified: shown to the judge, and written anew where something is masked."""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from numpy.typing import NDArray
from pydicom import DataElement, Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.uid import ExplicitVRLittleEndian

from vitpipe.domains.dicom.deidentify.judge import ALL_FRAMES, Rectangle
from vitpipe.domains.dicom.fields import number
from vitpipe.domains.dicom.files import DicomFile, PixelPlace
from vitpipe.domains.dicom.pixelformat import PixelFormat, read_format
from vitpipe.domains.dicom.pixels import FrameDecoder, check_length

_ITEM: Final = b"\xfe\xff\x00\xe0"
_OVERLAYS: Final = range(0x6000, 0x6020, 2)
# JPEG's APPn and COM, but for JFIF (0), ICC (2), the colours of JPEG-LS (8) and Adobe's colours (14).
_JPEG_TEXTS: Final = frozenset({0xFE, *range(0xE0, 0xF0)} - {0xE0, 0xE2, 0xE8, 0xEE})
_JPEG, _JPEG_SCAN, _J2K, _J2K_COMMENT, _J2K_TILE = b"\xff\xd8", 0xDA, b"\xff\x4f\xff\x51", 0x64, 0x90


class FilePixels:
    """Decoded pixels of one file; see :class:`vitpipe.domains.dicom.deidentify.judge.PixelAccess`.

    Raises:
        UnreadableSource: the header does not describe them, or they are cut short.
    """

    def __init__(self, item: DicomFile) -> None:
        self._item = item
        self._format = read_format(item)
        check_length(item, self._format)

    @property
    def frames(self) -> int:
        """Number of frames."""
        return self._format.frames

    @property
    def native_bytes(self) -> int:
        """Bytes of all frames, uncompressed."""
        return -(-self._format.frame_bits * self._format.frames // 8)

    @property
    def rows(self) -> int:
        """Height of a frame."""
        return self._format.rows

    @property
    def cols(self) -> int:
        """Width of a frame."""
        return self._format.cols

    def stored(self, frame: int) -> NDArray[np.generic]:
        """Decode one frame to stored values: (rows, cols), or (rows, cols, 3) as RGB.

        Raises:
            UnreadableSource: ``UNDECODABLE`` or ``TRUNCATED``.
        """
        return FrameDecoder(self._item, self._format).stored(frame)

    def masked(self, rectangles: tuple[Rectangle, ...]) -> bytes:
        """Give all frames uncompressed, little endian, colours by pixel, with black rectangles.

        Raises:
            UnreadableSource: ``UNDECODABLE`` or ``TRUNCATED``.
        """
        parts = []
        for frame in range(self.frames):
            values = np.array(self.stored(frame))
            dark = _darkest(values, self._format)
            for item in rectangles:
                if item.frame in (ALL_FRAMES, frame):
                    first_row, first_col = max(0, item.row), max(0, item.col)
                    values[first_row : item.row + item.height, first_col : item.col + item.width] = dark
            parts.append(values)
        whole = np.stack(parts)
        if self._format.bits_allocated == 1:
            return _even(np.packbits(whole.astype(np.uint8).ravel(), bitorder="little").tobytes())
        return _even(whole.astype(whole.dtype.newbyteorder("<"), copy=False).tobytes())


def _darkest(values: NDArray[np.generic], described: PixelFormat) -> float | int:
    """Give the stored value that a viewer shows dark, one that the frame has: the window over it stays as it was."""
    if values.ndim == 3:
        return 0
    plain = values.astype(np.float64) if described.float_bits else values
    found = plain.max() if described.photometric == "MONOCHROME1" else plain.min()
    return float(found) if described.float_bits else int(found)


def _even(data: bytes) -> bytes:
    return data + b"\0" * (len(data) % 2)


def pixel_element(path: Path, place: PixelPlace, native_bytes: int) -> DataElement:
    """Read the pixel element as it lies in a file, compressed or not.

    Args:
        path: the file.
        place: where its value begins.
        native_bytes: what the frames take where they are not compressed; what lies behind them is no pixel.
    """
    with path.open("rb") if place.inflated is None else io.BytesIO(place.inflated) as stream:
        stream.seek(place.offset)
        # Whole words: big endian files swap the bytes of the last one, too.
        native = min(place.length or 0, place.available, native_bytes + native_bytes % 2)
        data = _fragments(stream) if place.length is None else stream.read(native)
    vr = {"FloatPixelData": "OF", "DoubleFloatPixelData": "OD"}.get(place.keyword)
    if vr is None:
        vr = "OB" if place.length is None or place.vr == "OB" else "OW"
    element = DataElement(tag_for_keyword(place.keyword) or 0, vr, _even(data))
    element.is_undefined_length = place.length is None
    return element


def _fragments(stream: BinaryIO) -> bytes:
    """Read the offset table and all fragments with their item headers, up to the closing delimiter (PS3.5 A.4)."""
    parts = []
    while (header := stream.read(8)) and header[:4] == _ITEM:
        parts += [header, _without_comments(stream.read(int.from_bytes(header[4:], "little")))]
    return b"".join(parts)


def _without_comments(stream: bytes) -> bytes:
    """Blank comments and application data before the first scan or tile (T.81 B.2.4, T.800 A.9.2); lengths stay."""
    jpeg = stream.startswith(_JPEG)
    if not jpeg and not stream.startswith(_J2K):
        return stream
    data, place = bytearray(stream), 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        if marker == (_JPEG_SCAN if jpeg else _J2K_TILE):
            break
        if marker == 0xFF:
            place += 1
            continue
        if marker in _JPEG_TEXTS if jpeg else marker == _J2K_COMMENT:
            first, end = place + (4 if jpeg else 6), min(place + 2 + length, len(data))
            data[first:end] = bytes(max(end - first, 0))
        place += 2 + length
    return bytes(data)


def has_overlay_in_pixels(dataset: Dataset) -> bool:
    """Tell whether an overlay lies in unused bits of the pixels (retired): it may hold text, as a burned-in one."""
    for group in _OVERLAYS:
        position = dataset.get((group, 0x0102))
        if position is not None and position.value and (group, 0x3000) not in dataset:
            return True
    return False


def replace_pixels(dataset: Dataset, pixels: FilePixels, rectangles: tuple[Rectangle, ...]) -> None:
    """Put masked pixels into a data set and make its header say what they are now: native, explicit little endian.

    Bits above BitsStored are zero (or the sign) afterwards, so that overlays in them are gone too.
    LossyImageCompression stays: the values went through it.

    Raises:
        UnreadableSource: the pixels do not decode.
    """
    data = pixels.masked(rectangles)
    for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"):
        if keyword in dataset:
            dataset[keyword].value = data
            if keyword == "PixelData":
                dataset[keyword].VR = "OB" if (number(dataset, "BitsAllocated") or 16) <= 8 else "OW"
            dataset[keyword].is_undefined_length = False
    for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
        if keyword in dataset:
            delattr(dataset, keyword)
    if (number(dataset, "SamplesPerPixel") or 1) > 1:
        dataset.PhotometricInterpretation, dataset.PlanarConfiguration = "RGB", 0
    stored, allocated = number(dataset, "BitsStored"), number(dataset, "BitsAllocated")
    if stored and allocated and allocated > 1:
        # The decoder gives values at the low end of their words.
        dataset.HighBit = int(stored) - 1
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
