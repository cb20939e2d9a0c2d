"""Damaged blocks, and handles in forks and threads: no wrong pixels without a word where it can be known."""

from __future__ import annotations

import concurrent.futures
import hashlib
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from scene_cases import look, one, read, refused, write_band, write_landsat, write_safe

from vitpipe.domains.geotiff import Geotiff
from vitpipe.errors import UnreadableSource
from vitpipe.records import Source, Window

_RNG = np.random.default_rng(8)
_TILED = {"tiled": True, "blockxsize": 64, "blockysize": 64}
_LAYOUTS = {
    "tiles": {**_TILED},
    "deflate": {**_TILED, "compress": "deflate", "predictor": 2},
    "zstd": {**_TILED, "compress": "zstd"},
    "lzw": {**_TILED, "compress": "lzw"},
    "strips": {"blockysize": 16},
    "deflate strips": {"blockysize": 16, "compress": "deflate"},
}


def _smooth(size: int) -> np.ndarray[Any, Any]:
    row, col = np.mgrid[:size, :size]
    noise = _RNG.normal(0, 30, (size, size))
    return ((np.sin(col / 40) + np.cos(row / 30)) * 1000 + 3000 + noise).astype(np.uint16)


def _block(path: Path, band: int = 1) -> tuple[int, int]:
    with rasterio.open(path) as dataset:
        place = [dataset.get_tag_item(f"BLOCK_{what}_1_1", "TIFF", bidx=band) for what in ("OFFSET", "SIZE")]
    return int(place[0]), int(place[1])


@pytest.mark.parametrize("layout", ["deflate", "zstd", "lzw"])
def test_a_damaged_block_is_undecodable(tmp_path: Path, layout: str) -> None:
    path = write_band(tmp_path / "a.tif", _smooth(256), 10, **_LAYOUTS[layout])
    source = one(tmp_path)
    offset, length = _block(path)
    content = bytearray(path.read_bytes())
    content[offset : offset + length // 2] = bytes(length // 2)
    path.write_bytes(content)
    with pytest.raises(UnreadableSource) as caught:
        read(source)
    assert caught.value.code == "UNDECODABLE"
    # What lies in other blocks is there.
    assert read(source, Window(0, 0, 0, 64, 64))[1].all()


@pytest.mark.parametrize("layout", ["deflate", "deflate strips"])
def test_one_changed_bit_of_a_deflate_block_is_found(tmp_path: Path, layout: str) -> None:
    """GDAL gives wrong pixels for about one in seven of them."""
    # 250 rows: the last blocks are cut off in both layouts.
    path = write_band(tmp_path / "a.tif", _smooth(250), 10, **_LAYOUTS[layout])
    whole = path.read_bytes()
    assert one(tmp_path, verify=True).notes == ()
    with rasterio.open(path) as dataset:
        place = [int(dataset.get_tag_item(f"BLOCK_{what}_0_2", "TIFF", bidx=1)) for what in ("OFFSET", "SIZE")]
    for at in _RNG.integers(place[0], sum(place), 40):
        content = bytearray(whole)
        content[at] ^= 1 << int(_RNG.integers(8))
        path.write_bytes(content)
        rejection = refused(tmp_path, verify=True)
        assert rejection.code == "UNDECODABLE"
        assert f"row {128 if layout == 'deflate' else 32}, col 0" in rejection.reason


@pytest.mark.parametrize("interleave", ["band", "pixel"])
@pytest.mark.parametrize("dtype", ["uint8", "float64"])
def test_whole_files_of_every_kind_are_verified(tmp_path: Path, dtype: str, interleave: str) -> None:
    profile = {"driver": "GTiff", "count": 3, "height": 100, "width": 130, "dtype": dtype, "interleave": interleave}
    pixels = _RNG.integers(0, 9, (3, 100, 130)).astype(dtype)
    with rasterio.open(tmp_path / "a.tif", "w", **profile, **_LAYOUTS["deflate"] | {"predictor": 1}) as dataset:
        dataset.write(pixels)
    with rasterio.open(tmp_path / "bits.tif", "w", **profile, nbits=1, compress="deflate") as dataset:
        dataset.write((pixels > 4).astype(dtype))
    with rasterio.open(tmp_path / "sparse.tif", "w", **profile, SPARSE_OK=True, **_LAYOUTS["deflate"]) as dataset:
        dataset.write(pixels[:1, :64, :64], window=rasterio.windows.Window(0, 0, 64, 64), indexes=[1])
    write_safe(tmp_path, {("B04", 10): _smooth(60)})
    sources, rejected = look(tmp_path, verify=True)
    assert len(sources) == 4
    assert rejected == []
    content = bytearray((tmp_path / "a.tif").read_bytes())
    # The last band's own block where bands lie apart.
    offset, length = _block(tmp_path / "a.tif", band=3)
    content[offset + length // 2] ^= 4
    (tmp_path / "a.tif").write_bytes(content)
    assert [item.code for item in look(tmp_path, verify=True)[1]] == ["UNDECODABLE"]


def test_a_changed_byte_without_compression_is_another_source(tmp_path: Path) -> None:
    """Nothing in the file can tell; the digest of its bytes is another one, and with it the identity of the source."""
    path = write_band(tmp_path / "a.tif", _smooth(256), 10, **_LAYOUTS["tiles"])
    before = one(tmp_path, verify=True)
    content = bytearray(path.read_bytes())
    content[_block(path)[0] + 100] ^= 1
    path.write_bytes(content)
    after = one(tmp_path, verify=True)
    assert before.source_id != after.source_id
    assert not np.array_equal(read(before)[0], _smooth(256))


# ------------------------------------------------------------------------------------------------ forks and threads


def _digests(raster: Any, windows: list[Window]) -> list[str]:
    return [hashlib.sha256(raster.read(window)[0].tobytes()).hexdigest() for window in windows]


def _in_child(raster: Any, windows: list[Window], results: Any, turn: int) -> None:
    results.put((turn, _digests(raster, windows)))


def _windows(source: Source) -> list[Window]:
    rng = np.random.default_rng(9)
    rows, cols = (rng.integers(0, edge - 60, 100).tolist() for edge in (source.grid.height, source.grid.width))
    return [Window(0, row, col, 60, 60) for row, col in zip(rows, cols, strict=True)]


def _any_source(root: Path, layout: str) -> Source:
    if layout == "safe":
        write_safe(root, {("B04", 10): _smooth(300), ("B05", 20): _smooth(150), ("SCL", 20): _smooth(150) % 12})
        return one(root, clouds="drop")
    if layout == "landsat":
        write_landsat(root, {"SR_B4": _smooth(800), "SR_B5": _smooth(800)})
        return one(root)
    # Large enough that most reads go to the file, not to blocks that are in memory.
    write_band(root / "a.tif", _smooth(1800), 10, **_LAYOUTS[layout])
    return one(root)


@pytest.mark.parametrize("layout", [*_LAYOUTS, "safe", "landsat"])
def test_forks_of_a_parent_that_has_read_give_the_same_pixels(tmp_path: Path, layout: str) -> None:
    """Handles shared over a fork share their place in the file: wrong pixels without an error, or broken blocks."""
    source = _any_source(tmp_path, layout)
    windows = _windows(source)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    with Geotiff().open(source) as raster:
        expected = _digests(raster, windows)
    with Geotiff().open(source) as raster:
        raster.read(windows[0])
        halves = (windows[::2], windows[1::2])
        children = [
            context.Process(target=_in_child, args=(raster, half, results, at)) for at, half in enumerate(halves)
        ]
        for child in children:
            child.start()
        found = dict(results.get(timeout=15) for _ in children)
        # The parent reads meanwhile and after them.
        assert _digests(raster, windows) == expected
        for child in children:
            child.join(timeout=30)
            assert child.exitcode == 0
    assert (found[0], found[1]) == (expected[::2], expected[1::2])


@pytest.mark.parametrize("layout", ["tiles", "deflate", "safe"])
def test_threads_with_a_raster_each_give_the_same_pixels(tmp_path: Path, layout: str) -> None:
    source = _any_source(tmp_path, layout)
    windows = _windows(source)

    def run(_: int) -> list[str]:
        with Geotiff().open(source) as raster:
            return _digests(raster, windows)

    expected = run(0)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(run, range(4))) == [expected] * 4
