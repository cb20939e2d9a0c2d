"""From DICOM series to scores of slices with neighbours and of volumes, each at its place in the patient."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from tests.end_to_end.pipeline_cases import make_series
from vitpipe import stages
from vitpipe.evaluate.evaluation import evaluate
from vitpipe.infer.predictor import Predictor
from vitpipe.infer.serving import serve
from vitpipe.ingest import read_catalog
from vitpipe.learn import child
from vitpipe.learn.launch import make_task
from vitpipe.learn.task import RunFolder, write_task
from vitpipe.loading import load_config
from vitpipe.manifest import read_manifest
from vitpipe.records import Window, box_mm
from vitpipe.store import TileStore
from vitpipe.workspace import Workspace

VOLUMES = {"name": "monai_vit", "patch_size": [3, 8, 8], "embed_dim": 24, "depth": 1, "num_heads": 2}


@pytest.mark.parametrize(
    ("tiles", "model", "channels", "shape"),
    [
        ({"neighbours": 1}, {}, ("intensity-1", "intensity", "intensity+1"), (3, 16, 16)),
        ({"depth": 3}, VOLUMES, ("intensity",), (1, 3, 16, 16)),
    ],
    ids=["2.5-D", "3-D"],
)
def test_the_predictor_gives_the_rows_of_the_evaluation_and_their_places(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiles: dict,
    model: dict,
    channels: tuple[str, ...],
    shape: tuple[int, ...],
) -> None:
    monkeypatch.setenv("VITPIPE_KEY", "volumes")
    path = make_series(tmp_path, 16)
    values = yaml.safe_load(path.read_text())
    values["tiles"] = {"cut": "grid", "size": 16, "orientation": "LPS", **tiles}
    values["model"] |= model
    values["train"] |= {"epochs": 4, "device": "cpu", "processes": 1, "checkpoint_seconds": 60.0}
    path.write_text(yaml.safe_dump(values))
    config = load_config(path)
    for batch in stages.plan_batches(config):
        stages.index_batch(config, batch)
    stages.build_catalog(config)
    for shard in stages.plan_shards(config):
        assert stages.tile_shard(config, shard).rejected == {}
    workspace = Workspace(Path(config.workspace))
    folder = RunFolder(workspace.run(stages.prepare_run(config).run_id))
    manifest = read_manifest(folder.root)
    assert (manifest.channels, manifest.tile_shape) == (channels, shape)
    write_task(folder, make_task(config, manifest, folder.root.name, None).model_copy(update={"threads": 1}))
    child.run(folder, threading.Event())
    evaluate(config, manifest, folder.root, workspace)
    assert "data:image/png" in (folder.root / "report.html").read_text()

    judged = pd.read_parquet(folder.root / "predictions.parquet").set_index("tile_id")
    predictor = Predictor.load(folder.model)
    pulled = predictor.predict_path(config.source.path).tiles
    pulled.index = pulled[["source_id", "frame", "row", "col"]].astype(str).agg(":".join, axis=1)
    grids = {source.source_id: source.grid for source in read_catalog(workspace)}
    names = [name for name in judged if name.startswith("p_")] + ["predicted", "conformal_set", "abstain"]
    assert len(judged) >= 40
    pd.testing.assert_frame_equal(judged[names], pulled.loc[judged.index, names], check_exact=True, check_names=False)
    depth = shape[1] if len(shape) == 4 else 1
    for tile_id, box in judged["box_mm"].items():
        source_id, frame, row, col = str(tile_id).split(":")
        expected = box_mm(grids[source_id], Window(int(frame), int(row), int(col), 16, 16, depth))
        assert list(box) == list(pulled.loc[tile_id, "box_mm"]) == expected
    # Slices 2.5 mm apart, the first at 0 mm; pixels of 0.8 mm.
    assert {box[2] for box in judged["box_mm"]} == ({-1.25} if depth == 3 else {-1.25, 1.25, 3.75})
    assert {box[11] for box in judged["box_mm"]} == {2.5 * depth}

    rows = manifest.table[manifest.table["split"] == "test"]
    arrays, valid = TileStore(manifest.tiles_folder).gather(rows)
    assert valid.all()
    served = serve(predictor, arrays)
    assert np.array_equal(served[names[:2]].to_numpy(), judged.loc[rows["tile_id"], names[:2]].to_numpy())
