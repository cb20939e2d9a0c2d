"""Colours of classes: fixed, so that two maps of one model look alike."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Final
from xml.etree import ElementTree as ET

Colour = tuple[int, int, int]

# Paul Tol's "light" and "bright" sets (Colour Schemes, SRON/EPS/TN/09-002): told apart by colour-blind readers too.
_FIRST: Final = (
    "4477AA EE6677 228833 CCBB44 66CCEE AA3377 BBBBBB EE8866 44BB99 FFAABB 99DDFF AAAA00 77AADD BBCC33 882255 DDDDDD"
)
_GOLDEN: Final = 0.618033988749895


def colour(number: int) -> Colour:
    """Give the colour of a class by its place among the model's classes."""
    listed = _FIRST.split()
    if number < len(listed):
        red, green, blue = bytes.fromhex(listed[number])
        return red, green, blue
    # More classes than anyone tells apart: hues that never repeat, in three shades.
    shade = number % 3
    parts = colorsys.hsv_to_rgb(number * _GOLDEN % 1, 0.55 + 0.2 * (shade == 1), 0.95 - 0.25 * (shade == 2))
    red, green, blue = (round(255 * part) for part in parts)
    return red, green, blue


def hexadecimal(number: int) -> str:
    """Give the colour of a class as six hexadecimal digits."""
    return "{:02X}{:02X}{:02X}".format(*colour(number))


def qgis_style(classes: Sequence[str]) -> str:
    """Give a QGIS layer style (``.qml``) of a class map: QGIS takes it from beside a raster, names and colours."""
    root = ET.Element("qgis", {"version": "3.22", "styleCategories": "Symbology"})
    pipe = ET.SubElement(root, "pipe")
    fixed = {"type": "paletted", "band": "1", "opacity": "1", "alphaBand": "-1", "nodataColor": ""}
    entries = ET.SubElement(ET.SubElement(pipe, "rasterrenderer", fixed), "colorPalette")
    for number, name in enumerate(classes):
        values = {"value": str(number), "color": f"#{hexadecimal(number).lower()}", "label": name, "alpha": "255"}
        ET.SubElement(entries, "paletteEntry", values)
    ET.indent(root)
    head = "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
    return head + ET.tostring(root, encoding="unicode") + "\n"
