"""Reference labels of a map: points, polygons or a class raster, read off beside the map into counted units."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import CRSError, RasterioError
from rasterio.features import rasterize
from rasterio.warp import transform as warp_points
from rasterio.windows import Window
from rasterio.windows import transform as window_transform

from vitpipe.errors import ConfigError, DataError
from vitpipe.evaluate.map_blocks import Blocks
from vitpipe.evaluate.map_ground import VALUES, ClassRaster, open_classes, pixel_edge_m
from vitpipe.evaluate.map_warped import grid_note, strips_on_grid

REFERENCE_UNREADABLE: Final = "REFERENCE_UNREADABLE"
REFERENCE_EMPTY: Final = "REFERENCE_EMPTY"
REFERENCE_NO_CRS: Final = "REFERENCE_NO_CRS"
REFERENCE_NO_COLUMN: Final = "REFERENCE_NO_COLUMN"
_MAGIC: Final = {".geojson": b"{", ".json": b"{", ".gpkg": b"SQLite format 3\0", ".shp": b"\x00\x00\x27\x0a"}
_DRIVERS: Final = ("GeoJSON", "GPKG", "ESRI Shapefile")
TIFF_SUFFIXES: Final = (".tif", ".tiff", ".gtif")
_CONTRADICTED: Final = "in the part of a polygon that one of another class covers, too"
_COVERED: Final = "wholly covered by other polygons"
_WINDOW_PX: Final = 4_000_000
_PLACES: Final = (("x", "y"), ("lon", "lat"), ("longitude", "latitude"))


@dataclass(frozen=True, slots=True)
class Look:
    """What a reference is compared with, and how its units hang together."""

    raster: ClassRaster
    strata: ClassRaster | None = None
    column: str = "label"
    cluster: str | None = None
    """Column that names the cluster of a unit."""
    blocks: Blocks | None = None
    """Else: clusters are these blocks of the map."""


@dataclass(frozen=True, slots=True)
class Reference:
    """Units with a reference label and what the map says there."""

    table: pd.DataFrame
    """`reference` (text), `value` and `stratum` (of the rasters), `count`, and `cluster` where there are clusters."""
    kind: str
    """points, polygons or raster."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """What was left out, by reason."""
    notes: tuple[str, ...] = ()
    """Sentences on how it was read."""


def read_reference(path: Path, look: Look) -> Reference:
    """Read a reference and look up map and stratum of every unit.

    Args:
        path: CSV (`x, y` and `crs`, or `lon, lat`), GeoJSON, GPKG or Shapefile of points or polygons, or a class
            GeoTIFF, on any grid (nearest neighbour). A point is one unit; a polygon is a cluster of the pixels whose
            centres it holds.
        look: map, strata, names of columns.

    Raises:
        ConfigError: the kind of the file is not known, or it is missing.
        DataError: a coded sentence: unreadable, no CRS, no such column, no unit lies on the map.
    """
    if not path.is_file():
        raise ConfigError(f"there is no file {path}; name the reference points, polygons or class raster")
    suffix = path.suffix.lower()
    if suffix in TIFF_SUFFIXES:
        found = _of_raster(path, look)
    elif suffix == ".csv":
        found = _of_points(*_csv_points(path, look), look)
    elif suffix in _MAGIC:
        found = _of_vector(path, look)
    else:
        raise ConfigError(
            f"{path} is of no known kind; a reference is .csv, {', '.join(_MAGIC)} or {', '.join(TIFF_SUFFIXES)}"
        )
    if found.table.empty:
        why = ", ".join(f"{count} {reason}" for reason, count in found.dropped.items()) or "it holds none"
        raise DataError(f"{REFERENCE_EMPTY}: no unit of {path} lies on the map ({why}); check the CRS of both")
    return found


def _text(values: pd.Series) -> pd.Series:
    """Give labels as text: 3.0 as ``3``."""
    if pd.api.types.is_numeric_dtype(values):
        return values.map(lambda value: "" if pd.isna(value) else f"{value:g}").astype("str")
    return values.map(lambda value: "" if pd.isna(value) else str(value).strip()).astype("str")


def _need(path: Path, columns: pd.Index, *names: str) -> None:
    missing = [name for name in names if name not in columns]
    if missing:
        there = ", ".join(map(str, columns)) or "none"
        named = "x" not in names and names[0] in missing and len(columns) > 0
        remedy = "; say which holds the reference class, with `--column NAME`" if named else ""
        raise DataError(f"{REFERENCE_NO_COLUMN}: {path} has no column {' and '.join(missing)}; it has {there}{remedy}")


def _crs(text: str, path: Path) -> CRS:
    try:
        return CRS.from_user_input(text)
    except CRSError as error:
        raise DataError(f"{REFERENCE_NO_CRS}: {path}: {text!r} is no CRS that GDAL knows: {error}") from error


def _onto(look: Look, crs: CRS, x: NDArray[np.float64], y: NDArray[np.float64], path: Path) -> NDArray[np.float64]:
    """Transform points to the map's CRS, (2, N)."""
    target = look.raster.dataset.crs
    if target is None:
        raise DataError(
            f"{REFERENCE_NO_CRS}: {look.raster.path} has no CRS, so points cannot be placed on it; give the map its CRS"
        )
    try:
        return np.asarray(warp_points(crs, target, x, y), dtype=np.float64)
    except (CPLE_BaseError, RasterioError) as error:
        raise DataError(
            f"{REFERENCE_UNREADABLE}: coordinates of {path} cannot be brought into the CRS of the map; check that they "
            f"are in {crs.to_string()}: {error}"
        ) from error


def _csv_points(path: Path, look: Look) -> tuple[NDArray[np.float64], pd.DataFrame]:
    try:
        table = pd.read_csv(path)
    except (ValueError, OSError) as error:
        raise DataError(f"{REFERENCE_UNREADABLE}: {path} is no table: {error}") from error
    _need(path, table.columns, look.column, *([look.cluster] if look.cluster else []))
    names = next((pair for pair in _PLACES if set(pair) <= set(table.columns)), None)
    if names is None:
        _need(path, table.columns, "x", "y")
        raise AssertionError
    if names == ("x", "y"):
        if "crs" not in table:
            raise DataError(
                f"{REFERENCE_NO_CRS}: {path} has x and y but no column crs (such as EPSG:32632); add it, or name the "
                "columns lon and lat"
            )
        codes = table["crs"].astype(str)
    else:
        codes = pd.Series("EPSG:4326", index=table.index)
    points = np.full((2, len(table)), np.nan)
    xy = table[list(names)].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    for code in codes.unique():
        rows = ((codes == code) & np.isfinite(xy).all(axis=1)).to_numpy()
        points[:, rows] = _onto(look, _crs(code, path), xy[rows, 0], xy[rows, 1], path)
    return points, _described(table, look)


def _described(table: pd.DataFrame, look: Look) -> pd.DataFrame:
    found = pd.DataFrame({"reference": _text(table[look.column])})
    if look.cluster:
        found["cluster"] = _text(table[look.cluster])
    return found


def _of_points(points: NDArray[np.float64], rows: pd.DataFrame, look: Look) -> Reference:
    """Look up the map under points (2, N) in its CRS."""
    raster, dropped = look.raster, {}
    inverse = ~raster.dataset.transform
    col, row = (
        inverse.a * points[0] + inverse.b * points[1] + inverse.c,
        (inverse.d * points[0] + inverse.e * points[1] + inverse.f),
    )
    inside = (col >= 0) & (row >= 0) & (col < raster.width) & (row < raster.height)
    labelled = (rows["reference"] != "").to_numpy()
    dropped["without a label"] = int((~labelled).sum())
    dropped["outside the map"] = int((labelled & ~inside).sum())
    kept = np.flatnonzero(inside & labelled)
    at = np.floor(row[kept]).astype(np.int64), np.floor(col[kept]).astype(np.int64)
    value, stratum, valid = _looked_up(look, *at)
    dropped["where the map has no class"] = int((~valid).sum())
    table = rows.iloc[kept].assign(value=value, stratum=stratum, count=1)
    if look.blocks is not None:
        table["cluster"] = look.blocks.numbers(*at)
    return Reference(table[valid].reset_index(drop=True), "points", _counted(dropped))


def _counted(dropped: Mapping[str, int]) -> dict[str, int]:
    return {reason: count for reason, count in dropped.items() if count}


def _looked_up(
    look: Look, row: NDArray[np.int64], col: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.bool_]]:
    """Read map value, stratum and valid mask at pixels, one read of a row of blocks at a time."""
    value, valid = np.zeros(row.size, np.uint8), np.zeros(row.size, bool)
    stratum = np.zeros(row.size, np.uint8)
    step = look.raster.strip_rows
    order = np.argsort(row // step, kind="stable")
    starts = np.flatnonzero(np.diff(row[order] // step, prepend=-1))
    for rows in np.split(order, starts[1:]) if row.size else []:
        window = _bounding(row[rows], col[rows])
        at = row[rows] - window[0], col[rows] - window[1]
        values, valids, strata = _read(look, window)
        value[rows], valid[rows], stratum[rows] = values[at], valids[at], strata[at]
    return value, stratum, valid


def _bounding(row: NDArray[np.int64], col: NDArray[np.int64]) -> tuple[int, int, int, int]:
    top, left = int(row.min()), int(col.min())
    return top, left, int(row.max()) - top + 1, int(col.max()) - left + 1


def _read(
    look: Look, window: tuple[int, int, int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.bool_], NDArray[np.uint8]]:
    values, valid = look.raster.read(window)
    if look.strata is None:
        return values, valid, values
    strata, known = look.strata.read(window)
    return values, valid & known, strata


def _of_vector(path: Path, look: Look) -> Reference:
    import pyogrio
    import shapely

    meta, geometry, fields = _read_vector(path, pyogrio)
    table = pd.DataFrame(dict(zip(meta["fields"], fields, strict=True)))
    _need(path, table.columns, look.column, *([look.cluster] if look.cluster else []))
    if not meta["crs"]:
        raise DataError(f"{REFERENCE_NO_CRS}: {path} says no CRS; add a .prj file, or save it with its CRS")
    crs = _crs(str(meta["crs"]), path)
    shapes = shapely.from_wkb(geometry)
    rows = _described(table, look)
    empty = shapely.is_missing(shapes) | shapely.is_empty(shapes)
    kinds = set(shapely.get_type_id(shapes[~empty]).tolist())
    if kinds <= {0}:
        points = np.full((2, len(shapes)), np.nan)
        xy = shapely.get_coordinates(shapes[~empty])
        points[:, ~empty] = _onto(look, crs, xy[:, 0], xy[:, 1], path)
        return _of_points(points, rows, look)
    if not kinds <= {3, 6}:
        raise DataError(
            f"{REFERENCE_UNREADABLE}: {path} holds lines, multi-points or a mixture; a reference is points or polygons"
        )
    return _of_polygons(path, (crs, shapes), rows, look)


def _read_vector(path: Path, pyogrio: Any) -> tuple[dict[str, Any], Any, Any]:  # noqa: ANN401 - a lazy library
    # A VRT or a GML named .gpkg would make GDAL read other files: the first bytes say what it is.
    with path.open("rb") as stream:
        head = stream.read(64).lstrip(b"\xef\xbb\xbf \r\n\t")
    if not head.startswith(_MAGIC[path.suffix.lower()]):
        raise DataError(f"{REFERENCE_UNREADABLE}: {path} is not what its name says ({path.suffix}); export it again")
    try:
        driver = pyogrio.read_info(path)["driver"]
        if driver not in _DRIVERS:
            raise DataError(f"{REFERENCE_UNREADABLE}: {path} is of the kind {driver}; export it as {_DRIVERS}")
        meta, _, geometry, fields = pyogrio.raw.read(path, force_2d=True)
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, ValueError) as error:
        raise DataError(f"{REFERENCE_UNREADABLE}: {path} cannot be read: {error}") from error
    return meta, geometry, fields


def _of_polygons(path: Path, placed: tuple[CRS, Any], rows: pd.DataFrame, look: Look) -> Reference:
    """Count the pixels in every polygon; each polygon is a cluster, unless a column or blocks say otherwise."""
    import shapely

    crs, shapes = placed

    def onto(xy: NDArray[np.float64]) -> NDArray[np.float64]:
        return _onto(look, crs, xy[:, 0], xy[:, 1], path).T

    labelled = (rows["reference"] != "").to_numpy() & ~(shapely.is_missing(shapes) | shapely.is_empty(shapes))
    dropped = {"without a label": int((~labelled).sum()), "outside the map": 0, "smaller than a pixel": 0}
    numbers = np.flatnonzero(labelled)
    labels = rows["reference"].to_numpy()[numbers]
    there = [_on_map(shape, onto) for shape in shapes[numbers]]
    apart, dropped[_CONTRADICTED] = _apart(np.array(there, dtype=object), labels)
    dropped[_COVERED] = 0
    parts = []
    for number, label, whole, shape in zip(numbers, labels, there, apart, strict=True):
        if shape.is_empty:
            dropped["outside the map" if whole.is_empty else _COVERED] += 1
            continue
        counts = pd.concat([pd.DataFrame(columns=["value", "stratum", "cluster", "count"]), *_pixels_in(shape, look)])
        if counts.empty:
            dropped["outside the map" if _misses(shape, look) else "smaller than a pixel"] += 1
            continue
        if look.blocks is None:
            counts["cluster"] = rows["cluster"].iloc[number] if look.cluster else number
        parts.append(counts.assign(reference=label))
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    return Reference(table, "polygons", _counted(dropped))


def _on_map(shape: Any, onto: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Any:  # noqa: ANN401 - shapely
    """Bring a polygon into the map's CRS; an empty one where that CRS has no place for it."""
    import shapely

    # Long edges are bent by a change of CRS, so they get points between.
    left, bottom, right, top = shape.bounds
    moved = shapely.transform(shapely.segmentize(shape, max(right - left, top - bottom, 1e-12) / 20), onto)
    return shapely.make_valid(moved) if np.isfinite(shapely.get_coordinates(moved)).all() else shapely.Polygon()


def _apart(shapes: NDArray[np.object_], labels: NDArray[np.object_]) -> tuple[NDArray[np.object_], int]:
    """Cut polygons so that no ground is counted twice: a pixel in two of them would be two units, of two clusters.

    What two of one class share stays with the first; what two classes claim is no reference, and leaves both.

    Returns:
        The shapes, some of them empty, and how many of them another class contradicts.
    """
    import shapely

    first, second = shapely.STRtree(shapes).query(shapes, predicate="intersects")
    pairs = np.column_stack([first, second])[first < second]
    shared = shapely.intersection(shapes[pairs[:, 0]], shapes[pairs[:, 1]])
    real = shapely.area(shared) > 0
    apart, contradicted = shapes.copy(), set[int]()
    order = np.lexsort(pairs[real].T[::-1])
    for (one, other), part in zip(pairs[real][order].tolist(), shared[real][order], strict=True):
        apart[other] = shapely.difference(apart[other], part)
        if labels[one] != labels[other]:
            apart[one] = shapely.difference(apart[one], part)
            contradicted |= {one, other}
    return apart, len(contradicted)


def _window_of(shape: Any, raster: ClassRaster) -> tuple[int, int, int, int]:  # noqa: ANN401 - shapely is lazy
    """Give the pixels that a shape's box touches (row, col, height, width), inside the raster; 0 high if none."""
    import shapely

    inverse = ~raster.dataset.transform
    xy = shapely.get_coordinates(shape)
    col = inverse.a * xy[:, 0] + inverse.b * xy[:, 1] + inverse.c
    row = inverse.d * xy[:, 0] + inverse.e * xy[:, 1] + inverse.f
    top, left = max(0, int(np.floor(row.min()))), max(0, int(np.floor(col.min())))
    bottom, right = min(raster.height, int(np.ceil(row.max()))), min(raster.width, int(np.ceil(col.max())))
    return top, left, max(0, bottom - top), max(0, right - left)


def _misses(shape: Any, look: Look) -> bool:  # noqa: ANN401 - shapely is lazy
    _, _, height, width = _window_of(shape, look.raster)
    return height == 0 or width == 0


def _pixels_in(shape: Any, look: Look) -> Iterator[pd.DataFrame]:  # noqa: ANN401 - shapely is lazy
    """Count (value, stratum, cluster) of the valid pixels whose centre a shape holds, some rows at a time."""
    top, left, height, width = _window_of(shape, look.raster)
    step = max(1, _WINDOW_PX // max(1, width))
    for row in range(top, top + height if width else top, step):
        window = row, left, min(step, top + height - row), width
        transform = window_transform(Window(left, row, width, window[2]), look.raster.dataset.transform)
        inside = rasterize([(shape, 1)], window[2:], transform=transform, fill=0, dtype="uint8") > 0
        if not inside.any():
            continue
        values, valid, strata = _read(look, window)
        at = np.nonzero(inside & valid)
        blocks = np.zeros(at[0].size, dtype=np.int64)
        if look.blocks is not None:
            blocks = look.blocks.numbers(at[0] + row, at[1] + left)
        yield _tally(values[at], strata[at], blocks)


def _tally(
    values: NDArray[np.uint8],
    strata: NDArray[np.uint8],
    clusters: NDArray[np.int64],
    truth: NDArray[np.uint8] | None = None,
) -> pd.DataFrame:
    """Count equal units."""
    codes = (clusters * VALUES + strata) * VALUES + values
    if truth is not None:
        codes = codes * VALUES + truth
    found, counts = np.unique(codes, return_counts=True)
    columns: dict[str, Any] = {}
    if truth is not None:
        found, columns["reference"] = np.divmod(found, VALUES)
    found, columns["value"] = np.divmod(found, VALUES)
    columns["cluster"], columns["stratum"] = np.divmod(found, VALUES)
    return pd.DataFrame({**columns, "count": counts})


def _of_raster(path: Path, look: Look) -> Reference:
    """Compare two class rasters pixel by pixel, in clusters of blocks."""
    if look.blocks is None:
        raise ConfigError(
            f"the pixels of {path} lie side by side and are no independent units; say how wide the blocks of ground "
            "are that count as one, with `--block-m` (wider than things on the ground are alike)"
        )
    parts, unmapped, notes = [], 0, list[str]()
    with open_classes(path) as reference:
        strips = reference.strips()
        if not look.raster.same_grid(reference):
            _require_wide_blocks(reference, look.blocks)
            strips = strips_on_grid(look.raster, reference)
            notes.append(grid_note(look.raster, reference))
        for strip in strips:
            values, valid, strata = _read(look, (strip.row, 0, *strip.values.shape))
            unmapped += int((strip.valid & ~valid).sum())
            at = np.nonzero(strip.valid & valid)
            blocks = look.blocks.numbers(at[0] + strip.row, at[1])
            parts.append(_tally(values[at], strata[at], blocks, strip.values[at]))
    keys = ["reference", "value", "stratum", "cluster"]
    table: pd.DataFrame = pd.concat(parts, ignore_index=True).groupby(keys)[["count"]].sum().reset_index()
    table["reference"] = table["reference"].astype(str)
    return Reference(table, "raster", _counted({"where the map has no class": unmapped}), tuple(notes))


def _require_wide_blocks(reference: ClassRaster, blocks: Blocks) -> None:
    """Refuse blocks that are narrower than a reference pixel: parts of one pixel would count as independent units."""
    theirs = pixel_edge_m(reference)
    if theirs is not None and blocks.edge_m < theirs:
        raise ConfigError(
            f"blocks of {blocks.edge_m:.3g} m are narrower than the pixels of {reference.path} ({theirs:.3g} m), so "
            "pieces of one label would count as independent; give a wider `--block-m`"
        )
