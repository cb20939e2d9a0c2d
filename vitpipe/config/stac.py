"""What is asked of a STAC catalog."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final, Self

from pydantic import ConfigDict, Field, JsonValue, model_validator

from vitpipe.config.base import Recipe
from vitpipe.digest import digest


class StacQuery(Recipe):
    """Which items to take. What is empty does not choose."""

    model_config = ConfigDict(title="Query")
    collections: tuple[str, ...] = Field((), title="Collections", description="Identifiers, such as sentinel-2-l2a.")
    bbox: tuple[float, float, float, float] | None = Field(
        None,
        title="Box",
        description="West, south, east, north in degrees (WGS 84); west > east crosses the 180th meridian.",
    )
    datetime: str | None = Field(
        None,
        title="Date and time",
        description="A day, a moment or a range, such as 2023-06-01/2023-08-31 or 2023-06-01T00:00:00Z/..",
    )
    ids: tuple[str, ...] = Field((), title="Items", description="Identifiers of items.")
    properties: dict[str, dict[str, JsonValue]] = Field(
        {},
        title="Properties",
        description="Tests of an item's properties, such as {eo:cloud_cover: {lt: 20}}: eq neq lt lte gt gte in "
        "startsWith endsWith contains.",
    )

    @model_validator(mode="after")
    def _can_be_asked(self) -> Self:
        if self.bbox and not (-90 <= self.bbox[1] <= self.bbox[3] <= 90 and max(map(abs, self.bbox[::2])) <= 180):
            raise ValueError("`bbox` must be west, south, east, north in degrees, south below north")
        if self.datetime is not None:
            parse_interval(self.datetime)
        for name, tests in self.properties.items():
            unknown = sorted(set(tests) - STAC_TESTS)
            if unknown or not tests:
                raise ValueError(f"`properties.{name}`: test by one of {', '.join(sorted(STAC_TESTS))}")
        return self

    def interval(self) -> str | None:
        """Give `datetime` as a server takes it: moments with a zone, a day as its first and last moment."""
        if self.datetime is None:
            return None
        ends = [moment and moment.isoformat().replace("+00:00", "Z") for moment in parse_interval(self.datetime)]
        return ends[0] if ends[0] and ends[0] == ends[1] else "/".join(end or ".." for end in ends)


def stac_file_label(name: str) -> str:
    """Give the name of an asset or band as it stands in the name of its file; of a long one the end is a digest."""
    label = re.sub(r"[^A-Za-z0-9._-]+", "-", name)
    return label if len(label) <= _LONGEST_LABEL else f"{label[:_LONGEST_LABEL]}-{digest(name)[:8]}"


_LONGEST_LABEL: Final = 60
"""Beside the name of the item and what marks a half file it fits into the 255 bytes of a file's name."""
STAC_TESTS: Final = frozenset({"eq", "neq", "lt", "lte", "gt", "gte", "in", "startsWith", "endsWith", "contains"})
"""Operators of the query extension of STAC API 1.0."""


def parse_interval(text: str) -> tuple[datetime | None, datetime | None]:
    """Read a day, a moment, or a closed range of them (RFC 3339; STAC API, `datetime`); None where it is open.

    Raises:
        ValueError: it is neither.
    """
    first, slash, last = text.partition("/")
    begin, end = _moment(first, open_end=bool(slash)), _moment(last if slash else first, open_end=bool(slash))
    if end and len((last if slash else first).strip()) == _DAY_LENGTH:
        end += timedelta(days=1) - timedelta(microseconds=1)
    if (begin and end and begin > end) or not (begin or end):
        raise ValueError("`datetime` must begin before its end, and state one of them")
    return begin, end


_DAY_LENGTH: Final = len("2023-06-01")


def _moment(text: str, *, open_end: bool) -> datetime | None:
    if open_end and text.strip() in ("", ".."):
        return None
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError("`datetime` must be such as 2023-06-01T00:00:00Z, or two of them with a / between") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
