"""From raw files to a registered model that, pulled into a fresh process, gives the evaluation's rows again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.empty_stores import give_stores
from tests.end_to_end.pipeline_cases import CHAIN, make_photographs, make_scenes, make_series, make_volumes, run_script

pytestmark = pytest.mark.slow

KEY = ["frame", "row", "col"]
FILES = ("predictions.parquet", "metrics.json", "report.html", "model_card.md", "model/model.safetensors")

CHAIN_ALL = f"{CHAIN}\nprint(json.dumps([chain(path) for path in sys.argv[1:]]))\n"

# Through our own loader by path, and through MLflow's with an array; both in a process that has made nothing.
PULL = """
import json, sys
from pathlib import Path
import mlflow, pandas as pd
from vitpipe.manifest import read_manifest
from vitpipe.registry import open_registry
from vitpipe.store import TileStore

results = json.loads(sys.argv[1])
for result in results:
    result["uri"] = f"models:/{result['name']}@champion"
    result["run"] = Path(result["workspace"]) / "runs" / result["run_id"]
    by_path = open_registry(Path(result["workspace"])).load_predictor(result["uri"]).predict_path(result["source"])
    by_path.tiles.to_parquet(result["run"] / "by_path.parquet")
# MLflow writes this into the environment, where it would lead our own loader, too.
for result in results:
    workspace, uri, run = Path(result["workspace"]), result["uri"], result["run"]
    mlflow.set_tracking_uri(f"sqlite:///{workspace / 'mlflow.db'}")
    manifest = read_manifest(run)
    rows = manifest.table[manifest.table["split"] == "test"]
    tiles, valid = TileStore(manifest.tiles_folder).gather(rows)
    assert valid.all(), "the case needs tiles without padding"
    answer = mlflow.pyfunc.load_model(uri).predict(tiles)
    answer.insert(0, "tile_id", rows["tile_id"].to_numpy())
    answer.to_parquet(run / "by_array.parquet")
print("null")
"""


def cells(table: pd.DataFrame) -> pd.DataFrame:
    return table[[name for name in table.columns if name.startswith("p_")] + ["predicted", "conformal_set", "abstain"]]


def check_run(result: dict[str, Any]) -> pd.DataFrame:
    """Look at what a first run leaves; gives its predictions."""
    run = Path(result["workspace"]) / "runs" / result["run_id"]
    assert {"champion", "challenger"} <= set(result["aliases"])
    assert all((run / name).is_file() for name in FILES)
    accuracy = json.loads((run / "metrics.json").read_text())["group"]["balanced_accuracy"]
    assert accuracy["estimate"] > 0.8, "the stripes were not learnt"
    assert accuracy["low"] <= accuracy["estimate"] <= accuracy["high"]
    judged = pd.read_parquet(run / "predictions.parquet")
    assert set(judged["split"]) == {"val", "calibration", "test"}
    return judged


def check_rows(judged: pd.DataFrame, pulled: pd.DataFrame) -> None:
    """Compare the rows of the evaluation with those of the pulled model, bit for bit."""
    judged = judged.copy()
    judged[KEY] = judged["tile_id"].str.split(":", expand=True)[[1, 2, 3]].astype("int64").to_numpy()
    joined = judged.merge(pulled, on=["source_id", *KEY], suffixes=("", "_pulled"), validate="one_to_one")
    assert len(joined) == len(judged) > 0
    for name in cells(judged).columns:
        pd.testing.assert_series_equal(joined[name], joined[f"{name}_pulled"], check_names=False, check_exact=True)
    for ours, theirs in zip(joined["box_mm"], joined["box_mm_pulled"], strict=True):
        assert (ours is None and theirs is None) or ours.tolist() == theirs.tolist()


def check_array(judged: pd.DataFrame, from_array: pd.DataFrame) -> None:
    from_array = from_array.set_index("tile_id")
    test = judged[judged["split"] == "test"].set_index("tile_id").loc[from_array.index]
    assert len(test) == (judged["split"] == "test").sum() > 0
    pd.testing.assert_frame_equal(cells(from_array), cells(test), check_exact=True, check_dtype=False)


def check_no_identifier(workspace: Path) -> None:
    """No identifier of a patient stands in anything that was made."""
    made = [path for path in workspace.rglob("*") if path.is_file()]
    assert len(made) > 20
    assert not [path for path in made if b"canary" in path.read_bytes().lower()]


def check_chain(pipelines: list[Path], folder: Path, stores: Path) -> None:
    """Make registered models, pull them in a process that has made nothing, and compare."""
    for pipeline in pipelines:
        give_stores(stores, pipeline.parent / "workspace")
    results = run_script(CHAIN_ALL, *map(str, pipelines), home=folder / "home")
    judged = [check_run(result) for result in results]
    run_script(PULL, json.dumps(results), home=folder / "other-home")
    for result, table in zip(results, judged, strict=True):
        run = Path(result["workspace"]) / "runs" / result["run_id"]
        check_rows(table, pd.read_parquet(run / "by_path.parquet"))
        check_array(table, pd.read_parquet(run / "by_array.parquet"))
        check_no_identifier(Path(result["workspace"]))


def test_every_domain_from_raw_files_to_a_pulled_model(tmp_path: Path, empty_stores: Path) -> None:
    pipelines = [
        make_series(tmp_path / "dicom", 24),
        make_scenes(tmp_path / "geotiff", 24),
        make_photographs(tmp_path / "images", 48),
    ]
    check_chain(pipelines, tmp_path, empty_stores)


def test_volumes_from_raw_files_to_a_pulled_model(tmp_path: Path, empty_stores: Path) -> None:
    check_chain([make_volumes(tmp_path / "volumes", 32)], tmp_path, empty_stores)
