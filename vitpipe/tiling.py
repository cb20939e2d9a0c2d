"""Cut sources into tiles: streamed by rows of tiles, in shards that a killed run makes again byte for byte.

The plan (source to shard) is written before any work and only grows, so it does not matter where a run was stopped.
A source that cannot be read leaves no tile in its shard and a row in the shard's ``rejected.parquet``.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vitpipe.atomic import sweep_partials, workspace_errors, write_folder, write_json, write_parquet
from vitpipe.config import PipelineConfig, TileRecipe
from vitpipe.cutting import Block, cut, origins, planned_windows, tile_values, window_count, windows
from vitpipe.digest import digest, digest_of_digests
from vitpipe.domains.known import domain_of
from vitpipe.errors import ContractError, DataError, TooManyRejected, TransientError, UnreadableSource
from vitpipe.records import BOX_COLUMN, Json, Rejected, Source, StageSummary, Window, count_codes
from vitpipe.resample import preparation, tile_channels
from vitpipe.store import (
    PREPARATION_COLUMN,
    REJECTED_FILE,
    TABLE_FILE,
    ShardContract,
    ShardWriter,
    committed_shards,
    read_contract,
)
from vitpipe.workspace import Workspace

__all__ = [
    "Block", "origins", "windows", "window_count", "cut",
    "STAGE", "TILING_VERSION", "tile_digest", "sweep", "plan_shards", "tile_shard", "tile",
    "read_tile_rejections", "check_tiling", "pixel_digests",
]  # fmt: skip

STAGE: Final = "tile"
TILING_VERSION: Final = 1
"""Raised whenever the same file and recipe would give other pixels: a change in a reader, the filter or the cutting."""

_PLAN_FILE: Final = "plan.parquet"
_RECIPE_FILE: Final = "recipe.json"
_REJECTED_COLUMNS: Final = ("source_id", "uri", "code", "reason", "junk")
_UNCHANGED_BY: Final = frozenset({"path", "max_reject_share", "modality", "geometry", "burned_in", "verify"})
"""Options of a source that choose among sources, limit a run or show in the source's identity; every other one is taken
to change the pixels."""


def tile_digest(config: PipelineConfig) -> str:
    """Digest everything that changes tiles: recipe, source options and code version, but no path and no shard size."""
    return digest(_recipe_record(config))


def sweep(workspace: Workspace, tiles_digest: str) -> int:
    """Remove what a killed run left half-written, and count it; the caller holds the workspace lock."""
    return sweep_partials(workspace.tiles(tiles_digest))


def plan_shards(config: PipelineConfig, workspace: Workspace, sources: Sequence[Source]) -> list[str]:
    """Assign new sources to shards, write that down, and give the shards that are still to be made.

    Sources are taken in the order of their identity and filled into shards of about ``shard_mib``. A planned source
    stays in its shard, except where the shard was never made and one of its sources has left the catalog since.

    Raises:
        DataError: sources differ in channels or units, so no model could take all.
        WorkspaceError: the plan cannot be written.
    """
    _check_alike(sources)
    folder = workspace.tiles(tile_digest(config))
    if not (folder / _RECIPE_FILE).exists():
        write_json(folder / _RECIPE_FILE, _recipe_record(config) | {"digest": folder.name})
    known = {source.source_id: source for source in sources}
    plan = _read_plan(folder)
    committed = {shard.name for shard in committed_shards(folder)}
    broken = set(plan.loc[~plan["source_id"].isin(list(known)), "shard_id"]) - committed
    kept = plan[~plan["shard_id"].isin(broken)]
    planned = set(kept["source_id"])
    fresh = [known[source_id] for source_id in sorted(set(known) - planned)]
    added = [
        (source.source_id, digest_of_digests(item.source_id for item in batch))
        for batch in _batches(fresh, config.tiles)
        for source in batch
    ]
    if added or broken:
        kept = pd.concat([kept, pd.DataFrame(added, columns=["source_id", "shard_id"])], ignore_index=True)
        write_parquet(folder / _PLAN_FILE, kept.astype("str"))
    return [str(shard_id) for shard_id in dict.fromkeys(kept["shard_id"]) if shard_id not in committed]


def _read_plan(folder: Path) -> pd.DataFrame:
    path = folder / _PLAN_FILE
    if not path.exists():
        return pd.DataFrame({"source_id": pd.Series(dtype="str"), "shard_id": pd.Series(dtype="str")})
    return pd.read_parquet(path)


def _check_alike(sources: Sequence[Source]) -> None:
    kinds: dict[tuple[tuple[str, ...], str], list[str]] = {}
    for source in sources:
        kinds.setdefault((source.channels, source.units), []).append(source.uri)
    if len(kinds) > 1:
        found = "; ".join(
            f"{len(uris)} with {len(channels)} channels {', '.join(channels)} in {units}, such as {uris[0]}"
            for (channels, units), uris in sorted(kinds.items(), key=lambda item: -len(item[1]))[:5]
        )
        raise DataError(
            f"the sources do not have the same channels and units: {found}. Name the common ones in `source.bands`, or "
            "point `source.path` at sources of one kind"
        )


def _batches(sources: Sequence[Source], recipe: TileRecipe) -> Iterator[list[Source]]:
    """Fill sources into shards of one dtype; a source larger than a shard has one for itself."""
    limit = recipe.shard_mib << 20
    for dtype in sorted({source.dtype for source in sources}):
        batch: list[Source] = []
        filled = 0
        for source in (item for item in sources if item.dtype == dtype):
            size = _estimated_bytes(source, recipe)
            if batch and filled + size > limit:
                yield batch
                batch, filled = [], 0
            batch.append(source)
            filled += size
        if batch:
            yield batch


def _estimated_bytes(source: Source, recipe: TileRecipe) -> int:
    try:
        count = planned_windows(source.grid, recipe, uri=source.uri)
    except UnreadableSource:  # It is rejected with this reason when it is opened.
        count = window_count(source.grid, recipe)
    return count * tile_values(recipe, source.channels) * np.dtype(source.dtype).itemsize


def _recipe_record(config: PipelineConfig) -> dict[str, Json]:
    """Everything that a tile depends on besides its source."""
    recipe: dict[str, Json] = config.tiles.model_dump(mode="json", exclude={"shard_mib"})
    if config.tiles.cut == "whole":
        del recipe["stride"], recipe["edge"]
        recipe.pop("stride_depth", None)
    else:
        recipe["stride"] = config.tiles.step
        if config.tiles.depth is not None:
            recipe["stride_depth"] = config.tiles.step_depth
    options: dict[str, Json] = config.source.model_dump(mode="json", exclude=set(_UNCHANGED_BY))
    return {"tiles": recipe, "source": options, "tiling_version": TILING_VERSION}


def planned_sources(config: PipelineConfig, workspace: Workspace, shard_id: str) -> list[str]:
    """Name the sources of one shard of the plan, so that a task need not read the whole catalog."""
    plan = _read_plan(workspace.tiles(tile_digest(config)))
    return [str(source_id) for source_id in plan.loc[plan["shard_id"] == shard_id, "source_id"]]


def tile_shard(config: PipelineConfig, workspace: Workspace, sources: Sequence[Source], shard_id: str) -> StageSummary:
    """Make one shard of the plan; nothing is done where it is there already.

    Args:
        config: the pipeline.
        workspace: where tiles lie; :func:`plan_shards` has run.
        sources: the catalog, or at least the shard's sources.
        shard_id: one that :func:`plan_shards` gave.

    Returns:
        Sources tiled, skipped, and rejected by code.

    Raises:
        TransientError: a store does not answer; try again.
        WorkspaceError: the disk is full or cannot be written; nothing half-written is taken for whole.
        ContractError: the plan names sources that `sources` lacks.
    """
    started = time.monotonic()
    folder = workspace.tiles(tile_digest(config))
    members = planned_sources(config, workspace, shard_id)
    if (folder / shard_id / TABLE_FILE).is_file():
        return StageSummary(STAGE, skipped=len(members))
    known = {source.source_id: source for source in sources}
    missing = [source_id for source_id in members if source_id not in known]
    if missing or not members:
        raise ContractError(
            f"shard {shard_id} of {folder} is planned with {len(members)} sources, of which {len(missing)} are not in "
            "the catalog that was given; plan again with the same catalog"
        )
    rejected = _write_shard(folder / shard_id, [known[source_id] for source_id in members], config.tiles)
    return StageSummary(
        STAGE,
        done=len(members) - len(rejected),
        rejected=count_codes(rejected),
        seconds=time.monotonic() - started,
    )


def tile(config: PipelineConfig, workspace: Workspace, sources: Sequence[Source]) -> StageSummary:
    """Tile every source that has no tiles yet; the caller holds the workspace lock.

    Raises:
        TooManyRejected: see :func:`check_tiling`.
        DataError, TransientError, WorkspaceError: see :func:`plan_shards` and :func:`tile_shard`.
    """
    tiles_digest = tile_digest(config)
    with workspace_errors(workspace.tiles(tiles_digest)):
        sweep(workspace, tiles_digest)
    pending = plan_shards(config, workspace, sources)
    summary = StageSummary(STAGE)
    for shard_id in pending:
        summary += tile_shard(config, workspace, sources, shard_id)
    return summary + check_tiling(config, workspace, sources, pending)


def read_tile_rejections(workspace: Workspace, tiles_digest: str) -> pd.DataFrame:
    """Give a row a source that could not be tiled: source_id, uri, code, reason, junk; sorted by source_id."""
    paths = [shard / REJECTED_FILE for shard in committed_shards(workspace.tiles(tiles_digest))]
    tables = [pd.read_parquet(path) for path in paths if path.exists()]
    if not tables:
        return pd.DataFrame({name: pd.Series(dtype="str") for name in _REJECTED_COLUMNS[:-1]} | {"junk": []}).astype(
            {"junk": "bool"}
        )
    return pd.concat(tables, ignore_index=True).sort_values("source_id", kind="stable", ignore_index=True)


def check_tiling(
    config: PipelineConfig, workspace: Workspace, sources: Sequence[Source], pending: Sequence[str]
) -> StageSummary:
    """Look at what the whole stage left on disk, once all shards are made.

    Args:
        config: the pipeline.
        workspace: where tiles lie.
        sources: the catalog.
        pending: the shards that :func:`plan_shards` gave; what lies in others was there already.

    Returns:
        Sources that were tiled before, and notes: windows dropped for too few valid pixels, sources without any tile.

    Raises:
        TooManyRejected: more than ``source.max_reject_share`` of the sources could not be tiled.
    """
    tiles_digest = tile_digest(config)
    known = {source.source_id: source for source in sources}
    table = read_tile_rejections(workspace, tiles_digest)
    table = table[table["source_id"].isin(list(known))]
    share, limit = len(table) / max(len(known), 1), config.source.max_reject_share
    if share > limit:
        codes = ", ".join(f"{count} {code}" for code, count in sorted(Counter(table["code"]).items()))
        first = table.iloc[0]
        raise TooManyRejected(
            f"{len(table)} of {len(known)} sources could not be tiled ({codes}), more than `source.max_reject_share: "
            f"{limit:g}` allows; the first is {first['uri']}: {first['reason']}. Repair or remove them, or raise "
            "`source.max_reject_share` to go on without them"
        )
    plan = _read_plan(workspace.tiles(tiles_digest))
    before = plan["source_id"].isin(list(known)) & ~plan["shard_id"].isin(pending)
    notes = _drop_notes(config.tiles, workspace.tiles(tiles_digest), known)
    return StageSummary(STAGE, skipped=int(before.sum()), notes=notes)


def _drop_notes(recipe: TileRecipe, folder: Path, known: dict[str, Source]) -> tuple[str, ...]:
    contracts = [read_contract(shard) for shard in committed_shards(folder)]
    dropped, made = sum(item.dropped for item in contracts), sum(item.tiles for item in contracts)
    # By their ids: notes go to Prefect and into reports, and a file's name may be a patient's.
    bare = [source_id for item in contracts for source_id in item.bare if source_id in known]
    notes = []
    if dropped:
        notes.append(
            f"{dropped} of {dropped + made} windows were dropped: fewer than `tiles.min_valid_fraction` "
            f"{recipe.min_valid_fraction:g} of their pixels are valid"
        )
    if bare:
        notes.append(
            f"{len(bare)} sources gave no tile at all, such as source_id {bare[0]} of the catalog: too few of their "
            "pixels are valid"
        )
    return tuple(notes)


def _write_shard(path: Path, sources: Sequence[Source], recipe: TileRecipe) -> list[Rejected]:
    """Cut sources into the shard at `path`; give those that could not be read."""
    first = sources[0]
    contract = ShardContract(tile_channels(recipe, first.channels), first.units, first.dtype, recipe.size, recipe.depth)
    rejected: dict[str, Rejected] = {}
    bare: list[str] = []
    dropped = 0
    with write_folder(path) as partial:
        writer = ShardWriter(partial, contract)
        try:
            for source in sources:
                count = writer.count
                try:
                    planned = _append(writer, source, recipe)
                except UnreadableSource as error:
                    writer.take_back(count)
                    rejected[source.source_id] = Rejected(source.uri, error.code, error.reason)
                    continue
                dropped += planned - (writer.count - count)
                if writer.count == count:
                    bare.append(source.source_id)
            if rejected:
                rows = [(key, item.uri, item.code, item.reason, item.junk) for key, item in rejected.items()]
                write_parquet(partial / REJECTED_FILE, pd.DataFrame(rows, columns=list(_REJECTED_COLUMNS)))
            writer.close(dropped=dropped, bare=tuple(bare))
        finally:
            writer.abort()
    return list(rejected.values())


def _append(writer: ShardWriter, source: Source, recipe: TileRecipe) -> int:
    """Append a source's tiles; returns how many windows it has."""
    done = None
    for block in _blocks(source, recipe):
        done = preparation(source.grid, recipe, uri=source.uri) if done is None else done
        places = [(window.frame, window.row, window.col) for window in block.windows]
        rows: dict[str, Iterable[object]] = {
            "tile_id": [f"{source.source_id}:{frame}:{row}:{col}" for frame, row, col in places],
            "source_id": [source.source_id] * len(places),
            "group_id": block.groups,
            **{name: [getattr(item, name) for item in block.windows] for name in Window._fields},
            BOX_COLUMN: block.boxes_mm,
            PREPARATION_COLUMN: [done] * len(places),
            "valid_fraction": block.valid_fraction,
            "pixel_digest": pixel_digests(block.tiles, block.valid),
        }
        writer.append(block.tiles, block.valid, rows)
    return planned_windows(source.grid, recipe, uri=source.uri)


def _blocks(source: Source, recipe: TileRecipe) -> Iterator[Block]:
    """Open and cut; what the system says about the file becomes an error of ours, never one of the workspace."""
    try:
        with domain_of(source.domain).open(source) as raster:
            yield from cut(raster, recipe, source_id=source.source_id)
    except OSError as error:
        if error.errno is None or isinstance(error, FileNotFoundError | PermissionError):
            reason = f"the file cannot be read ({error}); put it back or make it readable, then delete this shard"
            raise UnreadableSource("UNREADABLE", reason, source.uri) from error
        raise TransientError(f"{source.uri} could not be read now: {error}; run the same command again") from error


def pixel_digests(tiles: NDArray[Any], valid: NDArray[np.bool_]) -> list[str]:
    """Digest each tile's bytes; an empty text where all valid pixels of a channel are equal.

    Equal digests in two groups are a leak; flat tiles (water, air, nodata) are alike without being the same thing.
    SHA-256 cut to 64 bits: with the instructions of today's processors twice as fast as BLAKE2b.
    """
    sample, inside = tiles[..., ::16, ::16], valid[:, np.newaxis, ..., ::16, ::16]
    reference = sample.reshape(*sample.shape[:2], -1)[:, :, 0].reshape(*sample.shape[:2], *[1] * (sample.ndim - 2))
    suspects = ((sample == reference) | ~inside).all(axis=tuple(range(1, sample.ndim)))
    suspects |= ~valid.reshape(len(valid), -1)[:, 0]
    return [
        "" if suspect and _is_flat(tile, mask) else hashlib.sha256(tile).hexdigest()[:16]
        for tile, mask, suspect in zip(tiles, valid, suspects, strict=True)
    ]


def _is_flat(tile: NDArray[Any], mask: NDArray[np.bool_]) -> bool:
    inside = tile[:, mask]
    return bool((inside == inside[:, :1]).all())
