"""Repair of a stack on request (`geometry: repair`): plan it from positions alone, and read through the plan.

Copies are dropped (one place and the same stored pixels), a tilt is sheared away by shifting each frame in its plane,
unequal steps are resampled to the median step (gaps: to the step of which they are multiples), linearly between the two
neighbouring frames. A gap of more than twice the median step, and a place at which frames differ, is never bridged: the
longest run without one is kept.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vitpipe.digest import digest_bytes
from vitpipe.domains.dicom.files import read_file
from vitpipe.domains.dicom.geometry import (
    LARGEST_ERROR_MM,
    SAME_POSITION_MM,
    STEP_TOLERANCE,
    TILT_DEGREES,
    Stack,
    along_normal,
    arrange,
    at_one_place,
    normal_of,
)
from vitpipe.domains.dicom.instance import Vector
from vitpipe.domains.dicom.pixelformat import read_format
from vitpipe.domains.dicom.pixels import FrameDecoder, check_length
from vitpipe.domains.dicom.quiet import quiet
from vitpipe.domains.dicom.report import GeometryReport
from vitpipe.errors import UnreadableSource
from vitpipe.records import Grid, Json

REPAIRABLE: Final = frozenset({"DUPLICATE_POSITION", "GAP", "IRREGULAR", "TILT"})
REPAIRED: Final = "REPAIRED"
NOT_REPAIRED: Final = "NOT_REPAIRED"
REPAIR_VERSION: Final = 1
"""Raise it when a plan gives other pixels: the sources then are others."""

_LARGEST_STEP: Final = 2.0
"""Median steps that are bridged at most."""
_LARGEST_GROWTH: Final = 4
"""Times the pixels of a frame that a deskewed frame may have: more is no tilt but a mistake in the positions."""
_FINEST_MM: Final = 1e-6
"""A finer pixel spacing is damage; in its pixels no shift is finite."""
_WHOLE: Final = 1e-6
# Both are passed over: together, at right angles, they stay below the largest error of 0.01 mm.
_NO_SHIFT_MM: Final = 0.005
_EQUAL_STEPS_MM: Final = 0.0085
"""Parts of a pixel or of a step that make no difference."""


@dataclass(frozen=True, slots=True)
class Placed:
    """The frames of a stack, in its order."""

    positions: tuple[Vector, ...]
    orientation: Vector
    spacing_mm: Vector | None
    names: tuple[str, ...]
    rows: int
    cols: int

    def chosen(self, places: Sequence[int]) -> Placed:
        """Give some of the frames."""
        return dataclasses.replace(
            self,
            positions=tuple(self.positions[place] for place in places),
            names=tuple(self.names[place] for place in places),
        )


@dataclass(frozen=True, slots=True)
class Repair:
    """What is to be done with a stack."""

    kept: tuple[int, ...]
    """Frames of the stack that are used, along the normal."""
    copies: tuple[int, ...]
    outside: tuple[int, ...]
    """Frames outside of the run that is kept."""
    plan: dict[str, Json] | None
    """What :class:`vitpipe.domains.dicom.repaired.RepairedRaster` needs; None where frames are read as they are."""
    grid: Grid
    nearest: tuple[int, ...]
    """For each frame of the repaired source the place in `kept` of the frame that is nearest to it."""
    report: GeometryReport


def plan_repair(placed: Placed, found: GeometryReport, pixels_of: Callable[[int], str | None]) -> Repair | None:
    """Plan the repair of a stack.

    Args:
        placed: its frames.
        found: the report on it.
        pixels_of: gives a digest of a frame's pixels, None where they cannot be read. Asked for frames that share a
            place, alone.

    Returns:
        The plan; None where nothing regular of two frames or more would come of it.
    """
    if placed.spacing_mm is None or min(placed.spacing_mm) < _FINEST_MM or REPAIRABLE.isdisjoint(found.codes):
        return None
    chain, copies = _without_copies(placed, pixels_of)
    kept = _longest_run(along_normal(placed.positions, placed.orientation), chain)
    if len(kept) < 2:
        return None
    run = placed.chosen(kept)
    stack = arrange(run.positions, [run.orientation], run.spacing_mm, _ranks(len(kept)), run.names)
    outside = tuple(sorted(set(range(len(placed.names))) - {*kept, *copies}))
    said = _said_of_frames(copies, outside, run)
    if stack.affine is not None and "TILT" not in stack.notes:
        grid = _grid(len(kept), (run.rows, run.cols), stack.step_mm, run.spacing_mm, stack.affine)
        report = _report(found, stack.report, stack.step_mm, said)
        return Repair(kept, copies, outside, None, grid, tuple(range(len(kept))), report)
    resampling = _plan_resampling(run, stack)
    if resampling is None:
        return None
    report = _report(found, stack.report, resampling.step_mm, [*said, *resampling.said])
    return Repair(kept, copies, outside, resampling.plan, resampling.grid, resampling.nearest, report)


def pixel_digest(path: Path, frame: int) -> str | None:
    """Digest the stored values of a frame and how they are to be read; None where they cannot be read.

    A frame that is broken is no copy of another; it is rejected with its own code when it is read.

    Raises:
        TransientError: the store does not answer.
    """
    try:
        with quiet():
            item = read_file(path)
            described = read_format(item)
            check_length(item, described)
            stored = FrameDecoder(item, described).stored(frame)
    except UnreadableSource:
        return None
    meaning = (described.rescale(frame), described.lut_bits, described.photometric, stored.dtype.str, stored.shape)
    return digest_bytes(repr(meaning).encode(), np.ascontiguousarray(stored).tobytes())


# ------------------------------------------------------------------------------------------------ which frames are used


def _ranks(count: int) -> list[str]:
    return [f"{place:09d}" for place in range(count)]


def _without_copies(placed: Placed, pixels_of: Callable[[int], str | None]) -> tuple[list[int | None], tuple[int, ...]]:
    """Give one frame a place along the normal, None where frames of one place differ; and the copies left out."""
    places = along_normal(placed.positions, placed.orientation)
    by_place = np.argsort(places, kind="stable")
    groups = [[int(by_place[place]) for place in group] for group in at_one_place(places[by_place])]
    chain: list[int | None] = []
    copies: list[int] = []
    for group in groups:
        # A film of one place is no stack: its pixels need not be read to know it.
        if len(groups) > 1 and _are_copies(group, placed.positions, pixels_of):
            chain.append(group[0])
            copies.extend(group[1:])
        else:
            chain.append(None)
    return chain, tuple(sorted(copies))


def _are_copies(group: Sequence[int], positions: Sequence[Vector], pixels_of: Callable[[int], str | None]) -> bool:
    if len(group) == 1:
        return True
    if any(math.dist(positions[group[0]], positions[place]) >= SAME_POSITION_MM for place in group[1:]):
        return False
    digests = {pixels_of(place) for place in group}
    return len(digests) == 1 and None not in digests


def _longest_run(places_mm: NDArray[np.float64], chain: Sequence[int | None]) -> tuple[int, ...]:
    """Give the longest run whose steps are at most twice the median step; the first of several."""
    pairs = [(one, two) for one, two in pairwise(chain) if one is not None and two is not None]
    if not pairs:
        return ()
    median = float(np.median([places_mm[two] - places_mm[one] for one, two in pairs]))
    # As much tolerance as a regular step has: one missing frame makes a step of just two.
    longest_mm = _LARGEST_STEP * median + max(LARGEST_ERROR_MM, STEP_TOLERANCE * median)
    runs: list[list[int]] = [[]]
    for place in chain:
        if place is None:
            runs.append([])
            continue
        if runs[-1] and places_mm[place] - places_mm[runs[-1][-1]] > longest_mm:
            runs.append([])
        runs[-1].append(place)
    longest: list[int] = max(runs, key=len)
    return tuple(longest)


def _said_of_frames(copies: Sequence[int], outside: Sequence[int], run: Placed) -> list[str]:
    said = []
    if copies:
        said.append(f"dropped {len(copies)} frame(s) that repeat the place and the pixels of another")
    if outside:
        places = along_normal(run.positions, run.orientation)
        said.append(
            f"kept the longest run, {len(run.names)} frame(s) from {places[0]:.2f} to {places[-1]:.2f} mm along the "
            f"normal, and left out {len(outside)}"
        )
    return said


def _report(found: GeometryReport, run: GeometryReport, step_mm: float, said: Sequence[str]) -> GeometryReport:
    """Give the report on the repaired source: what was measured before, the step after, and what was done."""
    if found.duplicate_frames:
        # Frames at one place have hidden the steps and the tilt of the others.
        found = dataclasses.replace(
            run,
            codes=tuple(sorted({*found.codes, *run.codes})),
            duplicate_frames=found.duplicate_frames,
            duplicates=found.duplicates,
        )
    codes = tuple(sorted({*found.codes, REPAIRED}))
    return dataclasses.replace(found, codes=codes, step_mm=step_mm, repairs=tuple(said))


# ------------------------------------------------------------------------------------------------------ the new grid


@dataclass(frozen=True, slots=True)
class _Resampling:
    plan: dict[str, Json]
    grid: Grid
    nearest: tuple[int, ...]
    step_mm: float
    said: tuple[str, ...]


def _grid(
    frames: int, shape: tuple[int, int], step_mm: float, spacing_mm: Vector | None, affine: tuple[float, ...]
) -> Grid:
    assert spacing_mm is not None
    return Grid(frames, *shape, spacing_mm=(step_mm, spacing_mm[0], spacing_mm[1]), affine=affine)


def _plan_resampling(run: Placed, stack: Stack) -> _Resampling | None:
    """Plan shifts in the plane and steps along the normal; None where the frames would grow beyond all measure."""
    assert run.spacing_mm is not None
    positions = np.asarray(run.positions, np.float64)
    places = along_normal(run.positions, run.orientation) - positions[0] @ normal_of(run.orientation)
    # Where frames are missing, the median of few steps may be a mean of two: the usual step keeps what is there.
    step, samples = _samples(places, stack.report.usual_step_mm if "GAP" in stack.notes else None)
    shifts = _shifts_px(positions, run)
    first = np.floor(shifts.min(axis=0) + _WHOLE)
    shifts = _snapped(shifts - first)
    grown = np.ceil(shifts.max(axis=0))
    # Asked this way round, so that what is not finite is refused too.
    if not (run.rows + grown[0]) * (run.cols + grown[1]) <= _LARGEST_GROWTH * run.rows * run.cols:
        return None
    rows, cols = run.rows + int(grown[0]), run.cols + int(grown[1])
    affine = _orthogonal_affine(positions[0], run, step, first)
    if _error_mm(affine, positions, shifts, places / step) >= LARGEST_ERROR_MM:
        return None
    plan: dict[str, Json] = {
        "version": REPAIR_VERSION,
        "rows": run.rows,
        "cols": run.cols,
        "frames": len(run.names),
        # With its shear, so that the places of frames are checked once more when they are read.
        "affine": list(stack.affine) if stack.affine else None,
        "shifts_px": [[float(value) for value in shift] for shift in shifts] if shifts.any() else [],
        "samples": [[place, weight] for place, weight in samples],
    }
    return _Resampling(
        plan=plan,
        grid=_grid(len(samples), (rows, cols), step, run.spacing_mm, tuple(float(item) for item in affine.ravel())),
        nearest=tuple(place + (weight > 0.5) for place, weight in samples),
        step_mm=step,
        said=tuple(_said_of_grid(run, stack.report, np.diff(places), (step, len(samples)), shifts)),
    )


def _samples(places_mm: NDArray[np.float64], usual_mm: float | None) -> tuple[float, list[tuple[int, float]]]:
    """Give the new step, and for each new frame the old one before it and the weight of the next one.

    Args:
        places_mm: of the frames, from zero.
        usual_mm: the step, where one is known of which all are multiples; else it is the median.
    """
    mean = float(places_mm[-1]) / (len(places_mm) - 1)
    if np.abs(places_mm - mean * np.arange(len(places_mm))).max() < _EQUAL_STEPS_MM:
        return mean, [(place, 0.0) for place in range(len(places_mm))]
    steps = np.diff(places_mm)
    # Of all multiples together, so that the last frame is not lost to the last digits of a step.
    step = float(places_mm[-1] / np.rint(steps / usual_mm).sum()) if usual_mm else float(np.median(steps))
    wanted = step * np.arange(math.floor(places_mm[-1] / step + _WHOLE) + 1)
    before = np.clip(np.searchsorted(places_mm, wanted, side="right") - 1, 0, len(places_mm) - 2)
    weights = _snapped((wanted - places_mm[before]) / (places_mm[before + 1] - places_mm[before]))
    # A weight of one is the next frame itself: the one before it need not be read.
    return step, [
        (place + 1, 0.0) if weight >= 1.0 else (place, max(weight, 0.0))
        for place, weight in zip(before.tolist(), weights.tolist(), strict=True)
    ]


def _snapped(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Round what is whole but for the last digits, so that nothing is interpolated for nothing."""
    whole = np.rint(values)
    return np.where(np.abs(values - whole) < _WHOLE, whole, values)


def _shifts_px(positions: NDArray[np.float64], run: Placed) -> NDArray[np.float64]:
    """Give how far each frame lies from the first one in its plane: rows and columns, (frames, 2).

    Solved in the basis of the cosines, which need not be exactly at right angles. Below 0.005 mm it is no shift.
    """
    assert run.spacing_mm is not None
    row, col = np.asarray(run.orientation[:3]), np.asarray(run.orientation[3:])
    basis = np.stack([col * run.spacing_mm[0], row * run.spacing_mm[1], normal_of(run.orientation)], axis=1)
    shifts = np.linalg.solve(basis, (positions - positions[0]).T).T[:, :2]
    if np.linalg.norm(shifts * run.spacing_mm, axis=1).max() < _NO_SHIFT_MM:
        return np.zeros_like(shifts)
    return _snapped(shifts)


def _orthogonal_affine(
    origin: NDArray[np.float64], run: Placed, step_mm: float, first_px: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Build (col, row, frame, 1) -> LPS of the grid without shear; its first pixel lies `first_px` from the origin."""
    assert run.spacing_mm is not None
    affine = np.eye(4)
    affine[:3, 0] = np.asarray(run.orientation[:3]) * run.spacing_mm[1]
    affine[:3, 1] = np.asarray(run.orientation[3:]) * run.spacing_mm[0]
    affine[:3, 2] = normal_of(run.orientation) * step_mm
    affine[:3, 3] = origin + affine[:3, 1] * first_px[0] + affine[:3, 0] * first_px[1]
    return affine


def _error_mm(
    affine: NDArray[np.float64],
    positions: NDArray[np.float64],
    shifts_px: NDArray[np.float64],
    frames: NDArray[np.float64],
) -> float:
    """Give the largest distance between where frames lie and where the new grid takes their first pixels from, mm."""
    grid = np.stack([shifts_px[:, 1], shifts_px[:, 0], frames, np.ones(len(frames))])
    return float(np.linalg.norm((affine @ grid)[:3].T - positions, axis=1).max())


def _said_of_grid(
    run: Placed,
    report: GeometryReport,
    steps_mm: NDArray[np.float64],
    made: tuple[float, int],
    shifts_px: NDArray[np.float64],
) -> list[str]:
    assert run.spacing_mm is not None
    said = []
    if shifts_px.any():
        farthest = float(np.abs(shifts_px * run.spacing_mm).max())
        what = "deskewed" if abs(report.tilt_degrees) > TILT_DEGREES else "aligned"
        said.append(
            f"{what} frames by up to {farthest:.2f} mm in their plane (a tilt of {report.tilt_degrees:.2f} degrees)"
        )
    step, frames = made
    if float(np.abs(steps_mm - step).max()) >= LARGEST_ERROR_MM:
        said.append(
            f"resampled {len(run.names)} frame(s) with steps of {steps_mm.min():.3f} to {steps_mm.max():.3f} mm to "
            f"{frames} at the {'usual' if 'GAP' in report.codes else 'median'} step of {step:.3f} mm"
        )
    return said
