"""How tiles cover an axis, and what each adds to the mean where several lie over one another.

The weight of a pixel in a tile is a product of one factor an axis, so a blend is a blend of tiles along a row, and
then of rows of tiles: each axis is done by itself. It is kept as a running mean, ``m += r * (v - m)``, where ``r`` is
the share of the new tile in all weight so far (West 1979). Values that are equal in all tiles stay as they are to the
last bit, no weights have to be kept, and nothing is divided at the end.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

FLOOR: Final = 1e-3
"""Least weight of a pixel, as a share of the largest one: a pixel under the rim of a tile alone has a value too."""


class Blend(enum.StrEnum):
    """How overlapping tiles are put together."""

    HANN = "hann"
    """Weights fall from the middle of a tile to its rim as a Hann window, with a floor."""
    MEAN = "mean"
    """All tiles weigh the same."""
    TRIM = "trim"
    """Each pixel is of the tile whose middle is nearest."""


@dataclass(frozen=True, slots=True)
class Cover:
    """The tiles along one axis.

    The last tile is moved inwards, so that it sees pixels and no padding. An axis that is shorter than a tile has one
    tile; what is missing is mirrored (:meth:`mirrored`).
    """

    length: int
    """Pixels of the axis."""
    size: int
    """Pixels of a tile."""
    starts: tuple[int, ...]
    """First pixel of each tile."""
    shares: tuple[NDArray[np.float32], ...]
    """For each tile: its share ``r`` at its first pixels, those that an earlier tile covers as well. At all others it
    is the first."""

    @classmethod
    def of(cls, length: int, size: int, *, overlap: float, blend: Blend) -> Cover:
        """Lay tiles over an axis.

        Args:
            length: pixels of the axis.
            size: pixels of a tile.
            overlap: share of a tile that the next one covers too; 0 to below 1.
            blend: the weights.
        """
        step = max(1, round(size * (1 - overlap)))
        starts = [0] if length <= size else [*range(0, length - size, step), length - size]
        total = np.zeros(length)
        window = _window(size, blend)
        shares: list[NDArray[np.float32]] = []
        stop = 0
        for number, start in enumerate(starts):
            both = slice(start, max(stop, start))
            weight = window[: both.stop - start]
            if blend is Blend.TRIM and number:
                middle = (starts[number - 1] + start + size) / 2
                share = (np.arange(both.start, both.stop) + 0.5 > middle).astype(np.float32)
            else:
                share = (weight / (total[both] + weight)).astype(np.float32)
            shares.append(share)
            stop = min(start + size, length)
            total[start:stop] += window[: stop - start]
        return cls(length, size, tuple(starts), tuple(shares))

    def stop(self, number: int) -> int:
        """Give the end of a tile within the axis."""
        return min(self.starts[number] + self.size, self.length)

    def final(self, number: int) -> int:
        """Give the pixel up to which everything is final once this tile and all before it are in."""
        return self.starts[number + 1] if number + 1 < len(self.starts) else self.length

    def first_for(self, pixel: int) -> int:
        """Give the first tile that covers this pixel or a later one."""
        return next(number for number, start in enumerate(self.starts) if start + self.size > pixel)

    def mirrored(self) -> NDArray[np.intp] | None:
        """Give the pixel to take for each pixel of a tile, mirrored about the outermost ones; None: all are there."""
        if self.length >= self.size:
            return None
        period = max(1, 2 * (self.length - 1))
        places = np.arange(self.size) % period
        return np.minimum(places, period - places) if self.length > 1 else np.zeros(self.size, np.intp)

    def add(self, number: int, values: NDArray[Any], into: NDArray[Any]) -> None:
        """Blend a tile into the mean of those before it.

        Args:
            number: of the tile; tiles come in their order.
            values: (..., size or less): the tile's pixels that lie within the axis.
            into: (..., length); changed in place.
        """
        share = self.shares[number]
        start, both = self.starts[number], len(share)
        into[..., start + both : self.stop(number)] = values[..., both:]
        if both:
            blend_into(into[..., start : start + both], values[..., :both], share)


def blend_into(mean: NDArray[Any], values: NDArray[Any], share: NDArray[np.float32]) -> None:
    """Take values into a running mean, in place; all three of one shape, or such that broadcast."""
    change = values - mean
    change *= share
    mean += change


def _window(size: int, blend: Blend) -> NDArray[np.float64]:
    """Give the weights of a tile's pixels; pixel centres lie at half numbers, so no weight of the window is zero."""
    if blend is not Blend.HANN:
        return np.ones(size)
    return np.asarray(np.maximum(np.sin(np.pi * (np.arange(size) + 0.5) / size) ** 2, FLOOR))
