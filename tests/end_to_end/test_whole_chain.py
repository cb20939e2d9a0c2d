"""From raw files to a registered model that, pulled into a fresh process, gives the evaluation's rows again."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from pipeline_cases import environment, make_photographs, make_scenes, make_series, result_of, vitpipe

pytestmark = pytest.mark.slow

KEY = ["source_id", "frame", "row", "col"]

PULL = """
import json, sys
import mlflow, numpy as np, pandas as pd
from pathlib import Path
from vitpipe.manifest import read_manifest
from vitpipe.store import TileStore

uri, run, out = sys.argv[1:]
model = mlflow.pyfunc.load_model(uri)
manifest = read_manifest(Path(run))
rows = manifest.table[manifest.table["split"] == "test"]
tiles, valid = TileStore(manifest.tiles_folder).gather(rows)
assert valid.all(), "the case needs tiles without padding"
answer = model.predict(tiles)
answer.insert(0, "tile_id", rows["tile_id"].to_numpy())
answer.to_parquet(out)
"""


def cells(table: pd.DataFrame) -> pd.DataFrame:
    return table[[name for name in table.columns if name.startswith("p_")] + ["predicted", "conformal_set", "abstain"]]


@pytest.mark.parametrize(
    ("make", "count", "data"),
    [(make_scenes, 24, "scenes"), (make_series, 24, "dicom"), (make_photographs, 48, "photographs")],
    ids=["geotiff", "dicom", "images"],
)
def test_from_raw_files_to_a_pulled_model(
    make: Callable[[Path, int], Path], count: int, data: str, tmp_path: Path
) -> None:
    pipeline = make(tmp_path / "user", count)
    home = tmp_path / "home"
    result = result_of(vitpipe("run", str(pipeline), "--json", home=home))
    workspace = Path(result["workspace"])
    run = workspace / "runs" / result["run_id"]
    assert {"champion", "challenger"} <= set(result["aliases"])
    assert Path(result["report"]).is_file()
    for name in ("predictions.parquet", "metrics.json", "report.html", "model_card.md", "model/model.safetensors"):
        assert (run / name).is_file()
    metrics = json.loads((run / "metrics.json").read_text())
    accuracy = metrics["group"]["balanced_accuracy"]
    assert accuracy["estimate"] > 0.8, "the stripes were not learnt"
    assert accuracy["low"] <= accuracy["estimate"] <= accuracy["high"]

    judged = pd.read_parquet(run / "predictions.parquet")
    alias = f"models:/{result['name']}@champion"

    # From a path, in a process of its own.
    vitpipe(
        "predict", alias, data, "--workspace", str(workspace), "--out", "out", "--json", home=home, cwd=pipeline.parent
    )
    pulled = pd.read_parquet(pipeline.parent / "out" / "predictions.parquet")
    judged[KEY[1:]] = judged["tile_id"].str.split(":", expand=True)[[1, 2, 3]].astype("int64").to_numpy()
    joined = judged.merge(pulled, on=KEY, suffixes=("", "_pulled"), validate="one_to_one")
    assert len(joined) == len(judged) > 0
    for name in cells(judged).columns:
        pd.testing.assert_series_equal(joined[name], joined[f"{name}_pulled"], check_names=False, check_exact=True)

    # From an array, through MLflow's own loader, with pickle disallowed.
    script = tmp_path / "pull.py"
    script.write_text(PULL, encoding="utf-8")
    variables = environment(home) | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{workspace / 'mlflow.db'}",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }
    out = tmp_path / "array.parquet"
    subprocess.run(
        [sys.executable, str(script), alias, str(run), str(out)], env=variables, cwd=home, check=True, timeout=300
    )
    from_array = pd.read_parquet(out).set_index("tile_id")
    test = judged[judged["split"] == "test"].set_index("tile_id").loc[from_array.index]
    pd.testing.assert_frame_equal(cells(from_array), cells(test), check_exact=True, check_dtype=False)

    # Again: nothing is done twice.
    again = result_of(vitpipe("run", str(pipeline), "--json", home=home))
    assert again["model_uri"] == result["model_uri"]
    by_stage = {stage["stage"]: stage for stage in again["stages"]}
    assert by_stage["ingest"]["done"] == 0
    assert by_stage["tile"]["done"] == 0

    # No identifier of a patient stands in anything that was made.
    canary = b"canary-patient"
    made = [path for path in workspace.rglob("*") if path.is_file()]
    assert len(made) > 20
    assert not [path for path in made if canary in path.read_bytes().lower()]
