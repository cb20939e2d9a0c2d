"""What bytes of a file can be seen to have changed, beyond what its decoder notices.

One flipped bit in a block of pixels, 150 trials each: an error was raised by LERC in all of them, LZMA in 99 %, deflate
in 86 %, LZW in 13 %, zstd in 1 %, none without compression. The rest gave other pixels without a word. Of these only
deflate stores a checksum of every block (Adler-32, RFC 1950), which GDAL does not verify: `source.verify` has it
verified here, once a file. To inflate takes some 45 % of the time in which GDAL decodes, so it is not done unasked.
"""

from __future__ import annotations

import contextlib
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import imagecodecs
import numpy as np
from rasterio._err import CPLE_BaseError
from rasterio.enums import Compression, Interleaving
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader

from vitpipe.domains.geotiff.remote import RemoteTiff
from vitpipe.errors import UnreadableSource
from vitpipe.opening import gdal_environment, open_tiff
from vitpipe.records import Rejected
from vitpipe.web.ranges import RemoteFile

_PIECE_BYTES: Final = 1 << 20


def verified(path: Path) -> Rejected | None:
    """Reject a file with a block whose checksum is not that of its content; see :func:`damaged_block`.

    Raises:
        OSError: it cannot be read.
    """
    try:
        found = damaged_block(path)
    except (CPLE_BaseError, RasterioError):
        found = "its header"
    if found is None:
        return None
    return _damaged(path, found)


def verified_from_afar(path: Path, remote: RemoteFile) -> Rejected | None:
    """Reject a remote file with a block whose checksum is not that of its content; see :func:`damaged_block`.

    Args:
        path: the file that stands for it.
        remote: the file.

    Raises:
        TransientError: the server does not answer.
    """
    with contextlib.closing(RemoteTiff(remote, str(path))) as tiff:
        try:
            with gdal_environment(), tiff.open() as dataset:
                found = _damaged_block(dataset, tiff.stream())
            tiff.raise_failure()
        except (CPLE_BaseError, RasterioError):
            found = "its header"
        except UnreadableSource as error:
            return Rejected(str(path), error.code, error.reason)
    return None if found is None else _damaged(path, found)


def _damaged(path: Path, found: str) -> Rejected:
    reason = f"{found} is damaged: its checksum (Adler-32) is another one; fetch the file again, or leave it out"
    return Rejected(str(path), "UNDECODABLE", reason)


def damaged_block(path: Path) -> str | None:
    """Find the first block of pixels whose checksum is not that of its content.

    Blocks of overviews and of an inner mask are not looked at; nor are files of another compression than deflate.

    Args:
        path: a file that GDAL opens.

    Returns:
        Which block, for a sentence; None where all are whole.

    Raises:
        OSError: it cannot be read.
        rasterio.errors.RasterioError: it can no longer be opened.
    """
    with gdal_environment(), open_tiff(path) as dataset, path.open("rb") as stream:
        return _damaged_block(dataset, stream)


def _damaged_block(dataset: DatasetReader, stream: io.BufferedIOBase | io.RawIOBase) -> str | None:
    if dataset.driver != "GTiff" or dataset.compression != Compression.deflate:
        return None
    block_height, block_width = dataset.block_shapes[0]
    together = dataset.count if dataset.interleaving == Interleaving.pixel else 1
    most_bytes = block_height * block_width * together * np.dtype(dataset.dtypes[0]).itemsize
    for band, row, col, offset, length in _blocks(dataset, 1 if together > 1 else dataset.count):
        stream.seek(offset)
        if not _is_whole(stream.read(length) or b"", most_bytes):
            return f"the block of band {band} at row {row * block_height}, col {col * block_width}"
    return None


def _is_whole(raw: bytes, most_bytes: int) -> bool:
    try:
        imagecodecs.deflate_decode(raw, out=most_bytes)
    except imagecodecs.DeflateError:
        # It may only hold more than its pixels.
        try:
            inflate(raw, memoryview(bytearray()))
        except zlib.error:
            return False
    return True


def inflate(raw: bytes, room: memoryview) -> int:
    """Inflate a stream of any length, and verify its checksum.

    Args:
        raw: the stream (RFC 1950), and whatever lies behind it.
        room: takes its first bytes.

    Returns:
        The bytes of the whole stream, which may be more than `room` has.

    Raises:
        zlib.error: it is damaged or cut off.
    """
    stream, found = zlib.decompressobj(), 0
    while not stream.eof:
        piece = stream.decompress(raw, _PIECE_BYTES)
        raw = stream.unconsumed_tail
        if not piece and not raw and not stream.eof:
            raise zlib.error("cut off")
        kept = piece[: max(0, room.nbytes - found)]
        room[found : found + len(kept)] = kept
        found += len(piece)
    return found


def _blocks(dataset: DatasetReader, bands: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Give band, row and column of each block, and where it lies; blocks left out on purpose lie nowhere."""
    block_height, block_width = dataset.block_shapes[0]
    for band in range(1, bands + 1):
        for row in range(-(-dataset.height // block_height)):
            for col in range(-(-dataset.width // block_width)):
                offset = dataset.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=band)
                length = dataset.get_tag_item(f"BLOCK_SIZE_{col}_{row}", "TIFF", bidx=band)
                if offset is not None and length is not None:
                    yield band, row, col, int(offset), int(length)
