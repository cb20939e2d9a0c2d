"""The frames of a DICOM segmentation as masks: packed bits that no frame need begin at a byte, values, label maps.

A frame is read when it is asked for. Source: PS3.3 C.8.20.2, PS3.5 8.1.1 (bits of a frame follow those of the last).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID, ExplicitVRBigEndian, JPEG2000Lossless, RLELossless

from vitpipe.errors import LabelError
from vitpipe.labels.objects import PARSE_ERRORS, quiet

DEFLATED_FRAMES: Final = UID("1.2.840.10008.1.2.8.1")
"""Deflated Image Frame Compression (Supplement 244)."""
_LARGEST_FRAME_PX: Final = 1 << 27
"""A header that says more is damaged; what it asks for is not allocated."""


class SegReader:
    """Reads frames of segmentations, and holds one file: the frames of a source lie in one, or in few."""

    def __init__(self) -> None:
        self._path = ""
        self._dataset = Dataset()

    def read(self, path: str, frame: int) -> NDArray[Any]:
        """Read the stored values of a frame (rows, columns); bits as 0 and 1.

        Raises:
            LabelError: it does not decode.
        """
        try:
            with quiet():
                if path != self._path:
                    self._dataset = pydicom.dcmread(Path(path), force=True)
                    self._path = path
                return _decode(self._dataset, path, frame)
        except PARSE_ERRORS as error:
            raise LabelError(
                f"{path}: frame {frame} of the segmentation does not decode ({type(error).__name__}); export it "
                "again, uncompressed"
            ) from error


@dataclass(frozen=True, slots=True)
class SegMask:
    """One segment on one frame of a source."""

    reader: SegReader
    path: str
    frame: int
    """Within the segmentation."""
    value: int | None
    """The number of the segment in a label map; None: what reaches the threshold belongs to it."""
    threshold: float
    """Least stored value that belongs to the segment."""
    corner: tuple[int, int]
    """Row and column of the source at which the segmentation begins."""

    def mask(self, height: int, width: int) -> NDArray[np.bool_]:
        """Give the mask on the pixels of the source (height, width).

        Raises:
            LabelError: the frame does not decode.
        """
        values = self.reader.read(self.path, self.frame)
        found = values == self.value if self.value is not None else values >= self.threshold
        row, col = self.corner
        mask = np.zeros((height, width), bool)
        top, left = max(row, 0), max(col, 0)
        bottom, right = min(row + found.shape[0], height), min(col + found.shape[1], width)
        if bottom > top and right > left:
            mask[top:bottom, left:right] = found[top - row : bottom - row, left - col : right - col]
        return mask


def _decode(dataset: Dataset, path: str, frame: int) -> NDArray[Any]:
    rows, cols = int(dataset.Rows), int(dataset.Columns)
    syntax = UID(dataset.file_meta.get("TransferSyntaxUID", "1.2.840.10008.1.2"))
    if rows * cols > _LARGEST_FRAME_PX:
        raise ValueError(f"{rows} x {cols} pixels are no frame of an image")
    bits = int(dataset.BitsAllocated)
    if syntax == DEFLATED_FRAMES:
        return _unpack(zlib.decompress(_encoded(dataset, frame), -15), 0, (rows, cols), bits)
    if bits == 1 and syntax in (JPEG2000Lossless, RLELossless):
        # pydicom decodes neither with a bit a pixel.
        import imagecodecs

        data = _encoded(dataset, frame)
        if syntax == JPEG2000Lossless:
            return np.asarray(imagecodecs.jpeg2k_decode(data)).reshape(rows, cols)
        # PS3.5 G.5: a header of 64 bytes, its second number is where the one segment begins.
        begin = int.from_bytes(data[4:8], "little")
        return _unpack(bytes(imagecodecs.packbits_decode(data[begin:])), 0, (rows, cols), bits)
    if syntax.is_compressed or syntax == ExplicitVRBigEndian:
        several = _frames(dataset) > 1
        return np.asarray(pixel_array(path, index=frame) if several else pixel_array(path)).reshape(rows, cols)
    return _unpack(dataset.PixelData, frame, (rows, cols), bits)


def _encoded(dataset: Dataset, frame: int) -> bytes:
    data: bytes = get_frame(dataset.PixelData, frame, number_of_frames=_frames(dataset))
    return data


def _frames(dataset: Dataset) -> int:
    return int(dataset.get("NumberOfFrames") or 1)


def _unpack(data: bytes, frame: int, shape: tuple[int, int], bits: int) -> NDArray[Any]:
    """Take a frame out of little-endian pixel data."""
    count = shape[0] * shape[1]
    if bits == 1:
        first = frame * count
        packed = np.frombuffer(data, np.uint8)[first // 8 : -(-(first + count) // 8)]
        unpacked = np.unpackbits(packed, bitorder="little")[first % 8 : first % 8 + count]
        return unpacked.reshape(shape)
    values = np.frombuffer(data, np.dtype(f"<u{bits // 8}"), count, frame * count * (bits // 8))
    return values.reshape(shape)
