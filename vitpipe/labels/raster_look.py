"""A look at which values a label raster holds under the sources, before anything is learned of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vitpipe.errors import LabelError
from vitpipe.labels.places import Rectangle
from vitpipe.labels.raster_layer import Band, open_band, read_values

_MOST_VALUES: Final = 4096
"""Different values of which a raster is surely not one of classes."""
_ROWS: Final = 512
_COLS: Final = 8192
"""Edges of the parts that are read: whole blocks of most files."""


def values_under(
    band: Band, windows: Sequence[tuple[str, Rectangle]], *, continuous: bool
) -> Iterator[tuple[str, set[float]]]:
    """Give the values of a raster under each source; every part of it is read once.

    Args:
        band: of the raster.
        windows: source and the window of the raster that it may cover.
        continuous: values are not told apart: one of them stands for all.

    Raises:
        LabelError: there are too many for classes.
        UnreadableSource: a block cannot be decoded.
    """
    parts: dict[tuple[int, int], list[tuple[str, Rectangle]]] = {}
    for source_id, window in windows:
        for top in range(window.top // _ROWS * _ROWS, window.bottom, _ROWS):
            for left in range(window.left // _COLS * _COLS, window.right, _COLS):
                inner = Rectangle(
                    max(window.top, top),
                    min(window.bottom, top + _ROWS),
                    max(window.left, left),
                    min(window.right, left + _COLS),
                )
                parts.setdefault((top, left), []).append((source_id, inner))
    seen: set[float] = set()
    with open_band(band.path) as dataset:
        for place in sorted(parts):
            inner_parts = [part for _, part in parts[place]]
            whole = Rectangle(
                min(part.top for part in inner_parts),
                max(part.bottom for part in inner_parts),
                min(part.left for part in inner_parts),
                max(part.right for part in inner_parts),
            )
            values, said = read_values(dataset, band.number, whole)
            for source_id, part in parts[place]:
                there = np.s_[
                    part.top - whole.top : part.bottom - whole.top, part.left - whole.left : part.right - whole.left
                ]
                here = values[there][said[there]]
                if band.ignored:
                    here = here[~np.isin(here, band.ignored)]
                found = {float(value) for value in (here[:1] if continuous else _different(here))}
                seen |= set() if continuous else found
                if len(seen) > _MOST_VALUES:
                    raise LabelError(
                        f"{band.path} holds more than {_MOST_VALUES} different values, so they are no classes; set "
                        "`labels.values: continuous`, or `labels.band` to the band of classes"
                    )
                yield source_id, found


def _different(values: NDArray[Any]) -> NDArray[Any]:
    """Give the different values; of few possible ones by counting, which is faster than sorting."""
    if values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        return np.flatnonzero(np.bincount(values))
    return np.unique(values)
