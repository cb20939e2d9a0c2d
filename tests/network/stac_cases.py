"""Small scenes and the STAC items that describe them, and a pipeline that fetches them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.io import MemoryFile
from rasterio.transform import from_origin

from tests.network.range_server import Asked, Ranges
from vitpipe.config import PipelineConfig
from vitpipe.workspace import Workspace

SIGNATURE = "sig=canary-signature"


def tiff(number: int, bands: int = 1, size: int = 64, gsd_m: float = 10, **tags: Any) -> bytes:
    """Give the bytes of a small GeoTIFF of uint16, each another one."""
    pixels = np.random.default_rng(number).integers(1, 4000, (bands, size, size)).astype(np.uint16)
    with MemoryFile() as memory:
        with memory.open(
            driver="GTiff", count=bands, height=size, width=size, dtype="uint16", crs="EPSG:32633",
            transform=from_origin(500_000 + 20_000 * number, 5_000_000, gsd_m, gsd_m),
            alpha=tags.get("alpha", "no"),
        ) as dataset:  # fmt: skip
            dataset.write(pixels)
            if "scales" in tags:
                dataset.scales, dataset.offsets = tags["scales"], tags["offsets"]
        return bytes(memory.read())


def multihash(content: bytes) -> str:
    return "1220" + hashlib.sha256(content).hexdigest()


def item(number: int, href: str, content: bytes | None = None, **asset: Any) -> dict[str, Any]:
    """Make an item of one asset `red`."""
    stated = {"file:size": len(content), "file:checksum": multihash(content)} if content is not None else {}
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": f"scene-{number}",
        "collection": "small",
        "bbox": [10.0 + number, 45.0, 10.5 + number, 45.5],
        "geometry": None,
        "properties": {
            "datetime": f"2023-06-{number + 1:02d}T10:00:00Z",
            "platform": "sentinel-2a",
            "eo:cloud_cover": 10 * number,
            "preview": f"https://stac.example.org/preview.png?{SIGNATURE}",
        },
        "links": [{"rel": "root", "href": "../catalog.json"}],
        "assets": {
            "red": {
                "href": href,
                "type": "image/tiff; application=geotiff; profile=cloud-optimized",
                "roles": ["data"],
                "eo:bands": [{"name": "B04", "common_name": "red"}],
                **stated,
                **asset,
            }
        },
    }


def put_catalog(held: Ranges, count: int, root: str = "/cat") -> None:
    """Put a catalog of a collection, with an item in a folder of its own each."""
    links: list[dict[str, str]] = [{"rel": "root", "href": "../catalog.json"}]
    for number in range(count):
        content = tiff(number)
        place = f"{root}/small/scene-{number}"
        held.add(f"{place}/red.tif", content)
        held.add(f"{place}/item.json", item(number, f"./red.tif?{SIGNATURE}", content))
        links.append({"rel": "item", "href": f"./scene-{number}/item.json"})
    held.add(
        f"{root}/small/collection.json", {"type": "Collection", "stac_version": "1.0.0", "id": "small", "links": links}
    )
    up = [{"rel": "child", "href": "./small/collection.json"}, {"rel": "child", "href": "catalog.json"}]
    held.add(f"{root}/catalog.json", {"type": "Catalog", "stac_version": "1.0.0", "id": "all", "links": up})


def put_api(held: Ranges, count: int, page: int = 2, *, post: bool = True) -> None:
    """Put an API whose pages hold two items; it pages by POST with a merged body, or by GET."""
    items = []
    for number in range(count):
        content = tiff(number)
        held.add(f"/data/{number}.tif", content)
        items.append(item(number, f"{held.url}/data/{number}.tif?{SIGNATURE}", content))

    def search(asked: Asked) -> tuple[int, Any]:
        if (asked.method == "POST") != post:
            return 405, {}
        given = asked.body if post else asked.query
        start = int(given.get("token", 0))
        following: list[dict[str, Any]] = []
        if start + page < count and post:
            body = {"token": start + page}
            following = [
                {"rel": "next", "method": "POST", "href": f"{held.url}/v1/search", "body": body, "merge": True}
            ]
        elif start + page < count:
            following = [{"rel": "next", "href": f"{held.url}/v1/search?token={start + page}"}]
        return 200, {"type": "FeatureCollection", "features": items[start : start + page], "links": following}

    held.answers["/v1/search"] = search
    held.add("/v1", {"type": "Catalog", "id": "api", "links": [{"rel": "search", "href": f"{held.url}/v1/search"}]})


def answer_with(held: Ranges, *items: Any) -> None:
    """Let the API find just these items, whatever is asked for."""
    page = {"type": "FeatureCollection", "features": list(items)}
    held.answers["/v1/search"] = lambda _: (200, page)
    held.add("/v1", {"type": "Catalog", "id": "api", "links": [{"rel": "search", "href": "/v1/search"}]})


def pipeline(folder: Path, url: str, **source: Any) -> tuple[PipelineConfig, Workspace]:
    workspace = folder / "workspace"
    values = {
        "name": "t",
        "source": {"kind": "stac", "url": url, **source},
        "tiles": {"size": 32, "stride": 32},
        "workspace": str(workspace),
    }
    return PipelineConfig.model_validate(values), Workspace(workspace)


def open_pixels(path: Path) -> np.ndarray[Any, Any]:
    with rasterio.open(path) as dataset:
        return np.asarray(dataset.read())
