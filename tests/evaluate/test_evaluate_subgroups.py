"""Subgroups: bands, simultaneous intervals, and small ones shown, not hidden."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from vitpipe.config import EvaluateRecipe
from vitpipe.errors import ConfigError
from vitpipe.evaluate.subgroups import band, subgroup_columns, subgroup_numbers, unused_columns


def made(groups: int = 90, *, seed: int = 0) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    group = np.repeat(np.arange(groups), 5)
    label = generator.integers(0, 2, size=group.size)
    scanner = np.array(["A", "B", "C"])[group % 3]
    right = generator.random(group.size) < np.where(scanner == "C", 0.6, 0.9)
    said = np.where(right, label, 1 - label)
    return pd.DataFrame(
        {
            "tile_id": [f"t{index:04d}" for index in range(group.size)],
            "source_id": [f"s{index:03d}" for index in group],
            "group_id": [f"g{index:03d}" for index in group],
            "label": np.array(["no", "yes"])[label],
            "p_no": 0.8 - 0.6 * said,
            "p_yes": 0.2 + 0.6 * said,
            "attr_scanner": scanner,
            "attr_age_years": 20.0 + group % 70,
            "attr_dose": group * 1.5,
            "attr_serial": [f"n{index}" for index in group],
            "attr_same": "one",
        }
    )


def test_a_bad_subgroup_stands_out_and_all_intervals_hold_together() -> None:
    recipe = EvaluateRecipe(subgroups=("scanner",), level="tile", bootstrap=600)
    a, b, c = subgroup_numbers(made(), ("no", "yes"), "accuracy", recipe)
    assert [a.value, b.value, c.value] == ["A", "B", "C"]
    assert c.estimate.high < a.estimate.low
    assert (c.estimate.n, c.estimate.n_groups, c.state) == (150, 30, "ok")
    table = made()
    own = table.loc[table["attr_scanner"] == "C"]
    right = (np.where(own["p_yes"] > 0.5, "yes", "no") == own["label"]).to_numpy()
    assert c.estimate.estimate == pytest.approx(right.mean())
    error = np.bincount(np.repeat(np.arange(30), 5), right).std(ddof=1) / np.sqrt(30) / 5
    half = (c.estimate.high - c.estimate.low) / 2
    # Wider than one interval alone (1.96 errors), by about the factor for three subgroups (2.4).
    assert 2.15 * error < half < 2.75 * error


def test_small_subgroups_are_shown_as_insufficient() -> None:
    table = made()
    table.loc[table["group_id"] < "g004", "attr_scanner"] = "rare"
    found = {
        each.value: each for each in subgroup_numbers(table, ("no", "yes"), "accuracy", EvaluateRecipe(bootstrap=300))
    }
    assert found["rare"].state == "insufficient"
    assert found["rare"].estimate.estimate is not None
    assert found["rare"].estimate.low is None
    assert found["rare"].estimate.n_groups == 4


def test_numbers_become_bands_and_what_is_missing_has_its_own() -> None:
    age = pd.Series([5.0, 39.9, 40.0, 74.0, 75.0, np.nan], name="attr_age_years")
    assert band(age).tolist() == ["below 40", "below 40", "40-59", "60-74", "75 and over", "not stated"]
    dose = band(pd.Series(np.arange(100.0), name="attr_dose"))
    assert dose.value_counts().tolist() == [25, 25, 25, 25]
    assert sorted(set(band(pd.Series([1.0, 2.0, 1.0], name="attr_month")))) == ["1", "2"]
    # "stage" and "average" have the letters of age, and are none.
    assert band(pd.Series([1.0, 2.0], name="attr_stage")).tolist() == ["1", "2"]
    many = band(pd.Series([f"v{index % 20:02d}" for index in range(100)], name="attr_site"))
    assert many.nunique() == 12
    assert (many == "other").sum() == 45
    assert band(pd.Series(["a", None, ""], name="attr_x")).tolist() == ["a", "not stated", "not stated"]


def test_without_a_wish_every_useful_attribute_is_used() -> None:
    table = made()
    assert subgroup_columns(table, ()) == ["attr_scanner", "attr_age_years", "attr_dose"]
    assert unused_columns(table) == ["serial"]
    assert subgroup_columns(table, ("attr_scanner", "serial")) == ["attr_scanner", "attr_serial"]
    with pytest.raises(
        ConfigError, match=r"names `sex`, which no source has; .* scanner, age_years, dose, serial, same"
    ):
        subgroup_columns(table, ("sex",))
