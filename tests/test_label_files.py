"""Label rasters that lie below the scenes are labels, not scenes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.conftest import SHARED
from tests.labels.ground_cases import Run, X, make_config, write_scene, write_tif
from vitpipe.check import check_pipeline
from vitpipe.config import PipelineConfig, RasterLabels
from vitpipe.ingest import ingest, read_quarantine
from vitpipe.label_files import LABEL_FILE, without_labels
from vitpipe.loading import load_config
from vitpipe.starter import write_starter
from vitpipe.workspace import Workspace


def write_data(root: Path, label_name: str) -> None:
    """Three scenes of two bands, and a raster of classes for each."""
    for number in range(3):
        write_scene(root / "scenes" / f"s{number}.tif", 64, 64, seed=number, x=X + 2000 * number)
        values = np.random.default_rng(number).integers(1, 3, (64, 64)).astype(np.uint8)
        write_tif(root / "scenes" / label_name.format(number), values, x=X + 2000 * number, nodata=0)
        Path(f"{root / 'scenes' / label_name.format(number)}.aux.xml").write_text("<PAMDataset/>")


@pytest.mark.parametrize(
    ("label_name", "labels"),
    [
        ("labels/s{}.tif", {"path": "scenes/labels"}),
        ("s{}_map.tif", {"path": "scenes", "match": "name", "suffix": "_map"}),
    ],
)
def test_what_the_labels_name_is_no_scene(tmp_path: Path, label_name: str, labels: dict[str, str]) -> None:
    write_data(tmp_path, label_name)
    recipe = {"kind": "raster", **labels, "path": str(tmp_path / labels["path"])}
    run = Run(make_config(tmp_path, recipe))
    assert [Path(source.uri).name for source in sorted(run.sources, key=lambda item: item.uri)] == [
        "s0.tif", "s1.tif", "s2.tif",
    ]  # fmt: skip
    quarantine = read_quarantine(run.workspace)
    found = quarantine[quarantine["code"] == LABEL_FILE]
    assert (len(found), found["junk"].all()) == (6, True)
    assert run.labels().rows["source_id"].nunique() == 3
    # A second run reads nothing again, and says the same.
    assert ingest(run.config, run.workspace).skipped == 3
    said = check_pipeline(run.config)
    assert any(line.startswith("not of this kind: 6 x LABEL_FILE") for line in said.lines)
    assert any("2 classes of each pixel" in line for line in said.lines)


def test_one_raster_is_named_and_labels_elsewhere_take_nothing(tmp_path: Path) -> None:
    def kept(labels: dict[str, object], *paths: str) -> list[str]:
        recipe = make_config(tmp_path, labels).labels
        return without_labels([str(tmp_path / "scenes" / path) for path in paths], tmp_path / "scenes", recipe)[0]

    write_tif(tmp_path / "scenes" / "truth.tif", np.ones((4, 4), np.uint8))
    one: dict[str, object] = {"kind": "raster", "path": str(tmp_path / "scenes" / "truth.tif")}
    assert kept(one, "a.tif", "truth.tif", "truth.tif.aux.xml") == [str(tmp_path / "scenes" / "a.tif")]
    for path in (tmp_path / "scenes", tmp_path / "other", tmp_path):
        assert len(kept({"kind": "raster", "path": str(path)}, "a.tif", "truth.tif")) == 2
    assert len(kept({"kind": "vector", "path": str(tmp_path / "scenes"), "column": "c"}, "a.tif", "a.gpkg")) == 2


@pytest.mark.parametrize("way", ["folder below is a link", "named by a link", "scenes by a link", "by way of .."])
def test_labels_are_known_by_every_name(tmp_path: Path, way: str) -> None:
    write_data(tmp_path, "labels/s{}.tif")
    scenes, labels = tmp_path / "scenes", tmp_path / "scenes" / "labels"
    source, path = scenes, labels
    if way == "folder below is a link":
        # A pipeline file's paths have their links followed.
        path = labels.rename(tmp_path / "elsewhere")
        labels.symlink_to(path)
    elif way == "named by a link":
        path = tmp_path / "link"
        path.symlink_to(labels)
    elif way == "scenes by a link":
        source = tmp_path / "link"
        source.symlink_to(scenes)
    else:
        path = scenes / ".." / "scenes" / "labels"
    config = make_config(tmp_path, {"kind": "raster", "path": str(path)})
    run = Run(config.model_copy(update={"source": config.source.model_copy(update={"path": str(source)})}))
    assert len(run.sources) == 3
    assert run.labels().rows["source_id"].nunique() == 3


@pytest.mark.parametrize("link_is_named", [True, False])
def test_one_raster_is_known_through_a_link(tmp_path: Path, link_is_named: bool) -> None:
    scenes = tmp_path / "scenes"
    scenes.mkdir()
    here, there = scenes / "truth.tif", tmp_path / "kept.tif"
    file, link = (here, there) if link_is_named else (there, here)
    write_tif(file, np.ones((4, 4), np.uint8))
    link.symlink_to(file)
    listed = [str(scenes / name) for name in ("a.tif", "truth.tif", "truth.tif.ovr")]
    recipe = make_config(tmp_path, {"kind": "raster", "path": str(there)}).labels
    assert without_labels(listed, scenes, recipe)[0] == listed[:1]


def test_scenes_that_are_links_into_the_labels_stay_scenes(tmp_path: Path) -> None:
    archive, scenes = tmp_path / "archive", tmp_path / "scenes"
    write_tif(archive / "june" / "a.tif", np.ones((4, 4), np.uint8))
    scenes.mkdir()
    (scenes / "june").symlink_to(archive / "june")
    recipe = make_config(tmp_path, {"kind": "raster", "path": str(archive), "match": "name", "suffix": "_map"}).labels
    listed = [str(scenes / "june" / "a.tif")]
    assert without_labels(listed, scenes, recipe) == (listed, [])


def test_a_suffix_ends_the_stem_whatever_dots_are_in_it(tmp_path: Path) -> None:
    recipe = make_config(tmp_path, {"kind": "raster", "path": str(tmp_path), "match": "name", "suffix": "_map"}).labels
    labels = ["a_map.tif", "S2.2020_map.TIF", "S2.2020_map.tif.aux.xml", "a_map.tfw"]
    scenes = ["S2.2020.tif", "a_map.v2.tif", "a_map_b.tif", "a.aux.xml"]
    kept, rows = without_labels([str(tmp_path / name) for name in (*labels, *scenes)], tmp_path, recipe)
    assert [Path(path).name for path in kept] == scenes
    assert [Path(row.uri).name for row in rows] == labels


@pytest.mark.parametrize(
    ("label_name", "path", "suffix"), [("labels/s{}.tif", "scenes/labels", ""), ("s{}_map.tif", "scenes", "_map")]
)
def test_init_takes_class_rasters_among_the_scenes_as_labels(
    tmp_path: Path, label_name: str, path: str, suffix: str
) -> None:
    write_data(tmp_path, label_name)
    found = write_starter(tmp_path / "scenes", tmp_path / "pipeline.yaml", overwrite=False)
    config = load_config(tmp_path)
    assert isinstance(config.labels, RasterLabels)
    assert (config.labels.path, config.labels.suffix) == (str(tmp_path / path), suffix)
    assert config.source.path == str(tmp_path / "scenes")
    assert "3 file(s) are taken as labels and not as scenes" in found.lines
    assert not any("keep these in a folder of their own" in line for line in found.lines)
    said = check_pipeline(config)
    assert "stops" not in said.values
    assert said.values["sources"] == 3


@pytest.mark.shared
def test_a_real_label_raster_beside_its_scene_is_no_scene(tmp_path: Path) -> None:
    root = SHARED / "pixel_scene"
    config = PipelineConfig.model_validate(
        {
            "name": "t", "source": {"kind": "geotiff", "path": str(root)},
            "labels": {"kind": "raster", "path": str(root / "training_data.gtif"), "ignore": [0]},
            "model": {"weights": {"source": "random"}}, "workspace": str(tmp_path),
        }
    )  # fmt: skip
    assert ingest(config, Workspace(tmp_path)).done == 1
