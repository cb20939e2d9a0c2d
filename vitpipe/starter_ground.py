"""Guess which polygons, points or rasters beside scenes are their labels: by what lies on them, not by names alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vitpipe.config import RasterLabels, TileRecipe, VectorLabels
from vitpipe.errors import ConfigError, LabelError
from vitpipe.labels.base import LabelSet
from vitpipe.labels.read import as_attribute
from vitpipe.labels.vector_files import SUFFIXES
from vitpipe.records import Json, Source
from vitpipe.starter_labels import LabelGuess, find_label
from vitpipe.tile_survey import survey_tiles

_MOST_CLASSES: Final = 100
_MOST_UNNAMED: Final = 20
"""Values that are listed for the user to name."""
_MOST_FEATURES: Final = 5000
_TIFFS: Final = (".tif", ".tiff", ".gtif", ".gtiff")
_LEAST_TILE_SHARE: Final = 0.5
"""Of a tile that the median polygon must cover for polygons to label tiles, not pixels."""
_CELL_PX: Final = (24, 512)
"""Edges of polygons that may be the cells of a grid."""
_CELL_SPREAD: Final = 0.05
"""How much edges of cells may differ."""
_PIXEL_TILES_PX: Final = (128, 64, 32)
_ENOUGH_TILES: Final = 64
"""Fewer leave too few blocks of ground for four splits, of sparse labels above all."""


def guess_ground_labels(
    files: Sequence[Path], sources: Sequence[Source], size_px: int, lines: list[str]
) -> LabelGuess | None:
    """Guess the labels of scenes among the files beside them; vectors before rasters, since they name their classes.

    Args:
        files: beside the scenes.
        sources: the scenes.
        size_px: of a tile, where labels do not say otherwise.
        lines: takes a sentence for what is passed over.
    """
    if all(source.grid.transform is None or source.grid.crs is None for source in sources):
        return None
    # GDAL takes its time to load: only where there are scenes on the ground.
    from vitpipe.labels.vector_files import SUFFIXES

    vectors = [path for path in files if path.suffix.lower() in SUFFIXES]
    for place in _together(vectors):
        if guess := _guess_vectors(place, sources, size_px, lines):
            return guess
    scenes = {file for source in sources for file in source.files}
    rasters = [path for path in files if _may_be_labels(path, scenes)]
    for place in _together(rasters):
        # A folder is read as a whole: with another raster in it, its files are tried one by one.
        inside = [place] if place.is_file() else (path for path in place.rglob("*") if _may_be_labels(path, scenes))
        if guess := _guess_rasters(place, inside, sources, lines):
            return guess
    return None


def say_unplaced(kind: str, sources: Sequence[Source], data: Path) -> list[str]:
    """Say that TIFF files without a CRS were taken as photographs, where they may well be scenes."""
    tiffs = [source for source in sources if Path(source.uri).suffix.lower() in _TIFFS]
    if kind != "images" or not tiffs:
        return []
    drawn = data.is_dir() and any(path.suffix.lower() in SUFFIXES for path in data.rglob("*"))
    return [
        f"{len(tiffs)} TIFF file(s), such as {Path(tiffs[0].uri).name}, have no CRS, so they are taken as photographs"
        + (", on which what is drawn beside them labels nothing" if drawn else "")
        + "; if they are scenes, write their CRS into them, such as `gdal_edit.py -a_srs EPSG:32632 FILE` (and `-a_ullr"
        " ULX ULY LRX LRY` where they have no position either), and run init again with --force"
    ]


def _may_be_labels(path: Path, scenes: set[str]) -> bool:
    return path.suffix.lower() in _TIFFS and str(path) not in scenes


def _together(files: Sequence[Path]) -> Iterator[Path]:
    """Give the folders of several files, which may be one a scene, and then the files."""
    for folder in dict.fromkeys(path.parent for path in files):
        inside = [path for path in files if path.parent == folder]
        if len(inside) > 1:
            yield folder
        yield from inside


def _guess_vectors(place: Path, sources: Sequence[Source], size_px: int, lines: list[str]) -> LabelGuess | None:
    from vitpipe.labels.vector import bounds_of, placed_on_ground, read_vector_labels
    from vitpipe.labels.vector_files import UnusableVectors, columns_of, find_vectors, look_at, read_shapes

    frames, shapes_px = [], []
    for path in find_vectors(place):
        try:
            file = look_at(path, None, [])
            texts = columns_of(file, _MOST_FEATURES)
            shapes = read_shapes(file, None, bounds_of(placed_on_ground(sources), file.crs))
            shapes_px.append(_shapes_px(shapes.geometries, file.crs, sources))
        except UnusableVectors as error:
            lines.append(f"passed over: {path.name}: {error}")
            continue
        frames.append(pd.DataFrame({name: as_attribute(pd.Series(values)) for name, values in texts.items()}))
    if not frames:
        return None
    column = find_label(pd.concat(frames, ignore_index=True), "")
    if column is None:
        lines.append(f"passed over: {place.name} (no column looks like classes)")
        return None
    sizes = np.concatenate(shapes_px)
    if (cell := _cell_px(sizes)) is not None:
        # Steps of half a tile: wherever a cell lies, more than half of some tile is in it.
        per, recipe = "tile", TileRecipe(size=cell, stride=cell // 2)
        why = f"each tile by the cell that it lies on (all are squares of {cell} px)"
    elif len(sizes) and np.nanmedian(sizes[:, 0]) >= _LEAST_TILE_SHARE * size_px**2:
        per, recipe, why = "tile", TileRecipe(size=size_px), "each tile by what is drawn on it"
    else:
        per, recipe, why = "pixel", TileRecipe(size=_pixel_tile_px(sources)), "each pixel by what is drawn on it"
    values: dict[str, Json] = {"kind": "vector", "path": str(place), "column": column, "per": per}
    try:
        labels = read_vector_labels(VectorLabels.model_validate(values), sources)
        line = f"labels: {place.name}, column `{column}` ({_shown(labels)}), {why}"
        return _guess(values, labels, sources, recipe, line)
    except (LabelError, ConfigError) as error:
        lines.append(f"passed over: {error}")
        return None


def _shapes_px(geometries: NDArray[Any], crs: str, sources: Sequence[Source]) -> NDArray[np.float64]:
    """Give (N, 3): area, width and height of the box around each shape, in pixels of the first scene of the same CRS.

    NaN where there is no such scene, or where its pixels lie askew.
    """
    import shapely

    from vitpipe.labels.places import crs_of

    for source in sources:
        grid = source.grid
        if grid.transform is not None and grid.crs is not None and crs_of(grid.crs) == crs_of(crs):
            a, b, _, d, e, _ = grid.transform
            left, bottom, right, top = shapely.bounds(geometries).reshape(-1, 4).T
            area = shapely.area(geometries) / abs(a * e - b * d)
            if b or d:
                return np.column_stack([area, np.full((len(area), 2), np.nan)])
            return np.column_stack([area, (right - left) / abs(a), (top - bottom) / abs(e)])
    return np.full((len(geometries), 3), np.nan)


def _cell_px(sizes: NDArray[np.float64]) -> int | None:
    """Give the edge of the cells, where all shapes are squares of one size; None: they are not."""
    if not len(sizes) or not np.isfinite(sizes).all():
        return None
    edge = float(np.median(sizes[:, 1:]))
    lowest, highest = _CELL_PX
    if not lowest <= edge <= highest or np.abs(sizes[:, 1:] - edge).max() > _CELL_SPREAD * edge:
        return None
    return round(edge) if (sizes[:, 0] >= (1 - _CELL_SPREAD) * sizes[:, 1] * sizes[:, 2]).all() else None


def _pixel_tile_px(sources: Sequence[Source]) -> int:
    """Give the largest tile of which the scenes hold enough."""
    for size in _PIXEL_TILES_PX:
        count = sum(-(-source.grid.height // size) * -(-source.grid.width // size) for source in sources)
        if count >= _ENOUGH_TILES:
            return size
    return _PIXEL_TILES_PX[-1]


def _guess_rasters(
    place: Path, files: Iterable[Path], sources: Sequence[Source], lines: list[str]
) -> LabelGuess | None:
    from vitpipe.labels.raster import is_class_raster, read_raster_labels

    inside = list(files)
    if not all(is_class_raster(path) for path in inside):
        return None
    values: dict[str, Json] = {"kind": "raster", "path": str(place), "per": "pixel"}
    if suffix := _suffix(place, inside, sources):
        # In one folder with the scenes, their names tell them from these.
        values |= {"match": "name", "suffix": suffix}
    try:
        labels = read_raster_labels(RasterLabels.model_validate(values), sources, None)
        if len(labels.classes) > _MOST_CLASSES:
            return None
        line = f"labels: {place.name} ({_shown(labels)}), each pixel"
        if all(name.isdigit() for name in labels.classes):
            line += "; the raster does not name its values: name them in `labels.classes`"
            if len(labels.classes) <= _MOST_UNNAMED:
                values["classes"] = {name: name for name in sorted(labels.classes, key=int)}
                labels = read_raster_labels(RasterLabels.model_validate(values), sources, None)
        return _guess(values, labels, sources, TileRecipe(size=_pixel_tile_px(sources)), line)
    except (LabelError, ConfigError) as error:
        lines.append(f"passed over: {error}")
        return None


def _suffix(place: Path, rasters: Sequence[Path], sources: Sequence[Source]) -> str:
    """Give what the rasters' names have after those of the scenes that lie beside them; empty where they have none."""
    beside = {Path(source.uri).stem for source in sources if Path(source.uri).is_relative_to(place)}
    found = {
        path.stem.removeprefix(name)
        for path in rasters
        for name in [max((name for name in beside if path.stem.startswith(name)), key=len, default=path.stem)]
    }
    return found.pop() if len(found) == 1 else ""


def _guess(
    values: Mapping[str, Json], labels: LabelSet, sources: Sequence[Source], recipe: TileRecipe, line: str
) -> LabelGuess:
    tiles = survey_tiles(sources, labels, recipe)
    return LabelGuess(
        values=values,
        lines=(line,),
        n_labelled=len(labels.rows) if tiles is None else len(tiles),
        tile_px=recipe.size,
        stride_px=recipe.stride,
    )


def _shown(labels: LabelSet) -> str:
    more = ", ..." if len(labels.classes) > 6 else ""
    count = labels.rows["source_id"].nunique()
    return f"{len(labels.classes)} classes: {', '.join(labels.classes[:6])}{more}, on {count} source(s)"
