"""Errors on the ground: blocks, distances, the layer, and what they look like for classifiers of tiles."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from evaluate_cases import Case, make_case
from rasterio.warp import transform as warp

from vitpipe.config import EvaluateRecipe
from vitpipe.evaluate.evaluation import evaluate
from vitpipe.evaluate.regions import Ground, _blocks, _by_distance, write_layer
from vitpipe.evaluate.report_ground import _km
from vitpipe.infer.facts import flat_metrics
from vitpipe.intervals import Estimate
from vitpipe.learn import baselines
from vitpipe.loading import parse_config
from vitpipe.records import Json, Task


def judge(case: Case) -> dict:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baselines, "fit_baselines", lambda *_: case.baselines)
        evaluate(case.config, case.manifest, case.run_folder, case.workspace)
    return json.loads((case.run_folder / "metrics.json").read_text(encoding="utf-8"))


def on_ground(case: Case) -> Case:
    table = case.manifest.table
    codes, _ = pd.factorize(table["group_id"])
    generator = np.random.default_rng(0)
    placed = table.assign(
        x=codes % 20 * 5000.0 + generator.uniform(0, 5000, len(table)),
        y=codes // 20 * 5000.0 + generator.uniform(0, 5000, len(table)),
        distance_to_train_m=np.where(table["split"] == "train", np.nan, generator.gamma(2, 2000, len(table))),
    )
    return replace(case, manifest=replace(case.manifest, table=placed))


def test_a_classifier_of_tiles_has_its_errors_on_the_ground_where_there_is_any(tmp_path: Path) -> None:
    without = make_case(tmp_path / "without", groups=40)
    assert "ground" not in judge(without)
    assert "Errors on the ground" not in (without.run_folder / "report.html").read_text(encoding="utf-8")
    case = on_ground(make_case(tmp_path / "with", groups=80))
    assert case.manifest.tiles_make_maps
    assert (_km(312.4), _km(99_950.0), _km(1_489_000.0)) == ("0.312", "100", "1,489")
    assert not without.manifest.tiles_make_maps
    one_each = case.manifest.table.drop_duplicates("source_id")
    assert not replace(case.manifest, table=one_each).tiles_make_maps
    assert not replace(case.manifest, task=Task.SEGMENTATION).tiles_make_maps
    numbers = judge(case)
    assert "Errors on the ground" in (case.run_folder / "report.html").read_text(encoding="utf-8")
    assert not (without.run_folder / "error_blocks.geojson").exists()
    predictions = pd.read_parquet(case.run_folder / "predictions.parquet")
    test = predictions.loc[predictions["split"] == "test"]
    wrong = (test["label"] != test["predicted"]).groupby(test["group_id"]).mean()
    layer = json.loads((case.run_folder / "error_blocks.geojson").read_text())
    found = {each["properties"]["group_id"]: each["properties"]["error"] for each in layer["features"]}
    assert found == pytest.approx(wrong.to_dict())
    assert numbers["ground"]["blocks"] == len(wrong)
    lon, lat = np.array(layer["features"][0]["geometry"]["coordinates"][0]).T
    assert (np.abs(lon) < 2).all()
    assert (np.abs(lat) < 2).all()


def test_what_a_random_split_would_claim_stands_in_report_and_metrics(tmp_path: Path) -> None:
    case = on_ground(make_case(tmp_path, groups=40))
    difference = Estimate(0.2, 0.1, 0.3, 900, 30).to_json()
    gap: dict[str, Json] = {
        "metric": "balanced_accuracy", "random_split": 0.8, "group_split": 0.6, "difference": difference,
        "probe": "nearest neighbour in colour, 900 tiles of 30 groups", "tiles": 900, "groups": 30,
    }  # fmt: skip
    audit: dict[str, Json] = {
        "torn_groups": 0, "equal_pixels": 0, "buffer_m": 0.0, "without_ground": 0, "pairs": [],
        "left_out": {"shared_ground": 0, "buffer": 0}, "gap": gap,
    }  # fmt: skip
    numbers = judge(replace(case, manifest=replace(case.manifest, audit=audit)))
    assert numbers["split_gap"] == gap
    page = (case.run_folder / "report.html").read_text(encoding="utf-8")
    assert (
        "A random split would claim 0.800 balanced accuracy, the split by blocks 0.600: a gap of 0.200 [0.100" in page
    )
    assert flat_metrics(numbers)["split_gap/balanced_accuracy/difference/low"] == 0.1


def placed(groups: list[str], errors: list[float], weights: list[float] | None = None) -> pd.DataFrame:
    count = len(groups)
    return pd.DataFrame(
        {
            "tile_id": [f"t{index}" for index in range(count)],
            "group_id": groups,
            "weight": weights or [1.0] * count,
            "bad": errors,
            "x": np.arange(count) * 100.0,
            "y": np.zeros(count),
        }
    )


def test_a_block_of_the_grid_is_its_cell_and_another_group_the_box_of_its_tiles() -> None:
    table = placed(["ground-2--3", "ground-2--3", "river", "river"], [0, 1, 0, 0])
    blocks = _blocks(table, 1000.0, 0.95, squared=False).set_index("group_id")
    box = ["left", "bottom", "right", "top"]
    assert blocks.loc["ground-2--3", box].tolist() == [2000, -3000, 3000, -2000]
    assert blocks.loc["river", box].tolist() == [150, -50, 350, 50]
    assert blocks["error"].to_dict() == {"ground-2--3": 0.5, "river": 0.0}
    # Wilson's interval of 1 of 2.
    assert blocks.loc["ground-2--3", ["low", "high"]].tolist() == pytest.approx([0.0945, 0.9055], abs=5e-4)
    assert blocks.loc["river", "high"] > 0.6


def test_an_rmse_of_a_block_is_that_of_all_its_pixels() -> None:
    blocks = _blocks(placed(["a", "a", "b"], [8.0, 10.0, 9.0], [2.0, 4.0, 1.0]), None, 0.95, squared=True)
    assert blocks["error"].tolist() == pytest.approx([np.sqrt(3.0), 3.0])
    assert blocks["low"][0] < blocks["error"][0] < blocks["high"][0]
    assert np.isnan(blocks["low"][1])


def test_an_error_that_grows_with_distance_is_seen_to() -> None:
    generator = np.random.default_rng(1)
    distance = generator.uniform(0, 10_000, 1200)
    table = placed([f"g{index // 10}" for index in range(1200)], list((generator.random(1200) < distance / 2e4) * 1.0))
    found = _by_distance(table.assign(distance_to_train_m=distance), EvaluateRecipe(bootstrap=300), squared=False)
    assert len(found) == 6
    errors = [each.estimate for _, _, each in found]
    assert errors == sorted(errors)
    assert found[0][2].high < found[-1][2].low
    assert sum(each.n for _, _, each in found) == 1200
    for low, high, each in found:
        inside = (distance >= low) & (distance < high) if high < 9990 else distance >= low
        assert each.estimate == pytest.approx(table["bad"][inside].mean())
    assert _by_distance(table.iloc[:30].assign(distance_to_train_m=1.0), EvaluateRecipe(), squared=False) == ()


def test_a_bin_holds_its_lower_edge_and_an_rmse_is_one() -> None:
    """Distances from tile to tile come in steps, so many lie on an edge."""
    distance = np.repeat([100.0, 200.0, 300.0], 100)
    table = placed([f"g{index % 30}" for index in range(300)], [4.0] * 100 + [9.0] * 100 + [16.0] * 100)
    found = _by_distance(table.assign(distance_to_train_m=distance), EvaluateRecipe(bootstrap=300), squared=True)
    assert [(low, high) for low, high, _ in found] == [(0, 200), (200, 300), (300, 300)]
    assert [each.estimate for _, _, each in found] == pytest.approx([2.0, 3.0, 4.0])
    assert [each.n for _, _, each in found] == [100, 100, 100]


def test_the_cell_of_a_block_is_of_the_size_that_the_workspace_chose(tmp_path: Path) -> None:
    case = on_ground(make_case(tmp_path, groups=80))
    codes = case.manifest.table["group_id"].astype("category").cat.codes
    table = case.manifest.table.assign(group_id=[f"ground-{code % 20}-{code // 20}" for code in codes])
    case.workspace.ground_block.write_text(json.dumps({"block_m": 5000.0}))
    source = parse_config(
        {**case.config.model_dump(mode="json"), "source": {"kind": "geotiff", "path": "/nowhere", "block_m": "auto"}},
        origin="test",
    ).source
    config = case.config.model_copy(update={"source": source})
    judge(replace(case, config=config, manifest=replace(case.manifest, table=table)))
    layer = json.loads((case.run_folder / "error_blocks.geojson").read_text())
    for each in layer["features"]:
        lon, lat = np.array(each["geometry"]["coordinates"][0]).T
        x, y = warp("EPSG:4326", "EPSG:6933", lon[[0, 2]], lat[[0, 2]])
        column, row = (int(part) for part in each["properties"]["group_id"].split("-")[1:])
        assert [x[0] / 5000, y[0] / 5000] == pytest.approx([column, row], abs=1e-4)
        assert [x[1] / 5000, y[1] / 5000] == pytest.approx([column + 1, row + 1], abs=1e-4)


def test_a_block_at_the_antimeridian_does_not_go_around_the_world(tmp_path: Path) -> None:
    table = placed(["ground-1736-0", "ground--1737-0"], [0, 1])
    blocks = _blocks(table, 10_000.0, 0.95, squared=False)
    write_layer(Ground(blocks, (), "error"), tmp_path)
    for each in json.loads((tmp_path / "error_blocks.geojson").read_text())["features"]:
        assert np.ptp(np.array(each["geometry"]["coordinates"][0])[:, 0]) < 0.2
