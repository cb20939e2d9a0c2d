"""Other programs find names and colours of classes: QGIS in its style files, GDAL in its sidecar."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from xml.etree import ElementTree as ET

import pyogrio
import pytest
import rasterio
import shapely

from vitpipe.errors import WorkspaceError
from vitpipe.evaluate.palette import colours, hexadecimal
from vitpipe.infer.mapping import ClassLayers, ValueLayers
from vitpipe.infer.mapping.polygons import ClassPolygon, write_polygons
from vitpipe.infer.mapping.styles import add_polygon_style, write_styles
from vitpipe.records import Grid

CLASSES = ("bare ground", "forest & scrub", "water")


def styles_of(layers: ClassLayers | ValueLayers, folder: Path) -> list[str]:
    """Write all sidecars of a map; gives their names."""
    return [path.name for file in layers.files for path in write_styles(file, folder)]


def test_gdal_finds_the_names_of_classes_in_the_sidecar(tmp_path: Path) -> None:
    names = styles_of(ClassLayers(CLASSES), tmp_path)
    assert names == ["classes.qml", "classes.tif.aux.xml", "probabilities.qml", "entropy.qml"]
    profile = {"driver": "GTiff", "width": 4, "height": 4, "count": 1, "dtype": "uint8", "crs": "EPSG:32633"}
    with rasterio.open(tmp_path / "classes.tif", "w", transform=rasterio.Affine(1, 0, 0, 0, -1, 4), **profile):
        pass
    with rasterio.open(tmp_path / "classes.tif") as file:
        # GDAL took the sidecar as one of its own.
        assert [Path(name).name for name in file.files] == ["classes.tif", "classes.tif.aux.xml"]
    band = ET.parse(tmp_path / "classes.tif.aux.xml").getroot().find("PAMRasterBand")
    assert band is not None
    assert [item.text for item in band.iter("Category")] == list(CLASSES)
    (table,) = band.iter("GDALRasterAttributeTable")
    assert table.get("tableType") == "thematic"
    fields = [(field.findtext("Name"), field.findtext("Usage")) for field in band.iter("FieldDefn")]
    assert fields == [("Value", "5"), ("Class", "2"), ("Red", "6"), ("Green", "7"), ("Blue", "8")]
    rows = [[cell.text for cell in row] for row in band.iter("Row")]
    shades = colours(CLASSES)
    assert rows == [[str(n), name, *map(str, shades[n])] for n, name in enumerate(CLASSES)]


def test_qgis_finds_the_colours_of_classes_in_its_style(tmp_path: Path) -> None:
    styles_of(ClassLayers(CLASSES), tmp_path)
    renderer = ET.fromstring((tmp_path / "classes.qml").read_text(encoding="utf-8")).find("pipe/rasterrenderer")
    assert renderer is not None
    assert (renderer.get("type"), renderer.get("band")) == ("paletted", "1")
    shown = [[item.get(key) for key in ("value", "label", "color", "alpha")] for item in renderer.iter("paletteEntry")]
    shades = [f"#{hexadecimal(shade).lower()}" for shade in colours(CLASSES)]
    assert shown == [[str(n), name, shades[n], "255"] for n, name in enumerate(CLASSES)]


def test_shares_are_drawn_from_nought_to_one_and_values_as_they_come(tmp_path: Path) -> None:
    assert styles_of(ValueLayers("biomass", "t/ha"), tmp_path) == []
    styles_of(ClassLayers(CLASSES), tmp_path)
    for name in ("probabilities", "entropy"):
        text = (tmp_path / f"{name}.qml").read_text(encoding="utf-8")
        root = ET.fromstring(text)
        renderer = root.find("pipe/rasterrenderer")
        assert renderer is not None
        assert (renderer.get("type"), renderer.get("band")) == ("singlebandpseudocolor", "1")
        assert [item.get("value") for item in root.iter("item")] == ["0", "0.25", "0.5", "0.75", "1"]


def test_a_geopackage_holds_the_colours_of_its_classes(tmp_path: Path) -> None:
    path = tmp_path / "classes.gpkg"
    grid = Grid(1, 10, 10, transform=(10, 0, 500_000, 0, -10, 5_000_000), crs="EPSG:32633")
    write_polygons(path, [ClassPolygon(1, shapely.box(0, 0, 1, 1))], CLASSES, grid)
    with closing(sqlite3.connect(path)) as connection:
        ((layer, column, text, used),) = connection.execute(
            "SELECT f_table_name, f_geometry_column, styleQML, useAsDefault FROM layer_styles"
        )
        ((version,),) = connection.execute("PRAGMA user_version")
        listed = dict(connection.execute("SELECT table_name, data_type FROM gpkg_contents"))
    assert (layer, column, used, version) == ("classes", "geom", 1, 10200)
    assert listed == {"classes": "features", "layer_styles": "attributes"}
    root = ET.fromstring(text)
    renderer = root.find("renderer-v2")
    assert renderer is not None
    assert (renderer.get("type"), renderer.get("attr")) == ("categorizedSymbol", "class")
    assert [item.get("value") for item in root.iter("category")] == list(CLASSES)
    found = [item.get("v", "").split(",")[:3] for item in root.iter("prop") if item.get("k") == "color"]
    assert ["".join(f"{int(part):02X}" for part in parts) for parts in found] == list(
        map(hexadecimal, colours(CLASSES))
    )
    # The table of styles is no layer of polygons, and nobody has to name the one that is.
    assert [(str(name), kind is None) for name, kind in pyogrio.list_layers(path)] == [
        ("classes", False),
        ("layer_styles", True),
    ]


def test_a_geopackage_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="cannot write"):
        add_polygon_style(tmp_path / "nowhere" / "classes.gpkg", "classes", CLASSES)
