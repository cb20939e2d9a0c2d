"""Labels from polygons, lines and points of vector files, and areas of interest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import shapely

from vitpipe.config import VectorLabels
from vitpipe.digest import digest
from vitpipe.errors import LabelError
from vitpipe.labels.base import LabelSet
from vitpipe.labels.ground import UNREADABLE, GroundLabels, Layer
from vitpipe.labels.ground_set import GroundFindings, ground_label_set
from vitpipe.labels.places import crs_of
from vitpipe.labels.regions import TileRule
from vitpipe.labels.vector_files import Shapes, UnusableVectors, VectorFile, find_vectors, look_at, read_shapes
from vitpipe.labels.vector_layer import Style, VectorLayer, footprints
from vitpipe.records import Rejected, Source


def read_vector_labels(recipe: VectorLabels, sources: Sequence[Source]) -> LabelSet:
    """Read the features that may lie on the sources.

    Args:
        recipe: names the files, the column of classes, and how shapes become pixels.
        sources: the catalog.

    Raises:
        ConfigError: there is no vector file.
        LabelError: no feature lies on a source, or there is one class only.
        TransientError: the store does not answer.
    """
    placed = placed_on_ground(sources)
    rejected: list[Rejected] = []
    read: list[tuple[VectorFile, Shapes]] = []
    for path in find_vectors(Path(recipe.path)):
        try:
            file = look_at(path, recipe.layer, [recipe.column])
            read.append((file, read_shapes(file, recipe.column, bounds_of(placed, file.crs))))
        except UnusableVectors as error:
            rejected.append(Rejected(str(path), UNREADABLE, str(error)))
    aoi = read_aoi(recipe.aoi, placed) if recipe.aoi is not None else None
    rule = TileRule(recipe.min_share, recipe.background, recipe.multi_label, recipe.tile_class, recipe.priority)
    classes = _classes(recipe, [shapes for _, shapes in read])
    ranked = rule.order(classes)
    ranks = tuple(ranked.index(name) for name in classes)
    layers, on_source, used = _match(recipe, read, placed, (classes, ranks))
    if aoi is not None and recipe.background is not None:
        # Inside the area of interest ground without a shape is known too.
        for source in placed:
            if source.source_id not in layers and len(_on(aoi, source)):
                layers[source.source_id] = (_nothing(aoi, ranks),)
    found = GroundFindings(
        labels=GroundLabels(rule, classes, layers, aoi, covers=recipe.background is not None, ranks=ranks),
        on_source=on_source,
        digests=[
            digest(recipe.model_dump(mode="json", exclude={"path", "aoi"})),
            digest(list(classes)),
            *sorted(file.content for file, _ in read),
            *([aoi.digest] if aoi is not None else []),
        ],
        rejected=rejected,
        notes=[*_notes(recipe, read, used), *_unplaced(len(sources) - len(placed)), *rule.notes(classes)],
    )
    return ground_label_set(found, sources, per_pixel=recipe.per == "pixel", path=recipe.path)


def read_aoi(path: str, sources: Sequence[Source]) -> VectorLayer:
    """Read the polygons of an area of interest.

    Args:
        path: a vector file, or a folder of one.
        sources: near which they are read.

    Raises:
        ConfigError: there is no vector file, or several.
        LabelError: it cannot be used.
    """
    files = find_vectors(Path(path))
    if len(files) > 1:
        raise LabelError(f"{path} holds {len(files)} vector files; name one in `labels.aoi`")
    try:
        file = look_at(files[0], None, [])
        shapes = read_shapes(file, None, bounds_of(sources, file.crs))
    except UnusableVectors as error:
        raise LabelError(f"`labels.aoi` {files[0]} cannot be used: {error}") from error
    if thin := int(np.count_nonzero(shapely.get_dimensions(shapes.geometries) < 2)):
        raise LabelError(f"`labels.aoi` {files[0]} holds {thin} feature(s) that are no polygons; leave polygons alone")
    return VectorLayer(shapes, np.zeros(len(shapes.geometries), np.uint8), (0,), Style(), file.content)


def placed_on_ground(sources: Sequence[Source]) -> list[Source]:
    """Give the sources that have a place on the ground."""
    return [source for source in sources if source.grid.transform is not None and source.grid.crs is not None]


def bounds_of(sources: Sequence[Source], crs: str) -> tuple[float, float, float, float] | None:
    """Give what covers all sources in a CRS, with their surroundings; None where that cannot be said.

    Returns:
        left, bottom, right, top.
    """
    boxes = []
    for source in sources:
        grid = source.grid
        assert grid.transform is not None
        assert grid.crs is not None
        parts = footprints(grid.height, grid.width, grid.transform, (crs_of(grid.crs), crs_of(crs)))
        if len(parts) != 1:
            return None
        left, bottom, right, top = shapely.bounds(parts[0])
        margin = max(right - left, top - bottom)
        boxes.append((left - margin, bottom - margin, right + margin, top + margin))
    if not boxes:
        return None
    left, bottom, right, top = np.array(boxes).T
    return float(left.min()), float(bottom.min()), float(right.max()), float(top.max())


def _classes(recipe: VectorLabels, read: Sequence[Shapes]) -> tuple[str, ...]:
    if recipe.classes is not None:
        names = set(recipe.classes.values())
    else:
        names = {str(text) for shapes in read for text in np.unique(shapes.texts.astype(str)) if text}
    if recipe.background is not None and not recipe.multi_label:
        names.add(recipe.background)
    return tuple(sorted(names))


def _match(
    recipe: VectorLabels,
    read: Sequence[tuple[VectorFile, Shapes]],
    placed: Sequence[Source],
    ranked: tuple[tuple[str, ...], tuple[int, ...]],
) -> tuple[dict[str, tuple[Layer, ...]], dict[str, list[str]], int]:
    """Give the layers of each source, the classes on it, and how many features lie on any."""
    classes, ranks = ranked
    style = Style(recipe.all_touched, recipe.buffer_m)
    layers: dict[str, tuple[Layer, ...]] = {}
    on_source: dict[str, set[str]] = {}
    used = 0
    for file, shapes in read:
        names = [text if recipe.classes is None else recipe.classes.get(text, "") for text in shapes.texts]
        kept = np.array([bool(name) for name in names], bool)
        chosen = Shapes(shapes.crs, shapes.geometries[kept], shapes.texts[kept], 0, 0)
        named = [name for name in names if name]
        places = np.array([classes.index(name) for name in named], np.uint8)
        layer = VectorLayer(chosen, places, ranks, style, file.content)
        seen: set[int] = set()
        for source in placed:
            hits = _on(layer, source)
            if len(hits):
                layers[source.source_id] = (*layers.get(source.source_id, ()), layer)
                on_source.setdefault(source.source_id, set()).update(named[hit] for hit in hits)
                seen.update(int(hit) for hit in hits)
        used += len(seen)
    return layers, {name: sorted(found) for name, found in on_source.items()}, used


def _on(layer: VectorLayer, source: Source) -> Sequence[int]:
    grid = source.grid
    assert grid.transform is not None
    assert grid.crs is not None
    return list(layer.on(grid.height, grid.width, grid.transform, grid.crs))


def _nothing(aoi: VectorLayer, ranks: tuple[int, ...]) -> VectorLayer:
    """Give a layer without features."""
    empty = Shapes(aoi.shapes.crs, aoi.shapes.geometries[:0], aoi.shapes.texts[:0], 0, 0)
    return VectorLayer(empty, aoi.places[:0], ranks, Style(), aoi.content)


def _notes(recipe: VectorLabels, read: Sequence[tuple[VectorFile, Shapes]], used: int) -> list[str]:
    total = sum(file.features for file, _ in read)
    empty = sum(shapes.empty for _, shapes in read)
    texts = Counter(str(text) for _, shapes in read for text in shapes.texts)
    nameless = texts.pop("", 0)
    others = {text: count for text, count in texts.items() if recipe.classes is not None and text not in recipe.classes}
    notes = [f"{used} of {total} feature(s) lie on a source"]
    if repaired := sum(shapes.repaired for _, shapes in read):
        notes.append(f"{repaired} invalid geometr{'y was' if repaired == 1 else 'ies were'} repaired")
    if empty:
        notes.append(f"{empty} feature(s) have no geometry, or one that cannot be read")
    if nameless:
        notes.append(f"{nameless} feature(s) have no value in the class column")
    if others:
        shown = ", ".join(f"{text} {count}" for text, count in sorted(others.items())[:8])
        notes.append(f"{sum(others.values())} feature(s) are not in `labels.classes`: {shown}")
    return notes


def _unplaced(count: int) -> list[str]:
    return [f"{count} source(s) have no CRS, so no polygon can lie on them"] if count else []
