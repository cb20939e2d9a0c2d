"""One file: streamed beside its place, continued by ranges where it broke off, checked, then renamed into place.

A half file is continued only while the server says that it is still the same one (``If-Range``, RFC 9110, 13.1.5): by
a strong ETag, or by the date of its last change. A note beside it keeps that validator through ``kill -9``.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vitpipe.arrivals import FETCH_FAILED
from vitpipe.atomic import PARTIAL_PREFIX, make_folder, sync_directory, workspace_errors, write_json
from vitpipe.errors import ConfigError, TransientError, UnreadableSource, WorkspaceError
from vitpipe.stac.items import WantedFile
from vitpipe.web.address import is_remote, shown
from vitpipe.web.client import Client, Refused, range_of
from vitpipe.web.retries import BusyError

if TYPE_CHECKING:
    import requests

_HASHES: Final = {
    0x11: "sha1", 0x12: "sha256", 0x13: "sha512", 0x14: "sha3_512", 0x15: "sha3_384", 0x16: "sha3_256",
    0x17: "sha3_224", 0x20: "sha384", 0xD5: "md5", 0xB220: "blake2b", 0xB240: "blake2b",
}  # fmt: skip
"""Codes of the multihash table (multiformats/multicodec)."""
_READ_BYTES: Final = 1 << 20
_MOST_DIGITS: Final = 19
_COMPRESSED: Final = frozenset({"gzip", "x-gzip", "deflate", "br", "zstd", "compress", "x-compress"})


class StillBusy(TransientError):
    """The server answers, but all tries did not get this one file."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """A file that lies in its place."""

    bytes: int
    validator: str
    """Strong ETag or date of the last change; empty where the server gives none."""
    unchecked: bool = False
    """Its checksum is of a kind that is not known here."""
    fresh: bool = True
    """It was downloaded or linked now; else it lay there already."""


def download(file: WantedFile, folder: Path, client: Client, before: str = "") -> Arrived:
    """Bring one file into a folder.

    Args:
        file: what is wanted. One on this machine is linked, not copied.
        folder: of its scene; made where it is missing.
        client: asks.
        before: validator of the file that lies there already, which is kept where it still holds.

    Raises:
        UnreadableSource: ``FETCH_FAILED``, ``ADDRESS_REFUSED``, ``CHECKSUM_MISMATCH``.
        TransientError: the server does not answer, after all retries; what has arrived is kept.
        WorkspaceError: the folder cannot be written or is full.
    """
    make_folder(folder)
    target = folder / file.name
    if refusal := client.rules.refusal(file.address):
        raise UnreadableSource("ADDRESS_REFUSED", f"{shown(file.address)}: {refusal}", str(target))
    if not is_remote(file.address):
        return _link(file, target)
    partial = _Partial(target)
    answers: list[int] = []
    while True:
        there, _ = partial.state()
        try:
            return client.with_retries(lambda: _one_try(file, partial, client, before, answers))
        except WorkspaceError:
            raise
        except ConfigError as error:
            raise UnreadableSource(FETCH_FAILED, str(error), str(target)) from None
        except TransientError as error:
            # A connection that breaks again and again, but brings a part each time, does get there.
            if partial.state()[0] > there and not client.stop.is_set():
                continue
            if answers and answers[-1]:
                raise StillBusy(str(error)) from None
            raise


def _link(file: WantedFile, target: Path) -> Arrived:
    source = Path(file.address)
    if not source.is_file():
        raise UnreadableSource(
            FETCH_FAILED, f"no file {shown(file.address)}; correct the item, or put it there", str(target)
        )
    unchecked = _verify(source, file, target)
    with workspace_errors(target):
        target.unlink(missing_ok=True)
        target.symlink_to(source)
    return Arrived(source.stat().st_size, "", unchecked)


def _one_try(file: WantedFile, partial: _Partial, client: Client, before: str, answers: list[int]) -> Arrived:
    """Ask once; keeps in `answers` with which status a busy server answers."""
    try:
        return _ask(file, partial, client, before)
    except BusyError as error:
        answers.append(error.status)
        raise


def _ask(file: WantedFile, partial: _Partial, client: Client, before: str) -> Arrived:
    there, validator = partial.state()
    headers: dict[str, str] = {}
    if there:
        headers = {"Range": f"bytes={there}-", "If-Range": validator}
    elif before and partial.target.is_file():
        headers = {"If-None-Match" if before.startswith('"') else "If-Modified-Since": before}
    with client.stream(file.address, headers, signed=True) as response:
        status = response.status_code
        if status == 304 and not there:
            unchecked = _verify(partial.target, file, partial.target)
            return Arrived(partial.target.stat().st_size, before, unchecked, fresh=False)
        if status == 416 and there:
            # It has no such bytes any more: another file.
            partial.remove()
            raise BusyError(f"{shown(file.address)} has changed while it was fetched")
        if status not in (200, 206):
            raise client.refused(file.address, status)
        start, total = _span(response, there if "Range" in headers else 0, file.address)
        current = client.validator(response.headers)
        if start and current and current != validator:
            # Not every server heeds If-Range: the bytes that follow may be another file's.
            partial.remove()
            raise BusyError(f"{shown(file.address)} has changed while it was fetched")
        validator = current or (validator if start else "")
        partial.begin(start, validator)
        _check_length(file, total or 0, None, partial)
        with workspace_errors(partial.target), partial.path.open("r+b") as stream:
            stream.seek(start)
            for chunk in client.chunks(response, file.address):
                stream.write(chunk)
                _check_length(file, stream.tell(), total, partial)
            stream.flush()
            os.fsync(stream.fileno())
            size = stream.tell()
    if total is not None and size != total:
        status = response.status_code
        raise BusyError(f"{shown(file.address)} breaks off: {size} of {total} bytes have arrived", status=status)
    try:
        unchecked = _verify(partial.path, file, partial.target)
    except UnreadableSource:
        partial.remove()
        raise
    partial.finish()
    return Arrived(size, validator, unchecked)


def _check_length(file: WantedFile, size: int, total: int | None, partial: _Partial) -> None:
    """Refuse a file that is longer than it may be, by what its server says, or once so much has arrived.

    A body without end would fill the disk.

    Raises:
        UnreadableSource: ``CHECKSUM_MISMATCH``: it is longer than the item states; ``FETCH_FAILED``: than its kind is.
        BusyError: more comes than the server says that there is.
    """
    if file.size is not None and size > file.size:
        partial.remove()
        reason = f"it has more bytes than `file:size` {file.size} of the item; the catalog and its file do not fit"
        raise UnreadableSource("CHECKSUM_MISMATCH", reason, str(partial.target))
    if total is not None and size > total:
        partial.remove()
        raise BusyError(f"{shown(file.address)} sends more bytes than the {total} that it says")
    if file.longest is None or size <= file.longest:
        return
    partial.remove()
    reason = (
        f"{shown(file.address)} is longer than {file.longest >> 20} MiB, the most that is fetched of its kind; choose "
        "another asset, or put it as a GeoTIFF"
    )
    raise UnreadableSource(FETCH_FAILED, reason, str(partial.target))


def _span(response: requests.Response, asked: int, address: str) -> tuple[int, int | None]:
    """Tell where the bytes of an answer begin in the file, and how long the file is; None: not said."""
    encodings = {name.strip() for name in response.headers.get("Content-Encoding", "").lower().split(",")}
    if encodings & _COMPRESSED:
        raise Refused(f"{shown(address)} is sent compressed although it was asked for as it is; look at the server")
    if response.status_code == 206:
        found = range_of(response.headers)
        if found is None or found[0] != asked:
            raise Refused(f"{shown(address)} gives another range than it was asked for; look at the server", 206)
        return asked, found[2]
    length = response.headers.get("Content-Length", "")
    # Python reads no number of thousands of digits.
    return 0, int(length) if length.isascii() and length.isdigit() and len(length) < _MOST_DIGITS else None


def _verify(path: Path, file: WantedFile, target: Path) -> bool:
    """Check size and checksum where the item states them.

    Returns:
        Whether there is a checksum that cannot be checked.

    Raises:
        UnreadableSource: ``CHECKSUM_MISMATCH``.
    """
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        reason = f"{size} bytes arrived, the item states `file:size` {file.size}; the catalog and its file do not fit"
        raise UnreadableSource("CHECKSUM_MISMATCH", reason, str(target))
    if file.checksum is None:
        return False
    known = _multihash(file.checksum)
    if known is None:
        return True
    state, wanted = known
    with path.open("rb", buffering=0) as stream:
        while block := stream.read(_READ_BYTES):
            state.update(block)
    if state.digest() != wanted:
        reason = "its bytes do not fit `file:checksum` of the item; fetch it again, or ask who keeps the catalog"
        raise UnreadableSource("CHECKSUM_MISMATCH", reason, str(target))
    return False


def _multihash(text: str) -> tuple[Any, bytes] | None:
    """Read a multihash: varint code, varint length, digest; None where the code is not known or it is none."""
    try:
        content = bytes.fromhex(text)
    except ValueError:
        return None
    numbers, place = [], 0
    for _ in range(2):
        value = shift = 0
        while place < len(content):
            byte = content[place]
            place += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        numbers.append(value)
    code, length = numbers
    name, wanted = _HASHES.get(code), content[place:]
    if name is None or length != len(wanted):
        return None
    if name == "blake2b" and not 1 <= length <= hashlib.blake2b.MAX_DIGEST_SIZE:
        return None
    if name == "blake2b":
        return hashlib.blake2b(digest_size=length), wanted
    return hashlib.new(name, usedforsecurity=False), wanted


class _Partial:
    """A file on its way, and the note beside it."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = target.with_name(f"{PARTIAL_PREFIX}{target.name}")
        self._note = target.with_name(f"{PARTIAL_PREFIX}{target.name}.json")

    def state(self) -> tuple[int, str]:
        """Give how many bytes are there that can be added to, and the validator of their file."""
        try:
            validator = str(json.loads(self._note.read_text(encoding="utf-8"))["validator"])
            return (self.path.stat().st_size, validator) if validator else (0, "")
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return 0, ""

    def begin(self, start: int, validator: str) -> None:
        """Make ready for bytes from `start` on; whatever lies behind it goes."""
        with workspace_errors(self.target):
            if start == 0:
                # First the note of another file must be gone: it would vouch for these bytes.
                self._note.unlink(missing_ok=True)
                self.path.unlink(missing_ok=True)
                self.path.touch()
                write_json(self._note, {"validator": validator})
            else:
                os.truncate(self.path, start)

    def finish(self) -> None:
        """Give the file its name."""
        with workspace_errors(self.target):
            self.path.replace(self.target)
            self._note.unlink(missing_ok=True)
            sync_directory(self.target.parent)

    def remove(self) -> None:
        """Drop what has arrived."""
        self._note.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)
