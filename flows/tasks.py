"""One Prefect task a stage step. Tasks pass paths, names and small records; the disk holds the truth.

Prefect's result cache is off: it keys on parameter values, and an unchanged path may hold changed bytes. The store
is content-addressed, so a task that runs again finds its work done. A run without a name of ours would get one with a
random ending.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import exponential_backoff

from flows.progress import ProgressReporter
from vitpipe import results, stages
from vitpipe.config import MapRecipe, PipelineConfig, StacSource
from vitpipe.errors import TransientError
from vitpipe.fetch import fetch as fetch_studies
from vitpipe.records import StageSummary
from vitpipe.workspace import Workspace

RETRIES = 3
BACKOFF = exponential_backoff(backoff_factor=5)


def is_transient(_task: Any, _task_run: TaskRun, state: State[Any]) -> bool:  # noqa: ANN401 - Prefect's own signature
    """Retry what may pass by itself, nothing else: data that are wrong stay wrong."""
    return isinstance(state.result(raise_on_failure=False), TransientError)


@task(
    name="fetch studies",
    task_run_name="fetch studies",
    cache_policy=NO_CACHE,
    retries=RETRIES,
    retry_delay_seconds=BACKOFF,
    retry_jitter_factor=0.5,
    retry_condition_fn=is_transient,
)
def fetch(config: PipelineConfig) -> StageSummary:
    """Bring the folder of a DICOMweb or STAC source up to date; a fetch that was cut off goes on where it was."""
    return fetch_studies(config, Workspace(Path(config.workspace)))


@task(
    name="index files",
    task_run_name="index batch {batch}",
    cache_policy=NO_CACHE,
    retries=RETRIES,
    retry_delay_seconds=BACKOFF,
    retry_jitter_factor=0.5,
    retry_condition_fn=is_transient,
)
def index_batch(config: PipelineConfig, paths: Sequence[str], batch: int) -> StageSummary:  # noqa: ARG001 - its name
    """Read the headers of one batch of files."""
    return stages.index_batch(config, paths)


@task(
    name="build catalog",
    task_run_name="build catalog",
    cache_policy=NO_CACHE,
    retries=RETRIES,
    retry_delay_seconds=BACKOFF,
    retry_jitter_factor=0.5,
    retry_condition_fn=is_transient,
)
def build_catalog(config: PipelineConfig) -> StageSummary:
    """Assemble the indexed files into sources."""
    return stages.build_catalog(config)


@task(name="plan shards", task_run_name="plan shards", cache_policy=NO_CACHE)
def plan_shards(config: PipelineConfig) -> list[str]:
    """Say which shards are still to be written."""
    return stages.plan_shards(config)


@task(
    name="tile shard",
    task_run_name="tile shard {shard_id}",
    cache_policy=NO_CACHE,
    retries=RETRIES,
    retry_delay_seconds=BACKOFF,
    retry_jitter_factor=0.5,
    retry_condition_fn=is_transient,
)
def tile_shard(config: PipelineConfig, shard_id: str) -> StageSummary:
    """Cut the tiles of one shard's sources."""
    return stages.tile_shard(config, shard_id)


@task(name="check tiles", task_run_name="check tiles", cache_policy=NO_CACHE)
def check_tiles(config: PipelineConfig, pending: Sequence[str]) -> StageSummary:
    """Count what was tiled and stop where too much was rejected."""
    return stages.check_tiles(config, pending)


@task(name="label and split", task_run_name="label and split", cache_policy=NO_CACHE)
def prepare_run(config: PipelineConfig) -> stages.PreparedRun:
    """Join tiles, labels and splits into the manifest of a run."""
    return stages.prepare_run(config)


@task(
    name="fine-tune",
    task_run_name="fine-tune {run_id}",
    cache_policy=NO_CACHE,
    retries=RETRIES,
    retry_delay_seconds=BACKOFF,
    retry_jitter_factor=0.5,
    retry_condition_fn=is_transient,
)
def train(config: PipelineConfig, run_id: str) -> StageSummary:
    """Fine-tune in a child process; a run that was cut off goes on where it was."""
    with ProgressReporter(f"fine-tune {config.name}") as reporter:
        return stages.train(config, run_id, reporter)


@task(
    name="evaluate",
    task_run_name="evaluate {run_id}",
    cache_policy=NO_CACHE,
    retries=RETRIES,
    retry_delay_seconds=BACKOFF,
    retry_jitter_factor=0.5,
    retry_condition_fn=is_transient,
)
def evaluate(config: PipelineConfig, run_id: str) -> stages.EvaluatedRun:
    """Judge the model on the locked test split, once."""
    return stages.evaluate(config, run_id)


@task(
    name="register",
    task_run_name="register {run_id}",
    cache_policy=NO_CACHE,
    retries=RETRIES,
    retry_delay_seconds=BACKOFF,
    retry_jitter_factor=0.5,
    retry_condition_fn=is_transient,
)
def register(config: PipelineConfig, run_id: str) -> stages.RegisteredRun:
    """Log the run and register the model; the gate moves the alias."""
    return stages.register(config, run_id)


@task(name="plan prediction", task_run_name="plan prediction", cache_policy=NO_CACHE)
def plan_prediction(
    model_uri: str,
    source: str | StacSource,
    out: str,
    workspace: str | None,
    dicom: results.ResultKind | None,
    maps: MapRecipe,
) -> results.PredictJob:
    """Settle which version predicts, and on what."""
    return results.plan_job(model_uri, source, out, workspace, dicom, maps)


@task(
    name="fetch scenes",
    task_run_name="fetch scenes",
    cache_policy=NO_CACHE,
    retries=RETRIES,
    retry_delay_seconds=BACKOFF,
    retry_jitter_factor=0.5,
    retry_condition_fn=is_transient,
)
def bring_scenes(job: results.PredictJob) -> StageSummary:
    """Fetch the scenes of a catalog; what has arrived is kept."""
    return results.bring_scenes(job)


@task(
    name="predict",
    task_run_name="predict",
    cache_policy=NO_CACHE,
    retries=RETRIES,
    retry_delay_seconds=BACKOFF,
    retry_jitter_factor=0.5,
    retry_condition_fn=is_transient,
)
def predict_tiles(job: results.PredictJob) -> StageSummary:
    """Run a model of tiles on files."""
    return results.predict_tiles(job)


@task(
    name="plan maps",
    task_run_name="plan maps",
    cache_policy=NO_CACHE,
    retries=RETRIES,
    retry_delay_seconds=BACKOFF,
    retry_jitter_factor=0.5,
    retry_condition_fn=is_transient,
)
def plan_maps(job: results.PredictJob) -> list[list[str]]:
    """Say which scenes each task maps."""
    return results.plan_maps(job)


@task(
    name="map scenes",
    task_run_name="map scenes {batch}",
    cache_policy=NO_CACHE,
    retries=RETRIES,
    retry_delay_seconds=BACKOFF,
    retry_jitter_factor=0.5,
    retry_condition_fn=is_transient,
)
def map_scenes(job: results.PredictJob, source_ids: Sequence[str], batch: int) -> StageSummary:  # noqa: ARG001 - its name
    """Map a large scene, or some small ones; a scene that was cut off goes on where it was."""
    return results.map_scenes(job, source_ids)


@task(name="gather maps", task_run_name="gather maps", cache_policy=NO_CACHE)
def finish_maps(job: results.PredictJob, mapped: StageSummary) -> StageSummary:
    """Write the quarantine and the summary of all maps."""
    return results.finish_maps(job, mapped)
