"""Blocks of a map's files: compressed once, as they will lie in the file, and read back where a killed run left them.

A block is compressed by libdeflate and holds the differences to the pixel at its left (of floats, those of their
bytes: TIFF Technical Note 3), pixel by pixel. Around it stand the numbers by which GDAL reads a COG with fewer
requests.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from vitpipe.infer.mapping.layers import MapFile

BLOCK: Final = 256
"""Edge in pixels: blocks of a strip can be compressed as soon as it is full, and a web tile is one of them."""
LEADER: Final = 4
"""Bytes before a block: its size, little-endian (GDAL's BLOCK_LEADER=SIZE_AS_UINT4)."""
TRAILER: Final = 4
"""Bytes after a block: its last ones again (GDAL's BLOCK_TRAILER=LAST_4_BYTES_REPEATED)."""
_LEVEL: Final = 1
"""Level 6, the default, takes more than twice the time and makes a map of probabilities 3 % smaller."""


def predictor_of(file: MapFile, dtype: np.dtype[Any]) -> int:
    """Give the TIFF predictor: 1 none, since a class has no neighbour that it could be predicted from; 2, 3 floats."""
    if file.classes:
        return 1
    return 3 if dtype.kind == "f" else 2


def encoded(file: MapFile, bands: Sequence[NDArray[Any]]) -> bytes:
    """Compress a block.

    Args:
        file: whose block it is.
        bands: (rows, columns) each, of one dtype; `BLOCK` of either at most. What is missing is filled.

    Returns:
        Leader, block and trailer.
    """
    rows, cols = bands[0].shape
    dtype = bands[0].dtype
    make = np.empty if (rows, cols) == (BLOCK, BLOCK) else np.zeros
    block: NDArray[Any] = make((BLOCK, BLOCK, len(bands)), dtype)
    predictor = predictor_of(file, dtype)
    for place, band in enumerate(bands):
        into = block[:rows, :cols, place]
        if predictor == 2:
            into[:, 0] = band[:, 0]
            np.subtract(band[:, 1:], band[:, :-1], out=into[:, 1:])
        else:
            into[...] = band
    if predictor == 3:
        block = imagecodecs.floatpred_encode(block, axis=1)
    # Its types know no arrays, but any buffer will do.
    data = imagecodecs.deflate_encode(block, _LEVEL)  # type: ignore[arg-type]
    return b"".join((struct.pack("<I", len(data)), data, data[-TRAILER:]))


def decoded(file: MapFile, dtype: np.dtype[Any], part: bytes) -> NDArray[Any]:
    """Give the bands of a block (bands, `BLOCK`, `BLOCK`).

    Args:
        file: whose block it is.
        dtype: of the bands.
        part: what :func:`encoded` gave.
    """
    block: NDArray[Any] = np.empty((BLOCK, BLOCK, len(file.bands)), dtype)
    imagecodecs.deflate_decode(part[LEADER:-TRAILER], out=block.reshape(-1).view(np.uint8).data)
    predictor = predictor_of(file, dtype)
    if predictor == 2:
        block = imagecodecs.delta_decode(block, axis=1)
    elif predictor == 3:
        block = imagecodecs.floatpred_decode(block, axis=1)
    return block.transpose(2, 0, 1)
