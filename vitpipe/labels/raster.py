"""Labels from GeoTIFF rasters of classes or continuous values."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
import shapely
from affine import Affine
from rasterio._err import CPLE_BaseError
from rasterio.errors import CRSError, RasterioError
from rasterio.io import DatasetReader

from vitpipe.config import RasterLabels
from vitpipe.digest import digest, digest_file
from vitpipe.errors import ConfigError, LabelError, TransientError, UnreadableSource
from vitpipe.label_files import RASTER_SUFFIXES
from vitpipe.labels.base import LabelSet
from vitpipe.labels.boxes import SourceBoxes, lon_lat_box
from vitpipe.labels.footprints import footprints
from vitpipe.labels.ground import (
    NO_BAND,
    NO_CRS,
    NO_PLACE,
    OTHER_SHAPE,
    UNREADABLE,
    UNSUPPORTED,
    GroundLabels,
    Layer,
)
from vitpipe.labels.ground_set import GroundFindings, ground_label_set
from vitpipe.labels.places import Rectangle, apply, crs_of
from vitpipe.labels.raster_layer import Band, RasterLayer
from vitpipe.labels.raster_look import values_under
from vitpipe.labels.raster_names import names_beside
from vitpipe.labels.regions import TileRule
from vitpipe.opening import TRANSIENT, gdal_environment, missing_bytes, open_tiff
from vitpipe.pixel_targets import IGNORE
from vitpipe.records import Rejected, Source

_DECIMALS: Final = 6
_CLASS_DTYPES: Final = ("uint8", "int8", "uint16", "int16", "uint32", "int32")


@dataclass(frozen=True)
class _File:
    """A label raster that can be used."""

    band: Band
    content: str
    units: str
    names: Mapping[float, str]
    """Value to class, as the file or its sidecar names it."""


@dataclass
class _Looked:
    """What was found on the way."""

    rejected: list[Rejected] = field(default_factory=list)
    used: list[_File] = field(default_factory=list)
    on: dict[str, list[tuple[_File, Rectangle, bool]]] = field(default_factory=dict)
    """Source to its rasters, the window of each that may lie on it, and whether they share pixels."""
    notes: list[str] = field(default_factory=list)


def read_raster_labels(recipe: RasterLabels, sources: Sequence[Source], aoi: Layer | None) -> LabelSet:
    """Read the headers of all label rasters, match them to the sources, and look which values lie there.

    Args:
        recipe: names the files and their classes.
        sources: the catalog.
        aoi: the area of interest, if one is named.

    Raises:
        ConfigError: there is no label raster.
        LabelError: none lies on a source, a value has no class, or there is one class only.
        TransientError: the store does not answer.
    """
    looked = _Looked()
    paths = _find(Path(recipe.path), sources, looked)
    boxes, by_name = SourceBoxes(sources if recipe.match == "place" else ()), _by_name(sources)
    unplaced = 0
    for path in paths:
        file = _read_header(path, recipe, looked)
        if file is None:
            continue
        matched = _match_name(file, recipe, by_name, looked) if recipe.match == "name" else _match_place(file, boxes)
        if matched is None:
            continue
        if not matched:
            unplaced += 1
            continue
        looked.used.append(file)
        for source_id, window, same in matched:
            looked.on.setdefault(source_id, []).append((file, window, same))
    if unplaced:
        looked.notes.append(f"{unplaced} label raster(s) lie on no source and are not used")
    if recipe.match == "place" and (odd := sum(source.grid.transform is None for source in sources)):
        looked.notes.append(
            f"{odd} source(s) without a CRS can have labels by `match: name` alone (code {NO_PLACE}): they have none"
        )
    if aoi is not None:
        bare = [source.source_id for source in sources if source.grid.crs is None and source.source_id in looked.on]
        for source_id in bare:
            del looked.on[source_id]
        if bare:
            looked.notes.append(f"{len(bare)} source(s) have no CRS, so they lie in no area of interest: no label")
    classes, places, on_source = _classes(recipe, looked)
    layers = {
        source_id: tuple(_layer(file, places, same=same) for file, _, same in parts)
        for source_id, parts in looked.on.items()
    }
    rule = TileRule(recipe.min_share, recipe.background, recipe.multi_label, recipe.tile_class)
    units = sorted({file.units for file in looked.used})
    if recipe.values == "continuous" and not recipe.units and len(units) > 1:
        raise LabelError(
            f"{recipe.path}: the label rasters have different units ({', '.join(name or 'none' for name in units)}); "
            "bring them to one, or name it in `labels.units`"
        )
    found = GroundFindings(
        labels=GroundLabels(rule, classes, layers, aoi),
        on_source=on_source,
        digests=[
            digest(recipe.model_dump(mode="json", exclude={"path", "aoi"})),
            digest([list(classes), [[value, place] for value, place in sorted((places or {}).items())]]),
            *sorted(file.content for file in looked.used),
            *([aoi.digest] if aoi is not None else []),
        ],
        rejected=looked.rejected,
        notes=looked.notes,
        units=recipe.units or (units[0] if units else ""),
    )
    return ground_label_set(found, sources, per_pixel=recipe.per == "pixel", path=recipe.path)


def is_class_raster(path: Path) -> bool:
    """Tell whether a file is a GeoTIFF of one band of whole numbers, as rasters of classes are."""
    try:
        with gdal_environment(), open_tiff(path) as dataset:
            return dataset.count == 1 and str(dataset.dtypes[0]) in _CLASS_DTYPES
    except (CPLE_BaseError, RasterioError, ValueError, OSError):
        return False


def _layer(file: _File, places: Mapping[float, int] | None, *, same: bool) -> RasterLayer:
    return RasterLayer(replace(file.band, places=places), file.content, same)


# -------------------------------------------------------------------------------------------------------------- files


def _find(path: Path, sources: Sequence[Source], looked: _Looked) -> list[Path]:
    if not path.exists():
        raise ConfigError(f"no file or folder at {path}; set `labels.path` to where the label rasters are")
    if path.is_file():
        return [path]
    scenes = {file for source in sources for file in source.files}
    named = sorted(item for item in path.rglob("*") if item.is_file() and item.suffix.lower() in RASTER_SUFFIXES)
    found = [item for item in named if str(item) not in scenes and not item.name.startswith("._")]
    if not found:
        raise ConfigError(
            f"{path} holds no GeoTIFF but the scenes themselves; set `labels.path` to where the label rasters are"
        )
    if passed := len(named) - len(found):
        looked.notes.append(f"{passed} GeoTIFF file(s) beside the label rasters are scenes themselves")
    return found


def _read_header(path: Path, recipe: RasterLabels, looked: _Looked) -> _File | None:
    """Read what a label raster says of itself; None, and a row, where it cannot be used."""
    try:
        content = digest_file(path)
        size = path.stat().st_size
        with gdal_environment(), open_tiff(path) as dataset:
            fault = _fault(dataset, recipe.band, size)
            if fault is not None:
                looked.rejected.append(Rejected(str(path), *fault))
                return None
            band = Band(
                path=str(path),
                number=recipe.band,
                height=dataset.height,
                width=dataset.width,
                crs=dataset.crs.to_wkt() if dataset.crs else None,
                transform=tuple(float(value) for value in dataset.transform[:6]),
                places=None,
                ignored=tuple(float(value) for value in recipe.ignore) if recipe.values == "continuous" else (),
            )
            units = (dataset.units[recipe.band - 1] or "").strip()
    except (CPLE_BaseError, RasterioError, CRSError, ValueError, OSError) as error:
        # rasterio's error of opening is an OSError too, without a number.
        number = error.errno if isinstance(error, OSError) else None
        if number in TRANSIENT:
            raise TransientError(f"{path} cannot be read now: {error}") from error
        why = os.strerror(number) if number else "it is no GeoTIFF, or it is damaged"
        looked.rejected.append(Rejected(str(path), UNREADABLE, f"it cannot be opened ({why}); make it again"))
        return None
    names = {} if recipe.classes or recipe.values == "continuous" else names_beside(path, recipe.band)
    return _File(band, content, units, names)


def _fault(dataset: DatasetReader, number: int, size: int) -> tuple[str, str] | None:
    """Say why a raster cannot be used: code and sentence."""
    if number > dataset.count:
        return NO_BAND, f"it has {dataset.count} band(s), `labels.band` is {number}"
    dtype = str(dataset.dtypes[number - 1])
    if dtype.startswith("complex") or np.dtype(dtype).kind not in "iuf":
        return UNSUPPORTED, f"values of dtype {dtype}; only integers and floats are read"
    if lacking := missing_bytes(dataset, size):
        return UNREADABLE, f"the last block ends {lacking} bytes past the end of the file: cut off; fetch it again"
    if dataset.transform.determinant == 0:
        return UNREADABLE, "its transform has no extent; give it its place again"
    return None


# ------------------------------------------------------------------------------------------------------------ matching


def _match_place(file: _File, boxes: SourceBoxes) -> list[tuple[str, Rectangle, bool]] | None:
    """Give the sources that overlap a raster, and the window of the raster that they may cover."""
    band = file.band
    found: list[tuple[str, Rectangle, bool]] = []
    if band.crs is None:
        return found
    for source in boxes.near(lon_lat_box(band.height, band.width, band.transform, band.crs)):
        window = _window_on(band, source)
        if window is not None and window.pixels:
            found.append((source.source_id, window, False))
    return found


def _window_on(band: Band, source: Source) -> Rectangle | None:
    """Give the window of a raster under a source; None where they do not overlap, or one has no place."""
    grid = source.grid
    if band.crs is None or grid.crs is None or grid.transform is None:
        return None
    parts = footprints(grid.height, grid.width, grid.transform, (crs_of(grid.crs), crs_of(band.crs)))
    to_pixels = ~Affine(*band.transform[:6])
    ground = shapely.union_all([shapely.transform(part, lambda x, y: apply(to_pixels, x, y), interleaved=False)
                                for part in parts])  # fmt: skip
    whole = shapely.box(0, 0, band.width, band.height)
    shared = shapely.intersection(ground, whole)
    # Touching along an edge is no overlap.
    if shapely.area(shared) <= 1e-6:
        return None
    left, top, right, bottom = shapely.bounds(shared).round(_DECIMALS)
    found = Rectangle(math.floor(top), math.ceil(bottom), math.floor(left), math.ceil(right))
    return found.within(band.height, band.width)


def _by_name(sources: Sequence[Source]) -> dict[str, list[Source]]:
    found: dict[str, list[Source]] = {}
    for source in sources:
        for name in dict.fromkeys(source.keys.get("scene", (Path(source.uri).stem,))):
            found.setdefault(name, []).append(source)
    return found


def _match_name(
    file: _File, recipe: RasterLabels, by_name: Mapping[str, Sequence[Source]], looked: _Looked
) -> list[tuple[str, Rectangle, bool]] | None:
    """Give the sources of the same name; None, and a row, where they do not fit."""
    band = file.band
    stem = Path(band.path).stem
    if not stem.endswith(recipe.suffix):
        return []
    name = stem.removesuffix(recipe.suffix)
    found = []
    for source in by_name.get(name, ()):
        if band.crs is not None and source.grid.crs is not None and source.grid.transform is not None:
            window = _window_on(band, source)
            if window is None:
                reason = (
                    f"it is named as source {source.source_id} but lies elsewhere on the ground; check the CRS and the "
                    "transform of both"
                )
                looked.rejected.append(Rejected(band.path, OTHER_SHAPE, reason))
                return None
            found.append((source.source_id, window, False))
            continue
        shape = (source.grid.height, source.grid.width)
        if (band.height, band.width) != shape:
            code = NO_CRS if band.crs is None else OTHER_SHAPE
            reason = (
                f"it or its scene has no CRS, so pixels must fall on pixels: it has {(band.height, band.width)}, "
                f"source {source.source_id} {shape}; make it again on the scene's pixels, or give both their CRS"
            )
            looked.rejected.append(Rejected(band.path, code, reason))
            return None
        found.append((source.source_id, Rectangle(0, band.height, 0, band.width), True))
    return found


# ------------------------------------------------------------------------------------------------------------- classes


def _look(recipe: RasterLabels, looked: _Looked) -> dict[str, set[float]]:
    """Read what lies under the sources once; a raster that does not decode is given up, and a row says so.

    Returns:
        Source to the values on it that count; of continuous values the count alone.
    """
    ignored = {float(value) for value in recipe.ignore}
    found: dict[str, set[float]] = {}
    windows: dict[str, list[tuple[str, Rectangle]]] = {}
    for name, parts in looked.on.items():
        for file, window, _ in parts:
            windows.setdefault(file.band.path, []).append((name, window))
    for file in list(looked.used):
        under = windows.get(file.band.path, ())
        try:
            for source_id, values in values_under(file.band, under, continuous=recipe.values == "continuous"):
                found.setdefault(source_id, set()).update(values - ignored)
        except UnreadableSource as error:
            looked.rejected.append(Rejected(file.band.path, UNREADABLE, error.reason))
            looked.used.remove(file)
            looked.on = {name: [part for part in parts if part[0] is not file] for name, parts in looked.on.items()}
    bare = [name for name in looked.on if not found.get(name) or not looked.on[name]]
    looked.on = {name: parts for name, parts in looked.on.items() if name not in bare}
    if bare:
        looked.notes.append(f"{len(bare)} source(s) have label rasters that say nothing where they lie")
    return {name: values for name, values in found.items() if name in looked.on}


def _classes(
    recipe: RasterLabels, looked: _Looked
) -> tuple[tuple[str, ...], Mapping[float, int] | None, dict[str, list[str]]]:
    """Give the classes, the place of each value, and the classes on each source.

    Raises:
        LabelError: a value has no name, or two.
    """
    found = _look(recipe, looked)
    if recipe.values == "continuous":
        return (), None, {}
    names: dict[float, str] = {float(value): name for value, name in recipe.classes.items()}
    for file in looked.used:
        for value, name in file.names.items():
            if names.setdefault(value, name) != name:
                raise LabelError(
                    f"value {value:g} is `{names[value]}` in one label raster and `{name}` in {file.band.path}; name "
                    "the values in `labels.classes`"
                )
    seen: set[float] = set().union(*found.values())
    if not names and seen:
        names = {value: f"{value:g}" for value in seen}
        looked.notes.append("the label rasters name no classes: the values themselves are the names")
    elif unnamed := sorted(seen - set(names)):
        shown = ", ".join(f"{value:g}" for value in unnamed[:8]) + (", ..." if len(unnamed) > 8 else "")
        raise LabelError(
            f"{recipe.path}: {len(unnamed)} value(s) on the sources have no class: {shown}; name them in "
            "`labels.classes`, or list them in `labels.ignore`"
        )
    # A named value that is nowhere is a class only where the user named it: a table of a whole country names many.
    kept = names if recipe.classes else {value: name for value, name in names.items() if value in seen}
    ignored = {float(value) for value in recipe.ignore}
    classes = {name for value, name in kept.items() if value not in ignored}
    if recipe.background is not None and not recipe.multi_label:
        classes.add(recipe.background)
    ordered = tuple(sorted(classes))
    places = {value: ordered.index(name) for value, name in kept.items() if value not in ignored}
    on_source = {source_id: sorted({names[value] for value in values}) for source_id, values in found.items()}
    return ordered, places | dict.fromkeys(ignored, IGNORE), on_source
