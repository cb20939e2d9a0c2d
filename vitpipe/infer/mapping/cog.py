"""From strips to cloud optimised GeoTIFFs (OGC 21-026): tiled, with overviews, nodata, colours and lineage.

The strips hold compressed blocks, so a file is its front (:mod:`vitpipe.infer.mapping.tiff`) and then their bytes: the
overviews from the smallest on, the map at last, as GDAL's COG driver lays them. GDAL writes the tags: in a file of a
few pixels, from a VRT that says what the map's bands are.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Final
from xml.etree import ElementTree as ET

import numpy as np
import rasterio.shutil
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.io import MemoryFile

from vitpipe.atomic import workspace_errors
from vitpipe.errors import WorkspaceError
from vitpipe.evaluate.palette import colours
from vitpipe.infer.mapping.blocks import BLOCK, LEADER, TRAILER, predictor_of
from vitpipe.infer.mapping.gdal import gdal_writes
from vitpipe.infer.mapping.layers import Layers, MapFile
from vitpipe.infer.mapping.strips import StripStore
from vitpipe.infer.mapping.tiff import LevelBlocks, Template, front, needs_big
from vitpipe.records import Grid

_TYPES: Final = {"uint8": "Byte", "float32": "Float32"}
_PREDICTORS: Final = {1: "NO", 2: "STANDARD", 3: "FLOATING_POINT"}
_EDGE: Final = 2
"""Of the file whose tags are taken, in pixels: it has room for an overview."""
_COPIED_BYTES: Final = 1 << 20


def write_cogs(store: StripStore, grid: Grid, folder: Path, tags: Mapping[str, str]) -> list[Path]:
    """Write the files of a map whose strips are all there.

    Args:
        store: the strips.
        grid: of the map: transform and CRS.
        folder: for the files; not renamed into place here.
        tags: kept in each file as GDAL metadata.

    Raises:
        WorkspaceError: the disk is full.
    """
    store.complete_overviews()
    sizes = [
        [store.sizes(strip, level) for strip in range(store.count_of(level))] for level in range(len(store.shapes))
    ]
    files = store.layers.files
    paths = [folder / f"{file.name}.tif" for file in files]
    templates = []
    for file, path in zip(files, paths, strict=True):
        with gdal_writes(path):
            templates.append(_template(file, store, grid, tags))
    # Most of their time is the disk's.
    with ThreadPoolExecutor(len(files)) as pool:
        for done in [
            pool.submit(_write, store, number, path, sizes, templates[number]) for number, path in enumerate(paths)
        ]:
            done.result()
    return paths


def _write(
    store: StripStore, number: int, path: Path, sizes: list[list[NDArray[np.int64]]], template: Template
) -> None:
    """Write a file of the map: its front, then its part of each strip.

    Args:
        store: the strips.
        number: of the file among those of the layers.
        path: where to.
        sizes: of each strip of each level, see `StripStore.sizes`.
        template: the tags.
    """
    blocks = [np.concatenate([strip[number] for strip in level]) for level in sizes]
    small = len(_front(store, template, blocks, 0, big=False))
    big = needs_big(small + int(sum(level.sum() for level in blocks)))
    start = len(_front(store, template, blocks, 0, big=big))
    with workspace_errors(path), path.open("wb") as stream:
        stream.write(_front(store, template, blocks, start, big=big))
        for level in reversed(range(len(sizes))):
            for strip, parts in enumerate(sizes[level]):
                skipped = store.index_bytes(level) + int(parts[:number].sum())
                _copy(store.path(strip, level), skipped, int(parts[number].sum()), stream)
        stream.flush()
        os.fsync(stream.fileno())


def _front(store: StripStore, template: Template, blocks: list[NDArray[np.int64]], start: int, *, big: bool) -> bytes:
    """Give the front of a file whose first block begins at `start`."""
    levels: list[LevelBlocks] = []
    for (height, width), sizes in zip(reversed(store.shapes), reversed(blocks), strict=True):
        ends = start + np.cumsum(sizes)
        levels.insert(0, LevelBlocks(height, width, ends - sizes + LEADER, sizes - LEADER - TRAILER))
        start = int(ends[-1])
    return front(template, levels, big=big)


def _copy(path: Path, start: int, count: int, into: BinaryIO) -> None:
    with path.open("rb") as stream:
        stream.seek(start)
        while count:
            part = stream.read(min(count, _COPIED_BYTES))
            if not part:
                raise WorkspaceError(
                    f"{path} ends before the blocks that it should hold; remove {path.parent.parent} and run the same "
                    "command again"
                )
            into.write(part)
            count -= len(part)


def _template(file: MapFile, store: StripStore, grid: Grid, tags: Mapping[str, str]) -> Template:
    """Let GDAL write the tags."""
    root = _described(file, store.layers)
    _add_place(root, grid)
    _add_metadata(root, file, tags)
    if len(store.shapes) > 1:
        ET.SubElement(root, "OverviewList", {"resampling": "nearest"}).text = "2"
    options = {
        "BLOCKSIZE": BLOCK,
        "COMPRESS": "DEFLATE",
        "PREDICTOR": _PREDICTORS[predictor_of(file, store.layers.dtype)],
        "BIGTIFF": "NO",
    }
    text = ET.tostring(root, encoding="utf-8")
    with MemoryFile(text, ext=".vrt") as source, MemoryFile(ext=".tif") as made:
        rasterio.shutil.copy(source.name, made.name, driver="COG", strict=True, **options)
        return Template.of(bytes(made.getbuffer()))


def _described(file: MapFile, layers: Layers) -> ET.Element:
    """Describe a raster of a few pixels that has the bands of a file."""
    root = ET.Element("VRTDataset", {"rasterXSize": str(_EDGE), "rasterYSize": str(_EDGE)})
    for number, description in enumerate(file.descriptions, start=1):
        shown = {"dataType": _TYPES[layers.dtype.name], "band": str(number)}
        _describe(ET.SubElement(root, "VRTRasterBand", shown), file, description, layers)
    return root


def _add_place(root: ET.Element, grid: Grid) -> None:
    if grid.crs is not None:
        ET.SubElement(root, "SRS").text = CRS.from_user_input(grid.crs).to_wkt()
    if grid.transform is not None:
        a, b, c, d, e, f = grid.transform
        ET.SubElement(root, "GeoTransform").text = ", ".join(f"{value!r}" for value in (c, a, b, f, d, e))
    if grid.gcps:
        points = ET.SubElement(root, "GCPList", {"Projection": CRS.from_user_input(grid.gcp_crs).to_wkt()})
        for number, (row, col, x, y) in enumerate(grid.gcps, start=1):
            place = {"Pixel": f"{col!r}", "Line": f"{row!r}", "X": f"{x!r}", "Y": f"{y!r}"}
            ET.SubElement(points, "GCP", {"Id": str(number), **place})


def _add_metadata(root: ET.Element, file: MapFile, tags: Mapping[str, str]) -> None:
    metadata = ET.SubElement(root, "Metadata")
    named = {f"CLASS_{number}": name for number, name in enumerate(file.classes)}
    for key, value in {**tags, **named}.items():
        ET.SubElement(metadata, "MDI", {"key": key}).text = value


def _describe(element: ET.Element, file: MapFile, description: str, layers: Layers) -> None:
    ET.SubElement(element, "Description").text = description
    if file.unit:
        ET.SubElement(element, "UnitType").text = file.unit
    ET.SubElement(element, "NoDataValue").text = f"{layers.nodata:g}"
    if file.scale is not None:
        ET.SubElement(element, "Scale").text = f"{file.scale!r}"
        ET.SubElement(element, "Offset").text = "0"
    if file.classes:
        ET.SubElement(element, "ColorInterp").text = "Palette"
        table = ET.SubElement(element, "ColorTable")
        listed = colours(file.classes)
        for number in range(256):
            parts = (*listed[number], 255) if number < len(listed) else (0, 0, 0, 0)
            ET.SubElement(table, "Entry", {f"c{place}": str(part) for place, part in enumerate(parts, start=1)})
    else:
        ET.SubElement(element, "ColorInterp").text = "Gray" if len(file.bands) == 1 else "Undefined"
