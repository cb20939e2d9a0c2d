"""Windows of tiles: origins, edges, sizes, and the pixels that lie in them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import vitpipe.cutting as cutting_room
import vitpipe.tiling as room
from tests.tiling_cases import MemoryRaster, noise, together
from vitpipe.config import TileRecipe
from vitpipe.errors import UnreadableSource
from vitpipe.records import Grid, Window
from vitpipe.tiling import cut, origins, windows

EDGES = st.sampled_from(["pad", "shift", "drop"])


@st.composite
def recipes(draw: st.DrawFn) -> TileRecipe:
    size = draw(st.integers(8, 20))
    return TileRecipe(size=size, stride=draw(st.integers(1, size)), edge=draw(EDGES), min_valid_fraction=0)


@settings(max_examples=200, deadline=None)
@given(length=st.integers(1, 120), recipe=recipes())
def test_origins_cover_and_count(length: int, recipe: TileRecipe) -> None:
    starts = origins(length, recipe)
    size, step = recipe.size, recipe.step
    assert starts == sorted(set(starts))
    if recipe.edge == "drop":
        assert len(starts) == (1 + (length - size) // step if length >= size else 0)
        assert all(start + size <= length for start in starts)
        return
    assert len(starts) == 1 + max(0, math.ceil((length - size) / step))
    covered = np.zeros(length, int)
    for start in starts:
        covered[start : start + size] += 1
    assert (covered > 0).all()
    if recipe.edge == "shift" and length >= size:
        assert all(start + size <= length for start in starts)


@settings(max_examples=60, deadline=None)
@given(
    frames=st.integers(1, 2), height=st.integers(1, 60), width=st.integers(1, 60),
    recipe=recipes(), block_rows=st.integers(1, 64), block_bytes=st.sampled_from([1, 1000, 1 << 20]),
)  # fmt: skip
def test_tiles_are_the_pixels_of_their_windows(
    frames: int, height: int, width: int, recipe: TileRecipe, block_rows: int, block_bytes: int
) -> None:
    pixels = noise(height, (frames, 2, height, width))
    valid = np.random.default_rng(width).random((frames, height, width)) < 0.8
    raster = MemoryRaster(pixels, valid, block_rows=block_rows)
    expected = windows(raster.grid, recipe)
    if not expected:
        with pytest.raises(UnreadableSource, match="TOO_SMALL"):
            list(cut(raster, recipe, source_id="a"))
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutting_room, "PIECE_BYTES", block_bytes)
        blocks = list(cut(raster, recipe, source_id="a"))
    tiles, masks, places = together(blocks)
    assert places == expected
    size = recipe.size
    padded = np.pad(pixels * valid[:, np.newaxis], ((0, 0), (0, 0), (0, size), (0, size)))
    padded_valid = np.pad(valid, ((0, 0), (0, size), (0, size)))
    for tile_, mask, (frame, row, col, *_) in zip(tiles, masks, places, strict=True):
        np.testing.assert_array_equal(tile_, padded[frame, :, row : row + size, col : col + size])
        np.testing.assert_array_equal(mask, padded_valid[frame, row : row + size, col : col + size])
    for frame in range(frames):
        rows = raster.rows_read(frame)
        assert len(rows) == len(set(rows)), "a row was decoded twice"
    assert all(read.row % block_rows == 0 for read in raster.reads), "reads start at blocks of the file"


def test_few_valid_pixels_drop_a_tile() -> None:
    valid = np.ones((1, 16, 48), bool)
    valid[0, :9, :16] = False
    valid[0, :8, 16:32] = False
    recipe = TileRecipe(size=16, min_valid_fraction=0.5)
    (block,) = cut(MemoryRaster(noise(1, (1, 1, 16, 48)), valid), recipe, source_id="a")
    assert [window.col for window in block.windows] == [16, 32]
    assert list(block.valid_fraction) == [0.5, 1.0]
    assert len(block.groups) == len(block.tiles) == len(block.valid) == 2


@pytest.mark.parametrize("edge", ["pad", "shift"])
def test_a_source_smaller_than_a_tile_is_padded_not_lost(edge: str) -> None:
    recipe = TileRecipe.model_validate({"size": 64, "edge": edge, "min_valid_fraction": 0.5})
    (block,) = cut(MemoryRaster(noise(1, (1, 1, 10, 20))), recipe, source_id="a")
    assert block.tiles.shape == (1, 1, 64, 64)
    assert block.valid[0, :10, :20].all()
    assert block.valid.sum() == 200
    assert block.valid_fraction[0] == 200 / 64**2


def test_a_whole_frame_is_resampled_with_its_aspect() -> None:
    pixels = noise(2, (3, 1, 80, 40), "uint16")
    recipe = TileRecipe(cut="whole", size=20)
    tiles, masks, places = together(list(cut(MemoryRaster(pixels), recipe, source_id="a")))
    assert places == [Window(frame, 0, 0, 80, 40) for frame in range(3)]
    assert masks[:, :, :10].all()
    assert not masks[:, :, 10:].any()
    for frame in range(3):
        image = Image.fromarray(pixels[frame, 0].astype(np.float32)).resize((10, 20), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(tiles[frame, 0, :, :10], np.rint(np.asarray(image)), atol=1)


def test_tiles_at_a_spacing_count_in_resampled_pixels() -> None:
    raster = MemoryRaster(noise(2, (1, 1, 64, 96)), grid=Grid(1, 64, 96, spacing_mm=(1.0, 0.5, 0.5)))
    tiles, _, places = together(list(cut(raster, TileRecipe(size=16, spacing_mm=1.0), source_id="a")))
    assert [tuple(place) for place in places] == [(0, row, col, 16, 16, 1) for row in (0, 16) for col in (0, 16, 32)]
    assert tiles.shape == (6, 1, 16, 16)
    assert len(raster.rows_read()) == 64


def test_flat_tiles_have_no_digest() -> None:
    tiles = noise(3, (5, 2, 32, 32))
    valid = np.ones((5, 32, 32), bool)
    tiles[0] = 7
    tiles[1, 0], tiles[1, 1] = 3, 4
    valid[2, :, 16:] = False
    tiles[2, :, :, :16], tiles[2, :, :, 16:] = 9, 0
    tiles[3] = 7
    tiles[3, 0, 17, 5] = 8
    shaded = np.full((1, 1, 32, 32), 5, np.uint8)
    shade = np.ones((1, 32, 32), bool)
    shade[:, :3], shaded[:, :, :3] = False, 0
    assert room.pixel_digests(shaded, shade) == [""], "the padding does not count"
    valid[4, 0, 0] = False
    digests = room.pixel_digests(tiles, valid)
    assert digests[:3] == ["", "", ""]
    assert len(set(digests[3:])) == 2
    assert all(len(text) == 16 for text in digests[3:])
    assert room.pixel_digests(tiles[3:4], valid[3:4]) == digests[3:4]
    assert room.pixel_digests(tiles[:1], np.zeros((1, 32, 32), bool)) == [""]
