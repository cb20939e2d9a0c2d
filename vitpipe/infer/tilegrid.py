"""A raster of one pixel a tile: what a model of tiles says of a scene, where it lies."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vitpipe.config import TileRecipe
from vitpipe.cutting import origins
from vitpipe.evaluate.units import probability_columns
from vitpipe.infer.mapping import ClassLayers, MapFile, MapRows
from vitpipe.infer.mapping.layers import NODATA
from vitpipe.records import Grid
from vitpipe.resample import prepared_grid

_ROWS_AT_ONCE = 256


class TileLayers:
    """Class, probabilities and entropy of each tile, and whether the model abstains; of uint8.

    Args:
        classes: their names.
        multi_label: a tile may have several classes: the probabilities alone are kept.
    """

    dtype: np.dtype[Any] = np.dtype(np.uint8)
    nodata: float = NODATA

    def __init__(self, classes: tuple[str, ...], *, multi_label: bool) -> None:
        self._inner = ClassLayers(classes)
        self.outputs = len(classes) + 1
        self.bands = self._inner.bands + 1
        abstain = MapFile("abstain", (self.bands - 1,), ("abstain",), "mode", classes=("decided", "abstained"))
        self.files: tuple[MapFile, ...] = (*self._inner.files, abstain)
        if multi_label:
            self.files = tuple(file for file in self._inner.files if file.name == "probabilities")

    def keep(self, values: NDArray[np.float32], valid: NDArray[np.bool_], into: NDArray[Any]) -> None:
        """Keep probabilities and, as the last of the values, 1 where the model abstains."""
        self._inner.keep(values[:-1], valid, into[:-1])
        into[-1] = np.where(valid, values[-1], NODATA)


def tile_grid(grid: Grid, recipe: TileRecipe, *, uri: str) -> Grid:
    """Give the grid whose pixels are the tiles of a source.

    A pixel is as large as the step between tiles, and has its centre where its tile has it. With ``edge: shift`` the
    last tile lies less than a step from the one before, and is drawn as if it lay a whole one.

    Args:
        grid: of the source.
        recipe: how it was cut.
        uri: the source, for errors.

    Raises:
        UnreadableSource: see `vitpipe.resample.prepared_grid`.
    """
    base = prepared_grid(grid, recipe, uri=uri)
    height, width = (len(found) for found in _origins(base, recipe))
    if recipe.cut == "whole":
        step, start = (float(base.height), float(base.width)), (0.0, 0.0)
    else:
        middle = (recipe.size - recipe.step) / 2
        step, start = (float(recipe.step),) * 2, (middle, middle)
    transform = base.transform
    if transform is not None:
        a, b, c, d, e, f = transform
        c, f = a * start[1] + b * start[0] + c, d * start[1] + e * start[0] + f
        transform = (a * step[1], b * step[0], c, d * step[1], e * step[0], f)
    gcps = tuple(((row - start[0]) / step[0], (col - start[1]) / step[1], x, y) for row, col, x, y in base.gcps)
    return dataclasses.replace(
        base, height=height, width=width, transform=transform, affine=None, spacing_mm=None, gcps=gcps
    )


def tile_rows(
    tiles: pd.DataFrame, grid: Grid, recipe: TileRecipe, classes: tuple[str, ...], *, uri: str
) -> Iterator[MapRows]:
    """Give the rows of the raster of a source's tiles; `values` are those that `TileLayers` keeps.

    Args:
        tiles: of this source: `row`, `col`, the probabilities, `abstain`.
        grid: of the source.
        recipe: how it was cut.
        classes: names, in the order of the model.
        uri: the source, for errors.
    """
    rows, cols = _origins(prepared_grid(grid, recipe, uri=uri), recipe)
    names = [*probability_columns(classes), "abstain"]
    places = np.searchsorted(rows, tiles["row"]), np.searchsorted(cols, tiles["col"])
    values = tiles[names].to_numpy(np.float32)
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        count = min(_ROWS_AT_ONCE, len(rows) - start)
        here = (places[0] >= start) & (places[0] < start + count)
        part = np.zeros((len(names), count, len(cols)), np.float32)
        valid = np.zeros((count, len(cols)), bool)
        part[:, places[0][here] - start, places[1][here]] = values[here].T
        valid[places[0][here] - start, places[1][here]] = True
        yield MapRows(start, part, valid)


def _origins(base: Grid, recipe: TileRecipe) -> tuple[list[int], list[int]]:
    if recipe.cut == "whole":
        return [0], [0]
    return origins(base.height, recipe), origins(base.width, recipe)
