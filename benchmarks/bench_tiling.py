"""A GeoTIFF scene to tiles: every tile as a contiguous (C, T, T) array, handed to a sink that sums some of its pixels.

Anchors and goals: at least 75 % of what decoding alone costs, 5 times faster than opening the file for every tile,
memory that does not grow with the height of the scene.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.windows import Window as RasterioWindow

from benchmarks.frame import Case, Table
from vitpipe.config import GeotiffSource, PipelineConfig, TileRecipe
from vitpipe.domains.base import ScanContext
from vitpipe.domains.geotiff import Geotiff
from vitpipe.pseudonym import Pseudonymiser
from vitpipe.records import FileRecord, Source
from vitpipe.tiling import cut, tile
from vitpipe.workspace import Workspace

_CHANNELS = 4
_BLOCK = 512


def tables(folder: Path, *, large: bool) -> list[Table]:
    """Give one table a tile size: aligned to the file's blocks, and not."""
    edge = 8192 if large else 2048
    path = folder / "scene.tif"
    write_scene(path, edge)
    mib = _CHANNELS * 2 * edge * edge / (1 << 20)
    made = []
    for size in (256, 224) if large else (224,):
        at = (str(path), size)
        cases = (
            Case("vitpipe cut", ours, at),
            Case("vitpipe tile (written to the store, digests)", ours_stored, (*at, str(folder / f"store-{size}"))),
            Case("limit: libdeflate decode only", decode_only, (str(path),), ("imagecodecs",), result_may_differ=True),
            Case("rasterio, whole scene, then sliced", rasterio_whole, at),
            Case("rasterio, a read a tile, raster order", rasterio_windows, at),
            Case("rasterio, opened for every tile", rasterio_reopened, at),
            Case("tifffile, whole scene, then sliced", tifffile_whole, at, ("tifffile", "imagecodecs")),
        )
        title = (
            f"GeoTIFF to tiles: {_CHANNELS} x uint16 x {edge}^2, deflate with predictor, blocks {_BLOCK}, tiles {size}"
        )
        made.append(Table(title, cases, mib, "MiB"))
    return made


def write_scene(path: Path, edge: int) -> None:
    """Write a scene of smooth relief, blocks of classes and noise: deflate makes about half of it."""
    rng = np.random.default_rng(0)
    profile = {
        "driver": "GTiff", "dtype": "uint16", "count": _CHANNELS, "height": edge, "width": edge, "tiled": True,
        "blockxsize": _BLOCK, "blockysize": _BLOCK, "compress": "deflate", "predictor": 2, "interleave": "pixel",
        "crs": "EPSG:32632", "transform": rasterio.Affine(10, 0, 500_000, 0, -10, 4_000_000),
    }  # fmt: skip
    wave = np.sin(np.arange(edge) / 300)
    with rasterio.open(path, "w", **profile) as target:
        for row in range(0, edge, _BLOCK):
            relief = 2000 + 800 * np.outer(wave[row : row + _BLOCK], wave)
            classes = np.kron(rng.integers(0, 800, (_CHANNELS, _BLOCK // 64, edge // 64)), np.ones((64, 64)))
            block = relief + classes + rng.normal(0, 60, (_CHANNELS, _BLOCK, edge))
            target.write(block.clip(0, 65535).astype("uint16"), window=RasterioWindow(0, row, edge, _BLOCK))


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


def ours(path: str, size: int) -> float:
    """Cut the scene as `vitpipe` does."""
    source = source_of(Path(path))
    with Geotiff().open(source) as raster:
        return sum(sink(block.tiles) for block in cut(raster, _recipe(size), source_id=source.source_id))


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
    """Inflate every block and nothing else: what no reader can be faster than."""
    import imagecodecs

    with rasterio.open(path) as scene:
        across, down = -(-scene.width // _BLOCK), -(-scene.height // _BLOCK)
        spans = []
        for row in range(down):
            for col in range(across):
                offset = scene.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=1)
                length = scene.get_tag_item(f"BLOCK_SIZE_{col}_{row}", "TIFF", bidx=1)
                spans.append((int(offset), int(length)))
    size = 0
    with Path(path).open("rb") as stream:
        for offset, length in spans:
            stream.seek(offset)
            size += len(imagecodecs.deflate_decode(stream.read(length), out=_CHANNELS * 2 * _BLOCK * _BLOCK))
    return float(size)


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
