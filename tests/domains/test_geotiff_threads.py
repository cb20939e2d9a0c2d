"""Scenes that threads read ahead: closed under them, and filled into memory that was lent before."""

from __future__ import annotations

import gc
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from tests.domains.test_geotiff_blocks import _source, _write
from vitpipe.config import TileRecipe
from vitpipe.cutting import cut
from vitpipe.domains.geotiff import Geotiff
from vitpipe.domains.geotiff.raster import GeotiffRaster
from vitpipe.records import Window

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
