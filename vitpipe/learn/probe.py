"""The recipe `probe`: the backbone is frozen, its features are computed once, a logistic head is fitted on them.

The head is one linear layer, standardisation folded in, so the result is a model like any other.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vitpipe.atomic import sweep_partials, write_file
from vitpipe.errors import TrainingFailed
from vitpipe.learn.architecture import ProbeModel
from vitpipe.learn.lesson import Learnt, Lesson, Stopped
from vitpipe.learn.loader import SplitTiles
from vitpipe.learn.logistic import fit_logistic
from vitpipe.learn.losses import balanced_accuracy, confusion_sums
from vitpipe.learn.model import LoadedModel, forward_fixed
from vitpipe.learn.progress import EPOCH, STEP, STOPPED, Progress

INVERSE_STRENGTHS = tuple(float(value) for value in np.logspace(-5, 3, 17))
"""C of the logistic regression; chosen on the validation split."""
_BLOCK_BATCHES = 8
_FIXED_C = 1.0


class _Features(nn.Module):
    def __init__(self, model: ProbeModel) -> None:
        super().__init__()
        self._model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Give the features (N, F)."""
        return self._model.features(images)


def fit_probe(lesson: Lesson) -> Learnt:
    """Fit the head.

    Args:
        lesson: its model is a :class:`ProbeModel`; `train.epochs`, rates and augmentation do not apply to it.

    Raises:
        Stopped: SIGTERM; the features of finished blocks are on disk.
        TrainingFailed: the features are not finite.
    """
    started = time.monotonic()
    model, priors = lesson.model, lesson.priors
    if not isinstance(model, ProbeModel):
        raise TypeError("fit_probe takes a ProbeModel")
    folder = lesson.around.folder.checkpoint / f"features-{lesson.task.identity()}"
    sweep_partials(folder)
    resumed = sum(1 for _ in folder.glob("*.npy")) or None
    loaded = LoadedModel(model, lesson.record, lesson.around.place.device)
    for name, tiles in (("train", lesson.train), ("val", lesson.val)):
        _embed(lesson, loaded, tiles, folder / name)
    lesson.around.place.wait()
    if not lesson.around.place.leads:
        return Learnt({}, 1, 0, time.monotonic() - started, resumed, None)
    train, val = (_read_features(folder / name, model.head.in_features) for name in ("train", "val"))
    if not np.isfinite(train).all():
        raise TrainingFailed(
            "the features of the frozen backbone are not finite; set preprocess.clip, or other weights"
        )
    mean, std = train.mean(axis=0, dtype=np.float64), train.std(axis=0, dtype=np.float64)
    std = np.where(std > 0, std, 1.0)
    train_targets, val_targets = lesson.train.targets.numpy(), lesson.val.targets
    best: tuple[float, float, NDArray[np.float64], NDArray[np.float64]] | None = None
    strengths = INVERSE_STRENGTHS if len(val) else (_FIXED_C,)
    for number, strength in enumerate(strengths):
        _stop_if_asked(lesson)
        weight, bias = fit_logistic((train - mean) / std, train_targets, len(priors), strength)
        loss = _report(lesson, number, len(strengths), ((val - mean) / std) @ weight.T + bias, val_targets)
        if best is None or loss < best[0]:
            best = loss, strength, weight, bias
    assert best is not None
    loss, strength, weight, bias = best
    lesson.around.progress.note(f"probe: C {strength:g} chosen among {len(strengths)}, validation loss {loss:.4f}")
    # Menon et al. 2021, section 4.1: the adjustment after the fit.
    bias = bias - lesson.task.train.logit_adjustment * priors.log().numpy()
    with torch.no_grad():
        model.head.weight.copy_(torch.from_numpy(weight / std))
        model.head.bias.copy_(torch.from_numpy(bias - (weight / std) @ mean))
    return Learnt(model.state_dict(), 1, 0, time.monotonic() - started, resumed, loss if len(val) else None)


def _blocks(tiles: SplitTiles, size: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
    for start in range(0, len(tiles), size):
        yield start, np.arange(start, min(len(tiles), start + size))


def _embed(lesson: Lesson, loaded: LoadedModel, tiles: SplitTiles, prefix: Path) -> None:
    """Write the features of a split block by block; blocks are shared out among the processes, finished ones kept."""
    features = _Features(lesson.model).eval()  # type: ignore[arg-type]
    size = _BLOCK_BATCHES * loaded.record.batch_size
    for number, (start, places) in enumerate(_blocks(tiles, size)):
        path = prefix.with_name(f"{prefix.name}-{start:012d}.npy")
        if number % lesson.around.place.processes != lesson.around.place.rank or path.exists():
            continue
        _stop_if_asked(lesson)
        values = forward_fixed(features, loaded, *tiles.read(places))
        with write_file(path) as partial, partial.open("wb") as stream:
            np.save(stream, values)
        message = f"features of the {prefix.name} split"
        lesson.around.progress.write(Progress(STEP, step=int(places[-1]) + 1, steps=len(tiles), message=message))


def _read_features(prefix: Path, width: int) -> NDArray[np.float32]:
    blocks = [np.load(path, allow_pickle=False) for path in sorted(prefix.parent.glob(f"{prefix.name}-*.npy"))]
    return np.concatenate(blocks) if blocks else np.empty((0, width), np.float32)


def _stop_if_asked(lesson: Lesson) -> None:
    if lesson.around.stop.is_set():
        lesson.around.progress.write(Progress(STOPPED, message="stopped by SIGTERM; finished features are kept"))
        raise Stopped


def _report(lesson: Lesson, number: int, total: int, logits: NDArray[np.float64], targets: torch.Tensor) -> float:
    """Say how one C does on the validation split; gives its loss."""
    if not len(targets):
        return 0.0
    multi_label = lesson.record.multi_label
    scores = torch.from_numpy(logits)
    # The plain loss: the adjustment is added after the fit.
    loss = (
        nn.functional.binary_cross_entropy_with_logits(scores, targets.double())
        if multi_label
        else nn.functional.cross_entropy(scores, targets)
    )
    accuracy = balanced_accuracy(confusion_sums(scores, targets, multi_label=multi_label), multi_label=multi_label)
    lesson.around.progress.write(
        Progress(
            EPOCH, epoch=number, epochs=total, step=number + 1, steps=total, val_loss=float(loss),
            val_balanced_accuracy=accuracy,
        )
    )  # fmt: skip
    return float(loss)
