"""The front of a cloud optimised GeoTIFF: all directories, before all blocks (OGC 21-026; TIFF 6.0, BigTIFF).

What the tags say of place, colours, names and nodata is taken as it stands from a small file that GDAL wrote; here they
only get the size of the image and the places of its blocks.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vitpipe.infer.mapping.blocks import BLOCK

_WIDTH, _LENGTH, _TILE_WIDTH, _TILE_LENGTH, _TILE_OFFSETS, _TILE_COUNTS = 256, 257, 322, 323, 324, 325
_BYTES: Final = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 16: 8}
"""Of a value, by the number of its type."""
_LONG, _LONG8 = 4, 16
_CLASSIC_END: Final = 1 << 32

Directory: TypeAlias = "dict[int, tuple[int, int, bytes]]"
"""By tag: number of the type, count, values."""


@dataclass(frozen=True, slots=True)
class Template:
    """What is taken over from a small COG."""

    order: str
    """``<`` or ``>``."""
    promise: bytes
    """GDAL's lines after the header: how directories and blocks lie."""
    directories: tuple[Directory, ...]
    """Of the image, and of an overview if the map has any."""

    @classmethod
    def of(cls, data: bytes) -> Template:
        """Read a classic TIFF whose directories begin right after GDAL's lines."""
        order = {b"II": "<", b"MM": ">"}[data[:2]]
        first = at = struct.unpack_from(order + "I", data, 4)[0]
        directories = []
        while at:
            (count,) = struct.unpack_from(order + "H", data, at)
            directory: Directory = {}
            for place in range(at + 2, at + 2 + 12 * count, 12):
                tag, kind, length = struct.unpack_from(order + "HHI", data, place)
                size = _BYTES[kind] * length
                start = place + 8 if size <= 4 else struct.unpack_from(order + "I", data, place + 8)[0]
                directory[tag] = kind, length, data[start : start + size]
            directories.append(directory)
            (at,) = struct.unpack_from(order + "I", data, at + 2 + 12 * count)
        return cls(order, data[8:first], tuple(directories))


@dataclass(frozen=True, slots=True)
class LevelBlocks:
    """The blocks of a level of the map."""

    height: int
    width: int
    offsets: NDArray[np.int64]
    """Byte in the file at which each begins, row by row."""
    sizes: NDArray[np.int64]
    """Bytes of each."""


def front(template: Template, levels: Sequence[LevelBlocks], *, big: bool) -> bytes:
    """Give the bytes before the first block; how many they are does not depend on offsets and sizes.

    Args:
        template: the tags.
        levels: the map, then its overviews from the largest to the smallest.
        big: BigTIFF.
    """
    order = template.order
    version = struct.pack(order + "HHHQ", 43, 8, 0, 16) if big else struct.pack(order + "HI", 42, 8)
    start = len(version) + 2 + len(template.promise)
    version = version[: 6 if big else 2] + struct.pack(order + ("Q" if big else "I"), start)
    parts = [b"II" if order == "<" else b"MM", version, template.promise]
    for number, level in enumerate(levels):
        directory = _directory(template, number, level, big=big)
        part = _written(directory, start, order, big=big, last=number + 1 == len(levels))
        parts.append(part)
        start += len(part)
    return b"".join(parts)


def needs_big(end: int) -> bool:
    """Tell whether a file that ends there cannot be a classic TIFF."""
    return end >= _CLASSIC_END


def _directory(template: Template, number: int, level: LevelBlocks, *, big: bool) -> Directory:
    order, count = template.order, len(level.sizes)

    def long(value: int) -> tuple[int, int, bytes]:
        return _LONG, 1, struct.pack(order + "I", value)

    offsets = level.offsets.astype(order + ("u8" if big else "u4")).tobytes()
    return template.directories[min(number, 1)] | {
        _WIDTH: long(level.width),
        _LENGTH: long(level.height),
        _TILE_WIDTH: long(BLOCK),
        _TILE_LENGTH: long(BLOCK),
        _TILE_OFFSETS: (_LONG8 if big else _LONG, count, offsets),
        _TILE_COUNTS: (_LONG, count, level.sizes.astype(order + "u4").tobytes()),
    }


def _written(directory: Directory, start: int, order: str, *, big: bool, last: bool) -> bytes:
    """Write a directory that begins at `start`: its entries by tag, where the next one begins, longer values."""
    head, entry, word, inline = ("Q", "HHQ", "Q", 8) if big else ("H", "HHI", "I", 4)
    entries = struct.pack(order + head, len(directory))
    behind = start + len(entries) + len(directory) * (4 + 2 * inline) + inline
    values = b""
    for tag, (kind, count, value) in sorted(directory.items()):
        entries += struct.pack(order + entry, tag, kind, count)
        if len(value) <= inline:
            entries += value.ljust(inline, b"\0")
            continue
        entries += struct.pack(order + word, behind + len(values))
        # All begin at even bytes, and so does the next directory.
        values += value + b"\0" * (len(value) % 2)
    return entries + struct.pack(order + word, 0 if last else behind + len(values)) + values
