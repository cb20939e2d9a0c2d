"""A tiny model that reads CT, and what it says of a small series, for the tests of DICOM results."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.domains.dicom_cases import instance, save
from tests.infer.infer_cases import make_package
from vitpipe.config import TileRecipe
from vitpipe.infer.dicom_results.write import ResultKind, write_dicom_results
from vitpipe.infer.predictor import PredictionResult, Predictor
from vitpipe.infer.versions import ModelIdentity
from vitpipe.records import Rejected

CLASSES = ("lesion", "none")
IDENTITY = ModelIdentity(
    "ct-contrast", "3", "ab" * 32, {"run_id": "0123", "manifest_digest": "ef" * 8, "mlflow_run_id": "cd" * 16}
)


def make_predictor(folder: Path, **tiles: object) -> Predictor:
    recipe = TileRecipe.model_validate({"size": 8, "min_valid_fraction": 0.1, **tiles})
    make_package(
        folder, classes=CLASSES, channels=("intensity",), units="HU", source={"kind": "dicom"}, tiles=recipe, seed=3
    )
    return Predictor.load(folder)


def write_series(folder: Path, numbers: tuple[int, ...] = (2, 0, 1), **values: object) -> Path:
    for place, number in enumerate(numbers):
        save(instance(number, **values), folder / f"{place}")
    return folder


@dataclass(frozen=True)
class Written:
    result: PredictionResult
    files: list[Path]
    rejected: list[Rejected]


def predict_and_write(predictor: Predictor, data: Path, out: Path, kind: ResultKind) -> Written:
    result = predictor.predict_path(data)
    files, rejected = write_dicom_results(kind, result, predictor.contract, IDENTITY, out)
    return Written(result, files, rejected)
