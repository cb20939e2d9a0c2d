"""Trivial baselines beside the model: a model that cannot beat them is said to have learnt nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from vitpipe.config import EvaluateRecipe
from vitpipe.evaluate import metrics
from vitpipe.evaluate.assess import Assessment, assess, assessment_json, difference
from vitpipe.evaluate.predictions import baseline_predictions
from vitpipe.evaluate.statistics import Estimate, Floats
from vitpipe.evaluate.units import pool
from vitpipe.records import Json, Level

BETTER: Final = "better"
WORSE: Final = "worse"
UNDECIDED: Final = "undecided"

NAMES: Final = {
    "majority": "always guessing the commonest class",
    "pixels": "a logistic regression on pixel statistics",
    "unet": "a U-Net of equal budget",
    "mean": "always the mean of the training labels",
    "ridge": "a ridge regression on the bands",
}


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of model and baselines alike."""

    metric: str
    """The headline metric."""
    classes: tuple[str, ...]
    recipe: EvaluateRecipe
    multi_label: bool


@dataclass(frozen=True, slots=True)
class Beside:
    """The baselines' numbers, and how the model stands to each."""

    numbers: dict[str, Json]
    """Baseline to level to metric; ``<level>_difference`` holds model minus baseline."""
    verdicts: dict[str, str]
    """Baseline to better, worse or undecided."""


def put_beside(
    test: pd.DataFrame,
    baselines: Mapping[str, pd.DataFrame],
    model: Mapping[str, Assessment],
    question: Question,
) -> Beside:
    """Judge every baseline as the model was judged, on the same draws of groups.

    Args:
        test: the model's predictions on the test split.
        baselines: name to tile_id and ``p_<i>``.
        model: level to the model's assessment.
        question: what is asked.
    """
    # A baseline has no calibration split of its own to freeze thresholds on.
    cut: Floats | None = np.full(len(question.classes), 0.5) if question.multi_label else None
    recipe = question.recipe
    found = Beside({}, {})
    for name, table in baselines.items():
        rows = baseline_predictions(test, table, question.classes)
        of_baseline: dict[str, Json] = {}
        for level in Level:
            units = pool(rows, question.classes, level, cut)
            each = assess(units, question.classes, recipe, design_effect=False)
            gaps = {
                which: difference(which, model[level].sampled, each.sampled, units, recipe.confidence)
                for which in metrics.METRICS
            }
            of_baseline[level.value] = assessment_json(each)[0]
            of_baseline[f"{level.value}_difference"] = {which: gap.to_json() for which, gap in gaps.items()}
            if level.value == recipe.level:
                found.verdicts[name] = verdict_of(gaps[question.metric], question.metric)
        found.numbers[name] = of_baseline
    return found


def verdict_of(gap: Estimate, metric: str) -> str:
    """Say how the model stands to a baseline, from the interval of model minus baseline."""
    if gap.low is None or gap.high is None:
        return UNDECIDED
    low, high = (gap.low, gap.high) if metrics.better_by(metric) > 0 else (-gap.high, -gap.low)
    if low > 0:
        return BETTER
    return WORSE if high < 0 else UNDECIDED


def verdict_sentence(verdicts: Mapping[str, str], metric: str) -> str:
    """Say in plain words whether the model beats the baselines."""
    said = metric.replace("_", " ").replace("f1", "F1").replace("auroc", "AUROC").replace("iou", "IoU")
    said = said.replace("r2", "R²").replace("rmse", "RMSE")
    by: dict[str, list[str]] = {kind: [] for kind in (BETTER, WORSE, UNDECIDED)}
    for name, verdict in verdicts.items():
        by[verdict].append(NAMES.get(name, name))
    parts = []
    if by[WORSE]:
        parts.append(f"The model is worse than {_and(by[WORSE])} in {said}: do not use it.")
    if by[UNDECIDED]:
        parts.append(f"The model cannot be told from {_and(by[UNDECIDED])} in {said} on this test split.")
    if by[BETTER]:
        parts.append(f"The model beats {_and(by[BETTER])} in {said}.")
    return " ".join(parts) or "No baseline was put beside the model."


def _and(names: Sequence[str]) -> str:
    return " and ".join(names)
