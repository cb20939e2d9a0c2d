"""From strips to cloud optimised GeoTIFFs (OGC 21-026): tiled, with overviews, nodata, colours and lineage.

The strips are put together by a VRT of our own making, which GDAL's COG driver copies block by block: what is held is
GDAL's block cache, whatever the size of the map.
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
    return [_write(store, file, grid, folder, tags) for file in store.layers.files]


def _write(store: StripStore, file: MapFile, grid: Grid, folder: Path, tags: Mapping[str, str]) -> Path:
    path, mosaic = folder / f"{file.name}.tif", folder / f"{file.name}.vrt"
    options = {
        "BLOCKSIZE": BLOCK,
        "COMPRESS": "DEFLATE",
        # A class has no neighbour that it could be predicted from.
        "PREDICTOR": "NO" if file.classes else "YES",
        "RESAMPLING": file.resampling.upper(),
        "NUM_THREADS": os.cpu_count() or 1,
        "BIGTIFF": "IF_SAFER",
    }
    with gdal_writes(path):
        mosaic.write_text(_mosaic(store, file, grid, tags), encoding="utf-8")
        rasterio.shutil.copy(mosaic, path, driver="COG", strict=True, **options)
        mosaic.unlink()
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
    return path


def _mosaic(store: StripStore, file: MapFile, grid: Grid, tags: Mapping[str, str]) -> str:
    """Describe a raster whose rows lie in the strips."""
    root = ET.Element("VRTDataset", {"rasterXSize": str(store.width), "rasterYSize": str(store.height)})
    if grid.crs is not None:
        axes = {"dataAxisToSRSAxisMapping": "2,1" if CRS.from_user_input(grid.crs).is_geographic else "1,2"}
        ET.SubElement(root, "SRS", axes).text = CRS.from_user_input(grid.crs).to_wkt()
    if grid.transform is not None:
        a, b, c, d, e, f = grid.transform
        ET.SubElement(root, "GeoTransform").text = ", ".join(f"{value!r}" for value in (c, a, b, f, d, e))
    metadata = ET.SubElement(root, "Metadata")
    named = {f"CLASS_{number}": name for number, name in enumerate(file.classes)}
    for key, value in {**tags, **named}.items():
        ET.SubElement(metadata, "MDI", {"key": key}).text = value
    for number, (band, description) in enumerate(zip(file.bands, file.descriptions, strict=True), start=1):
        # Blocks as those of the copy: GDAL's default of 128 pixels asks for each strip's block four times.
        blocks = {"blockXSize": str(BLOCK), "blockYSize": str(BLOCK)}
        shown = {"dataType": _TYPES[store.layers.dtype.name], "band": str(number), **blocks}
        element = ET.SubElement(root, "VRTRasterBand", shown)
        _describe(element, file, description, store.layers)
        for strip in range(store.count):
            _place(element, store, strip, band)
    return ET.tostring(root, encoding="unicode")


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


def _place(element: ET.Element, store: StripStore, strip: int, band: int) -> None:
    source = ET.SubElement(element, "SimpleSource")
    # Shared handles would all stay open.
    ET.SubElement(source, "SourceFilename", {"relativeToVRT": "0", "shared": "0"}).text = str(store.path(strip))
    ET.SubElement(source, "SourceBand").text = str(band + 1)
    size = {"xSize": str(store.width), "ySize": str(store.rows_of(strip))}
    ET.SubElement(source, "SrcRect", {"xOff": "0", "yOff": "0", **size})
    ET.SubElement(source, "DstRect", {"xOff": "0", "yOff": str(strip * STRIP_ROWS), **size})
