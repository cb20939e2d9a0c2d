"""Guess which polygons, points or rasters beside scenes are their labels: by what lies on them, not by names alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from vitpipe.config import RasterLabels, VectorLabels
from vitpipe.errors import ConfigError, LabelError
from vitpipe.labels.base import LabelSet
from vitpipe.labels.read import as_attribute
from vitpipe.records import Source
from vitpipe.starter_labels import LabelGuess, find_label

_MOST_CLASSES: Final = 100
_MOST_FEATURES: Final = 5000
_TIFFS: Final = (".tif", ".tiff", ".gtif", ".gtiff")
_LEAST_TILE_SHARE: Final = 0.5
"""Of a tile that the median polygon must cover for polygons to label tiles, not pixels."""


def guess_ground_labels(
    files: Sequence[Path], sources: Sequence[Source], size_px: int, lines: list[str]
) -> LabelGuess | None:
    """Guess the labels of scenes among the files beside them; vectors before rasters, since they name their classes.

    Args:
        files: beside the scenes.
        sources: the scenes.
        size_px: of a tile.
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
    import shapely

    from vitpipe.labels.vector import bounds_of, placed_on_ground, read_vector_labels
    from vitpipe.labels.vector_files import UnusableVectors, columns_of, find_vectors, look_at, read_shapes

    frames, areas = [], []
    for path in find_vectors(place):
        try:
            file = look_at(path, None, [])
            texts = columns_of(file, _MOST_FEATURES)
            shapes = read_shapes(file, None, bounds_of(placed_on_ground(sources), file.crs))
            areas.append(_areas_px(shapely.area(shapes.geometries), file.crs, sources))
        except UnusableVectors as error:
            lines.append(f"passed over: {path.name}: {error}")
            continue
        frames.append(pd.DataFrame({name: as_attribute(pd.Series(values)) for name, values in texts.items()}))
    if not frames:
        return None
    table = pd.concat(frames, ignore_index=True)
    column = find_label(table, "")
    if column is None:
        lines.append(f"passed over: {place.name} (no column looks like classes)")
        return None
    area = np.concatenate(areas)
    per = "tile" if len(area) and np.nanmedian(area) >= _LEAST_TILE_SHARE * size_px**2 else "pixel"
    recipe = VectorLabels.model_validate({"path": str(place), "column": column, "per": per})
    try:
        labels = read_vector_labels(recipe, sources)
    except (LabelError, ConfigError) as error:
        lines.append(f"passed over: {error}")
        return None
    values = {"kind": "vector", "path": str(place), "column": column, "per": per}
    line = f"labels: {place.name}, column `{column}` ({_shown(labels)}), each {per} by what is drawn on it"
    return LabelGuess(values=values, lines=(line,), n_labelled=len(table))


def _areas_px(areas: np.ndarray, crs: str, sources: Sequence[Source]) -> np.ndarray:
    """Give areas in pixels of the first scene of the same CRS; NaN where there is none."""
    from vitpipe.labels.places import crs_of

    for source in sources:
        grid = source.grid
        if grid.transform is not None and grid.crs is not None and crs_of(grid.crs) == crs_of(crs):
            a, b, _, d, e, _ = grid.transform
            return areas / abs(a * e - b * d)
    return np.full(len(areas), np.nan)


def _guess_rasters(
    place: Path, files: Iterable[Path], sources: Sequence[Source], lines: list[str]
) -> LabelGuess | None:
    from vitpipe.labels.raster import is_class_raster, read_raster_labels

    if not all(is_class_raster(path) for path in files):
        return None
    try:
        labels = read_raster_labels(RasterLabels.model_validate({"path": str(place)}), sources, None)
    except (LabelError, ConfigError) as error:
        lines.append(f"passed over: {error}")
        return None
    if len(labels.classes) > _MOST_CLASSES:
        return None
    line = f"labels: {place.name} ({_shown(labels)}), each pixel; name its values in `labels.classes`"
    return LabelGuess(values={"kind": "raster", "path": str(place)}, lines=(line,), n_labelled=len(labels.rows))


def _shown(labels: LabelSet) -> str:
    more = ", ..." if len(labels.classes) > 6 else ""
    count = labels.rows["source_id"].nunique()
    return f"{len(labels.classes)} classes: {', '.join(labels.classes[:6])}{more}, on {count} source(s)"
