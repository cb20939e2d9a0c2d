"""Which files make one scene, and which scenes make one series."""

from __future__ import annotations

import itertools
import re
from datetime import date
from typing import Final, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from vitpipe.config.base import Recipe

_FIELD: Final = re.compile(r"\{(\w*)\}|\(\?P<(\w+)>")


class SceneFiles(Recipe):
    """How the files of one scene are named, where each holds one band."""

    model_config = ConfigDict(title="Scene files")
    pattern: str = Field(
        title="Pattern",
        description="Names of band files, such as {scene}_{band}.tif: {scene} and {band}, and where it is there {date} "
        "(2021-07-08 or 20210708); * stands for anything. With a slash it is the path below `source.path`. One that "
        "begins with ^ is a regular expression with groups such as (?P<band>B\\d+).",
    )

    @model_validator(mode="after")
    def _names_scene_and_band(self) -> Self:
        names = [first or second for first, second in _FIELD.findall(self.pattern)]
        unknown = set(names) - {"scene", "band", "date"}
        if not {"scene", "band"} <= set(names) or unknown or len(names) > len(set(names)):
            raise ValueError(
                f"pattern {self.pattern!r} must name {{scene}} and {{band}} once, and may name {{date}}, nothing else"
            )
        if self.pattern.startswith("^"):
            try:
                re.compile(self.pattern)
            except re.error as error:
                raise ValueError(f"pattern {self.pattern!r} is no regular expression: {error}") from None
        return self


class SceneSeries(Recipe):
    """Scenes of one place at several dates that become one source; its channels are `<date index>_<band>`."""

    model_config = ConfigDict(title="Series")
    by: Literal["place", "tile"] = Field(
        "place",
        title="One place is",
        description="place: scenes of exactly one grid (CRS, transform, size); tile: of one tile of the product (MGRS "
        "tile, or path and row).",
    )
    dates: int | tuple[tuple[date, date], ...] = Field(
        title="Dates",
        description="How many scenes each place has, or windows of time (first and last day), one scene in each.",
    )
    pick: Literal["only", "first", "least_cloud"] = Field(
        "only",
        title="Pick",
        description="Which scene of a window: the only one (several are an error of the place), the first, or the one "
        "of the smallest cloud cover.",
    )

    @model_validator(mode="after")
    def _has_dates_in_order(self) -> Self:
        if isinstance(self.dates, int):
            if not 2 <= self.dates <= 366:
                raise ValueError(f"dates: {self.dates}; a series has 2 to 366 dates")
            if self.pick != "only":
                raise ValueError(
                    "`pick` chooses inside windows of time: give `dates` as a list of [first day, last day]"
                )
            return self
        days = [day for window in self.dates for day in window]
        starts = days[::2]
        if len(self.dates) < 2 or sorted(days) != days or len(set(starts)) < len(starts) or _touch(self.dates):
            raise ValueError("`dates` needs two windows or more, in the order of time, that do not share a day")
        return self


def _touch(windows: tuple[tuple[date, date], ...]) -> bool:
    return any(before[1] >= after[0] for before, after in itertools.pairwise(windows))
