"""Look into a compressed frame before a codec does: its own size, its end, how its colours are coded.

A codec believes the stream, not the header: a damaged size makes it allocate gigabytes, a missing end makes it fill up.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import pairwise
from typing import Final, NamedTuple

_J2K_START: Final = b"\xff\x4f\xff\x51"
_JP2_START: Final = b"\x00\x00\x00\x0cjP  "
_END: Final = b"\xff\xd9"
_PADDING: Final = 18
"""Bytes at the end in which the end marker is looked for: fragments are padded to even length, some to more."""
_LONGEST_JP2_HEADER: Final = 1 << 16
_JPEG_LS_FRAME: Final = 0xF7
_MOST_TILES: Final = 65_535
_NOT_FRAMES: Final = frozenset({0xC4, 0xC8, 0xCC})
_SCAN: Final = 0xDA
_WITHOUT_LENGTH: Final = frozenset({0x01, *range(0xD0, 0xD9)})


def has_end(data: bytes) -> bool:
    """Tell whether a JPEG, JPEG-LS or JPEG 2000 stream is closed by its end marker."""
    return _END in data[-_PADDING:]


class Stated(NamedTuple):
    """What a compressed stream says of itself."""

    rows: int
    cols: int
    components: int
    precision: int
    """Bits of a sample."""
    signed: bool | None
    """None: the format knows no sign (JPEG, JPEG-LS)."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rows, columns, components."""
        return self.rows, self.cols, self.components


def stated(data: bytes) -> Stated:
    """Read size, components, precision and sign from the stream itself.

    Source: ITU-T T.81 B.2.2 (SOF), T.87 C.2.2 (SOF55), T.800 A.5.1 (SIZ).

    Raises:
        ValueError: there is no such statement, or it is none that a codec can follow: a tile grid that does not cover
            the image keeps OpenJPH busy for hours.
    """
    if data.startswith((_J2K_START, _JP2_START)):
        return _stated_by_siz(data)
    for marker, place in _segments(data):
        if marker == _JPEG_LS_FRAME or (0xC0 <= marker <= 0xCF and marker not in _NOT_FRAMES):
            precision, rows, cols, components = struct.unpack_from(">BHHB", data, place + 4)
            return Stated(rows, cols, components, precision, None)
    raise ValueError("no frame header before the first scan")


def _stated_by_siz(data: bytes) -> Stated:
    place = data.find(_J2K_START, 0, _LONGEST_JP2_HEADER)
    if place < 0:
        raise ValueError("no JPEG 2000 codestream in the JP2 file")
    right, bottom, left, top, tile_cols, tile_rows, tile_left, tile_top = struct.unpack_from(">8I", data, place + 8)
    components, depth = struct.unpack_from(">HB", data, place + 40)
    # The first tile must hold the image's first pixel (B.3), and there are no more than a short integer can count.
    covered = tile_left <= left < tile_left + tile_cols and tile_top <= top < tile_top + tile_rows
    if not covered or -(-(right - tile_left) // tile_cols) * -(-(bottom - tile_top) // tile_rows) > _MOST_TILES:
        raise ValueError("the tile grid does not cover the image")
    return Stated(bottom - top, right - left, components, (depth & 0x7F) + 1, bool(depth & 0x80))


def names_colours(data: bytes) -> bool:
    """Tell whether a JPEG stream has a marker that says how its colours are coded: JFIF's APP0 or Adobe's APP14."""
    return any(
        (marker, data[place + 4 : place + 8]) in ((0xE0, b"JFIF"), (0xEE, b"Adob")) for marker, place in _segments(data)
    )


def _segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Iterate over the marker segments of a JPEG stream up to its first scan: the marker and its place."""
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] != _SCAN:
        marker = data[place + 1]
        if marker == 0xFF:
            place += 1
            continue
        yield marker, place
        place += 2 if marker in _WITHOUT_LENGTH else 2 + int.from_bytes(data[place + 2 : place + 4], "big")


def rle_planes(data: bytes) -> list[bytes]:
    """Cut an RLE frame into its segments: the byte planes of each sample, most significant first.

    Source: PS3.5 annex G.5.

    Raises:
        ValueError: the header names no segments, or such that lie outside of the frame.
    """
    count, *offsets = struct.unpack_from("<16I", data)
    if not 1 <= count <= 15:
        raise ValueError("an RLE frame has 1 to 15 segments")
    places = [*offsets[:count], len(data)]
    if places[0] < 64 or any(first >= last for first, last in pairwise(places)):
        raise ValueError("RLE segments lie outside of the frame")
    return [data[first:last] for first, last in pairwise(places)]
