"""From a path to sources: the same index, assembly and cut as the pipeline, without a workspace."""

from __future__ import annotations

import dataclasses
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from vitpipe.config import GeotiffSource
from vitpipe.config.address import address_problem, is_address, names_addresses
from vitpipe.digest import digest_file
from vitpipe.domains.base import Domain, ScanContext
from vitpipe.errors import ConfigError, TransientError
from vitpipe.pseudonym import Pseudonymiser
from vitpipe.records import FileRecord, Rejected, Source


def place_of(place: str | Path) -> Path | str:
    """Give where data lie: a path, of a path or a ``file://`` URI, or the address of a scene as it is.

    Raises:
        ConfigError: there is nothing, or the URI is of another scheme, or names no file that may be read.
    """
    text = str(place)
    if is_address(text):
        if problem := address_problem(text, plain_http=False):
            raise ConfigError(f"the address cannot be used: {problem}")
        return text
    if "://" in text:
        parts = urlsplit(text)
        if parts.scheme != "file":
            raise ConfigError(f"{parts.scheme}:// cannot be read; copy the data to this machine and give their path")
        text = unquote(parts.path)
    path = Path(text).expanduser().absolute()
    if not path.exists():
        raise ConfigError(f"no file or folder at {path}")
    # Sentences and catalogs name files by this path.
    return path.resolve() if ".." in path.parts else path


def read_sources(place: Path | str, domain: Domain, recipe: Any) -> Iterator[Source | Rejected]:  # noqa: ANN401 - a source recipe
    """Index and assemble a file, all files below a folder, or a scene that is read where it lies.

    The pseudonym key is thrown away: a source that is only predicted on leaves no name behind, not even a keyed one.

    Args:
        place: file, folder, address, or a list of addresses (see `vitpipe.config.GeotiffSource`).
        domain: reads it.
        recipe: the source recipe of the model.

    Raises:
        ConfigError: an address, and the model reads no scenes.
        TransientError: a server or a disk does not answer.
    """
    pseudonym = Pseudonymiser(secrets.token_bytes(32))
    if isinstance(recipe, GeotiffSource) and names_addresses(str(place)):
        yield from _read_addresses(domain, recipe, pseudonym)
        return
    if isinstance(place, str):
        raise ConfigError("scenes alone are read where they lie, and the model reads others; copy the data here")
    root = place if place.is_dir() else place.parent
    yield from _read_files(_files(place), domain, ScanContext(root=root, pseudonym=pseudonym, recipe=recipe))


def _read_addresses(domain: Domain, recipe: GeotiffSource, pseudonym: Pseudonymiser) -> Iterator[Source | Rejected]:
    """Read scenes where they lie; their URI is their address, and no file stands for them any more afterwards."""
    from vitpipe.fetch_addresses import stand_for

    with tempfile.TemporaryDirectory(prefix="vitpipe-remote-") as folder:
        places, failed, _ = stand_for(recipe, Path(folder), pseudonym)
        for address, (code, reason) in failed.items():
            yield Rejected(address, code, reason)
        addresses = {str(path): address for address, path in places.items()}
        context = ScanContext(root=Path(folder), pseudonym=pseudonym, recipe=recipe)
        for found in _read_files(sorted(places.values()), domain, context):
            uri = addresses.get(found.uri, found.uri)
            if isinstance(found, Rejected):
                yield dataclasses.replace(found, uri=uri)
            else:
                files = tuple(addresses.get(file, file) for file in found.files)
                yield dataclasses.replace(found, uri=uri, files=files)


def _read_files(files: Sequence[Path], domain: Domain, context: ScanContext) -> Iterator[Source | Rejected]:
    records: list[FileRecord] = []
    for file in files:
        try:
            header = domain.index(file, context)
            if isinstance(header, Rejected):
                yield header
                continue
            state = file.stat()
            records.append(FileRecord(str(file), state.st_size, state.st_mtime_ns, digest_file(file), header))
        except (FileNotFoundError, PermissionError) as error:
            reason = f"the file cannot be opened ({error.strerror}); check the link, or give this user access"
            yield Rejected(str(file), "CANNOT_OPEN", reason)
        except OSError as error:
            raise TransientError(
                f"{file} could not be read ({error.strerror}); the storage may answer later"
            ) from error
    yield from domain.assemble(records, context)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(
        file
        for file in path.rglob("*")
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
