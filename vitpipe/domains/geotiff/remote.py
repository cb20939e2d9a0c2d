"""A scene that is read where it lies: a small file stands for it, GDAL reads it through our own requests.

No part of GDAL that reaches the network is used: which server is asked, with which credentials, and whether the file is
still the same one, is decided in `vitpipe.web`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader

from vitpipe.digest import digest
from vitpipe.domains.geotiff.header import HEADER_ERRORS, bad_header, describe, is_jp2, is_tiff, not_tiff
from vitpipe.domains.geotiff.products.metadata import MOST_BYTES, is_metadata, parse_metadata
from vitpipe.errors import UnreadableSource
from vitpipe.opening import gdal_environment, open_stream
from vitpipe.pseudonym import Pseudonymiser
from vitpipe.records import FileRecord, Json, Rejected
from vitpipe.web.ranges import RangeFile, Ranges, RemoteFile, client_of

_MARK: Final = "vitpipe_remote"
_LONGEST: Final = 1 << 14


def stand_in(remote: RemoteFile, pseudonym: Pseudonymiser) -> Mapping[str, Json]:
    """Give the content of the file that stands for a remote one."""
    return {**remote.to_json(), _MARK: _mark(remote, pseudonym)}


def read_stand_in(path: Path, pseudonym: Pseudonymiser) -> RemoteFile | None:
    """Read the file that stands for a remote one; None where it is another file, or one that this key did not mark.

    A file that only looks like one must not make a request: whoever can put it among the data could name any address.
    """
    try:
        if path.stat().st_size > _LONGEST:
            return None
        values = json.loads(path.read_bytes())
        remote = RemoteFile.from_json(values)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return remote if values.get(_MARK) == _mark(remote, pseudonym) else None


def _mark(remote: RemoteFile, pseudonym: Pseudonymiser) -> str:
    return pseudonym(_MARK, json.dumps(remote.to_json(), sort_keys=True))


class RemoteTiff:
    """An opened remote scene.

    Args:
        remote: which file.
        uri: how an error names it.
    """

    def __init__(self, remote: RemoteFile, uri: str) -> None:
        # Whether plain http is allowed was decided where the address was named.
        self._client = client_of(remote.address, plain_http=urlsplit(remote.address).scheme == "http")
        self._ranges = Ranges(remote, self._client, uri)

    def start(self, size: int) -> bytes:
        """Give the first bytes.

        Raises:
            UnreadableSource, TransientError: see `raise_failure`.
        """
        content = self._ranges.read(0, size)
        self.raise_failure()
        return content

    def open(self) -> DatasetReader:
        """Open it by the GTiff driver; call it inside `gdal_environment`.

        Raises:
            rasterio.errors.RasterioIOError: it is no TIFF, or its header is broken.
            UnreadableSource, TransientError: see `raise_failure`.
        """
        try:
            return open_stream(lambda: RangeFile(self._ranges))
        except (CPLE_BaseError, RasterioError):
            self.raise_failure()
            raise

    def stream(self) -> RangeFile:
        """Give its bytes; after a failure none come, see `raise_failure`."""
        return RangeFile(self._ranges)

    def raise_failure(self) -> None:
        """Raise what kept bytes from coming, if anything did.

        Raises:
            UnreadableSource: ``CHANGED``, or ``UNREADABLE_FILE``: the server does not give it any more.
            TransientError: the server does not answer.
        """
        if self._ranges.failure is not None:
            raise self._ranges.failure

    def close(self) -> None:
        """Close the connection."""
        self._client.__exit__(None, None, None)


def read_remote_header(path: Path, remote: RemoteFile) -> Mapping[str, Json] | Rejected:
    """Look at a remote scene; see :func:`vitpipe.domains.geotiff.header.read_header`.

    Args:
        path: the file that stands for it.
        remote: the scene.

    Raises:
        TransientError: the server does not answer.
    """
    uri = str(path)
    if path.suffix.lower() in (".msk", ".ovr"):
        return Rejected(uri, "SIDECAR", "masks and overviews beside a scene are not read from afar; download both")
    tiff = RemoteTiff(remote, uri)
    try:
        if is_metadata(path.name):
            found = parse_metadata(path, tiff.start(min(remote.size, MOST_BYTES)))
            return found if isinstance(found, Rejected) else {**found, "remote": remote.to_json()}
        start = tiff.start(512)
        if not is_tiff(start):
            return _no_tiff(path, start)
        with gdal_environment(), tiff.open() as dataset:
            header = describe(dataset, remote.size, path)
        tiff.raise_failure()
        return header if isinstance(header, Rejected) else {**header, "remote": remote.to_json()}
    except UnreadableSource as error:
        return Rejected(uri, error.code, error.reason)
    except HEADER_ERRORS:
        tiff.raise_failure()
        return bad_header(uri)
    finally:
        tiff.close()


def _no_tiff(path: Path, start: bytes) -> Rejected:
    """Say what a remote file is that does not begin as a TIFF."""
    if not is_jp2(start):
        return not_tiff(path, start)
    reason = (
        "a JPEG 2000 is not read from afar: its pixels lie in no blocks that could be asked for; download it, or fetch "
        "it as an asset of a STAC catalog (`kind: stac`, `jpeg2000: true`)"
    )
    return Rejected(str(path), "NOT_GEOTIFF", reason)


def identified(record: FileRecord) -> FileRecord:
    """Give the record of a remote scene the digest of what is known of its content, not of where it lies."""
    known: Any = record.header.get("remote")
    if known is None:
        return record
    remote = RemoteFile.from_json(known)
    content = digest([remote.size, remote.validator, remote.head])
    return dataclasses.replace(record, digest=content, size=remote.size)


def remote_of(reader: Mapping[str, Any]) -> RemoteFile | None:
    """Give the remote file that a source's `reader` names; None where the source lies on the disk."""
    return RemoteFile.from_json(reader["remote"]) if "remote" in reader else None
