"""Starts the training child, reads its progress along, and turns its end into a result or an error.

Two and more processes are started by torchrun; one is started as it is, which saves torchrun's own import of torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import vitpipe
from vitpipe import errors
from vitpipe.atomic import workspace_errors
from vitpipe.config import DicomSource, FileWeights, ModelRecipe, PipelineConfig, TrainRecipe
from vitpipe.digest import digest, digest_file
from vitpipe.errors import ConfigError, ContractError, TrainingFailed, TransientError, VitpipeError
from vitpipe.labels.base import ATTRIBUTE_PREFIX
from vitpipe.learn.progress import STOPPED, Progress, ProgressReader
from vitpipe.learn.task import CPU, CUDA, LearnTask, RunFolder, physical_cores, read_task, write_task
from vitpipe.learn.watch import SUPERVISOR_VARIABLE, describe_process
from vitpipe.manifest import Manifest, write_manifest
from vitpipe.records import Json, Split
from vitpipe.workspace import Workspace

_POLL_SECONDS = 0.2
_GRACE_SECONDS = 60.0
"""How long a child may take to checkpoint after SIGTERM."""
_LAST_LINES = 12
_TAIL_BYTES = 16 << 10
_WORKER_EXIT = re.compile(r"exitcode\s*:\s*(-?\d+)")
_KILLED = {-signal.SIGKILL, 128 + signal.SIGKILL}
_NOT_IN_RUN = {"checkpoint_seconds"}
_MODALITY = f"{ATTRIBUTE_PREFIX}modality"


@dataclass(frozen=True, slots=True)
class TrainResult:
    """A complete run."""

    run_id: str
    folder: Path
    epochs: int
    """Passes over the train split; 1 for `probe`."""
    best_epoch: int
    """Zero-based."""
    seconds: float
    """Of training, killed attempts up to their checkpoint included."""
    resumed_from: int | None
    """Step of the checkpoint that the last attempt began with; None: it began at the start."""
    reused: bool
    """The run was complete before it was asked for now."""


def run_id_of(manifest: Manifest, config: PipelineConfig) -> str:
    """Name a run by its inputs: manifest, preprocessing, model, weights, recipe, code version.

    A weights file counts by its content; registry weights by their URI: name a version, not an alias.

    Args:
        manifest: by its digest.
        config: preprocess, model and train; no path counts.

    Raises:
        ConfigError: no model is configured, or the weights file is missing.
    """
    model = _model_of(config)
    content = ""
    if isinstance(model.weights, FileWeights):
        path = Path(model.weights.path)
        if not path.is_file():
            raise ConfigError(f"model.weights: no file {path}; correct `model.weights.path`")
        content = digest_file(path)
    return digest(
        {
            "manifest": manifest.digest,
            "preprocess": config.preprocess.model_dump(mode="json"),
            "model": model.model_dump(mode="json", exclude={"weights": {"path"}}),
            "weights": content,
            "train": config.train.model_dump(mode="json", exclude=_NOT_IN_RUN),
            "version": vitpipe.__version__,
        }
    )


def train(
    config: PipelineConfig,
    manifest: Manifest,
    workspace: Workspace,
    on_progress: Callable[[Progress], None],
    *,
    weights_folder: Path | None = None,
) -> TrainResult:
    """Train in a child process; a complete run returns at once, an incomplete one resumes at its next step.

    Args:
        config: model, preprocess and train are used.
        manifest: what is learnt from.
        workspace: gets ``runs/<run_id>``.
        on_progress: called in this thread for every event of this attempt.
        weights_folder: for ``mlflow`` weights: the model folder, already on this disk.

    Raises:
        ConfigError: the configuration does not fit the data or this machine.
        ContractError: weights or checkpoint are of something else.
        TransientError: the weights cannot be downloaded, or the child was asked to stop by another process: the same
            call resumes.
        TrainingFailed: the child ended without a result; the text holds its last words.
    """
    run_id = run_id_of(manifest, config)
    folder = RunFolder(workspace.run(run_id))
    if folder.done.is_file():
        return _result(folder, reused=True)
    with workspace_errors(folder.root):
        folder.root.mkdir(parents=True, exist_ok=True)
    write_manifest(manifest, folder.root)
    task = make_task(config, manifest, run_id, weights_folder)
    write_task(folder, _keep_place(folder, task))
    folder.failure.unlink(missing_ok=True)
    reader = ProgressReader(folder.progress)
    stopped = False
    with folder.log.open("ab") as log:
        log_start = log.tell()
        with _started(folder, task, log.fileno()) as process:
            while True:
                ended = process.poll() is not None
                for event in reader.read():
                    stopped = stopped or event.event == STOPPED
                    on_progress(event)
                if ended:
                    break
                time.sleep(_POLL_SECONDS)
    if folder.done.is_file():
        return _result(folder, reused=False)
    raise _failure(folder, process.returncode, log_start, stopped=stopped)


def make_task(config: PipelineConfig, manifest: Manifest, run_id: str, weights_folder: Path | None) -> LearnTask:
    """Resolve what depends on this machine: device, processes, threads.

    Raises:
        ConfigError: the device or the number of processes is not to be had.
    """
    device, processes = _device(config.train)
    return LearnTask(
        run_id=run_id,
        model=_model_of(config),
        train=config.train,
        preprocess=config.preprocess,
        tiles=config.tiles,
        source=_source_options(config, manifest),
        manifest_digest=manifest.digest,
        config_digest=config.content_digest(),
        code_version=vitpipe.__version__,
        device=device,
        processes=processes,
        threads=max(1, physical_cores() // processes),
        weights_folder=str(weights_folder) if weights_folder is not None else None,
        weights_digest=_weights_digest(weights_folder),
        label_units=manifest.target_units,
        label_background=getattr(config.labels, "background", None),
    )


def _weights_digest(folder: Path | None) -> str:
    """Digest the model that a run starts from: an alias may have moved since the run began."""
    if folder is None:
        return ""
    path = folder / "model.safetensors"
    if not path.is_file():
        raise ContractError(f"model.weights: no {path.name} in {folder}; it is no model folder of vitpipe")
    return digest_file(path)


def _model_of(config: PipelineConfig) -> ModelRecipe:
    if config.model is None:
        raise ConfigError("no model is configured; add `model: {name: ..., weights: {source: ...}}`")
    return config.model


def _source_options(config: PipelineConfig, manifest: Manifest) -> dict[str, Json]:
    """Give kind and reading options of the source; where it lies is nobody's business but this machine's.

    A model that has learnt from one DICOM modality alone is for that one, whether it was asked for or not.
    """
    values: dict[str, Json] = config.source.model_dump(mode="json", exclude={"path", "max_reject_share"})
    if isinstance(config.source, DicomSource) and config.source.modality is None:
        values["modality"] = _one_modality(manifest)
    return values


def _one_modality(manifest: Manifest) -> str | None:
    """Give the modality that every train tile states; None where there are several, or some state none."""
    if _MODALITY not in manifest.table:
        return None
    stated = manifest.table.loc[manifest.table["split"] == Split.TRAIN.value, _MODALITY]
    return str(stated.iloc[0]) if stated.notna().all() and stated.nunique() == 1 and stated.iloc[0] else None


def _device(recipe: TrainRecipe) -> tuple[str, int]:
    """Give device and number of processes: one a device."""
    devices = 0
    if recipe.device != CPU:
        import torch

        devices = torch.cuda.device_count()
    if recipe.device == CUDA and not devices:
        raise ConfigError("train.device is `cuda`, but this machine has no CUDA device; set it to `auto` or `cpu`")
    if not devices:
        return CPU, recipe.processes or 1
    if recipe.processes is not None and recipe.processes > devices:
        raise ConfigError(f"train.processes is {recipe.processes}, but this machine has {devices} CUDA devices")
    return CUDA, recipe.processes or devices


def _keep_place(folder: RunFolder, task: LearnTask) -> LearnTask:
    """Keep device, processes and threads of a run that was begun: its checkpoint, and its bits, belong to them."""
    if not folder.task.is_file():
        return task
    begun = read_task(folder)
    keep = {name: getattr(begun, name) for name in ("device", "processes", "threads")}
    return task.model_copy(update=keep)


@contextlib.contextmanager
def _started(folder: RunFolder, task: LearnTask, log: int) -> Iterator[subprocess.Popen[bytes]]:
    """Start the child; leaving the context, in whatever way, ends it, checkpoint first."""
    package_root = str(Path(vitpipe.__file__).resolve().parents[1])
    inherited = os.environ.get("PYTHONPATH")
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, (package_root, inherited))),
        "OMP_NUM_THREADS": str(task.threads),
        "OPENBLAS_NUM_THREADS": str(task.threads),
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "GLOO_SOCKET_IFNAME": loopback,
        "NCCL_SOCKET_IFNAME": loopback,
        # Threads that spin for long while they wait cost a busy machine far more (3 to 10 times, measured) than waking
        # up costs an idle one (15 to 30 %); a few microseconds of it win the latter back. The numbers are the same.
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "1000"),
        "PYTHONUNBUFFERED": "1",
        SUPERVISOR_VARIABLE: describe_process(os.getpid()),
    }
    if task.processes == 1:
        # What a launcher around us has set is not for the child.
        environment |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
        launcher = [sys.executable]
    else:
        launcher = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"),
            *("--nproc-per-node", str(task.processes)),
        ]
    command = [*launcher, "-m", "vitpipe.learn.child", str(folder.root)]
    # A session of its own: Ctrl-C in the terminal reaches the child through us, as SIGTERM, once.
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
    )
    try:
        with _forward_sigterm(process):
            yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def _forward_sigterm(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Let the child checkpoint before SIGTERM ends this process, where nobody else handles it (Prefect does)."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def forward(number: int, _frame: FrameType | None) -> None:
        _end(process)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, forward)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _result(folder: RunFolder, *, reused: bool) -> TrainResult:
    values = json.loads(folder.done.read_text(encoding="utf-8"))
    return TrainResult(
        run_id=values["run_id"],
        folder=folder.root,
        epochs=values["epochs"],
        best_epoch=values["best_epoch"],
        seconds=values["seconds"],
        resumed_from=values["resumed_from"],
        reused=reused,
    )


def _failure(folder: RunFolder, code: int, log_start: int, *, stopped: bool) -> VitpipeError:
    """Turn the end of a child into the error that it means."""
    if folder.failure.is_file():
        values = json.loads(folder.failure.read_text(encoding="utf-8"))
        kind = getattr(errors, values["type"], TrainingFailed)
        # Other types have constructors of their own, which a sentence does not fill.
        return kind(values["text"]) if kind is not errors.UnreadableSource else TrainingFailed(values["text"])
    if stopped:
        return TransientError("the training was stopped by SIGTERM and its state is saved; the same command resumes it")
    with folder.log.open("rb") as stream:
        stream.seek(max(log_start, folder.log.stat().st_size - _TAIL_BYTES))
        text = stream.read().decode(errors="replace")
    codes = {int(found) for found in _WORKER_EXIT.findall(text)} | {code}
    if codes & _KILLED:
        return TrainingFailed(
            "the training child was killed (SIGKILL), most likely because the machine ran out of memory: lower "
            f"train.batch_size, or choose a smaller model; the same command resumes the run {folder.root.name}"
        )
    lines = [line for line in text.splitlines() if line.strip()]
    words = [line for line in lines if re.match(r"(\[rank\d+\]: )?\w+(\.\w+)*(Error|Exception|Failed)\b", line)]
    last = "\n".join([*words[:1], *lines[-_LAST_LINES:]])
    return TrainingFailed(
        f"the training child ended with code {code}; its log is {folder.log}; its last words:\n{last}"
    )
