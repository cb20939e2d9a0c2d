"""How groups are split."""

from __future__ import annotations

import datetime
from typing import Final, Literal, Self

from pydantic import (
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from vitpipe.config.base import Recipe

_SINCE_FIRST: Final[dict[str, JsonValue]] = {
    "buffer_m": 0.0, "folds": None, "fold": None, "by": None, "val_from": None, "test_from": None, "same_ground": False,
}  # fmt: skip
"""Keys that came later, with the value that means what was done before: left out of every dump, and so of every digest,
so that runs from before stay valid."""


class AttributeSplit(Recipe):
    """Splits by an attribute of tiles, such as a region, a site or a scanner: leave some of them out of training."""

    model_config = ConfigDict(title="By attribute", coerce_numbers_to_str=True)

    attribute: str = Field(
        title="Attribute", description="A subgroup column of the sources or of the label table.", min_length=1
    )
    test: tuple[str, ...] = Field(title="Test values", description="All their groups are test.", min_length=1)
    val: tuple[str, ...] = Field(
        (), title="Validation values", description="All their groups are val; a share of the other values if empty."
    )
    calibration: tuple[str, ...] = Field((), title="Calibration values", description="As for validation.")

    @model_validator(mode="after")
    def _one_split_a_value(self) -> Self:
        listed = (*self.test, *self.val, *self.calibration)
        twice = sorted({value for value in listed if listed.count(value) > 1})
        if twice:
            raise ValueError(f"by: value(s) {', '.join(twice)} of `{self.attribute}` stand in more than one list")
        return self


class SplitRecipe(Recipe):
    """Shares of groups; what is left is the train split."""

    model_config = ConfigDict(title="Split")

    val: float = Field(0.15, ge=0, lt=1, title="Validation share")
    calibration: float = Field(0.15, ge=0, lt=1, title="Calibration share")
    test: float = Field(0.2, gt=0, lt=1, title="Test share")
    seed: int = Field(0, ge=0, title="Seed", description="Orders new groups; assigned groups never move.")
    buffer_m: float = Field(
        0.0,
        ge=0,
        title="Buffer (m)",
        description="Training tiles nearer than this to a tile of another split are left out (scenes with a map).",
    )
    folds: int | None = Field(
        None,
        ge=2,
        le=100,
        title="Folds",
        description="Deal groups into this many equal folds, in place of shares; `val` and `calibration` take a fold "
        "each unless they are 0.",
    )
    fold: int | None = Field(
        None, ge=0, title="Fold", description="The fold that is test, from 0; each fold needs a workspace of its own."
    )
    by: Literal["date"] | AttributeSplit | None = Field(
        None, title="By", description="date: by the date of acquisition; or by values of an attribute."
    )
    val_from: datetime.date | None = Field(
        None, title="Validation from", description="by date: what is earlier is train; else earlier dates are shared."
    )
    test_from: datetime.date | None = Field(
        None, title="Test from", description="by date: what was acquired on this day or later is test."
    )
    same_ground: bool = Field(
        False,
        title="Same ground",
        description="by date: ground seen in training may be tested at a later date. Else blocks of ground are split "
        "as well, and each counts at the dates of its split alone.",
    )

    @property
    def held_out(self) -> int:
        """How many splits there are beside train."""
        return 1 + (self.val > 0) + (self.calibration > 0)

    @property
    def train(self) -> float:
        """The share that is left."""
        if self.folds is not None:
            return 1.0 - self.held_out / self.folds
        return 1.0 - self.val - self.calibration - self.test

    @model_validator(mode="after")
    def _leaves_train(self) -> Self:
        if self.folds is None and self.train <= 0:
            raise ValueError(f"val + calibration + test = {1 - self.train:g} leaves no group to train on")
        return self

    @model_validator(mode="after")
    def _folds_hold_together(self) -> Self:
        if (self.folds is None) != (self.fold is None):
            raise ValueError("folds and fold belong together: how many folds, and which of them is test, from 0")
        if self.folds is None or self.fold is None:
            return self
        if self.fold >= self.folds:
            raise ValueError(f"fold {self.fold} is none of {self.folds}: they count from 0 to {self.folds - 1}")
        if self.held_out >= self.folds:
            raise ValueError(
                f"{self.folds} folds leave none to train on: test, val and calibration take {self.held_out}; set more "
                "folds, or val or calibration to 0"
            )
        if self.by is not None:
            raise ValueError("set folds, or by (date or attribute), not both")
        return self

    @model_validator(mode="after")
    def _dates_hold_together(self) -> Self:
        if self.by != "date":
            given = [name for name in ("val_from", "test_from", "same_ground") if getattr(self, name)]
            if given:
                raise ValueError(f"{' and '.join(given)} need `by: date`")
            return self
        if self.test_from is None:
            raise ValueError("by: date needs test_from, the first day of the test split, such as 2024-01-01")
        if self.val_from is not None and self.val_from >= self.test_from:
            raise ValueError(f"val_from {self.val_from} must be before test_from {self.test_from}")
        if self.val_from is not None and self.val == 0 and self.calibration == 0:
            raise ValueError("val_from is given but the shares val and calibration are both 0: set one of them")
        return self

    @model_serializer(mode="wrap")
    def _without_what_changes_nothing(self, dump: SerializerFunctionWrapHandler) -> dict[str, JsonValue]:
        values: dict[str, JsonValue] = dump(self)
        return {key: value for key, value in values.items() if key not in _SINCE_FIRST or value != _SINCE_FIRST[key]}
