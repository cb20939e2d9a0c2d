"""What goes into a recipe and what comes out of it."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import torch
from torch import nn

from vitpipe.learn.checkpoint import Tensors
from vitpipe.learn.loader import SplitTiles
from vitpipe.learn.losses import Objective
from vitpipe.learn.model import ModelRecord
from vitpipe.learn.place import Place
from vitpipe.learn.preprocessing import Preprocessing
from vitpipe.learn.progress import ProgressWriter
from vitpipe.learn.task import LearnTask, RunFolder


class Stopped(Exception):
    """SIGTERM was met: the state is on disk."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The process around a recipe."""

    folder: RunFolder
    place: Place
    progress: ProgressWriter
    stop: threading.Event
    """Set by SIGTERM."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """All that a recipe needs."""

    task: LearnTask
    around: Surroundings
    model: nn.Module
    """On the CPU, starting weights loaded."""
    record: ModelRecord
    """Of the model to be."""
    train: SplitTiles
    val: SplitTiles
    criterion: Objective
    priors: torch.Tensor
    """Share of each class in the train split (of its tiles, or of its labelled pixels), float64 (K,)."""

    @property
    def preprocessing(self) -> Preprocessing:
        """From physical units to what the model sees."""
        return self.record.preprocessing


@dataclass(frozen=True, slots=True)
class Learnt:
    """What a recipe gives."""

    state: Tensors
    """The best weights by the validation loss (EMA where it is on); the last ones without a validation split."""
    epochs: int
    best_epoch: int
    """Zero-based."""
    seconds: float
    resumed_from: int | None
    """Optimiser step (`probe`: number of feature blocks) that this attempt began with."""
    val_loss: float | None
