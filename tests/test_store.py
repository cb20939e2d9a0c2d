"""The store gives back what was written, reads only whole shards, and says what is broken."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import vitpipe.store as room
from tests.tiling_cases import noise
from vitpipe.atomic import write_folder
from vitpipe.errors import ContractError
from vitpipe.store import ShardContract, ShardWriter, TileStore, committed_shards, read_contract

SIZE = 13


def write_shard(
    folder: Path, name: str, count: int, *, dtype: str = "int16", channels: tuple[str, ...] = ("a", "b")
) -> tuple[np.ndarray, np.ndarray]:
    seed = int.from_bytes(name.encode(), "big")
    tiles = noise(seed, (count, len(channels), SIZE, SIZE), dtype)
    valid = np.random.default_rng(seed).random((count, SIZE, SIZE)) < 0.5
    valid[::2] = True
    with write_folder(folder / name) as partial:
        writer = ShardWriter(partial, ShardContract(channels, "dn", dtype, SIZE))
        # In two pieces, with a source in between that is taken back.
        for piece in (slice(0, 1), slice(1, count)):
            writer.append(tiles[piece], valid[piece], rows_of(name, range(count)[piece], valid[piece]))
            if piece.start == 0:
                here = writer.count
                writer.append(tiles[piece] + 1, ~valid[piece], rows_of("gone", range(1), valid[piece]))
                writer.take_back(here)
        writer.close(dropped=3)
    return tiles, valid


def rows_of(name: str, indices: range, valid: np.ndarray) -> dict[str, list[object]]:
    rows: dict[str, list[object]] = {key: [0] * len(indices) for key in ("frame", "row", "height", "width")}
    return rows | {
        "tile_id": [f"{name}:0:0:{index}" for index in indices],
        "source_id": [name] * len(indices),
        "group_id": [f"group-{name}"] * len(indices),
        "col": list(indices),
        "box_mm": [None if index % 3 else [index + 0.5] * 12 for index in indices],
        "valid_fraction": list(valid.mean(axis=(1, 2))),
        "pixel_digest": ["x"] * len(indices),
    }


@pytest.mark.parametrize("large_from", [1, 1 << 30])
@pytest.mark.parametrize("stage_bytes", [1, 1000, 1 << 20])
def test_gather_gives_back_what_was_written_in_any_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large_from: int, stage_bytes: int
) -> None:
    monkeypatch.setattr(room, "_LARGE_TILE_BYTES", large_from)
    monkeypatch.setattr(room, "_STAGE_BYTES", stage_bytes)
    written = {name: write_shard(tmp_path, name, count) for name, count in (("s2", 5), ("s1", 7), ("s3", 1))}
    store = TileStore(tmp_path)
    table = store.table()
    assert list(table["tile_id"]) == sorted(table["tile_id"])
    assert len(table) == 13
    shuffled = table.sample(frac=3, replace=True, random_state=1)
    tiles, valid = store.gather(shuffled)
    assert tiles.dtype == np.float32
    assert valid.dtype == bool
    for index, (shard, row) in enumerate(zip(shuffled["shard_id"], shuffled["shard_row"], strict=True)):
        np.testing.assert_array_equal(tiles[index], written[shard][0][row])
        np.testing.assert_array_equal(valid[index], written[shard][1][row])
    without = store.gather(shuffled.drop(columns="valid_fraction"))[1]
    np.testing.assert_array_equal(without, valid)


def test_the_files_are_plain_numpy(tmp_path: Path) -> None:
    tiles, valid = write_shard(tmp_path, "s1", 4)
    np.testing.assert_array_equal(np.load(tmp_path / "s1" / "tiles.npy", allow_pickle=False), tiles)
    packed = np.load(tmp_path / "s1" / "valid.npy", allow_pickle=False)
    np.testing.assert_array_equal(np.unpackbits(packed, axis=-1, count=SIZE), valid)
    assert packed.shape == (4, SIZE, 2)
    assert (tmp_path / "s1" / "tiles.npy").stat().st_size == 192 + tiles.nbytes


def test_contract_and_dtypes(tmp_path: Path) -> None:
    write_shard(tmp_path, "s1", 4)
    write_shard(tmp_path, "s2", 4, dtype="float32")
    store = TileStore(tmp_path)
    assert (store.channels, store.units, store.tile_size) == (("a", "b"), "dn", SIZE)
    assert store.dtype("s1") == np.int16
    assert store.dtype("s2") == np.float32
    assert read_contract(tmp_path / "s1").dropped == 3
    tiles, _ = store.gather(store.table())
    assert tiles.shape == (8, 2, SIZE, SIZE)


def test_gather_fills_the_memory_that_it_is_given(tmp_path: Path) -> None:
    written, _ = write_shard(tmp_path, "s1", 4)
    store = TileStore(tmp_path)
    memory = np.full((6, 2, SIZE, SIZE), -1, np.float32)
    tiles, _ = store.gather(store.table(), out=memory)
    assert np.shares_memory(tiles, memory)
    np.testing.assert_array_equal(memory[:4], written)
    assert (memory[4:] == -1).all()
    with pytest.raises(ContractError, match="needs memory for 4 tiles"):
        store.gather(store.table(), out=memory[:3])


def test_more_shards_than_may_be_open(tmp_path: Path) -> None:
    written = {f"s{index}": write_shard(tmp_path, f"s{index}", 2)[0] for index in range(5)}
    store = TileStore(tmp_path, open_shards=2)
    for _ in range(2):
        for name, tiles in written.items():
            table = store.table()
            np.testing.assert_array_equal(store.gather(table[table["shard_id"] == name])[0], tiles)
            assert len(store._maps) <= 2


def test_it_pickles_as_a_path(tmp_path: Path) -> None:
    write_shard(tmp_path, "s1", 50)
    store = TileStore(tmp_path)
    store.gather(store.table())
    text = pickle.dumps(store)
    assert len(text) < 1000
    again = pickle.loads(text)
    np.testing.assert_array_equal(again.gather(again.table())[0], store.gather(store.table())[0])


def test_half_shards_are_not_seen(tmp_path: Path) -> None:
    write_shard(tmp_path, "s1", 2)
    shutil.copytree(tmp_path / "s1", tmp_path / ".partial-1234-s2")
    shutil.copytree(tmp_path / "s1", tmp_path / "s3")
    (tmp_path / "s3" / "tiles.parquet").unlink()
    (tmp_path / "recipe.json").write_text("{}")
    assert [shard.name for shard in committed_shards(tmp_path)] == ["s1"]
    assert set(TileStore(tmp_path).table()["shard_id"]) == {"s1"}


@pytest.mark.parametrize("name", ["tiles.npy", "valid.npy", "tiles.parquet"])
@pytest.mark.parametrize("damage", ["short", "gone", "noise"])
def test_a_broken_shard_is_named_with_the_remedy(tmp_path: Path, name: str, damage: str) -> None:
    write_shard(tmp_path, "s1", 3)
    write_shard(tmp_path, "s2", 3)
    table = TileStore(tmp_path).table()
    path = tmp_path / "s2" / name
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:-10] if damage == "short" else b"noise" * 100)
    with pytest.raises(ContractError) as caught:
        TileStore(tmp_path).gather(table)
    assert str(tmp_path / "s2") in str(caught.value)
    assert "delete the folder" in str(caught.value)


def test_a_header_that_does_not_fit_the_table_is_refused(tmp_path: Path) -> None:
    write_shard(tmp_path, "s1", 3)
    np.save(tmp_path / "s1" / "tiles.npy", np.zeros((2, 2, SIZE, SIZE), np.int16))
    store = TileStore(tmp_path)
    with pytest.raises(ContractError, match=r"its table says int16 \(3, 2, 13, 13\)"):
        store.gather(store.table())


def test_shards_with_other_channels_do_not_fit_together(tmp_path: Path) -> None:
    write_shard(tmp_path, "s1", 3)
    write_shard(tmp_path, "s2", 3, channels=("a",))
    with pytest.raises(ContractError, match="s2 has channels"):
        TileStore(tmp_path).table()


def test_a_row_past_the_end_is_refused(tmp_path: Path) -> None:
    write_shard(tmp_path, "s1", 3)
    rows = pd.DataFrame({"shard_id": ["s1"], "shard_row": [3]})
    with pytest.raises(ContractError, match="holds 3 tiles, row 3 was asked for"):
        TileStore(tmp_path).gather(rows)


def test_no_shard_at_all(tmp_path: Path) -> None:
    store = TileStore(tmp_path / "none")
    assert len(store.table()) == 0
    assert "shard_row" in store.table()
    with pytest.raises(ContractError, match="no finished shard"):
        store.gather(store.table())


def test_a_shard_without_tiles(tmp_path: Path) -> None:
    with write_folder(tmp_path / "s1") as partial:
        ShardWriter(partial, ShardContract(("a",), "dn", "uint8", SIZE)).close(dropped=9)
    store = TileStore(tmp_path)
    assert len(store.table()) == 0
    assert store.dtype("s1") == np.uint8


def test_a_tile_of_another_dtype_is_refused(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, ShardContract(("a",), "dn", "uint8", SIZE))
    with pytest.raises(ContractError, match="holds uint8 tiles"):
        writer.append(np.zeros((1, 1, SIZE, SIZE), np.int16), np.ones((1, SIZE, SIZE), bool), {})
    writer.abort()


@pytest.mark.parametrize("left", [0, 100, 1000])
def test_a_cut_array_names_its_shard_and_the_remedy(tmp_path: Path, left: int) -> None:
    shard = tmp_path / "shard"
    shard.mkdir()
    writer = ShardWriter(shard, ShardContract(("red",), "dn", "uint8", 16))
    rows = {"tile_id": ["a:0:0:0"] * 8, "source_id": ["a"] * 8, "group_id": ["g"] * 8, "valid_fraction": [1.0] * 8}
    rows |= {name: [0] * 8 for name in ("frame", "row", "col", "height", "width")} | {"pixel_digest": [""] * 8}
    writer.append(np.ones((8, 1, 16, 16), np.uint8), np.ones((8, 16, 16), bool), rows)
    writer.close(dropped=0)
    with (shard / "tiles.npy").open("r+b") as stream:
        stream.truncate(left)
    store = TileStore(tmp_path)
    with pytest.raises(ContractError, match=rf"tiles\.npy .*delete the folder {shard} "):
        store.gather(store.table())
