"""What one training run is asked to do: written once by the parent, read by the child."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue, ValidationError

from vitpipe.atomic import write_file
from vitpipe.config import ModelRecipe, PreprocessRecipe, Recipe, TileRecipe, TrainRecipe
from vitpipe.digest import digest
from vitpipe.errors import ContractError

CPU = "cpu"
CUDA = "cuda"


class LearnTask(Recipe):
    """A training run. Everything that decides a bit of its result stands here or in the manifest beside it."""

    run_id: str
    model: ModelRecipe
    train: TrainRecipe
    preprocess: PreprocessRecipe
    tiles: TileRecipe
    source: dict[str, JsonValue]
    """Kind of the source and the options that matter for reading it again (bands, units, modality); no path."""
    manifest_digest: str
    config_digest: str
    code_version: str
    device: str
    """``cpu`` or ``cuda``, resolved."""
    processes: int
    threads: int
    """CPU threads of each process; recorded because sums over another number of threads may differ in the last bit."""
    weights_folder: str | None = None
    """For ``mlflow`` weights: the model folder that the registry left on this disk."""
    weights_digest: str = ""
    """Of the model in `weights_folder`."""
    label_units: str = ""
    """Of values, where the labels say them."""
    label_background: str | None = None
    """The class of pixels on which nothing is drawn, where the configuration of the labels names one."""

    def identity(self) -> str:
        """Digest of what decides the bits of the result; paths do not count. A checkpoint belongs to one identity."""
        return digest([self.run_id, self.weights_digest, self.device, self.processes, self.threads])


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The files of one run."""

    root: Path

    @property
    def task(self) -> Path:
        """What to do."""
        return self.root / "task.json"

    @property
    def model(self) -> Path:
        """The model folder: all that is needed to use the model."""
        return self.root / "model"

    @property
    def logits(self) -> Path:
        """A row a tile of val, calibration and test; of pixels see `vitpipe.learn.pixel_tables`."""
        return self.root / "logits.parquet"

    @property
    def baselines(self) -> Path:
        """Of a task of pixels: a folder a baseline, with the tables of `vitpipe.learn.pixel_tables`."""
        return self.root / "baselines"

    @property
    def checkpoint(self) -> Path:
        """Folder of the checkpoints; gone when the run is complete."""
        return self.root / "checkpoint"

    @property
    def preprocessing(self) -> Path:
        """The fitted preprocessing."""
        return self.root / "preprocessing.json"

    @property
    def progress(self) -> Path:
        """One JSON line per event."""
        return self.root / "progress.jsonl"

    @property
    def log(self) -> Path:
        """What the child wrote to its standard streams."""
        return self.root / "child.log"

    @property
    def failure(self) -> Path:
        """The error that ended the child: its type and sentence."""
        return self.root / "failure.json"

    @property
    def done(self) -> Path:
        """The result; written last: its existence says that the run is complete."""
        return self.root / "train.json"

    @property
    def child_lock(self) -> Path:
        """Held by the child that writes here."""
        return self.root / "child.lock"


def write_task(folder: RunFolder, task: LearnTask) -> None:
    """Write the task atomically."""
    with write_file(folder.task) as partial:
        partial.write_text(task.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_task(folder: RunFolder) -> LearnTask:
    """Read the task.

    Raises:
        ContractError: there is none, or it was written by a version with other keys.
    """
    try:
        return LearnTask.model_validate_json(folder.task.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ContractError(f"no task at {folder.task}; start the training with `vitpipe train`") from error
    except ValidationError as error:
        raise ContractError(
            f"{folder.task} does not fit this version of vitpipe; remove the folder {folder.root} and train again"
        ) from error


def physical_cores() -> int:
    """Count the physical cores that this process may use; two hardware threads of one core count once."""
    if not hasattr(os, "sched_getaffinity"):
        return max(1, os.cpu_count() or 1)
    allowed = os.sched_getaffinity(0)
    cores: set[str] = set()
    for cpu in allowed:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings.read_text(encoding="ascii").strip() if siblings.is_file() else str(cpu))
    return max(1, len(cores))


def seed_of(*parts: int | str) -> int:
    """Mix integers and names into one seed of 63 bits: every random draw is a function of (seed, epoch, step, use)."""
    return int(digest(list(parts)), 16) >> 1
