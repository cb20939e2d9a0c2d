"""Tiles cover what they should, nothing is decoded twice, and a run that is killed ends with the same bytes."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import vitpipe.store as store_room
import vitpipe.tiling as room
from tests.tiling_cases import MemoryDomain, MemoryRaster, config_of, noise, scenes, source_of, together
from vitpipe.config import PipelineConfig
from vitpipe.errors import (
    ContractError,
    DataError,
    TooManyRejected,
    TransientError,
    UnreadableSource,
    WorkspaceError,
)
from vitpipe.store import TileStore, committed_shards
from vitpipe.tiling import cut, plan_shards, tile, tile_digest, tile_shard
from vitpipe.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace")


def use(monkeypatch: pytest.MonkeyPatch, domain: MemoryDomain) -> MemoryDomain:
    monkeypatch.setattr(room, "domain_of", lambda _kind: domain)
    return domain


def fingerprints(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# --------------------------------------------------------------------------------------------------------------- plan


def test_the_digest_follows_pixels_alone(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    same = [
        config_of(tmp_path / "elsewhere"),
        config_of(tmp_path, shard_mib=7),
        config_of(tmp_path, stride=16),
        config_of(tmp_path, max_reject_share=0.1),
    ]
    assert {tile_digest(item) for item in same} == {tile_digest(config)}
    other = [config_of(tmp_path, size=17), config_of(tmp_path, stride=8), config_of(tmp_path, cut="whole")]
    assert len({tile_digest(item) for item in [config, *other]}) == 4
    whole = config_of(tmp_path, cut="whole")
    assert tile_digest(whole) == tile_digest(config_of(tmp_path, cut="whole", edge="drop"))
    geotiff: dict[str, Any] = config.model_dump() | {"source": {"kind": "geotiff", "path": "a"}}
    bands = geotiff | {"source": {"kind": "geotiff", "path": "a", "bands": ("B04",)}}
    assert len({tile_digest(PipelineConfig.model_validate(item)) for item in (geotiff, bands)}) == 2


def test_the_plan_only_grows(tmp_path: Path, workspace: Workspace) -> None:
    config = config_of(tmp_path)
    _, sources = scenes(7)
    first = plan_shards(config, workspace, sources[1:6])
    assert len(first) > 1
    plan = tmp_path / "workspace" / "tiles" / tile_digest(config) / "plan.parquet"
    before = pd.read_parquet(plan)
    assert list(before["source_id"]) == [source.source_id for source in sources[1:6]]
    assert plan_shards(config, workspace, sources[5:0:-1]) == first, "the order of the catalog does not matter"
    later = plan_shards(config, workspace, sources)
    assert later[: len(first)] == first
    after = pd.read_parquet(plan)
    pd.testing.assert_frame_equal(after[: len(before)], before)
    assert set(after["source_id"]) == {source.source_id for source in sources}


def test_a_shard_that_was_never_made_is_planned_again_without_a_source_that_left(
    tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path, shard_mib=2)
    rasters, sources = scenes(8)
    domain = use(monkeypatch, MemoryDomain(rasters))
    first = plan_shards(config, workspace, sources)
    assert len(first) == 3
    tile_shard(config, workspace, sources, first[0])
    made = list(domain.opened)
    assert made == [source.source_id for source in sources[:3]]
    left = plan_shards(config, workspace, sources[1:-1])
    assert first[0] not in left, "a finished shard stays"
    assert first[1] in left, "a shard whose sources are all there stays planned"
    assert first[2] not in left
    summary = tile(config, workspace, sources[1:-1])
    assert (summary.done, summary.skipped) == (4, 2)
    assert sorted(domain.opened) == [source.source_id for source in sources[:-1]], "each source is opened once"
    table = TileStore(workspace.tiles(tile_digest(config))).table()
    assert {source.source_id for source in sources[:-1]} == set(table["source_id"])


def test_a_shard_has_one_dtype(tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(tmp_path)
    kinds = ("int16", "uint16", "int16", "uint16")
    rasters = {f"{seed:016x}": MemoryRaster(noise(seed, (1, 1, 30, 30), kind)) for seed, kind in enumerate(kinds)}
    sources = [source_of(source_id, raster) for source_id, raster in rasters.items()]
    use(monkeypatch, MemoryDomain(rasters))
    tile(config, workspace, sources)
    store = TileStore(workspace.tiles(tile_digest(config)))
    table = store.table()
    assert sorted(store.dtype(name).name for name in table["shard_id"].unique()) == ["int16", "uint16"]
    assert len(table) == 4 * 4


def test_sources_of_two_kinds_are_refused_by_name(tmp_path: Path, workspace: Workspace) -> None:
    _, sources = scenes(3)
    odd = source_of("f" * 16, MemoryRaster(noise(1, (1, 3, 9, 9))), uri="/data/odd.tif")
    with pytest.raises(DataError, match=r"3 with 1 channels c0 in dn, such as .*1 with 3 channels.*/data/odd.tif"):
        plan_shards(config_of(tmp_path), workspace, [*sources, odd])


# -------------------------------------------------------------------------------------------------------------- shards


def test_a_run_makes_tiles_and_the_next_one_has_nothing_to_do(
    tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path)
    rasters, sources = scenes(3)
    domain = use(monkeypatch, MemoryDomain(rasters))
    summary = tile(config, workspace, sources)
    assert (summary.stage, summary.done, summary.skipped, summary.rejected) == ("tile", 3, 0, {})
    assert sorted(domain.opened) == sorted(rasters)
    folder = workspace.tiles(tile_digest(config))
    before = fingerprints(folder)
    again = tile(config, workspace, sources)
    assert (again.done, again.skipped) == (0, 3)
    assert len(domain.opened) == 3
    assert fingerprints(folder) == before
    store = TileStore(folder)
    table = store.table()
    assert list(table.columns) == [
        "tile_id", "source_id", "group_id", "frame", "row", "col", "height", "width", "depth", "box_mm",
        "preparation", "valid_fraction", "pixel_digest", "shard_id", "shard_row",
    ]  # fmt: skip
    assert table["tile_id"].is_unique
    some = table.sample(40, random_state=1)
    tiles, valid = store.gather(some)
    for index, row in enumerate(some.itertuples()):
        assert row.tile_id == f"{row.source_id}:{row.frame}:{row.row}:{row.col}"
        pixels = rasters[row.source_id].pixels[row.frame, :, row.row : row.row + 16, row.col : row.col + 16]
        np.testing.assert_array_equal(tiles[index][:, : pixels.shape[1], : pixels.shape[2]], pixels)
        assert valid[index].mean() == row.valid_fraction
    assert (folder / "recipe.json").is_file()


def test_new_sources_alone_are_tiled(tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(tmp_path)
    rasters, sources = scenes(5)
    domain = use(monkeypatch, MemoryDomain(rasters))
    tile(config, workspace, sources[1:4])
    before = fingerprints(workspace.tiles(tile_digest(config)))
    domain.opened.clear()
    summary = tile(config, workspace, sources)
    assert (summary.done, summary.skipped) == (2, 3)
    assert sorted(domain.opened) == [sources[0].source_id, sources[4].source_id]
    after = fingerprints(workspace.tiles(tile_digest(config)))
    changed = {name for name in before if after[name] != before[name]}
    assert changed == {"plan.parquet"}


def test_a_source_that_breaks_half_way_leaves_no_tile(
    tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path, shard_mib=64)
    rasters, sources = scenes(3)
    broken = sources[1]
    use(monkeypatch, MemoryDomain(rasters, {broken.source_id: UnreadableSource("TRUNCATED", "too short", "x")}))
    summary = tile(config, workspace, sources)
    assert (summary.done, summary.rejected) == (2, {"TRUNCATED": 1})
    folder = workspace.tiles(tile_digest(config))
    store = TileStore(folder)
    table = store.table()
    assert set(table["source_id"]) == {sources[0].source_id, sources[2].source_id}
    tiles, _ = store.gather(table[table["source_id"] == sources[2].source_id])
    want = together(list(cut(rasters[sources[2].source_id], config.tiles, source_id="a")))[0]
    assert len(tiles) == len(want)
    assert np.sort(tiles.sum(axis=(1, 2, 3))).tolist() == np.sort(want.sum(axis=(1, 2, 3), dtype=float)).tolist()
    rejected = room.read_tile_rejections(workspace, folder.name)
    assert rejected.to_dict("records") == [
        {"source_id": broken.source_id, "uri": broken.uri, "code": "TRUNCATED", "reason": "too short", "junk": False}
    ]
    again = tile(config, workspace, sources)
    assert (again.done, again.skipped) == (0, 3)


def test_too_many_rejects_stop_the_run(tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    rasters, sources = scenes(4)
    error = UnreadableSource("TRUNCATED", "too short", "x")
    use(monkeypatch, MemoryDomain(rasters, {source.source_id: error for source in sources[:2]}))
    assert tile(config_of(tmp_path, max_reject_share=0.5), workspace, sources).rejected == {"TRUNCATED": 2}
    config = config_of(tmp_path, max_reject_share=0.4)
    with pytest.raises(TooManyRejected, match=r"2 of 4 sources could not be tiled \(2 TRUNCATED\).*too short"):
        tile(config, workspace, sources)
    assert room.check_tiling(config, workspace, sources[1:], []).done == 0, "a source that left does not count"


def test_small_sources_with_drop_are_rejected_and_counted(
    tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path, edge="drop", size=24)
    rasters = {"a" * 16: MemoryRaster(noise(1, (1, 1, 23, 80))), "b" * 16: MemoryRaster(noise(1, (1, 1, 24, 80)))}
    sources = [source_of(source_id, raster) for source_id, raster in rasters.items()]
    use(monkeypatch, MemoryDomain(rasters))
    summary = tile(config, workspace, sources)
    assert (summary.done, summary.rejected) == (1, {"TOO_SMALL": 1})


def test_dropped_windows_and_bare_sources_are_said(
    tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    valid = np.ones((1, 32, 32), bool)
    valid[0, :16, :16] = False
    rasters = {
        "a" * 16: MemoryRaster(noise(1, (1, 1, 32, 32)), valid),
        "b" * 16: MemoryRaster(noise(1, (1, 1, 32, 32)), np.zeros((1, 32, 32), bool)),
    }
    sources = [source_of(source_id, raster) for source_id, raster in rasters.items()]
    use(monkeypatch, MemoryDomain(rasters))
    summary = tile(config_of(tmp_path), workspace, sources)
    assert summary.done == 2
    assert summary.notes[0].startswith("5 of 8 windows were dropped")
    assert summary.notes[1].startswith("1 sources gave no tile at all, such as source_id bbbb")


def test_a_transient_error_passes_and_leaves_nothing(
    tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path)
    rasters, sources = scenes(1)
    for error in (TransientError("no answer"), OSError(errno.EIO, "input/output error")):
        domain = use(monkeypatch, MemoryDomain(rasters, {sources[0].source_id: error}))
        with pytest.raises(TransientError):
            tile(config, workspace, sources)
        assert committed_shards(workspace.tiles(tile_digest(config))) == []
    use(monkeypatch, MemoryDomain(rasters))
    assert tile(config, workspace, sources).done == 1
    assert len(domain.opened) == 1


def test_a_file_that_may_not_be_read_is_not_taken_for_a_full_disk(
    tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    rasters, sources = scenes(2)
    use(monkeypatch, MemoryDomain(rasters, {sources[0].source_id: PermissionError(errno.EACCES, "denied")}))
    assert tile(config_of(tmp_path), workspace, sources).rejected == {"UNREADABLE": 1}


def test_a_full_disk_is_a_sentence_and_the_next_run_ends_well(
    tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path)
    rasters, sources = scenes(3)
    use(monkeypatch, MemoryDomain(rasters))
    written = 0
    write_all = store_room._write_all

    def full(stream: Any, array: np.ndarray) -> None:
        nonlocal written
        written += array.nbytes
        if written > 1_000_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_all(stream, array)

    with monkeypatch.context() as patch:
        patch.setattr(store_room, "_write_all", full)
        with pytest.raises(WorkspaceError, match="the disk is full; free some space"):
            tile(config, workspace, sources)
    folder = workspace.tiles(tile_digest(config))
    assert not [path for path in folder.iterdir() if path.name.startswith(".partial")]
    made = len(committed_shards(folder))
    assert made < 3
    tile(config, workspace, sources)
    reference = Workspace(tmp_path / "reference")
    tile(config, reference, sources)
    here, there = fingerprints(folder), fingerprints(reference.tiles(folder.name))
    assert len(here) >= 2 + 3 * 3
    assert here == there


def test_a_shard_without_its_sources_is_refused(tmp_path: Path, workspace: Workspace) -> None:
    config = config_of(tmp_path)
    _, sources = scenes(2)
    pending = plan_shards(config, workspace, sources)
    with pytest.raises(ContractError, match="plan again"):
        tile_shard(config, workspace, [], pending[0])
    with pytest.raises(ContractError, match="planned with 0 sources"):
        tile_shard(config, workspace, sources, "unknown")


def test_a_source_whose_pixels_do_not_fit_its_row_is_a_broken_contract(
    tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    rasters, sources = scenes(1)
    use(monkeypatch, MemoryDomain(rasters))
    wrong = [source_of(sources[0].source_id, rasters[sources[0].source_id], dtype="int16")]
    with pytest.raises(ContractError, match="its catalog row does not fit its pixels"):
        tile(config_of(tmp_path), workspace, wrong)


# ---------------------------------------------------------------------------------------------------------------- kill

_CHILD = """
import sys
from pathlib import Path
import vitpipe.tiling as room
from tests.tiling_cases import MemoryDomain, SlowRaster, config_of, scenes
from vitpipe.workspace import Workspace
rasters, sources = scenes(5, SlowRaster)
room.domain_of = lambda _kind: MemoryDomain(rasters)
room.tile(config_of(Path(sys.argv[1])), Workspace(Path(sys.argv[1]) / "workspace"), sources)
"""


def partial_bytes(folder: Path) -> int:
    """Bytes of tiles in a shard that is being written; it may vanish while we look."""
    try:
        return sum(path.stat().st_size for path in folder.glob(".partial-*/tiles.npy"))
    except FileNotFoundError:
        return 0


def test_kill_9_in_the_middle_of_a_shard_and_run_again_gives_the_same_bytes(
    tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path)
    folder = workspace.tiles(tile_digest(config))
    command = [sys.executable, "-c", _CHILD, str(tmp_path)]
    committed = []
    for least in (0, 2):
        child = subprocess.Popen(command, cwd=Path(__file__).resolve().parents[1])
        deadline = time.monotonic() + 60
        while not (len(committed_shards(folder)) >= least and partial_bytes(folder) > 50_000):
            assert child.poll() is None, "the child ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        assert list(folder.glob(".partial-*")), "it was killed in the middle of a shard"
        committed.append(len(committed_shards(folder)))
    assert committed[1] >= 2
    rasters, sources = scenes(5)
    domain = use(monkeypatch, MemoryDomain(rasters))
    summary = tile(config, workspace, sources)
    assert summary.skipped >= 2, "finished shards are not made again"
    assert summary.done + summary.skipped == 5
    assert len(domain.opened) == summary.done
    reference = Workspace(tmp_path / "reference")
    tile(config, reference, sources)
    here, there = fingerprints(folder), fingerprints(reference.tiles(folder.name))
    assert len(there) == 2 + 3 * 5, "five shards of three files, the plan and the recipe"
    assert here == there
