"""Multipart bodies as a stream (RFC 2046, section 5.1): memory holds a chunk and a delimiter, however large a part."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from email.message import Message
from typing import Final

from vitpipe.errors import TransientError

_LONGEST_HEADERS: Final = 1 << 16


def boundary_of(content_type: str) -> bytes | None:
    """Give the boundary that a ``Content-Type`` names; None where it is no multipart."""
    message = Message()
    message["Content-Type"] = content_type
    boundary = message.get_boundary()
    return boundary.encode("ascii", "replace") if boundary and message.get_content_maintype() == "multipart" else None


def parts(chunks: Iterable[bytes], boundary: bytes) -> Iterator[Iterator[bytes]]:
    """Cut a body into its parts; each is an iterator of byte strings, good until the next part is asked for.

    Raises:
        TransientError: the body ends before the closing delimiter, so its last part may be cut off.
    """
    stream = _Stream(chunks, boundary)
    # What stands before the first delimiter is no part (RFC 2046: preamble).
    for _ in stream.until_delimiter():
        pass
    while stream.opens_part():
        stream.skip_headers()
        part = stream.until_delimiter()
        yield part
        for _ in part:
            # Left over by the caller; the next part begins behind it.
            pass


class _Stream:
    def __init__(self, chunks: Iterable[bytes], boundary: bytes) -> None:
        self._chunks = iter(chunks)
        self._delimiter = b"\r\n--" + boundary
        # The first delimiter may stand at the very start, without a line end before it.
        self._buffer = b"\r\n"

    def until_delimiter(self) -> Iterator[bytes]:
        """Give the bytes before the next delimiter, and step over it."""
        keep = len(self._delimiter) - 1
        while (found := self._buffer.find(self._delimiter)) < 0:
            if len(self._buffer) > keep:
                ready, self._buffer = self._buffer[:-keep], self._buffer[-keep:]
                yield ready
            self._more()
        ready, self._buffer = self._buffer[:found], self._buffer[found + len(self._delimiter) :]
        if ready:
            yield ready

    def opens_part(self) -> bool:
        """Say whether the delimiter just passed opens a part: the closing one ends with two hyphens."""
        while len(self._buffer) < 2:
            self._more()
        return self._buffer[:2] != b"--"

    def skip_headers(self) -> None:
        """Step over the headers of a part: its content says what it is."""
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if len(self._buffer) > _LONGEST_HEADERS:
                raise TransientError("the server's answer has a part whose headers do not end")
            self._more()
        # The line end that closes the headers may also open the delimiter of an empty part.
        self._buffer = self._buffer[end + 2 :] if self._is_empty_part(end) else self._buffer[end + 4 :]

    def _is_empty_part(self, end: int) -> bool:
        while len(self._buffer) < end + 2 + len(self._delimiter):
            following = self._buffer[end + 2 :]
            if not self._delimiter.startswith(following):
                return False
            self._more()
        return self._buffer.startswith(self._delimiter, end + 2)

    def _more(self) -> None:
        chunk = next(self._chunks, None)
        if chunk is None:
            raise TransientError("the server's answer ends in the middle")
        self._buffer += chunk
