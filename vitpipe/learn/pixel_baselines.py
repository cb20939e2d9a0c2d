"""Trivial baselines of pixels: a model that does not beat them has learnt nothing about pictures.

Of classes: `majority` says the shares of the train split for every pixel, `pixels` is a logistic regression on the
channels of the one pixel. Of values: `mean`, and `ridge` on the channels.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from vitpipe.learn.lesson import Lesson
from vitpipe.learn.loader import SplitTiles
from vitpipe.learn.pixel_tables import PixelLogits
from vitpipe.learn.preprocessing import Preprocessing
from vitpipe.pixel_targets import IGNORE
from vitpipe.records import Task

MAJORITY, PIXELS, MEAN, RIDGE = "majority", "pixels", "mean", "ridge"
_PIXELS = 50_000
"""Of the train split that are fitted on, and at most as many of the val split to choose by."""
_PIXELS_PER_TILE = 256
_BLOCK_BYTES = 32 << 20
_STRENGTHS = (1e-2, 1.0, 1e2)
"""sklearn's C."""
_SHRINKAGES = (1e-4, 1e-2, 1.0)
"""Of the ridge, as a share of the number of pixels."""


def pixel_baselines(lesson: Lesson) -> dict[str, PixelLogits]:
    """Fit both baselines of a task of pixels on a sample of the train split's labelled pixels.

    Returns:
        Name to what gives logits (N, K, *size), or values (N, 1, *size) in the label's units. The same input gives the
        same bits.
    """
    record, seed = lesson.record, lesson.task.train.seed
    train = _sample(lesson.train, record.preprocessing, record.task, seed)
    val = _sample(lesson.val, record.preprocessing, record.task, seed)
    if record.task is Task.REGRESSION:
        mean = float(str(record.target["mean"]))
        return {
            MEAN: _Constant(np.array([mean], np.float32)),
            RIDGE: _Linear(record.preprocessing, *_ridge(train, val)),
        }
    shares = _Constant(lesson.priors.log().numpy().astype(np.float32))
    return {MAJORITY: shares, PIXELS: _Linear(record.preprocessing, *_logistic(train, val, len(record.classes)))}


class _Constant:
    def __init__(self, values: NDArray[np.float32]) -> None:
        self._values = values

    def __call__(self, tiles: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        each = self._values.reshape(1, -1, *(1 for _ in valid.shape[1:]))
        return np.broadcast_to(each, (len(tiles), len(self._values), *valid.shape[1:]))


class _Linear:
    def __init__(self, preprocessing: Preprocessing, weight: NDArray[np.float64], bias: NDArray[np.float64]) -> None:
        self._preprocessing = preprocessing
        self._weight, self._bias = weight.astype(np.float32), bias.astype(np.float32)

    def __call__(self, tiles: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        images = self._preprocessing.normalise(tiles, valid)[0].numpy()
        flat = images.reshape(*images.shape[:2], -1)
        # One thread: the last bits do not depend on the number of cores.
        with threadpool_limits(limits=1):
            found: NDArray[np.float32] = np.matmul(self._weight, flat) + self._bias[:, None]
        return found.reshape(len(tiles), len(self._bias), *images.shape[2:])


_Sample = tuple[NDArray[np.float64], NDArray[np.float64]]


def _sample(tiles: SplitTiles, preprocessing: Preprocessing, task: Task, seed: int) -> _Sample:
    """Draw labelled pixels, the same number of each tile where it has as many: features (P, C) and targets (P,)."""
    generator = np.random.default_rng([seed, len(tiles)])
    places = np.arange(len(tiles))
    if len(places) > _PIXELS:
        places = np.sort(generator.choice(places, _PIXELS, replace=False))
    pixels = math.prod(tiles.tile_shape[1:])
    wanted = min(pixels, _PIXELS_PER_TILE, max(1, _PIXELS // max(1, len(places))))
    block = max(1, _BLOCK_BYTES // (8 * math.prod(tiles.tile_shape)))
    features, targets = [np.empty((0, tiles.tile_shape[0]))], [np.empty(0)]
    for start in range(0, len(places), block):
        part = places[start : start + block]
        values, valid = tiles.read(part)
        truth = tiles.targets_at(part, valid).numpy().reshape(len(part), -1)
        labelled = truth != IGNORE if task is Task.SEGMENTATION else np.isfinite(truth)
        draw = np.where(labelled, generator.random(labelled.shape), 2.0)
        chosen = np.argpartition(draw, wanted - 1, axis=1)[:, :wanted]
        tile, place = np.nonzero(np.take_along_axis(labelled, chosen, 1))
        where = chosen[tile, place]
        images = preprocessing.normalise(values, valid)[0].numpy().reshape(len(part), tiles.tile_shape[0], -1)
        features.append(images[tile, :, where].astype(np.float64))
        targets.append(truth[tile, where].astype(np.float64))
    return np.concatenate(features), np.concatenate(targets)


def _logistic(train: _Sample, val: _Sample, classes: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    # scikit-learn takes a second to import.
    from vitpipe.learn.logistic import fit_logistic

    features, targets = train
    strengths = _STRENGTHS if len(val[1]) else _STRENGTHS[1:2]
    fits = [fit_logistic(features, targets.astype(np.int64), classes, strength) for strength in strengths]

    def loss(fit: tuple[NDArray[np.float64], NDArray[np.float64]]) -> float:
        scores = val[0] @ fit[0].T + fit[1]
        scores -= scores.max(1, keepdims=True)
        true = scores[np.arange(len(scores)), val[1].astype(np.int64)]
        return float((np.log(np.exp(scores).sum(1)) - true).sum())

    return min(fits, key=loss)


def _ridge(train: _Sample, val: _Sample) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    features, targets = train
    centre, mean = features.mean(0), targets.mean()
    plain = features - centre
    with threadpool_limits(limits=1):
        gram, moments = plain.T @ plain, plain.T @ (targets - mean)
        fits = [
            np.linalg.solve(gram + share * len(plain) * np.eye(len(gram)), moments)
            for share in (_SHRINKAGES if len(val[1]) else _SHRINKAGES[:1])
        ]
        errors = [float(np.square((val[0] - centre) @ weight + mean - val[1]).sum()) for weight in fits]
    weight = fits[int(np.argmin(errors))]
    return weight[None], np.array([mean - float(centre @ weight)])
