"""Shuffled batches out of a tile store, as float32: what an epoch reads.

Every case gives batches of 32 tiles in one fixed random order. Goals: 8 times faster than a ``.npy`` a tile, at least
40 % of the speed of copying memory.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.frame import Case, Table
from vitpipe.atomic import write_folder
from vitpipe.store import ShardContract, ShardWriter, TileStore

_BATCH = 32
_SHARD_TILES = 64


def tables(folder: Path, *, large: bool) -> list[Table]:
    """Give one table a kind of tile: small bytes and many bands."""
    made = []
    for name, channels, dtype, few in (("RGB bytes", 3, "uint8", 512), ("13 bands", 13, "uint16", 96)):
        home = folder / name.replace(" ", "-")
        count = few * 8 if large else few
        write_stores(home, channels, dtype, count)
        at, epochs = str(home), 3
        cases = (
            Case("vitpipe TileStore.gather, memory reused", ours, (at, epochs, True)),
            Case("vitpipe TileStore.gather, fresh memory", ours, (at, epochs, False)),
            Case("limit: cast from memory", limit, (at, epochs), result_may_differ=True),
            Case("memory map, a tile at a time", memmap_items, (at, epochs)),
            Case(".npy a tile", npy_items, (at, epochs)),
            Case("lmdb", lmdb_items, (at, epochs), ("lmdb",)),
            Case("webdataset (shuffled in a buffer alone)", webdataset_items, (at, epochs), ("webdataset",)),
        )
        made.append(
            Table(
                f"Shuffled batches: {name}, {channels} x {dtype} x 224^2, {count} tiles", cases, count * epochs, "tiles"
            )
        )
    return made


def write_stores(folder: Path, channels: int, dtype: str, count: int) -> None:
    """Write the same tiles as shards of ours, as a file a tile, and for the peers that are installed."""
    rng = np.random.default_rng(0)
    items = folder / "items"
    items.mkdir(parents=True)
    for start in range(0, count, _SHARD_TILES):
        tiles = rng.integers(0, 250, (min(_SHARD_TILES, count - start), channels, 224, 224)).astype(dtype)
        with write_folder(folder / "shards" / f"{start:08}") as partial:
            names = tuple(f"b{channel}" for channel in range(channels))
            writer = ShardWriter(partial, ShardContract(names, "dn", dtype, 224))
            writer.append(tiles, np.ones((len(tiles), 224, 224), bool), _rows(start, len(tiles)))
            writer.close(dropped=0)
        for index, tile in enumerate(tiles):
            np.save(items / f"{start + index:08}.npy", tile)
    _write_lmdb(folder, items)
    _write_tar(folder, items)


def _rows(start: int, count: int) -> dict[str, list[object]]:
    zeros: list[object] = [0] * count
    return {
        "tile_id": [f"{start + index:08}" for index in range(count)],
        "source_id": ["a"] * count,
        "group_id": ["a"] * count,
        "pixel_digest": [""] * count,
        "valid_fraction": [1.0] * count,
        **dict.fromkeys(("frame", "row", "col", "height", "width"), zeros),
    }


def _batches(count: int, epochs: int) -> Iterator[NDArray[np.int64]]:
    rng = np.random.default_rng(1)
    for _ in range(epochs):
        order = rng.permutation(count)
        for start in range(0, count, _BATCH):
            yield order[start : start + _BATCH]


def _sum(batch: NDArray[np.float32]) -> float:
    return float(batch[:, :, ::32, ::32].sum(dtype=np.float64))


def ours(folder: str, epochs: int, reuse: bool) -> float:  # noqa: FBT001 - called by the frame with plain values
    """Read batches as the learner does."""
    store = TileStore(Path(folder) / "shards")
    table: pd.DataFrame = store.table()[["shard_id", "shard_row", "valid_fraction"]]
    memory = np.empty((_BATCH, len(store.channels), 224, 224), np.float32) if reuse else None
    return sum(_sum(store.gather(table.iloc[rows], memory)[0]) for rows in _batches(len(table), epochs))


def limit(folder: str, epochs: int) -> float:
    """Cast tiles that are in memory already (those of one shard) into memory that is there already."""
    paths = sorted(Path(folder).glob("shards/*/tiles.npy"))
    count = sum(len(np.load(path, mmap_mode="r")) for path in paths)
    tiles = np.load(paths[0])
    memory = np.empty((_BATCH, *tiles.shape[1:]), np.float32)
    total = 0.0
    for rows in _batches(count, epochs):
        for place, row in enumerate(rows):
            memory[place] = tiles[row % len(tiles)]
        total += _sum(memory[: len(rows)])
    return total


def memmap_items(folder: str, epochs: int) -> float:
    """Copy tile by tile out of memory maps, then stack: a dataset's usual ``__getitem__``."""
    maps = [np.load(path, mmap_mode="r") for path in sorted(Path(folder).glob("shards/*/tiles.npy"))]
    count = sum(len(item) for item in maps)
    total = 0.0
    for rows in _batches(count, epochs):
        total += _sum(np.stack([maps[row // _SHARD_TILES][row % _SHARD_TILES].astype(np.float32) for row in rows]))
    return total


def npy_items(folder: str, epochs: int) -> float:
    """Open a file a tile."""
    paths = sorted(Path(folder, "items").iterdir())
    total = 0.0
    for rows in _batches(len(paths), epochs):
        total += _sum(np.stack([np.load(paths[row]).astype(np.float32) for row in rows]))
    return total


def lmdb_items(folder: str, epochs: int) -> float:
    """Read tiles by key."""
    import lmdb

    tile = np.load(next(Path(folder, "items").iterdir()))
    total = 0.0
    with lmdb.open(str(Path(folder, "lmdb")), readonly=True, lock=False) as base, base.begin(buffers=True) as view:
        count = view.stat()["entries"]
        for rows in _batches(count, epochs):
            read = [np.frombuffer(view.get(f"{row:08}".encode()), tile.dtype).reshape(tile.shape) for row in rows]
            total += _sum(np.stack([item.astype(np.float32) for item in read]))
    return total


def webdataset_items(folder: str, epochs: int) -> float:
    """Stream a tar through a shuffle buffer."""
    import webdataset

    stream = webdataset.WebDataset(str(Path(folder, "tiles.tar")), shardshuffle=False, empty_check=False)
    stream = stream.shuffle(256).to_tuple("npy").batched(_BATCH, partial=True)
    total = 0.0
    for _ in range(epochs):
        for (batch,) in stream:
            tiles = [np.load(io.BytesIO(item)) if isinstance(item, bytes) else item for item in batch]
            total += _sum(np.stack(tiles).astype(np.float32))
    return total


def _write_lmdb(folder: Path, items: Path) -> None:
    try:
        import lmdb
    except ImportError:
        return
    with lmdb.open(str(folder / "lmdb"), map_size=1 << 36) as base, base.begin(write=True) as view:
        for path in sorted(items.iterdir()):
            view.put(path.stem.encode(), np.load(path).tobytes())


def _write_tar(folder: Path, items: Path) -> None:
    import tarfile

    with tarfile.open(folder / "tiles.tar", "w") as tar:
        for path in sorted(items.iterdir()):
            tar.add(path, arcname=path.name)
