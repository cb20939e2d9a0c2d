"""What labels that lie on the image say of the pixels of a tile, whatever kind of labels they are.

A window is asked for. Frames of a patient are masked when their first tile asks, the last ones are kept; ground is
painted by rows of the tiles' grid, and rows that the next tiles need too are kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from vitpipe.config import TileRecipe
from vitpipe.labels.base import LabelSet
from vitpipe.labels.ground import GroundLabels, Painter, TileGrid
from vitpipe.labels.regions import RegionLabels, shares_of
from vitpipe.pixel_targets import IGNORE
from vitpipe.records import Source, Window
from vitpipe.tile_places import TilePlaces, tile_grid

Mask = NDArray[np.bool_]

_FRAMES_KEPT: Final = 8
_PAINTED_PX: Final = 1 << 22
"""Pixels that are painted at once."""


class Shares(NamedTuple):
    """What is said of the valid pixels of a tile."""

    by_class: Mapping[str, float]
    """Share of the valid pixels; where classes overlap the shares may sum to more than one."""
    known: float
    """Share of the pixels of which the labels say anything."""
    central: str | None
    """Class at the centre of the tile's part inside the source; None: none, or not valid."""


class Asker(Protocol):
    """Asked for the tiles of one source, best in the order of their rows."""

    def inside(self, window: Window) -> tuple[int, int, int]:
        """Give how many slices, rows and columns of a tile lie in the source: from its first corner on."""

    def shares(self, window: Window, valid: Mask) -> Shares:
        """Say what covers a tile.

        Args:
            window: of the tile.
            valid: (slices, rows, columns) of the part inside.
        """

    def targets(self, window: Window) -> NDArray[Any]:
        """Give the targets of the part inside (slices, rows, columns): uint8 with `IGNORE`, or float32 with NaN."""


def drawn_on(labels: LabelSet) -> dict[str, str]:
    """Give for each source with labels a digest of what lies on it; empty where that of the label set says it all."""
    assert labels.regions is not None
    regions = labels.regions
    if isinstance(regions, GroundLabels):
        return {name: regions.drawn(name) for name in regions.sources}
    return dict.fromkeys(regions.sources, "")


@contextlib.contextmanager
def open_labels(source: Source, labels: LabelSet, recipe: TileRecipe) -> Iterator[Asker]:
    """Open the labels of one source.

    Args:
        source: on which they lie.
        labels: their `regions` are asked.
        recipe: how the tiles were cut.

    Raises:
        LabelError: a label file cannot be read any more.
    """
    places = TilePlaces.of(source.grid, recipe, uri=source.uri)
    if isinstance(labels.regions, GroundLabels):
        grid = _ground_grid(source, recipe)
        with labels.regions.open(source.source_id, grid) as painter:
            yield _Ground(labels.regions, painter, grid, places)
    else:
        assert labels.regions is not None
        yield _Frames(source, labels.regions, labels.classes, places)


def _ground_grid(source: Source, recipe: TileRecipe) -> TileGrid:
    grid = tile_grid(source.grid, recipe, uri=source.uri)
    to_source: tuple[float, ...] | None = None
    if source.grid.transform is None:
        # Without a place on the ground: where the grid's pixels would lie if the source's had an edge of one.
        plain = dataclasses.replace(source.grid, transform=tuple(Affine.identity())[:6], crs=None)
        to_source = tile_grid(plain, recipe, uri=source.uri).transform
    elif grid.transform is not None and grid.crs == source.grid.crs:
        to_source = tuple(~Affine(*source.grid.transform) @ Affine(*grid.transform))[:6]
    return TileGrid(
        grid.height, grid.width, grid.crs, grid.transform, to_source, (source.grid.height, source.grid.width)
    )


def _centre(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size // 2 for size in shape)


class _Ground:
    """Labels on the ground, by rows of the tiles' grid."""

    def __init__(self, labels: GroundLabels, painter: Painter, grid: TileGrid, places: TilePlaces) -> None:
        self._labels, self._painter, self._grid, self._places = labels, painter, grid, places
        self._start = 0
        self._painted: NDArray[Any] = np.empty((0, grid.width), np.uint8)
        self._masks: tuple[tuple[int, int], dict[int, Mask]] = ((0, 0), {})

    def inside(self, window: Window) -> tuple[int, int, int]:
        cols, rows, _ = self._places.spans(window)
        return 1, rows[1] - rows[0], cols[1] - cols[0]

    def targets(self, window: Window) -> NDArray[Any]:
        cols, rows, _ = self._places.spans(window)
        return self._rows(*rows)[None, :, cols[0] : cols[1]]

    def shares(self, window: Window, valid: Mask) -> Shares:
        count = int(np.count_nonzero(valid))
        found = self.targets(window)
        if not count:
            return Shares({}, 0.0, None)
        counts = np.bincount(found[valid], minlength=IGNORE + 1)
        known = 1 - int(counts[IGNORE]) / count
        names = self._labels.classes
        if self._labels.rule.multi_label:
            cols, rows, _ = self._places.spans(window)
            masks = {names[place]: mask[None, :, slice(*cols)] for place, mask in self._rows_masks(rows).items()}
            return Shares(shares_of(masks, valid), known, None)
        by_class = {names[place]: int(counts[place]) / count for place in np.flatnonzero(counts[:IGNORE])}
        middle = _centre(found.shape)
        central = names[found[middle]] if valid[middle] and found[middle] != IGNORE else None
        return Shares(by_class, known, central)

    def _rows(self, start: int, stop: int) -> NDArray[Any]:
        """Paint what is not there yet, more than is asked for: a row of a file's blocks is high."""
        end = self._start + len(self._painted)
        if not self._start <= start <= end or not len(self._painted):
            self._start = end = start
            self._painted = self._painted[:0]
        if stop > end:
            ahead = min(max(stop, end + _PAINTED_PX // self._grid.width), self._grid.height)
            fresh = self._painter.rows(end, ahead)
            kept = self._painted[start - self._start :]
            self._painted = np.concatenate([kept, fresh]) if len(kept) else fresh
            self._start = start
        return self._painted[start - self._start : stop - self._start]

    def _rows_masks(self, rows: tuple[int, int]) -> dict[int, Mask]:
        if self._masks[0] != rows:
            self._masks = rows, self._painter.masks(*rows)
        return self._masks[1]


class _Frames:
    """What is drawn on the frames of one source; the masks used last are kept."""

    def __init__(self, source: Source, regions: RegionLabels, classes: tuple[str, ...], places: TilePlaces) -> None:
        self._regions, self._source, self._places = regions, source, places
        self._places_of = {name: place for place, name in enumerate(classes)}
        self._kept: OrderedDict[int, dict[str, Mask]] = OrderedDict()

    def inside(self, window: Window) -> tuple[int, int, int]:
        depth, height, width = (len(along) for along in self._places.voxels(window).tile)
        return depth, height, width

    def shares(self, window: Window, valid: Mask) -> Shares:
        covered = self._covered(window)
        middle = _centre(valid.shape)
        central = None
        by_class = shares_of(covered, valid)
        if valid[middle]:
            there = self._regions.rule.order(name for name, mask in covered.items() if mask[middle])
            central = there[0] if there else self._regions.rule.background
        if self._regions.rule.tile_class == "centre" and central is not None and central not in covered:
            drawn = np.any(list(covered.values()), axis=0) if covered else np.zeros(valid.shape, bool)
            by_class = {**by_class, central: int(np.count_nonzero(valid & ~drawn)) / int(np.count_nonzero(valid))}
        return Shares(by_class, 1.0, central)

    def targets(self, window: Window) -> NDArray[Any]:
        rule = self._regions.rule
        nothing = IGNORE if rule.background is None else self._places_of[rule.background]
        found = np.full(self.inside(window), nothing, np.uint8)
        covered = self._covered(window)
        for name in reversed(rule.order(covered)):
            found[covered[name]] = self._places_of[name]
        return found

    def _covered(self, window: Window) -> dict[str, Mask]:
        """Give what each class covers of a tile (slices, rows, columns); nothing where nothing is drawn."""
        voxels = self._places.voxels(window)
        frames, rows, cols = voxels.of_source()
        masks = {int(frame): self._masks(int(frame), len(frames)) for frame in np.unique(frames)}
        names = sorted({name for found in masks.values() for name in found})
        empty = np.zeros((len(rows), len(cols)), bool)
        within = np.ix_(rows, cols)
        covered = {}
        for name in names:
            slabs = [masks[int(frame)][name][within] if name in masks[int(frame)] else empty for frame in frames]
            covered[name] = np.stack(slabs).transpose(voxels.axes)
        return covered

    def _masks(self, frame: int, wanted: int) -> dict[str, Mask]:
        if frame not in self._kept:
            while len(self._kept) >= max(wanted, _FRAMES_KEPT):
                self._kept.popitem(last=False)
            grid = self._source.grid
            self._kept[frame] = self._regions.masks(self._source.source_id, frame, grid.height, grid.width)
        self._kept.move_to_end(frame)
        return self._kept[frame]
