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
from vitpipe.domains.dicom.report import MOST_LISTED, Duplicate, GeometryReport, OddStep
from vitpipe.errors import UnreadableSource

ORIENTATION_TOLERANCE: Final = 1e-4
"""Largest difference of a direction cosine within a stack."""
SAME_POSITION_MM: Final = 0.01
LARGEST_ERROR_MM: Final = 0.01
"""Largest distance of a frame's position from what the affine says."""
STEP_TOLERANCE: Final = 0.01
TILT_DEGREES: Final = 0.1
FARTHEST_MM: Final = 1e7
"""No patient lies ten kilometres from the origin: such a number is damage, and sums of such numbers overflow."""


@dataclass(frozen=True, slots=True)
class Stack:
    """The verdict on the frames of one source."""

    order: tuple[int, ...]
    """Frames as given, in the order of the source."""
    affine: tuple[float, ...] | None
    """16 numbers, (col, row, frame, 1) to LPS millimetres; None where no affine meets every position."""
    report: GeometryReport
    """Codes ``GAP IRREGULAR DUPLICATE_POSITION TILT SINGLE_FRAME NO_GEOMETRY NO_SPACING MIXED_ORIENTATION``."""

    @property
    def step_mm(self) -> float:
        """Between frames along the normal; 0 where there is no regular one."""
        return self.report.step_mm

    @property
    def notes(self) -> tuple[str, ...]:
        """The codes of the report."""
        return self.report.codes


def normal_of(orientation: Vector) -> NDArray[np.float64]:
    """Give the unit normal: row direction x column direction."""
    normal = np.cross(orientation[:3], orientation[3:])
    return normal / np.linalg.norm(normal)


def are_plausible(positions: Sequence[Vector]) -> bool:
    """Tell whether all positions can be places in a scanner."""
    return all(abs(value) < FARTHEST_MM for position in positions for value in position)


def along_normal(positions: Sequence[Vector], orientation: Vector) -> NDArray[np.float64]:
    """Project positions on the normal, mm."""
    return np.asarray(positions, np.float64) @ normal_of(orientation)


def has_duplicates(places_mm: NDArray[np.float64]) -> bool:
    """Tell whether two frames lie at one place."""
    return bool(np.any(np.diff(np.sort(places_mm)) < SAME_POSITION_MM))


def arrange(
    positions: Sequence[Vector],
    orientations: Sequence[Vector],
    spacing_mm: Vector | None,
    ties: Sequence[str],
    names: Sequence[str] = (),
) -> Stack:
    """Order the frames of one stack and judge their geometry.

    Args:
        positions: ImagePositionPatient of every frame, or nothing.
        orientations: direction cosines, one for all frames or one a frame, or nothing.
        spacing_mm: between rows, between columns.
        ties: orders frames at one place, and all of them where they have no places; as many as frames.
        names: of the frames, for the report; nothing: the ties.

    Returns:
        The order, and an affine only where it meets the position of every frame within 0.01 mm.
    """
    frames, names = len(ties), names or ties
    by_tie = tuple(sorted(range(frames), key=lambda frame: ties[frame]))
    if len(positions) != frames or not orientations or not are_plausible(positions):
        return _without_affine(by_tie, "NO_GEOMETRY")
    if any(np.abs(np.subtract(item, orientations[0])).max() > ORIENTATION_TOLERANCE for item in orientations[1:]):
        return _without_affine(by_tie, "MIXED_ORIENTATION")
    if frames == 1:
        return _without_affine(by_tie, "SINGLE_FRAME")
    places = along_normal(positions, orientations[0])
    # In buckets, so that equal places with other last digits fall to the tie.
    order = tuple(sorted(range(frames), key=lambda frame: (math.floor(places[frame] / SAME_POSITION_MM), ties[frame])))
    ordered_names = [names[frame] for frame in order]
    if has_duplicates(places):
        return Stack(order, None, _duplicate_report(places[list(order)], ordered_names))
    affine, report = _grid(np.asarray(positions, np.float64)[list(order)], orientations[0], spacing_mm, ordered_names)
    return Stack(order, affine, report)


def _without_affine(order: tuple[int, ...], code: str) -> Stack:
    return Stack(order, None, GeometryReport(codes=(code,)))


def at_one_place(places_mm: NDArray[np.float64]) -> list[list[int]]:
    """Group frames, sorted along the normal, that lie within 0.01 mm of the one before them."""
    breaks = np.flatnonzero(np.diff(places_mm) >= SAME_POSITION_MM) + 1
    return [part.tolist() for part in np.split(np.arange(len(places_mm)), breaks)]


def _duplicate_report(places_mm: NDArray[np.float64], names: Sequence[str]) -> GeometryReport:
    # In the order of places: within a bucket the tie may have put the higher of two first.
    by_place = np.argsort(places_mm, kind="stable")
    groups = at_one_place(places_mm[by_place])
    repeated = [group for group in groups if len(group) > 1]
    distinct = places_mm[by_place][[group[0] for group in groups]]
    return GeometryReport(
        codes=("DUPLICATE_POSITION",),
        usual_step_mm=usual_step(np.diff(distinct)) if len(distinct) > 1 else 0.0,
        duplicate_frames=len(places_mm) - len(groups),
        duplicates=tuple(
            Duplicate(
                round(float(places_mm[by_place[group[0]]]), 4),
                tuple(names[by_place[place]] for place in group)[:MOST_LISTED],
            )
            for group in repeated[:MOST_LISTED]
        ),
    )


def _grid(
    positions: NDArray[np.float64], orientation: Vector, spacing_mm: Vector | None, names: Sequence[str]
) -> tuple[tuple[float, ...] | None, GeometryReport]:
    """Give affine and report of ordered frames that lie at different places."""
    tilt = tilt_degrees(positions, orientation)
    tilted = ("TILT",) if abs(tilt) > TILT_DEGREES else ()
    places = positions @ normal_of(orientation)
    step, fault = _regular_step(np.diff(places))
    affine = _affine(positions, orientation, spacing_mm or (1.0, 1.0))
    error = position_error_mm(affine, positions)
    if fault is None and not error < LARGEST_ERROR_MM:
        step, fault = 0.0, "IRREGULAR"
    usual = usual_step(np.diff(places))
    gaps, irregular = _odd_steps(places, usual, names) if fault else ([], [])
    report = GeometryReport(
        codes=tuple(sorted((*tilted, *((fault,) if fault else ())))),
        step_mm=step,
        usual_step_mm=usual,
        tilt_degrees=tilt,
        max_error_mm=error,
        missing_frames=sum(gap.missing for gap in gaps),
        gaps=tuple(gaps[:MOST_LISTED]),
        irregular_steps=len(irregular),
        irregular=tuple(irregular[:MOST_LISTED]),
    )
    if fault is not None or spacing_mm is None:
        return None, report if spacing_mm else report.with_codes(frozenset({"NO_SPACING"}))
    return tuple(float(item) for item in affine.ravel()), report


def usual_step(steps_mm: NDArray[np.float64]) -> float:
    """Give the step of which gaps are multiples: the median of the steps that are near the smallest."""
    return float(np.median(steps_mm[steps_mm < 1.5 * float(steps_mm.min())]))


def _multiples(steps_mm: NDArray[np.float64], usual_mm: float) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Give each step as a whole multiple of the usual one, at least 1, and whether it is none."""
    multiples = np.maximum(np.rint(steps_mm / usual_mm), 1.0)
    deviations = np.abs(steps_mm - multiples * usual_mm)
    return multiples, deviations > max(LARGEST_ERROR_MM, STEP_TOLERANCE * usual_mm)


def _regular_step(steps_mm: NDArray[np.float64]) -> tuple[float, str | None]:
    """Give the step, or the code of why there is none: GAP where all steps are whole multiples of the usual one."""
    multiples, odd = _multiples(steps_mm, usual_step(steps_mm))
    if odd.any():
        return 0.0, "IRREGULAR"
    if multiples.max() > 1:
        return 0.0, "GAP"
    return float(steps_mm.mean()), None


def _odd_steps(
    places_mm: NDArray[np.float64], usual_mm: float, names: Sequence[str]
) -> tuple[list[OddStep], list[OddStep]]:
    """List the gaps, and the steps that are no whole multiple of the usual one."""
    multiples, odd = _multiples(np.diff(places_mm), usual_mm)
    gaps: list[OddStep] = []
    irregular: list[OddStep] = []
    for place in np.flatnonzero(odd | (multiples > 1)).tolist():
        missing = 0 if odd[place] else int(multiples[place]) - 1
        found = OddStep(
            names[place],
            names[place + 1],
            round(float(places_mm[place]), 4),
            round(float(places_mm[place + 1]), 4),
            missing,
        )
        (gaps if missing else irregular).append(found)
    return gaps, irregular


def tilt_degrees(positions: NDArray[np.float64], orientation: Vector) -> float:
    """Give the angle between the line of the positions (frames, 3) and the normal, signed.

    Measured, never (0018,1120), which tools leave stale. Negative where the frames shift along the column cosines
    while they advance along the normal, the sign that dcm2niix gives (its issue 253).
    """
    way = positions[-1] - positions[0]
    normal = normal_of(orientation)
    angle = math.degrees(math.atan2(float(np.linalg.norm(np.cross(way, normal))), abs(float(way @ normal))))
    return -math.copysign(angle, float(way @ np.asarray(orientation[3:])) * float(way @ normal))


def _affine(positions: NDArray[np.float64], orientation: Vector, spacing_mm: Vector) -> NDArray[np.float64]:
    """Build (col, row, frame, 1) -> LPS: a column steps along the row cosines by the *second* PixelSpacing."""
    affine = np.eye(4)
    affine[:3, 0] = np.asarray(orientation[:3]) * spacing_mm[1]
    affine[:3, 1] = np.asarray(orientation[3:]) * spacing_mm[0]
    affine[:3, 2] = (positions[-1] - positions[0]) / (len(positions) - 1)
    affine[:3, 3] = positions[0]
    return affine


def position_error_mm(affine: NDArray[np.float64], positions: NDArray[np.float64], first: int = 0) -> float:
    """Give the largest distance between positions (frames, 3) and affine · (0, 0, frame, 1), mm.

    Args:
        affine: (4, 4).
        positions: of frame `first` and those that follow it.
        first: frame of the first position.
    """
    frames = first + np.arange(len(positions))[:, None]
    said = affine[:3, 3] + frames * affine[:3, 2]
    return float(np.linalg.norm(said - positions, axis=1).max())


def check_positions(affine: Sequence[float], positions: Sequence[Vector], first: int, path: str) -> None:
    """Check once more, when pixels are read, that frames lie where the affine of their source says.

    Args:
        affine: 16 numbers, of the source.
        positions: of frame `first` and those that follow it, as the file gives them now.
        first: frame of the first position.
        path: the file, for the message.

    Raises:
        UnreadableSource: ``CHANGED``: a frame lies elsewhere, or the file gives no positions any more.
    """
    error = math.inf
    if positions:
        error = position_error_mm(np.reshape(affine, (4, 4)), np.asarray(positions, np.float64), first)
    if not error < LARGEST_ERROR_MM:
        found = f"lies {error:.3f} mm from where it lay" if positions else "has no position any more"
        raise UnreadableSource("CHANGED", f"frame {first} {found} when it was indexed; ingest again", path)
