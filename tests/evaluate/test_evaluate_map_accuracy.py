from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitpipe.errors import DataError
from vitpipe.evaluate.map_accuracy import Design, Share, allocate, map_accuracy, sample_size

NAMES = ("a", "b", "c", "d")


def of_matrix(counts: list[list[int]]) -> pd.DataFrame:
    """A sample whose strata are the map's classes; rows map, columns reference."""
    rows = [
        {"stratum": NAMES[row], "map": NAMES[row], "reference": NAMES[col], "count": count}
        for row, line in enumerate(counts)
        for col, count in enumerate(line)
        if count
    ]
    return pd.DataFrame(rows)


def sized(*sizes: float) -> dict[str, float]:
    return dict(zip(NAMES, sizes, strict=False))


def half(share: Share) -> float:
    assert share.high is not None
    assert share.estimate is not None
    return share.high - share.estimate


# Olofsson et al. 2014, tables 8 and 9: deforestation, forest gain, stable forest, stable non-forest.
CHANGE = [[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]]
PIXELS = (200_000.0, 150_000.0, 3_200_000.0, 6_450_000.0)


def test_the_example_of_olofsson_2014() -> None:
    found = map_accuracy(of_matrix(CHANGE), Design(sized(*PIXELS)), NAMES)
    assert found.counts.tolist() == CHANGE
    assert found.overall.estimate == pytest.approx(0.94651, abs=5e-6)
    assert half(found.overall) == pytest.approx(0.01848, abs=5e-6)
    users = {"a": (0.88, 0.0740), "b": (0.7333, 0.1008), "c": (0.9273, 0.0398), "d": (0.9631, 0.0205)}
    for name, (estimate, reach) in users.items():
        assert found.users[name].estimate == pytest.approx(estimate, abs=5e-5)
        assert half(found.users[name]) == pytest.approx(reach, abs=6e-5)
    # The paper prints 0.23 for b; its own equation 7 gives 0.25.
    producers = {"a": (0.74866, 0.2133), "b": (0.84716, 0.2544), "c": (0.93451, 0.0343), "d": (0.96161, 0.0184)}
    for name, (estimate, reach) in producers.items():
        assert found.producers[name].estimate == pytest.approx(estimate, abs=5e-6)
        assert half(found.producers[name]) == pytest.approx(reach, abs=5e-5)
    total = sum(PIXELS)
    areas = {"a": (235_086, 68_418), "b": (129_846, 41_731), "c": (3_175_221, 172_332), "d": (6_459_846, 180_907)}
    hectares = {"a": (21_158, 6_158), "b": (11_686, 3_756), "c": (285_770, 15_510), "d": (581_386, 16_282)}
    for name, (estimate, reach) in areas.items():
        assert found.areas[name].times(total).estimate == pytest.approx(estimate, abs=0.6)
        assert half(found.areas[name].times(total)) == pytest.approx(reach, rel=3e-5)  # 1.96 against 1.959964
        assert found.areas[name].times(total * 0.09).estimate == pytest.approx(hectares[name][0], abs=0.6)
        assert half(found.areas[name].times(total * 0.09)) == pytest.approx(hectares[name][1], abs=0.8)
    assert found.proportions.sum() == pytest.approx(1)
    assert found.proportions[0].sum() == pytest.approx(0.02)


def test_the_example_of_olofsson_2013() -> None:
    sample = of_matrix([[97, 0, 3], [3, 279, 18], [2, 1, 97]])
    sizes = sized(22_353, 1_122_543, 610_228)
    found = map_accuracy(sample, Design(sizes))
    assert found.overall.estimate == pytest.approx(0.944417, abs=5e-7)
    for name, estimate in {"a": 0.480631, "b": 0.994189, "c": 0.896926}.items():
        assert found.producers[name].estimate == pytest.approx(estimate, abs=5e-7)
    area = found.areas["a"].times(sum(sizes.values()))
    assert area.estimate == pytest.approx(45_112.4, abs=0.05)
    assert half(area) == pytest.approx(21_072.8, abs=0.6)


def stehman_2014() -> pd.DataFrame:
    """The 40 units of table 2 of the paper: stratum, map class, reference class."""
    mapped = "AAAAAAABBB" + "A" + "B" * 9 + "BBCCCCCCBB" + "D" * 10
    truth = "AAAAACBABC" + "A" + "BBBBBAABB" + "CCCCCDDBBA" + "DDDDDDDCCB"
    strata = "A" * 10 + "B" * 10 + "C" * 10 + "D" * 10
    return pd.DataFrame({"stratum": list(strata), "map": list(mapped), "reference": list(truth)})


def test_the_example_of_stehman_2014_where_strata_are_not_map_classes() -> None:
    sizes = {"A": 40_000.0, "B": 30_000.0, "C": 20_000.0, "D": 10_000.0}
    found = map_accuracy(stehman_2014(), Design(sizes, population=sizes))

    def told(share: Share) -> tuple[float, float]:
        assert share.estimate is not None
        assert share.error is not None
        return round(share.estimate, 4), round(share.error, 4)

    assert told(found.areas["A"]) == (0.35, 0.0822)
    assert told(found.areas["C"]) == (0.20, 0.0643)
    assert told(found.overall) == (0.63, 0.0846)
    assert told(found.users["B"]) == (0.5745, 0.1248)
    # The paper prints 0.114, a known slip: its own equation gives this.
    assert told(found.producers["B"]) == (0.7941, 0.1165)
    assert found.proportions[1, 2] == pytest.approx(0.08)
    assert found.overall.error == pytest.approx(0.08464, abs=5e-6)
    assert found.areas["A"].error == pytest.approx(0.08225, abs=5e-6)
    assert found.areas["C"].error == pytest.approx(0.06428, abs=5e-6)


def test_every_class_of_that_example_as_another_program_gives_it() -> None:
    """R's package mapac, which has no finite population correction, prints these."""
    found = map_accuracy(stehman_2014(), Design({"A": 4.0, "B": 3.0, "C": 2.0, "D": 1.0}))
    users = {"A": (0.7419355, 0.1645627), "B": (0.5744681, 0.1248023), "C": (0.5, 0.2151657), "D": (0.7, 0.1527525)}
    producers = {
        "A": (0.6571429, 0.1477318),
        "B": (0.7941176, 0.1165671),
        "C": (0.3, 0.1504438),
        "D": (0.6363636, 0.1623242),
    }
    for expected, shares in ((users, found.users), (producers, found.producers)):
        for name, (estimate, error) in expected.items():
            assert shares[name].estimate == pytest.approx(estimate, abs=5e-8)
            assert shares[name].error == pytest.approx(error, abs=5e-8)


@given(
    st.lists(st.integers(1, 9), min_size=9, max_size=9),
    st.lists(st.floats(1, 100), min_size=3, max_size=3),
    st.randoms(use_true_random=False),
)
def test_rows_in_any_order_units_one_by_one_and_clusters_of_one_give_the_same(
    cells: list[int], sizes: list[float], random: object
) -> None:
    sample = of_matrix([cells[:3], cells[3:6], cells[6:]])
    design = Design(sized(*sizes))
    once = map_accuracy(sample, design)
    apart = sample.loc[sample.index.repeat(sample["count"])].drop(columns="count").sample(frac=1, random_state=1)
    again = map_accuracy(apart, design)
    alone = map_accuracy(apart.assign(cluster=range(len(apart))), design)
    for other in (again, alone):
        assert other.overall.estimate == pytest.approx(once.overall.estimate)
        assert other.overall.error == pytest.approx(once.overall.error)
        for name in "abc":
            assert other.producers[name].error == pytest.approx(once.producers[name].error)
            assert other.areas[name].estimate == pytest.approx(once.areas[name].estimate)
    assert sum(share.estimate or 0 for share in once.areas.values()) == pytest.approx(1)


def test_intervals_of_a_stratified_sample_hold_the_truth_as_often_as_they_say() -> None:
    """Design-based: one map and its truth stay, samples are drawn again and again."""
    generator = np.random.default_rng(4)
    share = np.array([0.1, 0.3, 0.6])
    strata = generator.choice(3, 60_000, p=share)
    mapped = np.where(generator.random(60_000) < 0.9, strata, generator.integers(0, 3, 60_000))
    truth = np.where(generator.random(60_000) < 0.8, mapped, generator.integers(0, 3, 60_000))
    letters = np.array(list("abc"))
    sizes = {letter: float((strata == index).sum()) for index, letter in enumerate("abc")}
    true = {
        "overall": (mapped == truth).mean(),
        "area": (truth == 0).mean(),
        "users": (truth == 0)[mapped == 0].mean(),
        "producers": (mapped == 0)[truth == 0].mean(),
    }
    places = [np.flatnonzero(strata == index) for index in range(3)]
    held, estimates = dict.fromkeys(true, 0), []
    for _ in range(300):
        rows = np.concatenate([generator.choice(place, 600, replace=False) for place in places])
        sample = pd.DataFrame(
            {"stratum": letters[strata[rows]], "map": letters[mapped[rows]], "reference": letters[truth[rows]]}
        )
        found = map_accuracy(sample, Design(sizes, population=sizes))
        of = {
            "overall": found.overall,
            "area": found.areas["a"],
            "users": found.users["a"],
            "producers": found.producers["a"],
        }
        estimates.append(found.areas["a"].estimate)
        for name, share_found in of.items():
            assert share_found.low is not None
            assert share_found.high is not None
            held[name] += share_found.low <= true[name] <= share_found.high
    assert np.mean(estimates) == pytest.approx(true["area"], abs=0.004)
    assert all(0.91 <= count / 300 <= 0.985 for count in held.values()), held


def test_between_clusters_the_interval_holds_and_as_if_independent_it_does_not() -> None:
    generator = np.random.default_rng(5)
    held = {"clusters": 0, "independent": 0}
    letters = np.array(["a", "b"])
    for _ in range(200):
        # 40 blocks of ground with 25 pixels, each block with an accuracy of its own about 0.8; classes mix in blocks.
        accuracy = generator.beta(4, 1, 40).repeat(25)
        mapped = generator.integers(0, 2, 1000)
        truth = np.where(generator.random(1000) < accuracy, mapped, 1 - mapped)
        sample = pd.DataFrame({"stratum": letters[mapped], "map": letters[mapped], "reference": letters[truth]})
        design = Design({"a": 1.0, "b": 1.0})
        for name, each in {
            "independent": sample,
            "clusters": sample.assign(cluster=np.arange(40).repeat(25)),
        }.items():
            overall = map_accuracy(each, design).overall
            assert overall.low is not None
            assert overall.high is not None
            held[name] += overall.low <= 0.8 <= overall.high
    assert 0.91 <= held["clusters"] / 200 <= 0.99
    assert held["independent"] / 200 < 0.8


def test_clusters_within_strata_keep_their_strata() -> None:
    """Two strata of very different accuracy: the variance is that within strata."""
    sample = pd.DataFrame(
        {
            "stratum": ["x"] * 8 + ["y"] * 8,
            "map": ["a"] * 16,
            "reference": list("aaabaaaa") + list("bbbbbbab"),
            "cluster": np.arange(8).repeat(2),
        }
    )
    found = map_accuracy(sample, Design({"x": 1.0, "y": 3.0}))
    # Brute force: Z of each cluster is the sum of (N_h / n_h) (y - mean); within each stratum C / (C - 1) sum Z^2.
    right = np.array([1.0, 1, 1, 0, 1, 1, 1, 1]), np.array([0.0, 0, 0, 0, 0, 0, 1, 0])
    variance = 0.0
    for size, values in zip((1.0, 3.0), right, strict=True):
        totals = size / 8 * (values - values.mean()).reshape(4, 2).sum(axis=1)
        variance += 4 / 3 * float((totals**2).sum())
    assert found.overall.error == pytest.approx(np.sqrt(variance) / 4)
    assert found.n_clusters == 8


def test_what_cannot_be_said_is_a_coded_sentence() -> None:
    sample = of_matrix([[9, 1], [1, 0]])
    with pytest.raises(DataError, match=r"STRATUM_TOO_FEW.*b \(1\), c \(0\)"):
        map_accuracy(sample, Design(sized(1, 1, 1)))
    with pytest.raises(DataError, match=r"UNKNOWN_STRATUM.*\(b\)"):
        map_accuracy(sample, Design(sized(1)))
    clusters = sample.assign(cluster=["p", "p", "p"], stratum="a")
    with pytest.raises(DataError, match="TOO_FEW_CLUSTERS"):
        map_accuracy(clusters, Design(sized(1)))


def test_a_class_never_mapped_has_no_users_accuracy_and_one_without_error_says_so() -> None:
    found = map_accuracy(of_matrix([[9, 0, 1], [0, 9, 0]]), Design(sized(1, 1)), NAMES[:3])
    assert found.users["c"].estimate is None
    assert found.producers["c"].estimate == 0
    assert found.users["b"].estimate == 1
    assert "no proof" in found.users["b"].note


def test_how_many_units_to_label() -> None:
    # Olofsson et al. 2014, section 5.1.1: U .7 .6 .9 .95, S(O) = .01 gives 641.
    weights, users = sized(0.02, 0.015, 0.32, 0.645), sized(0.7, 0.6, 0.9, 0.95)
    assert sample_size(weights, users, 0.01) == 641
    dealt = allocate(weights, 641, least=75)
    assert dealt["a"] == dealt["b"] == 75
    assert sum(dealt.values()) == 641
    assert dealt["c"] / dealt["d"] == pytest.approx(0.32 / 0.645, abs=0.01)
    assert allocate(sized(1, 1), 10, least=50) == {"a": 50, "b": 50}
    with pytest.raises(ValueError, match="shares"):
        sample_size(weights, users, 0)
