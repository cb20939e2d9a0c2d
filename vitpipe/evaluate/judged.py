"""What a judged run is made of: shared by the stage, the report and the model card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pandas as pd

from vitpipe.config import PipelineConfig
from vitpipe.errors import ContractError
from vitpipe.evaluate.calibration import Calibration
from vitpipe.evaluate.statistics import Estimate
from vitpipe.evaluate.units import Units
from vitpipe.manifest import Manifest
from vitpipe.records import Json
from vitpipe.workspace import Workspace

METRICS_FILE: Final = "metrics.json"
PREDICTIONS_FILE: Final = "predictions.parquet"
REPORT_FILE: Final = "report.html"
MODEL_CARD_FILE: Final = "model_card.md"


@dataclass(frozen=True, slots=True)
class Judged:
    """Everything that report and model card show."""

    config: PipelineConfig
    manifest: Manifest
    run_folder: Path
    workspace: Workspace
    calibration: Calibration
    predictions: pd.DataFrame
    """Calibration, val and test, with `attr_` columns."""
    units: Mapping[str, Units]
    """Level to units of the test split."""
    numbers: Mapping[str, Json]
    """What metrics.json holds."""

    @property
    def model_record(self) -> Path:
        """What the model is, beside its weights."""
        return self.run_folder / "model" / "model.json"


def estimate_of(numbers: Mapping[str, Json], level: str, metric: str) -> Estimate:
    """Read one estimate back from the numbers of metrics.json (or of one baseline in it)."""
    of_level = numbers[level]
    if not isinstance(of_level, dict) or not isinstance(value := of_level[metric], dict):
        raise ContractError(f"no {metric} of level {level} in the metrics; evaluate the run again")
    return Estimate(**{name: value[name] for name in Estimate.__dataclass_fields__})  # type: ignore[arg-type]


def shown(estimate: Estimate) -> str:
    """Write an estimate as ``0.812 [0.774, 0.846]``."""
    if estimate.estimate is None:
        return "not defined"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.estimate:.3f} (no interval)"
    return f"{estimate.estimate:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
