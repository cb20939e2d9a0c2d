"""The headline metric by subgroup, with intervals that hold together."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from vitpipe.config import EvaluateRecipe
from vitpipe.errors import ConfigError
from vitpipe.evaluate.metrics import LIMITS, metric_statistic, rank_draws
from vitpipe.evaluate.statistics import (
    Estimate,
    Floats,
    Sampling,
    Statistic,
    at_all,
    bootstrap,
    exact_bound,
    interval,
    simultaneous_factor,
    spread,
)
from vitpipe.evaluate.units import Units, pool
from vitpipe.records import Json, Level

ATTRIBUTE_PREFIX = "attr_"
MIN_UNITS = 20
MIN_GROUPS = 10
_MOST_VALUES = 12
_MISSING = "not stated"
_OTHER = "other"
_AGE_EDGES = (40.0, 60.0, 75.0)


@dataclass(frozen=True, slots=True)
class Subgroup:
    """One stratum of the test split."""

    attribute: str
    value: str
    metric: str
    estimate: Estimate
    state: str
    """``ok``, or ``insufficient``: too few groups or units for an interval; shown all the same."""

    def to_json(self) -> dict[str, Json]:
        """Give a JSON form."""
        return {
            "attribute": self.attribute,
            "value": self.value,
            "metric": self.metric,
            "state": self.state,
            **self.estimate.to_json(),
        }


@dataclass(frozen=True, slots=True)
class Member:
    """The units of one subgroup, as a statistic of draws of all groups of the test split."""

    attribute: str
    value: str
    statistic: Statistic
    n: int
    present: NDArray[np.intp]
    """Numbers of its groups."""
    n_groups: int
    """Of the whole test split."""


def subgroup_columns(table: pd.DataFrame, wanted: Sequence[str]) -> list[str]:
    """Give the attribute columns to use: those wanted, or every one that has more than one value and few enough.

    Raises:
        ConfigError: a wanted one does not exist; the text lists those that do.
    """
    known = [str(column) for column in table.columns if str(column).startswith(ATTRIBUTE_PREFIX)]
    if not wanted:
        return [column for column in known if table[column].nunique(dropna=False) > 1 and not _too_many(table[column])]
    columns = []
    for name in wanted:
        column = name if name.startswith(ATTRIBUTE_PREFIX) else f"{ATTRIBUTE_PREFIX}{name}"
        if column not in known:
            there = ", ".join(each.removeprefix(ATTRIBUTE_PREFIX) for each in known) or "none"
            raise ConfigError(
                f"evaluate.subgroups names `{name}`, which no source has; attribute columns there are: {there}"
            )
        columns.append(column)
    return columns


def unused_columns(table: pd.DataFrame) -> list[str]:
    """Give the names of attributes that are no subgroups unless asked for: texts of more than 12 values."""
    return [
        str(column).removeprefix(ATTRIBUTE_PREFIX)
        for column in table.columns
        if str(column).startswith(ATTRIBUTE_PREFIX) and _too_many(table[column])
    ]


def _too_many(values: pd.Series) -> bool:
    numbers = is_numeric_dtype(values) and not is_bool_dtype(values)
    return not numbers and values.nunique() > _MOST_VALUES


def band(values: pd.Series) -> pd.Series:
    """Turn an attribute into the names of its subgroups.

    Ages get the bands below 40, 40-59, 60-74, 75 and over; other numbers with more than six values get quartiles; of
    more than 12 text values the most frequent 11 stay and the rest are `other`. What is missing is `not stated`.
    """
    name = str(values.name)
    missing = values.isna() | (values.astype(str) == "")
    if is_numeric_dtype(values) and not is_bool_dtype(values):
        named = _number_bands(values.astype(float), "age" in name.removeprefix(ATTRIBUTE_PREFIX).split("_"))
    else:
        named = values.astype(str)
        # Ties go by the value's text, so that the table does not depend on the order of rows.
        counts = named[~missing].value_counts().sort_index().sort_values(ascending=False, kind="stable")
        if len(counts) > _MOST_VALUES:
            named = named.where(named.isin(counts.index[: _MOST_VALUES - 1]), _OTHER)
    return named.mask(missing, _MISSING)


def _number_bands(values: pd.Series, is_age: bool) -> pd.Series:  # noqa: FBT001
    defined = values.dropna().to_numpy()
    distinct = np.unique(defined)
    if not is_age and distinct.size <= 6:
        return values.map(lambda value: f"{value:g}")
    if is_age:
        edges, names = list(_AGE_EDGES), ["below 40", "40-59", "60-74", "75 and over"]
    else:
        edges = [float(edge) for edge in np.unique(np.quantile(defined, [0.25, 0.5, 0.75]))]
        names = [f"below {edges[0]:.4g}"]
        names += [f"{low:.4g} to {high:.4g}" for low, high in itertools.pairwise(edges)]
        names += [f"{edges[-1]:.4g} and over"]
    bins = np.searchsorted(np.asarray(edges), values.to_numpy(), side="right")
    return pd.Series([names[index] for index in bins], index=values.index, dtype=object)


def subgroup_numbers(
    table: pd.DataFrame, classes: Sequence[str], metric: str, recipe: EvaluateRecipe, thresholds: Floats | None = None
) -> list[Subgroup]:
    """Estimate one metric in every subgroup.

    Tiles of the subgroup alone are pooled to the level of the recipe, so a group may stand in several subgroups. Groups
    are drawn once for all; the intervals of all sufficient subgroups hold together with the stated confidence (max-T).

    Args:
        table: the test rows of the predictions, with `attr_` columns; see :func:`vitpipe.evaluate.units.pool`.
        classes: of the model.
        metric: name.
        recipe: which subgroups, level, draws, confidence, seed.
        thresholds: of a multi-label model.

    Raises:
        ConfigError: see :func:`subgroup_columns`.
    """
    codes, names = pd.factorize(table["group_id"])
    members: list[Member] = []
    draws = recipe.bootstrap
    for attribute, value, rows in strata(table, recipe):
        units = pool(table.loc[rows], classes, Level(recipe.level), thresholds)
        units = _renumbered(units, codes[rows], len(names))
        members.append(Member(attribute, value, metric_statistic(units, metric), units.n, units.present, len(names)))
        draws = min(draws, rank_draws(units, recipe.bootstrap))
    return subgroup_estimates(members, metric, recipe, draws)


def strata(table: pd.DataFrame, recipe: EvaluateRecipe) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
    """Give (attribute, value, rows) of every subgroup of a table.

    Raises:
        ConfigError: see :func:`subgroup_columns`.
    """
    for column in subgroup_columns(table, recipe.subgroups):
        values = band(table[column])
        for value in _ordered(values):
            yield column.removeprefix(ATTRIBUTE_PREFIX), value, (values == value).to_numpy()


def _ordered(values: pd.Series) -> list[str]:
    """Order: ages and quartiles as numbers go, other values by name, `other` and `not stated` last."""

    def place(value: str) -> tuple[int, float, str]:
        if value in (_OTHER, _MISSING):
            return 3, 0.0, value
        head = value.removeprefix("below ").split(" ")[0].split("-")[0]
        try:
            return (0 if value.startswith("below ") else 1), float(head), value
        except ValueError:
            return 2, 0.0, value

    return sorted({str(value) for value in values}, key=place)


def _renumbered(units: Units, codes: np.ndarray, n_groups: int) -> Units:
    """Number the groups of a subgroup as in the whole test split, so that one draw serves every subgroup."""
    appearance = pd.unique(codes)
    return Units(
        units.keys,
        units.truth,
        units.probabilities,
        units.decided,
        np.asarray(appearance, dtype=np.intp)[units.groups],
        n_groups,
        units.multi_label,
    )


def subgroup_estimates(members: Sequence[Member], metric: str, recipe: EvaluateRecipe, draws: int) -> list[Subgroup]:
    """Estimate a metric in every subgroup, with intervals that hold together (max-T)."""
    if not members:
        return []
    points, columns = [], []
    for each in members:
        points.append(float(at_all(each.statistic, each.n_groups)[metric][0]))
        columns.append(bootstrap(each.statistic, each.n_groups, draws, recipe.seed)[metric])
    enough = [
        each.n >= MIN_UNITS and each.present.size >= MIN_GROUPS and bool(np.isfinite(point))
        for each, point in zip(members, points, strict=True)
    ]
    kept = [index for index, ok in enumerate(enough) if ok]
    factor = 0.0
    if kept:
        table = np.column_stack([columns[index] for index in kept])
        factor = simultaneous_factor(table, np.array([points[index] for index in kept]), recipe.confidence)
    return [
        Subgroup(
            each.attribute,
            each.value,
            metric,
            _simultaneous(metric, (each, point, column), factor, recipe.confidence)
            if ok
            else _insufficient(each, point),
            "ok" if ok else "insufficient",
        )
        for each, point, column, ok in zip(members, points, columns, enough, strict=True)
    ]


def _insufficient(units: Member, point: float) -> Estimate:
    note = f"fewer than {MIN_GROUPS} groups or {MIN_UNITS} units: no interval"
    defined = point if np.isfinite(point) else None
    if defined is None:
        note += "; the metric is not defined on these data"
    return Estimate(defined, None, None, units.n, int(units.present.size), method="none", note=note)


def _simultaneous(metric: str, numbers: tuple[Member, float, Floats], factor: float, confidence: float) -> Estimate:
    units, point, draws = numbers
    error, n_groups = spread(draws), int(units.present.size)
    limits = LIMITS.get(metric, (0.0, 1.0))
    if not np.isfinite(error) or error < 1e-12:
        # No draw of these groups varied: the pointwise rule for that, at the stated confidence.
        return interval(point, Sampling(draws, np.empty(0), units.n, n_groups, confidence, limits))
    low, high = max(limits[0], point - factor * error), min(limits[1], point + factor * error)
    if limits == (0.0, 1.0) and point > 1.0 - 1e-12:
        low = min(low, exact_bound(n_groups, confidence))
    note = f"simultaneous over the subgroups: {factor:.2f} standard errors"
    return Estimate(point, low, high, units.n, n_groups, None, "max-T bootstrap", int(np.isfinite(draws).sum()), note)
