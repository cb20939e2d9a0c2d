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
from collections import Counter
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
from vitpipe.label_files import without_labels
from vitpipe.pseudonym import load_pseudonymiser
from vitpipe.records import FileRecord, Json, Rejected, StageSummary
from vitpipe.workspace import Workspace

INDEX_VERSION: Final = 4
"""Raise it when the meaning of a row changes: every header is then read again."""

MOST_BATCHES: Final = 300
_BATCH_SECONDS: Final = 5.0
_SECONDS_PER_FILE: Final = 0.002
_SECONDS_PER_BYTE: Final = 1 / 400e6
_SIZES_LOOKED_AT: Final = 10_000

_MOST_SHARED: Final = 10_000
_PIECES = "index"
_ROW_GROUP = 20_000
_COLUMNS: Final = ("path", "size", "mtime_ns", "reader", "digest", "header", "code", "reason", "junk")
# Options of the source recipe that decide what is done with an indexed file, never what is found in it.
_NOT_READ_BY_INDEX: Final = {"path", "max_reject_share", "geometry"}
_GONE: Final = -1
"""Size of a file that was listed but cannot be looked at."""
_MAY_PASS: Final = frozenset({"CANNOT_OPEN", "UNREADABLE_FILE", "UNDECODABLE"})
_NEVER_LOOKED_AT: Final = (_GONE, 0, "", "", "")

Row = tuple[str, int, int, str, str, str, str, str, bool]
CheapKey = tuple[str, int, int]
"""Path as the index writes it, size, mtime in nanoseconds."""


# -------------------------------------------------------------------------------------------------------------- listing


def list_files(config: PipelineConfig) -> list[Path]:
    """List the files of the source, sorted by path.

    Left out: names that begin with a dot, the workspace, anything that is no file (sockets, pipes), and label rasters,
    see `vitpipe.label_files`. Links to folders are followed, each folder once. A link that leads nowhere is listed: its
    rejection says so. Where the path is a file that names others, as a DICOMDIR does, these are listed.

    Raises:
        ConfigError: the path is missing or is the workspace itself, or a folder cannot be read.
        DataError: a file that names others cannot be used.
    """
    return [Path(path) for path in list_paths(config)]


def list_paths(config: PipelineConfig) -> list[str]:
    """List the files as texts: see :func:`list_files`."""
    return list_apart(config)[0]


def list_apart(config: PipelineConfig) -> tuple[list[str], list[Rejected]]:
    """List the files as texts, and beside them those that are the labels: see :func:`list_files`."""
    return without_labels(_list_all(config), Path(config.source.path), config.labels)


def _list_all(config: PipelineConfig) -> list[str]:
    root = Path(config.source.path)
    if root.is_file():
        named = domain_of(config.source.kind).listed_in(root)
        return [str(root)] if named is None else sorted(map(str, named))
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
    # As `Path` writes them.
    return sorted(path.removeprefix("./") for path in found)


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
    """List the files that are new or changed in batches, one task each.

    What a killed run left is taken into the index first, or swept. A file whose cheap key stands in the index, read in
    the current way, is in no batch. Call it while holding the workspace.

    Raises:
        ConfigError: the path is missing.
        DataError: see :func:`list_files`.
    """
    sweep_partials(workspace.root)
    if _pieces(workspace):
        merge_index(workspace)
    known = _known_keys(workspace, reader_key(scan_context(config, workspace)))
    paths = list_paths(config)
    return batches([Path(path) for path, key in zip(paths, _cheap_keys(paths), strict=True) if key not in known])


def _known_keys(workspace: Workspace, reader: str) -> set[CheapKey]:
    """Give the cheap keys of the files that need not be looked at."""
    if not workspace.index.is_file():
        return set()
    # No header is read: they are nearly all of the table.
    table = pd.read_parquet(workspace.index, columns=["path", "size", "mtime_ns"], filters=[("reader", "==", reader)])
    # What could not be looked at may be there now.
    return {key for key in zip(*(table[name].tolist() for name in table), strict=True) if key[1] != _GONE}


def _cheap_keys(paths: Sequence[str]) -> Iterator[CheapKey]:
    for path, text in zip(paths, _texts(paths), strict=True):
        yield text, *_look(path)


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
    texts = _texts([str(path) for path in paths])
    piece = workspace.root / _PIECES / f"{digest_bytes(chr(10).join(texts).encode())}.parquet"
    known = _known_rows(workspace, piece, texts)
    rows: list[Row] = []
    codes: list[str] = []
    try:
        for path, text in zip(paths, texts, strict=True):
            size, mtime_ns = _look(path)
            size_before, mtime_before, reader_before, content, code = known.get(text, _NEVER_LOOKED_AT)
            same_bytes = (size_before, mtime_before) == (size, mtime_ns) and size != _GONE
            if not same_bytes or reader_before != reader:
                if size == _GONE:
                    found = _look_for(path, domain, context)
                else:
                    found = _look_inside(path, domain, context, known_digest=content if same_bytes else "")
                code = found[2]
                # Access, or a decoder, may come without a change of the file: it is looked at again.
                stamp = (_GONE, 0) if code in _MAY_PASS else (size, mtime_ns)
                rows.append((text, *stamp, reader, *found))
            codes.append(code)
    finally:
        if rows:
            _write_piece(piece, rows)
    return StageSummary(
        stage="index",
        done=len(rows),
        skipped=len(codes) - len(rows),
        rejected=dict(sorted(Counter(code for code in codes if code).items())),
        seconds=time.perf_counter() - started,
    )


def _texts(paths: Sequence[str]) -> list[str]:
    """Give the paths as UTF-8 texts; bytes of another encoding are escaped."""
    try:
        "".join(paths).encode("utf-8")
    except UnicodeEncodeError:
        return [path.encode("utf-8", errors="backslashreplace").decode("utf-8") for path in paths]
    return list(paths)


def _look(path: str | Path) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return _GONE, 0
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else (_GONE, 0)


def _look_for(path: Path, domain: Domain, context: ScanContext) -> tuple[str, str, str, str, bool]:
    """Say why a file that was listed cannot be looked at."""
    if not os.path.lexists(path):
        reason = "the file was listed, but it is not there; copy it again, with the folder that it belongs to"
        return "", "", "MISSING_FILE", reason, False
    try:
        path.stat()
    except OSError as error:
        if not isinstance(error, FileNotFoundError | PermissionError):
            raise TransientError(
                f"{path} cannot be looked at ({error.strerror}); the storage may answer later"
            ) from error
        return _cannot_open(error)
    return _look_inside(path, domain, context, known_digest="")


def _cannot_open(error: OSError) -> tuple[str, str, str, str, bool]:
    reason = f"the file cannot be opened ({error.strerror}); check the link, or give this user access"
    return "", "", "CANNOT_OPEN", reason, False


def _look_inside(
    path: Path, domain: Domain, context: ScanContext, *, known_digest: str
) -> tuple[str, str, str, str, bool]:
    """Read a header and digest the bytes: (digest, header, code, reason, junk)."""
    if _texts([str(path)]) != [str(path)]:
        return "", "", "NAME_NOT_UTF8", "the name of the file is not UTF-8; rename it", False
    try:
        header = domain.index(path, context)
        if isinstance(header, Rejected):
            return known_digest, "", header.code, header.reason, header.junk
        content = known_digest or digest_file(path)
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        return _cannot_open(error)
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


def _known_rows(workspace: Workspace, piece: Path, texts: Sequence[str]) -> dict[str, tuple[int, int, str, str, str]]:
    """Give size, mtime, reader, digest and code known of these files, by path.

    What stands in the piece that an earlier try wrote comes last and wins.
    """
    if not texts:
        return {}
    span: list[Any] = [("path", ">=", min(texts)), ("path", "<=", max(texts))]
    columns = ["path", "size", "mtime_ns", "reader", "digest", "code"]
    wanted = set(texts)
    return {
        row[0]: row[1:]
        for path in (workspace.index, piece)
        if path.is_file()
        for row in _rows(pd.read_parquet(path, columns=columns, filters=span), columns)
        if row[0] in wanted
    }


def _write_piece(piece: Path, rows: Sequence[Row]) -> None:
    """Write the rows of a batch; those that an earlier try of it wrote stay."""
    table = pd.DataFrame(rows, columns=list(_COLUMNS))
    if piece.is_file():
        table = pd.concat([pd.read_parquet(piece), table], ignore_index=True).drop_duplicates("path", keep="last")
    write_index(piece, table)


def _rows(table: pd.DataFrame, columns: Sequence[str] = _COLUMNS) -> Iterator[Any]:
    return zip(*(table[name].tolist() for name in columns), strict=True)


def _pieces(workspace: Workspace) -> list[Path]:
    """List the pieces, the oldest first."""
    pieces = (workspace.root / _PIECES).glob("*.parquet")
    return sorted(pieces, key=lambda path: (path.stat().st_mtime_ns, path.name))


def merge_index(workspace: Workspace, keep: Sequence[str] | None = None) -> pd.DataFrame:
    """Take all pieces into ``index.parquet`` and remove them. Call it while no batch is being written.

    Args:
        workspace: holds the index.
        keep: files that there are; rows of others are dropped. None: all rows stay.

    Returns:
        The index: a row a file, sorted by path.
    """
    sweep_partials(workspace.root / _PIECES)
    pieces = _pieces(workspace)
    tables = [pd.read_parquet(path) for path in (workspace.index, *pieces) if path.is_file()]
    if not tables:
        return pd.DataFrame({name: [] for name in _COLUMNS}).astype({"path": "str", "code": "str", "junk": "bool"})
    before = len(tables[0])
    # Later pieces win: they looked at the file last.
    table = pd.concat(tables, ignore_index=True).drop_duplicates("path", keep="last") if pieces else tables[0]
    del tables
    if keep is not None:
        stays = table["path"].isin(_texts(keep))
        table = table if stays.all() else table[stays]
    if pieces or len(table) != before:
        table = table.sort_values("path", ignore_index=True)
        write_index(workspace.index, table)
    for path in pieces:
        path.unlink()
    return table


def split_index(index: pd.DataFrame) -> tuple[list[FileRecord], list[Rejected]]:
    """Turn the rows of the index into records and rejections, in the order of paths."""
    records: list[FileRecord] = []
    rejected: list[Rejected] = []
    shared: dict[str, Json] = {}
    for path, size, mtime_ns, _, content, header, code, reason, junk in _rows(index):
        if code:
            rejected.append(Rejected(path, code, reason, junk=bool(junk)))
        else:
            records.append(FileRecord(path, size, mtime_ns, content, _parse(header, shared)))
    return records, rejected


def _parse(text: str, shared: dict[str, Json]) -> dict[str, Json]:
    """Parse a header; parts that are the same in many files, such as a pixel format, become one object."""
    header: dict[str, Json] = json.loads(text)
    if len(shared) >= _MOST_SHARED:
        shared.clear()
    for name, value in header.items():
        if isinstance(value, dict | list):
            header[name] = shared.setdefault(repr(value), value)
    return header


def missing_from(index: pd.DataFrame, paths: Sequence[str], reader: str) -> list[Path]:
    """Name the files that have no row, or one that was read in another way."""
    current = set(index.loc[index["reader"] == reader, "path"].tolist()) if len(index) else set()
    return [Path(path) for path, text in zip(paths, _texts(paths), strict=True) if text not in current]
