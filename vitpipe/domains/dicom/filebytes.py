"""The bytes of one file, read straight to where they are wanted; the head is checked against the index on the way."""

from __future__ import annotations

import io
import os
import zlib
from types import TracebackType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitpipe.domains.dicom.files import DicomFile
from vitpipe.errors import UnreadableSource


class Expected(NamedTuple):
    """What the index knows of a file: enough to notice a change without reading the header again."""

    size: int
    head_crc: int
    """CRC-32 of the bytes before the pixels."""


class Scratch:
    """Memory that is used again for one file after the other; of one thread."""

    def __init__(self) -> None:
        self._held: NDArray[np.uint8] = np.empty(0, np.uint8)

    def take(self, count: int) -> NDArray[np.uint8]:
        """Give `count` bytes, valid until the next call."""
        if len(self._held) < count:
            self._held = np.empty(count, np.uint8)
        return self._held[:count]


class FileBytes:
    """An opened file, or the inflated data set of a deflated one.

    Args:
        item: the file.
        expected: what it must be; None: nothing is known of it.

    Raises:
        UnreadableSource: ``CHANGED``.
        OSError: it cannot be opened.
    """

    def __init__(self, item: DicomFile, expected: Expected | None) -> None:
        assert item.pixels is not None
        self._path = str(item.path)
        self._head = item.pixels.offset
        self._inflated = item.pixels.inflated
        self._expected = expected
        self._handle = -1
        self.stamp: tuple[int, ...] = ()
        """Device, inode, size and mtime of the opened file."""
        if self._inflated is None:
            self._handle = os.open(item.path, os.O_RDONLY | os.O_CLOEXEC)
            status = os.fstat(self._handle)
            self.stamp = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
            if expected is not None and status.st_size != expected.size:
                self.close()
                raise self._changed()

    def __enter__(self) -> FileBytes:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def fill(self, offset: int, out: NDArray[np.uint8]) -> int:
        """Read to the end of `out`, with the head in the same call where it stands before and is to be checked.

        Returns:
            The bytes that there were, fewer at the end of the file.

        Raises:
            UnreadableSource: ``CHANGED``.
            OSError: it cannot be read.
        """
        if self._inflated is not None:
            data = memoryview(self._inflated)[offset : offset + len(out)]
            out[: len(data)] = np.frombuffer(data, np.uint8)
            return len(data)
        done = 0
        if self._expected is not None and offset == self._head:
            head = bytearray(self._head)
            done = os.preadv(self._handle, [head, out.data], 0) - self._head
            self._check(head)
        elif self._expected is not None:
            self._check(os.pread(self._handle, self._head, 0))
        while done < len(out):
            count = os.preadv(self._handle, [out.data[done:]], offset + done)
            if count <= 0:
                break
            done += count
        return max(done, 0)

    def read(self, offset: int, count: int) -> bytes:
        """Read some bytes, fewer at the end of the file; see :meth:`fill`."""
        out = np.empty(max(count, 0), np.uint8)
        return out[: self.fill(offset, out)].tobytes()

    def _check(self, head: bytes | bytearray) -> None:
        assert self._expected is not None
        if zlib.crc32(head) != self._expected.head_crc:
            raise self._changed()
        self._expected = None

    def _changed(self) -> UnreadableSource:
        return UnreadableSource("CHANGED", "its size or its header is not what was indexed; ingest again", self._path)


def head_of(item: DicomFile) -> tuple[int, int] | None:
    """Give the bytes before the pixels and their CRC-32; None in a deflated file, or one without pixels.

    Raises:
        OSError: the file cannot be read.
    """
    if item.pixels is None or item.pixels.inflated is not None:
        return None
    crc, left = 0, item.pixels.offset
    with item.path.open("rb", buffering=0) as stream:
        while left and (block := stream.read(min(left, io.DEFAULT_BUFFER_SIZE))):
            crc = zlib.crc32(block, crc)
            left -= len(block)
    return item.pixels.offset, crc
