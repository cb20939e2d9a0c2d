"""The index: which files there are, and what was found in each when it was last looked at.

A row a file: the cheap key (path, size, mtime), the digest of its bytes, and the header or the rejection. A batch of
files writes a piece of its own; the pieces are merged when all batches are done. As long as the cheap key stays, a
file is not opened again; when only the way of reading changed (another release, recipe or pseudonym key), its header
is read again but its bytes are not digested again.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pandas as pd

from vitpipe import __version__
from vitpipe.atomic import sweep_partials, write_file
from vitpipe.config import PipelineConfig
from vitpipe.digest import digest, digest_bytes, digest_file
from vitpipe.domains.base import Domain, ScanContext, render
from vitpipe.domains.known import domain_of
from vitpipe.errors import ConfigError, TransientError
from vitpipe.pseudonym import load_pseudonymiser
from vitpipe.records import FileRecord, Rejected, StageSummary, count_codes
from vitpipe.workspace import Workspace

INDEX_VERSION: Final = 2
"""Raise it when the meaning of a row changes: every header is then read again."""

MOST_BATCHES: Final = 300
_BATCH_SECONDS: Final = 5.0
_SECONDS_PER_FILE: Final = 0.002
_SECONDS_PER_BYTE: Final = 1 / 400e6
_SIZES_LOOKED_AT: Final = 10_000

_PIECES = "index"
_ROW_GROUP = 20_000
_COLUMNS: Final = ("path", "size", "mtime_ns", "reader", "digest", "header", "code", "reason", "junk")
# Options of the source recipe that decide what is done with an indexed file, never what is found in it.
_NOT_READ_BY_INDEX: Final = {"path", "max_reject_share", "geometry"}
_GONE: Final = -1
"""Size of a file that was listed but cannot be looked at."""

Row = tuple[str, int, int, str, str, str, str, str, bool]


# -------------------------------------------------------------------------------------------------------------- listing


def list_files(config: PipelineConfig) -> list[Path]:
    """List the files of the source, sorted by path.

    Left out: names that begin with a dot, the workspace, anything that is no file (sockets, pipes). Links to folders
    are followed, each folder once. A link that leads nowhere is listed: its rejection says so.

    Raises:
        ConfigError: the path is missing or is the workspace itself, or a folder cannot be read.
    """
    root = Path(config.source.path)
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise ConfigError(f"no such file or folder: {root}; check `source.path` (it is relative to the pipeline file)")
    workspace = _identity(Path(config.workspace))
    if workspace == _identity(root):
        raise ConfigError(f"`source.path` and `workspace` are the same folder, {root}; set `workspace` to another one")
    seen: set[tuple[int, int]] = {workspace} if workspace is not None else set()
    found: list[str] = []
    # Folders reached by links come after all others, so that a folder is named by its own path where it has one.
    linked = _walk(str(root), seen, found)
    while linked:
        linked = [deeper for folder in sorted(linked) for deeper in _walk(folder, seen, found)]
    return [Path(path) for path in sorted(found)]


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _walk(top: str, seen: set[tuple[int, int]], found: list[str]) -> list[str]:
    """Collect the files below one folder into `found`; gives the links to folders."""
    linked = []
    pending = [top]
    while pending:
        folder = pending.pop()
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    elif entry.is_dir():
                        linked.append(entry.path)
                    elif entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path)):
                        found.append(entry.path)
        except OSError as error:
            raise ConfigError(
                f"folder {folder} cannot be read ({error.strerror}); give this user access, or move it out of the data"
            ) from error
    return linked


def batches(paths: Sequence[Path], most: int = MOST_BATCHES) -> list[list[Path]]:
    """Cut a list of files into batches of several seconds of work each (headers and digests), at most `most`."""
    # The sizes of some thousand files tell enough: each stands for those that follow it.
    step = -(-len(paths) // _SIZES_LOOKED_AT) or 1
    sizes = [max(_look(path)[0], 0) for path in paths[::step]]
    work = [_SECONDS_PER_FILE + _SECONDS_PER_BYTE * sizes[place // step] for place in range(len(paths))]
    enough = max(_BATCH_SECONDS, sum(work) / most)
    result: list[list[Path]] = []
    # Full at the start: the first file opens the first batch.
    filled = enough
    for path, seconds in zip(paths, work, strict=True):
        if filled >= enough and len(result) < most:
            result.append([])
            filled = 0.0
        result[-1].append(path)
        filled += seconds
    return result


def plan_batches(config: PipelineConfig, workspace: Workspace) -> list[list[Path]]:
    """List the files in batches, one task each; what a killed run left is taken into the index first, or swept.

    Call it while holding the workspace.

    Raises:
        ConfigError: the path is missing.
    """
    sweep_partials(workspace.root)
    merge_index(workspace)
    return batches(list_files(config))


# ------------------------------------------------------------------------------------------------------------- indexing


def scan_context(config: PipelineConfig, workspace: Workspace) -> ScanContext:
    """Give what a domain may know while it looks at files."""
    return ScanContext(
        root=Path(config.source.path), pseudonym=load_pseudonymiser(workspace.root), recipe=config.source
    )


def reader_key(context: ScanContext) -> str:
    """Digest what decides how a header is read: release, kind and options, root, pseudonym key."""
    options = context.recipe.model_dump(mode="json", exclude=_NOT_READ_BY_INDEX)
    # A pseudonym of a fixed text stands for the key: headers hold pseudonyms, and another key makes others.
    return digest([INDEX_VERSION, __version__, options, str(context.root), context.pseudonym("index", "key")])


def index_files(config: PipelineConfig, workspace: Workspace, paths: Sequence[Path]) -> StageSummary:
    """Look at one batch of files and write its piece of the index.

    Args:
        config: names the kind of source.
        workspace: holds the index.
        paths: the batch; contiguous in the sorted list where it is large.

    Returns:
        Stage ``index``: `done` files looked at, `skipped` files known already, `rejected` by code (junk included).

    Raises:
        TransientError: the storage does not answer; what was looked at until then is kept.
        WorkspaceError: the piece cannot be written.
    """
    started = time.perf_counter()
    domain, context = domain_of(config.source.kind), scan_context(config, workspace)
    reader = reader_key(context)
    texts = [_text(path) for path in paths]
    piece = workspace.root / _PIECES / f"{digest_bytes(chr(10).join(texts).encode())}.parquet"
    known = _known_rows(workspace, piece, texts)
    rows: list[Row] = []
    looked = 0
    try:
        for path, text in zip(paths, texts, strict=True):
            size, mtime_ns = _look(path)
            row = known.get(text)
            same_bytes = row is not None and row[1:3] == (size, mtime_ns) and size != _GONE
            if row is None or not same_bytes or row[3] != reader:
                found = _look_inside(path, domain, context, known_digest=row[4] if row and same_bytes else "")
                row = (text, size, mtime_ns, reader, *found)
                looked += 1
            rows.append(row)
    finally:
        if looked:
            write_index(piece, pd.DataFrame(rows, columns=list(_COLUMNS)))
    rejected = [Rejected(row[0], row[6], row[7], junk=row[8]) for row in rows if row[6]]
    return StageSummary(
        stage="index",
        done=looked,
        skipped=len(rows) - looked,
        rejected=count_codes(rejected),
        seconds=time.perf_counter() - started,
    )


def _text(path: Path) -> str:
    """Give the path as UTF-8 text; bytes of another encoding are escaped."""
    return str(path).encode("utf-8", errors="backslashreplace").decode("utf-8")


def _look(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return _GONE, 0
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else (_GONE, 0)


def _look_inside(
    path: Path, domain: Domain, context: ScanContext, *, known_digest: str
) -> tuple[str, str, str, str, bool]:
    """Read a header and digest the bytes: (digest, header, code, reason, junk)."""
    if _text(path) != str(path):
        return "", "", "NAME_NOT_UTF8", "the name of the file is not UTF-8; rename it", False
    try:
        path.stat()
        header = domain.index(path, context)
        if isinstance(header, Rejected):
            return known_digest, "", header.code, header.reason, header.junk
        content = known_digest or digest_file(path)
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        reason = f"the file cannot be opened ({error.strerror}); check the link, or give this user access"
        return "", "", "CANNOT_OPEN", reason, False
    except OSError as error:
        raise TransientError(f"{path} could not be read ({error.strerror}); the storage may answer later") from error
    return content, render(header), "", "", False


# ------------------------------------------------------------------------------------------------ the table on the disk


def write_index(path: Path, table: pd.DataFrame) -> None:
    """Write rows sorted by path in small row groups, so that a batch reads its own range alone."""
    types = dict.fromkeys(("path", "reader", "digest", "header", "code", "reason"), "str")
    ordered = table.sort_values("path", ignore_index=True).astype(types | {"size": "int64", "mtime_ns": "int64"})
    with write_file(path) as partial:
        ordered.to_parquet(partial, index=False, compression="zstd", row_group_size=_ROW_GROUP)


def _known_rows(workspace: Workspace, piece: Path, texts: Sequence[str]) -> dict[str, Row]:
    """Give the rows known of these files; those of the piece that an earlier try wrote come last and win."""
    if not texts:
        return {}
    span: list[Any] = [("path", ">=", min(texts)), ("path", "<=", max(texts))]
    wanted = set(texts)
    return {
        row[0]: row
        for path in (workspace.index, piece)
        if path.is_file()
        for row in _rows(pd.read_parquet(path, columns=list(_COLUMNS), filters=span))
        if row[0] in wanted
    }


def _rows(table: pd.DataFrame) -> Iterator[Row]:
    return zip(*(table[name].tolist() for name in _COLUMNS), strict=True)


def merge_index(workspace: Workspace, keep: Sequence[Path] | None = None) -> pd.DataFrame:
    """Take all pieces into ``index.parquet`` and remove them. Call it while no batch is being written.

    Args:
        workspace: holds the index.
        keep: files that there are; rows of others are dropped. None: all rows stay.

    Returns:
        The index: a row a file, sorted by path.
    """
    folder = workspace.root / _PIECES
    sweep_partials(folder)
    pieces = sorted(folder.glob("*.parquet"), key=lambda path: (path.stat().st_mtime_ns, path.name))
    tables = [pd.read_parquet(path) for path in (workspace.index, *pieces) if path.is_file()]
    if not tables:
        return pd.DataFrame({name: [] for name in _COLUMNS}).astype({"path": "str", "code": "str", "junk": "bool"})
    # Later pieces win: they looked at the file last.
    table = pd.concat(tables, ignore_index=True).drop_duplicates("path", keep="last")
    if keep is not None:
        table = table[table["path"].isin({_text(path) for path in keep})]
    table = table.sort_values("path", ignore_index=True)
    if pieces or len(table) != len(tables[0]):
        write_index(workspace.index, table)
    for path in pieces:
        path.unlink()
    return table


def split_index(index: pd.DataFrame) -> tuple[list[FileRecord], list[Rejected]]:
    """Turn the rows of the index into records and rejections, in the order of paths."""
    records: list[FileRecord] = []
    rejected: list[Rejected] = []
    for path, size, mtime_ns, _, content, header, code, reason, junk in _rows(index):
        if code:
            rejected.append(Rejected(path, code, reason, junk=bool(junk)))
        else:
            records.append(FileRecord(path, size, mtime_ns, content, json.loads(header)))
    return records, rejected


def missing_from(index: pd.DataFrame, paths: Sequence[Path], reader: str) -> list[Path]:
    """Name the files that have no row, or one that was read in another way."""
    current = set(index.loc[index["reader"] == reader, "path"]) if len(index) else set()
    return [path for path in paths if _text(path) not in current]
