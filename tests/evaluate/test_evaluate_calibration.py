"""Temperature, prediction sets and thresholds: what they promise, and what is said where they cannot be had."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

from vitpipe.errors import ContractError
from vitpipe.evaluate.calibration import (
    Calibration,
    CalibrationTiles,
    best_temperature,
    conformal_quantile,
    fit_calibration,
    fit_thresholds,
    load_calibration,
)


def tiles_of(
    logits: np.ndarray, truth: np.ndarray, groups: np.ndarray, *, multi_label: bool = False
) -> CalibrationTiles:
    names = tuple("abcdefghij"[: logits.shape[1]])
    return CalibrationTiles(logits, truth, groups.astype(np.intp), names, multi_label)


def drawn(temperature: float, *, n: int = 4000, seed: int = 0) -> CalibrationTiles:
    """Labels drawn from the softmax of logits that are then multiplied by `temperature`."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 1.5, size=(n, 4))
    label = (softmax(logits, axis=1).cumsum(axis=1) < generator.random((n, 1))).sum(axis=1)
    return tiles_of(logits * temperature, np.eye(4, dtype=bool)[label], np.arange(n) // 10)


def test_the_temperature_is_recovered_and_lowers_the_error() -> None:
    tiles = drawn(2.0)
    assert best_temperature(tiles, np.zeros(4), np.ones(4000, dtype=bool)) == pytest.approx(2.0, abs=0.12)
    fitted = fit_calibration(tiles, alpha=0.1, seed=0)
    assert fitted.temperature == pytest.approx(2.0, abs=0.12)
    assert "lowered the NLL" in fitted.notes[0]


def test_probabilities_do_not_depend_on_how_many_rows_there_are_or_how_they_lie_in_memory() -> None:
    logits = np.random.default_rng(0).normal(0, 3, size=(301, 10)).astype(np.float32)
    calibration = fit_calibration(
        tiles_of(logits, np.eye(10, dtype=bool)[np.arange(301) % 10], np.arange(301)), alpha=0.1, seed=0
    )
    one_by_one = np.concatenate([calibration.probabilities(logits[row : row + 1]) for row in range(len(logits))])
    assert np.array_equal(calibration.probabilities(logits), one_by_one)
    # As the columns of a table give them.
    assert np.array_equal(calibration.probabilities(np.asfortranarray(logits)), one_by_one)


def test_a_temperature_that_does_not_help_held_out_groups_is_not_used() -> None:
    # Well calibrated as it is, and few tiles: what a half of them asks for is noise to the other half.
    unused = [fit_calibration(drawn(1.0, n=120, seed=seed), alpha=0.1, seed=0) for seed in range(20)]
    kept = [each for each in unused if each.temperature == 1.0]
    assert len(kept) >= 8
    assert all("temperature not used" in each.notes[0] for each in kept)


def test_too_few_groups_give_no_temperature_and_full_sets_and_say_so() -> None:
    tiles = drawn(2.0, n=30)
    fitted = fit_calibration(tiles, alpha=0.1, seed=0)
    assert fitted.temperature == 1.0
    assert fitted.qhat is None
    assert fitted.notes == (
        "temperature not fitted: the calibration split has 3 groups, 10 are needed",
        "prediction sets hold every class: 3 calibration groups, at least 9 are needed for an error rate of 0.1",
    )
    probabilities = fitted.probabilities(tiles.logits)
    assert fitted.prediction_sets(probabilities).all()
    assert fitted.abstain(probabilities).all()


def test_a_temperature_at_the_end_of_the_search_is_not_used() -> None:
    # Every tile is right by a wide margin: the NLL falls for ever as the temperature does.
    tiles = drawn(1.0)
    sure = replace(tiles, logits=tiles.truth * 2.0)
    fitted = fit_calibration(sure, alpha=0.1, seed=0)
    assert fitted.temperature == 1.0
    assert "the end of the range" in fitted.notes[0]


@pytest.mark.parametrize(("alpha", "least"), [(0.1, 9), (0.05, 19), (0.01, 99)])
def test_the_least_number_of_groups_is_the_textbook_one(alpha: float, least: int) -> None:
    for n, expected in ((least, least - 1), (least - 1, None)):
        scores = np.arange(n, dtype=float)
        found = conformal_quantile(scores, np.arange(n), alpha)
        assert found == (math.inf if expected is None else scores[expected])


@pytest.mark.parametrize("n", [9, 20, 37, 200])
def test_with_one_tile_a_group_it_is_the_usual_quantile(n: int) -> None:
    scores = np.random.default_rng(n).random(n)
    expected = np.sort(scores)[math.ceil((n + 1) * 0.9) - 1]
    assert conformal_quantile(scores, np.arange(n), 0.1) == expected


def test_sets_cover_the_tiles_of_new_groups_however_unequal_the_groups() -> None:
    # Large groups are easy, small ones hard: a quantile over all tiles would cover the small ones too seldom.
    generator = np.random.default_rng(0)
    covered, naive = [], []
    for _ in range(400):
        hard = generator.random(31) < 0.5
        sizes = np.where(hard, 2, 200)
        groups = np.repeat(np.arange(31), sizes)
        scores = generator.random(groups.size) * np.where(hard, 1.0, 0.2)[groups]
        seen = groups < 30
        found = conformal_quantile(scores[seen], groups[seen], 0.1)
        plain = np.sort(scores[seen])[min(math.ceil((seen.sum() + 1) * 0.9), seen.sum()) - 1]
        covered.append((scores[~seen] <= found).mean())
        naive.append((scores[~seen] <= plain).mean())
    assert 0.88 <= np.mean(covered) <= 0.96
    assert np.mean(naive) < 0.75


def test_a_record_is_read_back_as_it_was_saved(tmp_path: Path) -> None:
    fitted = fit_calibration(drawn(2.0, n=400), alpha=0.1, seed=0, log_prior=(0.0, 0.5, 0.0, -0.5))
    fitted.save(tmp_path)
    again = load_calibration(tmp_path)
    assert again == fitted
    logits = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    assert np.array_equal(again.probabilities(logits), fitted.probabilities(logits))
    assert np.array_equal(again.probabilities(logits[2:3])[0], again.probabilities(logits)[2])


def test_a_record_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="evaluate the run first"):
        load_calibration(tmp_path)
    (tmp_path / "calibration.json").write_text("{", encoding="utf-8")
    with pytest.raises(ContractError, match="not JSON"):
        load_calibration(tmp_path)
    (tmp_path / "calibration.json").write_text('{"classes": ["a"]}', encoding="utf-8")
    with pytest.raises(ContractError, match="not a calibration record"):
        load_calibration(tmp_path)
    with pytest.raises(ContractError, match="for 4 classes"):
        fit_calibration(drawn(2.0, n=400), alpha=0.1, seed=0).probabilities(np.zeros((1, 3)))


def test_the_prior_shift_moves_the_odds_as_bayes_says() -> None:
    shift = (math.log(0.9 / 0.5), math.log(0.1 / 0.5))
    record = Calibration(("a", "b"), False, 1.0, shift, 0.1, None, None, 0)
    p = record.probabilities(np.log(np.array([[0.5, 0.5], [0.2, 0.8]])))
    assert p[0] == pytest.approx([0.9, 0.1])
    assert p[1] == pytest.approx([0.18 / 0.26, 0.08 / 0.26])


def test_sets_and_abstention_follow_the_threshold() -> None:
    record = Calibration(("a", "b", "c"), False, 1.0, (0.0,) * 3, 0.1, 0.6, None, 50)
    p = np.array([[0.9, 0.05, 0.05], [0.45, 0.45, 0.1], [0.34, 0.33, 0.33]])
    assert record.prediction_sets(p).tolist() == [[True, False, False], [True, True, False], [False] * 3]
    assert record.abstain(p).tolist() == [False, True, True]


def test_thresholds_of_a_multi_label_model_have_the_best_f1_and_rare_classes_keep_one_half() -> None:
    generator = np.random.default_rng(0)
    truth = np.column_stack([generator.random(600) < 0.3, np.arange(600) < 3])
    logits = np.column_stack([np.where(truth[:, 0], -1.0, -3.0) + generator.normal(0, 0.3, 600), np.zeros(600)])
    tiles = tiles_of(logits, truth, np.arange(600) // 6, multi_label=True)
    fitted = fit_calibration(tiles, alpha=0.1, seed=0)
    assert fitted.thresholds is not None
    probabilities = fitted.probabilities(logits)
    assert (fitted.decide(probabilities)[:, 0] == truth[:, 0]).mean() > 0.99
    assert fitted.thresholds[1] == 0.5
    assert any("threshold 0.5 for b" in note for note in fitted.notes)
    assert not fitted.prediction_sets(probabilities).any()
    assert not fitted.abstain(probabilities).any()


def test_the_frozen_threshold_is_the_one_with_the_best_f1() -> None:
    generator = np.random.default_rng(1)
    truth = generator.random((500, 1)) < 0.5
    probabilities = np.round(np.clip(0.3 * truth + 0.7 * generator.random((500, 1)), 0, 1), 2)
    tiles = tiles_of(probabilities, truth, np.arange(500) // 5, multi_label=True)
    (found,) = fit_thresholds(probabilities, tiles)[0]

    def f1_at(cut: float) -> float:
        said = probabilities >= cut
        return float(2 * (truth & said).sum() / (truth.sum() + said.sum()))

    assert f1_at(found) == pytest.approx(max(f1_at(cut) for cut in np.unique(probabilities)))
    assert f1_at(found) > f1_at(0.5)
