"""What the labelled pixels of the train split hold: shares of classes, or mean and deviation of values."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from vitpipe.errors import DataError
from vitpipe.learn.loader import SplitTiles
from vitpipe.pixel_targets import IGNORE
from vitpipe.records import Task

_BLOCK_PIXELS = 4 << 20
"""Of one block. Fixed: the order of the sums is part of the result."""


@dataclass(frozen=True, slots=True)
class PixelStatistics:
    """Of the labelled pixels; pixels that are not labelled do not count."""

    counts: NDArray[np.int64]
    """Per class; of values the one number of all."""
    mean: float = 0.0
    """Of values, in their units."""
    std: float = 1.0
    """Of values; 1 where they are all alike."""

    def priors(self) -> torch.Tensor:
        """Give the share of each class, float64 (K,), half a pixel added to each: none is zero."""
        counts = torch.from_numpy(self.counts).double() + 0.5
        return counts / counts.sum()


def measure_targets(train: SplitTiles, task: Task, classes: int) -> PixelStatistics:
    """Measure in one pass over blocks of fixed size: the same tiles give the same bits.

    Args:
        train: the train split.
        task: segmentation or regression.
        classes: how many.

    Raises:
        DataError: no pixel of the train split has a label, or one is not among the classes.
    """
    counts = np.zeros(classes if task is Task.SEGMENTATION else 1, np.int64)
    mean = squares = 0.0
    block = max(1, _BLOCK_PIXELS // math.prod(train.tile_shape[1:]))
    for start in range(0, len(train), block):
        found = train.targets_at(np.arange(start, min(len(train), start + block)), None).numpy()
        if task is Task.SEGMENTATION:
            each = np.bincount(found[found != IGNORE], minlength=classes)
            if len(each) > classes:
                raise DataError(
                    f"the targets of the train split hold the class {len(each) - 1}, but there are {classes} classes; "
                    "prepare the run again"
                )
            counts += each
            continue
        values = found[np.isfinite(found)].astype(np.float64)
        if not len(values):
            continue
        # Merged as by Chan, Golub and LeVeque 1979.
        centre, before = float(values.mean()), int(counts[0])
        delta, total = centre - mean, before + len(values)
        squares += float(np.square(values - centre).sum()) + delta * delta * before * len(values) / total
        mean += delta * len(values) / total
        counts[0] = total
    if not counts.sum():
        raise DataError("no pixel of the train split has a label; label more of its tiles")
    if task is Task.SEGMENTATION:
        return PixelStatistics(counts)
    std = math.sqrt(squares / int(counts[0]))
    return PixelStatistics(counts, mean, std if std > 0 else 1.0)
