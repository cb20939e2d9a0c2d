"""Metrics against scikit-learn, and at draws of groups against the rows written out."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as oracle

from vitpipe.config import EvaluateRecipe
from vitpipe.evaluate import metrics
from vitpipe.evaluate.assess import assess
from vitpipe.evaluate.selective import risk_coverage, selective_numbers, selective_statistic
from vitpipe.evaluate.statistics import at_all, bootstrap
from vitpipe.evaluate.units import Units


def some_units(*, classes: int = 3, n: int = 300, multi_label: bool = False, seed: int = 0) -> Units:
    generator = np.random.default_rng(seed)
    groups = np.sort(generator.integers(0, 40, size=n)).astype(np.intp)
    if multi_label:
        truth = generator.random((n, classes)) < 0.4
        probabilities = np.round(np.clip(0.35 * truth + 0.65 * generator.random((n, classes)), 0, 1), 2)
        decided = probabilities >= 0.5
    else:
        label = generator.integers(0, classes, size=n)
        truth = np.eye(classes, dtype=bool)[label]
        # Rounded: ties must be counted one half.
        raw = np.round(generator.random((n, classes)) + 0.5 * truth, 1) + 0.05
        probabilities = raw / raw.sum(axis=1, keepdims=True)
        decided = np.eye(classes, dtype=bool)[probabilities.argmax(axis=1)]
    return Units(tuple(map(str, range(n))), truth, probabilities, decided, groups, 40, multi_label)


def values_of(units: Units) -> dict[str, np.ndarray]:
    both = at_all(metrics.sum_statistic(units), units.n_groups) | at_all(metrics.rank_statistic(units), units.n_groups)
    return {name: value[0] for name, value in both.items()}


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_single_label_numbers_equal_scikit_learn(classes: int) -> None:
    units = some_units(classes=classes)
    label, decided = units.truth.argmax(axis=1), units.decided.argmax(axis=1)
    found = values_of(units)
    precision, recall, f1, _ = oracle.precision_recall_fscore_support(label, decided, zero_division=np.nan)
    assert found["accuracy"] == pytest.approx(oracle.accuracy_score(label, decided))
    assert found["balanced_accuracy"] == pytest.approx(oracle.balanced_accuracy_score(label, decided))
    assert found["macro_f1"] == pytest.approx(f1.mean())
    assert found["nll"] == pytest.approx(oracle.log_loss(label, units.probabilities))
    assert found["brier"] == pytest.approx(((units.probabilities - units.truth) ** 2).sum(axis=1).mean())
    for name, expected in (("precision", precision), ("recall", recall), ("f1", f1)):
        assert found[f"class_{name}"] == pytest.approx(expected)
    area = [oracle.roc_auc_score(units.truth[:, k], units.probabilities[:, k]) for k in range(classes)]
    average = [oracle.average_precision_score(units.truth[:, k], units.probabilities[:, k]) for k in range(classes)]
    assert found["class_auroc"] == pytest.approx(area)
    assert found["class_average_precision"] == pytest.approx(average)
    assert found["auroc"] == pytest.approx(np.mean(area))
    assert metrics.confusion(units) == pytest.approx(oracle.confusion_matrix(label, decided))


def test_multi_label_numbers_equal_scikit_learn() -> None:
    units = some_units(classes=4, multi_label=True)
    found = values_of(units)
    assert found["accuracy"] == pytest.approx(oracle.accuracy_score(units.truth, units.decided))
    assert found["macro_f1"] == pytest.approx(oracle.f1_score(units.truth, units.decided, average="macro"))
    balanced = [oracle.balanced_accuracy_score(units.truth[:, k], units.decided[:, k]) for k in range(4)]
    assert found["balanced_accuracy"] == pytest.approx(np.mean(balanced))
    assert found["auroc"] == pytest.approx(oracle.roc_auc_score(units.truth, units.probabilities, average="macro"))


def test_a_draw_of_groups_equals_their_rows_written_out() -> None:
    units = some_units(classes=3)
    counts = np.random.default_rng(5).multinomial(40, [1 / 40] * 40, size=6).astype(np.int32)
    sums, ranks = metrics.sum_statistic(units)(counts), metrics.rank_statistic(units)(counts)
    for row, count in enumerate(counts):
        written = units.take(np.repeat(np.arange(units.n), count[units.groups]))
        expected = values_of(written)
        for name, value in (sums | ranks).items():
            assert value[row] == pytest.approx(expected[name]), name


def test_ece_equals_its_formula() -> None:
    units = some_units(classes=3)
    confidence = units.probabilities.max(axis=1)
    total = 0.0
    for low in range(15):
        rows = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if rows.any():
            total += rows.mean() * abs(units.correct[rows].mean() - confidence[rows].mean())
    assert values_of(units)["ece"] == pytest.approx(total)


@pytest.mark.parametrize(("n", "expected"), [(100, 0.088), (1000, 0.029)])
def test_a_perfect_model_shows_the_null_ece_of_the_reference(n: int, expected: float) -> None:
    # The reference's perfectly calibrated model: confidences spread over 0.5 to 1.
    generator = np.random.default_rng(0)
    confidence = 0.5 + 0.5 * generator.random(n)
    hit = generator.random(n) < confidence
    probabilities = np.column_stack([confidence, 1 - confidence])
    truth = np.column_stack([hit, ~hit])
    decided = np.column_stack([np.ones(n, bool), np.zeros(n, bool)])
    units = Units(tuple(map(str, range(n))), truth, probabilities, decided, np.arange(n), n)
    mean, quantile, p = metrics.ece_null(units, seed=0)
    assert mean == pytest.approx(expected, rel=0.35)
    assert quantile > mean
    assert p > 0.01
    # The same model, too sure of itself, is found out.
    sure = np.clip(confidence + 0.25, 0, 0.999)
    wrong = Units(units.keys, truth, np.column_stack([sure, 1 - sure]), decided, units.groups, n)
    assert metrics.ece_null(wrong, seed=0)[2] < 0.01


def test_a_class_without_a_test_unit_has_no_number_and_does_not_spoil_the_means() -> None:
    units = some_units(classes=3)
    absent = units.take(~units.truth[:, 2])
    found = assess(absent, ("a", "b", "c"), EvaluateRecipe(bootstrap=200))
    assert found.support["c"] == 0
    assert found.per_class["c"]["recall"].estimate is None
    assert found.per_class["c"]["auroc"].estimate is None
    recalls = [found.per_class[name]["recall"].estimate for name in ("a", "b")]
    assert found.overall["balanced_accuracy"].estimate == pytest.approx(np.mean(recalls))
    only = units.take(units.truth[:, 0])
    assert assess(only, ("a", "b", "c"), EvaluateRecipe(bootstrap=200)).overall["auroc"].estimate is None


def test_selective_areas_equal_the_reference() -> None:
    confidence, errors = np.array([0.9, 0.8, 0.7, 0.6]), np.array([False, False, True, False])
    found = at_all(selective_statistic(confidence, errors, np.arange(4)), 4)
    assert found["aurc"][0] == pytest.approx(0.1458333, abs=1e-6)
    assert found["excess_aurc"][0] == pytest.approx(0.1115949, abs=1e-6)
    assert found["augrc"][0] == pytest.approx(0.125)
    coverage, risk = risk_coverage(confidence, errors)
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert risk == pytest.approx([0, 0, 1 / 3, 1 / 4])
    assert set(selective_numbers(some_units(), EvaluateRecipe(bootstrap=200))) == {"aurc", "excess_aurc", "augrc"}


def test_a_confidence_at_an_edge_belongs_to_the_bin_below() -> None:
    found = metrics.bin_of(np.array([0.0, 0.05, 1 / 15, 0.07, 0.5, 14 / 15, 0.94, 1.0]))
    assert found.tolist() == [0, 0, 0, 1, 7, 13, 14, 14]


def test_ranks_of_binned_scores_are_those_of_the_scores() -> None:
    """Units that stand for many pixels each, at draws of groups; the exact curve is the judge."""
    generator = np.random.default_rng(8)
    n, groups = 6000, 25
    truth = np.eye(3, dtype=bool)[generator.integers(0, 3, n)]
    raw = generator.normal(size=(n, 3)) + 1.2 * truth
    raw[::7] = np.round(raw[::7], 1)
    probabilities = np.exp(raw) / np.exp(raw).sum(axis=1, keepdims=True)
    weights = generator.gamma(0.3, 2.0, n)
    units = Units(("",) * n, truth, probabilities, probabilities == probabilities.max(axis=1, keepdims=True),
                  generator.integers(0, groups, n).astype(np.intp), groups, weights=weights)  # fmt: skip
    exact = bootstrap(metrics.rank_statistic(units), groups, 40, 0)
    binned = bootstrap(metrics.binned_rank_statistic(units), groups, 40, 0)
    for name, tolerance in (("class_auroc", 5e-4), ("class_average_precision", 3e-3)):
        assert np.abs(exact[name] - binned[name]).max() < tolerance
    areas = [oracle.roc_auc_score(truth[:, k], probabilities[:, k], sample_weight=weights) for k in range(3)]
    assert at_all(metrics.rank_statistic(units), groups)["class_auroc"][0] == pytest.approx(areas)
