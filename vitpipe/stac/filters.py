"""Whether an item fits a query: a static catalog cannot be asked, and an API may pass over a filter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from vitpipe.config import StacQuery
from vitpipe.config.stac import parse_interval

_TESTS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "eq": lambda found, wanted: found == wanted,
    "neq": lambda found, wanted: found != wanted,
    "lt": lambda found, wanted: found < wanted,
    "lte": lambda found, wanted: found <= wanted,
    "gt": lambda found, wanted: found > wanted,
    "gte": lambda found, wanted: found >= wanted,
    "in": lambda found, wanted: found in wanted,
    "startsWith": lambda found, wanted: found.startswith(wanted),
    "endsWith": lambda found, wanted: found.endswith(wanted),
    "contains": lambda found, wanted: wanted in found,
}


def fits(item: Mapping[str, Any], query: StacQuery) -> bool:
    """Say whether an item is what a query asks for; one that does not state what is asked for is not.

    Args:
        item: a STAC item.
        query: see :class:`vitpipe.config.StacQuery`.
    """
    properties = item.get("properties") or {}
    return (
        (not query.ids or item.get("id") in query.ids)
        and (not query.collections or item.get("collection") in query.collections)
        and (query.bbox is None or _meets(item.get("bbox"), query.bbox))
        and (query.datetime is None or _overlaps(properties, query.datetime))
        and all(_passes(properties.get(name), tests) for name, tests in query.properties.items())
    )


def moments(properties: Mapping[str, Any]) -> tuple[datetime, datetime] | None:
    """Give the first and last moment of an item; the same where it states one. None where it states none."""
    names = ("datetime", "datetime") if properties.get("datetime") else ("start_datetime", "end_datetime")
    found = [_moment(properties.get(name)) for name in names]
    first, last = found
    return (first, last) if first and last else None


def _moment(text: object) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return moment if moment is None or moment.tzinfo else moment.replace(tzinfo=UTC)


def _overlaps(properties: Mapping[str, Any], wanted: str) -> bool:
    found = moments(properties)
    begin, end = parse_interval(wanted)
    return found is not None and (end is None or found[0] <= end) and (begin is None or found[1] >= begin)


def _passes(found: object, tests: Mapping[str, object]) -> bool:
    try:
        return found is not None and all(_TESTS[name](found, wanted) for name, wanted in tests.items())
    except (TypeError, AttributeError):
        # A number against a text: it is not what was asked for.
        return False


def _meets(box: object, wanted: Sequence[float]) -> bool:
    """Say whether two boxes have a point in common; of six numbers the heights are passed over (RFC 7946, 5)."""
    if not isinstance(box, list) or len(box) not in (4, 6) or not all(isinstance(edge, int | float) for edge in box):
        return False
    west, south, east, north = box if len(box) == 4 else (box[0], box[1], box[3], box[4])
    if south > wanted[3] or north < wanted[1]:
        return False
    return any(
        left <= right_wanted and right >= left_wanted
        for left, right in _spans(west, east)
        for left_wanted, right_wanted in _spans(wanted[0], wanted[2])
    )


def _spans(west: float, east: float) -> Iterator[tuple[float, float]]:
    """Cut a span of longitude at the 180th meridian, where it crosses it."""
    if west <= east:
        yield west, east
    else:
        yield west, 180.0
        yield -180.0, east
