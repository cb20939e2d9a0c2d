"""Models of pixels: targets that are mostly unknown, other sizes than the patch divides, volumes, values."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from learn_cases import PixelCase, make_config, make_pixel_manifest, make_run
from numpy.typing import NDArray

from vitpipe.config import PipelineConfig
from vitpipe.learn import child
from vitpipe.learn.model import load_model
from vitpipe.learn.progress import read_progress
from vitpipe.learn.task import RunFolder
from vitpipe.manifest import Manifest
from vitpipe.pixel_targets import IGNORE, PixelTargets
from vitpipe.store import TileStore

FAST = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


def run_here(folder: RunFolder) -> RunFolder:
    child.run(folder, threading.Event())
    return folder


def pixel_config(workspace: Path, *, model: dict[str, object] | None = None, **train: object) -> PipelineConfig:
    keys = {"epochs": 20, "batch_size": 6, "baseline": "none", "label_smoothing": 0.0, "learning_rate": 0.01} | train
    return make_config(workspace, model=FAST | (model or {}), **keys)


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Nine of ten pixels have no label."""
    return make_pixel_manifest(tmp_path_factory.mktemp("sparse"), PixelCase(labelled=0.1))


def judged(manifest: Manifest) -> tuple[pd.DataFrame, NDArray[np.float32], NDArray[np.bool_], NDArray[np.generic]]:
    rows = manifest.table[manifest.table["split"] != "train"]
    tiles, valid = TileStore(manifest.tiles_folder).gather(rows)
    assert manifest.targets_folder is not None
    return (
        rows,
        tiles,
        valid,
        PixelTargets(manifest.targets_folder, manifest.task, manifest.tile_shape[1:]).gather(rows),
    )


@pytest.mark.parametrize("decoder", ["conv", "dpt"])
def test_classes_of_which_nine_of_ten_pixels_are_unknown_are_learnt(
    tmp_path: Path, sparse: Manifest, decoder: str
) -> None:
    folder = run_here(make_run(tmp_path / "run", pixel_config(tmp_path, model={"decoder": decoder}), sparse))
    rows, tiles, valid, targets = judged(sparse)
    model = load_model(folder.model)
    logits = model.logits(tiles, valid)
    assert (logits.dtype, logits.shape) == (np.float32, (len(rows), 3, 20, 20))
    labelled = targets != IGNORE
    assert labelled.mean() < 0.15
    assert (logits.argmax(1)[labelled] == targets[labelled]).mean() > 0.85
    scores = [event.val_mean_iou for event in read_progress(folder.progress) if event.event == "epoch"]
    assert scores[-1] > 0.75
