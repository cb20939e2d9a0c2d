"""Where a process computes: its device, its rank among the processes, and how it adds numbers up with the others."""

from __future__ import annotations

import datetime
import os
import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import distributed

from vitpipe.errors import ConfigError
from vitpipe.learn.task import CPU, CUDA, LearnTask

_SILENCE = datetime.timedelta(minutes=30)
"""How long a rank waits for the others: validation and checkpoints of large models take a while."""


@dataclass(frozen=True, slots=True)
class Place:
    """One process of a run."""

    device: torch.device
    rank: int = 0
    processes: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Add a tensor up over all processes."""
        if self.processes > 1:
            values = values.to(self.device)
            distributed.all_reduce(values)
        return values

    def agree(self, *, flag: bool) -> bool:
        """Whether any process says yes; all must ask at the same step."""
        if self.processes == 1:
            return flag
        return bool(self.total(torch.tensor(float(flag))).item() > 0)

    def wait(self) -> None:
        """Wait for the other processes."""
        if self.processes > 1:
            distributed.barrier()


def take_place(task: LearnTask) -> Place:
    """Fix threads and determinism, and join the other processes that torchrun started.

    Raises:
        ConfigError: the task's device is not on this machine.
    """
    torch.set_num_threads(task.threads)
    # On CUDA some architectures have an operation without a deterministic form: they warn instead of failing.
    torch.use_deterministic_algorithms(True, warn_only=task.device == CUDA)  # noqa: FBT003 - torch's signature
    # Else every torch.empty is filled, for programs that read memory they never wrote.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    random.seed(task.train.seed)
    np.random.seed(task.train.seed % 2**32)  # noqa: NPY002 - for libraries that draw from it; nothing here does
    rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if task.device == CUDA:
        if not torch.cuda.is_available():
            raise ConfigError("train.device is `cuda`, but torch finds no CUDA device here; set it to `auto` or `cpu`")
        device = torch.device(CUDA, int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    else:
        device = torch.device(CPU)
    if processes > 1:
        distributed.init_process_group("nccl" if task.device == CUDA else "gloo", timeout=_SILENCE)
    return Place(device, rank, processes)


def computes_bf16(device: torch.device) -> bool:
    """Whether the device has bfloat16 arithmetic. Where a CPU emulates it, it is 6 to 14 times slower than float32."""
    if device.type == CUDA:
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def resolve_precision(asked: str, device: torch.device, *, maps_of_volumes: bool = False) -> str:
    """Give ``fp32`` or ``bf16``.

    Args:
        asked: as the configuration says.
        device: of the run.
        maps_of_volumes: the model convolves in three dimensions. On CPUs torch 2.14's gradients of such weights in
            bfloat16 hold what was in the memory before, at times NaN (measured); two dimensions are right.

    Raises:
        ConfigError: bf16 is asked for and the device only emulates it, or computes it wrongly.
    """
    if maps_of_volumes and device.type != CUDA:
        if asked == "bf16":
            raise ConfigError(
                "train.precision is `bf16`, but on a CPU the gradients of 3-D convolutions are not right in bfloat16; "
                "set it to `auto` or `fp32`"
            )
        return "fp32"
    able = computes_bf16(device)
    if asked == "bf16" and not able:
        raise ConfigError(
            f"train.precision is `bf16`, but this {device.type} only emulates bfloat16, many times slower than "
            "float32; set it to `auto` or `fp32`"
        )
    return "bf16" if able and asked in ("auto", "bf16") else "fp32"
