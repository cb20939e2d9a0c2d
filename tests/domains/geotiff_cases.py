"""Small GeoTIFF scenes: written, indexed, assembled and read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.transform import from_origin

from vitpipe.config import GeotiffSource
from vitpipe.digest import digest_file
from vitpipe.domains.base import ScanContext
from vitpipe.domains.geotiff import Geotiff
from vitpipe.pseudonym import Pseudonymiser
from vitpipe.records import FileRecord, Rejected, Source, Window

RNG = np.random.default_rng(3)
UTM = {"crs": "EPSG:32633", "transform": from_origin(500_000, 5_000_000, 10, 10)}


def context_of(root: Path, **recipe: Any) -> ScanContext:
    return ScanContext(root, Pseudonymiser(b"key"), GeotiffSource(path=str(root), **recipe))


def write_scene(path: Path, pixels: np.ndarray[Any, Any], **profile: Any) -> Path:
    count, height, width = pixels.shape
    chosen = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": pixels.dtype, **UTM}
    with rasterio.open(path, "w", **(chosen | profile)) as dataset:
        dataset.write(pixels)
    return path


def assemble(root: Path, **recipe: Any) -> list[Source | Rejected]:
    context, domain = context_of(root, **recipe), Geotiff()
    records = []
    for path in sorted(item for item in root.rglob("*") if item.is_file()):
        header = domain.index(path, context)
        if not isinstance(header, Rejected):
            json.dumps(header, allow_nan=False)
            records.append(FileRecord(str(path), path.stat().st_size, 0, digest_file(path), header))
    return list(domain.assemble(records, context))


def only_source(root: Path, **recipe: Any) -> Source:
    (source,) = assemble(root, **recipe)
    assert isinstance(source, Source), source
    return source


def read_window(source: Source, window: Window | None = None) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    with Geotiff().open(source) as raster:
        pixels, valid = raster.read(window or Window(0, 0, 0, source.grid.height, source.grid.width))
    assert pixels.dtype == source.dtype
    assert not pixels[:, ~valid].any()
    return pixels, valid
