"""Overviews of a map: each level is half of the one below, reduced from 2 x 2 pixels that may hold nodata."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vitpipe.infer.mapping.layers import Resampling

LEAST_EDGE: Final = 512
"""Levels are added until one is no larger, as those of the COG driver: what a viewer shows at once."""
_ROWS_AT_ONCE: Final = 32


def level_shapes(height: int, width: int) -> tuple[tuple[int, int], ...]:
    """Give (height, width) of each level, the map itself first; odd edges are rounded up, as GDAL does."""
    shapes = [(height, width)]
    while max(shapes[-1]) > LEAST_EDGE:
        shapes.append((-(-shapes[-1][0] // 2), -(-shapes[-1][1] // 2)))
    return tuple(shapes)


def reduce_by_two(band: NDArray[Any], nodata: float, how: Resampling, into: NDArray[Any]) -> None:
    """Reduce a band to half its edges.

    Args:
        band: (rows, width), uint8 or float32.
        nodata: counts for nothing; kept where none of the four is valid.
        how: average: the mean of the valid ones, of uint8 rounded half up; mode: the most frequent valid one, of
            equally frequent ones the first in reading order.
        into: (rows / 2, width / 2), rounded up, of the same dtype.
    """
    width = band.shape[1]
    if width % 2 and width > 1:
        # The last column by itself: with what is missing beside it, all rows would look as if they had holes.
        reduce_by_two(band[:, :-1], nodata, how, into[:, :-1])
        band, into = band[:, -1:], into[:, -1:]
    for row in range(0, len(into), _ROWS_AT_ONCE):
        out = into[row : row + _ROWS_AT_ONCE]
        part = band[2 * row : 2 * (row + len(out))]
        missing = (2 * len(out) - len(part), part.shape[1] % 2)
        if any(missing):
            part = np.pad(part, ((0, missing[0]), (0, missing[1])), constant_values=nodata)
        if how == "average" and part.dtype == np.uint8 and not (part == nodata).any():
            _halve_bytes(part, out)
            continue
        four = [np.ascontiguousarray(part[down::2, right::2]) for down in (0, 1) for right in (0, 1)]
        out[:] = _mode(four, nodata) if how == "mode" else _average(four, nodata)


def _halve_bytes(part: NDArray[np.uint8], out: NDArray[Any]) -> None:
    """Average where all pixels are valid: sums of two rows are 16 bits wide, and two of them one word."""
    rows = np.add(part[::2], part[1::2], dtype=np.uint16).view(np.uint32)
    # The same on machines of either byte order: it takes the sum of both halves.
    total = rows >> np.uint32(16)
    total += rows & np.uint32(0xFFFF)
    total += np.uint32(2)
    total >>= np.uint32(2)
    np.copyto(out, total, casting="unsafe")


def _average(four: list[NDArray[Any]], nodata: float) -> NDArray[Any]:
    return _average_float(four) if four[0].dtype.kind == "f" else _average_bytes(four, int(nodata))


def _average_bytes(four: list[NDArray[np.uint8]], nodata: int) -> NDArray[np.uint16]:
    total = np.zeros(four[0].shape, np.uint16)
    count = np.zeros(four[0].shape, np.uint16)
    for each in four:
        valid = each != nodata
        # A product with a mask takes a tenth of the time of `where`.
        total += each * valid
        count += valid
    parts = np.maximum(count, np.uint16(1))
    return np.where(count > 0, (total + (parts >> np.uint16(1))) // parts, np.uint16(nodata))


def _average_float(four: list[NDArray[np.float32]]) -> NDArray[np.float64]:
    total = np.zeros(four[0].shape, np.float64)
    count = np.zeros(four[0].shape, np.float64)
    for each in four:
        valid = ~np.isnan(each)
        total += np.where(valid, each, np.float32(0))
        count += valid
    return np.asarray(np.where(count > 0, total / np.maximum(count, 1), np.nan))


def _mode(four: list[NDArray[Any]], nodata: float) -> NDArray[Any]:
    best = four[0].copy()
    differ = best != four[1]
    differ |= best != four[2]
    differ |= best != four[3]
    # Most of a map is one class over all four.
    places = np.flatnonzero(differ)
    four = [each.ravel()[places] for each in four]
    found, most = four[0].copy(), np.zeros(len(places), np.uint8)
    for each in four:
        votes = np.zeros(len(places), np.uint8)
        for other in four:
            votes += each == other
        votes[each == nodata] = 0
        better = votes > most
        found[better], most[better] = each[better], votes[better]
    best.ravel()[places] = found
    return best
