"""From a path to sources: the same index, assembly and cut as the pipeline, without a workspace."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from vitpipe.digest import digest_file
from vitpipe.domains.base import Domain, ScanContext
from vitpipe.errors import ConfigError
from vitpipe.pseudonym import Pseudonymiser
from vitpipe.records import FileRecord, Rejected, Source


def local_path(place: str | Path) -> Path:
    """Give the path of a place: a path, or a ``file://`` URI.

    Raises:
        ConfigError: there is nothing, or the URI is of another scheme.
    """
    text = str(place)
    if "://" in text:
        parts = urlsplit(text)
        if parts.scheme != "file":
            raise ConfigError(f"{text}: {parts.scheme}:// cannot be read; copy it to this machine and give its path")
        text = unquote(parts.path)
    path = Path(text).expanduser().absolute()
    if not path.exists():
        raise ConfigError(f"no file or folder at {path}")
    return path


def read_sources(path: Path, domain: Domain, recipe: Any) -> Iterator[Source | Rejected]:  # noqa: ANN401 - a source recipe
    """Index and assemble a file or all files below a folder.

    The pseudonym key is thrown away: a source that is only predicted on leaves no name behind, not even a keyed one.

    Args:
        path: file or folder.
        domain: reads it.
        recipe: the source recipe of the model.
    """
    root = path if path.is_dir() else path.parent
    context = ScanContext(root=root, pseudonym=Pseudonymiser(secrets.token_bytes(32)), recipe=recipe)
    records: list[FileRecord] = []
    for file in _files(path):
        header = domain.index(file, context)
        if isinstance(header, Rejected):
            yield header
            continue
        state = file.stat()
        records.append(FileRecord(str(file), state.st_size, state.st_mtime_ns, digest_file(file), header))
    yield from domain.assemble(records, context)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(
        file
        for file in path.rglob("*")
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
