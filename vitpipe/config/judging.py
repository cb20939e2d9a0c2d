"""How a model is judged, and where it is kept."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from vitpipe.config.base import Recipe

MetricName = Literal[
    "accuracy", "balanced_accuracy", "macro_f1", "auroc", "average_precision", "brier", "mean_iou", "r2", "rmse"
]


class EvaluateRecipe(Recipe):
    """How the model is judged."""

    model_config = ConfigDict(title="Evaluation")

    subgroups: tuple[str, ...] = Field((), title="Subgroups", description="Attribute columns; all known ones if empty.")
    level: Literal["tile", "source", "group"] = Field(
        "group", title="Level", description="Level of the headline numbers."
    )
    bootstrap: int = Field(2000, ge=200, le=100_000, title="Bootstrap draws")
    confidence: float = Field(0.95, gt=0.5, lt=1, title="Confidence")
    alpha: float = Field(0.1, gt=0, lt=0.5, title="Conformal error rate")
    seed: int = Field(0, ge=0, title="Seed")


class GateRecipe(Recipe):
    """When a challenger becomes the champion."""

    model_config = ConfigDict(title="Gate")

    metric: MetricName = Field(
        "balanced_accuracy",
        title="Metric",
        description="Of pixels also mean_iou; of values r2 or rmse (r2 where nothing is said).",
    )
    margin: float = Field(
        0.0,
        ge=0,
        title="Margin",
        description="The challenger may be worse by less than this (non-inferiority); 0: better.",
    )


class RegisterRecipe(Recipe):
    """Where the model is kept."""

    model_config = ConfigDict(title="Registration")

    model: str = Field(title="Registered name", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    gate: GateRecipe = GateRecipe()
    approval: Literal["auto", "manual"] = Field(
        "auto", title="Approval", description="auto: the gate moves the alias; manual: `vitpipe promote` does."
    )
