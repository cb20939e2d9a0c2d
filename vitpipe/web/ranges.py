"""A file on a server that is read by ranges, as GDAL asks for it: it is the same file from the first byte to the last.

Neighbouring requests become one, some chunks are kept, and each answer is held against what the file was when it was
first looked at: its length and its ETag, or the date of its last change.
"""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import urlsplit

from vitpipe.digest import digest_bytes
from vitpipe.errors import ConfigError, TransientError, UnreadableSource
from vitpipe.records import Json
from vitpipe.web.access import read_access
from vitpipe.web.address import Rules, shown
from vitpipe.web.client import Client, Refused, range_of
from vitpipe.web.retries import Backoff, BusyError

HEAD_BYTES: Final = 1 << 14
"""So many first bytes are part of what tells one file from another."""
_CHUNK_BYTES: Final = 1 << 19
_MOST_CHUNKS: Final = 64
_ANOTHER: Final = frozenset({200, 412, 416})
"""What a server answers that has another file there, or gives no parts of it any more."""
_PART: Final = 206
_AHEAD: Final = 8
"""Chunks that are asked for at once at most where a file is read on and on."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """Which file it is."""

    address: str
    """Without a secret: an object of S3 is signed for when it is asked for."""
    size: int
    validator: str
    """Strong ETag, or date of the last change; empty where the server gives none."""
    head: str
    """Digest of the first bytes."""

    def to_json(self) -> dict[str, Json]:
        """Give a JSON form that :meth:`from_json` reads back."""
        return {"address": self.address, "size": self.size, "validator": self.validator, "head": self.head}

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> Self:
        """Read what :meth:`to_json` wrote."""
        return cls(str(values["address"]), int(str(values["size"])), str(values["validator"]), str(values["head"]))


def client_of(address: str, *, plain_http: bool, connections: int = 1, backoff: Backoff | None = None) -> Client:
    """Make a client of the server of one address; the headers of the environment go to that server."""
    parts = urlsplit(address)
    return Client(Rules(f"{parts.scheme}://{parts.netloc}/", plain_http), read_access(), connections, backoff)


def look(address: str, client: Client) -> RemoteFile:
    """Ask for the first bytes of a file, to know it again.

    Raises:
        UnreadableSource: ``FETCH_FAILED``: it is not there or may not be read; ``NO_RANGES``: the server gives whole
            files alone.
        TransientError: the server does not answer, after all retries.
    """
    answers: list[int] = []

    def ask() -> RemoteFile:
        try:
            return once()
        except BusyError as error:
            answers.append(error.status)
            raise

    def once() -> RemoteFile:
        with client.stream(address, {"Range": f"bytes=0-{HEAD_BYTES - 1}"}) as response:
            if response.status_code == 200:
                reason = (
                    f"{shown(address)}: its server does not give parts of a file; download it, and name the local file"
                )
                raise UnreadableSource("NO_RANGES", reason, shown(address))
            if response.status_code != _PART:
                raise client.refused(address, response.status_code)
            first, _, total = range_of(response.headers) or (0, 0, None)
            if total is None:
                raise Refused(f"{shown(address)}: its server does not say how long it is; download it")
            if first:
                raise Refused(f"{shown(address)}: its server gives another part than it was asked for; download it")
            wanted = min(HEAD_BYTES, total)
            head = client.body(response, address, wanted)
            if len(head) != wanted:
                raise client.broken(address)
            return RemoteFile(address, total, client.validator(response.headers), digest_bytes(head))

    try:
        return client.with_retries(ask)
    except ConfigError as error:
        raise UnreadableSource("FETCH_FAILED", str(error), shown(address)) from None
    except TransientError as error:
        # The server is there; what it gives of this file is not what it says.
        if answers and answers[-1] == _PART:
            raise UnreadableSource(
                "FETCH_FAILED", f"{error} in all tries; look at the server", shown(address)
            ) from None
        raise


class Ranges:
    """The bytes of a remote file, as far as they have been asked for.

    GDAL cannot carry an exception through its own code: what goes wrong stands in `failure`, and no more bytes come.

    Args:
        remote: which file it is.
        client: asks for it.
        uri: how an error names it.
    """

    def __init__(self, remote: RemoteFile, client: Client, uri: str) -> None:
        self.failure: UnreadableSource | TransientError | None = None
        self.size = remote.size
        self._remote = remote
        self._client = client
        self._uri = uri
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        self._next = -1
        self._ahead = 1

    def read(self, start: int, end: int) -> bytes:
        """Give the bytes from `start` to before `end`, as far as there are; none after a failure."""
        end = min(end, self.size)
        if self.failure is not None or start >= end:
            return b""
        try:
            return self._between(start, end)
        except (UnreadableSource, TransientError) as error:
            self.failure = error
            return b""

    def _between(self, start: int, end: int) -> bytes:
        first, last = start // _CHUNK_BYTES, (end - 1) // _CHUNK_BYTES
        missing = [number for number in range(first, last + 1) if number not in self._kept]
        found = {number: self._kept[number] for number in range(first, last + 1) if number in self._kept}
        if missing:
            # Read on and on, as rows of blocks are: twice as far ahead each time.
            self._ahead = min(2 * self._ahead, _AHEAD) if missing[0] == self._next else 1
            stop = max(missing[-1] + 1, missing[0] + self._ahead)
            stop = min(stop, -(-self._remote.size // _CHUNK_BYTES))
            found |= self._fetch(missing[0], stop)
            self._next = stop
        for number in found:
            self._kept[number] = found[number]
            self._kept.move_to_end(number)
        while len(self._kept) > _MOST_CHUNKS:
            self._kept.popitem(last=False)
        offset = first * _CHUNK_BYTES
        return b"".join(found[number] for number in range(first, last + 1))[start - offset : end - offset]

    def _fetch(self, first: int, stop: int) -> dict[int, bytes]:
        start, end = first * _CHUNK_BYTES, min(stop * _CHUNK_BYTES, self._remote.size)
        try:
            content = self._client.with_retries(lambda: self._ask(start, end))
        except Refused as error:
            code = "CHANGED" if error.status in (404, 410) else "UNREADABLE_FILE"
            raise UnreadableSource(code, f"{error}; run the ingest again", self._uri) from None
        except ConfigError as error:
            raise UnreadableSource("UNREADABLE_FILE", str(error), self._uri) from None
        if start == 0 and digest_bytes(content[:HEAD_BYTES]) != self._remote.head:
            raise self._changed()
        return {
            first + place: content[place * _CHUNK_BYTES : (place + 1) * _CHUNK_BYTES] for place in range(stop - first)
        }

    def _ask(self, start: int, end: int) -> bytes:
        validator = self._remote.validator
        headers = {"Range": f"bytes={start}-{end - 1}"}
        if validator:
            headers["If-Match" if validator.startswith('"') else "If-Unmodified-Since"] = validator
        address = self._remote.address
        with self._client.stream(address, headers) as response:
            if response.status_code != _PART:
                if response.status_code in _ANOTHER:
                    raise self._changed()
                raise self._client.refused(address, response.status_code)
            current = self._client.validator(response.headers)
            span = f"bytes {start}-{end - 1}/{self._remote.size}"
            # Not every server heeds the condition.
            if response.headers.get("Content-Range", "") != span or (current and validator and current != validator):
                raise self._changed()
            content = self._client.body(response, address, end - start)
        if len(content) != end - start:
            raise self._client.broken(address)
        return content

    def _changed(self) -> UnreadableSource:
        reason = f"{shown(self._remote.address)} is another file than at the ingest; run the ingest again"
        return UnreadableSource("CHANGED", reason, self._uri)


class RangeFile(io.RawIOBase):
    """A remote file, as a binary stream that can be read and sought; several may share what is kept.

    Args:
        ranges: the bytes.
    """

    def __init__(self, ranges: Ranges) -> None:
        super().__init__()
        self._ranges = ranges
        self._place = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Give the place of the next byte."""
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._ranges.size}[whence]
        self._place = max(0, base + offset)
        return self._place

    def read(self, size: int | None = -1) -> bytes:
        """Give the next bytes."""
        end = self._ranges.size if size is None or size < 0 else self._place + size
        content = self._ranges.read(self._place, end)
        self._place += len(content)
        return content
