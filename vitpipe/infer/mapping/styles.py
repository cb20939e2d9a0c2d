"""Names and colours of maps for other programs: sidecars of GDAL and QGIS, and the style table of a GeoPackage.

Each program looks elsewhere: QGIS takes a ``.qml`` beside a raster, and the table ``layer_styles`` of a GeoPackage;
GDAL, ArcGIS and QGIS from 3.30 take the names of classes from an ``.aux.xml`` (GDAL's PAM: category names and a raster
attribute table), since GeoTIFF has no place for them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

from vitpipe.atomic import workspace_errors
from vitpipe.errors import WorkspaceError
from vitpipe.evaluate.palette import colours, hexadecimal
from vitpipe.infer.mapping.layers import MapFile

_HEAD: Final = "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
_QGIS: Final = {"version": "3.22", "styleCategories": "Symbology"}
# Of viridis (CC0, van der Walt and Smith 2015): even steps look even, in grey and to colour-blind readers too.
_RAMP: Final = ((0.0, "440154"), (0.25, "3B528B"), (0.5, "21918C"), (0.75, "5EC962"), (1.0, "FDE725"))
_FIELDS: Final = (("Value", 0, 5), ("Class", 2, 2), ("Red", 0, 6), ("Green", 0, 7), ("Blue", 0, 8))
"""Of the attribute table: name, GDALRATFieldType (0 integer, 2 text), GDALRATFieldUsage."""
_STYLES_TABLE: Final = """
CREATE TABLE layer_styles (
    id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, f_table_catalog TEXT(256), f_table_schema TEXT(256),
    f_table_name TEXT(256), f_geometry_column TEXT(256), styleName TEXT(30), styleQML TEXT, styleSLD TEXT,
    useAsDefault BOOLEAN, description TEXT, owner TEXT(30), ui TEXT(30),
    update_time DATETIME DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ','now')))
"""
"""As QGIS makes it."""
_STYLE_ROW: Final = """
INSERT INTO layer_styles (f_table_catalog, f_table_schema, f_table_name, f_geometry_column, styleName, styleQML,
    useAsDefault, description) VALUES ('', '', ?, 'geom', ?, ?, 1, 'Colours of the classes')
"""
_CONTENTS_ROW: Final = """
INSERT INTO gpkg_contents (table_name, data_type, identifier)
VALUES ('layer_styles', 'attributes', 'layer_styles')
"""
_INDEX: Final = "SELECT count(*) FROM sqlite_master WHERE name = ?"


def write_styles(file: MapFile, folder: Path) -> list[Path]:
    """Write what stands beside a file of a map: ``.qml``, and ``.tif.aux.xml`` where it holds classes.

    Quantities without a range of their own, such as values of a regression, get none: each program stretches them.
    """
    texts: dict[str, str] = {}
    if file.classes:
        texts[f"{file.name}.qml"] = _text(_class_style(file.classes), head=_HEAD)
        texts[f"{file.name}.tif.aux.xml"] = _text(_attributes(file.classes))
    elif file.scale is not None:
        texts[f"{file.name}.qml"] = _text(_share_style(), head=_HEAD)
    written = []
    for name, text in texts.items():
        with workspace_errors(folder / name):
            (folder / name).write_text(text, encoding="utf-8")
        written.append(folder / name)
    return written


def add_polygon_style(path: Path, layer: str, classes: Sequence[str]) -> None:
    """Keep the colours of classes in a GeoPackage, as the style in which QGIS opens the layer.

    Args:
        path: the GeoPackage.
        layer: of polygons, with the column ``class``, written by GDAL and closed.
        classes: their names.

    Raises:
        WorkspaceError: the file cannot be written, or GDAL could not write all of it.
    """
    style = _text(_polygon_style(classes), head=_HEAD)
    try:
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(_STYLES_TABLE)
            connection.execute(_STYLE_ROW, (layer, layer, style))
            # Listed as a table of attributes, it is one that the standard knows (OGC 12-128, 1.1.3).
            connection.execute(_CONTENTS_ROW)
            # GDAL makes it last, as it closes the file, and where it cannot it only writes that to its log.
            ((indices,),) = connection.execute(_INDEX, (f"rtree_{layer}_geom",))
    except sqlite3.OperationalError as error:
        raise WorkspaceError(f"cannot write {path}: {error}; see that the disk has room and is writable") from error
    if not indices:
        raise WorkspaceError(
            f"cannot write {path}: its spatial index is missing; see that the disk has room, and run the same command "
            "again: it goes on where it was"
        )


def _class_style(classes: Sequence[str]) -> ET.Element:
    root = ET.Element("qgis", _QGIS)
    fixed = {"type": "paletted", "band": "1", "opacity": "1", "alphaBand": "-1", "nodataColor": ""}
    entries = ET.SubElement(ET.SubElement(ET.SubElement(root, "pipe"), "rasterrenderer", fixed), "colorPalette")
    for number, (name, shade) in enumerate(zip(classes, colours(classes), strict=True)):
        values = {"value": str(number), "color": f"#{hexadecimal(shade).lower()}", "label": name, "alpha": "255"}
        ET.SubElement(entries, "paletteEntry", values)
    return root


def _share_style() -> ET.Element:
    """Colour the first band from 0 to 1: without it QGIS shows the first three classes as red, green and blue."""
    root = ET.Element("qgis", _QGIS)
    fixed = {"type": "singlebandpseudocolor", "band": "1", "opacity": "1", "alphaBand": "-1", "nodataColor": ""}
    fixed |= {"classificationMin": "0", "classificationMax": "1"}
    renderer = ET.SubElement(ET.SubElement(root, "pipe"), "rasterrenderer", fixed)
    ramp = {"colorRampType": "INTERPOLATED", "classificationMode": "1", "clip": "0"}
    ramp |= {"minimumValue": "0", "maximumValue": "1"}
    shader = ET.SubElement(ET.SubElement(renderer, "rastershader"), "colorrampshader", ramp)
    for value, shade in _RAMP:
        entry = {"value": f"{value:g}", "color": f"#{shade.lower()}", "label": f"{value:g}", "alpha": "255"}
        ET.SubElement(shader, "item", entry)
    return root


def _polygon_style(classes: Sequence[str]) -> ET.Element:
    root = ET.Element("qgis", _QGIS)
    fixed = {"type": "categorizedSymbol", "attr": "class", "symbollevels": "0", "enableorderby": "0"}
    renderer = ET.SubElement(root, "renderer-v2", fixed)
    categories, symbols = ET.SubElement(renderer, "categories"), ET.SubElement(renderer, "symbols")
    for number, (name, shade) in enumerate(zip(classes, colours(classes), strict=True)):
        shown = {"symbol": str(number), "value": name, "label": name, "render": "true"}
        ET.SubElement(categories, "category", shown)
        symbol = ET.SubElement(symbols, "symbol", {"type": "fill", "name": str(number), "alpha": "1"})
        layer = ET.SubElement(symbol, "layer", {"class": "SimpleFill", "enabled": "1", "pass": "0", "locked": "0"})
        colour = ",".join(str(part) for part in (*shade, 255))
        # No outline: at the scale of a country it would be all that is seen.
        for key, value in (("color", colour), ("style", "solid"), ("outline_style", "no")):
            ET.SubElement(layer, "prop", {"k": key, "v": value})
    return root


def _attributes(classes: Sequence[str]) -> ET.Element:
    """Give category names and the attribute table, as GDAL's PAM writes them."""
    root = ET.Element("PAMDataset")
    band = ET.SubElement(root, "PAMRasterBand", {"band": "1"})
    names = ET.SubElement(band, "CategoryNames")
    table = ET.SubElement(band, "GDALRasterAttributeTable", {"tableType": "thematic"})
    for number, (name, kind, usage) in enumerate(_FIELDS):
        field = ET.SubElement(table, "FieldDefn", {"index": str(number)})
        for key, value in (("Name", name), ("Type", str(kind)), ("Usage", str(usage))):
            ET.SubElement(field, key).text = value
    for number, (name, shade) in enumerate(zip(classes, colours(classes), strict=True)):
        ET.SubElement(names, "Category").text = name
        row = ET.SubElement(table, "Row", {"index": str(number)})
        for cell in (number, name, *shade):
            ET.SubElement(row, "F").text = str(cell)
    return root


def _text(root: ET.Element, *, head: str = "") -> str:
    ET.indent(root)
    return head + ET.tostring(root, encoding="unicode") + "\n"
