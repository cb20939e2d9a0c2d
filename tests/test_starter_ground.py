"""`vitpipe init` finds the labels that lie on scenes, and what it writes can be checked and prepared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
import shapely.affinity

from tests.conftest import SHARED
from tests.labels.ground_cases import Run, X, Y, write_scene, write_tif
from tests.labels.vector_cases import write_vectors
from vitpipe.check import check_pipeline
from vitpipe.config import GeotiffSource, RasterLabels, VectorLabels
from vitpipe.loading import load_config, parse_config
from vitpipe.records import Task
from vitpipe.starter import write_starter


def cells(size: int, step: int) -> tuple[list[shapely.Polygon], list[str]]:
    """Squares of `size` pixels every `step` pixels of a scene at X, Y, of two classes in turn."""
    places = [(row, col) for row in range(0, 60, step) for col in range(0, 90, step)]
    shapes = [shapely.box(X + 10 * col, Y - 10 * (row + size), X + 10 * (col + size), Y - 10 * row)
              for row, col in places]  # fmt: skip
    return shapes, [("wood", "water")[number % 2] for number in range(len(places))]


@pytest.mark.parametrize(("size", "step", "tiles", "per"), [(24, 24, (24, 12), "tile"), (6, 15, (32, None), "pixel")])
def test_polygons_beside_scenes_are_their_labels(
    tmp_path: Path, size: int, step: int, tiles: tuple[int, int | None], per: str
) -> None:
    write_scene(tmp_path / "data" / "a.tif", 60, 90)
    shapes, names = cells(size, step)
    # Half a metre off the grid of the scene, as cells are that were drawn by hand.
    write_vectors(tmp_path / "data" / "a.gpkg", [shapely.affinity.translate(shape, 0.5) for shape in shapes], names)
    (tmp_path / "data" / "notes.geojson").write_text("{}")
    write_starter(tmp_path / "data", tmp_path / "pipeline.yaml", overwrite=False)
    config = load_config(tmp_path)
    assert isinstance(config.labels, VectorLabels)
    assert (config.labels.column, config.labels.per) == ("kind", per)
    assert (config.tiles.size, config.tiles.stride) == tiles
    assert isinstance(config.source, GeotiffSource)
    assert config.source.block_m == "auto"
    findings = check_pipeline(config)
    assert any(f"2 classes of each {per}: water, wood" in line for line in findings.lines)
    assert findings.values["classes"] == {"water": 1, "wood": 1}


def test_the_check_counts_the_labelled_tiles_and_their_blocks(tmp_path: Path) -> None:
    write_scene(tmp_path / "data" / "a.tif", 60, 90)
    shapes, names = cells(30, 30)
    # The last of six cells is left out: its tile has no label.
    write_vectors(tmp_path / "data" / "a.gpkg", shapes[:-1], names[:-1])
    source = {"kind": "geotiff", "path": str(tmp_path / "data"), "block_m": "auto"}
    labels = {"kind": "vector", "path": str(tmp_path / "data"), "column": "kind"}
    values = {
        "name": "cells",
        "source": source,
        "labels": labels,
        "tiles": {"size": 30},
        "model": {"weights": {"source": "random"}, "patch_size": 5},
    }
    config = parse_config(values | {"workspace": str(tmp_path / "workspace")}, origin="test")
    for per in ("tile", "pixel"):
        assert isinstance(config.labels, VectorLabels)
        asked = config.model_copy(update={"labels": config.labels.model_copy(update={"per": per})})
        findings = check_pipeline(asked)
        assert findings.values["labelled_tiles"] == 5
        assert findings.values["labelled_groups"] == 5
        assert any("at most 5 tiles have a label" in line and "water 2, wood 3" in line for line in findings.lines)
        assert not any("labelled group(s) for" in line for line in findings.lines)


def test_a_class_raster_beside_scenes_labels_their_pixels_and_a_table_comes_first(tmp_path: Path) -> None:
    for number in range(4):
        write_scene(tmp_path / "data" / f"{number}.tif", 60, 90, seed=number, x=X + 2000 * number)
    write_tif(tmp_path / "labels.tif", np.random.default_rng(0).integers(0, 3, (60, 900)).astype(np.uint8), nodata=0)
    write_tif(tmp_path / "heights.tif", np.random.default_rng(1).choice([1.5, 2.5], (60, 900)).astype(np.float32))
    write_starter(tmp_path / "data", tmp_path / "pipeline.yaml", overwrite=False)
    config = load_config(tmp_path)
    assert isinstance(config.labels, RasterLabels)
    assert Path(config.labels.path).name == "labels.tif"
    assert config.labels.classes == {1: "1", 2: "2"}, "listed, to be named"
    rows = "".join(f"{number}.tif,{'ab'[number % 2]}\n" for number in range(4) for _ in range(2))
    (tmp_path / "labels.csv").write_text("path,label\n" + rows)
    write_starter(tmp_path / "data", tmp_path / "pipeline.yaml", overwrite=True)
    assert load_config(tmp_path).labels.kind == "table"  # type: ignore[union-attr]


def test_class_rasters_that_are_one_a_scene_are_taken_together(tmp_path: Path) -> None:
    for number in range(3):
        x = X + 2000 * number
        write_scene(tmp_path / "data" / f"{number}.tif", 60, 90, seed=number, x=x)
        classes = np.random.default_rng(number).integers(0, 3, (60, 90)).astype(np.uint8)
        write_tif(tmp_path / f"{number}_mask.tif", classes, x=x)
    write_starter(tmp_path / "data", tmp_path / "pipeline.yaml", overwrite=False)
    labels = load_config(tmp_path).labels
    assert isinstance(labels, RasterLabels)
    assert Path(labels.path) == tmp_path
    # Heights beside them are no classes: then it is one file, and it is said how many scenes have labels.
    write_tif(tmp_path / "heights.tif", np.random.default_rng(1).normal(5, 1, (60, 900)).astype(np.float32))
    said = write_starter(tmp_path / "data", tmp_path / "pipeline.yaml", overwrite=True).lines
    labels = load_config(tmp_path).labels
    assert isinstance(labels, RasterLabels)
    assert Path(labels.path).name == "0_mask.tif"
    assert any("on 1 source(s)" in line for line in said)


@pytest.mark.shared
def test_the_cells_of_real_scenes_give_the_size_of_tiles(tmp_path: Path) -> None:
    write_starter(SHARED / "eurosat_geo/scenes", tmp_path / "pipeline.yaml", overwrite=False)
    config = load_config(tmp_path)
    assert isinstance(config.labels, VectorLabels)
    assert (config.labels.per, config.tiles.size, config.tiles.stride) == ("tile", 64, 32)


@pytest.mark.shared
@pytest.mark.parametrize(("folder", "classes"), [("pixel_scene", 5), ("eurosat_geo/scenes", 9)])
def test_the_labels_of_real_scenes_are_found_and_their_pixels_prepared(
    tmp_path: Path, folder: str, classes: int
) -> None:
    write_starter(SHARED / folder, tmp_path / "pipeline.yaml", overwrite=False)
    config = load_config(tmp_path)
    assert isinstance(config.labels, VectorLabels)
    config = config.model_copy(update={"labels": config.labels.model_copy(update={"per": "pixel"})})
    values = {"source": config.source.model_copy(update={"block_m": 1000.0})}
    run = Run(config.model_copy(update=values))
    labels, found = run.targets()
    assert labels.task is Task.SEGMENTATION
    assert len(labels.classes) == classes
    assert sum(int((targets != 255).sum()) for targets in found.values()) > 700


def test_tiff_files_without_a_crs_are_told_and_what_is_drawn_beside_them_is_no_help(tmp_path: Path) -> None:
    write_scene(tmp_path / "data" / "a.tif", 60, 90)
    with rasterio.open(tmp_path / "data" / "a.tif") as scene:
        profile, values = scene.profile, scene.read()
    with rasterio.open(tmp_path / "data" / "a.tif", "w", **{**profile, "crs": None, "dtype": "uint8"}) as scene:
        scene.write(values.astype(np.uint8))
    shapes, names = cells(12, 12)
    write_vectors(tmp_path / "data" / "a.gpkg", shapes, names)
    (told,) = (
        line
        for line in write_starter(tmp_path / "data", tmp_path / "pipeline.yaml", overwrite=False).lines
        if "no CRS" in line
    )
    assert "1 TIFF file(s), such as a.tif" in told
    assert "labels nothing" in told
    assert "gdal_edit.py -a_srs" in told


def test_a_starter_file_can_be_read_by_people(tmp_path: Path) -> None:
    write_scene(tmp_path / "Rhön Süd" / "a.tif", 60, 90)
    shapes, names = cells(12, 12)
    write_vectors(tmp_path / "Rhön Süd" / "a.gpkg", shapes, names)
    write_starter(tmp_path / "Rhön Süd", tmp_path / "pipeline.yaml", overwrite=False)
    text = (tmp_path / "pipeline.yaml").read_text(encoding="utf-8")
    assert "name: Rhon-Sud\n" in text
    assert "path: Rhön Süd\n" in text
    assert "flip_horizontal: true, " in text
    assert "True" not in text
