"""Checkpoints: safetensors and JSON, written whole or not at all; two are kept, a broken one is passed over."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from vitpipe.atomic import sweep_partials, write_folder, write_json
from vitpipe.digest import digest_file
from vitpipe.errors import ContractError
from vitpipe.learn.tensors import write_tensors

_STATE_FILE = "state.json"
_KEPT = 2
_NAME = re.compile(r"step-\d{9}")
_BEST = "best"

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class TrainState:
    """Where a run is. Draws are functions of (seed, epoch, step): no generator's state is kept."""

    identity: str
    """Of the task: a checkpoint of another task is refused."""
    epoch: int = 0
    step: int = 0
    """Steps done in this epoch."""
    global_step: int = 0
    best_epoch: int = -1
    best_loss: float | None = None
    """Validation loss of the best epoch."""
    stale_epochs: int = 0
    """Epochs since the best one."""
    loss_sum: float = 0.0
    """Of this epoch's steps so far."""
    tiles_seen: int = 0
    """In this epoch so far."""
    seconds: float = 0.0
    finished: bool = False
    """All epochs are done, or patience has ended."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A state and the tensors that go with it."""

    state: TrainState
    tensors: Mapping[str, Tensors]
    """``model``, ``ema``, ``optimiser``, ``best``: each its own file; absent ones are not used by the run."""


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write ``step-<global step>`` below `folder`, then remove all but the last two.

    The best weights change rarely: while they are the same, their file is linked, not copied.

    Raises:
        WorkspaceError: the disk is full or read-only.
    """
    target = folder / f"step-{checkpoint.state.global_step:09d}"
    if target.exists():
        # Made before a kill at this very step, or at the end of an epoch without a step since.
        shutil.rmtree(target)
    before = _previous_best(folder, checkpoint.state)
    with write_folder(target) as partial:
        digests: dict[str, str] = {}
        for name, tensors in checkpoint.tensors.items():
            path = partial / f"{name}.safetensors"
            if name == _BEST and before is not None:
                os.link(before[0], path)
                digests[name] = before[1]
                continue
            write_tensors(path, tensors)
            digests[name] = digest_file(path)
        write_json(partial / _STATE_FILE, {"state": asdict(checkpoint.state), "digests": digests})
    for old in _checkpoints(folder)[:-_KEPT]:
        shutil.rmtree(old)
    return target


def read_checkpoint(folder: Path, identity: str) -> tuple[Checkpoint | None, list[str]]:
    """Read the newest whole checkpoint.

    Args:
        folder: of the checkpoints.
        identity: of the task.

    Returns:
        The checkpoint, or None where there is none, and a sentence for each broken one. Broken ones are removed.

    Raises:
        ContractError: the checkpoint is of another task.
    """
    sweep_partials(folder)
    notes: list[str] = []
    for path in reversed(_checkpoints(folder)):
        found = _read(path)
        if found is None:
            notes.append(f"the checkpoint {path.name} is broken and was removed; the one before it is used, if any")
            shutil.rmtree(path)
            continue
        if found.state.identity != identity:
            raise ContractError(
                f"{path} belongs to another task ({found.state.identity}, not {identity}); remove the folder "
                f"{folder} to start anew"
            )
        return found, notes
    return None, notes


def _read(path: Path) -> Checkpoint | None:
    try:
        record = json.loads((path / _STATE_FILE).read_text(encoding="utf-8"))
        state = TrainState(**record["state"])
        tensors: dict[str, Tensors] = {}
        for name, expected in record["digests"].items():
            file = path / f"{name}.safetensors"
            if digest_file(file) != expected:
                return None
            tensors[name] = load_file(file)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None
    return Checkpoint(state, tensors)


def _checkpoints(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(entry for entry in folder.iterdir() if _NAME.fullmatch(entry.name))


def _previous_best(folder: Path, state: TrainState) -> tuple[Path, str] | None:
    """Give the file and digest of the last checkpoint's best weights, where they are of the same epoch."""
    for path in reversed(_checkpoints(folder)):
        try:
            record = json.loads((path / _STATE_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        same = record["state"]["best_epoch"] == state.best_epoch and _BEST in record["digests"]
        return (path / f"{_BEST}.safetensors", record["digests"][_BEST]) if same else None
    return None


def flatten_optimiser(optimiser: torch.optim.Optimizer) -> Tensors:
    """Give an optimiser's state as tensors named ``<parameter number>.<key>``."""
    flat: Tensors = {}
    for number, values in optimiser.state_dict()["state"].items():
        for key, value in values.items():
            flat[f"{number}.{key}"] = value if isinstance(value, torch.Tensor) else torch.tensor(value)
    return flat


def restore_optimiser(optimiser: torch.optim.Optimizer, flat: Mapping[str, torch.Tensor]) -> None:
    """Put back what :func:`flatten_optimiser` gave. Learning rates are functions of the step and are set by it."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for number, key, value in _split_names(flat):
        state.setdefault(number, {})[key] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


def _split_names(flat: Mapping[str, torch.Tensor]) -> Iterator[tuple[int, str, torch.Tensor]]:
    for name, value in flat.items():
        number, key = name.split(".", 1)
        yield int(number), key, value
