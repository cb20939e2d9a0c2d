"""Whatever the positions: no exception, an affine only where it is true, a repair that reproduces a linear field."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vitpipe.domains.dicom.geometry import LARGEST_ERROR_MM, arrange
from vitpipe.domains.dicom.repair import NOT_REPAIRED, Placed, plan_repair
from vitpipe.domains.dicom.repaired import RepairedRaster, unrepaired
from vitpipe.records import Grid, Source, Window

ROWS, COLS = 12, 10
FIELD, OFFSET = np.array([3.0, -2.0, 1.5]), 100.0


def orthonormal(angles: tuple[float, float, float]) -> tuple[float, ...]:
    """Row and column cosines of a rotation about z, y and x."""
    z, y, x = angles
    about_z = np.array([[math.cos(z), -math.sin(z), 0], [math.sin(z), math.cos(z), 0], [0, 0, 1]])
    about_y = np.array([[math.cos(y), 0, math.sin(y)], [0, 1, 0], [-math.sin(y), 0, math.cos(y)]])
    about_x = np.array([[1, 0, 0], [0, math.cos(x), -math.sin(x)], [0, math.sin(x), math.cos(x)]])
    turned = about_z @ about_y @ about_x
    return (*turned[:, 0].tolist(), *turned[:, 1].tolist())


class FieldRaster:
    """Frames of a linear field of the LPS position."""

    channels, dtype, block_rows = ("intensity",), np.dtype(np.float32), ROWS

    def __init__(self, source: Source, positions: Sequence[Sequence[float]], plane: tuple[Any, Any]) -> None:
        self.grid, self._positions, self._plane = source.grid, positions, plane

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        orientation, spacing = self._plane
        j, i = np.mgrid[:ROWS, :COLS]
        row, col = np.asarray(orientation[:3]) * spacing[1], np.asarray(orientation[3:]) * spacing[0]
        points = np.asarray(self._positions[window.frame]) + i[..., None] * row + j[..., None] * col
        return (points @ FIELD + OFFSET).astype(np.float32)[None], np.ones((ROWS, COLS), np.bool_)

    def groups(self, windows: Sequence[Window]) -> list[str]:
        return ["group"] * len(windows)


angle = st.floats(-3, 3)
shift = st.one_of(st.just(0.0), st.floats(-0.3, 0.3))
step = st.one_of(st.just(2.0), st.just(2.0), st.floats(1.2, 3.9), st.just(30.0), st.just(0.0))


@settings(max_examples=150, deadline=None)
@given(
    angles=st.tuples(angle, angle, angle),
    steps=st.lists(step, min_size=1, max_size=8),
    shear=st.tuples(shift, shift),
    spacing=st.tuples(st.floats(0.5, 1.5), st.floats(0.5, 1.5)),
    shuffle=st.randoms(use_true_random=False),
)
# Either shift is below 0.01 mm, both together are not.
@example(angles=(0, 0, 0), steps=[1.5], shear=(0.0039, 0.0059), spacing=(1.0, 1.0), shuffle=random.Random(0))
def test_a_repair_reproduces_a_linear_field(
    angles: tuple[float, float, float],
    steps: list[float],
    shear: tuple[float, float],
    spacing: tuple[float, float],
    shuffle: Any,
) -> None:
    orientation = orthonormal(angles)
    row, col = np.asarray(orientation[:3]), np.asarray(orientation[3:])
    heights = np.concatenate([[0.0], np.cumsum(steps)])
    way = np.cross(row, col) + shear[0] * row + shear[1] * col
    positions = [tuple((np.array([5.0, -7.0, 11.0]) + height * way).tolist()) for height in heights]
    shuffle.shuffle(positions)
    names = [f"{place:02d}" for place in range(len(positions))]
    stack = arrange(positions, [orientation], spacing, names)
    ordered = tuple(positions[place] for place in stack.order)
    placed = Placed(ordered, orientation, spacing, tuple(names[place] for place in stack.order), ROWS, COLS)
    # All frames at one place have the same pixels: copies.
    repair = plan_repair(placed, stack.report, lambda place: f"{ordered[place][2]:.6f}")
    if stack.affine is not None and "TILT" not in stack.notes:
        assert repair is None
        return
    if repair is None:
        grown = [
            length + 1 + abs(heights[-1] * part) / each
            for length, part, each in zip((ROWS, COLS), shear[::-1], spacing, strict=True)
        ]
        bridged = min(steps) > 0 and max(steps) <= 2 * float(np.median(steps))
        assert not bridged or (grown[0] + 1) * (grown[1] + 1) > 4 * ROWS * COLS
        return
    assert sorted({*repair.kept, *repair.copies, *repair.outside}) == list(range(len(positions)))
    if repair.plan is None:
        affine = np.reshape(repair.grid.affine, (4, 4))
        for frame, place in enumerate(repair.kept):
            assert math.dist(affine[:3] @ (0, 0, frame, 1), ordered[place]) < LARGEST_ERROR_MM
        return
    source = Source(
        "id", "group", "dicom", "u", ("f",), repair.grid, ("intensity",), "HU", "float32",
        reader={"repair": {**repair.plan, "dtype": "float32"}},
    )  # fmt: skip
    raster = RepairedRaster(
        FieldRaster(unrepaired(source), [ordered[place] for place in repair.kept], (orientation, spacing)), source
    )
    affine = np.reshape(repair.grid.affine, (4, 4))
    product = affine[:3, :3].T @ affine[:3, :3]
    np.testing.assert_allclose(product, np.diag(np.diag(product)), atol=1e-6)
    seen = 0
    for frame in range(repair.grid.frames):
        pixels, valid = raster.read(Window(frame, 0, 0, repair.grid.height, repair.grid.width))
        j, i = np.nonzero(valid)
        points = affine @ np.stack([i, j, np.full(len(i), frame), np.ones(len(i))])
        np.testing.assert_allclose(pixels[0][valid], FIELD @ points[:3] + OFFSET, atol=1e-3 + 3 * LARGEST_ERROR_MM)
        seen += len(i)
    assert seen > 0


extreme = st.one_of(st.floats(1e-7, 2.0), st.floats(min_value=5e-324, max_value=1e300))
number = st.one_of(st.floats(-300, 300), st.floats(allow_nan=False, allow_infinity=False), st.just(0.0))


@settings(max_examples=300, deadline=None)
@given(
    positions=st.lists(st.tuples(number, number, number), min_size=1, max_size=8),
    angles=st.tuples(angle, angle, angle),
    spacing=st.one_of(st.none(), st.tuples(extreme, extreme)),
)
@pytest.mark.filterwarnings("error")
def test_no_positions_break_it(
    positions: list[tuple[float, float, float]],
    angles: tuple[float, float, float],
    spacing: tuple[float, float] | None,
) -> None:
    orientation, names = orthonormal(angles), [f"{place}" for place in range(len(positions))]
    stack = arrange(positions, [orientation], spacing, names)
    assert sorted(stack.order) == list(range(len(positions)))
    if stack.affine is not None:
        affine = np.reshape(stack.affine, (4, 4))
        for frame, place in enumerate(stack.order):
            assert math.dist(affine[:3] @ (0, 0, frame, 1), positions[place]) < LARGEST_ERROR_MM
    elif len(positions) > 1:
        assert stack.notes
    if "NO_GEOMETRY" in stack.notes:
        return
    placed = Placed(tuple(positions[place] for place in stack.order), orientation, spacing, tuple(names), ROWS, COLS)
    repair = plan_repair(placed, stack.report, lambda _: None)
    if repair is not None:
        assert isinstance(repair.grid, Grid)
        assert repair.grid.affine is not None
        assert np.isfinite(repair.grid.affine).all()
        assert repair.grid.height * repair.grid.width <= 4 * ROWS * COLS
        assert NOT_REPAIRED not in repair.report.codes
