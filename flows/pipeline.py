"""The whole chain as a flow: ingest, tile, fine-tune, evaluate, register."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any, cast

from prefect import flow, unmapped
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows import tasks
from flows.artifacts import publish_registered, publish_report, publish_summary
from flows.settings import configure_logging
from vitpipe import stages
from vitpipe.config import PipelineConfig
from vitpipe.errors import ConfigError
from vitpipe.records import StageSummary
from vitpipe.workspace import Workspace


def runner() -> TaskRunner[PrefectFuture[Any]]:
    """Threads: decoding, resampling and copying release the interpreter's lock, and a process costs 0.2 s a task."""
    # A thread runner's futures are Prefect's; its type parameter is invariant all the same.
    return cast("TaskRunner[PrefectFuture[Any]]", ThreadPoolTaskRunner(max_workers=os.cpu_count() or 1))


def run_name() -> str:
    """Name a flow run by what it runs: ``pipeline ct-contrast``."""
    config = flow_run.parameters.get("config")
    name = config.get("name") if isinstance(config, dict) else getattr(config, "name", None)
    return f"{flow_run.flow_name} {name}" if name else str(flow_run.flow_name)


def begin(config: PipelineConfig) -> PipelineConfig:
    """Let our log lines through, and refuse relative paths: a worker runs in another folder than who triggers it.

    Returns:
        The pipeline as every stage but the fetch sees it: its source lies on the disk.

    Raises:
        ConfigError: a path is relative.
    """
    configure_logging()
    local = config.on_disk()
    for key, path in (("source.path", local.source.path), ("workspace", config.workspace)):
        if not Path(path).is_absolute():
            raise ConfigError(
                f"{key}: {path!r} is relative; a flow needs an absolute path (the command line makes them so)"
            )
    return local


@flow(name="pipeline", flow_run_name=run_name, task_runner=runner())
def pipeline(config: PipelineConfig) -> stages.PipelineResult:
    """Ingest, tile, fine-tune, evaluate and register: from raw files to a model in the registry.

    What is finished is not done again: only new or changed files are read, and a run that was cut off goes on.

    Args:
        config: The pipeline: where the data and labels are, how tiles are cut, the model, and where it is registered.
    """
    return run_chain(config)


def run_chain(config: PipelineConfig) -> stages.PipelineResult:
    """Run all stages, inside a flow."""
    given, config = config, begin(config)
    with Workspace(Path(config.workspace)).lock():
        config = stages.pin_weights(config)
        summaries = [*run_ingest(given), run_tile(config)]
        if config.labels is None:
            return stages.unlabelled_result(config, summaries)
        prepared = tasks.prepare_run(config)
        publish_summary(config.name, prepared.summary)
        trained = tasks.train(config, prepared.run_id)
        publish_summary(config.name, trained)
        evaluated = tasks.evaluate(config, prepared.run_id)
        publish_summary(config.name, evaluated.summary)
        publish_report(config.name, evaluated)
        registered = tasks.register(config, prepared.run_id)
        publish_summary(config.name, registered.summary)
        publish_registered(config.name, registered)
    summaries += [prepared.summary, trained, evaluated.summary, registered.summary]
    return stages.pipeline_result(config, summaries, evaluated, registered)


def run_ingest(config: PipelineConfig) -> list[StageSummary]:
    """Fetch what lies on a server, index batches of files side by side, then assemble the catalog.

    The workspace lock is held.

    Returns:
        The summary of the fetch, if there is one, and that of the ingest.
    """
    summaries = []
    if (local := config.on_disk()) is not config:
        summaries.append(tasks.fetch(config))
        publish_summary(config.name, summaries[0])
        config = local
    batches = stages.plan_batches(config)
    futures = tasks.index_batch.map(unmapped(config), batches, list(range(len(batches))))
    indexed = sum(futures.result(), start=StageSummary("index"))
    summary = tasks.build_catalog(config)
    summary = dataclasses.replace(summary, seconds=summary.seconds + indexed.seconds)
    publish_summary(config.name, summary)
    return [*summaries, summary]


def run_tile(config: PipelineConfig) -> StageSummary:
    """Write the shards that are missing, side by side; the workspace lock is held."""
    shards = tasks.plan_shards(config)
    futures = tasks.tile_shard.map(unmapped(config), shards)
    summary = sum(futures.result(), start=StageSummary("tile")) + tasks.check_tiles(config, shards)
    publish_summary(config.name, summary)
    return summary
