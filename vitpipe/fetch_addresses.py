"""Scenes that are read where they lie, over HTTP or from S3: what is kept of each is which file it is.

A small file in the workspace stands for each address, and the index lists it as it lists any file: it changes when the
remote file does. It is believed only with the mark of this workspace's key, so that a text among the user's data never
makes a request.
"""

from __future__ import annotations

import csv
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from vitpipe import arrivals
from vitpipe.atomic import make_folder, write_json
from vitpipe.config import GeotiffSource, PipelineConfig
from vitpipe.config.address import address_problem, is_address
from vitpipe.digest import digest
from vitpipe.domains.geotiff.remote import read_stand_in, stand_in
from vitpipe.errors import ConfigError, DataError, UnreadableSource
from vitpipe.fetch_listing import is_prefix, scenes_below
from vitpipe.pseudonym import Pseudonymiser, load_pseudonymiser
from vitpipe.records import Rejected, StageSummary, count_codes
from vitpipe.web.ranges import RemoteFile, client_of, look
from vitpipe.web.retries import Backoff
from vitpipe.workspace import Workspace

_CONNECTIONS: Final = 8
_ODD: Final = re.compile(r"[^A-Za-z0-9._-]+")
_COLUMNS: Final = ("address", "url", "href", "path", "uri")
_LONGEST_LIST: Final = 256 << 20


def fetch_addresses(
    config: PipelineConfig, source: GeotiffSource, workspace: Workspace, backoff: Backoff | None = None
) -> StageSummary:
    """Look at every address of a source, and bring what stands for it up to date. Call it while holding the workspace.

    Args:
        config: the pipeline.
        source: names an address, or a list of them.
        workspace: holds what stands for each.
        backoff: of the retries; a minute or so by default.

    Returns:
        Stage ``fetch``: `done` files that are new or changed, `skipped` those that are not, `rejected` by code.

    Raises:
        ConfigError: the list cannot be read, or an address is none.
        TooManyRejected: more than the stated share of the files cannot be read.
        TransientError: a server does not answer.
    """
    started = time.perf_counter()
    root = Path(config.on_disk().source.path)
    make_folder(root)
    places, failed, changed = stand_for(source, root, load_pseudonymiser(workspace.root), backoff)
    _sweep(root, set(places.values()))
    rejected = [Rejected(address, code, reason) for address, (code, reason) in failed.items()]
    arrivals.keep_failures(workspace.root, root, rejected)
    count = len(places) + len(rejected)
    arrivals.check_share(source.max_reject_share, rejected, count, "files")
    return StageSummary(
        "fetch",
        done=changed,
        skipped=len(places) - changed,
        rejected=count_codes(rejected),
        seconds=time.perf_counter() - started,
        notes=(f"{count} files are read where they lie",),
    )


def stand_for(
    source: GeotiffSource, root: Path, pseudonym: Pseudonymiser, backoff: Backoff | None = None
) -> tuple[dict[str, Path], dict[str, tuple[str, str]], int]:
    """Look at every address of a source, and write what stands for it below a folder.

    Args:
        source: names an address, or a list of them.
        root: the folder.
        pseudonym: its key marks what is written.
        backoff: of the retries; a minute or so by default.

    Returns:
        Address to what stands for it; address to code and reason, of those that cannot be read; how many are new or
        changed.

    Raises:
        ConfigError: the list cannot be read, or an address is none.
        DataError: the list is empty.
        TransientError: a server does not answer.
    """
    addresses = list(dict.fromkeys(_addresses(source, backoff)))
    places = dict(zip(addresses, _places(root, addresses), strict=True))
    by_server: dict[str, list[str]] = defaultdict(list)
    for address in addresses:
        parts = urlsplit(address)
        by_server[f"{parts.scheme}://{parts.netloc}"].append(address)
    changed = 0
    failed: dict[str, tuple[str, str]] = {}
    for listed in by_server.values():
        for address, found in _look_at(listed, plain_http=source.plain_http, backoff=backoff):
            if isinstance(found, UnreadableSource):
                failed[address] = found.code, found.reason
                del places[address]
            else:
                changed += _write(places[address], found, pseudonym)
    return places, failed, changed


def _look_at(
    addresses: Sequence[str], *, plain_http: bool, backoff: Backoff | None
) -> Iterator[tuple[str, RemoteFile | UnreadableSource]]:
    """Look at files of one server side by side."""
    with (
        client_of(addresses[0], plain_http=plain_http, connections=_CONNECTIONS, backoff=backoff) as client,
        ThreadPoolExecutor(_CONNECTIONS) as pool,
    ):

        def one(address: str) -> RemoteFile | UnreadableSource:
            try:
                return look(address, client)
            except UnreadableSource as error:
                return error

        try:
            yield from zip(addresses, pool.map(one, addresses), strict=True)
        finally:
            client.stop.set()


def _expanded(address: str, backoff: Backoff | None) -> Iterator[str]:
    """Give an address, or of a prefix of S3 those of the scenes below it."""
    if is_prefix(address):
        yield from scenes_below(address, backoff)
    else:
        yield address


def _addresses(source: GeotiffSource, backoff: Backoff | None) -> Iterator[str]:
    """Give the addresses of a source: its own, or those of its list; a prefix of S3 stands for the scenes below it.

    Raises:
        ConfigError: the list cannot be read, or holds something else.
        DataError: it is empty.
    """
    if is_address(source.path):
        yield from _expanded(source.path, backoff)
        return
    path = Path(source.path)
    try:
        if path.stat().st_size > _LONGEST_LIST:
            raise ConfigError(f"{path} is longer than {_LONGEST_LIST >> 20} MiB: no list of addresses")
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); correct `source.path`") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is no text (UTF-8); expected a list of addresses, one a line") from None
    found = False
    for number, text in _cells(path, lines):
        problem = "it is no address" if not is_address(text) else address_problem(text, plain_http=source.plain_http)
        if problem:
            raise ConfigError(f"{path}, line {number}: {problem}; expected https://host/x.tif or s3://bucket/x.tif")
        found = True
        yield from _expanded(text, backoff)
    if not found:
        raise DataError(f"{path} lists no address; write one a line, such as https://host/x.tif or s3://bucket/x.tif")


def _cells(path: Path, lines: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Give the addresses of a list with their line: lines of a text, or a column of a CSV."""
    if path.suffix.lower() != ".csv":
        for number, line in enumerate(lines, start=1):
            if line.strip() and not line.lstrip().startswith("#"):
                yield number, line.strip()
        return
    rows = list(csv.reader(lines))
    header = [name.strip().lower() for name in rows[0]] if rows else []
    column = next((header.index(name) for name in _COLUMNS if name in header), None)
    if column is None:
        raise ConfigError(f"{path} has no column of addresses; name one {', '.join(_COLUMNS[:-1])} or {_COLUMNS[-1]}")
    for number, row in enumerate(rows[1:], start=2):
        if len(row) > column and row[column].strip():
            yield number, row[column].strip()


def _places(root: Path, addresses: Sequence[str]) -> Iterator[Path]:
    """Name what stands for each address: ``<host>/<path>/<file>``, so that patterns and label tables find it."""
    taken: set[Path] = set()
    folders: set[Path] = set()
    for address in addresses:
        parts = urlsplit(address)
        names = [_ODD.sub("-", part).lstrip(".") for part in (parts.netloc, *unquote(parts.path).split("/"))]
        place = root.joinpath(*(name[:200] for name in names if name))
        if place in taken or place in folders:
            place = place.with_name(f"{digest(address)[:8]}-{place.name}")
        elif not taken.isdisjoint(place.parents):
            # On a server a file and a folder may share a name.
            place = root.joinpath(digest(address)[:16], place.name)
        taken.add(place)
        folders.update(place.parents)
        yield place


def _write(place: Path, remote: RemoteFile, pseudonym: Pseudonymiser) -> bool:
    """Write what stands for a file, unless it stands there; says whether it is new or changed."""
    if read_stand_in(place, pseudonym) == remote:
        return False
    make_folder(place.parent)
    write_json(place, stand_in(remote, pseudonym))
    return True


def _sweep(root: Path, wanted: set[Path]) -> None:
    """Remove what stands for files that are not wanted any more."""
    for path in sorted(root.rglob("*"), reverse=True):
        if path.is_file() and path not in wanted:
            path.unlink()
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()
