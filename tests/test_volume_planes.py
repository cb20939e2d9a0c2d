"""Volumes resampled along the normal and turned: every pixel still says where it lies."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import numpy as np
import pytest

from tests.volume_cases import affine_of, blocks_of, centres_of_box, field, field_raster, places_mm
from vitpipe.config import TileRecipe
from vitpipe.cutting import cut, planned_windows
from vitpipe.errors import WorkspaceError
from vitpipe.records import Window
from vitpipe.resample import code_of, preparation, prepare, prepared_grid

SLANTED = affine_of(angles=(0.3, -0.2), tilt_mm=1.1)


# ------------------------------------------------------------------------------------------------- along the normal


@pytest.mark.parametrize("spacing_mm", [2.0, 5.0, 7.5, 1.25, 4.9])
def test_slices_are_resampled_along_the_normal(spacing_mm: float) -> None:
    raster = field_raster((9, 16, 16), SLANTED)
    recipe = TileRecipe(size=16, slice_spacing_mm=spacing_mm)
    grid = prepared_grid(raster.grid, recipe, uri="a")
    # Tilt counts for nothing: 5 mm is the distance of the planes, not of their corners.
    assert grid.spacing_mm is not None
    assert grid.spacing_mm[0] == pytest.approx(spacing_mm)
    assert grid.frames == int(8 * 5 / spacing_mm + 1e-6) + 1
    rows = blocks_of(raster, recipe)
    assert len(rows) == grid.frames
    for pixels, valid, _, box in rows:
        assert box is not None
        assert valid.all()
        np.testing.assert_allclose(pixels[0], field(centres_of_box(box, (1, 16, 16)))[0], atol=1e-4)
    assert sorted(read.frame for read in raster.reads) == sorted({read.frame for read in raster.reads})


def test_a_missing_pixel_adds_nothing_between_two_slices() -> None:
    valid = np.ones((3, 16, 16), bool)
    valid[1, 0, 0] = False
    raster = field_raster((3, 16, 16), valid=valid)
    rows = blocks_of(raster, TileRecipe(size=16, slice_spacing_mm=1.25))
    truth = raster.pixels[:, 0]
    found = [(float(pixels[0, 0, 0]), bool(mask[0, 0])) for pixels, mask, _, _ in rows]
    at_first, at_last = float(truth[0, 0, 0]), float(truth[2, 0, 0])
    expected = [at_first] * 3 + [0, 0, 0] + [at_last] * 3
    assert [value for value, _ in found] == pytest.approx(expected)
    assert [ok for _, ok in found] == [True] * 3 + [False] * 3 + [True] * 3


def test_integers_are_rounded_between_slices() -> None:
    raster = field_raster((3, 16, 16))
    raster.pixels = np.array([0, 5, -5], np.int16)[:, None, None, None] * np.ones((3, 1, 16, 16), np.int16)
    raster.dtype = raster.pixels.dtype
    rows = blocks_of(raster, TileRecipe(size=16, slice_spacing_mm=1.25))
    assert [int(pixels[0, 0, 0]) for pixels, *_ in rows] == [0, 1, 2, 4, 5, 2, 0, -2, -5]
    assert rows[0][0].dtype == np.int16


# --------------------------------------------------------------------------------------------------------- orientation


CODES = [
    "".join(letters) for order in itertools.permutations(("LR", "PA", "SI")) for letters in itertools.product(*order)
]


@pytest.mark.parametrize("slanted", [False, True])
def test_every_code_is_reached_from_any_stack(slanted: bool) -> None:
    """All 48: values, affine, spacing and boxes after the turn, read by frames and by windows."""
    affine = affine_of(angles=(0.2, -0.15), tilt_mm=0.4 if slanted else 0.0)
    # The stack itself lies as PIR: columns to the back, rows downwards, frames to the right.
    affine = affine[:, [1, 2, 0, 3]] * np.array([1, -1, -1, 1])
    raster = field_raster((5, 9, 8), affine)
    assert code_of(raster.grid) == "PIR"
    assert len(set(CODES)) == 48
    ways = {
        letter: sign * np.eye(3)[axis]
        for axis, pair in enumerate(("LR", "PA", "SI"))
        for letter, sign in zip(pair, (1, -1), strict=True)
    }
    for code in CODES:
        turned = prepare(raster, TileRecipe(size=8, orientation=code), uri="a")
        grid = turned.grid
        assert grid == prepared_grid(raster.grid, TileRecipe(size=8, orientation=code), uri="a")
        assert code_of(grid) == code
        known = np.asarray(grid.affine).reshape(4, 4)
        for axis, letter in enumerate(code):
            assert known[:3, axis] @ ways[letter] > 0.9 * np.linalg.norm(known[:3, axis])
        assert sorted((grid.frames, grid.height, grid.width)) == [5, 8, 9]
        expected = field(places_mm(known, grid.frames, grid.height, grid.width))
        for frame in range(grid.frames):
            pixels, valid = turned.read(Window(frame, 0, 0, grid.height, grid.width))
            np.testing.assert_allclose(pixels[0], expected[frame], atol=1e-4)
            assert valid.all()
        part, mask = turned.read(Window(1, 2, 3, 30, 2))
        np.testing.assert_allclose(part[0, : grid.height - 2], expected[1, 2:, 3:5], atol=1e-4)
        assert mask[: grid.height - 2].all()
        assert not mask[grid.height - 2 :].any()
        assert grid.spacing_mm is not None
        normal = np.cross(known[:3, 0], known[:3, 1])
        step = abs(known[:3, 2] @ normal) / np.linalg.norm(normal)
        lengths = np.linalg.norm(known[:3, :2], axis=0)
        np.testing.assert_allclose(grid.spacing_mm, [step, lengths[1], lengths[0]], rtol=1e-5)


def test_a_mask_turns_with_its_pixels() -> None:
    valid = np.random.default_rng(3).random((5, 9, 8)) < 0.7
    raster = field_raster((5, 9, 8), valid=valid)
    for code in CODES:
        recipe = TileRecipe(size=8, orientation=code, min_valid_fraction=0)
        total = 0
        for pixels, mask, _, box in blocks_of(raster, recipe):
            assert box is not None
            np.testing.assert_allclose(pixels[0][mask], field(centres_of_box(box, (1, 8, 8)))[0][mask], atol=1e-4)
            total += mask.sum()
        assert total == valid.sum(), code


def test_a_stack_that_lies_right_is_read_as_it_is() -> None:
    raster = field_raster((5, 9, 8))
    assert prepare(raster, TileRecipe(orientation=code_of(raster.grid)), uri="a") is raster


def test_turned_frames_are_decoded_once_into_a_file_that_has_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    raster = field_raster((5, 9, 8))
    list(cut(raster, TileRecipe(size=8, orientation="LIP"), source_id="a"))
    assert sorted(read.frame for read in raster.reads) == list(range(5))
    assert list(tmp_path.iterdir()) == []


def test_a_full_temporary_folder_is_an_error_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> object:
        return open("/dev/full", "w+b", buffering=0)

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(WorkspaceError, match=r"set TMPDIR"):
        list(cut(field_raster((5, 9, 8)), TileRecipe(size=8, orientation="LIP"), source_id="a"))


def test_all_steps_together_hold_the_values_of_their_box() -> None:
    raster = field_raster((9, 24, 20), affine_of(angles=(0.25, 0.1)))
    recipe = TileRecipe(size=16, depth=4, orientation="ASR", spacing_mm=1.0, slice_spacing_mm=0.5, min_valid_fraction=0)
    rows = blocks_of(raster, recipe)
    grid = prepared_grid(raster.grid, recipe, uri="a")
    # Columns run along the rows of the file (0.8 mm, 24), rows along its slices (5 mm, 9), slices along columns.
    assert (grid.frames, grid.height, grid.width) == (20, 45, 19)
    assert len(rows) == planned_windows(raster.grid, recipe, uri="a") == 5 * 3 * 2
    for pixels, valid, window, box in rows:
        assert box is not None
        expected = field(centres_of_box(box, (4, 16, 16)))
        _, row, col = np.meshgrid(np.arange(4), window.row + np.arange(16), window.col + np.arange(16), indexing="ij")
        # In the plane the filter is wider than a pixel: at the border of a frame it sees one side alone.
        sure = valid & (row >= 3) & (row < 42) & (col >= 2) & (col < 17)
        np.testing.assert_allclose(pixels[0][sure], expected[sure], atol=2e-2)
    told = preparation(raster.grid, recipe, uri="a")
    assert told == "turned from LPS to ASR; rows 5 to 1 mm, columns 0.8 to 1 mm"
