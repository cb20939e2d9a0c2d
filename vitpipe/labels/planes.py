"""Onto which frame of which source a plane of a label object falls: by position in the patient, never by count.

All lengths are millimetres in the patient's system (LPS). Frames without a position are found by the instance that the
label names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vitpipe.records import Plane, Source

Vector = tuple[float, ...]

ORIENTATION_TOLERANCE: Final = 1e-4
"""Largest difference of a direction cosine."""
OFFSET_SHARE: Final = 0.1
"""Largest distance between a label's grid and the image's: this share of a pixel, and of the step between frames."""
LONE_FRAME_MM: Final = 0.1
"""Largest distance from the plane of a source that has one frame, thus no step."""
_SAME_PLACE_MM: Final = 1e-3

Reference = tuple[str, int | None]
"""Pseudonym of an instance, and the frame in it (None: its only one)."""


@dataclass(frozen=True, slots=True)
class LabelPlane:
    """A frame of a label object."""

    position: Vector | None
    orientation: Vector | None
    spacing_mm: Vector | None
    shape: tuple[int, int]
    """Rows, columns."""
    references: tuple[Reference, ...] = ()
    """What it was drawn on."""


@dataclass(frozen=True, slots=True)
class Hit:
    """The frame on which a label plane lies."""

    source_id: str
    frame: int
    row: int
    """Of the source, at which the label's first row lies; negative where the label is larger."""
    col: int


@dataclass(frozen=True, slots=True)
class Miss:
    """Why a label plane lies on no frame."""

    distance_mm: float | None
    """From where it should lie; None where no number says it."""
    what: str
    off_grid: bool = True
    """It lies near a frame, but between its pixels or at an angle; False: no frame is there."""


class Stack:
    """The frames of one source.

    Args:
        source: its grid says rows and columns.
        planes: one a frame.
    """

    def __init__(self, source: Source, planes: Sequence[Plane]) -> None:
        self.source = source
        self.planes = tuple(planes)
        self.frames_of_reference = frozenset(item.frame_of_reference for item in planes if item.frame_of_reference)
        placed = [
            (frame, item.position, item.orientation)
            for frame, item in enumerate(planes)
            if item.position is not None and item.orientation is not None and item.spacing_mm is not None
        ]
        self._frames = np.array([frame for frame, _, _ in placed], np.intp)
        self._positions = np.array([position for _, position, _ in placed], np.float64).reshape(-1, 3)
        self._orientations = np.array([orientation for _, _, orientation in placed], np.float64).reshape(-1, 6)

    @property
    def has_places(self) -> bool:
        """Whether any frame lies somewhere."""
        return len(self._frames) > 0

    def normal(self, orientation: Vector) -> NDArray[np.float64]:
        """Give the unit normal of an orientation."""
        normal = np.cross(orientation[:3], orientation[3:])
        return np.asarray(normal / np.linalg.norm(normal), np.float64)

    def step_mm(self, normal: NDArray[np.float64]) -> float | None:
        """Give the usual distance between neighbouring frames along a normal; None for a lone frame."""
        places = np.unique(np.round(self._positions @ normal, 3))
        return float(np.median(np.diff(places))) if len(places) > 1 else None

    def nearest(
        self, position: Vector, orientation: Vector, references: Sequence[Reference] = ()
    ) -> tuple[int, float] | None:
        """Give the frame of that orientation whose plane is nearest to a point, and the distance; None: no such.

        Of several in one place, as the frames of a film, it is the one that the references name.
        """
        alike = np.abs(self._orientations - np.asarray(orientation)).max(axis=1) <= ORIENTATION_TOLERANCE
        if not alike.any():
            return None
        distances = np.abs((self._positions - np.asarray(position)) @ self.normal(orientation))
        distances[~alike] = np.inf
        best = int(distances.argmin())
        named = {(instance, number or 0) for instance, number in references}
        for place in np.flatnonzero(distances <= distances[best] + _SAME_PLACE_MM):
            item = self.planes[int(self._frames[place])]
            if (item.instance_uid, item.number) in named:
                best = int(place)
                break
        return int(self._frames[best]), float(distances[best])

    def locate(self, plane: LabelPlane) -> Hit | Miss:
        """Find the frame of a label plane.

        Source: PS3.3 C.7.6.2.1.1; the label's pixel (0, 0) in the image's pixel coordinates must be whole.
        """
        if plane.position is None or plane.orientation is None or plane.spacing_mm is None or not self.has_places:
            return self._by_reference(plane)
        found = self.nearest(plane.position, plane.orientation, plane.references)
        if found is None:
            return Miss(None, "its rows and columns run in other directions than those of the image")
        frame, along_mm = found
        step = self.step_mm(self.normal(plane.orientation))
        reach, tolerance = (step / 2, step * OFFSET_SHARE) if step else (LONE_FRAME_MM, LONE_FRAME_MM)
        if along_mm > reach:
            return Miss(along_mm, "no frame of the image lies there", off_grid=False)
        if along_mm > tolerance:
            return Miss(along_mm, "it lies between two frames of the image")
        return self._in_plane(frame, plane)

    def locate_contour(
        self, points: NDArray[np.float64], references: Sequence[Reference] = ()
    ) -> tuple[int, float, NDArray[np.float64]] | Miss:
        """Find the frame of a planar contour.

        A contour off the plane by no more than half a step goes to the nearest frame.

        Args:
            points: (N, 3), mm.
            references: what it was drawn on; they tell frames in one place apart.

        Returns:
            The frame, the contour's height over it (mm along the normal), and the contour (N, 2)
            as row and column in pixels, whole numbers at pixel centres.
        """
        if not self.has_places:
            return Miss(None, "the image says no place in the patient", off_grid=False)
        orientation = tuple(self._orientations[0])
        normal = self.normal(orientation)
        along = points @ normal
        found = self.nearest(tuple(points[0] + normal * (along.mean() - along[0])), orientation, references)
        assert found is not None
        frame, away_mm = found
        image = self.planes[frame]
        assert image.position is not None
        assert image.spacing_mm is not None
        reach = (self.step_mm(normal) or max(image.spacing_mm)) / 2
        if float(np.ptp(along)) > reach:
            return Miss(float(np.ptp(along)), "it runs across the planes of the image")
        if away_mm > reach:
            return Miss(away_mm, "no frame of the image lies there", off_grid=False)
        from_corner = points - np.asarray(image.position)
        axes = np.array([orientation[3:], orientation[:3]])
        height_mm = float((from_corner @ normal).mean())
        return frame, height_mm, np.asarray(from_corner @ axes.T / np.asarray(image.spacing_mm), np.float64)

    def _in_plane(self, frame: int, plane: LabelPlane) -> Hit | Miss:
        image = self.planes[frame]
        assert image.position is not None
        assert image.orientation is not None
        assert image.spacing_mm is not None
        assert plane.position is not None
        assert plane.spacing_mm is not None
        pixel = np.asarray(image.spacing_mm)
        drift = np.abs(np.asarray(plane.spacing_mm) - pixel) * (np.asarray(plane.shape) - 1)
        if (drift > OFFSET_SHARE * pixel).any():
            return Miss(float(drift.max()), "its pixels have another size than those of the image")
        away = np.asarray(plane.position) - np.asarray(image.position)
        offset_mm = np.array([away @ np.asarray(image.orientation[3:]), away @ np.asarray(image.orientation[:3])])
        whole = np.rint(offset_mm / pixel)
        error_mm = np.abs(offset_mm - whole * pixel)
        if (error_mm > OFFSET_SHARE * pixel).any():
            return Miss(float(error_mm.max()), "its pixels lie between those of the image")
        return Hit(self.source.source_id, frame, int(whole[0]), int(whole[1]))

    def _by_reference(self, plane: LabelPlane) -> Hit | Miss:
        grid = self.source.grid
        places: Mapping[tuple[str | None, int], int] = {
            (item.instance_uid, item.number): frame for frame, item in enumerate(self.planes)
        }
        for instance, number in plane.references:
            frame = places.get((instance, number or 0))
            if frame is None:
                continue
            if plane.shape != (grid.height, grid.width):
                what = f"it has {plane.shape[0]} x {plane.shape[1]} pixels, the image {grid.height} x {grid.width}"
                return Miss(None, what)
            return Hit(self.source.source_id, frame, 0, 0)
        return Miss(None, "neither a position nor a reference says on which frame it lies", off_grid=False)
