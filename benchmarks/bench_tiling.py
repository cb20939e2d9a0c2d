"""A GeoTIFF scene to tiles: every tile as a contiguous (C, T, T) array, handed to a sink that sums some of its pixels.

Goals: at least 75 % of what decoding alone costs on Deflate and Zstandard, 15 times faster than TorchGeo's grid sampler
and 5 times faster than opening the file for every tile, two threads 1.8 times as fast as one, windows in any order
within 10 % of the order of the file, and memory of two rows of blocks and 128 MiB however high the scene is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio.windows import Window as RasterioWindow

from benchmarks.frame import Case, Table
from vitpipe.config import GeotiffSource, PipelineConfig, TileRecipe
from vitpipe.domains.base import ScanContext
from vitpipe.domains.geotiff import Geotiff
from vitpipe.held_rows import cut_windows
from vitpipe.pseudonym import Pseudonymiser
from vitpipe.records import FileRecord, Source, Window
from vitpipe.tiling import cut, tile
from vitpipe.workspace import Workspace

_CHANNELS = 4
_BLOCK = 512
_TILED = {"tiled": True, "blockxsize": _BLOCK, "blockysize": _BLOCK}
_FIRST = "Deflate with predictor, blocks 512, interleaved by pixel"
_LAYOUTS: dict[str, dict[str, Any]] = {
    _FIRST: {**_TILED, "compress": "deflate", "predictor": 2, "interleave": "pixel"},
    "Deflate, blocks 512, interleaved by band": {**_TILED, "compress": "deflate", "interleave": "band"},
    "Zstandard, blocks 512": {**_TILED, "compress": "zstd", "interleave": "pixel"},
    "uncompressed, blocks 512": {**_TILED, "interleave": "pixel"},
    "Deflate, strips of one row": {"compress": "deflate", "interleave": "pixel", "blockysize": 1},
}


def tables(folder: Path, *, large: bool) -> list[Table]:
    """Give a table a layout, one of the whole stage, and one of a wide scene."""
    edge = 8192 if large else 2048
    mib = _CHANNELS * 2 * edge * edge / (1 << 20)
    first = folder / "0.tif"
    write_scene(first, edge)
    made = []
    for number, (name, profile) in enumerate(_LAYOUTS.items()):
        path = folder / f"{number}.tif"
        if number:
            rasterio.shutil.copy(str(first), str(path), driver="GTiff", **profile)
        title = f"GeoTIFF to tiles: {_CHANNELS} x uint16 x {edge}^2, {name}, tiles 256"
        made.append(Table(title, _cases(str(path), 256), mib, "MiB", _NOTES))
    # Tiles that do not lie on the edges of blocks.
    at = (str(first), 224)
    cases = (
        Case("vitpipe cut, one thread", ours, at),
        Case("vitpipe tile (written to the store, digests)", ours_stored, (*at, str(folder / "store"))),
        Case("limit: decode only", decode_only, (str(first),), ("imagecodecs",), result_may_differ=True),
        Case("rasterio, whole scene, then sliced", rasterio_whole, at),
        Case("tifffile, whole scene, then sliced", tifffile_whole, at, ("tifffile", "imagecodecs")),
    )
    title = f"GeoTIFF to tiles: {_CHANNELS} x uint16 x {edge}^2, {_FIRST}, tiles 224"
    made.append(Table(title, cases, mib, "MiB"))
    wide = folder / "wide.tif"
    width, bands = (40_000, 12) if large else (4_000, 12)
    write_wide(wide, width, bands)
    row_mib = width * bands * 2 * _BLOCK / (1 << 20)
    made.append(
        Table(
            f"Memory: {bands} x uint16 x {width} columns x {3 * _BLOCK} rows, interleaved by pixel, tiles 224",
            (Case("vitpipe cut, two threads", ours, (str(wide), 224, 2)),),
            3 * row_mib,
            "MiB",
            (f"A row of blocks takes {row_mib:.0f} MiB; two of them and 128 MiB are {2 * row_mib + 128:.0f} MiB.",),
        )
    )
    return made


_TORCHGEO = ("torchgeo", "geopandas", "torchvision")
_NOTES = ("Two threads are meant to halve the wall time, not the CPU time.",)


def _cases(path: str, size: int) -> tuple[Case, ...]:
    at = (path, size)
    return (
        Case("vitpipe cut, one thread", ours, at),
        Case("vitpipe cut, two threads", ours, (*at, 2)),
        Case("vitpipe, windows in a shuffled order", ours_shuffled, at),
        Case("limit: decode only", decode_only, (path,), ("imagecodecs",), result_may_differ=True),
        Case("rasterio, a read a tile, raster order", rasterio_windows, at),
        Case("rasterio, opened for every tile", rasterio_reopened, at),
        Case("TorchGeo, RasterDataset and GridGeoSampler, a thread", torchgeo_grid, (*at, 1), _TORCHGEO),
        Case("TorchGeo, the same, a thread a processor", torchgeo_grid, (*at, os.cpu_count() or 1), _TORCHGEO),
    )


def write_scene(path: Path, edge: int) -> None:
    """Write a scene of smooth relief, blocks of classes and noise: deflate makes about half of it."""
    rng = np.random.default_rng(0)
    profile = {
        "driver": "GTiff", "dtype": "uint16", "count": _CHANNELS, "height": edge, "width": edge, **_LAYOUTS[_FIRST],
        "crs": "EPSG:32632", "transform": rasterio.Affine(10, 0, 500_000, 0, -10, 4_000_000),
    }  # fmt: skip
    wave = np.sin(np.arange(edge) / 300)
    with rasterio.open(path, "w", **profile) as target:
        for row in range(0, edge, _BLOCK):
            relief = 2000 + 800 * np.outer(wave[row : row + _BLOCK], wave)
            classes = np.kron(rng.integers(0, 800, (_CHANNELS, _BLOCK // 64, edge // 64)), np.ones((64, 64)))
            block = relief + classes + rng.normal(0, 60, (_CHANNELS, _BLOCK, edge))
            target.write(block.clip(0, 65535).astype("uint16"), window=RasterioWindow(0, row, edge, _BLOCK))


def write_wide(path: Path, width: int, bands: int) -> None:
    """Write three rows of blocks of a wide scene of many bands; what it shows does not matter."""
    profile = {
        "driver": "GTiff", "dtype": "uint16", "count": bands, "height": 3 * _BLOCK, "width": width, **_TILED,
        "compress": "zstd", "zstd_level": 1, "interleave": "pixel",
        "crs": "EPSG:32632", "transform": rasterio.Affine(10, 0, 500_000, 0, -10, 4_000_000),
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as target:
        for row in range(0, 3 * _BLOCK, _BLOCK):
            block = np.broadcast_to(np.arange(width, dtype=np.uint16) // 7 + row, (bands, _BLOCK, width))
            target.write(block, window=RasterioWindow(0, row, width, _BLOCK))


def sink(tiles: NDArray[np.generic]) -> float:
    """Sum some pixels of tiles (..., T, T)."""
    return float(tiles[..., ::16, ::16].sum(dtype=np.float64))


def source_of(path: Path) -> Source:
    """Index a scene as ingest does."""
    context = ScanContext(path.parent, Pseudonymiser(b"bench"), GeotiffSource(path=str(path.parent)))
    domain = Geotiff()
    header = domain.index(path, context)
    if not isinstance(header, dict):
        raise TypeError(f"the scene was rejected: {header}")
    stat = path.stat()
    record = FileRecord(str(path), stat.st_size, stat.st_mtime_ns, "0" * 32, header)
    (source,) = domain.assemble([record], context)
    if not isinstance(source, Source):
        raise TypeError(f"the scene was rejected: {source}")
    return source


def _recipe(size: int) -> TileRecipe:
    """Keep every tile, however few of its pixels the scene holds: the others do."""
    return TileRecipe(size=size, min_valid_fraction=0)


def ours(path: str, size: int, threads: int = 1) -> float:
    """Cut the scene as `vitpipe` does."""
    source = source_of(Path(path))
    with Geotiff().open(source) as raster:
        blocks = cut(raster, _recipe(size), source_id=source.source_id, threads=threads)
        return sum(sink(block.tiles) for block in blocks)


def ours_shuffled(path: str, size: int) -> float:
    """Ask for all windows in a random order."""
    source = source_of(Path(path))
    corners = list(_corners(source.grid.height, source.grid.width, size))
    asked = [Window(0, *corners[place], size, size) for place in np.random.default_rng(0).permutation(len(corners))]
    with Geotiff().open(source) as raster:
        return sum(sink(tiles) for _, tiles, _ in cut_windows(raster, asked, threads=1))


def ours_stored(path: str, size: int, folder: str) -> float:
    """Run the whole stage: tiles, masks and table on disk, a digest a tile. A round writes to a folder of its own."""
    source = source_of(Path(path))
    config = PipelineConfig.model_validate(
        {"name": "bench", "source": {"kind": "geotiff", "path": str(Path(path).parent)}, "tiles": _recipe(size)}
    )
    root = Path(folder)
    workspace = Workspace(root / str(sum(1 for _ in root.iterdir()) if root.exists() else 0))
    tile(config, workspace, [source])
    (tiles,) = workspace.root.glob("tiles/*/*/tiles.npy")
    return sink(np.load(tiles, mmap_mode="r"))


def decode_only(path: str) -> float:
    """Read and decode every block and nothing else: what no reader can be faster than."""
    import imagecodecs

    decoders = {"DEFLATE": imagecodecs.deflate_decode, "ZSTD": imagecodecs.zstd_decode}
    with rasterio.open(path) as scene:
        height, width = scene.block_shapes[0]
        by_plane = scene.profile["interleave"] == "band"
        decode = decoders.get(scene.tags(ns="IMAGE_STRUCTURE").get("COMPRESSION", ""))
        spans = []
        for band in range(1, scene.count + 1 if by_plane else 2):
            for row in range(-(-scene.height // height)):
                for col in range(-(-scene.width // width)):
                    offset = scene.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=band)
                    length = scene.get_tag_item(f"BLOCK_SIZE_{col}_{row}", "TIFF", bidx=band)
                    spans.append((int(offset), int(length)))
        block_bytes = height * width * 2 * (1 if by_plane else scene.count)
    size = 0
    with Path(path).open("rb") as stream:
        for offset, length in spans:
            stream.seek(offset)
            raw = stream.read(length)
            size += len(decode(raw, out=block_bytes) if decode else raw)
    return float(size)


def torchgeo_grid(path: str, size: int, threads: int) -> float:
    """Sample the scene by TorchGeo: a dataset of one file, its grid sampler, a loader in this process.

    With its default settings, so the tiles are float32. In a worker of a loader torch has one thread; in the process
    itself, where nothing is set, one a processor, and those that wait for work take CPU time.
    """
    import torch
    from torch.utils.data import DataLoader
    from torchgeo.datasets import RasterDataset, stack_samples
    from torchgeo.samplers import GridGeoSampler

    torch.set_num_threads(threads)
    dataset = RasterDataset(paths=[path])
    sampler = GridGeoSampler(dataset, size=size, stride=size)
    loader = DataLoader(dataset, batch_size=1, sampler=sampler, collate_fn=stack_samples, num_workers=0)
    return sum(sink(sample["image"].numpy()) for sample in loader)


def rasterio_whole(path: str, size: int) -> float:
    """Read the scene into memory, then slice."""
    with rasterio.open(path) as scene:
        return _sliced(scene.read(), size)


def rasterio_windows(path: str, size: int) -> float:
    """Read a window a tile from one open file, with GDAL's default cache."""
    with rasterio.open(path) as scene:
        return sum(
            sink(scene.read(window=RasterioWindow(col, row, size, size), boundless=False))
            for row, col in _corners(scene.height, scene.width, size)
        )


def rasterio_reopened(path: str, size: int) -> float:
    """Open the file for every tile, as the usual ``__getitem__`` of a dataset does."""
    with rasterio.open(path) as scene:
        corners = list(_corners(scene.height, scene.width, size))
    total = 0.0
    for row, col in corners:
        with rasterio.open(path) as scene:
            total += sink(scene.read(window=RasterioWindow(col, row, size, size)))
    return total


def tifffile_whole(path: str, size: int) -> float:
    """Read the scene with tifffile, then slice."""
    import tifffile

    return _sliced(np.moveaxis(tifffile.imread(path), -1, 0), size)


def _sliced(pixels: NDArray[np.generic], size: int) -> float:
    _, height, width = pixels.shape
    return sum(
        sink(np.ascontiguousarray(pixels[:, row : row + size, col : col + size]))
        for row, col in _corners(height, width, size)
    )


def _corners(height: int, width: int, size: int) -> Iterator[tuple[int, int]]:
    for row in range(0, height, size):
        for col in range(0, width, size):
            yield row, col
