"""A predictor of pixels without training, and a registry that holds it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.infer.infer_cases import BANDS, CLASSES, MEAN, make_package
from vitpipe.evaluate.calibration import load_calibration
from vitpipe.infer.contract import ModelContract
from vitpipe.infer.package import open_package
from vitpipe.infer.predictor import Predictor
from vitpipe.infer.versions import ModelIdentity
from vitpipe.learn.model import LoadedModel, load_model
from vitpipe.records import Task

IDENTITY = ModelIdentity("land", "3", "ab" * 32, {"mlflow_run_id": "run1", "package_digest": "cd" * 8})


class BrightModel:
    """Says `water` where the third band is bright; a stand-in for a model of pixels.

    Args:
        record: of a model of tiles, for its batch size.
        outputs: classes, or 1.
    """

    def __init__(self, record: object, outputs: int) -> None:
        self.record = record
        self.outputs = outputs
        self.tiles = 0

    def logits(self, tiles: NDArray, valid: NDArray) -> NDArray:
        """Give logits (N, outputs, H, W)."""
        self.tiles += len(valid)
        bright = (tiles[:, 2] - MEAN) / 100
        return np.stack([-bright, bright][-self.outputs :], axis=1).astype(np.float32)


def pixel_predictor(folder: Path, task: Task = Task.SEGMENTATION) -> Predictor:
    """Make a predictor of pixels, its temperature 1.5."""
    package = make_package(folder)
    loaded = load_model(package)
    contract = ModelContract.read(open_package(package).description)
    contract = dataclasses.replace(contract, task=task, target_units="t/ha" if task is Task.REGRESSION else "")
    model = BrightModel(loaded.record, contract.outputs)
    return Predictor(cast("LoadedModel", model), load_calibration(package), contract)


class StubRegistry:
    """Holds one model."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    def resolve(self, uri: str) -> str:
        """Every alias is version 3."""
        return f"{uri.split('@', maxsplit=1)[0]}/3"

    def load_predictor(self, uri: str) -> Predictor:
        """Give the one model."""
        assert uri.endswith("/3")
        return self.predictor

    def identify(self, uri: str) -> ModelIdentity:
        """Say who it is."""
        assert uri.endswith("/3")
        return IDENTITY


def hold(monkeypatch: pytest.MonkeyPatch, predictor: Predictor) -> None:
    """Let the registry hold a predictor, and nothing else."""
    monkeypatch.setattr("vitpipe.registry.open_registry", lambda _workspace: StubRegistry(predictor))
    monkeypatch.setattr("vitpipe.results.require_registry", lambda _workspace: None)


__all__ = ["BANDS", "CLASSES", "IDENTITY", "BrightModel", "StubRegistry", "hold", "pixel_predictor"]
