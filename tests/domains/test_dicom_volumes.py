"""Tiles of a series in files: a box starts at the position that its file states, a turned voxel keeps its place."""

from __future__ import annotations

import numpy as np
import pytest
from dicom_cases import instance, save, scan
from pydicom import dcmread

from vitpipe.config import TileRecipe
from vitpipe.cutting import cut
from vitpipe.domains.dicom import Dicom
from vitpipe.records import Source, Window
from vitpipe.resample import code_of, prepare

COSINES = np.array([[0.96, 0.28, 0.0], [-0.28 * 0.8, 0.96 * 0.8, 0.6]])
STEP_MM = np.cross(*COSINES) * 2.5 + COSINES[1] * 0.3
"""An oblique stack with a tilt: frames are shifted along their columns."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = tmp_path_factory.mktemp("oblique")
    for number in range(9):
        position = [round(float(value), 6) for value in np.array([-12.5, 30.25, 7.0]) + number * STEP_MM]
        save(
            instance(
                number,
                ImagePositionPatient=position,
                ImageOrientationPatient=[round(float(value), 8) for value in COSINES.ravel()],
                InstanceNumber=9 - number,
            ),
            folder / f"{(number * 5) % 9}",
        )
    (source,), rejected = scan(folder)
    assert rejected == []
    assert source.grid.affine is not None
    return source


@pytest.mark.parametrize("changes", [{}, {"neighbours": 1}, {"depth": 4}])
def test_boxes_start_at_the_positions_of_the_files(stack: Source, changes: dict) -> None:
    recipe = TileRecipe.model_validate({"size": 8, "min_valid_fraction": 0, **changes})
    seen = 0
    with Dicom().open(stack) as raster:
        for block in cut(raster, recipe, source_id=stack.source_id):
            for window, box in zip(block.windows, block.boxes_mm, strict=True):
                assert box is not None
                if window.row or window.col:
                    continue
                seen += 1
                origin, down, right, through = np.asarray(box).reshape(4, 3)
                first = origin + 0.5 * (down / window.height + right / window.width + through / window.depth)
                header = dcmread(stack.files[window.frame], stop_before_pixels=True)
                np.testing.assert_allclose(first, header.ImagePositionPatient, atol=1e-4)
                cosines = np.asarray(header.ImageOrientationPatient, np.float64)
                row_mm, col_mm = header.PixelSpacing
                np.testing.assert_allclose(right, cosines[:3] * col_mm * 8, atol=1e-3)
                np.testing.assert_allclose(down, cosines[3:] * row_mm * 8, atol=1e-3)
    assert seen == -(-stack.grid.frames // recipe.step_depth)


@pytest.mark.parametrize("code", ["LPS", "RAS", "ASR", "LIP"])
def test_a_turned_voxel_keeps_its_place_and_value(stack: Source, code: str) -> None:
    affine = np.asarray(stack.grid.affine).reshape(4, 4)
    with Dicom().open(stack) as raster:
        turned = prepare(raster, TileRecipe(orientation=code), uri="a")
        grid = turned.grid
        assert code_of(grid) == code
        there = np.asarray(grid.affine).reshape(4, 4)
        draws = np.random.default_rng(1)
        for _ in range(20):
            col, row, frame = (int(draws.integers(0, size)) for size in (grid.width, grid.height, grid.frames))
            (value,), (ok,) = (each.ravel() for each in turned.read(Window(frame, row, col, 1, 1)))
            index = np.linalg.solve(affine, there @ [col, row, frame, 1])[:3]
            nearest = np.rint(index).astype(int)
            np.testing.assert_allclose(index, nearest, atol=1e-6)
            (expected,), (also,) = (each.ravel() for each in raster.read(Window(*nearest[::-1].tolist(), 1, 1)))
            assert (value, ok) == (expected, also)
