"""From logits to probabilities, prediction sets and abstentions: fitted on the calibration split alone.

The record is saved with the model; evaluation, registry and predictor all go through it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, softmax

from vitpipe.atomic import write_json
from vitpipe.errors import ContractError
from vitpipe.evaluate.metrics import nll_of
from vitpipe.evaluate.statistics import Floats
from vitpipe.records import Json

CALIBRATION_FILE = "calibration.json"
MIN_TEMPERATURE_GROUPS = 10
"""Five in each half of the cross-fit: fewer agree by chance."""
MIN_THRESHOLD_GROUPS = 5
_AT_BOUND = 0.1
"""Of the logarithm: a bounded search that runs into its end stops this close to it."""
_LOG_BOUNDS = (math.log(0.05), math.log(20.0))


@dataclass(frozen=True, slots=True)
class Calibration:
    """How the logits of one model are read."""

    classes: tuple[str, ...]
    multi_label: bool
    temperature: float
    log_prior: tuple[float, ...]
    """Added to the logits after the temperature, ``log(pi_target / pi_train)``; zeros: the priors of training hold."""
    alpha: float
    """Error rate of the prediction sets."""
    qhat: float | None
    """Largest score ``1 - p`` of a class in the set; None: none, every class is in the set (multi-label: no set)."""
    thresholds: tuple[float, ...] | None
    """Multi-label: probability from which a class counts as present; None for single-label models."""
    n_groups: int
    """Groups of the calibration split."""
    notes: tuple[str, ...] = ()
    """Sentences: what was fitted, and what was not and why."""

    @classmethod
    def plain(cls, classes: tuple[str, ...], alpha: float, *notes: str) -> Calibration:
        """Read logits as they are: no temperature, no prediction sets."""
        return cls(
            classes=classes,
            multi_label=False,
            temperature=1.0,
            log_prior=(0.0,) * len(classes),
            alpha=alpha,
            qhat=None,
            thresholds=None,
            n_groups=0,
            notes=notes,
        )

    def probabilities(self, logits: NDArray[np.floating]) -> Floats:
        """Turn logits (N, K) into probabilities (N, K): softmax, or a sigmoid a class."""
        self._check_width(logits)
        # Row by row in memory, whatever came in: the columns of a table are summed in another order, to another last
        # bit, and the registered model must give the numbers of its evaluation.
        scaled = np.asarray(logits, dtype=np.float64, order="C") / self.temperature + np.asarray(self.log_prior)
        return np.asarray(expit(scaled) if self.multi_label else softmax(scaled, axis=1), dtype=np.float64)

    def decide(self, probabilities: Floats) -> NDArray[np.bool_]:
        """Decide on classes (N, K): the most probable one, or every one at its threshold and above."""
        if self.thresholds is not None:
            return np.asarray(probabilities >= np.asarray(self.thresholds))
        decided = np.zeros(probabilities.shape, dtype=bool)
        if len(probabilities):
            decided[np.arange(len(probabilities)), probabilities.argmax(axis=1)] = True
        return decided

    def prediction_sets(self, probabilities: Floats) -> NDArray[np.bool_]:
        """Give the conformal set (N, K) of each row: ``1 - p_k <= qhat`` (LAC; Sadinle, Lei & Wasserman 2019).

        A set holds the label of a tile of a new group with probability `1 - alpha` at least. Multi-label: no sets (all
        False).
        """
        self._check_width(probabilities)
        if self.multi_label:
            return np.zeros(probabilities.shape, dtype=bool)
        if self.qhat is None:
            return np.ones(probabilities.shape, dtype=bool)
        return np.asarray(1.0 - probabilities <= self.qhat)

    def abstain(self, probabilities: Floats) -> NDArray[np.bool_]:
        """Say for which rows (N,) the model should not be trusted alone: the set is not exactly one class."""
        if self.multi_label:
            return np.zeros(len(probabilities), dtype=bool)
        return np.asarray(self.prediction_sets(probabilities).sum(axis=1) != 1)

    def _check_width(self, values: NDArray[np.floating]) -> None:
        if values.ndim != 2 or values.shape[1] != len(self.classes):
            raise ContractError(
                f"the calibration is for {len(self.classes)} classes ({', '.join(self.classes)}), "
                f"but the model gave an array of shape {values.shape}; calibrate the model that is used"
            )

    def to_json(self) -> dict[str, Json]:
        """Give a JSON form that :meth:`from_json` reads back exactly."""
        return {
            "classes": list(self.classes),
            "multi_label": self.multi_label,
            "temperature": self.temperature,
            "log_prior": list(self.log_prior),
            "conformal": {"score": "LAC", "alpha": self.alpha, "qhat": self.qhat},
            "abstain": "conformal set size is not 1",
            "thresholds": None if self.thresholds is None else list(self.thresholds),
            "n_groups": self.n_groups,
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, value: dict[str, Json]) -> Calibration:
        """Read what :meth:`to_json` gave.

        Raises:
            ContractError: a field is missing or of another kind.
        """
        try:
            return cls._from_mapping(value)
        except (KeyError, TypeError) as error:
            raise ContractError(f"not a calibration record ({error!r}); evaluate the run again") from error

    @classmethod
    def _from_mapping(cls, value: dict[str, Json]) -> Calibration:
        conformal, thresholds = value["conformal"], value["thresholds"]
        return cls(
            classes=tuple(value["classes"]),  # type: ignore[arg-type]
            multi_label=bool(value["multi_label"]),
            temperature=float(value["temperature"]),  # type: ignore[arg-type]
            log_prior=tuple(value["log_prior"]),  # type: ignore[arg-type]
            alpha=conformal["alpha"],  # type: ignore[index,call-overload,arg-type]
            qhat=conformal["qhat"],  # type: ignore[index,call-overload,arg-type]
            thresholds=None if thresholds is None else tuple(thresholds),  # type: ignore[arg-type]
            n_groups=int(value["n_groups"]),  # type: ignore[arg-type]
            notes=tuple(value["notes"]),  # type: ignore[arg-type]
        )

    def save(self, folder: Path) -> None:
        """Write ``calibration.json`` into the model's folder, whole or not at all."""
        write_json(folder / CALIBRATION_FILE, self.to_json())


def load_calibration(folder: Path) -> Calibration:
    """Read a model's calibration.

    Raises:
        ContractError: it is missing or broken.
    """
    path = folder / CALIBRATION_FILE
    if not path.is_file():
        raise ContractError(f"no {CALIBRATION_FILE} in {folder}; evaluate the run first (`vitpipe evaluate`)")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ContractError(f"{path} is not JSON ({error}); evaluate the run again") from error
    return Calibration.from_json(value)


@dataclass(frozen=True, slots=True)
class CalibrationTiles:
    """The calibration split."""

    logits: Floats
    """(tiles, classes)."""
    truth: NDArray[np.bool_]
    """(tiles, classes)."""
    groups: NDArray[np.intp]
    """(tiles,): number of the group, by first appearance."""
    classes: tuple[str, ...]
    multi_label: bool

    @property
    def n_groups(self) -> int:
        """Groups that have a tile."""
        return int(np.unique(self.groups).size)


def fit_calibration(
    tiles: CalibrationTiles, *, alpha: float, seed: int, log_prior: Sequence[float] | None = None
) -> Calibration:
    """Fit temperature, prediction sets and, for multi-label models, thresholds.

    Args:
        tiles: the calibration split, which the model has not seen.
        alpha: error rate of the prediction sets.
        seed: draws the two halves of the cross-fit.
        log_prior: ``log(pi_target / pi_train)`` a class, where the model was trained for other priors.
    """
    prior = tuple(log_prior) if log_prior is not None else (0.0,) * len(tiles.classes)
    temperature, notes = fit_temperature(tiles, np.asarray(prior), seed)
    scaled = tiles.logits / temperature + np.asarray(prior)
    probabilities = np.asarray(expit(scaled) if tiles.multi_label else softmax(scaled, axis=1))
    qhat: float | None = None
    thresholds: tuple[float, ...] | None = None
    if tiles.multi_label:
        thresholds, said = fit_thresholds(probabilities, tiles)
        notes += [*said, "multi-label: prediction sets are not defined, no tile is abstained from"]
    else:
        qhat, said = _fit_sets(probabilities, tiles, alpha)
        notes += said
    return Calibration(
        tiles.classes, tiles.multi_label, temperature, prior, alpha, qhat, thresholds, tiles.n_groups, tuple(notes)
    )


def _nll_at(temperature: float, tiles: CalibrationTiles, prior: Floats, rows: NDArray[np.bool_]) -> float:
    scaled = tiles.logits[rows] / temperature + prior
    probabilities = np.asarray(expit(scaled) if tiles.multi_label else softmax(scaled, axis=1))
    return float(nll_of(tiles.truth[rows], probabilities, multi_label=tiles.multi_label).mean())


def best_temperature(tiles: CalibrationTiles, prior: Floats, rows: NDArray[np.bool_]) -> float:
    """``argmin_T mean NLL(logits / T)`` on some rows (Guo et al. 2017), sought on log T between 0.05 and 20."""
    found = minimize_scalar(
        lambda log_t: _nll_at(math.exp(log_t), tiles, prior, rows),
        bounds=_LOG_BOUNDS,
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(math.exp(found.x))


def fit_temperature(tiles: CalibrationTiles, prior: Floats, seed: int) -> tuple[float, list[str]]:
    """Fit a temperature, and keep it only if it lowers the NLL of the half of the groups that it was not fitted on.

    Returns:
        The temperature (1.0: none), and sentences.
    """
    present = np.unique(tiles.groups)
    if present.size < MIN_TEMPERATURE_GROUPS:
        return 1.0, [
            f"temperature not fitted: the calibration split has {present.size} groups, "
            f"{MIN_TEMPERATURE_GROUPS} are needed"
        ]
    first = np.random.default_rng(seed).permutation(present)[: present.size // 2]
    half = np.isin(tiles.groups, first)
    before, after = 0.0, 0.0
    for rows in (half, ~half):
        temperature = best_temperature(tiles, prior, ~rows)
        before += _nll_at(1.0, tiles, prior, rows) * float(rows.mean())
        after += _nll_at(temperature, tiles, prior, rows) * float(rows.mean())
    if not after < before:
        return 1.0, [
            f"temperature not used: held-out halves of the calibration groups had NLL {after:.3f} with it, "
            f"{before:.3f} without"
        ]
    temperature = best_temperature(tiles, prior, np.ones(half.size, dtype=bool))
    # At the edge of the search the best lies beyond it: the split is too small or too easy to say anything.
    if min(abs(math.log(temperature) - bound) for bound in _LOG_BOUNDS) < _AT_BOUND:
        return 1.0, [
            f"temperature not used: the best of the {present.size} calibration groups lies beyond"
            f" {temperature:.2g}, the end of the range that was searched"
        ]
    return temperature, [
        f"temperature {temperature:.3f}: it lowered the NLL of held-out halves of the {present.size} calibration "
        f"groups from {before:.3f} to {after:.3f}"
    ]


def conformal_quantile(scores: Floats, groups: NDArray[np.intp], alpha: float) -> float:
    """Threshold of a conformal set for a tile of a new group (hierarchical conformal prediction).

    Tiles of one group are not exchangeable with those of a new one; groups are. With G groups, each carries the mass
    ``1 / (G + 1)``, shared among its tiles, and infinity carries the rest; the threshold is the ``1 - alpha`` quantile
    (Lee, Barber & Willett 2023, section 3). With one tile a group it is the usual ``s_(ceil((n + 1)(1 - alpha)))``.

    Returns:
        The threshold; infinity where there are fewer than ``1 / alpha - 1`` groups.
    """
    _, codes, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    n_groups = sizes.size
    order = np.argsort(scores, kind="stable")
    # In units of one group's mass: ceil((n + 1)(1 - alpha)) is met exactly; the tolerance is for rounding alone.
    mass = np.cumsum(1.0 / sizes[codes][order])
    needed = (n_groups + 1) * (1.0 - alpha)
    if needed > n_groups + 1e-9:
        return math.inf
    return float(scores[order][int(np.searchsorted(mass, needed - 1e-9))])


def _fit_sets(probabilities: Floats, tiles: CalibrationTiles, alpha: float) -> tuple[float | None, list[str]]:
    if not len(probabilities):
        return None, ["prediction sets hold every class: the calibration split has no tile"]
    scores = 1.0 - probabilities[tiles.truth]
    qhat = conformal_quantile(scores, tiles.groups, alpha)
    if math.isinf(qhat):
        least = math.ceil(1.0 / alpha - 1.0 - 1e-9)
        return None, [
            f"prediction sets hold every class: {tiles.n_groups} calibration groups, at least {least} are needed "
            f"for an error rate of {alpha:g}"
        ]
    return qhat, [f"prediction sets: a class is in the set when its probability is at least {1.0 - qhat:.3f}"]


def fit_thresholds(probabilities: Floats, tiles: CalibrationTiles) -> tuple[tuple[float, ...], list[str]]:
    """Freeze for each class the threshold with the best F1 on the calibration split; 0.5 where it has too few groups.

    Returns:
        Thresholds in the order of the classes, and sentences.
    """
    thresholds, kept = [], []
    for column, name in enumerate(tiles.classes):
        positive = tiles.truth[:, column]
        if np.unique(tiles.groups[positive]).size < MIN_THRESHOLD_GROUPS:
            thresholds.append(0.5)
            kept.append(name)
            continue
        order = np.argsort(-probabilities[:, column], kind="stable")
        scores = probabilities[order, column]
        hits = np.cumsum(positive[order])
        f1 = 2.0 * hits / (np.arange(1, hits.size + 1) + positive.sum())
        # Only the last of equal scores can be cut at.
        f1[:-1][scores[1:] == scores[:-1]] = -1.0
        thresholds.append(float(scores[int(f1.argmax())]))
    notes = ["thresholds frozen on the calibration split by the best F1 of each class"]
    if kept:
        notes.append(f"threshold 0.5 for {', '.join(kept)}: fewer than {MIN_THRESHOLD_GROUPS} groups with it")
    return tuple(thresholds), notes
