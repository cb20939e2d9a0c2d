"""How groups are split."""

from __future__ import annotations

from typing import Final, Self

from pydantic import (
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from vitpipe.config.base import Recipe

_SINCE_FIRST: Final[dict[str, JsonValue]] = {"buffer_m": 0.0}
"""Keys that came later, with the value that means what was done before: left out of every dump, and so of every digest,
so that runs from before stay valid."""


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

    @property
    def train(self) -> float:
        """The share that is left."""
        return 1.0 - self.val - self.calibration - self.test

    @model_validator(mode="after")
    def _leaves_train(self) -> Self:
        if self.train <= 0:
            raise ValueError(f"val + calibration + test = {1 - self.train:g} leaves no group to train on")
        return self

    @model_serializer(mode="wrap")
    def _without_what_changes_nothing(self, dump: SerializerFunctionWrapHandler) -> dict[str, JsonValue]:
        values: dict[str, JsonValue] = dump(self)
        return {key: value for key, value in values.items() if key not in _SINCE_FIRST or value != _SINCE_FIRST[key]}
