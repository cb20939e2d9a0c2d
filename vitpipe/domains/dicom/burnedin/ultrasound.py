"""Ultrasound: what lies outside the regions of the image is screen, and screens show names."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from pydicom import Dataset

from vitpipe.domains.dicom.deidentify.judge import Rectangle
from vitpipe.domains.dicom.fields import children, number

_CORNERS = ("RegionLocationMinX0", "RegionLocationMinY0", "RegionLocationMaxX1", "RegionLocationMaxY1")
_NO_DATA = 0


def image_regions(header: Dataset, rows: int, cols: int) -> tuple[Rectangle, ...]:
    """Give the calibrated regions of an ultrasound frame that hold data, cut to the frame.

    Corners are columns and rows counted from zero at the upper left, the lower right one included. A region that states
    no kind of data (RegionDataType 0) is no image. Source: PS3.3 C.8.5.5.1.

    Args:
        header: with or without SequenceOfUltrasoundRegions (0018,6011).
        rows: height of a frame.
        cols: width of a frame.
    """
    found = []
    for item in children(header, "SequenceOfUltrasoundRegions"):
        corners = [number(item, keyword) for keyword in _CORNERS]
        if number(item, "RegionDataType") == _NO_DATA or any(corner is None for corner in corners):
            continue
        left, top, right, bottom = (int(corner) for corner in corners if corner is not None)
        left, top = max(left, 0), max(top, 0)
        right, bottom = min(right, cols - 1), min(bottom, rows - 1)
        if left <= right and top <= bottom:
            found.append(Rectangle(top, left, bottom - top + 1, right - left + 1))
    return tuple(found)


def outside(regions: Sequence[Rectangle], rows: int, cols: int) -> tuple[Rectangle, ...]:
    """Give rectangles that cover a frame but for some regions; they do not overlap.

    Args:
        regions: inside the frame; they may overlap.
        rows: height of the frame.
        cols: width of the frame.
    """
    edges = sorted({0, rows, *(item.row for item in regions), *(item.row + item.height for item in regions)})
    bands: list[tuple[int, int, tuple[tuple[int, int], ...]]] = []
    for top, bottom in pairwise(edges):
        inside = sorted(
            (item.col, item.col + item.width) for item in regions if item.row <= top < item.row + item.height
        )
        gaps = _gaps(inside, cols)
        if bands and bands[-1][2] == gaps:
            bands[-1] = (bands[-1][0], bottom, gaps)
        else:
            bands.append((top, bottom, gaps))
    return tuple(
        Rectangle(top, left, bottom - top, right - left) for top, bottom, gaps in bands for left, right in gaps
    )


def _gaps(inside: Sequence[tuple[int, int]], cols: int) -> tuple[tuple[int, int], ...]:
    """Give what sorted intervals leave free of ``0 .. cols``."""
    gaps, at = [], 0
    for left, right in inside:
        if left > at:
            gaps.append((at, left))
        at = max(at, right)
    if at < cols:
        gaps.append((at, cols))
    return tuple(gaps)
