"""Overviews of maps: what they hold is what the map says, nodata counts for nothing, and a kill changes nothing."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray

from vitpipe.infer.mapping import ClassLayers, MapRows
from vitpipe.infer.mapping.cog import write_cogs
from vitpipe.infer.mapping.pyramid import level_shapes, reduce_by_two
from vitpipe.infer.mapping.strips import StripStore
from vitpipe.records import Grid

HEIGHT, WIDTH = 1601, 523
"""Odd edges at every level, and an odd number of strips at two of them."""


def halved(band: NDArray, nodata: float, how: str) -> NDArray:
    """Reduce pixel by pixel, as the definition says."""
    height, width = (-(-edge // 2) for edge in band.shape)
    found = np.full((height, width), nodata, band.dtype)
    for row in range(height):
        for col in range(width):
            four = band[2 * row : 2 * row + 2, 2 * col : 2 * col + 2].ravel().tolist()
            valid = [value for value in four if not (math.isnan(value) or value == nodata)]
            if not valid:
                continue
            if how == "mode":
                found[row, col] = max(valid, key=valid.count)
            elif band.dtype == np.uint8:
                found[row, col] = math.floor(sum(valid) / len(valid) + 0.5)
            else:
                found[row, col] = sum(valid) / len(valid)
    return found


@pytest.mark.parametrize("how", ["average", "mode"])
@pytest.mark.parametrize("shape", [(1, 1), (2, 7), (67, 33), (128, 40)])
def test_a_band_is_halved_as_defined(how: str, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(4)
    for share in (0.0, 0.4, 1.0):
        band = rng.integers(0, 4 if how == "mode" else 251, shape).astype(np.uint8)
        band[rng.random(shape) < share] = 255
        into = np.empty(tuple(-(-edge // 2) for edge in shape), np.uint8)
        reduce_by_two(band, 255, how, into)  # type: ignore[arg-type]
        assert into.tolist() == halved(band, 255, how).tolist()


def test_values_are_averaged_over_what_is_there() -> None:
    rng = np.random.default_rng(5)
    band = (rng.normal(0, 1, (65, 51)) * 3e38).clip(-3e38, 3e38).astype(np.float32)
    for share in (0.0, 0.5):
        band[rng.random(band.shape) < share] = np.nan
        into = np.empty((33, 26), np.float32)
        reduce_by_two(band, math.nan, "average", into)
        np.testing.assert_allclose(into, halved(band, math.nan, "average"), rtol=1e-6)


def test_levels_end_where_one_block_shows_all() -> None:
    assert level_shapes(512, 300) == ((512, 300),)
    assert level_shapes(HEIGHT, WIDTH) == ((1601, 523), (801, 262), (401, 131))


def test_overviews_hold_the_map_and_those_of_a_killed_run_are_made_again(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    share = rng.random((2, HEIGHT, WIDTH)).astype(np.float32)
    rows = MapRows(0, share / share.sum(axis=0), rng.random((HEIGHT, WIDTH)) > 0.3)
    straight = _files(tmp_path / "straight", rows)
    for name, how in (("classes", "mode"), ("probabilities", "average")):
        with rasterio.open(straight / f"{name}.tif") as file:
            assert file.overviews(file.count) == [2, 4]
            expected = file.read(file.count)
        for level in range(2):
            expected = halved(expected, 255, how)
            with rasterio.open(straight / f"{name}.tif", overview_level=level) as file:
                assert (file.read(file.count) == expected).all()

    for number, lost in enumerate((["level-1-000001"], ["level-1-000000", "level-2-000000"], ["strip-000004"])):
        # A kill after the third strip, another in the next run, and then what the disk did not keep.
        folder = tmp_path / str(number)
        store = _store(folder)
        store.add(MapRows(0, rows.values[:, :800], rows.valid[:800]))
        store = _store(folder)
        assert store.next_row == 768
        store.add(MapRows(768, rows.values[:, 768:1300], rows.valid[768:1300]))
        for name in lost:
            (folder / f"{name}.blocks").unlink(missing_ok=True)
        again = _files(folder, rows)
        for name in ("classes", "probabilities", "entropy"):
            assert (again / f"{name}.tif").read_bytes() == (straight / f"{name}.tif").read_bytes()


def _store(folder: Path) -> StripStore:
    folder.mkdir(exist_ok=True)
    return StripStore(folder, HEIGHT, WIDTH, ClassLayers(("a", "b")))


def _files(folder: Path, rows: MapRows) -> Path:
    """Finish the strips and write the files."""
    store = _store(folder)
    start = store.next_row
    store.add(MapRows(start, rows.values[:, start:], rows.valid[start:]))
    ready = folder / "ready"
    ready.mkdir()
    write_cogs(store, Grid(1, HEIGHT, WIDTH), ready, {})
    return ready
