"""Headers and frames for the tests of burned-in text. No text here is a person's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items

from vitpipe.domains.dicom.deidentify.judge import Rectangle


class Frames:
    """Pixels in memory: (frames, rows, cols) or (frames, rows, cols, 3); counts what was decoded."""

    def __init__(self, stored: NDArray[np.generic]) -> None:
        self._stored = stored
        self.decoded = 0

    @property
    def frames(self) -> int:
        return len(self._stored)

    @property
    def rows(self) -> int:
        return int(self._stored.shape[1])

    @property
    def cols(self) -> int:
        return int(self._stored.shape[2])

    def stored(self, frame: int) -> NDArray[np.generic]:
        self.decoded += 1
        return self._stored[frame]


def header(**values: object) -> Dataset:
    data = Dataset()
    for keyword, value in values.items():
        setattr(data, keyword, value)
    return data


def region(left: int, top: int, right: int, bottom: int, kind: int = 1) -> Dataset:
    """An item of SequenceOfUltrasoundRegions: corners in columns and rows, both included."""
    return header(
        RegionLocationMinX0=left,
        RegionLocationMinY0=top,
        RegionLocationMaxX1=right,
        RegionLocationMaxY1=bottom,
        RegionDataType=kind,
    )


def ultrasound(regions: Sequence[Dataset] = (), **values: object) -> Dataset:
    data = header(Modality="US", SOPClassUID="1.2.840.10008.5.1.4.1.1.6.1", **values)
    if regions:
        data.SequenceOfUltrasoundRegions = Items(regions)
    return data


def covered(rectangles: Sequence[Rectangle], rows: int, cols: int) -> NDArray[np.bool_]:
    """Give which pixels of a frame some rectangles cover."""
    mask = np.zeros((rows, cols), np.bool_)
    for box in rectangles:
        mask[max(box.row, 0) : box.row + box.height, max(box.col, 0) : box.col + box.width] = True
    return mask


def written(text: str, shape: tuple[int, int], at: tuple[int, int], size: int) -> NDArray[np.bool_]:
    """Give the pixels of a text in Pillow's own font, `at` (row, col)."""
    picture = Image.new("L", (shape[1], shape[0]), 0)
    ImageDraw.Draw(picture).text((at[1], at[0]), text, fill=255, font=ImageFont.load_default(size))
    return np.asarray(picture) > 127
