"""Which metric stands at the top of a report and decides at the gate."""

from __future__ import annotations

from typing import Final

from vitpipe.config import GateRecipe, PipelineConfig
from vitpipe.errors import ConfigError
from vitpipe.manifest import Manifest
from vitpipe.records import Task

CHOICES: Final = {
    Task.CLASSIFICATION: ("accuracy", "balanced_accuracy", "macro_f1", "auroc", "average_precision", "brier"),
    Task.SEGMENTATION: ("mean_iou", "accuracy", "balanced_accuracy", "macro_f1"),
    Task.REGRESSION: ("r2", "rmse"),
}
"""Metrics that a gate can decide by; of pixels those that are exact, not those of a sample."""
_UNSAID: Final = GateRecipe().metric


def headline_metric(config: PipelineConfig, manifest: Manifest) -> str:
    """Name the headline metric.

    Returns:
        The gate's. Without a gate: balanced accuracy, multi-label macro F1, of pixels mean IoU, of values R2. A gate
        that says nothing has the balanced accuracy, which values do not have: for them it is R2.

    Raises:
        ConfigError: the gate names a metric that the task does not have.
    """
    task = manifest.task
    if config.registration is None:
        if task is Task.CLASSIFICATION:
            return "macro_f1" if manifest.multi_label else "balanced_accuracy"
        return CHOICES[task][0]
    return gate_metric(config.registration.gate, task)


def gate_metric(gate: GateRecipe, task: Task) -> str:
    """Name the metric that a gate decides by; see :func:`headline_metric`."""
    if gate.metric in CHOICES[task]:
        return gate.metric
    if task is Task.REGRESSION and gate.metric == _UNSAID:
        return "r2"
    raise ConfigError(
        f"register.gate.metric is {gate.metric}, but a {task} is judged by one of {', '.join(CHOICES[task])}; name one"
    )
