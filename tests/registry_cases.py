"""A run folder as training and evaluation leave it, for the tests of the registry."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from tests.infer.infer_cases import BANDS, CLASSES, MEAN, SIZE, STD, make_package
from vitpipe.atomic import write_folder
from vitpipe.config import PipelineConfig
from vitpipe.evaluate.predictions import logit_columns, predictions_of
from vitpipe.infer.predictor import Predictor
from vitpipe.manifest import Manifest
from vitpipe.store import ShardContract, ShardWriter, TileStore

NAME = "land-cover"
GROUPS, TILES_A_GROUP = 24, 3


def make_config(workspace: Path, *, approval: str = "auto") -> PipelineConfig:
    """A pipeline that registers under one name."""
    return PipelineConfig.model_validate(
        {
            "name": NAME,
            "source": {"kind": "geotiff", "path": str(workspace)},
            "labels": {"kind": "folder"},
            "tiles": {"size": SIZE},
            "model": {"weights": {"source": "random"}},
            "evaluate": {"level": "group", "bootstrap": 200},
            "register": {"model": NAME, "approval": approval},
            "workspace": str(workspace),
        }
    )


def make_manifest(workspace: Path) -> Manifest:
    """Noise tiles of 24 groups in one shard; half of the groups are the test split."""
    folder, count = workspace / "tiles" / "recipe", GROUPS * TILES_A_GROUP
    numbers = np.arange(count)
    table = pd.DataFrame(
        {
            "tile_id": [f"s{number:03d}:0:0:0" for number in numbers],
            "source_id": [f"s{number:03d}" for number in numbers],
            "group_id": [f"g{number // TILES_A_GROUP:02d}" for number in numbers],
            "frame": 0, "row": 0, "col": 0, "height": SIZE, "width": SIZE, "valid_fraction": 1.0, "pixel_digest": "",
        }
    )  # fmt: skip
    if not (folder / "shard").exists():
        rng = np.random.default_rng(0)
        tiles = rng.normal(MEAN, STD, (count, len(BANDS), SIZE, SIZE)).clip(1).astype(np.uint16)
        with write_folder(folder / "shard") as partial:
            writer = ShardWriter(partial, ShardContract(BANDS, "dn", "uint16", SIZE))
            writer.append(tiles, np.ones((count, SIZE, SIZE), bool), table)
            writer.close(dropped=0)
    rows = TileStore(folder).table().drop(columns="pixel_digest")
    group = rows["group_id"].str[1:].astype(int)
    rows["label"] = np.where(group % 4 < 2, *CLASSES)
    rows["split"] = np.where(group % 2 == 0, "test", "train")
    return Manifest(
        table=rows, classes=CLASSES, multi_label=False, channels=BANDS, units="dn", tile_size=SIZE,
        tiles_folder=folder, digest="0123456789abcdef", notes=(), unlabelled=0,
    )  # fmt: skip


def make_run(workspace: Path, manifest: Manifest, *, seed: int, perfect: bool = False) -> Path:
    """A run folder with package, metrics, report and predictions; `perfect` ones are made up."""
    folder = workspace / "runs" / f"run-{seed}"
    predictor = Predictor.load(make_package(folder / "model", seed=seed))
    test = manifest.table.loc[manifest.table["split"] == "test"].sort_values("tile_id", ignore_index=True)
    logits = predictor.logits(*TileStore(manifest.tiles_folder).gather(test))
    if perfect:
        logits = np.where(test["label"].to_numpy()[:, None] == np.array(CLASSES), 9.0, -9.0)
    table = pd.concat([test, pd.DataFrame(logits, columns=logit_columns(CLASSES))], axis=1)
    predictions_of(table, predictor.calibration).to_parquet(folder / "predictions.parquet")
    estimate = {"estimate": 0.5, "low": 0.4, "high": None, "n": 36, "n_groups": 12, "design_effect": 1.0}
    metrics = {"group": {"balanced_accuracy": estimate}, "baselines": {"majority": {"group": {"accuracy": estimate}}}}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "report.html").write_text("<html></html>")
    (folder / "model_card.md").write_text("# Card\n")
    return folder
