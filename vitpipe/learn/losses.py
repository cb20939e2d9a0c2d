"""What is minimised, and what is watched on the validation split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional

from vitpipe.errors import ConfigError
from vitpipe.learn.place import Place


@dataclass(frozen=True, slots=True)
class StepLoss:
    """The loss of one process' part of a step."""

    loss: torch.Tensor
    """To be differentiated. DDP averages gradients over processes: this one's average is that of the mean over the
    global batch, whatever the parts."""
    summed: torch.Tensor
    """Without a gradient: summed over this process' part."""
    count: int | torch.Tensor
    """What it is summed over: tiles, or labelled pixels."""


class Objective(Protocol):
    """What is minimised and watched."""

    @property
    def score_name(self) -> str:
        """Name the field of `Progress` that holds the score of the validation split."""
        ...

    def step(self, logits: torch.Tensor, targets: torch.Tensor, tiles: int, place: Place) -> StepLoss:
        """Give the loss of a step; `tiles` is the size of the global batch."""
        ...

    @property
    def val_length(self) -> int:
        """Length of :meth:`val_sums`."""
        ...

    def val_sums(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Give float64 sums of a batch, which add up over batches and processes."""
        ...

    def val_result(self, sums: torch.Tensor) -> tuple[float | None, float | None]:
        """Give loss and score of the sums; None where there is nothing to judge by."""
        ...


@dataclass(frozen=True, slots=True)
class Criterion:
    """Cross-entropy with logit adjustment, or binary cross-entropy for several labels a tile."""

    multi_label: bool
    label_smoothing: float
    adjustment: torch.Tensor
    """tau * log(prior), (K,): added to the logits in the loss alone (Menon et al. 2021, arXiv 2007.07314, eq. 10)."""

    @property
    def score_name(self) -> str:
        """Name the field of `Progress`."""
        return "val_balanced_accuracy"

    def step(self, logits: torch.Tensor, targets: torch.Tensor, tiles: int, place: Place) -> StepLoss:
        """Give the loss of a step: the mean over the tiles of the global batch."""
        loss = self.sums(logits, targets, smooth=True)
        return StepLoss(loss * (place.processes / tiles), loss.detach(), len(targets))

    @property
    def val_length(self) -> int:
        """Length of :meth:`val_sums`."""
        return 2 + 4 * len(self.adjustment)

    def val_sums(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Give float64 (2 + 4 K,): loss, tiles and :func:`confusion_sums`."""
        loss = self.sums(logits, targets, smooth=False).double()
        count = torch.full_like(loss, len(targets))
        confusion = confusion_sums(logits, targets, multi_label=self.multi_label)
        return torch.cat([torch.stack([loss, count]), confusion.flatten()])

    def val_result(self, sums: torch.Tensor) -> tuple[float | None, float | None]:
        """Give the mean loss and the balanced accuracy."""
        accuracy = balanced_accuracy(sums[2:].reshape(4, -1), multi_label=self.multi_label)
        return float(sums[0]) / float(sums[1]), accuracy

    def sums(self, logits: torch.Tensor, targets: torch.Tensor, *, smooth: bool) -> torch.Tensor:
        """Give the loss summed over the tiles; classes of a multi-label tile are averaged.

        Args:
            logits: (N, K).
            targets: int64 (N,), or float32 (N, K).
            smooth: with label smoothing (training), or without (validation).
        """
        smoothing = self.label_smoothing if smooth else 0.0
        logits = logits.float()
        if self.multi_label:
            soft = targets * (1.0 - smoothing) + 0.5 * smoothing
            return functional.binary_cross_entropy_with_logits(logits, soft, reduction="none").mean(1).sum()
        return functional.cross_entropy(logits + self.adjustment, targets, label_smoothing=smoothing, reduction="sum")


def class_priors(targets: torch.Tensor, classes: int, *, multi_label: bool) -> torch.Tensor:
    """Give the share of each class among train tiles, float64 (K,), half a tile added to each: none is zero."""
    if multi_label:
        return (targets.double().sum(0) + 0.5) / (len(targets) + 1.0)
    counts = torch.bincount(targets, minlength=classes).double() + 0.5
    return counts / counts.sum()


def make_criterion(
    priors: torch.Tensor, *, multi_label: bool, label_smoothing: float, logit_adjustment: float
) -> Criterion:
    """Make the criterion of a run.

    Raises:
        ConfigError: logit adjustment is asked for labels that do not exclude each other.
    """
    if multi_label and logit_adjustment > 0:
        raise ConfigError("train.logit_adjustment is for one class a tile; set it to 0 for multi-label classes")
    return Criterion(multi_label, label_smoothing, (logit_adjustment * priors.log()).float())


def confusion_sums(logits: torch.Tensor, targets: torch.Tensor, *, multi_label: bool) -> torch.Tensor:
    """Give float64 (4, K): per class the true positives, positives, true negatives, negatives at the plain threshold.

    Sums of batches and ranks add up to those of the split.
    """
    classes = logits.shape[1]
    if multi_label:
        truth, said = targets > 0.5, logits > 0
    else:
        truth = functional.one_hot(targets, classes).bool()
        said = functional.one_hot(logits.argmax(1), classes).bool()
    parts = (truth & said, truth, ~truth & ~said, ~truth)
    return torch.stack([part.sum(0).double() for part in parts])


def balanced_accuracy(sums: torch.Tensor, *, multi_label: bool) -> float:
    """Give the mean recall of the classes that occur; for multi-label the mean of recall and specificity."""
    recall = sums[0][sums[1] > 0] / sums[1][sums[1] > 0]
    if not multi_label:
        return float(recall.mean())
    specificity = sums[2][sums[3] > 0] / sums[3][sums[3] > 0]
    return float(torch.cat([recall, specificity]).mean())
