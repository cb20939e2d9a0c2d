"""Vector files as geometries and texts: GeoJSON, GeoPackage and Shapefile, each opened as what its bytes say it is.

A file is handed to GDAL only if it begins as one of these three, so a file of another kind under their name (a VRT or a
GML that refers to addresses) is never opened.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pyogrio
import shapely
from numpy.typing import NDArray
from pyogrio.errors import DataLayerError, DataSourceError

from vitpipe.digest import digest_file, digest_of_digests
from vitpipe.errors import ConfigError, TransientError
from vitpipe.labels.read import as_text
from vitpipe.opening import TRANSIENT

SUFFIXES: Final = (".geojson", ".gpkg", ".shp")
_GPKG_IDS: Final = (b"GPKG", b"GP10", b"GP11")
_BESIDE: Final = (".dbf", ".prj", ".cpg")
"""Files of a Shapefile that say what its shapes mean."""
_POLYGONAL: Final = (3, 6)
"""Polygon and MultiPolygon, by shapely's numbers of types."""

Geometries = NDArray[Any]


class UnusableVectors(Exception):
    """A vector file cannot be used.

    Args:
        reason: a sentence.
    """


@dataclass(frozen=True)
class VectorFile:
    """What a vector file says of itself."""

    opened: str
    """What GDAL is given: the path, behind the name of the driver where that can be said."""
    layer: str
    crs: str
    features: int
    content: str
    """Digest of the file, and of those that belong to it."""


@dataclass(frozen=True)
class Shapes:
    """The geometries of a vector file that may lie on sources."""

    crs: str
    geometries: Geometries
    texts: NDArray[Any]
    """Of the class column, "" where it says nothing."""
    repaired: int
    empty: int
    """Features without a geometry, or with one that cannot be read."""


def find_vectors(path: Path) -> list[Path]:
    """List the vector files of a folder, or give the one file.

    Raises:
        ConfigError: there is none.
    """
    if not path.exists():
        raise ConfigError(f"no file or folder at {path}; set it to a GeoJSON, GPKG or SHP file, or a folder of them")
    if path.is_file():
        return [path]
    found = sorted(item for item in path.rglob("*") if item.suffix.lower() in SUFFIXES and item.is_file())
    if not found:
        raise ConfigError(f"{path} holds no .geojson, .gpkg or .shp file; set it to where they are")
    return found


def look_at(path: Path, layer: str | None, columns: Sequence[str]) -> VectorFile:
    """Look at a vector file, without its features.

    Args:
        path: the file.
        layer: its layer; its only one if None.
        columns: that must be there.

    Raises:
        UnusableVectors: it cannot be used; the sentence says why.
        TransientError: the store does not answer.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(4096)
        content = digest_file(path)
    except OSError as error:
        if error.errno in TRANSIENT:
            raise TransientError(f"{path} cannot be read now: {error.strerror}") from error
        raise UnusableVectors(f"it cannot be opened ({os.strerror(error.errno or 0)})") from error
    driver, opened = _driver(path, start)
    with _said():
        # Tables without geometry, such as the styles that QGIS keeps in a GeoPackage, are nobody's labels.
        layers = [str(name) for name, kind in pyogrio.list_layers(opened) if kind is not None]
        if layer is not None and layer not in layers and driver == "GPKG":
            raise UnusableVectors(f"it has no layer `{layer}`; it has: {', '.join(layers)}")
        if len(layers) != 1 and (layer is None or driver != "GPKG"):
            raise UnusableVectors(f"it has {len(layers)} layers ({', '.join(layers)}); name one in `labels.layer`")
        chosen = layer if layer is not None and driver == "GPKG" else layers[0]
        info = pyogrio.read_info(opened, layer=chosen, force_feature_count=True)
    if info["driver"] != driver:
        raise UnusableVectors(f"it begins as {driver}, but GDAL takes it for {info['driver']}")
    fields = [str(name) for name in info["fields"]]
    if missing := [name for name in columns if name not in fields]:
        raise UnusableVectors(
            f"it has no column `{missing[0]}`; it has: {', '.join(fields) or 'none'}; set `labels.column` to one of "
            "them"
        )
    if not info["crs"]:
        raise UnusableVectors("it says no CRS, so its coordinates have no place; give it one (a .prj file, or QGIS)")
    if driver == "ESRI Shapefile":
        beside = [item for item in path.parent.glob(f"{path.stem}.*") if item.suffix.lower() in _BESIDE]
        content = digest_of_digests([content, *(digest_file(item) for item in sorted(beside))])
    return VectorFile(opened, chosen, str(info["crs"]), int(info["features"]), content)


def read_shapes(file: VectorFile, column: str | None, bbox: tuple[float, float, float, float] | None) -> Shapes:
    """Read the features of a file, invalid ones repaired.

    Args:
        file: as looked at.
        column: of the class; None: the geometries alone.
        bbox: left, bottom, right, top in the file's CRS: features that do not touch it are not read.

    Raises:
        UnusableVectors: it cannot be read.
    """
    with _said():
        _, _, wkb, columns = pyogrio.raw.read(
            file.opened, layer=file.layer, columns=[column] if column else [], force_2d=True, bbox=bbox
        )
    geometries: Geometries = shapely.from_wkb(wkb, on_invalid="ignore")
    there = ~(shapely.is_missing(geometries) | shapely.is_empty(geometries))
    texts = as_text(pd.Series(columns[0])) if column else pd.Series("", index=range(len(geometries)))
    kept = geometries[there]
    invalid = np.flatnonzero(~shapely.is_valid(kept))
    kept[invalid] = [_repaired(geometry) for geometry in kept[invalid]]
    return Shapes(
        crs=file.crs,
        geometries=kept,
        texts=texts.to_numpy(object)[there],
        repaired=len(invalid),
        empty=int(np.count_nonzero(~there)),
    )


def columns_of(file: VectorFile, most: int) -> dict[str, NDArray[Any]]:
    """Read the attributes of the first features.

    Args:
        file: as looked at.
        most: features to read.

    Raises:
        UnusableVectors: it cannot be read.
    """
    with _said():
        meta, _, _, columns = pyogrio.raw.read(file.opened, layer=file.layer, read_geometry=False, max_features=most)
    return {str(name): values for name, values in zip(meta["fields"], columns, strict=True)}


def _repaired(geometry: shapely.Geometry) -> shapely.Geometry:
    """Make a geometry valid; what was a surface stays one: a line that falls off is no area."""
    valid = shapely.make_valid(geometry)
    if shapely.get_type_id(geometry) not in _POLYGONAL:
        return valid
    parts = [part for part in shapely.get_parts(valid) if shapely.get_type_id(part) in _POLYGONAL]
    return shapely.union_all(parts)


def _driver(path: Path, start: bytes) -> tuple[str, str]:
    """Tell a file's driver by its first bytes, and how to name it to GDAL."""
    if start[:16] == b"SQLite format 3\x00" and start[68:72] in _GPKG_IDS:
        return "GPKG", str(path)
    if start[:4] == b"\x00\x00\x27\x0a" and path.suffix.lower() == ".shp":
        return "ESRI Shapefile", str(path)
    if start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{":
        # Other drivers take JSON too, and some of them follow addresses.
        return "GeoJSON", f"GeoJSON:{path}"
    raise UnusableVectors("it does not begin as a GeoJSON, GeoPackage or Shapefile; export it as one of these")


@contextlib.contextmanager
def _said() -> Iterator[None]:
    """Turn what GDAL says of a broken file into the one error of this room."""
    try:
        yield
    except (DataSourceError, DataLayerError, ValueError) as error:
        said = " ".join(str(error).split())
        raise UnusableVectors(f"it cannot be read ({said[:200]}); export it again") from error
