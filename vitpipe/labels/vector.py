"""Labels from polygons, lines and points of vector files, and areas of interest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray

from vitpipe.config import VectorLabels
from vitpipe.digest import digest
from vitpipe.errors import LabelError
from vitpipe.labels.base import LabelSet
from vitpipe.labels.boxes import SourceBoxes, lon_lat_box, wider_by
from vitpipe.labels.footprints import beyond_half_turn, footprints
from vitpipe.labels.ground import UNREADABLE, GroundLabels, Layer
from vitpipe.labels.ground_set import GroundFindings, check_class_count, ground_label_set
from vitpipe.labels.places import crs_of
from vitpipe.labels.regions import TileRule
from vitpipe.labels.vector_files import Shapes, UnusableVectors, VectorFile, find_vectors, look_at, read_shapes
from vitpipe.labels.vector_layer import Style, VectorLayer, reach_px
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
    near: dict[str, tuple[float, float, float, float] | None] = {}
    for path in find_vectors(Path(recipe.path)):
        try:
            file = look_at(path, recipe.layer, [recipe.column])
            if file.crs not in near:
                near[file.crs] = bounds_of(placed, file.crs, recipe.buffer_m)
            read.append((file, read_shapes(file, recipe.column, near[file.crs])))
        except UnusableVectors as error:
            rejected.append(Rejected(str(path), UNREADABLE, str(error)))
    aoi = read_aoi(recipe.aoi, placed) if recipe.aoi is not None else None
    rule = TileRule(recipe.min_share, recipe.background, recipe.multi_label, recipe.tile_class, recipe.priority)
    found_on = _match(recipe, read, placed)
    classes = _classes(recipe, found_on)
    check_class_count(classes, recipe.path)
    ranked = rule.order(classes)
    ranks = tuple(ranked.index(name) for name in classes)
    layers, on_source, used = _layers(found_on, classes, ranks)
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


def bounds_of(
    sources: Sequence[Source], crs: str, buffer_m: float | None = None
) -> tuple[float, float, float, float] | None:
    """Give what covers all sources in a CRS, with their surroundings; None where that cannot be said.

    Args:
        sources: on the ground.
        crs: the one to give.
        buffer_m: what lies within it is covered too.

    Returns:
        left, bottom, right, top.
    """
    boxes = []
    for source in sources:
        grid = source.grid
        assert grid.transform is not None
        assert grid.crs is not None
        reach = reach_px(grid.height, grid.width, grid.transform, grid.crs, buffer_m)
        parts = footprints(grid.height, grid.width, grid.transform, (crs_of(grid.crs), crs_of(crs)), reach)
        if len(parts) != 1 or beyond_half_turn(grid.height, grid.width, grid.transform, crs_of(grid.crs)) is not None:
            return None
        left, bottom, right, top = shapely.bounds(parts[0])
        margin = max(right - left, top - bottom)
        boxes.append((left - margin, bottom - margin, right + margin, top + margin))
    if not boxes:
        return None
    left, bottom, right, top = np.array(boxes).T
    return float(left.min()), float(bottom.min()), float(right.max()), float(top.max())


@dataclass(frozen=True)
class _OnSources:
    """The features of one file that have a class, and where they lie."""

    layer: VectorLayer
    """Its `places` and `ranks` are not known yet."""
    names: NDArray[np.object_]
    """The class of each feature."""
    hits: Mapping[str, NDArray[np.int64]]
    """Source to the features on it."""


def _match(
    recipe: VectorLabels, read: Sequence[tuple[VectorFile, Shapes]], placed: Sequence[Source]
) -> list[_OnSources]:
    """Find the features on each source."""
    style = Style(recipe.all_touched, recipe.buffer_m)
    boxes = SourceBoxes(placed)
    found = []
    for file, shapes in read:
        names = np.array(
            [text if recipe.classes is None else recipe.classes.get(text, "") for text in shapes.texts], object
        )
        kept = names != ""
        chosen = Shapes(shapes.crs, shapes.geometries[kept], shapes.texts[kept], 0, 0)
        layer = VectorLayer(chosen, np.zeros(len(chosen.geometries), np.uint8), (0,), style, file.content)
        hits = {}
        if len(chosen.geometries):
            left, bottom, right, top = shapely.total_bounds(chosen.geometries)
            box = lon_lat_box(1, 1, (right - left, 0, left, 0, bottom - top, top), shapes.crs)
            for source in boxes.near(wider_by(box, recipe.buffer_m)):
                hits[source.source_id] = _on(layer, source)
        found.append(_OnSources(layer, names[kept], {name: of for name, of in hits.items() if len(of)}))
    return found


def _classes(recipe: VectorLabels, found: Sequence[_OnSources]) -> tuple[str, ...]:
    """Name the classes: as the user does, else what lies on a source; what lies between scenes is none."""
    if recipe.classes is not None:
        names = set(recipe.classes.values())
    else:
        names = {str(name) for part in found for hits in part.hits.values() for name in part.names[hits]}
    if recipe.background is not None and not recipe.multi_label:
        names.add(recipe.background)
    return tuple(sorted(names))


def _layers(
    found: Sequence[_OnSources], classes: tuple[str, ...], ranks: tuple[int, ...]
) -> tuple[dict[str, tuple[Layer, ...]], dict[str, list[str]], int]:
    """Give the layers of each source, the classes on it, and how many features lie on any."""
    place_of = {name: place for place, name in enumerate(classes)}
    layers: dict[str, tuple[Layer, ...]] = {}
    on_source: dict[str, set[str]] = {}
    used = 0
    for part in found:
        if not part.hits:
            continue
        # The grid of the tiles may reach past the source, where features of no class lie.
        kept = np.array([name in place_of for name in part.names], bool)
        places = np.array([place_of[name] for name in part.names[kept]], np.uint8)
        shapes = replace(part.layer.shapes, geometries=part.layer.shapes.geometries[kept])
        layer = replace(part.layer, shapes=shapes, places=places, ranks=ranks)
        for source_id, hits in part.hits.items():
            layers[source_id] = (*layers.get(source_id, ()), layer)
            on_source.setdefault(source_id, set()).update(part.names[hits])
        used += len(np.unique(np.concatenate(list(part.hits.values()))))
    return layers, {name: sorted(names) for name, names in on_source.items()}, used


def _on(layer: VectorLayer, source: Source) -> NDArray[np.int64]:
    grid = source.grid
    assert grid.transform is not None
    assert grid.crs is not None
    return layer.on(grid.height, grid.width, grid.transform, grid.crs)


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
