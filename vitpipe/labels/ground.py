"""Labels that lie on the ground, or on the pixels of scenes: rasters and vectors, painted onto the grid of the tiles.

They are asked for rows of that grid, so what is held is a block of rows, whatever the size of a scene or of a label
raster. What a pixel gets is its place in the list of classes, or a continuous value.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from vitpipe.digest import digest_of_digests
from vitpipe.labels.regions import TileRule
from vitpipe.pixel_targets import IGNORE

# Codes of label files that are not used, or not wholly.
UNREADABLE: Final = "LABEL_UNREADABLE"
UNSUPPORTED: Final = "LABEL_UNSUPPORTED"
NO_BAND: Final = "LABEL_NO_BAND"
NO_CRS: Final = "LABEL_NO_CRS"
NO_PLACE: Final = "LABEL_SOURCE_WITHOUT_CRS"
OTHER_SHAPE: Final = "LABEL_OTHER_SHAPE"
EMPTY: Final = "LABEL_EMPTY"


KNOWN: Final = IGNORE - 1
"""Ground of which is known that nothing lies on it, where that is no class."""


class TileGrid(NamedTuple):
    """The grid on which the tiles of one source lie, after any resampling."""

    height: int
    width: int
    crs: str | None
    transform: tuple[float, ...] | None
    """a, b, c, d, e, f: (col, row) of an edge to the CRS; None: the source has no place on the ground."""
    to_source: tuple[float, ...] | None
    """a, b, c, d, e, f: (col, row) of an edge to that of the source's own pixels; None: they lie in another CRS."""
    source_shape: tuple[int, int]
    """Height and width of the source."""


class Painter(Protocol):
    """A layer, opened for one grid."""

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Give rows of the grid (stop - start, width): uint8 places of classes with `IGNORE`, or float32 with NaN.

        Raises:
            LabelError, UnreadableSource: the label file cannot be read any more.
        """

    def masks(self, start: int, stop: int) -> dict[int, NDArray[np.bool_]]:
        """Give a mask of these rows for every class that is there: where they overlap, a pixel is in several."""


class Layer(Protocol):
    """One label file, or what it holds for one source."""

    @property
    def digest(self) -> str:
        """Of what it says, and of how."""

    def open(self, grid: TileGrid) -> contextlib.AbstractContextManager[Painter]:
        """Open it for the grid of a source's tiles."""


def masks_of(rows: NDArray[np.uint8]) -> dict[int, NDArray[np.bool_]]:
    """Give the masks of places of classes that exclude each other."""
    return {int(place): rows == place for place in np.unique(rows) if place != IGNORE}


@dataclass(frozen=True)
class GroundLabels:
    """What lies on the ground of all sources."""

    rule: TileRule
    classes: tuple[str, ...]
    """Sorted; none: the values are continuous."""
    layers: Mapping[str, tuple[Layer, ...]]
    """Source to its label files."""
    aoi: Layer | None = None
    """The area of interest: a layer of one class. Outside it nothing is labelled."""
    covers: bool = False
    """Whether ground on which nothing lies is of the rule's background."""
    ranks: tuple[int, ...] = ()
    """Of each class: where label files overlap the lowest wins; none: the first file does."""

    @property
    def sources(self) -> frozenset[str]:
        """Sources with a label file."""
        return frozenset(self.layers)

    def drawn(self, source_id: str) -> str:
        """Digest what is said of a source."""
        layers = [*self.layers[source_id], *([self.aoi] if self.aoi is not None else [])]
        return digest_of_digests(layer.digest for layer in layers)

    @contextlib.contextmanager
    def open(self, source_id: str, grid: TileGrid) -> Iterator[Painter]:
        """Open what is said of a source for the grid of its tiles."""
        with contextlib.ExitStack() as stack:
            painters = [stack.enter_context(layer.open(grid)) for layer in self.layers[source_id]]
            aoi = stack.enter_context(self.aoi.open(grid)) if self.aoi is not None else None
            background = None
            if self.covers:
                # Of a multi-label tile it is no class, but known ground.
                background = KNOWN if self.rule.multi_label else self.classes.index(str(self.rule.background))
            yield _Together(painters, aoi, background, np.array([*self.ranks], np.int64))


@dataclass(frozen=True)
class _Together:
    painters: Sequence[Painter]
    aoi: Painter | None
    background: int | None
    ranks: NDArray[np.int64]

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        found = self.painters[0].rows(start, stop)
        for painter in self.painters[1:]:
            better = _nothing(found)
            if not len(self.ranks) and not better.any():
                break
            more = painter.rows(start, stop)
            if len(self.ranks):
                both = ~better & (more != IGNORE)
                better[both] = self.ranks[more[both]] < self.ranks[found[both]]
            np.copyto(found, more, where=better)
        if self.background is not None:
            found[found == IGNORE] = self.background
        if self.aoi is not None:
            found[self.aoi.rows(start, stop) == IGNORE] = np.nan if found.dtype.kind == "f" else IGNORE
        return found

    def masks(self, start: int, stop: int) -> dict[int, NDArray[np.bool_]]:
        found: dict[int, NDArray[np.bool_]] = {}
        for painter in self.painters:
            for place, mask in painter.masks(start, stop).items():
                found[place] = found[place] | mask if place in found else mask
        if self.aoi is not None:
            inside = self.aoi.rows(start, stop) != IGNORE
            found = {place: mask & inside for place, mask in found.items()}
        return found


def _nothing(found: NDArray[Any]) -> NDArray[np.bool_]:
    lacking: NDArray[np.bool_] = np.isnan(found) if found.dtype.kind == "f" else found == IGNORE
    return lacking
