"""Find the frames among the fragments of encapsulated pixels (PS3.5 A.4); the wrong ones, joined, show no error."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

_ITEM: Final = b"\xfe\xff\x00\xe0"
_ITEM_HEAD: Final = 8
_STARTS: Final = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP  ")
"""How a JPEG, JPEG-LS or JPEG 2000 stream begins."""
START_BYTES: Final = 8

Read = Callable[[int, int], bytes]
"""Give so many bytes from an offset, fewer at the end."""


class Span(NamedTuple):
    """A run of bytes."""

    offset: int
    length: int


class Fragments(NamedTuple):
    """The items of an encapsulated pixel element."""

    spans: tuple[Span, ...]
    """All but the first, the offset table; those that lie wholly in the file."""
    table: bytes
    """The value of the Basic Offset Table, empty as a rule."""
    complete: bool
    """None is cut."""


def find_fragments(read: Read, start: int, end: int) -> Fragments:
    """Walk the items from `start`; only their heads and the offset table are read.

    Args:
        read: reads the file.
        start: where the first item begins.
        end: of the file.
    """
    spans: list[Span] = []
    place = start
    while True:
        head = read(place, _ITEM_HEAD)
        # Some writers leave the closing delimiter away; the fragments before it are whole.
        if len(head) < _ITEM_HEAD or head[:4] != _ITEM:
            complete = len(head) in (0, _ITEM_HEAD)
            break
        span = Span(place + _ITEM_HEAD, int.from_bytes(head[4:], "little"))
        place = span.offset + span.length
        if place > end:
            complete = False
            break
        spans.append(span)
    table = read(*spans[0]) if spans else b""
    return Fragments(tuple(spans[1:]), table, complete)


def frames_of(
    found: Fragments, frames: int, *, read: Read, extended: tuple[bytes, bytes] | None = None
) -> list[tuple[Span, ...]]:
    """Give the fragments of each frame.

    As many fragments as frames: one each. Else by the Extended Offset Table (C.7.6.3.1.8), by the Basic Offset Table,
    or by how the fragments begin: a frame never begins within one.

    Raises:
        ValueError: the frames cannot be told apart, or there are more or fewer than stated.
    """
    spans = found.spans
    if len(spans) == frames and extended is None:
        return [(span,) for span in spans]
    if not spans or len(spans) < frames:
        raise ValueError("fewer fragments than frames")
    base = spans[0].offset - _ITEM_HEAD
    if extended is not None:
        offsets, lengths = (_numbers(table, "Q", frames) for table in extended)
        groups = _grouped(spans, [base + offset for offset in offsets])
        return [_shortened(group, length) for group, length in zip(groups, lengths, strict=True)]
    if len(found.table) == 4 * frames and frames > 1:
        return _grouped(spans, [base + offset for offset in _numbers(found.table, "I", frames)])
    begins = [
        span.offset - _ITEM_HEAD for place, span in enumerate(spans) if place == 0 or _begins(read(span.offset, 8))
    ]
    if len(begins) != frames:
        raise ValueError("the fragments hold more or fewer frames than stated")
    return _grouped(spans, begins)


def _begins(data: bytes) -> bool:
    return data.startswith(_STARTS)


def _numbers(table: bytes, kind: str, count: int) -> tuple[int, ...]:
    if len(table) < struct.calcsize(f"<{count}{kind}"):
        raise ValueError("an offset table has fewer entries than there are frames")
    return struct.unpack_from(f"<{count}{kind}", table)


def _grouped(spans: Sequence[Span], begins: Sequence[int]) -> list[tuple[Span, ...]]:
    """Cut the fragments where frames begin; the first one must begin the first frame."""
    place_of = {span.offset - _ITEM_HEAD: place for place, span in enumerate(spans)}
    if any(begin not in place_of for begin in begins):
        raise ValueError("an offset table points between fragments")
    places = [place_of[begin] for begin in begins]
    if places[0] != 0 or any(first >= second for first, second in pairwise(places)):
        raise ValueError("an offset table is out of order")
    return [tuple(spans[first:last]) for first, last in pairwise((*places, len(spans)))]


def _shortened(group: tuple[Span, ...], length: int) -> tuple[Span, ...]:
    """Take the padding off the last fragment."""
    held = sum(span.length for span in group)
    if not held - 2 < length <= held:
        raise ValueError("an offset table states another length than the fragments have")
    last = group[-1]
    return (*group[:-1], Span(last.offset, last.length - (held - length)))
