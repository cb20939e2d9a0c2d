"""Blocks decoded without GDAL: equal to what GDAL reads, whatever the layout; GDAL's word where one is not plain."""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin
from rasterio.windows import Window as RasterioWindow

from tests.tiling_cases import MemoryRaster, noise
from vitpipe.config import GeotiffSource, TileRecipe
from vitpipe.cutting import cut
from vitpipe.domains.base import ScanContext
from vitpipe.domains.geotiff import Geotiff
from vitpipe.domains.geotiff.checksums import damaged_block
from vitpipe.domains.geotiff.layout import read_layout
from vitpipe.domains.geotiff.raster import GeotiffRaster
from vitpipe.errors import UnreadableSource
from vitpipe.held_rows import cut_windows
from vitpipe.pseudonym import Pseudonymiser
from vitpipe.records import FileRecord, Source, Window

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

_LAYOUTS: Mapping[str, Mapping[str, Any]] = {
    "tiled": {"tiled": True, "blockxsize": 32, "blockysize": 16},
    "strips": {"blockysize": 7},
    "low strips": {"blockysize": 1},
    "one strip": {"blockysize": 203},
}


def _write(path: Path, pixels: np.ndarray[Any, Any], **profile: Any) -> Path:
    count, height, width = pixels.shape
    chosen = {
        "driver": "GTiff", "count": count, "height": height, "width": width, "dtype": pixels.dtype,
        "crs": "EPSG:32633", "transform": from_origin(500_000, 5_000_000, 10, 10), "photometric": "minisblack",
    }  # fmt: skip
    with rasterio.open(path, "w", **(chosen | profile)) as dataset:
        dataset.write(pixels)
    return path


def _source(path: Path, **recipe: Any) -> Source:
    context, domain = (
        ScanContext(path.parent, Pseudonymiser(b"key"), GeotiffSource(path=str(path), **recipe)),
        Geotiff(),
    )
    header = domain.index(path, context)
    assert isinstance(header, Mapping), header
    (source,) = domain.assemble([FileRecord(str(path), path.stat().st_size, 0, "0" * 32, header)], context)
    assert isinstance(source, Source), source
    return source


def _plain(path: Path) -> bool:
    with rasterio.open(path) as dataset:
        return read_layout(path, dataset) is not None


def _read(source: Source, threads: int = 1) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Read a scene by its rows of blocks."""
    grid = source.grid
    pixels = np.empty((len(source.channels), grid.height, grid.width), source.dtype)
    valid = np.ones((grid.height, grid.width), bool)
    with Geotiff().open(source) as raster, ThreadPoolExecutor(threads) as pool:
        row = None
        for start in range(0, grid.height, raster.block_rows):
            stop = min(start + raster.block_rows, grid.height)
            row = raster.read_block_row(start, stop, pool=pool if threads > 1 else None, spare=row)
            assert (row.start, row.stop) == (start, stop)
            for col, part in row.parts:
                assert part.dtype == source.dtype
                pixels[:, start:stop, col : col + part.shape[2]] = part
            if row.valid is not None:
                valid[start:stop] = row.valid
    shown, shown_valid = _visited(source, threads)
    assert np.array_equal(shown, pixels)
    assert np.array_equal(shown_valid, valid)
    return pixels, valid


def _visited(source: Source, threads: int = 1) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Read a scene block by block."""
    grid = source.grid
    pixels = np.zeros((len(source.channels), grid.height, grid.width), source.dtype)
    valid = np.zeros((grid.height, grid.width), bool)

    def visit(row: int, col: int, part: np.ndarray[Any, Any], mask: np.ndarray[Any, Any] | None) -> None:
        assert part.dtype == source.dtype
        place = slice(row, row + part.shape[1]), slice(col, col + part.shape[2])
        pixels[:, *place] = part
        valid[place] = True if mask is None else mask

    with Geotiff().open(source) as raster, ThreadPoolExecutor(threads) as pool:
        for start in range(0, grid.height, raster.block_rows):
            stop = min(start + raster.block_rows, grid.height)
            raster.visit_blocks(start, stop, visit, pool=pool if threads > 1 else None)
    return pixels, valid


def _noise(dtype: str, shape: tuple[int, int, int] = (3, 203, 101)) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(5)
    if dtype.startswith("float"):
        return rng.normal(0, 1000, shape).astype(dtype)
    limits = np.iinfo(dtype)
    # Values over the whole range, so that every difference wraps around.
    return rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)


@pytest.mark.parametrize("interleave", ["pixel", "band"])
@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64"]
)
def test_every_layout_is_read_as_gdal_reads_it(tmp_path: Path, dtype: str, interleave: str) -> None:
    stored = _noise(dtype)
    predictors = (1, 2, 3) if dtype.startswith("float") else (1, 2)
    kinds = itertools.product(("none", "deflate", "zstd"), predictors, ("LITTLE", "BIG"), _LAYOUTS)
    for compress, predictor, order, name in kinds:
        path = tmp_path / "a.tif"
        profile = {"compress": compress, "ENDIANNESS": order, "interleave": interleave, **_LAYOUTS[name]}
        if compress != "none":
            profile["predictor"] = predictor
        _write(path, stored, **profile)
        # GDAL may make many strips of one that is not compressed.
        assert _plain(path) or (compress, name) == ("none", "one strip"), profile
        pixels, valid = _read(_source(path), threads=1 + (order == "BIG"))
        assert np.array_equal(pixels, stored), profile
        assert valid.all()
        path.unlink()


@pytest.mark.parametrize(
    "profile", [{"compress": "lzw"}, {"compress": "packbits"}, {"compress": "lerc"}, {"nbits": 12}]
)
def test_what_is_not_plain_is_read_by_gdal(tmp_path: Path, profile: Mapping[str, Any]) -> None:
    stored = (_noise("uint16") & 0xFFF).astype(np.uint16)
    path = _write(tmp_path / "a.tif", stored, **profile, **_LAYOUTS["tiled"])
    assert not _plain(path)
    assert np.array_equal(_read(_source(path))[0], stored)


@pytest.mark.parametrize("big", ["YES", "NO"])
@pytest.mark.parametrize("interleave", ["pixel", "band"])
def test_blocks_that_were_never_written_are_what_gdal_says(tmp_path: Path, interleave: str, big: str) -> None:
    path = tmp_path / "a.tif"
    profile = {
        "driver": "GTiff", "count": 2, "height": 203, "width": 101, "dtype": "uint16", "sparse_ok": True, "nodata": 7,
        "compress": "deflate", "interleave": interleave, "BIGTIFF": big, **_LAYOUTS["tiled"],
    }  # fmt: skip
    part = _noise("uint16", (2, 32, 32)) | 8
    with rasterio.open(path, "w", **profile) as dataset:
        dataset.write(part, window=RasterioWindow(32, 48, 32, 32))
    assert _plain(path)
    pixels, valid = _read(_source(path))
    expected = np.zeros((203, 101), bool)
    expected[48:80, 32:64] = True
    assert np.array_equal(valid, expected)
    assert np.array_equal(pixels[:, 48:80, 32:64], part)
    assert not pixels[:, ~expected].any()


@pytest.mark.parametrize("interleave", ["pixel", "band"])
@pytest.mark.parametrize("bands", [None, ("b3", "b1"), ("b2",), ("b1", "b2", "b3")])
def test_bands_masks_and_scales_are_those_of_a_window(tmp_path: Path, interleave: str, bands: Any) -> None:
    stored = _noise("int16", (4, 203, 101)) % 50
    for index, extra in enumerate(({"nodata": 3}, {"alpha": "yes"}, {"mask": True}, {"scale": 0.5, "nodata": 3})):
        path = tmp_path / f"{index}.tif"
        profile = {key: value for key, value in extra.items() if key in ("nodata", "alpha")}
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
            _write(path, stored, compress="deflate", predictor=2, interleave=interleave, **_LAYOUTS["tiled"], **profile)
            with rasterio.open(path, "r+") as dataset:
                if "mask" in extra:
                    dataset.write_mask(stored[0] % 5 != 0)
                if "scale" in extra:
                    dataset.scales, dataset.offsets = (0.5, 1, 1, 1), (0, 0, -7, 0)
        assert _plain(path)
        source = _source(path, bands=bands)
        pixels, valid = _read(source, threads=2)
        with Geotiff().open(source) as raster:
            # Off the edges of blocks: by GDAL.
            wanted, mask = raster.read(Window(0, 1, 1, 202, 100))
            whole, everything = raster.read(Window(0, 0, 0, 210, 110))
        # The alpha band (the second) may itself have been chosen as a channel.
        assert 0 < mask.sum() < mask.size or ("alpha" in extra and "b2" in source.channels)
        assert np.array_equal(pixels[:, 1:, 1:], wanted)
        assert np.array_equal(valid[1:, 1:], mask)
        assert np.array_equal(whole[:, :203, :101], pixels)
        assert np.array_equal(everything[:203, :101], valid)
        assert not everything[203:].any()
        assert not everything[:, 101:].any()


@pytest.mark.parametrize("damage", ["bytes", "short"])
@pytest.mark.parametrize("compress", ["deflate", "zstd"])
def test_a_damaged_block_gets_the_word_of_gdal(tmp_path: Path, compress: str, damage: str) -> None:
    path = _write(tmp_path / "a.tif", _noise("uint16"), compress=compress, **_LAYOUTS["tiled"])
    source = _source(path)
    with rasterio.open(path) as dataset:
        layout = read_layout(path, dataset)
    assert layout is not None
    content = bytearray(path.read_bytes())
    middle = int(layout.offsets[0, 5, 1])
    if damage == "bytes":
        content[middle : middle + 40] = bytes(40)
    else:
        content = content[: int(layout.offsets[0, -1, -1]) + 1]
    path.write_bytes(content)
    for read in (_read, _visited):
        with pytest.raises(UnreadableSource) as error:
            read(source, threads=2)
        assert error.value.code == ("UNDECODABLE" if damage == "bytes" else "TRUNCATED")


@pytest.mark.parametrize("block_by_block", [True, False])
@pytest.mark.parametrize("edge", ["pad", "shift", "drop"])
@pytest.mark.parametrize(("size", "stride"), [(16, None), (24, 24), (40, 13), (9, 5), (110, 50), (128, None)])
def test_tiles_out_of_rows_of_blocks_are_cut_from_the_scene(
    tmp_path: Path, edge: str, size: int, stride: Any, block_by_block: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if edge == "drop" and size > 101:
        pytest.skip("no tile fits")
    monkeypatch.setattr("vitpipe.open_tiles.LEAST_TILE_BYTES", 1 if block_by_block else 1 << 30)
    # Several pieces a row of tiles.
    monkeypatch.setattr("vitpipe.cutting.PIECE_BYTES", 3 * 2 * 2 * size**2)
    stored = _noise("uint16", (2, 203, 101))
    stored[:, 40:90, 20:60] = 0
    path = _write(tmp_path / "a.tif", stored, nodata=0, compress="deflate", **_LAYOUTS["tiled"])
    recipe = TileRecipe(size=size, stride=stride, edge=edge, min_valid_fraction=0.3)
    source = _source(path)
    found = {}
    for threads in (1, 3):
        with Geotiff().open(source) as raster:
            found[threads] = list(cut(raster, recipe, source_id="x", threads=threads))
        for block in found[threads]:
            for window, tile, mask, share in zip(
                block.windows, block.tiles, block.valid, block.valid_fraction, strict=True
            ):
                wanted = np.zeros((2, size, size), np.uint16)
                part = stored[:, window.row : window.row + size, window.col : window.col + size]
                wanted[:, : part.shape[1], : part.shape[2]] = part
                inside = (wanted != 0).all(axis=0)
                assert np.array_equal(mask, inside), window
                assert np.array_equal(tile, wanted * inside), window
                assert share == inside.mean()
    assert [block.windows for block in found[1]] == [block.windows for block in found[3]]


def _note_rows(monkeypatch: pytest.MonkeyPatch, method: str) -> list[int]:
    """Note which rows are decoded by `method`."""
    rows: list[int] = []
    read = getattr(GeotiffRaster, method)

    def noted(self: GeotiffRaster, start: int, stop: int, *rest: Any, **options: Any) -> Any:
        rows.extend(range(start, stop))
        return read(self, start, stop, *rest, **options)

    monkeypatch.setattr(GeotiffRaster, method, noted)
    return rows


@pytest.mark.parametrize(("least", "method"), [(1, "visit_blocks"), (1 << 30, "read_block_row")])
def test_no_block_is_decoded_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, least: int, method: str) -> None:
    path = _write(tmp_path / "a.tif", _noise("uint16"), compress="deflate", **_LAYOUTS["tiled"])
    reads = _note_rows(monkeypatch, method)
    monkeypatch.setattr("vitpipe.open_tiles.LEAST_TILE_BYTES", least)
    monkeypatch.setattr("vitpipe.domains.geotiff.raster._WANTED_ROWS", 16)
    with Geotiff().open(_source(path)) as raster:
        assert sum(len(block.windows) for block in cut(raster, TileRecipe(size=24, stride=10), source_id="x")) > 100
    assert reads == list(range(203))


@pytest.mark.parametrize(("least", "method"), [(1, "visit_blocks"), (1 << 30, "read_block_row")])
@pytest.mark.parametrize("layout", ["tiled", "low strips"])
@pytest.mark.parametrize("piece_bytes", [1, 1 << 13, 1 << 25])
def test_windows_in_any_order_are_those_of_the_scene(
    tmp_path: Path, layout: str, piece_bytes: int, monkeypatch: pytest.MonkeyPatch, least: int, method: str
) -> None:
    stored = _noise("uint16", (2, 203, 101))
    stored[:, 40:90, 20:60] = 0
    path = _write(tmp_path / "a.tif", stored, nodata=0, compress="deflate", **_LAYOUTS[layout])
    rng = np.random.default_rng(1)
    windows = [Window(0, int(row), int(col), 24, 20) for row, col in rng.integers(0, (203, 101), (150, 2))]
    windows.append(windows[3])
    monkeypatch.setattr("vitpipe.held_rows.PIECE_BYTES", piece_bytes)
    monkeypatch.setattr("vitpipe.domains.geotiff.raster._WANTED_ROWS", 16)
    monkeypatch.setattr("vitpipe.open_tiles.LEAST_TILE_BYTES", least)
    reads = _note_rows(monkeypatch, method)
    seen: list[int] = []
    with Geotiff().open(_source(path)) as raster:
        for places, tiles, masks in cut_windows(raster, windows, threads=1 + piece_bytes % 2):
            seen += places.tolist()
            for place, tile, mask in zip(places, tiles, masks, strict=True):
                window = windows[place]
                wanted = np.zeros((2, 24, 20), np.uint16)
                part = stored[:, window.row : window.row + 24, window.col : window.col + 20]
                wanted[:, : part.shape[1], : part.shape[2]] = part
                assert np.array_equal(mask, (wanted != 0).all(axis=0)), window
                assert np.array_equal(tile, wanted * mask), window
    assert sorted(seen) == list(range(151))
    assert 0 < len(reads) == len(set(reads)), "a row of blocks was decoded twice"


@pytest.mark.parametrize("block_rows", [7, 1])
def test_windows_in_any_order_of_a_raster_of_frames(block_rows: int) -> None:
    raster = MemoryRaster(noise(1, (3, 2, 50, 40)), noise(2, (3, 1, 50, 40))[:, 0] > 100, block_rows=block_rows)
    rng = np.random.default_rng(1)
    windows = [Window(*map(int, place), 9, 11) for place in rng.integers(0, (3, 50, 40), (60, 3))]
    for places, tiles, masks in cut_windows(raster, windows):
        for place, tile, mask in zip(places, tiles, masks, strict=True):
            frame, row, col = windows[place][:3]
            part = raster.valid[frame, row : row + 9, col : col + 11]
            assert np.array_equal(mask[: part.shape[0], : part.shape[1]], part)
            assert mask.sum() == part.sum()
            pixels = raster.pixels[frame, :, row : row + 9, col : col + 11] * part
            assert np.array_equal(tile[:, : part.shape[0], : part.shape[1]], pixels)
            assert tile.sum() == pixels.sum()
    rows = [(read.frame, row) for read in raster.reads for row in range(read.row, read.row + read.height)]
    assert len(rows) == len(set(rows))
    # Not a read for each row in which a window begins.
    assert len(raster.reads) == 3
    with pytest.raises(ValueError, match="outside the grid"):
        next(cut_windows(raster, [Window(0, 50, 0, 9, 11)]))
    with pytest.raises(ValueError, match="one height and width"):
        next(cut_windows(raster, [Window(0, 0, 0, 9, 11), Window(0, 0, 0, 9, 12)]))
    assert list(cut_windows(raster, [])) == []


def test_a_changed_bit_that_gdal_does_not_see_is_seen(tmp_path: Path) -> None:
    stored = _noise("uint16") % 999
    path = _write(tmp_path / "a.tif", stored, compress="deflate", **_LAYOUTS["tiled"])
    source, content = _source(path), path.read_bytes()
    with rasterio.open(path) as dataset:
        layout = read_layout(path, dataset)
    assert layout is not None
    begin = int(layout.offsets[0, 3, 1])
    unseen = 0
    for place in range(begin + 200, begin + 240):
        changed = bytearray(content)
        changed[place] ^= 16
        path.write_bytes(changed)
        try:
            with rasterio.open(path) as dataset:
                unseen += not np.array_equal(dataset.read(), stored)
        except rasterio.errors.RasterioError:
            continue
        with pytest.raises(UnreadableSource) as error:
            _read(source)
        assert error.value.code == "UNDECODABLE"
    assert unseen > 0


@pytest.mark.parametrize("level", [0, 6])
@pytest.mark.parametrize("padding", ["rows", "bytes"])
def test_a_block_that_holds_more_than_its_pixels_is_read(tmp_path: Path, padding: str, level: int) -> None:
    stored = _noise("uint16", (1, 41, 30))
    path = _write(tmp_path / "a.tif", stored, compress="deflate", blockysize=20)
    with rasterio.open(path) as dataset:
        layout = read_layout(path, dataset)
    assert layout is not None
    # The last strip has one row; some writers fill it up, as a tile is.
    more = bytes(19 * 60) if padding == "rows" else b"x"
    block = zlib.compress(stored[0, 40:].tobytes() + more, level)
    content = bytearray(path.read_bytes())
    # The tables of the file, told by their first entries: offsets are of 4 bytes, counts of 2.
    for kind, table, new in (("I", layout.offsets, len(content)), ("H", layout.counts, len(block))):
        first = struct.pack(f"<3{kind}", *table.ravel().tolist())
        assert content.count(first) == 1
        struct.pack_into(f"<{kind}", content, content.index(first) + 2 * struct.calcsize(kind), new)
    path.write_bytes(content + block)
    with rasterio.open(path) as dataset:
        changed = read_layout(path, dataset)
    assert changed is not None
    assert (int(changed.offsets[0, 2, 0]), int(changed.counts[0, 2, 0])) == (len(content), len(block))
    pixels, _ = _read(_source(path))
    assert np.array_equal(pixels, stored)
    assert damaged_block(path) is None
    # Its checksum still counts.
    path.write_bytes(content + block[:-1] + bytes([block[-1] ^ 1]))
    assert damaged_block(path) is not None
    with pytest.raises(UnreadableSource):
        _read(_source(path))


@pytest.mark.parametrize("inner_mask", [False, True])
@pytest.mark.parametrize("compress", ["lzw", "deflate"])
def test_threads_give_the_same_tiles_of_what_gdal_reads(
    tmp_path: Path, compress: str, inner_mask: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitpipe.open_tiles.LEAST_TILE_BYTES", 1)
    monkeypatch.setattr("vitpipe.domains.geotiff.raster._WANTED_ROWS", 16)
    # Two columns of blocks a read, of four.
    monkeypatch.setattr("vitpipe.domains.geotiff.raster._READ_BYTES", 2 * 32 * 16 * 6)
    stored = _noise("uint16")
    seen = np.random.default_rng(8).random((203, 101)) > 0.1
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        path = _write(tmp_path / "a.tif", stored, compress=compress, **_LAYOUTS["tiled"])
        if inner_mask:
            with rasterio.open(path, "r+") as dataset:
                dataset.write_mask(seen)
    if compress == "lzw":
        assert not _plain(path)
    valid = seen if inner_mask else np.ones_like(seen)
    recipe = TileRecipe(size=24, stride=20, edge="drop", min_valid_fraction=0)
    for threads in (1, 3):
        with Geotiff().open(_source(path)) as raster:
            windows = 0
            for block in cut(raster, recipe, source_id="x", threads=threads):
                for window, tile, mask in zip(block.windows, block.tiles, block.valid, strict=True):
                    windows += 1
                    place = slice(window.row, window.row + 24), slice(window.col, window.col + 24)
                    assert np.array_equal(mask, valid[place])
                    assert np.array_equal(tile, stored[:, *place] * valid[place])
        assert windows == 9 * 4


def test_what_gdal_reads_is_shown_in_few_columns_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitpipe.domains.geotiff.raster._READ_BYTES", 2 * 203 * 32 * 6 + 40_000)
    path = _write(tmp_path / "a.tif", _noise("uint16"), compress="lzw", **_LAYOUTS["tiled"])
    shown: list[tuple[int, int, tuple[int, ...]]] = []
    with Geotiff().open(_source(path)) as raster:
        raster.visit_blocks(0, 203, lambda row, col, pixels, _: shown.append((row, col, pixels.shape)))
    assert shown == [(0, 0, (3, 203, 64)), (0, 64, (3, 203, 37))]
