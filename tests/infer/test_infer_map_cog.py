"""The files of a map byte by byte: blocks lie as a COG of GDAL promises, and GDAL reads what was put in."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rio_cogeo import cog_validate

from tests.infer.map_cases import TRANSFORM, full_after
from vitpipe.errors import WorkspaceError
from vitpipe.infer.mapping import ClassLayers, Layers, MapFile, MapRows, MapTask, ValueLayers, make_files, tiff
from vitpipe.infer.mapping.blocks import BLOCK, decoded, encoded
from vitpipe.infer.mapping.cog import write_cogs
from vitpipe.infer.mapping.scene import MapPlan
from vitpipe.infer.mapping.strips import StripStore
from vitpipe.records import Grid

CLASSES = ("bare ground", "forest & scrub", "water")
TAGS = {"VITPIPE_MODEL": "land/3"}


def written(folder: Path, values: NDArray, layers: Layers, valid: NDArray | None = None) -> Path:
    """Write the files of a map of given values (outputs, rows, width)."""
    outputs, height, width = values.shape
    there = np.ones((height, width), bool) if valid is None else valid
    grid = Grid(1, height, width, transform=TRANSFORM, crs="EPSG:32633")

    def rows_from(row: int) -> Iterator[MapRows]:
        for start in range(row, height, 100):
            yield MapRows(start, values[:, start : start + 100], there[start : start + 100])

    return make_files(grid, rows_from, MapTask(folder, {}, MapPlan(64, outputs), layers, tags=TAGS)).folder


def probabilities(height: int, width: int, outputs: int = 3) -> NDArray:
    """Make a map that is smooth here and noisy there."""
    rng = np.random.default_rng(8)
    values = rng.random((outputs, height, width), np.float32)
    values[:, height // 2 :] = np.linspace(0.2, 0.7, width, dtype=np.float32)
    return values / values.sum(axis=0)


def blocks_of(file: rasterio.DatasetReader, level: int | None) -> list[tuple[int, int]]:
    """Ask GDAL for the place and size of each block, row by row."""
    shape = [-(-edge // 2 ** (0 if level is None else level + 1)) for edge in file.shape]
    found = []
    for row in range(-(-shape[0] // BLOCK)):
        for col in range(-(-shape[1] // BLOCK)):
            ask = [
                file.get_tag_item(f"BLOCK_{what}_{col}_{row}", "TIFF", bidx=1, ovr=level) for what in ("OFFSET", "SIZE")
            ]
            found.append((int(ask[0]), int(ask[1])))
    return found


@pytest.mark.parametrize("big", [False, True], ids=["classic", "BigTIFF"])
def test_blocks_lie_as_the_file_promises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, big: bool) -> None:
    if big:
        monkeypatch.setattr(tiff, "_CLASSIC_END", 1000)
    values = probabilities(1100, 530)
    folder = written(tmp_path / "map", values, ClassLayers(CLASSES))
    for name in ("classes", "probabilities", "entropy"):
        path = folder / f"{name}.tif"
        assert cog_validate(path, strict=True, quiet=True) == (True, [], [])
        data = path.read_bytes()
        assert data[:4] == (b"II\x2b\x00" if big else b"II\x2a\x00")
        promise = data[16 if big else 8 :][:200]
        for line in (b"BLOCK_ORDER=ROW_MAJOR", b"LEADER=SIZE_AS_UINT4", b"TRAILER=LAST_4_BYTES_REPEATED"):
            assert line in promise
        with rasterio.open(path) as file:
            assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
            places = [place for level in (1, 0, None) for place in blocks_of(file, level)]
        assert len(places) == 2 * 1 + 3 * 2 + 5 * 3
        for offset, size in places:
            assert int.from_bytes(data[offset - 4 : offset], "little") == size
            assert data[offset + size : offset + size + 4] == data[offset + size - 4 : offset + size]
        # Each begins where the one before ends, and the file ends with the last.
        starts = [offset - 4 for offset, _ in places]
        assert [offset + size + 4 for offset, size in places] == [*starts[1:], len(data)]
    with rasterio.open(folder / "probabilities.tif") as file:
        assert (file.descriptions, file.scales, file.nodata) == (CLASSES, (0.004,) * 3, 255)
        assert (file.tags()["VITPIPE_MODEL"], file.crs.to_epsg(), tuple(file.transform)[:6]) == (
            "land/3",
            32633,
            TRANSFORM,
        )
        np.testing.assert_allclose(file.read() * 0.004, values, atol=0.0021)


def directories_of(data: bytes) -> Iterator[tuple[int, list[int]]]:
    """Give the place of each directory of a little-endian TIFF, and those of its values."""
    big = data[2] == 43
    word, entry, inline = ("<Q", 20, 8) if big else ("<I", 12, 4)
    (at,) = struct.unpack_from(word, data, 8 if big else 4)
    while at:
        (count,) = struct.unpack_from("<Q" if big else "<H", data, at)
        first, places = at + (8 if big else 2), []
        for place in range(first, first + entry * count, entry):
            kind, length = struct.unpack_from("<H" + word[1], data, place + 2)
            if {1: 1, 2: 1, 3: 2, 4: 4, 12: 8, 16: 8}[kind] * length > inline:
                places += struct.unpack_from(word, data, place + entry - inline)
        yield at, places
        (at,) = struct.unpack_from(word, data, first + entry * count)


@pytest.mark.parametrize("big", [False, True], ids=["classic", "BigTIFF"])
@pytest.mark.parametrize("name", ["v", "va", "val", "value"])
def test_directories_and_values_begin_at_even_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, *, big: bool
) -> None:
    if big:
        monkeypatch.setattr(tiff, "_CLASSIC_END", 1000)
    folder = written(tmp_path / "map", np.ones((1, 600, 20), np.float32), ValueLayers(name))
    found = list(directories_of((folder / "values.tif").read_bytes()))
    assert len(found) == 2
    assert not [place for at, places in found for place in (at, *places) if place % 2]
    assert any(places for _, places in found)


def test_a_file_is_a_bigtiff_where_a_classic_one_cannot_hold_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values, layers = np.ones((1, 600, 20), np.float32), ValueLayers("value")
    size = (written(tmp_path / "map", values, layers) / "values.tif").stat().st_size
    for end, version in ((size, 43), (size + 1, 42)):
        monkeypatch.setattr(tiff, "_CLASSIC_END", end)
        data = (written(tmp_path / str(end), values, layers) / "values.tif").read_bytes()
        assert data[2] == version


def test_blocks_are_predicted_by_what_they_hold(tmp_path: Path) -> None:
    folder = written(tmp_path / "map", probabilities(20, 20), ClassLayers(CLASSES))
    values = written(tmp_path / "values", np.ones((1, 20, 20), np.float32), ValueLayers("value"))
    for path, predictor in (
        (folder / "classes.tif", None),
        (folder / "entropy.tif", "2"),
        (values / "values.tif", "3"),
    ):
        with rasterio.open(path) as file:
            assert file.tags(ns="IMAGE_STRUCTURE").get("PREDICTOR") == predictor


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 600), st.integers(1, 600), st.integers(1, 5), st.booleans())
def test_gdal_reads_what_was_put_in(
    tmp_path_factory: pytest.TempPathFactory, height: int, width: int, outputs: int, floats: bool
) -> None:
    rng = np.random.default_rng(height * width)
    valid = rng.random((height, width)) > 0.3
    folder = tmp_path_factory.mktemp("map")
    if floats:
        values = rng.normal(0, 1e3, (1, height, width)).astype(np.float32)
        with rasterio.open(written(folder / "map", values, ValueLayers("biomass"), valid) / "values.tif") as file:
            np.testing.assert_array_equal(file.read(), np.where(valid, values, np.nan))
        return
    layers = ClassLayers([str(number) for number in range(outputs)])
    values = probabilities(height, width, outputs)
    kept = np.empty((layers.bands, height, width), np.uint8)
    layers.keep(values, valid, kept)
    made = written(folder / "map", values, layers, valid)
    for each in layers.files:
        with rasterio.open(made / f"{each.name}.tif") as file:
            assert (file.read() == kept[list(each.bands)]).all()


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("classes", [(), ("a",)])
@pytest.mark.parametrize("shape", [(1, BLOCK, BLOCK), (3, 7, 201), (2, 1, 1)])
def test_a_block_is_read_back_as_it_was(dtype: str, classes: tuple[str, ...], shape: tuple[int, int, int]) -> None:
    bands = np.random.default_rng(9).integers(0, 256, shape).astype(dtype)
    file = MapFile("x", tuple(range(shape[0])), tuple("xyz"[: shape[0]]), "average", classes=classes)
    found = decoded(file, bands.dtype, encoded(file, list(bands)))
    assert found.dtype == bands.dtype
    assert (found[:, : shape[1], : shape[2]] == bands).all()


def test_a_full_disk_is_said_and_the_next_run_goes_on(tmp_path: Path) -> None:
    values, layers = probabilities(1100, 530), ClassLayers(CLASSES)
    straight = written(tmp_path / "straight", values, layers)
    largest = max(path.stat().st_size for path in straight.iterdir())
    # In the first strip, and when all strips are there.
    for size, strips in ((10_000, 0), (largest - 1, 5)):
        with full_after(size), pytest.raises(WorkspaceError, match=r"cannot write .*, and run the same command again"):
            written(tmp_path / "map", values, layers)
        assert len(list(tmp_path.glob(".partial-map-*/strips/strip-*"))) == strips
    folder = written(tmp_path / "map", values, layers)
    for path in straight.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()


def turned(data: bytes, place: int) -> bytes:
    """Turn the bits of a byte over."""
    changed = bytearray(data)
    changed[place] ^= 0xFF
    return bytes(changed)


def test_a_strip_that_is_not_what_was_written_is_none(tmp_path: Path) -> None:
    values, layers = probabilities(1100, 530), ClassLayers(CLASSES)
    StripStore(tmp_path, 1100, 530, layers).add(MapRows(0, values, np.ones((1100, 530), bool)))
    names = {path.name for path in tmp_path.iterdir()}
    assert StripStore(tmp_path, 1100, 530, layers).done == 5
    assert {path.name for path in tmp_path.iterdir()} == names
    for number, level in ((1, 0), (4, 0), (2, 1)):
        strip = tmp_path / (f"level-1-{number:06d}.blocks" if level else f"strip-{number:06d}.blocks")
        whole = strip.read_bytes()
        damaged = [b"", bytes(4), bytes(len(whole)), whole[:10], whole[:200], whole[:-10]]
        # The checksum, a size, a leader, a block, a trailer.
        damaged += [turned(whole, place) for place in (0, 5, 41, -20, -1)]
        for data in damaged:
            strip.write_bytes(data)
            assert StripStore(tmp_path, 1100, 530, layers).done == (5 if level else number)
            assert {path.name for path in tmp_path.iterdir()} == names - {strip.name}
        strip.write_bytes(whole)


def test_strips_that_a_disk_lost_are_made_again(tmp_path: Path) -> None:
    values, layers = probabilities(1100, 530), ClassLayers(CLASSES)
    straight = written(tmp_path / "straight", values, layers)
    largest = max(path.stat().st_size for path in straight.iterdir())
    with full_after(largest - 1), pytest.raises(WorkspaceError):
        written(tmp_path / "map", values, layers)
    for name in ("strip-000002", "level-1-000000", "level-1-000002"):
        (strip,) = tmp_path.glob(f".partial-map-*/strips/{name}.blocks")
        strip.write_bytes(b"")
    folder = written(tmp_path / "map", values, layers)
    for path in straight.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()


def test_a_strip_that_loses_its_end_while_files_are_written_is_said(tmp_path: Path) -> None:
    values, layers = probabilities(300, 530), ClassLayers(CLASSES)
    store = StripStore(tmp_path, 300, 530, layers)
    store.add(MapRows(0, values, np.ones((300, 530), bool)))
    strip = store.path(1)
    strip.write_bytes(strip.read_bytes()[:-10])
    with pytest.raises(WorkspaceError, match="ends before the blocks that it should hold; remove"):
        write_cogs(store, Grid(1, 300, 530), tmp_path, {})
