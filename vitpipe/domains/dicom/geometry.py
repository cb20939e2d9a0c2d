"""From the positions of frames to an order, a step and an affine, or to the code that says why there is none.

Frames are ordered by their position along the normal (PS3.3 C.7.6.2.1.1), never by InstanceNumber, SliceLocation or
name. The step is measured, never SliceThickness. A tilted stack keeps its shear.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vitpipe.domains.dicom.instance import Vector

ORIENTATION_TOLERANCE: Final = 1e-4
"""Largest difference of a direction cosine within a stack."""
SAME_POSITION_MM: Final = 0.01
LARGEST_ERROR_MM: Final = 0.01
"""Largest distance of a frame's position from what the affine says."""
STEP_TOLERANCE: Final = 0.01
TILT_DEGREES: Final = 0.1


@dataclass(frozen=True, slots=True)
class Stack:
    """The verdict on the frames of one source."""

    order: tuple[int, ...]
    """Frames as given, in the order of the source."""
    step_mm: float
    """Between frames along the normal; 0 where there is no regular one."""
    affine: tuple[float, ...] | None
    """16 numbers, (col, row, frame, 1) to LPS millimetres; None where no affine meets every position."""
    notes: tuple[str, ...]
    """``GAP IRREGULAR DUPLICATE_POSITION TILT SINGLE_FRAME NO_GEOMETRY MIXED_ORIENTATION``."""


def normal_of(orientation: Vector) -> NDArray[np.float64]:
    """Give the unit normal: row direction x column direction."""
    normal = np.cross(orientation[:3], orientation[3:])
    return normal / np.linalg.norm(normal)


def along_normal(positions: Sequence[Vector], orientation: Vector) -> NDArray[np.float64]:
    """Project positions on the normal, mm."""
    return np.asarray(positions, np.float64) @ normal_of(orientation)


def has_duplicates(places_mm: NDArray[np.float64]) -> bool:
    """Tell whether two frames lie at one place."""
    return bool(np.any(np.diff(np.sort(places_mm)) < SAME_POSITION_MM))


def arrange(
    positions: Sequence[Vector], orientations: Sequence[Vector], spacing_mm: Vector | None, ties: Sequence[str]
) -> Stack:
    """Order the frames of one stack and judge their geometry.

    Args:
        positions: ImagePositionPatient of every frame, or nothing.
        orientations: direction cosines, one for all frames or one a frame, or nothing.
        spacing_mm: between rows, between columns.
        ties: orders frames at one place; as many as frames.

    Returns:
        The order, and an affine only where it meets the position of every frame within 0.01 mm.
    """
    frames = len(ties)
    as_given = tuple(range(frames))
    if len(positions) != frames or not orientations:
        return Stack(as_given, 0.0, None, ("NO_GEOMETRY",))
    if any(np.abs(np.subtract(item, orientations[0])).max() > ORIENTATION_TOLERANCE for item in orientations[1:]):
        return Stack(as_given, 0.0, None, ("MIXED_ORIENTATION",))
    if frames == 1:
        return Stack(as_given, 0.0, None, ("SINGLE_FRAME",))
    places = along_normal(positions, orientations[0])
    # In buckets, so that equal places with other last digits fall to the tie.
    order = tuple(sorted(as_given, key=lambda frame: (math.floor(places[frame] / SAME_POSITION_MM), ties[frame])))
    if has_duplicates(places):
        return Stack(order, 0.0, None, ("DUPLICATE_POSITION",))
    step, affine, notes = _grid(np.asarray(positions, np.float64)[list(order)], orientations[0], spacing_mm)
    return Stack(order, step, affine, notes)


def _grid(
    positions: NDArray[np.float64], orientation: Vector, spacing_mm: Vector | None
) -> tuple[float, tuple[float, ...] | None, tuple[str, ...]]:
    """Give step, affine and notes of ordered frames that lie at different places."""
    tilted = ("TILT",) if _tilt_degrees(positions, orientation) > TILT_DEGREES else ()
    step, fault = _regular_step(np.diff(positions @ normal_of(orientation)))
    affine = _affine(positions, orientation, spacing_mm or (1.0, 1.0))
    if fault is None and _position_error_mm(affine, positions) >= LARGEST_ERROR_MM:
        step, fault = 0.0, "IRREGULAR"
    if fault is not None:
        return 0.0, None, (*tilted, fault)
    return step, tuple(float(item) for item in affine.ravel()) if spacing_mm else None, tilted


def _regular_step(steps_mm: NDArray[np.float64]) -> tuple[float, str | None]:
    """Give the step, or the code of why there is none: GAP where all steps are whole multiples of the usual one."""
    smallest = float(steps_mm.min())
    usual = float(np.median(steps_mm[steps_mm < 1.5 * smallest]))
    multiples = np.rint(steps_mm / usual)
    deviations = np.abs(steps_mm - multiples * usual)
    if np.any(deviations > max(LARGEST_ERROR_MM, STEP_TOLERANCE * usual)):
        return 0.0, "IRREGULAR"
    if multiples.max() > 1:
        return 0.0, "GAP"
    return float(steps_mm.mean()), None


def _tilt_degrees(positions: NDArray[np.float64], orientation: Vector) -> float:
    """Give the angle between the line of the positions and the normal; never (0018,1120), which tools leave stale."""
    way = positions[-1] - positions[0]
    normal = normal_of(orientation)
    return math.degrees(math.atan2(float(np.linalg.norm(np.cross(way, normal))), abs(float(way @ normal))))


def _affine(positions: NDArray[np.float64], orientation: Vector, spacing_mm: Vector) -> NDArray[np.float64]:
    """Build (col, row, frame, 1) -> LPS: a column steps along the row cosines by the *second* PixelSpacing."""
    affine = np.eye(4)
    affine[:3, 0] = np.asarray(orientation[:3]) * spacing_mm[1]
    affine[:3, 1] = np.asarray(orientation[3:]) * spacing_mm[0]
    affine[:3, 2] = (positions[-1] - positions[0]) / (len(positions) - 1)
    affine[:3, 3] = positions[0]
    return affine


def _position_error_mm(affine: NDArray[np.float64], positions: NDArray[np.float64]) -> float:
    frames = np.arange(len(positions))[:, None]
    said = affine[:3, 3] + frames * affine[:3, 2]
    return float(np.linalg.norm(said - positions, axis=1).max())
