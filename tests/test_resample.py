"""Resampling equals PIL's antialiased filter, minds the mask, and does not depend on how it is cut into strips."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import vitpipe.resample.plane as room
from tests.tiling_cases import MemoryRaster, noise
from vitpipe.config import TileRecipe
from vitpipe.errors import UnreadableSource
from vitpipe.records import Grid, Window
from vitpipe.resample import Axis, ResampledRaster, at_resolution, ground_pixel_m, whole_axes

SHAPES = [(100, 130, 33, 47), (50, 60, 90, 111), (512, 300, 224, 224), (10, 10, 1, 1), (1, 5, 3, 9), (64, 64, 64, 64)]


def resampled(raster: MemoryRaster, height: int, width: int) -> ResampledRaster:
    grid = raster.grid
    return ResampledRaster(raster, Axis.stretch(grid.height, height), Axis.stretch(grid.width, width))


@pytest.mark.parametrize(("height", "width", "new_height", "new_width"), SHAPES)
def test_it_equals_pil_when_reducing_and_enlarging(height: int, width: int, new_height: int, new_width: int) -> None:
    pixels = np.random.default_rng(height).normal(size=(1, 1, height, width)).astype(np.float32)
    raster = resampled(MemoryRaster(pixels), new_height, new_width)
    got, valid = raster.read(Window(0, 0, 0, new_height, new_width))
    want = Image.fromarray(pixels[0, 0]).resize((new_width, new_height), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(got[0], np.asarray(want), atol=2e-6)
    assert valid.all()


def test_bytes_equal_pil_to_its_two_roundings() -> None:
    pixels = noise(1, (1, 1, 200, 170))
    got, _ = resampled(MemoryRaster(pixels), 64, 80).read(Window(0, 0, 0, 64, 80))
    want = np.asarray(Image.fromarray(pixels[0, 0]).resize((80, 64), Image.Resampling.BILINEAR))
    assert got.dtype == np.uint8
    assert np.abs(got[0].astype(int) - want).max() <= 1


@pytest.mark.parametrize("dtype", ["int16", "uint16", "int32", "float64"])
def test_extreme_values_come_back(dtype: str) -> None:
    limits = (-1e300, 1e300) if dtype == "float64" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    for value in limits:
        pixels = np.full((1, 1, 30, 30), value, dtype)
        got, _ = resampled(MemoryRaster(pixels), 11, 13).read(Window(0, 0, 0, 11, 13))
        assert got.dtype == dtype
        np.testing.assert_allclose(got.astype(float), float(value), rtol=1e-12)


def test_what_is_not_valid_adds_nothing() -> None:
    pixels = np.full((1, 1, 40, 40), 100, np.uint8)
    valid = np.ones((1, 40, 40), bool)
    valid[0, :, 20:] = False
    got, mask = resampled(MemoryRaster(pixels, valid), 10, 10).read(Window(0, 0, 0, 10, 10))
    assert mask[:, :5].all()
    assert not mask[:, 5:].any()
    assert (got[0][mask] == 100).all(), "the edge of the mask is not darkened"
    assert (got[0][~mask] == 0).all()


def test_masked_values_equal_the_formula() -> None:
    rng = np.random.default_rng(5)
    pixels = rng.normal(size=(1, 1, 37, 29)).astype(np.float32)
    valid = rng.random((1, 37, 29)) < 0.7
    rows, cols = Axis.stretch(37, 12), Axis.stretch(29, 17)
    got, mask = ResampledRaster(MemoryRaster(pixels, valid), rows, cols).read(Window(0, 0, 0, 12, 17))
    weigh_rows = rows.weights(0, 12, np.dtype(float))[1].toarray()
    weigh_cols = cols.weights(0, 17, np.dtype(float))[1].toarray()
    weight = weigh_rows @ valid[0].astype(float) @ weigh_cols.T
    value = weigh_rows @ (pixels[0, 0] * valid[0]) @ weigh_cols.T / weight
    clear = np.abs(weight - 0.5) > 1e-3
    assert (mask == (weight >= 0.5))[clear].all()
    assert 0 < mask.sum() < mask.size
    np.testing.assert_allclose(got[0][mask & clear], value[mask & clear], atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 70), st.integers(1, 40)),
    new=st.tuples(st.integers(1, 90), st.integers(1, 50)),
    limits=st.tuples(st.integers(1, 80), st.sampled_from([1, 300, 2000])),
    cuts=st.lists(st.integers(0, 90), max_size=4),
    dtype=st.sampled_from(["uint8", "float32"]),
    seed=st.integers(0, 5),
)
def test_strips_equal_one_read_bit_for_bit(
    shape: tuple[int, int],
    new: tuple[int, int],
    limits: tuple[int, int],
    cuts: list[int],
    dtype: str,
    seed: int,
) -> None:
    (height, width), (block_rows, strip_values) = shape, limits
    rng = np.random.default_rng(seed)
    valid = rng.random((1, height, width)) < (1.0 if seed == 0 else 0.8)
    valid[:, : height // 2] = True
    pixels = (rng.random((1, 2, height, width)) * 250).astype(dtype)
    want, want_mask = resampled(MemoryRaster(pixels, valid, block_rows=height), *new).read(Window(0, 0, 0, *new))
    edges = sorted({0, new[0], *(cut for cut in cuts if cut < new[0])})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "_STRIP_VALUES", strip_values)
        raster = resampled(MemoryRaster(pixels, valid, block_rows=block_rows), *new)
        reads = [raster.read(Window(0, top, 0, stop - top, new[1])) for top, stop in itertools.pairwise(edges)]
    np.testing.assert_array_equal(np.concatenate([part[0] for part in reads], axis=1), want)
    np.testing.assert_array_equal(np.concatenate([part[1] for part in reads]), want_mask)


def test_a_mask_further_down_does_not_change_the_pixels_above() -> None:
    pixels = np.random.default_rng(1).normal(size=(1, 1, 300, 40)).astype(np.float32)
    valid = np.ones((1, 300, 40), bool)
    valid[:, 250:] = False
    whole = resampled(MemoryRaster(pixels, valid), 131, 17).read(Window(0, 0, 0, 131, 17))
    above = resampled(MemoryRaster(pixels, valid), 131, 17).read(Window(0, 0, 0, 90, 17))
    assert not whole[1].all()
    assert above[1].all()
    np.testing.assert_array_equal(whole[0][:, :90], above[0])


def test_reads_downwards_decode_each_row_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_STRIP_VALUES", 400)
    source = MemoryRaster(noise(2, (1, 1, 203, 20)), block_rows=16)
    raster = resampled(source, 50, 10)
    for row in range(0, 50, 8):
        raster.read(Window(0, row, 0, min(8, 50 - row), 10))
    assert source.rows_read() == list(range(203))
    assert all(read.row % 16 == 0 for read in source.reads), "reads start at blocks of the file"
    assert max(read.height for read in source.reads) <= 48, "a read is a strip, not the frame"


def test_a_window_past_the_edge_is_zero_and_not_valid() -> None:
    raster = resampled(MemoryRaster(noise(3, (1, 1, 20, 20))), 10, 10)
    pixels, valid = raster.read(Window(0, 6, 7, 8, 8))
    assert valid[:4, :3].all()
    assert valid.sum() == 12
    assert not pixels[:, ~valid].any()


def test_spacing_is_met_exactly_and_the_corner_stays() -> None:
    affine = (0.5, 0.0, 0.0, -10.0, 0.0, 0.7, 0.0, -20.0, 0.0, 0.0, 2.0, 5.0, 0.0, 0.0, 0.0, 1.0)
    grid = Grid(1, 100, 90, spacing_mm=(2.0, 0.7, 0.5), affine=affine)
    raster = at_resolution(MemoryRaster(noise(4, (1, 1, 100, 90)), grid=grid), TileRecipe(spacing_mm=1.0), uri="a")
    assert (raster.grid.height, raster.grid.width) == (70, 45)
    assert raster.grid.spacing_mm == pytest.approx((2.0, 1.0, 1.0))
    moved = np.array(raster.grid.affine).reshape(4, 4)
    corner = np.array([-0.5, -0.5, 0, 1])
    np.testing.assert_allclose(moved @ corner, np.array(affine).reshape(4, 4) @ corner)
    np.testing.assert_allclose(np.diag(moved), [1, 1, 2, 1])


def test_ground_sampling_distance_in_a_projected_crs() -> None:
    grid = Grid(1, 60, 40, transform=(10.0, 0.0, 5e5, 0.0, -10.0, 4e6), crs="EPSG:32632")
    raster = at_resolution(MemoryRaster(noise(4, (1, 1, 60, 40)), grid=grid), TileRecipe(gsd_m=20.0), uri="a")
    assert (raster.grid.height, raster.grid.width) == (30, 20)
    assert raster.grid.transform == pytest.approx((20.0, 0.0, 5e5, 0.0, -20.0, 4e6))
    assert raster.read(Window(0, 0, 0, 30, 20))[0].shape == (1, 30, 20)


def test_feet_and_degrees_become_metres() -> None:
    feet = Grid(1, 10, 10, transform=(10.0, 0.0, 0.0, 0.0, -10.0, 0.0), crs="EPSG:2263")
    assert ground_pixel_m(feet, uri="a") == pytest.approx((3.048, 3.048), rel=1e-4)
    # One degree at 60 degrees north on WGS 84: 111 412 m along the meridian, 55 800 m along the parallel.
    degrees = Grid(1, 2, 2, transform=(1.0, 0.0, 9.0, 0.0, -1.0, 61.0), crs="EPSG:4326")
    assert ground_pixel_m(degrees, uri="a") == pytest.approx((111_412, 55_800), rel=1e-4)


def test_a_raster_at_the_right_spacing_is_left_alone() -> None:
    raster = MemoryRaster(noise(4, (1, 1, 60, 40)), grid=Grid(1, 60, 40, spacing_mm=(1.0, 0.5, 0.5)))
    assert at_resolution(raster, TileRecipe(spacing_mm=0.5), uri="a") is raster
    assert at_resolution(raster, TileRecipe(), uri="a") is raster


@pytest.mark.parametrize(
    ("recipe", "grid", "code"),
    [
        (TileRecipe(spacing_mm=1.0), Grid(1, 8, 8), "NO_SPACING"),
        (TileRecipe(gsd_m=1.0), Grid(1, 8, 8), "NO_GSD"),
        (TileRecipe(gsd_m=1.0), Grid(1, 8, 8, transform=(1.0, 0.0, 0.0, 0.0, -1.0, 0.0)), "NO_GSD"),
        (TileRecipe(gsd_m=1.0), Grid(1, 8, 8, transform=(1.0, 0.0, 0.0, 0.0, -1.0, 0.0), crs="nonsense"), "NO_GSD"),
    ],
)
def test_a_source_without_a_pixel_size_is_refused(recipe: TileRecipe, grid: Grid, code: str) -> None:
    with pytest.raises(UnreadableSource) as caught:
        at_resolution(MemoryRaster(noise(1, (1, 1, 8, 8)), grid=grid), recipe, uri="/data/a.tif")
    assert caught.value.code == code
    assert caught.value.uri == "/data/a.tif"
    assert "leave `tiles." in caught.value.reason


def test_windows_ask_the_source_for_the_group_of_the_same_ground() -> None:
    raster = resampled(MemoryRaster(noise(1, (1, 1, 4000, 4))), 40, 4)
    assert raster.groups([Window(0, 0, 0, 4, 4), Window(0, 25, 0, 4, 4)]) == ["block-0", "block-2"]


def test_a_whole_frame_keeps_its_aspect() -> None:
    rows, cols = whole_axes(Grid(1, 300, 100), 60)
    assert (rows.size, cols.size) == (60, 20)
    assert whole_axes(Grid(1, 1, 1000), 60)[0].size == 1
