"""Names of a raster's values, as GDAL keeps them beside the file: category names, or a raster attribute table.

GDAL itself is not allowed to look for sidecars (`vitpipe.opening`); this reads the one that names classes, as plain
XML without entities.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

_MOST_BYTES: Final = 16 << 20
_NAME_USAGE: Final = "2"
_VALUE_USAGES: Final = ("5", "3")
_TEXT_TYPE: Final = "2"


def names_beside(path: Path, band: int) -> dict[float, str]:
    """Read the names of a band's values from ``<file>.aux.xml``.

    Args:
        path: the raster.
        band: counted from 1.

    Returns:
        Value to name; nothing where there is no such file, or it names none or cannot be read.
    """
    sidecar = path.with_name(path.name + ".aux.xml")
    if not sidecar.is_file() or sidecar.stat().st_size > _MOST_BYTES:
        return {}
    text = sidecar.read_bytes()
    # A document type could define entities that grow without bound, or name other files.
    if b"<!" in text.replace(b"<!--", b"").replace(b"<![CDATA[", b""):
        return {}
    try:
        root = ElementTree.fromstring(text)  # noqa: S314 - no document type, see above
    except ElementTree.ParseError:
        return {}
    for found in root.iter("PAMRasterBand"):
        if found.get("band") == str(band):
            return _of_categories(found) or _of_table(found)
    return {}


def _of_categories(band: ElementTree.Element) -> dict[float, str]:
    categories = band.find("CategoryNames")
    if categories is None:
        return {}
    texts = [(item.text or "").strip() for item in categories.findall("Category")]
    return {float(value): text for value, text in enumerate(texts) if text}


def _of_table(band: ElementTree.Element) -> dict[float, str]:
    table = band.find("GDALRasterAttributeTable")
    if table is None:
        return {}
    fields = [
        {name: (field.findtext(name) or "").strip() for name in ("Name", "Type", "Usage")}
        for field in table.findall("FieldDefn")
    ]
    column = next((at for at, field in enumerate(fields) if field["Usage"] == _NAME_USAGE), None)
    if column is None:
        texts = [at for at, field in enumerate(fields) if field["Type"] == _TEXT_TYPE]
        column = texts[0] if texts else None
    if column is None:
        return {}
    value = next((at for at, field in enumerate(fields) if field["Usage"] in _VALUE_USAGES), None)
    if value is None:
        value = next((at for at, field in enumerate(fields) if field["Name"].lower() == "value"), None)
    return dict(_rows(table, column, value))


def _rows(table: ElementTree.Element, column: int, value: int | None) -> Iterator[tuple[float, str]]:
    first = _number(table.get("Row0Min")) or 0.0
    step = _number(table.get("BinSize")) or 1.0
    for place, row in enumerate(table.findall("Row")):
        cells = [(cell.text or "").strip() for cell in row.findall("F")]
        if column >= len(cells) or not cells[column]:
            continue
        # Without a column of values, rows are bins of them (GDAL's data model, GDALRasterAttributeTable).
        number = first + place * step if value is None else _number(cells[value]) if value < len(cells) else None
        if number is not None:
            yield number, cells[column]


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None
