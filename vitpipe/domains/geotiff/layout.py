"""Where the blocks of a plain TIFF lie in the file, so that they can be decoded without GDAL's copies.

Only what leaves no doubt is plain (see :func:`read_layout`); everything else is read by GDAL, which stays the judge:
the blocks that are found here must be those that GDAL reports. Tags are those of TIFF 6.0 and of BigTIFF.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from numpy.typing import NDArray
from rasterio.io import DatasetReader

_WIDTH, _LENGTH, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 256, 257, 258, 259, 262, 266
_STRIP_OFFSETS, _SAMPLES, _ROWS_PER_STRIP, _STRIP_COUNTS, _PLANAR, _PREDICTOR = 273, 277, 278, 279, 284, 317
_TILE_WIDTH, _TILE_LENGTH, _TILE_OFFSETS, _TILE_COUNTS, _FORMAT, _DEPTH = 322, 323, 324, 325, 339, 32997
_NEEDED: Final = frozenset({
    _WIDTH, _LENGTH, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, _STRIP_OFFSETS, _SAMPLES, _ROWS_PER_STRIP,
    _STRIP_COUNTS, _PLANAR, _PREDICTOR, _TILE_WIDTH, _TILE_LENGTH, _TILE_OFFSETS, _TILE_COUNTS, _FORMAT, _DEPTH,
})  # fmt: skip
_TYPES: Final = {1: "u1", 3: "u2", 4: "u4", 16: "u8"}
CODECS: Final = {1: "none", 8: "deflate", 32946: "deflate", 50000: "zstd"}
"""Compressions that are decoded here. GDAL's own LZW is faster than what could be called from here."""
_PLAIN_PHOTOMETRIC: Final = frozenset({1, 2, 3})
_KINDS: Final = {1: "u", 2: "i", 3: "f"}
_MOST_ENTRIES: Final = 4096
_MOST_BLOCKS: Final = 1 << 26


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """Blocks of the first image of a TIFF."""

    codec: str
    """``none``, ``deflate`` or ``zstd``."""
    predictor: int
    """1 none, 2 horizontal differences, 3 floating point."""
    dtype: np.dtype[np.generic]
    """As stored, with its byte order."""
    bands: int
    by_plane: bool
    """Each band has blocks of its own; else a block holds all bands, pixel by pixel."""
    tiled: bool
    height: int
    width: int
    block_height: int
    block_width: int
    offsets: NDArray[np.uint64]
    """(planes, down, across): where the block begins in the file; 0: it was never written."""
    counts: NDArray[np.uint64]
    """(planes, down, across): its bytes in the file."""

    def block_shape(self, down: int) -> tuple[int, int, int]:
        """Give rows, columns and samples of a block of row `down` of blocks: the last strip of a file may be lower."""
        rows = self.block_height
        if not self.tiled:
            rows = min(rows, self.height - down * rows)
        return rows, self.block_width, 1 if self.by_plane else self.bands


def read_layout(path: Path, dataset: DatasetReader) -> BlockLayout | None:
    """Read where the blocks lie; None where the file is not plain, or differs in anything from what GDAL made of it.

    Plain is: uncompressed, Deflate or Zstandard; whole bytes a sample, as wide as GDAL's dtype; predictor 1, 2, or 3
    for floats; grey, RGB or palette.
    """
    try:
        with path.open("rb") as stream:
            order, tags = _first_directory(stream)
        found = _layout(order, tags)
    except (OSError, _NotPlain, struct.error):
        return None
    return found if found is not None and _as_gdal(found, dataset) else None


class _NotPlain(Exception):
    """The directory is not one that is read here."""


def _first_directory(stream: BinaryIO) -> tuple[str, dict[int, NDArray[np.uint64]]]:
    """Give the byte order and the values of the tags that matter."""
    start = stream.read(16)
    order = {b"II": "<", b"MM": ">"}.get(start[:2], "")
    if not order or len(start) < 16:
        raise _NotPlain
    version = struct.unpack_from(order + "H", start, 2)[0]
    if version == 42:
        at, head, entry = struct.unpack_from(order + "I", start, 4)[0], "H", "HHI4s"
    elif version == 43:
        at, head, entry = struct.unpack_from(order + "Q", start, 8)[0], "Q", "HHQ8s"
    else:
        raise _NotPlain
    stream.seek(at)
    count = struct.unpack(order + head, stream.read(struct.calcsize(order + head)))[0]
    if count > _MOST_ENTRIES:
        raise _NotPlain
    entries = stream.read(count * struct.calcsize(order + entry))
    tags = {}
    for tag, kind, length, value in struct.iter_unpack(order + entry, entries):
        if tag in _NEEDED:
            tags[tag] = _values(stream, order, (kind, length), value)
    return order, tags


def _values(stream: BinaryIO, order: str, shape: tuple[int, int], inline: bytes) -> NDArray[np.uint64]:
    kind, length = shape
    if kind not in _TYPES or length > _MOST_BLOCKS:
        raise _NotPlain
    dtype = np.dtype(order + _TYPES[kind])
    size = dtype.itemsize * length
    if size > len(inline):
        stream.seek(struct.unpack(order + ("I" if len(inline) == 4 else "Q"), inline)[0])
        inline = stream.read(size)
        if len(inline) < size:
            raise _NotPlain
    return np.frombuffer(inline, dtype, length).astype(np.uint64)


def _layout(order: str, tags: dict[int, NDArray[np.uint64]]) -> BlockLayout | None:
    def one(tag: int, default: int | None = None) -> int:
        values = {int(value) for value in tags.get(tag, ())}
        if len(values) == 1:
            return values.pop()
        if values or default is None:
            raise _NotPlain
        return default

    height, width, bands = one(_LENGTH), one(_WIDTH), one(_SAMPLES, 1)
    bits, kind = one(_BITS, 1), _KINDS.get(one(_FORMAT, 1))
    predictor, planar, tiled = one(_PREDICTOR, 1), one(_PLANAR, 1), _TILE_OFFSETS in tags
    codec = CODECS.get(one(_COMPRESSION, 1))
    usual = one(_FILL_ORDER, 1) == 1 and one(_DEPTH, 1) == 1 and one(_PHOTOMETRIC, 0) in _PLAIN_PHOTOMETRIC
    if not usual or codec is None or kind is None or bits not in (8, 16, 32, 64) or (kind == "f" and bits < 32):
        return None
    if planar not in (1, 2) or predictor not in ((1, 2, 3) if kind == "f" else (1, 2)):
        return None
    if tiled:
        block = one(_TILE_LENGTH), one(_TILE_WIDTH)
        offsets, counts = tags.get(_TILE_OFFSETS), tags.get(_TILE_COUNTS)
    else:
        block = min(one(_ROWS_PER_STRIP, height), height), width
        offsets, counts = tags.get(_STRIP_OFFSETS), tags.get(_STRIP_COUNTS)
    by_plane = planar == 2 and bands > 1
    if min(*block, height, width, bands) < 1 or offsets is None or counts is None:
        return None
    shape = bands if by_plane else 1, -(-height // block[0]), -(-width // block[1])
    if offsets.size != np.prod(shape) or counts.size != offsets.size:
        return None
    return BlockLayout(
        codec=codec,
        # Without compression libtiff takes no predictor.
        predictor=predictor if codec != "none" else 1,
        dtype=np.dtype(f"{order}{kind}{bits // 8}"),
        bands=bands,
        by_plane=by_plane,
        tiled=tiled,
        height=height,
        width=width,
        block_height=block[0],
        block_width=block[1],
        offsets=offsets.reshape(shape),
        counts=counts.reshape(shape),
    )


def _as_gdal(layout: BlockLayout, dataset: DatasetReader) -> bool:
    """Tell whether GDAL opened the same image: same size, dtypes and block, first and last block at the same place."""
    size = (layout.height, layout.width, layout.bands) == (dataset.height, dataset.width, dataset.count)
    block = set(dataset.block_shapes) == {(layout.block_height, layout.block_width)}
    if not size or not block or set(dataset.dtypes) != {layout.dtype.newbyteorder("=").name}:
        return False
    planes, down, across = layout.offsets.shape
    for band, row, col in ((1, 0, 0), (planes, down - 1, across - 1)):
        place = f"{col}_{row}"
        offset = dataset.get_tag_item(f"BLOCK_OFFSET_{place}", "TIFF", bidx=band)
        count = dataset.get_tag_item(f"BLOCK_SIZE_{place}", "TIFF", bidx=band)
        at = band - 1, row, col
        if (int(offset or 0), int(count or 0)) != (int(layout.offsets[at]), int(layout.counts[at])):
            return False
    return True
