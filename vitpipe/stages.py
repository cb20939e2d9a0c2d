"""The chain as plain functions, one call a task: what Prefect runs, and what anyone can run without it.

Each takes the configuration and small names, reads and writes the workspace, and returns a small record.
"""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vitpipe.config import MlflowWeights, PipelineConfig
from vitpipe.errors import ConfigError, TrainingFailed, TransientError
from vitpipe.records import Json, StageSummary
from vitpipe.workspace import Workspace

if TYPE_CHECKING:
    from vitpipe.infer.versions import RegisteredVersion
    from vitpipe.learn.progress import Progress
    from vitpipe.manifest import Manifest
    from vitpipe.registry import Registry

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PreparedRun:
    """A manifest was written into its run folder."""

    run_id: str
    summary: StageSummary


@dataclass(frozen=True, slots=True)
class EvaluatedRun:
    """A model was judged."""

    run_id: str
    report: str
    summary: StageSummary
    headline: tuple[tuple[str, str, str], ...]
    """Rows of (who, metric, ``estimate [low, high]``)."""
    verdict: str
    tiles_make_maps: bool = False
    """The model is one of tiles of scenes, which `vitpipe predict --map` makes maps of."""

    def headline_markdown(self) -> str:
        """Give the headline numbers as a Markdown table."""
        rows = [f"| {who} | {metric} | {value} |" for who, metric, value in self.headline]
        table = ["| | metric | estimate and interval |", "|---|---|---|", *rows]
        return "\n".join([f"**{self.verdict}**", "", *table, "", f"Report: `{self.report}`", ""])


@dataclass(frozen=True, slots=True)
class RegisteredRun:
    """A model was registered, or not because the configuration names no registered model."""

    run_id: str
    uri: str | None
    aliases: tuple[str, ...]
    summary: StageSummary


@dataclass(frozen=True, slots=True)
class PipelineResult:
    """What a whole run came to."""

    name: str
    workspace: str
    summaries: tuple[StageSummary, ...]
    run_id: str | None = None
    report: str | None = None
    verdict: str | None = None
    headline: tuple[tuple[str, str, str], ...] = ()
    model_uri: str | None = None
    aliases: tuple[str, ...] = ()
    source: str | None = None
    tiles_make_maps: bool = False

    def use_command(self, *, as_map: bool = False) -> str:
        """Give the one command that loads the registered model and runs it, into a table or also into maps."""
        alias = "champion" if "champion" in self.aliases else "challenger"
        name = str(self.model_uri).removeprefix("models:/").rsplit("/", 1)[0]
        return (
            f"vitpipe predict models:/{name}@{alias} {_shown(self.source)} --workspace {_shown(self.workspace)}"
            f"{' --map' if as_map else ''} --out predictions"
        )

    def to_json(self) -> dict[str, Json]:
        """Give the JSON form, for ``--json``."""
        return {
            "name": self.name, "workspace": self.workspace, "run_id": self.run_id, "report": self.report,
            "stages": [summary.to_json() for summary in self.summaries], "verdict": self.verdict,
            "headline": [list(row) for row in self.headline],
            "model_uri": self.model_uri, "aliases": list(self.aliases),
        }  # fmt: skip


def _shown(path: str | None) -> str:
    """Give a path as one would type it here: relative where it lies below the current folder, quoted for the shell."""
    here = Path.cwd()
    place = Path(str(path))
    return shlex.quote(str(place.relative_to(here) if place.is_relative_to(here) else place))


def _workspace(config: PipelineConfig) -> Workspace:
    workspace = Workspace(Path(config.workspace))
    workspace.prepare()
    return workspace


# ------------------------------------------------------------------------------------------------------------ ingest


def plan_batches(config: PipelineConfig) -> list[list[str]]:
    """List the files in batches of several seconds of work, a task each.

    Raises:
        ConfigError: the path is missing.
    """
    from vitpipe import ingest

    return [[str(path) for path in batch] for batch in ingest.plan_batches(config, _workspace(config))]


def index_batch(config: PipelineConfig, paths: Sequence[str]) -> StageSummary:
    """Read the headers of one batch of files; what is known is not looked at again."""
    from vitpipe import ingest

    return ingest.index_files(config, _workspace(config), [Path(path) for path in paths])


def build_catalog(config: PipelineConfig) -> StageSummary:
    """Assemble the index into the catalog of sources."""
    from vitpipe import ingest

    return ingest.build_catalog(config, _workspace(config))


# -------------------------------------------------------------------------------------------------------------- tile


def plan_shards(config: PipelineConfig) -> list[str]:
    """Write the plan of new shards and name those that are still to be written."""
    from vitpipe import ingest, tiling

    workspace = _workspace(config)
    tiling.sweep(workspace, tiling.tile_digest(config))
    return tiling.plan_shards(config, workspace, ingest.read_catalog(workspace))


def tile_shard(config: PipelineConfig, shard_id: str) -> StageSummary:
    """Write one shard."""
    from vitpipe import ingest, tiling

    workspace = _workspace(config)
    sources = ingest.read_catalog(workspace, tiling.planned_sources(config, workspace, shard_id))
    return tiling.tile_shard(config, workspace, sources, shard_id)


def check_tiles(config: PipelineConfig, pending: Sequence[str]) -> StageSummary:
    """Put the sources that gave no tiles into the quarantine table, and stop where they are too many.

    Args:
        config: the pipeline.
        pending: what :func:`plan_shards` gave.
    """
    from vitpipe import ingest, tiling

    workspace = _workspace(config)
    sources = ingest.read_catalog(workspace)
    rejected = tiling.read_tile_rejections(workspace, tiling.tile_digest(config))
    current = rejected["source_id"].isin([source.source_id for source in sources])
    ingest.extend_quarantine(workspace, rejected[current])
    return tiling.check_tiling(config, workspace, sources, pending)


# ------------------------------------------------------------------------------------------------- prepare and train


def prepare_run(config: PipelineConfig) -> PreparedRun:
    """Join tiles, labels and splits into the manifest of a run, and name the run by its content.

    Raises:
        ConfigError: there are no labels to train on.
        LabelError, SplitError, LeakageError: see `vitpipe.manifest`.
    """
    from vitpipe import ingest, manifest
    from vitpipe.domains.known import planes_of
    from vitpipe.labels import read_labels
    from vitpipe.learn import launch
    from vitpipe.pseudonym import load_pseudonymiser
    from vitpipe.stale_targets import sweep_targets

    if config.labels is None:
        raise ConfigError(f"{config.name}: no `labels` in the configuration, so there is nothing to train on")
    started = time.perf_counter()
    workspace = _workspace(config)
    sources = ingest.read_catalog(workspace)
    labels = read_labels(config.labels, sources, load_pseudonymiser(workspace.root), planes_of)
    ingest.extend_quarantine(workspace, labels.quarantine_rows())
    joined = manifest.build_manifest(config, workspace, labels)
    run_id = launch.run_id_of(joined, config)
    manifest.write_manifest(joined, workspace.run(run_id))
    notes = (*joined.notes, *sweep_targets(workspace, joined))
    summary = StageSummary("split", done=len(joined.table), notes=notes, seconds=time.perf_counter() - started)
    return PreparedRun(run_id=run_id, summary=summary)


def pin_weights(config: PipelineConfig) -> PipelineConfig:
    """Replace an alias by the version that it names now: a run's weights do not change under it.

    Raises:
        ConfigError: there is no such model.
    """
    from vitpipe.registry import open_registry

    if config.model is None or not isinstance(config.model.weights, MlflowWeights):
        return config
    weights = MlflowWeights(uri=open_registry(_workspace(config).root).resolve(config.model.weights.uri))
    return config.model_copy(update={"model": config.model.model_copy(update={"weights": weights})})


def train(config: PipelineConfig, run_id: str, on_progress: Callable[[Progress], None]) -> StageSummary:
    """Fine-tune in a child process, with live metrics in MLflow; goes on where a killed run was.

    Args:
        config: the pipeline.
        run_id: of the prepared run.
        on_progress: told of each event.

    Raises:
        TrainingFailed: the child ended without a model; its last words are in the text.
        TransientError: a server does not answer.
    """
    from vitpipe.learn import launch
    from vitpipe.manifest import read_manifest

    workspace = _workspace(config)
    joined = read_manifest(workspace.run(run_id))

    def open_run() -> tuple[Registry, str]:
        from vitpipe.registry import open_registry

        registry = open_registry(workspace.root)
        return registry, _mlflow_run(registry, config, run_id, joined)

    # The import of MLflow and a new database take as long as the child's own imports: both go on at once.
    with ThreadPoolExecutor(1) as pool:
        opened = pool.submit(open_run)
        weights_folder = None
        if config.model is not None and isinstance(config.model.weights, MlflowWeights):
            weights_folder = opened.result()[0].fetch(config.model.weights.uri, workspace.run(run_id) / "weights")

        waiting: list[Progress] = []

        def report(progress: Progress) -> None:
            on_progress(progress)
            waiting.append(progress)
            # What the registry has against the run ends the child here, checkpoint first, not after the last epoch.
            if opened.done():
                _log_epochs(*opened.result(), waiting)

        try:
            result = launch.train(config, joined, workspace, report, weights_folder=weights_folder)
        except TrainingFailed:
            registry, mlflow_run_id = opened.result()
            registry.finish_run(mlflow_run_id, failed=True)
            raise
        _log_epochs(*opened.result(), waiting)
    notes = [f"best epoch {result.best_epoch + 1} of {result.epochs}"]
    notes += [f"went on at step {result.resumed_from}"] if result.resumed_from is not None else []
    done, seconds = (0, 0.0) if result.reused else (result.epochs, result.seconds)
    return StageSummary("train", done=done, skipped=result.epochs - done, seconds=seconds, notes=tuple(notes))


def _log_epochs(registry: Registry, mlflow_run_id: str, waiting: list[Progress]) -> None:
    """Log live metrics; empties the list."""
    while waiting:
        progress = waiting.pop(0)
        if progress.event != "epoch" or progress.step is None:
            continue
        values = {
            "loss": progress.train_loss, "validation_loss": progress.val_loss,
            "validation_balanced_accuracy": progress.val_balanced_accuracy,
            "validation_mean_iou": progress.val_mean_iou, "validation_r2": progress.val_r2,
            "learning_rate": progress.learning_rate, "images_per_second": progress.images_per_second,
        }  # fmt: skip
        try:
            registry.log_progress(mlflow_run_id, values, step=progress.step)
        except TransientError as error:
            # Live metrics are a view; the results are logged at the end. A server's hiccup must not end a training.
            _LOGGER.warning("live metrics of epoch %s were not logged: %s", progress.epoch, error)


def _mlflow_run(registry: Registry, config: PipelineConfig, run_id: str, joined: Manifest) -> str:
    """Find or start the MLflow run of a run; parameters are recipes, never paths."""
    model = config.model.model_dump(mode="json", exclude={"weights"}) if config.model is not None else {}
    params = {
        "source.kind": config.source.kind,
        "tiles": len(joined.table),
        **{f"tiles.{key}": value for key, value in config.tiles.model_dump(mode="json").items()},
        **{f"split.{key}": value for key, value in config.split.model_dump(mode="json").items()},
        **{f"preprocess.{key}": value for key, value in config.preprocess.model_dump(mode="json").items()},
        **{f"model.{key}": value for key, value in model.items()},
        "model.weights": config.model.weights.source if config.model is not None else None,
        **{f"train.{key}": value for key, value in config.train.model_dump(mode="json").items()},
    }
    tags = {
        "vitpipe.run_id": run_id,
        "vitpipe.manifest_digest": joined.digest,
        "vitpipe.config_digest": config.content_digest(),
    }
    return registry.start_run(config.name, f"{config.name} {run_id[:8]}", tags, params)


def evaluate(config: PipelineConfig, run_id: str) -> EvaluatedRun:
    """Judge the model on the locked test split; what was judged is read, not judged again."""
    from vitpipe.evaluate.evaluation import evaluate as judge
    from vitpipe.manifest import read_manifest

    workspace = _workspace(config)
    folder = workspace.run(run_id)
    manifest = read_manifest(folder)
    outcome = judge(config, manifest, folder, workspace)
    return EvaluatedRun(
        run_id, outcome.report, outcome.summary, outcome.headline, outcome.verdict, manifest.tiles_make_maps
    )


def register(config: PipelineConfig, run_id: str) -> RegisteredRun:
    """Log the results and, where the configuration names a registered model, register it and let the gate decide."""
    from vitpipe.manifest import read_manifest
    from vitpipe.registry import open_registry

    started = time.perf_counter()
    workspace = _workspace(config)
    folder = workspace.run(run_id)
    joined = read_manifest(folder)
    registry = open_registry(workspace.root)
    mlflow_run_id = _mlflow_run(registry, config, run_id, joined)
    registry.log_results(mlflow_run_id, folder, joined)
    version = None
    note = "no `register` in the configuration: the model stays in the workspace"
    if config.registration is not None:
        version = registry.register(mlflow_run_id, folder, config, joined)
        note = version.reason
    registry.finish_run(mlflow_run_id)
    seconds = time.perf_counter() - started
    if version is None:
        return RegisteredRun(run_id, None, (), StageSummary("register", notes=(note,), seconds=seconds))
    new = int(not version.already)
    summary = StageSummary("register", done=new, skipped=1 - new, notes=(note,), seconds=seconds)
    return RegisteredRun(run_id, version.uri, version.aliases, summary)


def unlabelled_result(config: PipelineConfig, summaries: Sequence[StageSummary]) -> PipelineResult:
    """Say that a pipeline without labels ends after tiling."""
    note = StageSummary("train", notes=("no `labels` in the configuration: nothing was trained; the tiles are kept",))
    return PipelineResult(config.name, config.workspace, (*summaries, note))


def pipeline_result(
    config: PipelineConfig, summaries: Sequence[StageSummary], evaluated: EvaluatedRun, registered: RegisteredRun
) -> PipelineResult:
    """Put together what a whole run came to."""
    return PipelineResult(
        name=config.name,
        workspace=config.workspace,
        summaries=tuple(summaries),
        run_id=evaluated.run_id,
        report=evaluated.report,
        verdict=evaluated.verdict,
        headline=evaluated.headline,
        model_uri=registered.uri,
        aliases=registered.aliases,
        source=config.source.path,
        tiles_make_maps=evaluated.tiles_make_maps,
    )


# ------------------------------------------------------------------------------------------- use of registered models


def warm_started(config: PipelineConfig) -> PipelineConfig:
    """Start from the champion's weights instead of the configured ones.

    Raises:
        ConfigError: the configuration has no model or names no registered one.
    """
    if config.model is None or config.registration is None:
        raise ConfigError(f"{config.name}: a warm start needs `model` and `register` in the configuration")
    weights = MlflowWeights(uri=f"models:/{config.registration.model}@champion")
    return config.model_copy(update={"model": config.model.model_copy(update={"weights": weights})})


def require_registry(workspace: str | None) -> None:
    """Refuse to make an empty registry where one is only asked for what it holds.

    Raises:
        ConfigError: no registry is named, or there is none at that place.
    """
    from vitpipe.infer.tracking import tracking_store

    if (file := tracking_store(Path(workspace) if workspace else None).missing) is not None:
        raise ConfigError(
            f"no registry at {file}; pass `--workspace FOLDER`, the workspace of the pipeline that registered the "
            "model, or set MLFLOW_TRACKING_URI"
        )


def promote(name: str, version: int | None, workspace: str | None) -> RegisteredVersion:
    """Make a version (the challenger if None) the champion; ConfigError where there is none."""
    from vitpipe.registry import open_registry

    require_registry(workspace)
    registry = open_registry(Path(workspace) if workspace else None)
    return registry.promote(name, registry.challenger(name) if version is None else str(version))


def rollback(name: str, workspace: str | None) -> RegisteredVersion:
    """Make the champion before the present one champion again; ConfigError where there is none."""
    from vitpipe.registry import open_registry

    require_registry(workspace)
    return open_registry(Path(workspace) if workspace else None).rollback(name)
