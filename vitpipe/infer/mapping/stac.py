"""A STAC item beside a map, and a catalog of all maps: what it is, where it lies, what made it of what.

STAC 1.1.0 with the extensions projection, raster, classification, processing and file. Bands have the fields of STAC
1.1, such as ``data_type`` and ``nodata``; their scale is the raster extension's.
"""

from __future__ import annotations

import datetime
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rasterio.crs import CRS

from vitpipe import __version__
from vitpipe.atomic import write_json
from vitpipe.evaluate.palette import colours, hexadecimal
from vitpipe.infer.mapping.footprint import footprint
from vitpipe.infer.mapping.layers import Layers, MapFile
from vitpipe.infer.mapping.polygons import VECTORS_FILE
from vitpipe.infer.mapping.strips import StripStore
from vitpipe.records import Grid, Json

ITEM_FILE: Final = "item.json"
CATALOG_FILE: Final = "catalog.json"
MODEL_FILE: Final = "model.json"
STAC_VERSION: Final = "1.1.0"
MULTIHASH_SHA256: Final = "1220"
"""Before a SHA-256 of 32 bytes in a multihash: the function's code, and the length."""
_EXTENSIONS: Final = (
    "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "https://stac-extensions.github.io/raster/v2.0.0/schema.json",
    "https://stac-extensions.github.io/classification/v2.0.0/schema.json",
    "https://stac-extensions.github.io/processing/v1.2.0/schema.json",
    "https://stac-extensions.github.io/file/v2.1.0/schema.json",
)
_COG: Final = "image/tiff; application=geotiff; profile=cloud-optimized"
_GEOPACKAGE: Final = "application/geopackage+sqlite3"


@dataclass(frozen=True, slots=True)
class MapItem:
    """Writes the STAC item of a map, after its other files."""

    item_id: str
    acquired_at: str | None
    """ISO 8601; None: not known, and the item says when the map was made."""
    lineage: str
    """A sentence: which model, on what, how."""
    facts: Mapping[str, str]
    """Kept as ``vitpipe:`` properties."""
    derived_from: str | None
    """Where the scene lies."""
    model_uri: str
    model: Mapping[str, Json]
    """The item of the model."""

    def __call__(self, store: StripStore, grid: Grid, folder: Path) -> list[Path]:
        """Write ``item.json`` and ``model.json``; see `vitpipe.infer.mapping.scene.Extra`."""
        write_json(folder / MODEL_FILE, dict(self.model))
        return [self.write(store.layers, store.layers.files, grid, folder), folder / MODEL_FILE]

    def write(self, layers: Layers, files: Sequence[MapFile], grid: Grid, folder: Path) -> Path:
        """Write ``item.json`` for the files that lie in a folder."""
        place = footprint(grid)
        links: list[Json] = [
            {"rel": "root", "href": f"../{CATALOG_FILE}", "type": "application/json"},
            {"rel": "parent", "href": f"../{CATALOG_FILE}", "type": "application/json"},
            {"rel": "about", "href": self.model_uri, "title": "Registered model that made the map"},
            # Not `derived_from`: the pixels are those of scenes alone.
            {
                "rel": "about",
                "href": f"./{MODEL_FILE}",
                "type": "application/geo+json",
                "title": "The model as an item",
            },
        ]
        if self.derived_from is not None:
            links.append({"rel": "derived_from", "href": self.derived_from, "title": "Scene"})
        assets: dict[str, Json] = {
            file.name: _asset(file, layers) | _file_facts(folder / f"{file.name}.tif") for file in files
        }
        if (folder / VECTORS_FILE).exists():
            assets["vectors"] = {
                "href": f"./{VECTORS_FILE}",
                "type": _GEOPACKAGE,
                "title": "Polygons of classes",
                "roles": ["data"],
                **_file_facts(folder / VECTORS_FILE),
            }
        item: dict[str, Json] = {
            "type": "Feature",
            "stac_version": STAC_VERSION,
            "stac_extensions": list(_EXTENSIONS),
            "id": self.item_id,
            "geometry": place[0] if place else None,
            "properties": self._properties(grid),
            "links": links,
            "assets": assets,
        }
        if place:
            item["bbox"] = place[1]
        write_json(folder / ITEM_FILE, item)
        return folder / ITEM_FILE

    def _properties(self, grid: Grid) -> dict[str, Json]:
        now = now_utc()
        properties: dict[str, Json] = {
            "datetime": _rfc3339(self.acquired_at) if self.acquired_at else now,
            "created": now,
            "processing:lineage": self.lineage,
            "processing:software": {"vitpipe": __version__},
            "proj:shape": [grid.height, grid.width],
            **{f"vitpipe:{name}": value for name, value in self.facts.items()},
        }
        if self.acquired_at is None:
            properties["description"] = "The scene does not say when it was taken; datetime is when the map was made."
        if grid.crs is not None:
            known = grid.crs.startswith("EPSG:")
            properties["proj:code"] = grid.crs if known else None
            if not known:
                properties["proj:wkt2"] = CRS.from_user_input(grid.crs).to_wkt(version="WKT2_2019")
        if grid.transform is not None:
            a, b, c, d, e, f = grid.transform
            corners = [(col, row) for col in (0, grid.width) for row in (0, grid.height)]
            xs, ys = [a * col + b * row + c for col, row in corners], [d * col + e * row + f for col, row in corners]
            properties["proj:transform"] = list(grid.transform)
            properties["proj:bbox"] = [min(xs), min(ys), max(xs), max(ys)]
        return properties


def write_catalog_of_maps(folder: Path) -> Path:
    """Write a STAC catalog of all maps that lie below a folder.

    Raises:
        WorkspaceError: it cannot be written.
    """
    items = sorted(path.parent.name for path in folder.glob(f"*/{ITEM_FILE}") if not path.parent.name.startswith("."))
    root: Json = {"rel": "root", "href": f"./{CATALOG_FILE}", "type": "application/json"}
    found: list[Json] = [
        {"rel": "item", "href": f"./{name}/{ITEM_FILE}", "type": "application/geo+json"} for name in items
    ]
    catalog: dict[str, Json] = {
        "type": "Catalog",
        "stac_version": STAC_VERSION,
        "id": "vitpipe-maps",
        "description": "Maps that vitpipe made of scenes.",
        "links": [root, *found],
    }
    write_json(folder / CATALOG_FILE, catalog)
    return folder / CATALOG_FILE


def class_list(classes: Sequence[str]) -> list[Json]:
    """Give names, numbers and colours of classes, as ``classification:classes``."""
    return [
        {"value": number, "name": name, "description": name, "color_hint": hexadecimal(shade)}
        for number, (name, shade) in enumerate(zip(classes, colours(classes), strict=True))
    ]


def now_utc() -> str:
    """Give this moment as RFC 3339 wants it, to the second."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _asset(file: MapFile, layers: Layers) -> dict[str, Json]:
    band: dict[str, Json] = {
        "data_type": layers.dtype.name,
        "nodata": "nan" if math.isnan(layers.nodata) else layers.nodata,
        "raster:sampling": "area",
    }
    if file.scale is not None:
        band |= {"raster:scale": file.scale, "raster:offset": 0}
    if file.unit:
        band["unit"] = file.unit
    asset: dict[str, Json] = {
        "href": f"./{file.name}.tif",
        "type": _COG,
        "title": file.name.capitalize(),
        "roles": ["data"],
        "bands": [{**band, "name": name} for name in file.descriptions],
    }
    if file.classes:
        asset["classification:classes"] = class_list(file.classes)
    return asset


def _file_facts(path: Path) -> dict[str, Json]:
    with path.open("rb") as stream:
        checksum = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"file:size": path.stat().st_size, "file:checksum": MULTIHASH_SHA256 + checksum}


def _rfc3339(moment: str) -> str:
    """Give a moment in UTC as RFC 3339 wants it; one without an offset is UTC."""
    parsed = datetime.datetime.fromisoformat(moment)
    if parsed.tzinfo is None:
        parsed = parsed.replace(tzinfo=datetime.UTC)
    return parsed.astimezone(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
