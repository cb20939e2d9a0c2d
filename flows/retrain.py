"""Scheduled retraining: the same chain over whatever data there are now."""

from __future__ import annotations

from prefect import flow

from flows.pipeline import run_chain, run_name, runner
from vitpipe import stages
from vitpipe.config import PipelineConfig


@flow(name="retrain", flow_run_name=run_name, task_runner=runner())
def retrain(config: PipelineConfig, warm_start: bool = False) -> stages.PipelineResult:  # noqa: FBT001, FBT002 - a form's tick box
    """Bring data, model and registry up to date; where nothing changed, nothing is done again.

    Args:
        config: The pipeline.
        warm_start: Start from the champion's weights instead of those of the configuration.
    """
    return run_chain(stages.warm_started(config) if warm_start else config)
