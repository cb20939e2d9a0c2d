"""Which of its pixels a tile answers for: where tiles of a source overlap, each pixel is judged once.

Tiles overlap where the stride is less than their size, and at the edge where the last one is shifted inwards. A pixel
that lies in several of them would count several times, those at the edge of the scene once, and one label would pass
for four. It counts in the tile whose centre is nearest, which is also where a blended map takes most of its value from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vitpipe.learn.loader import SplitTiles
from vitpipe.pixel_targets import IGNORE
from vitpipe.records import Task

if TYPE_CHECKING:
    import torch

    from vitpipe.manifest import Manifest
    from vitpipe.store import TileStore

_MOST_MASKS: Final = 64
"""Kept: on a grid most tiles have their neighbours in the same places."""
_INSIDE: Final = 1.0 - 1e-9

_Places = NDArray[np.int64]


class CountedPixels:
    """The pixels that each of some tiles answers for.

    Args:
        table: `source_id, frame, row, col` of tiles that are judged together, such as those of a split.
        shape: of a tile, (H, W) or (D, H, W).
    """

    def __init__(self, table: pd.DataFrame, shape: tuple[int, ...]) -> None:
        self._shape = np.array(shape, dtype=np.int64)
        self._masks: dict[bytes, NDArray[np.bool_]] = {}
        self._others: list[_Places] = [np.empty((0, len(shape)), dtype=np.int64)] * len(table)
        """Of each tile: where the tiles that overlap it lie, seen from it, (M, dims) pixels."""
        through = len(shape) == 3
        corners = table[["frame", "row", "col"] if through else ["row", "col"]].to_numpy(np.int64)
        # Frames of a 2-D tile are pictures of their own.
        keys = ["source_id"] if through else ["source_id", "frame"]
        for rows in table.groupby(keys, sort=False).indices.values():
            if len(rows) > 1:
                self._find(np.asarray(rows), corners[rows])

    def _find(self, rows: NDArray[np.intp], corners: _Places) -> None:
        # It takes half a second to import: only where tiles may overlap.
        from scipy.spatial import KDTree

        tree = KDTree(corners / self._shape)
        pairs = tree.query_pairs(_INSIDE, p=np.inf, output_type="ndarray")
        if not len(pairs):
            return
        both = np.concatenate([pairs, pairs[:, ::-1]])
        both = both[np.argsort(both[:, 0], kind="stable")]
        own, starts = np.unique(both[:, 0], return_index=True)
        for number, others in zip(own, np.split(both[:, 1], starts[1:]), strict=True):
            self._others[rows[number]] = corners[others] - corners[number]

    def drop(self, places: NDArray[np.int64]) -> NDArray[np.bool_] | None:
        """Give the pixels that another tile answers for.

        Args:
            places: rows of the table.

        Returns:
            (N, *shape); None where no tile overlaps another.
        """
        if not any(len(self._others[place]) for place in places):
            return None
        return np.stack([self._mask(self._others[place]) for place in places])

    def _mask(self, others: _Places) -> NDArray[np.bool_]:
        """Say which pixels are nearer to the centre of another tile, or as near to one that lies before."""
        others = others[np.lexsort(others.T[::-1])]
        key = others.tobytes()
        if key in self._masks:
            return self._masks[key]
        mask = np.zeros(self._shape, dtype=bool)
        # Twice the way from the own centre: whole numbers.
        axes = np.meshgrid(*(2 * np.arange(size) + 1 - size for size in self._shape), indexing="ij", sparse=True)
        for step in others:
            further = sum(int(by) * (int(by) - axis) for by, axis in zip(step, axes, strict=True))
            before = tuple(step) < (0,) * len(step)
            shared = tuple(slice(max(0, by), size + min(0, by)) for by, size in zip(step, self._shape, strict=True))
            mask[shared] |= (further <= 0 if before else further < 0)[shared]
        if len(self._masks) < _MOST_MASKS:
            self._masks[key] = mask
        return mask


class JudgedTiles(SplitTiles):
    """The tiles of a split that is judged: a pixel of several of them has a target in one alone.

    Args:
        manifest: the table, classes and channels.
        store: its tiles.
        split: which rows.
    """

    def __init__(self, manifest: Manifest, store: TileStore, split: str) -> None:
        super().__init__(manifest, store, split)
        per_pixel = manifest.task is not Task.CLASSIFICATION
        self._counted = CountedPixels(self.places, self.tile_shape[1:]) if per_pixel else None

    def targets_at(self, places: NDArray[np.int64], valid: NDArray[np.bool_] | None) -> torch.Tensor:
        """Give the targets of tiles; of every pixel, those that another tile answers for have none."""
        found = super().targets_at(places, valid)
        elsewhere = self._counted.drop(places) if self._counted is not None else None
        if elsewhere is not None:
            values = found.numpy()
            values[elsewhere] = IGNORE if values.dtype == np.uint8 else np.nan
        return found
