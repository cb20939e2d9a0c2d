"""Each stage alone, as a flow of its own."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from flows import tasks
from flows.artifacts import publish_registered, publish_report, publish_summary
from flows.pipeline import begin, run_ingest, run_name, run_tile, runner
from vitpipe import stages
from vitpipe.config import PipelineConfig
from vitpipe.records import StageSummary
from vitpipe.workspace import Workspace


@flow(name="ingest", flow_run_name=run_name, task_runner=runner())
def ingest(config: PipelineConfig) -> StageSummary:
    """Look at new and changed files and bring the catalog up to date.

    Args:
        config: The pipeline.
    """
    begin(config)
    with Workspace(Path(config.workspace)).lock():
        return run_ingest(config)[-1]


@flow(name="tile", flow_run_name=run_name, task_runner=runner())
def tile(config: PipelineConfig) -> StageSummary:
    """Cut tiles from the sources of the catalog that have none yet.

    Args:
        config: The pipeline.
    """
    config = begin(config)
    with Workspace(Path(config.workspace)).lock():
        return run_tile(config)


@flow(name="train", flow_run_name=run_name)
def train(config: PipelineConfig) -> StageSummary:
    """Join tiles, labels and splits, and fine-tune.

    Args:
        config: The pipeline.
    """
    config = begin(config)
    with Workspace(Path(config.workspace)).lock():
        config = stages.pin_weights(config)
        prepared = tasks.prepare_run(config)
        publish_summary(config.name, prepared.summary)
        summary = tasks.train(config, prepared.run_id)
        publish_summary(config.name, summary)
        return summary


@flow(name="evaluate", flow_run_name=run_name)
def evaluate(config: PipelineConfig) -> stages.EvaluatedRun:
    """Judge the trained model on the locked test split.

    Args:
        config: The pipeline.
    """
    config = begin(config)
    with Workspace(Path(config.workspace)).lock():
        config = stages.pin_weights(config)
        evaluated = tasks.evaluate(config, tasks.prepare_run(config).run_id)
        publish_summary(config.name, evaluated.summary)
        publish_report(config.name, evaluated)
        return evaluated


@flow(name="register", flow_run_name=run_name)
def register(config: PipelineConfig) -> stages.RegisteredRun:
    """Register the evaluated model.

    Args:
        config: The pipeline.
    """
    config = begin(config)
    with Workspace(Path(config.workspace)).lock():
        config = stages.pin_weights(config)
        registered = tasks.register(config, tasks.prepare_run(config).run_id)
        publish_summary(config.name, registered.summary)
        publish_registered(config.name, registered)
        return registered
