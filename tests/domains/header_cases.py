"""Headers byte by byte, and ways to damage them."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable, Sequence

LONG = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
EXPLICIT, IMPLICIT = b"1.2.840.10008.1.2.1", b"1.2.840.10008.1.2"
UNDEFINED = 0xFFFFFFFF

Element = tuple[int, bytes, bytes]


def element(tag: int, vr: bytes, value: bytes, *, implicit: bool = False, length: int | None = None) -> bytes:
    """One element of a little endian data set; `length` where the stated one is another than the value's."""
    head, size = struct.pack("<HH", tag >> 16, tag & 0xFFFF), len(value) if length is None else length
    if implicit:
        return head + struct.pack("<I", size) + value
    if vr in LONG:
        return head + vr + b"\0\0" + struct.pack("<I", size) + value
    return head + vr + struct.pack("<H", size & 0xFFFF) + value


def even(value: bytes, padding: bytes = b" ") -> bytes:
    return value + padding if len(value) % 2 else value


def part10(elements: Iterable[Element], *, syntax: bytes = EXPLICIT, pixels: bytes = b"\0" * 192) -> bytes:
    """A file with a preamble, a meta group, these elements and the pixels."""
    meta = element(0x00020002, b"UI", even(b"1.2.840.10008.5.1.4.1.1.2", b"\0")) + element(
        0x00020010, b"UI", even(syntax, b"\0")
    )
    implicit = syntax == IMPLICIT
    body = b"".join(element(tag, vr, value, implicit=implicit) for tag, vr, value in elements)
    group_length = element(0x00020000, b"UL", struct.pack("<I", len(meta)))
    return bytes(128) + b"DICM" + group_length + meta + body + element(0x7FE00010, b"OW", pixels, implicit=implicit)


def damage(whole: bytes, head: int, chance: random.Random) -> bytes:
    """Change a file somewhere within its first `head` bytes."""
    data = bytearray(whole)
    kind = chance.randrange(7)
    place = chance.randrange(128, max(129, min(head, len(data) - 8)))
    if kind == 0:
        data[place] = chance.randrange(256)
    elif kind == 1:
        for _ in range(chance.randrange(1, 6)):
            data[chance.randrange(128, min(head, len(data)))] ^= 1 << chance.randrange(8)
    elif kind == 2:
        del data[place:]
    elif kind == 3:
        del data[place : place + chance.choice((1, 2, 4, 8, 20))]
    elif kind == 4:
        data[place:place] = chance.choice((b"\0", b"  ", b"\xff\xff\xff\xff", b"\xfe\xff\x00\xe0", b"\\1.5", b"\x1b$B"))
    elif kind == 5:
        size = chance.choice((2, 4))
        data[place : place + size] = chance.choice((b"\xff", b"\x00", b"\x7f", b"9"))[:1] * size
    else:
        other = chance.randrange(128, max(129, min(head, len(data) - 8)))
        size = chance.randrange(1, 40)
        data[place : place + size], data[other : other + size] = data[other : other + size], data[place : place + size]
    return bytes(data)


def join(items: Sequence[bytes]) -> bytes:
    """A sequence's value: items of undefined length, and the delimiter."""
    ends = b"\xfe\xff\x0d\xe0\0\0\0\0", b"\xfe\xff\xdd\xe0\0\0\0\0"
    return b"".join(b"\xfe\xff\x00\xe0\xff\xff\xff\xff" + item + ends[0] for item in items) + ends[1]
