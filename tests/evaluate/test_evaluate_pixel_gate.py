"""The gate of models of pixels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pixel_cases import PixelCase, make_pixel_case

from vitpipe.config import EvaluateRecipe, GateRecipe
from vitpipe.errors import ConfigError, ContractError
from vitpipe.evaluate.gate import Decision, as_first
from vitpipe.evaluate.pixels.contest import compare_pixels, group_shares
from vitpipe.evaluate.pixels.sums import group_numbers, pool_sums, tile_sums
from vitpipe.learn.pixel_tables import pixel_sums
from vitpipe.records import Level, Task

JUDGING = EvaluateRecipe(bootstrap=400)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> PixelCase:
    return make_pixel_case(tmp_path_factory.mktemp("gate"), groups=80)


@pytest.fixture(scope="module")
def valued(tmp_path_factory: pytest.TempPathFactory) -> PixelCase:
    return make_pixel_case(tmp_path_factory.mktemp("gate-values"), groups=80, task=Task.REGRESSION)


def tiles(made: PixelCase, noise: float, seed: int = 0) -> pd.DataFrame:
    table, truth, said = made.of_split("test")
    noisy = said + np.random.default_rng(seed).normal(0, noise, said.shape).astype(np.float32)
    return table.assign(**pixel_sums(truth, noisy, made.case.manifest.task))


def decide(
    made: PixelCase, champion: pd.DataFrame, challenger: pd.DataFrame, judging: EvaluateRecipe = JUDGING, **gate: object
) -> Decision:
    return compare_pixels(champion, challenger, GateRecipe.model_validate(gate), judging, made.case.manifest)


@pytest.mark.parametrize("metric", ["mean_iou", "accuracy", "balanced_accuracy", "macro_f1"])
@pytest.mark.parametrize("level", ["tile", "group"])
def test_a_better_model_is_let_through_and_a_worse_or_equal_one_is_not(
    made: PixelCase, metric: str, level: str
) -> None:
    judging = JUDGING.model_copy(update={"level": level})
    good, bad = tiles(made, 0.0), tiles(made, 4.0)
    accepted = decide(made, bad, good, judging, metric=metric)
    assert accepted.accepted
    assert accepted.challenger is not None
    assert accepted.champion is not None
    assert accepted.difference.estimate == pytest.approx(accepted.challenger - accepted.champion)
    assert not decide(made, good, bad, judging, metric=metric).accepted
    same = decide(made, good, good, judging, metric=metric)
    assert not same.accepted
    assert same.p_value == pytest.approx(1.0)
    assert decide(made, good, good, judging, metric=metric, margin=0.01).accepted


@pytest.mark.parametrize("metric", ["r2", "rmse"])
def test_values_are_compared_by_their_errors(valued: PixelCase, metric: str) -> None:
    good, bad = tiles(valued, 0.0), tiles(valued, 2.0)
    accepted = decide(valued, bad, good, metric=metric)
    assert accepted.accepted
    assert accepted.difference.low is not None
    assert accepted.difference.low > 0
    assert not decide(valued, good, bad, metric=metric).accepted
    assert decide(valued, bad, good).metric == "r2"


def test_a_first_version_stands_against_the_trivial_one(made: PixelCase) -> None:
    table, truth, said = made.of_split("test")
    guess = table.assign(**pixel_sums(truth, np.zeros_like(said), Task.SEGMENTATION))
    first = as_first(decide(made, guess, tiles(made, 0.0), metric="mean_iou"), "majority")
    assert first.accepted
    assert "it beats the majority baseline" in first.sentence
    refused = as_first(decide(made, tiles(made, 0.0), guess, metric="mean_iou"), "majority")
    assert not refused.accepted
    assert "worse than the majority baseline" in refused.sentence


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy"])
def test_the_shares_of_groups_add_up_to_the_difference(made: PixelCase, metric: str) -> None:
    first, second = tiles(made, 0.0), tiles(made, 2.0)
    numbered = group_numbers(first)
    units = [pool_sums(first, tile_sums(table, made.case.manifest), Level.TILE, numbered) for table in (first, second)]
    judging = JUDGING.model_copy(update={"level": "tile"})
    gap = decide(made, second, first, judging, metric=metric).difference
    assert group_shares(units[0], units[1], metric, 3).sum() == pytest.approx(gap.estimate)


def test_other_pixels_and_metrics_that_are_not_exact_are_refused(made: PixelCase, tmp_path: Path) -> None:
    good = tiles(made, 0.0)
    with pytest.raises(ContractError, match="same test pixels"):
        decide(made, good.iloc[1:], good)
    with pytest.raises(ContractError, match="same test pixels"):
        decide(made, good.assign(n=good["n"] + 1), good)
    with pytest.raises(ConfigError, match="auroc"):
        decide(made, good, good, metric="auroc")
    values = replace(made, case=replace(made.case, manifest=replace(made.case.manifest, task=Task.REGRESSION)))
    with pytest.raises(ConfigError, match="mean_iou"):
        decide(values, good, good, metric="mean_iou")
