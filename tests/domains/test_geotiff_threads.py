"""Scenes that threads read ahead: closed under them, and filled into memory that was lent before."""

from __future__ import annotations

import gc
import math
import os
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.domains.test_geotiff_blocks import _source, _write
from vitpipe.config import TileRecipe
from vitpipe.cutting import cut, windows
from vitpipe.domains.geotiff import Geotiff
from vitpipe.domains.geotiff.raster import GeotiffRaster
from vitpipe.held_rows import cut_windows
from vitpipe.lent import Lender, _Owner
from vitpipe.records import Source, Window

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
_COMPRESS = ("deflate", "lzw")
"""Decoded here, and by GDAL alone."""


def _scene(folder: Path, compress: str, shape: tuple[int, int, int] = (2, 1024, 512)) -> Path:
    stored = np.random.default_rng(0).integers(0, 1000, shape, dtype=np.uint16)
    return _write(folder / f"{compress}.tif", stored, compress=compress, tiled=True, blockxsize=64, blockysize=64)


class _SlowDataset:
    """Waits in a read until it is told to go on; notes what was done to it."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self.reads, self.goes_on = threading.Event(), threading.Event()
        self.done: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dataset, name)

    def read(self, *args: Any, **options: Any) -> Any:
        self.reads.set()
        assert self.goes_on.wait(10)
        found = self._dataset.read(*args, **options)
        self.done.append("read")
        return found

    def close(self) -> None:
        self.done.append("closed")
        self._dataset.close()


def test_a_dataset_is_closed_when_no_thread_reads_it_any_more(tmp_path: Path) -> None:
    raster = GeotiffRaster(_source(_scene(tmp_path, "lzw")))
    slow = _SlowDataset(raster._opened().datasets[0])
    raster._opened().datasets[0] = slow  # type: ignore[call-overload]
    with ThreadPoolExecutor(2) as pool:
        reading = pool.submit(raster.read, Window(0, 1, 1, 10, 10))
        assert slow.reads.wait(10)
        closing = pool.submit(raster.close)
        # It has every chance to close at once.
        assert not wait_for(lambda: "closed" in slow.done, 0.2)
        slow.goes_on.set()
        assert reading.result()[0].shape == (2, 10, 10)
        closing.result()
    assert slow.done == ["read", "closed"]


def wait_for(is_so: Any, seconds: float) -> bool:
    event, last = threading.Event(), int(seconds / 0.01)
    return any(is_so() or event.wait(0.01) for _ in range(last))


@pytest.mark.parametrize("compress", _COMPRESS)
def test_what_is_read_after_the_close_is_refused_and_nothing_stays_open(tmp_path: Path, compress: str) -> None:
    source = _source(_scene(tmp_path, compress))
    before = set(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else set()
    with Geotiff().open(source) as raster:
        blocks = cut(raster, TileRecipe(size=256), source_id="x", threads=3)
        next(blocks)
    with pytest.raises(ValueError, match=r"was closed before all of it was read"):
        list(blocks)
    with pytest.raises(ValueError, match=r"was closed before all of it was read"):
        raster.read(Window(0, 0, 0, 64, 512))
    del blocks
    gc.collect()
    if before:
        assert set(os.listdir("/proc/self/fd")) <= before


def test_a_file_is_not_closed_under_its_reader(tmp_path: Path) -> None:
    raster = GeotiffRaster(_source(_scene(tmp_path, "deflate")))
    shown: list[int] = []

    def visit(row: int, col: int, pixels: Any, valid: Any) -> None:
        if not shown:
            raster.close()
            # A file that is opened now must not get the number of the one that is read.
            others.append(os.open(tmp_path / "deflate.tif", os.O_RDONLY))
        shown.append(int(pixels[0, 0, 0]))

    others: list[int] = []
    with rasterio.open(tmp_path / "deflate.tif") as dataset:
        expected = [int(value) for value in dataset.read(1)[0, ::64]]
    raster.visit_blocks(0, 64, visit)
    os.close(others[0])
    assert shown == expected


def test_no_thread_writes_any_more_once_a_row_has_failed(tmp_path: Path) -> None:
    shown: list[int] = []

    def visit(row: int, col: int, pixels: Any, valid: Any) -> None:
        if col == 0:
            raise RuntimeError("the first block")
        threading.Event().wait(0.02)
        shown.append(col)

    with Geotiff().open(_source(_scene(tmp_path, "deflate"))) as raster, ThreadPoolExecutor(2) as pool:
        with pytest.raises(RuntimeError, match="the first block"):
            raster.visit_blocks(0, 64, visit, pool=pool)
        # The others are shown before the error is raised.
        assert sorted(shown) == list(range(64, 512, 64))


class _Poisoned(Lender):
    """Gives memory that holds what no tile holds, and spoils what comes back: who still reads it is found out."""

    def lend(self, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> np.ndarray[Any, Any]:
        size = math.prod(shape) * dtype.itemsize
        memory = self._taken(size)
        memory[...] = 0xAB
        owner = _Owner(memory)

        def spoil() -> None:
            memory[...] = 0xCD
            self._free.append(memory)

        weakref.finalize(owner, spoil).atexit = False
        return np.asarray(owner)[:size].view(dtype).reshape(shape)


@st.composite
def _scenes(draw: st.DrawFn) -> tuple[dict[str, Any], np.ndarray[Any, Any], dict[str, bool]]:
    """Give how a scene is written, its pixels, and what masks it."""
    dtype = np.dtype(draw(st.sampled_from(["uint8", "uint16", "int16", "int32", "float32", "float64"])))
    compress = draw(st.sampled_from(["none", "deflate", "zstd", "lzw"]))
    profile: dict[str, Any] = {"compress": compress, "interleave": draw(st.sampled_from(["pixel", "band"]))}
    if draw(st.booleans()):
        edges = {f"block{axis}size": 16 * draw(st.integers(1, 4)) for axis in "xy"}
        profile |= {"tiled": True, **edges}
    else:
        profile["blockysize"] = draw(st.integers(1, 70))
    if compress != "none":
        profile["predictor"] = draw(st.sampled_from([1, 2, 3] if dtype.kind == "f" else [1, 2]))
    has = {name: draw(st.booleans()) for name in ("nodata", "mask", "alpha")}
    shape = draw(st.integers(2, 4)), draw(st.integers(1, 190)), draw(st.integers(1, 190))
    has["alpha"] &= shape[0] in (2, 4) and dtype.name in ("uint8", "uint16")
    profile |= ({"nodata": 7} if has["nodata"] else {}) | ({"alpha": "yes"} if has["alpha"] else {})
    rng = np.random.default_rng(draw(st.integers(0, 1 << 20)))
    pixels = rng.integers(0, 100, shape).astype(dtype)
    if dtype.kind == "f":
        pixels[rng.random(shape) < 0.01] = np.nan
    return profile, pixels, has


def _expected(source: Source, path: Path, has: dict[str, bool]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Read a whole scene by rasterio."""
    reader: Any = source.reader
    with rasterio.open(path) as dataset:
        pixels = dataset.read(reader["bands"])
        valid = np.isfinite(pixels).all(axis=0)
        if has["nodata"]:
            valid &= (pixels != 7).all(axis=0)
        for band in reader["alpha"]:
            valid &= dataset.read(band) != 0
        if has["mask"]:
            valid &= dataset.read_masks(reader["bands"][0]) != 0
    return np.where(valid, pixels, 0).astype(source.dtype), valid


@given(scene=_scenes(), data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_tiles_of_any_scene_are_those_of_rasterio_however_many_threads_read(
    scene: Any, data: st.DataObject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile, stored, has = scene
    with monkeypatch.context() as patch, rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        path = _write(tmp_path / "a.tif", stored, **profile)
        if has["mask"]:
            with rasterio.open(path, "r+") as dataset:
                dataset.write_mask(np.random.default_rng(1).random(stored.shape[1:]) < 0.8)
        patch.setattr("vitpipe.open_tiles.Lender", _Poisoned)
        patch.setattr("vitpipe.open_tiles.LEAST_TILE_BYTES", data.draw(st.sampled_from([1, 1, 1 << 15])))
        patch.setattr("vitpipe.open_tiles._AHEAD_BYTES", data.draw(st.sampled_from([0, 1 << 27])))
        patch.setattr("vitpipe.domains.geotiff.raster._READ_BYTES", data.draw(st.sampled_from([1, 1 << 24])))
        patch.setattr("vitpipe.domains.geotiff.raster._WANTED_ROWS", data.draw(st.sampled_from([1, 64])))
        size = data.draw(st.sampled_from([16, 33, 64]))
        pieces = data.draw(st.sampled_from([1, 5 * stored.itemsize * size**2, 1 << 23]))
        for name in ("cutting", "held_rows"):
            patch.setattr(f"vitpipe.{name}.PIECE_BYTES", pieces)
        source = _source(path)
        pixels, valid = _expected(source, path, has)
        padded = np.pad(pixels, ((0, 0), (0, size), (0, size))), np.pad(valid, ((0, size), (0, size)))

        def is_right(window: Window, tile: np.ndarray[Any, Any], mask: np.ndarray[Any, Any]) -> bool:
            place = slice(window.row, window.row + size), slice(window.col, window.col + size)
            return np.array_equal(tile, padded[0][:, *place]) and np.array_equal(mask, padded[1][place])

        recipe = TileRecipe(size=size, stride=data.draw(st.integers(size // 2, size)), min_valid_fraction=0)
        for threads in (1, 2, 4):
            held: list[Any] = []
            order: list[Window] = []
            with Geotiff().open(source) as raster:
                asked = windows(raster.grid, recipe)
                for block in cut(raster, recipe, source_id="x", threads=threads):
                    order += block.windows
                    held += zip(block.windows, block.tiles, block.valid, strict=True)
                    assert is_right(*held[-1])
                    # The others are given back, and their memory is filled again.
                    held = held[::3]
                assert order == asked
                for places, tiles, masks in cut_windows(raster, asked[::-2], threads=threads):
                    held += [(asked[::-2][place], *item) for place, *item in zip(places, tiles, masks, strict=True)]
            assert len(held) >= len(asked[::-2])
            assert all(is_right(*item) for item in held)
