"""From a folder of files to the catalog: list, index (once a file), assemble, refuse what cannot be used.

Every file that is listed ends as a member of a source, or in the quarantine table: rejected, or junk of another kind.
Identity is content: a moved or touched file is the same source.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import PurePosixPath

import pandas as pd

from vitpipe.atomic import write_parquet
from vitpipe.config import PipelineConfig
from vitpipe.domains.known import domain_of
from vitpipe.errors import DataError, TooManyRejected
from vitpipe.fetch import fetch, read_failures
from vitpipe.fileindex import (
    batches,
    index_files,
    list_apart,
    list_files,
    merge_index,
    missing_from,
    plan_batches,
    reader_key,
    scan_context,
    split_index,
)
from vitpipe.records import Grid, Rejected, Source, StageSummary, count_codes
from vitpipe.workspace import Workspace

__all__ = [
    "batches",
    "build_catalog",
    "index_files",
    "ingest",
    "list_files",
    "plan_batches",
    "read_catalog",
    "read_quarantine",
    "write_catalog",
    "write_quarantine",
]

DUPLICATE = "DUPLICATE"
NOT_ASSEMBLED = "NOT_ASSEMBLED"
_EXAMPLES = 3
_JSON_COLUMNS = ("files", "grid", "channels", "attributes", "keys", "notes", "reader", "geometry")


def ingest(config: PipelineConfig, workspace: Workspace) -> StageSummary:
    """Fetch what lies on a server, index all files and build the catalog, in one go.

    Raises:
        ConfigError: the path is missing, or the server cannot be used.
        DataError: see :func:`build_catalog`.
        TransientError: the storage does not answer.
    """
    started = time.perf_counter()
    workspace.prepare()
    fetched = fetch(config, workspace)
    config = config.on_disk()
    for batch in plan_batches(config, workspace):
        index_files(config, workspace, batch)
    summary = build_catalog(config, workspace)
    return StageSummary(
        summary.stage,
        summary.done,
        summary.skipped,
        summary.rejected,
        time.perf_counter() - started,
        fetched.notes + summary.notes,
    )


def build_catalog(config: PipelineConfig, workspace: Workspace) -> StageSummary:
    """Assemble the indexed files into sources; write the quarantine table, then the catalog.

    Files that no batch has indexed yet are indexed here.

    Returns:
        Stage ``ingest``: `done` sources that are new, `skipped` those the last catalog had, `rejected` files by code
        without junk; junk, odd and vanished sources are notes.

    Raises:
        TooManyRejected: more than the stated share of the files was rejected.
        DataError: there is no source at all, or the sources have different channels or units.
        TransientError: the storage does not answer.
    """
    started = time.perf_counter()
    paths, labels = list_apart(config)
    context = scan_context(config, workspace)
    index = merge_index(workspace, keep=paths)
    if late := missing_from(index, paths, reader_key(context)):
        index_files(config, workspace, late)
        index = merge_index(workspace, keep=paths)
    records, rejected = split_index(index)
    rejected += [*read_failures(config, workspace), *labels]
    sources: list[Source] = []
    for item in domain_of(config.source.kind).assemble(records, context):
        if isinstance(item, Source):
            sources.append(item)
        else:
            rejected.append(item)
    sources, duplicates = _drop_duplicates(sources)
    rejected.extend(duplicates)
    rejected.extend(_unaccounted([record.path for record in records], sources, rejected))
    rejected.sort(key=lambda item: (item.uri, item.code, item.reason))
    write_quarantine(workspace, rejected)
    _check_share(config, workspace, _lost_files(index["path"].tolist(), sources, rejected), rejected)
    _check_sources(config, sources, rejected, listed=len(paths))
    before = _catalog_ids(workspace)
    write_catalog(workspace, sources)
    return _summarise(sources, rejected, before, time.perf_counter() - started)


# ----------------------------------------------------------------------------------------------------------- accounting


def _drop_duplicates(sources: Iterable[Source]) -> tuple[list[Source], list[Rejected]]:
    """Keep the first of sources with one content, in the order of their paths; sorted by source_id."""
    kept: dict[str, Source] = {}
    rejected: list[Rejected] = []
    for source in sorted(sources, key=lambda item: (item.uri, item.files)):
        first = kept.setdefault(source.source_id, source)
        if first is not source:
            reason = f"the same content as {first.uri}, which is used; remove one of them"
            rejected.extend(Rejected(path, DUPLICATE, reason) for path in source.files if path not in first.files)
    return [kept[name] for name in sorted(kept)], rejected


def _unaccounted(paths: Sequence[str], sources: Sequence[Source], rejected: Sequence[Rejected]) -> list[Rejected]:
    """Name indexed files that are in no source and under no rejection, so that none is lost."""
    used = {path for source in sources for path in source.files}
    named = {item.uri for item in rejected}
    result = []
    for path in paths:
        if path in used or path in named or any(str(parent) in named for parent in PurePosixPath(path).parents):
            continue
        # `scene.tif.msk` beside a rejected `scene.tif` is a companion, not one more image that was lost.
        companion = str(PurePosixPath(path).with_suffix("")) in named
        result.append(Rejected(path, NOT_ASSEMBLED, "the file belongs to no source that can be used", junk=companion))
    return result


def _lost_files(paths: Sequence[str], sources: Sequence[Source], rejected: Sequence[Rejected]) -> tuple[int, int]:
    """Count the files that are lost, and those and the used ones together. Junk and copies are neither.

    Files, not sources: three broken files among the thousand of five series are no three eighths of the data. A
    rejected folder stands for the files below it.
    """
    used = {path for source in sources for path in source.files}
    plain = {item.uri for item in rejected if item.junk or item.code == DUPLICATE}
    named = {item.uri for item in rejected} - plain
    lost = named.intersection(paths) - used
    folders = named.difference(paths)
    if folders:
        left = [path for path in paths if path not in used and path not in plain]
        below = {path for path in left if any(str(parent) in folders for parent in PurePosixPath(path).parents)}
        lost |= below
    return len(lost), len(used) + len(lost)


# --------------------------------------------------------------------------------------------------------------- checks


def _check_share(
    config: PipelineConfig, workspace: Workspace, files: tuple[int, int], rejected: Sequence[Rejected]
) -> None:
    lost, total = files
    limit = config.source.max_reject_share
    if total == 0 or lost / total <= limit or _mostly_chosen_away(files, rejected):
        return
    counted = [item for item in rejected if not item.junk and item.code != DUPLICATE]
    lines = []
    for code, count in sorted(count_codes(counted).items(), key=lambda pair: (-pair[1], pair[0])):
        first = next(item for item in counted if item.code == code)
        lines.append(f"  {code}: {count}, first {first.uri}: {first.reason}")
    raise TooManyRejected(
        f"{lost} of {total} file(s) were rejected, {lost / total:.0%}, more than `source.max_reject_share: {limit:g}` "
        f"allows:\n{chr(10).join(lines)}\nAll of them stand in {workspace.quarantine}. Repair or remove them, or raise "
        "`source.max_reject_share` to go on without them"
    )


def _mostly_chosen_away(files: tuple[int, int], rejected: Sequence[Rejected]) -> bool:
    """Tell whether no source is left because most files are not of the kind asked for: that is what must be said."""
    lost, total = files
    return lost == total and sum(item.junk for item in rejected) > lost


def _check_sources(
    config: PipelineConfig, sources: Sequence[Source], rejected: Sequence[Rejected], *, listed: int
) -> None:
    """Refuse an empty catalog, and sources that no single model could take."""
    root = config.source.path
    if not sources:
        if not listed:
            raise DataError(f"no files in {root}; check `source.path` (names that begin with a dot are left out)")
        codes = count_codes(rejected)
        found = ", ".join(f"{code} {count}" for code, count in codes.items())
        # The commonest reason says what is the matter, not the one whose path sorts first.
        commonest = max(rejected, key=lambda item: codes[item.code], default=None)
        first = f", such as {commonest.uri}: {commonest.reason}" if commonest is not None else ""
        raise DataError(
            f"none of the {listed} file(s) in {root} can be used as {config.source.kind} ({found}{first}); check "
            f"{', '.join(f'`source.{name}`' for name in _chosen_by(config))}"
        )
    options = type(config.source).model_fields
    # Several series may lie in one folder: there a file of each tells them apart.
    shared = Counter(source.uri for source in sources)
    kinds: dict[tuple[tuple[str, ...], str], list[str]] = {}
    for source in sources:
        shown = source.uri if shared[source.uri] == 1 else source.files[0]
        kinds.setdefault((source.channels, source.units), []).append(shown)
    if len(kinds) == 1:
        return
    lines = []
    for (channels, units), uris in sorted(kinds.items(), key=lambda item: (-len(item[1]), item[0])):
        shown = ", ".join(sorted(uris)[:_EXAMPLES]) + (", ..." if len(uris) > _EXAMPLES else "")
        lines.append(f"  {len(channels)} channel(s) ({', '.join(channels)}) in {units}: {len(uris)} source(s): {shown}")
    remedies = []
    if "bands" in options and len({channels for channels, _ in kinds}) > 1:
        remedies.append("set `source.bands` to bands that all of them have")
    if "modality" in options and len({source.attributes.get("modality") for source in sources}) > 1:
        remedies.append("set `source.modality` to keep one modality")
    remedies.append("point `source.path` at one kind of data and make a pipeline of its own for each of the others")
    meanings = sorted({units for _, units in kinds})
    if len(meanings) > 1:
        lines.append(f"  values in other units mean different things: {', '.join(meanings)}")
    raise DataError(
        f"the sources have different channels or units, and one model takes one kind:\n{chr(10).join(lines)}\n"
        f"{'Either ' if len(remedies) > 1 else 'To go on, '}{', or '.join(remedies)}"
    )


def _chosen_by(config: PipelineConfig) -> list[str]:
    """Name the options that decide which files are taken."""
    values = config.source.model_dump(exclude={"max_reject_share"})
    return ["kind", "path", *(name for name in ("modality", "bands") if values.get(name))]


def _summarise(
    sources: Sequence[Source], rejected: Sequence[Rejected], before: set[str], seconds: float
) -> StageSummary:
    now = {source.source_id for source in sources}
    notes = []
    junk = [item for item in rejected if item.junk]
    if junk:
        # No path: notes go to Prefect and into reports, and a file's name may be a patient's.
        codes = ", ".join(f"{code} {count}" for code, count in count_codes(junk).items())
        notes.append(
            f"{len(junk)} file(s) are of another kind and are left out ({codes}); quarantine.parquet names them"
        )
    if gone := sorted(before - now):
        shown = ", ".join(gone[:_EXAMPLES])
        notes.append(f"{len(gone)} source(s) of the last catalog are gone or changed, such as {shown}")
    for code, count in sorted(Counter(note for source in sources for note in source.notes).items()):
        notes.append(f"{count} source(s) are marked {code}{_worst_of(sources, code)}")
    return StageSummary(
        stage="ingest",
        done=len(now - before),
        skipped=len(now & before),
        rejected=count_codes(item for item in rejected if not item.junk),
        seconds=seconds,
        notes=tuple(notes),
    )


def _worst_of(sources: Sequence[Source], code: str) -> str:
    """Name the source that is worst by a code, where that is measured."""
    found: list[tuple[float, str, str]] = []
    for source in sources:
        worst = source.geometry.get("worst")
        measured = worst.get(code) if isinstance(worst, dict) else None
        if isinstance(measured, list):
            found.append((float(str(measured[0])), source.source_id, str(measured[1])))
    if not found:
        return ""
    _, source_id, clause = max(found)
    return f", the worst of them {source_id}: {clause}"


# --------------------------------------------------------------------------------------------------- tables on the disk


def write_quarantine(workspace: Workspace, rejected: Sequence[Rejected]) -> None:
    """Write the quarantine table anew: a row a rejection."""
    table = pd.DataFrame(
        {
            "uri": pd.Series([item.uri for item in rejected], dtype="str"),
            "code": pd.Series([item.code for item in rejected], dtype="str"),
            "reason": pd.Series([item.reason for item in rejected], dtype="str"),
            "junk": pd.Series([item.junk for item in rejected], dtype="bool"),
        }
    )
    write_parquet(workspace.quarantine, table)


def extend_quarantine(workspace: Workspace, rejected: pd.DataFrame) -> None:
    """Add sources that were rejected after ingest, when their pixels were read.

    The next ingest writes the table anew, and the next tiling adds its part again.

    Args:
        workspace: holds the table.
        rejected: `uri`, `code`, `reason`, `junk`; what stands there already is not added twice.
    """
    columns = ["uri", "code", "reason", "junk"]
    before = read_quarantine(workspace)
    table = pd.concat([before, rejected[columns]], ignore_index=True).drop_duplicates(columns)
    if len(table) > len(before):
        write_parquet(workspace.quarantine, table.sort_values(columns[:3], ignore_index=True))


def read_quarantine(workspace: Workspace) -> pd.DataFrame:
    """Read the quarantine table: `uri`, `code`, `reason`, `junk`; empty before the first run."""
    if not workspace.quarantine.is_file():
        return pd.DataFrame({"uri": [], "code": [], "reason": [], "junk": []}).astype({"junk": "bool"})
    return pd.read_parquet(workspace.quarantine)


def write_catalog(workspace: Workspace, sources: Sequence[Source]) -> None:
    """Write the catalog: a row a source, sorted by `source_id`; what is nested stands as JSON text."""
    ordered = sorted(sources, key=lambda source: source.source_id)
    plain = ("source_id", "group_id", "domain", "uri", "units", "dtype", "acquired_at")
    table = {name: pd.Series([getattr(source, name) for source in ordered], dtype="str") for name in plain}
    table["bytes"] = pd.Series([source.bytes for source in ordered], dtype="int64")
    for name in _JSON_COLUMNS:
        values = [source.grid.to_json() if name == "grid" else getattr(source, name) for source in ordered]
        table[name] = pd.Series([_json(value) for value in values], dtype="str")
    write_parquet(workspace.catalog, pd.DataFrame(table))


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, default=dict)


def _catalog_ids(workspace: Workspace) -> set[str]:
    if not workspace.catalog.is_file():
        return set()
    return set(pd.read_parquet(workspace.catalog, columns=["source_id"])["source_id"])


def read_catalog(workspace: Workspace, source_ids: Collection[str] | None = None) -> list[Source]:
    """Read the catalog, sorted by `source_id`.

    Args:
        workspace: holds the catalog.
        source_ids: read these alone, for a task that needs few of many. None: all.

    Raises:
        DataError: there is none yet.
    """
    if not workspace.catalog.is_file():
        raise DataError(f"no catalog in {workspace.root}; run `vitpipe ingest` first")
    chosen = None if source_ids is None else [("source_id", "in", set(source_ids) or {""})]
    table = pd.read_parquet(workspace.catalog, filters=chosen)
    names = table.columns.tolist()
    return [
        _source(dict(zip(names, row, strict=True)))
        for row in zip(*(table[name].tolist() for name in names), strict=True)
    ]


def _source(row: dict[str, object]) -> Source:
    # One call of the decoder a row: catalogs have 100,000 rows.
    # A catalog that was written before there was the column has no report.
    texts = ",".join(str(row.get(name, "{}")) for name in _JSON_COLUMNS)
    nested = dict(zip(_JSON_COLUMNS, json.loads(f"[{texts}]"), strict=True))
    acquired_at = row["acquired_at"]
    return Source(
        source_id=str(row["source_id"]),
        group_id=str(row["group_id"]),
        domain=str(row["domain"]),
        uri=str(row["uri"]),
        files=tuple(nested["files"]),
        grid=Grid.from_json(nested["grid"]),
        channels=tuple(nested["channels"]),
        units=str(row["units"]),
        dtype=str(row["dtype"]),
        acquired_at=acquired_at if isinstance(acquired_at, str) else None,
        attributes=nested["attributes"],
        keys={kind: tuple(values) for kind, values in nested["keys"].items()},
        bytes=int(str(row["bytes"])),
        notes=tuple(nested["notes"]),
        reader=nested["reader"],
        geometry=nested["geometry"],
    )
