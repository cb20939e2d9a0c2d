"""Rules that leave a tile some of the splits: by the date of acquisition, or by an attribute such as a region."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vitpipe.config import AttributeSplit, SplitRecipe
from vitpipe.errors import SplitError
from vitpipe.labels.base import ATTRIBUTE_PREFIX
from vitpipe.records import Split
from vitpipe.splits.assign import RULE_SEPARATOR

PERIOD_SEPARATOR: Final = "@"
"""Stands in the group of tiles of one period, where the same ground may be in two splits at two dates."""
_EARLY, _MIDDLE, _LATE = "early", "middle", "late"
_MOST_HELD_OUT: Final = (Split.TEST, Split.CALIBRATION, Split.VAL, Split.TRAIN)
_EXAMPLES: Final = 8


@dataclass(frozen=True, slots=True)
class Ruled:
    """What a rule says of each tile."""

    allowed: NDArray[np.object_]
    """(N,) names of splits joined by ``|``; empty: the tile cannot be placed and is left out."""
    groups: NDArray[np.object_]
    """(N,) the group of each tile; with `split.same_ground` its period is in it."""
    spheres: NDArray[np.object_]
    """(N,) within each of these no two splits may share ground; one for all, or a period."""
    by_tile: bool
    """A group may have any split that one of its tiles may have (by date); else it takes the most held out."""
    notes: tuple[str, ...]

    def where(self, chosen: NDArray[np.bool_]) -> Ruled:
        """Take some of the tiles."""
        parts = (self.allowed[chosen], self.groups[chosen], self.spheres[chosen])
        return Ruled(*parts, by_tile=self.by_tile, notes=self.notes)


def rule_of(recipe: SplitRecipe, table: pd.DataFrame, dates: Sequence[str | None]) -> Ruled | None:
    """Apply the rule of a recipe; None where it has none.

    Args:
        recipe: its `by`.
        table: a row a tile: `group_id` and the attributes.
        dates: ISO 8601 of each tile's acquisition, or a part of it such as a year; None: not known.

    Raises:
        SplitError: no tile can be placed by the rule, or there is no such attribute.
    """
    if recipe.by == "date":
        return _by_date(recipe, table, pd.Series(dates, dtype="object"))
    if isinstance(recipe.by, AttributeSplit):
        return _by_attribute(recipe, recipe.by, table)
    return None


def allowed_of_groups(ruled: Ruled, groups: pd.Series) -> pd.Series:
    """Give the splits that are left to each group, in the order of `groups`."""
    pairs = pd.DataFrame({"group_id": ruled.groups, "allowed": ruled.allowed}).drop_duplicates()
    names = pairs.assign(name=pairs["allowed"].str.split(RULE_SEPARATOR)).explode("name")
    if ruled.by_tile:
        by_group = names.groupby("group_id")["name"].agg(lambda found: _joined(set(found)))
    else:
        rank = {str(split): place for place, split in enumerate(_MOST_HELD_OUT)}
        # The tile that has the least choice of being learned from decides for its group.
        pairs["rank"] = pairs["allowed"].map(lambda text: max(rank[name] for name in text.split(RULE_SEPARATOR)))
        by_group = pairs.sort_values(["rank", "allowed"]).drop_duplicates("group_id").set_index("group_id")["allowed"]
    return by_group.reindex(groups.to_numpy())


def fits(ruled: Ruled, splits: NDArray[np.object_]) -> NDArray[np.bool_]:
    """Tell which tiles may have the split of their group."""
    pairs = pd.DataFrame({"allowed": ruled.allowed, "split": splits})
    unique = pairs.drop_duplicates()
    good = [split in allowed.split(RULE_SEPARATOR) for allowed, split in unique.itertuples(index=False)]
    found = pairs.merge(unique.assign(good=good), how="left", on=["allowed", "split"])["good"]
    return found.to_numpy(dtype=bool)


def _joined(names: set[str]) -> str:
    return RULE_SEPARATOR.join(str(split) for split in Split if str(split) in names)


# ---------------------------------------------------------------------------------------------------------------- date


def _by_date(recipe: SplitRecipe, table: pd.DataFrame, dates: pd.Series) -> Ruled:
    periods = {text: _period(recipe, text) for text in dates.dropna().unique()}
    period = pd.Series([periods.get(text, "") for text in dates], dtype="object")
    shares = {Split.VAL: recipe.val, Split.CALIBRATION: recipe.calibration}
    between = {str(split) for split, share in shares.items() if share > 0}
    early = {str(Split.TRAIN)} | (between if recipe.val_from is None else set())
    allowed = {_EARLY: _joined(early), _MIDDLE: _joined(between), _LATE: str(Split.TEST), "": ""}
    missing, coarse = int(dates.isna().sum()), int((dates.notna() & (period == "")).sum())
    if missing + coarse == len(dates):
        raise SplitError(
            f"`split.by: date`, but none of {len(dates)} tile(s) has a date of acquisition that says on which side of "
            f"{recipe.test_from} it lies; write TIFFTAG_DATETIME into the scenes, or split by groups"
        )
    notes = [f"left out {missing} tile(s) without a date of acquisition"] if missing else []
    if coarse:
        notes.append(f"left out {coarse} tile(s) whose date (a year or a month) does not say on which side they lie")
    groups = table["group_id"].to_numpy(dtype=object)
    spheres = np.full(len(table), "", dtype=object)
    if recipe.same_ground:
        spheres = period.to_numpy(dtype=object)
        groups = (table["group_id"] + PERIOD_SEPARATOR + period.to_numpy()).to_numpy(dtype=object)
    return Ruled(period.map(allowed).to_numpy(dtype=object), groups, spheres, by_tile=True, notes=tuple(notes))


def _period(recipe: SplitRecipe, text: str) -> str:
    """Place a date, or a year or month if all its days lie in one period; empty where they do not."""
    parts = text[:10].split("-")
    try:
        year, *rest = (int(part) for part in parts)
        month = rest[0] if rest else None
        first = datetime.date(year, month or 1, rest[1] if len(rest) > 1 else 1)
        after = first if len(rest) > 1 else datetime.date(year + (month in (None, 12)), (month or 12) % 12 + 1, 1)
    except ValueError:
        return ""
    last = after if len(rest) > 1 else after - datetime.timedelta(days=1)
    found = {_period_of_day(recipe, day) for day in (first, last)}
    return found.pop() if len(found) == 1 else ""


def _period_of_day(recipe: SplitRecipe, day: datetime.date) -> str:
    assert recipe.test_from is not None
    if day >= recipe.test_from:
        return _LATE
    return _MIDDLE if recipe.val_from is not None and day >= recipe.val_from else _EARLY


# ----------------------------------------------------------------------------------------------------------- attribute


def _by_attribute(recipe: SplitRecipe, rule: AttributeSplit, table: pd.DataFrame) -> Ruled:
    column = ATTRIBUTE_PREFIX + rule.attribute
    if column not in table:
        known = [name.removeprefix(ATTRIBUTE_PREFIX) for name in map(str, table) if name.startswith(ATTRIBUTE_PREFIX)]
        raise SplitError(
            f"`split.by` names the attribute `{rule.attribute}`, which no source and no label has; there are: "
            f"{', '.join(known) or 'none'}. Add it to the label table (`labels.attributes`), or correct the name"
        )
    values = table[column].map(
        lambda value: f"{value:g}" if isinstance(value, float) else str(value), na_action="ignore"
    )
    listed = {Split.TEST: rule.test, Split.VAL: rule.val, Split.CALIBRATION: rule.calibration}
    of_value = {value: str(split) for split, names in listed.items() for value in names}
    shares = {Split.VAL: recipe.val, Split.CALIBRATION: recipe.calibration}
    others = _joined(
        {str(Split.TRAIN)} | {str(split) for split, share in shares.items() if share > 0 and not listed[split]}
    )
    allowed = values.astype("object").map(lambda value: of_value.get(value, others), na_action="ignore").fillna("")
    if absent := sorted(set(of_value) - set(values.dropna())):
        found = sorted(values.dropna().unique())
        shown = ", ".join(found[:_EXAMPLES]) + (", ..." if len(found) > _EXAMPLES else "")
        raise SplitError(
            f"`split.by` lists the value(s) {', '.join(absent)} of `{rule.attribute}`, which no tile has; there are: "
            f"{shown or 'none'}. Correct them, or take them out"
        )
    missing = int((allowed == "").sum())
    notes = (f"left out {missing} tile(s) without a value of `{rule.attribute}`",) if missing else ()
    groups = table["group_id"].to_numpy(dtype=object)
    one = np.full(len(table), "", dtype=object)
    return Ruled(allowed.to_numpy(dtype=object), groups, one, by_tile=False, notes=notes)
