"""Closed contours as masks: a pixel belongs to a contour when its centre lies inside."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
"""(N, 2): row and column in pixels of the frame; a whole number is a pixel's centre."""


@dataclass(frozen=True, slots=True, eq=False)
class ContourMask:
    """All contours of one region of interest on one frame."""

    contours: tuple[Points, ...]

    def mask(self, height: int, width: int) -> NDArray[np.bool_]:
        """Fill them: see :func:`fill`."""
        return fill(self.contours, height, width)


def fill(contours: tuple[Points, ...], height: int, width: int) -> NDArray[np.bool_]:
    """Fill contours by the even-odd rule: what lies within two of them is a hole (PS3.3 C.8.8.6.3).

    Each edge marks, in every row whose centre it crosses, the first pixel to the right of the crossing; from there on
    inside and outside change places. An edge holds its upper end and not its lower one, so that none counts twice.

    Returns:
        Mask (height, width).
    """
    marks = np.zeros((height, width + 1), bool)
    for points in contours:
        start, stop = points, np.roll(points, -1, axis=0)
        upper = np.where((start[:, 0] <= stop[:, 0])[:, None], start, stop)
        lower = np.where((start[:, 0] <= stop[:, 0])[:, None], stop, start)
        first = np.clip(np.ceil(upper[:, 0]), 0, height).astype(np.intp)
        last = np.clip(np.ceil(lower[:, 0]), 0, height).astype(np.intp)
        counts = np.maximum(last - first, 0)
        edges = np.repeat(np.arange(len(points)), counts)
        if not len(edges):
            continue
        begins = np.cumsum(counts) - counts
        rows = first[edges] + np.arange(len(edges)) - begins[edges]
        run = (lower[edges, 1] - upper[edges, 1]) / (lower[edges, 0] - upper[edges, 0])
        cols = np.ceil(upper[edges, 1] + (rows - upper[edges, 0]) * run).clip(0, width).astype(np.intp)
        np.logical_xor.at(marks, (rows, cols), True)  # noqa: FBT003 - the operand
    inside: NDArray[np.bool_] = np.logical_xor.accumulate(marks, axis=1)[:, :width]
    return inside
