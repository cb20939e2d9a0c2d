"""From strips to cloud optimised GeoTIFFs (OGC 21-026): tiled, with overviews, nodata, colours and lineage.

The strips are put together by VRTs of our own making, one for the map and one for each overview. GDAL's COG driver
copies them block by block: what is held is GDAL's block cache, whatever the size of the map.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

import rasterio.shutil
from rasterio.crs import CRS

from vitpipe.infer.mapping.gdal import gdal_writes
from vitpipe.infer.mapping.layers import Layers, MapFile
from vitpipe.infer.mapping.palette import colours
from vitpipe.infer.mapping.strips import STRIP_ROWS, StripStore
from vitpipe.records import Grid

BLOCK: Final = 512
_TYPES: Final = {"uint8": "Byte", "float32": "Float32"}


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
    return [_write(store, file, grid, folder, tags) for file in store.layers.files]


def _write(store: StripStore, file: MapFile, grid: Grid, folder: Path, tags: Mapping[str, str]) -> Path:
    path = folder / f"{file.name}.tif"
    mosaics = [folder / f"{file.name}-{level}.vrt" for level in range(len(store.shapes))]
    options = {
        "BLOCKSIZE": BLOCK,
        "COMPRESS": "DEFLATE",
        # A class has no neighbour that it could be predicted from.
        "PREDICTOR": "NO" if file.classes else "YES",
        # Level 6, the default, takes more than twice the time and makes a map of probabilities 3 % smaller.
        "LEVEL": 1,
        "NUM_THREADS": os.cpu_count() or 1,
        "BIGTIFF": "IF_SAFER",
    }
    with gdal_writes(path):
        for level, mosaic in enumerate(mosaics[1:], start=1):
            mosaic.write_text(_text(_mosaic(store, file, level)), encoding="utf-8")
        whole = _mosaic(store, file, 0)
        _add_place(whole, grid)
        _add_metadata(whole, file, tags)
        for number, band in enumerate(whole.iter("VRTRasterBand"), start=1):
            for mosaic in mosaics[1:]:
                overview = ET.SubElement(band, "Overview")
                ET.SubElement(overview, "SourceFilename", {"relativeToVRT": "0"}).text = str(mosaic)
                ET.SubElement(overview, "SourceBand").text = str(number)
        mosaics[0].write_text(_text(whole), encoding="utf-8")
        rasterio.shutil.copy(mosaics[0], path, driver="COG", strict=True, **options)
        for mosaic in mosaics:
            mosaic.unlink()
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
    return path


def _text(root: ET.Element) -> str:
    return ET.tostring(root, encoding="unicode")


def _mosaic(store: StripStore, file: MapFile, level: int) -> ET.Element:
    """Describe a raster whose rows lie in the strips of a level."""
    height, width = store.shapes[level]
    root = ET.Element("VRTDataset", {"rasterXSize": str(width), "rasterYSize": str(height)})
    for number, (band, description) in enumerate(zip(file.bands, file.descriptions, strict=True), start=1):
        # Blocks as those of the copy: GDAL's default of 128 pixels asks for each strip's block four times.
        blocks = {"blockXSize": str(BLOCK), "blockYSize": str(BLOCK)}
        shown = {"dataType": _TYPES[store.layers.dtype.name], "band": str(number), **blocks}
        element = ET.SubElement(root, "VRTRasterBand", shown)
        _describe(element, file, description, store.layers)
        for strip in range(store.count_of(level)):
            _place(element, store, (level, strip), band)
    return root


def _add_place(root: ET.Element, grid: Grid) -> None:
    if grid.crs is not None:
        axes = {"dataAxisToSRSAxisMapping": "2,1" if CRS.from_user_input(grid.crs).is_geographic else "1,2"}
        ET.SubElement(root, "SRS", axes).text = CRS.from_user_input(grid.crs).to_wkt()
    if grid.transform is not None:
        a, b, c, d, e, f = grid.transform
        ET.SubElement(root, "GeoTransform").text = ", ".join(f"{value!r}" for value in (c, a, b, f, d, e))


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


def _place(element: ET.Element, store: StripStore, which: tuple[int, int], band: int) -> None:
    level, strip = which
    source = ET.SubElement(element, "SimpleSource")
    # Shared handles would all stay open.
    name = str(store.path(strip, level))
    ET.SubElement(source, "SourceFilename", {"relativeToVRT": "0", "shared": "0"}).text = name
    ET.SubElement(source, "SourceBand").text = str(band + 1)
    size = {"xSize": str(store.shapes[level][1]), "ySize": str(store.rows_of(strip, level))}
    ET.SubElement(source, "SrcRect", {"xOff": "0", "yOff": "0", **size})
    ET.SubElement(source, "DstRect", {"xOff": "0", "yOff": str(strip * STRIP_ROWS), **size})
