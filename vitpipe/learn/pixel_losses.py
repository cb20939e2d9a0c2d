"""What is minimised where every pixel has a label of its own, and what is watched: labelled pixels alone count.

A step's loss is the mean over the labelled pixels of the global batch, all processes together: a batch with few of them
does not weigh more, and one without any has no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from vitpipe.errors import ConfigError
from vitpipe.learn.losses import StepLoss
from vitpipe.learn.place import Place
from vitpipe.pixel_targets import IGNORE
from vitpipe.records import Task

if TYPE_CHECKING:
    from vitpipe.config import TrainRecipe

_DICE_SMOOTHING = 1.0
"""Pixels added to both sides of Dice's quotient: a class of a few pixels does not swing the loss."""
_CLASS_LOSSES, _VALUE_LOSSES = ("cross_entropy", "dice_cross_entropy"), ("huber", "mse")


@dataclass(frozen=True, slots=True)
class ClassCriterion:
    """Cross-entropy of each labelled pixel with logit adjustment; on request with soft Dice of the classes beside."""

    label_smoothing: float
    adjustment: torch.Tensor
    """tau * log(share of the pixels), (K,): added to the logits in the cross-entropy alone (Menon et al. 2021)."""
    dice: bool

    @property
    def score_name(self) -> str:
        """Name the field of `Progress`."""
        return "val_mean_iou"

    @property
    def val_length(self) -> int:
        """Length of :meth:`val_sums`."""
        return 2 + len(self.adjustment) * (3 + len(self.adjustment))

    def step(self, logits: torch.Tensor, targets: torch.Tensor, tiles: int, place: Place) -> StepLoss:  # noqa: ARG002
        """Give the loss of a step.

        Args:
            logits: (N, K, *size).
            targets: uint8 (N, *size) with `IGNORE`.
            tiles: of the global batch; not used, pixels count.
            place: adds up over the processes.
        """
        labelled = targets != IGNORE
        count = labelled.sum()
        total = place.total(count.double()).clamp(min=1.0)
        summed = self._cross_entropy(logits, targets, self.label_smoothing)
        loss, said = summed / total.to(summed.dtype), summed.detach()
        if self.dice:
            inside, sizes, truth = _overlaps(logits, targets)
            # The value is that of the global batch, the gradient that of this process' part of its sums.
            inside = inside + (place.total(inside.detach().clone()) - inside.detach())
            sizes = sizes + (place.total(sizes.detach().clone()) - sizes.detach())
            dice = _dice_loss(inside, sizes, place.total(truth))
            loss, said = loss + dice, said + dice.detach() * count
        return StepLoss(loss * place.processes, said, count)

    def val_sums(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Give float64 sums that add up over batches and processes; :meth:`val_result` reads them."""
        classes = logits.shape[1]
        labelled = targets != IGNORE
        loss = self._cross_entropy(logits, targets, 0.0)
        pairs = targets[labelled].long() * classes + logits.argmax(1)[labelled]
        confusion = torch.bincount(pairs, minlength=classes * classes)
        overlaps = _overlaps(logits, targets) if self.dice else (logits.new_zeros(classes),) * 3
        parts = [loss[None], labelled.sum()[None], *overlaps, confusion]
        return torch.cat([part.double() for part in parts])

    def val_result(self, sums: torch.Tensor) -> tuple[float | None, float | None]:
        """Give the loss (mean over labelled pixels) and the mean intersection over union of the classes that occur."""
        classes = len(self.adjustment)
        loss, count, *_ = sums.tolist()
        if not count:
            return None, None
        inside, sizes, truth = sums[2 : 2 + 3 * classes].reshape(3, classes)
        confusion = sums[2 + 3 * classes :].reshape(classes, classes)
        hits = confusion.diagonal()
        union = confusion.sum(0) + confusion.sum(1) - hits
        mean_iou = float((hits[union > 0] / union[union > 0]).mean())
        extra = float(_dice_loss(inside, sizes, truth)) if self.dice else 0.0
        return loss / count + extra, mean_iou

    def _cross_entropy(self, logits: torch.Tensor, targets: torch.Tensor, smoothing: float) -> torch.Tensor:
        adjusted = logits.float() + self.adjustment.view(-1, *(1 for _ in logits.shape[2:]))
        return functional.cross_entropy(
            adjusted, targets.long(), ignore_index=IGNORE, label_smoothing=smoothing, reduction="sum"
        )


def _overlaps(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Give (K,) each, over labelled pixels: probability on the true class, probability and truth, truth."""
    classes = logits.shape[1]
    labelled = targets != IGNORE
    axes = (0, *range(2, logits.ndim))
    shares = logits.float().softmax(1) * labelled[:, None]
    places = torch.where(labelled, targets, 0).long()
    truth = functional.one_hot(places, classes).movedim(-1, 1) * labelled[:, None]
    count = truth.sum(axes).to(shares.dtype)
    return (shares * truth).sum(axes), shares.sum(axes) + count, count


def _dice_loss(inside: torch.Tensor, sizes: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Give 1 - mean of the soft Dice of the classes that occur (Milletari et al. 2016, without the squares)."""
    present = (truth > 0).to(inside.dtype)
    dice = (2.0 * inside + _DICE_SMOOTHING) / (sizes + _DICE_SMOOTHING)
    count = present.sum()
    return ((1.0 - dice) * present).sum() / count.clamp(min=1.0)


@dataclass(frozen=True, slots=True)
class ValueCriterion:
    """Huber's loss (delta: one deviation) or squared error of standardised values, over pixels that have one."""

    mean: float
    """Of the train split's labelled pixels, in the label's units."""
    std: float
    squared: bool

    @property
    def score_name(self) -> str:
        """Name the field of `Progress`."""
        return "val_r2"

    @property
    def val_length(self) -> int:
        """Length of :meth:`val_sums`."""
        return 5

    def step(self, logits: torch.Tensor, targets: torch.Tensor, tiles: int, place: Place) -> StepLoss:  # noqa: ARG002
        """Give the loss of a step.

        Args:
            logits: (N, 1, *size), standardised.
            targets: float32 (N, *size) in the label's units, NaN where there is none.
            tiles: of the global batch; not used, pixels count.
            place: adds up over the processes.
        """
        labelled, truth = self._standardised(targets)
        count = labelled.sum()
        total = place.total(count.double()).clamp(min=1.0)
        summed = self._losses(logits, truth, labelled).sum()
        return StepLoss(summed * place.processes / total.to(summed.dtype), summed.detach(), count)

    def val_sums(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Give float64 (5,): loss, pixels, sum and sum of squares of the truth, sum of squared errors."""
        labelled, truth = self._standardised(targets)
        loss = self._losses(logits, truth, labelled).double().sum()
        exact = truth.double()
        errors = torch.where(labelled, logits[:, 0].double() - exact, 0.0)
        return torch.stack([loss, labelled.sum().double(), exact.sum(), exact.square().sum(), errors.square().sum()])

    def val_result(self, sums: torch.Tensor) -> tuple[float | None, float | None]:
        """Give the loss (mean over labelled pixels) and R2; no R2 where all values are alike."""
        loss, count, total, squares, errors = sums.tolist()
        if not count:
            return None, None
        spread = squares - total * total / count
        return loss / count, 1.0 - errors / spread if spread > 0 else None

    def _standardised(self, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        labelled = torch.isfinite(targets)
        return labelled, torch.where(labelled, (targets - self.mean) / self.std, 0.0)

    def _losses(self, logits: torch.Tensor, truth: torch.Tensor, labelled: torch.Tensor) -> torch.Tensor:
        said = logits[:, 0].float()
        each = functional.mse_loss if self.squared else functional.huber_loss
        return torch.where(labelled, each(said, truth, reduction="none"), 0.0)


def loss_of(recipe: TrainRecipe, task: Task) -> str:
    """Give the name of the loss: the one that is asked for, or the first of the task.

    Raises:
        ConfigError: the loss is one of another task.
    """
    known = {Task.SEGMENTATION: _CLASS_LOSSES, Task.REGRESSION: _VALUE_LOSSES}.get(task, ())
    if recipe.loss is not None and recipe.loss not in known:
        can = f"set it to {' or '.join(f'`{name}`' for name in known)}, or remove it" if known else "remove it"
        raise ConfigError(f"train.loss is `{recipe.loss}`, but the labels ask for a {task}: {can}")
    return recipe.loss or (known[0] if known else "cross_entropy")
