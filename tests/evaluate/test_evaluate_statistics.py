"""Intervals against numbers worked out elsewhere, and against what they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vitpipe.config import EvaluateRecipe
from vitpipe.evaluate.assess import assess, share
from vitpipe.evaluate.statistics import (
    Sampling,
    bootstrap,
    bootstrap_p,
    draw_counts,
    exact_bound,
    interval,
    jackknife_error,
    ratio_statistic,
    sign_flip_p,
    simultaneous_factor,
    spread,
    t_interval,
)
from vitpipe.evaluate.units import Units


def units_of(right: np.ndarray, groups: np.ndarray) -> Units:
    """Two classes; each unit is of class 1 and is right or not."""
    truth = np.zeros((right.size, 2), dtype=bool)
    truth[:, 1] = True
    probabilities = np.where(right[:, None], [[0.1, 0.9]], [[0.8, 0.2]])
    decided = np.column_stack([~right, right])
    return Units(tuple(str(i) for i in range(right.size)), truth, probabilities, decided, groups, int(groups.max()) + 1)


def test_the_draws_are_the_same_whatever_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(draw_counts(7, 50, seed=3)))
    monkeypatch.setattr("vitpipe.intervals.BLOCK_COUNTS", 21)
    blocks = list(draw_counts(7, 50, seed=3))
    assert len(blocks) == 17
    assert np.array_equal(whole, np.concatenate(blocks))
    assert (whole.sum(axis=1) == 7).all()
    assert not np.array_equal(whole, np.concatenate(list(draw_counts(7, 50, seed=4))))


def test_the_bootstrap_error_of_a_mean_is_that_of_its_groups() -> None:
    generator = np.random.default_rng(0)
    sums = generator.normal(size=200)
    values = bootstrap(ratio_statistic({"mean": sums}, np.ones(200)), 200, 4000, seed=0)["mean"]
    assert spread(values) == pytest.approx(sums.std() / math.sqrt(200), rel=0.04)


def test_the_jackknife_error_of_a_mean_is_its_standard_error() -> None:
    values = np.array([1.0, 4.0, 2.0, 8.0, 5.0])
    left_out = (values.sum() - values) / 4
    assert jackknife_error(left_out) == pytest.approx(values.std(ddof=1) / math.sqrt(5))
    low, high = t_interval(4.0, 1.0, 5, 0.95)
    assert (low, high) == (pytest.approx(4 - 2.7764451), pytest.approx(4 + 2.7764451))


def test_thirty_of_thirty_says_above_884() -> None:
    assert exact_bound(30, 0.95) == pytest.approx(0.884, abs=5e-4)
    found = share(np.ones(30, dtype=bool), units_of(np.ones(30, dtype=bool), np.arange(30)), EvaluateRecipe())
    assert (found.estimate, found.high, found.method) == (1.0, 1.0, "exact")
    assert found.low == pytest.approx(0.884, abs=5e-4)


def test_tiles_of_a_patient_cost_a_design_effect() -> None:
    # 60 patients of 20 tiles whose difficulty is the patient's: the reference found about 5.
    generator = np.random.default_rng(1)
    skill = np.clip(generator.normal(0.7, 0.22, size=60), 0, 1)
    groups = np.repeat(np.arange(60), 20)
    right = generator.random(1200) < skill[groups]
    found = assess(units_of(right, groups), ("a", "b"), EvaluateRecipe()).overall["accuracy"]
    assert found.estimate == pytest.approx(right.mean())
    assert found.n == 1200
    assert found.n_groups == 60
    assert found.design_effect is not None
    by_hand = np.bincount(groups, right).std(ddof=1) ** 2 / 60 / 20**2 / (right.mean() * (1 - right.mean()) / 1200)
    assert found.design_effect == pytest.approx(by_hand, rel=0.2)
    assert 3.0 < found.design_effect < 8.0


def test_intervals_cover_what_they_promise() -> None:
    # 120 sets of 40 groups, true value 0.7: a 90 % interval misses about 12 times; naive ones miss about half.
    misses, recipe = 0, EvaluateRecipe(bootstrap=400, confidence=0.9)
    for repeat in range(120):
        generator = np.random.default_rng(repeat)
        groups = np.repeat(np.arange(40), 15)
        right = generator.random(600) < generator.beta(3.5, 1.5, size=40)[groups]
        found = share(right, units_of(right, groups), recipe)
        assert found.low is not None
        assert found.high is not None
        misses += not found.low <= 0.7 <= found.high
    assert 4 <= misses <= 25


def test_few_groups_get_a_t_interval_and_say_so() -> None:
    groups = np.repeat(np.arange(6), 4)
    right = np.arange(24) % 3 > 0
    right[:4] = True
    found = share(right, units_of(right, groups), EvaluateRecipe())
    assert found.method == "jackknife-t"
    assert "6 groups" in found.note
    shares = np.bincount(groups, right) / 4
    reach = 2.5705818 * shares.std(ddof=1) / math.sqrt(6)
    assert found.low == pytest.approx(right.mean() - reach)
    assert found.high == pytest.approx(min(1.0, right.mean() + reach))


def test_one_group_has_no_interval_and_nan_is_no_number() -> None:
    one = share(np.array([True, False]), units_of(np.array([True, False]), np.zeros(2, np.intp)), EvaluateRecipe())
    assert (one.estimate, one.low, one.high, one.method) == (0.5, None, None, "none")
    undefined = interval(math.nan, Sampling(np.full(10, math.nan), np.empty(0), 5, 30, 0.95))
    assert (undefined.estimate, undefined.low, undefined.note) == (None, None, "not defined on these data")


def test_sign_flips_give_the_exact_p_of_a_small_case() -> None:
    # |sum| of +-1, +-2, +-3 reaches 6 in 2 of 8 cases.
    p = sign_flip_p(np.array([1.0, 2.0, 3.0]), 20_000, seed=0)
    assert p == pytest.approx(0.25, abs=0.01)
    assert sign_flip_p(np.zeros(5), 100, seed=0) == 1.0


def test_sign_flips_by_group_keep_their_promise_where_mcnemar_does_not() -> None:
    false_alarms = 0
    for repeat in range(200):
        generator = np.random.default_rng(repeat)
        # No difference between the models, but each patient favours one of them.
        favour = generator.normal(0, 0.15, size=40)
        gained = (generator.random((40, 25)) < 0.2 + favour[:, None]).astype(float)
        lost = (generator.random((40, 25)) < 0.2 - favour[:, None]).astype(float)
        false_alarms += sign_flip_p((gained - lost).sum(axis=1), 999, seed=repeat) < 0.05
    assert 2 <= false_alarms <= 20


def test_bootstrap_p_is_two_sided() -> None:
    assert bootstrap_p(np.linspace(-0.025, 0.975, 1000)) == pytest.approx(2 * 0.026, abs=2e-3)
    assert bootstrap_p(np.full(99, 1.0)) == pytest.approx(0.02)


def test_simultaneous_intervals_are_wider_than_single_ones_and_hold_together() -> None:
    generator = np.random.default_rng(0)
    draws = generator.normal(size=(20_000, 10))
    one = simultaneous_factor(draws[:, :1], np.zeros(1), 0.95)
    ten = simultaneous_factor(draws, np.zeros(10), 0.95)
    assert one == pytest.approx(1.96, abs=0.04)
    # Sidak: the normal quantile of (1 + 0.95^(1/10)) / 2.
    assert ten == pytest.approx(2.7996, abs=0.06)
