"""The gate: what it lets through, what it refuses, and that it says why."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from vitpipe.config import EvaluateRecipe, GateRecipe
from vitpipe.errors import ContractError
from vitpipe.evaluate.gate import THRESHOLDS, accept_first, compare, group_differences
from vitpipe.evaluate.metrics import metric_statistic
from vitpipe.evaluate.statistics import at_all
from vitpipe.evaluate.units import pool
from vitpipe.records import Level

JUDGING = EvaluateRecipe(bootstrap=400, level="tile")


def predictions(skill: float, *, groups: int = 40, per_group: int = 10, seed: int = 0) -> pd.DataFrame:
    """Predictions on one fixed test split; `seed` moves the noise of the model alone."""
    fixed = np.random.default_rng(99)
    label = fixed.integers(0, 3, size=groups * per_group)
    generator = np.random.default_rng(seed)
    group = np.repeat(np.arange(groups), per_group)
    ease = generator.normal(0, 0.6, size=groups)[group]
    logits = generator.normal(size=(label.size, 3))
    logits[np.arange(label.size), label] += skill + ease
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return pd.DataFrame(
        {
            "tile_id": [f"t{index:04d}" for index in range(label.size)],
            "source_id": [f"s{index // 2:04d}" for index in range(label.size)],
            "group_id": [f"g{index:04d}" for index in group],
            "label": np.array(["x", "y", "z"])[label],
            **{f"p_{name}": p[:, index] for index, name in enumerate("xyz")},
        }
    )


def test_a_clearly_better_challenger_is_accepted_and_a_worse_one_is_not() -> None:
    better, worse = predictions(3.0, seed=1), predictions(0.5, seed=2)
    for metric in ("accuracy", "balanced_accuracy", "macro_f1", "auroc", "average_precision", "brier"):
        gate = GateRecipe(metric=metric)
        accepted, refused = compare(worse, better, gate, JUDGING), compare(better, worse, gate, JUDGING)
        assert accepted.accepted, metric
        assert not refused.accepted, metric
        assert accepted.difference.estimate == pytest.approx(-refused.difference.estimate)
        assert accepted.difference.estimate > 0


def test_equal_models_pass_with_a_margin_and_not_without() -> None:
    first, second = predictions(2.0, seed=1), predictions(2.0, seed=3)
    strict = compare(first, second, GateRecipe(metric="accuracy"), JUDGING)
    assert not strict.accepted
    assert strict.p_value > 0.05
    assert strict.rules[0].name == "superiority"
    lenient = compare(first, second, GateRecipe(metric="accuracy", margin=0.2), JUDGING)
    assert lenient.accepted
    assert lenient.rules[0].name == "non_inferiority"
    tight = compare(first, second, GateRecipe(metric="accuracy", margin=0.001), JUDGING)
    assert not tight.accepted
    same = compare(first, first, GateRecipe(metric="accuracy"), JUDGING)
    assert (same.difference.estimate, same.p_value, same.accepted) == (0.0, 1.0, False)


def test_the_gate_rarely_promotes_a_model_that_is_no_better() -> None:
    gate, judging = GateRecipe(metric="accuracy"), EvaluateRecipe(bootstrap=200, level="tile")
    promoted = sum(
        compare(predictions(1.0, seed=2 * k), predictions(1.0, seed=2 * k + 1), gate, judging).accepted
        for k in range(60)
    )
    assert promoted <= 5


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy", "brier"])
@pytest.mark.parametrize("level", list(Level))
def test_the_shares_of_the_groups_add_up_to_the_difference(metric: str, level: Level) -> None:
    first, second = (pool(predictions(1.0, seed=seed), ("x", "y", "z"), level) for seed in (1, 2))
    gap = at_all(metric_statistic(first, metric), 40)[metric] - at_all(metric_statistic(second, metric), 40)[metric]
    assert group_differences(first, second, metric).sum() == pytest.approx(gap[0])


def test_multi_label_shares_add_up_too() -> None:
    tables = [predictions(1.0, seed=seed) for seed in (1, 2)]
    labels = ["x|y" if index % 3 else "z" for index in range(400)]
    cut = np.array([0.3, 0.3, 0.3])
    first, second = (pool(table.assign(label=labels), ("x", "y", "z"), Level.TILE, cut) for table in tables)
    for metric in ("accuracy", "balanced_accuracy", "brier"):
        gap = at_all(metric_statistic(first, metric), 40)[metric] - at_all(metric_statistic(second, metric), 40)[metric]
        assert group_differences(first, second, metric).sum() == pytest.approx(gap[0])
    marked = [table.assign(label=labels) for table in tables]
    for table in marked:
        table.attrs[THRESHOLDS] = [0.3] * 3
    decision = compare(*marked, GateRecipe(metric="macro_f1", margin=0.3), JUDGING)
    assert decision.accepted


def test_a_first_version_is_accepted_unless_the_majority_beats_it() -> None:
    good, bad = predictions(2.0), predictions(-3.0)
    majority = good.assign(p_x=0.2, p_y=0.2, p_z=0.6)
    accepted = accept_first(majority, good, GateRecipe(), JUDGING)
    assert accepted.accepted
    assert accepted.first
    assert "it beats the majority baseline" in accepted.sentence
    level = accept_first(majority, majority, GateRecipe(), JUDGING)
    assert level.accepted
    assert "cannot be told from" in level.sentence
    refused = accept_first(majority, bad, GateRecipe(), JUDGING)
    assert not refused.accepted
    assert "worse than the majority baseline" in refused.sentence


def test_the_order_of_rows_and_of_classes_does_not_matter() -> None:
    first, second = predictions(1.0, seed=1), predictions(1.5, seed=2)
    expected = compare(first, second, GateRecipe(), JUDGING)
    mixed = first.sample(frac=1.0, random_state=0)[["label", "p_z", "p_x", "p_y", "group_id", "source_id", "tile_id"]]
    assert compare(mixed, second, GateRecipe(), JUDGING) == expected


def test_what_cannot_be_compared_is_refused_in_a_sentence() -> None:
    first, second = predictions(1.0, seed=1), predictions(1.5, seed=2)
    with pytest.raises(ContractError, match="not run on the same test tiles"):
        compare(first.iloc[1:], second, GateRecipe(), JUDGING)
    with pytest.raises(ContractError, match="column `label` differs"):
        compare(first.assign(label="x"), second, GateRecipe(), JUDGING)
    with pytest.raises(ContractError, match="different classes"):
        compare(first.rename(columns={"p_x": "p_w"}), second, GateRecipe(), JUDGING)


def test_the_decision_is_json_with_every_number_and_a_sentence() -> None:
    decision = compare(predictions(1.0, seed=1), predictions(1.6, seed=2), GateRecipe(), JUDGING)
    value = json.loads(json.dumps(decision.to_json(), allow_nan=False))
    assert value["rules"][0]["passed"] is decision.accepted
    assert value["difference"]["n_groups"] == 40
    assert value["challenger"] - value["champion"] == pytest.approx(value["difference"]["estimate"])
    assert value["sentence"].startswith("The challenger is")


def test_few_groups_and_no_defined_metric_still_give_a_decision() -> None:
    few = compare(predictions(1, groups=8, seed=1), predictions(2, groups=8, seed=2), GateRecipe(), JUDGING)
    assert few.difference.method == "jackknife-t"
    one_class = [table.loc[table["label"] == "x"] for table in (predictions(1.0, seed=1), predictions(2.0, seed=2))]
    undefined = compare(*one_class, GateRecipe(metric="auroc"), JUDGING)
    assert not undefined.accepted
    assert "not defined" in undefined.sentence
