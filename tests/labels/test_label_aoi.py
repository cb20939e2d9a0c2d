"""An area of interest beside a label table: tiles whose centre lies outside it have no label."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import shapely
from shapely import box

from tests.labels.ground_cases import UTM, Run, X, Y, make_config, write_scene
from tests.labels.test_label_table import make_source, read
from tests.labels.vector_cases import write_vectors
from vitpipe.check_ground import ground_findings
from vitpipe.config import TableLabels
from vitpipe.errors import ConfigError, LabelError
from vitpipe.labels.vector import read_aoi
from vitpipe.loading import load_config


def run_of(root: Path, area: shapely.Geometry | None, crs: str = UTM, **scene: object) -> Run:
    """Two scenes of 8 x 8 tiles, 20 km apart, of a class each."""
    for number in range(2):
        write_scene(root / "scenes" / f"s{number}.tif", 128, 128, seed=number, x=X + 20_000 * number, **scene)
    pd.DataFrame({"scene": ["s0", "s1"], "label": ["forest", "water"]}).to_csv(root / "labels.csv", index=False)
    labels: dict[str, object] = {
        "kind": "table", "path": str(root / "labels.csv"), "key": "scene", "column": "label",
    }  # fmt: skip
    if area is not None:
        labels["aoi"] = str(write_vectors(root / "aoi.geojson", [area], ["x"], crs))
    return Run(make_config(root, labels))


def test_tiles_outside_the_area_have_no_label(tmp_path: Path) -> None:
    # The first 4 columns of tiles of s0, less a metre of the fourth's centre; of s1 all.
    area = shapely.union_all([box(X, Y - 1280, X + 559, Y), box(X + 19_000, Y - 2000, X + 22_000, Y + 1000)])
    run = run_of(tmp_path, area)
    manifest = run.manifest()
    names = {source.source_id: Path(source.uri).stem for source in run.sources}
    by_scene = manifest.table.assign(scene=manifest.table["source_id"].map(names))
    kept = by_scene[by_scene["scene"] == "s0"]
    assert set(kept["col"]) == {0, 16, 32}
    assert (len(kept), (by_scene["scene"] == "s1").sum()) == (24, 64)
    assert manifest.unlabelled == 40
    assert "40 labelled tile(s) have their centre outside `labels.aoi`: not used" in manifest.notes
    whole = run_of(tmp_path / "whole", None)
    assert whole.manifest().digest != manifest.digest
    assert whole.labels().digest != run.labels().digest


def test_an_area_in_degrees_means_the_same(tmp_path: Path) -> None:
    # s0 begins at 9 degrees east; 640 m are 0.00855 degrees there.
    area = shapely.union_all([box(8.9, 47.0, 9.00855, 48.0), box(9.2, 47.0, 9.4, 48.0)])
    table = run_of(tmp_path, area, "EPSG:4326").manifest().table
    assert table["label"].value_counts().to_dict() == {"water": 64, "forest": 32}


def test_places_beyond_half_a_turn_are_the_same_places(tmp_path: Path) -> None:
    path = write_vectors(tmp_path / "aoi.geojson", [box(190, -20, 200, -10)], ["x"], "EPSG:4326")
    area = read_aoi(str(path), [])
    places = np.array([[-165.0, -15.0], [195.0, -15.0], [15.0, -15.0], [np.nan, np.nan]])
    assert area.covers(places, "EPSG:4326").tolist() == [True, True, False, False]


def test_an_area_that_holds_nothing_is_an_error(tmp_path: Path) -> None:
    run = run_of(tmp_path, box(X - 9000, Y, X - 8000, Y + 1000))
    with pytest.raises(LabelError, match=r"none of the 128 labelled tile\(s\) has its centre in the area of interest"):
        run.manifest()
    said = ground_findings(run.config, run.workspace, run.sources, run.labels())
    assert said.lines == ("WARNING: no labelled scene has its middle in `labels.aoi`; check it and its CRS",)


def test_an_area_needs_ground(tmp_path: Path) -> None:
    sources = [make_source("a.png"), make_source("b.png")]
    with pytest.raises(ConfigError, match=r"none of the 2 source\(s\) has a place"):
        read(tmp_path, "path,label\na.png,cat\nb.png,dog\n", sources, aoi="area.gpkg")


def test_the_key_changes_no_digest_where_it_is_not_set(tmp_path: Path) -> None:
    plain = TableLabels(path="l.csv", column="label")
    assert "aoi" not in plain.model_dump()
    assert "aoi" in plain.model_copy(update={"aoi": "a.gpkg"}).model_dump()
    (tmp_path / "pipeline.yaml").write_text(
        "name: t\nsource: {kind: geotiff, path: s}\nmodel: {weights: {source: random}}\n"
        "labels: {kind: table, path: l.csv, column: c, aoi: b.gpkg}\n"
    )
    config = load_config(tmp_path)
    assert isinstance(config.labels, TableLabels)
    assert config.labels.aoi == str(tmp_path / "b.gpkg")
