"""From a series to stacks: the frames that share all that one stack shares, and nothing merged that does not belong."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from vitpipe.domains.dicom.geometry import (
    ORIENTATION_TOLERANCE,
    SAME_POSITION_MM,
    along_normal,
    are_plausible,
    arrange,
    has_duplicates,
    normal_of,
)
from vitpipe.domains.dicom.instance import STACK_TIME, Instance, Vector
from vitpipe.records import FileRecord

_SPACING_TOLERANCE: Final = 1e-4
# Projection images have no place in space, whatever some makers write into ImagePositionPatient.
_PROJECTIONS: Final = frozenset({"CR", "DX", "RG", "MG", "IO", "PX", "XC", "GM", "SM", "ES", "OP"})
_LOCALIZER_FRAMES: Final = 5
"""A plane of a three-plane localizer has no more frames."""
_SCOUT_FRAMES: Final = 3
_NOT_PARALLEL: Final = 0.9
_LEAST_STACK: Final = 3
"""Frames by which a step is known to be regular."""


@dataclass(frozen=True, slots=True)
class Member:
    """An indexed file and its record."""

    record: FileRecord
    instance: Instance

    @property
    def has_places(self) -> bool:
        """Each frame has a position and an orientation: they may belong to a stack."""
        geometry, frames = self.instance.geometry, self.instance.pixels.frames
        if frames == 1 and self.instance.modality in _PROJECTIONS:
            return False
        return len(geometry.positions) == frames and bool(geometry.orientations) and are_plausible(geometry.positions)


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame: of an instance with a single one, or of a multi-frame instance."""

    member: Member
    frame: int
    """In its file."""

    @property
    def position(self) -> Vector:
        """ImagePositionPatient, LPS mm."""
        return self.member.instance.geometry.positions[self.frame]

    @property
    def orientation(self) -> Vector:
        """Direction cosines of rows and columns."""
        orientations = self.member.instance.geometry.orientations
        return orientations[self.frame % len(orientations)]

    @property
    def spacing_mm(self) -> Vector | None:
        """Between rows, between columns."""
        geometry = self.member.instance.geometry
        return geometry.spacings[self.frame] if geometry.spacings else geometry.spacing_mm

    @property
    def stack(self) -> Hashable:
        """What tells stacks apart in any case, time aside."""
        instance = self.member.instance
        kinds = instance.frame_kinds.stacks
        fields = tuple(item for place, item in enumerate(instance.stack) if place != STACK_TIME)
        return fields, instance.image_type, kinds[self.frame] if kinds else 0

    @property
    def time(self) -> Hashable:
        """The temporal position."""
        instance = self.member.instance
        kinds = instance.frame_kinds.times
        return instance.stack[STACK_TIME], kinds[self.frame] if kinds else 0

    @property
    def moments(self) -> tuple[Hashable, ...]:
        """What tells stacks apart where positions repeat, and all of it together."""
        instance = self.member.instance
        indices = instance.frame_kinds.indices
        single = (*instance.moments, *(indices[self.frame] if indices else ()))
        return (*single, single)

    @property
    def tie(self) -> str:
        """Orders frames at one place, and frames without places: by dimension indices, else as the file has them."""
        ranks = self.member.instance.frame_kinds.ranks
        return f"{self.member.record.digest}{ranks[self.frame] if ranks else self.frame:09d}"

    @property
    def name(self) -> str:
        """Pseudonym for reports; of an instance without UID the digest of its content."""
        instance = self.member.instance
        name = instance.instance_uid or self.member.record.digest[:16]
        return name if instance.pixels.frames == 1 else f"{name}#{self.frame}"


@dataclass(frozen=True, slots=True)
class Group:
    """Frames that make one source, and what is odd about how they came together."""

    frames: tuple[Frame, ...]
    notes: frozenset[str]


def in_one_file(frames: Sequence[Frame]) -> bool:
    """Tell whether several frames are those of one multi-frame file."""
    return len(frames) > 1 and frames[0].member is frames[1].member


def split_series(members: Sequence[Member]) -> Iterator[Group]:
    """Split a series into stacks: single-frame instances with places together, any other file by itself.

    Args:
        members: the files of one series, in a deterministic order.
    """
    placed: list[Frame] = []
    for member in members:
        frames = tuple(Frame(member, frame) for frame in range(member.instance.pixels.frames))
        if not member.has_places:
            yield Group(frames, frozenset())
        elif len(frames) > 1:
            yield from _split(frames)
        else:
            placed.extend(frames)
    if placed:
        yield from _split(tuple(placed))


def _split(frames: tuple[Frame, ...]) -> list[Group]:
    """Split by all that one stack shares (rule 1), then by time where positions repeat."""
    groups = [Group(frames, frozenset())]
    splits: tuple[tuple[str, Callable[[list[Frame]], list[list[Frame]]]], ...] = (
        ("MIXED_KIND", lambda items: _by_key(items, _kind)),
        ("MIXED_SHAPE", lambda items: _by_key(items, _shape)),
        (
            "MIXED_ORIENTATION",
            lambda items: _by_distance(items, lambda item: item.orientation, ORIENTATION_TOLERANCE),
        ),
        (
            "MIXED_SPACING",
            lambda items: _by_distance(items, lambda item: item.spacing_mm or (0.0, 0.0), _SPACING_TOLERANCE),
        ),
        ("MIXED_STACK", lambda items: _by_key(items, lambda item: item.stack)),
        ("TEMPORAL_STACK", _by_time),
        ("TEMPORAL_STACK", _by_moment),
        ("TEMPORAL_STACK", _by_acquisition),
    )
    for code, split in splits:
        parted: list[Group] = []
        for group in groups:
            parts = split(list(group.frames))
            notes = group.notes | {code} if len(parts) > 1 else group.notes
            parted.extend(Group(tuple(part), notes) for part in parts)
        groups = parted
    return [_marked(group, groups) for group in groups]


def _marked(group: Group, groups: Sequence[Group]) -> Group:
    """Mark what the places alone show: a localizer, and a film of one place."""
    if _is_film(group.frames):
        return dataclasses.replace(group, notes=group.notes | {"TEMPORAL_STACK"})
    if _looks_like_localizer(group, groups):
        return dataclasses.replace(group, notes=group.notes | {"LOCALIZER"})
    return group


def _looks_like_localizer(group: Group, groups: Sequence[Group]) -> bool:
    """Tell a localizer that ImageType does not name: few planes that cross, or scouts that share a place."""
    normals = [normal_of(item.frames[0].orientation) for item in groups]
    own = normal_of(group.frames[0].orientation)
    few = max(len(item.frames) for item in groups) <= _LOCALIZER_FRAMES
    if few and any(abs(float(own @ other)) < _NOT_PARALLEL for other in normals):
        return True
    is_scout = group.frames[0].member.instance.modality == "CT" and 2 <= len(group.frames) <= _SCOUT_FRAMES
    return is_scout and _extent_mm(group.frames) < SAME_POSITION_MM


def _extent_mm(frames: Sequence[Frame]) -> float:
    places = along_normal([item.position for item in frames], frames[0].orientation)
    return float(places.max() - places.min())


def _is_film(frames: Sequence[Frame]) -> bool:
    """Tell a multi-frame file that shows one place at several times: its frames are no stack, but belong together."""
    return in_one_file(frames) and len({item.time for item in frames}) > 1 and _extent_mm(frames) < SAME_POSITION_MM


def _kind(item: Frame) -> Hashable:
    instance = item.member.instance
    pixels = instance.pixels
    return (
        # Some de-identifiers give the series of two patients one UID.
        instance.patient,
        instance.frame_of_reference,
        instance.modality,
        pixels.channels,
        pixels.units,
        pixels.inverted,
        pixels.lut_bits,
        pixels.palette_bits,
    )


def _shape(item: Frame) -> Hashable:
    return item.member.instance.pixels.rows, item.member.instance.pixels.cols


def _by_key(frames: list[Frame], key: Callable[[Frame], Hashable]) -> list[list[Frame]]:
    parts: dict[Hashable, list[Frame]] = defaultdict(list)
    for item in frames:
        parts[key(item)].append(item)
    return list(parts.values())


def _by_distance(frames: list[Frame], value: Callable[[Frame], Vector], tolerance: float) -> list[list[Frame]]:
    """Gather frames whose numbers differ by no more than a tolerance from those of the first of their part."""
    parts: list[tuple[np.ndarray, list[Frame]]] = []
    for item in frames:
        found = np.asarray(value(item))
        for first, part in parts:
            if np.abs(found - first).max() <= tolerance:
                part.append(item)
                break
        else:
            parts.append((found, [item]))
    return [part for _, part in parts]


def _by_time(frames: list[Frame]) -> list[list[Frame]]:
    """Split by temporal position; a film of one place stays whole, and a stack where each frame has its own time."""
    parts = _by_key(frames, lambda item: item.time)
    if len(parts) < len(frames):
        return parts
    places = along_normal([item.position for item in frames], frames[0].orientation)
    return [frames] if in_one_file(frames) or not has_duplicates(places) else parts


def _by_moment(frames: list[Frame]) -> list[list[Frame]]:
    """Split a stack whose positions repeat by acquisition or time, where that alone explains every repetition."""
    places = along_normal([item.position for item in frames], frames[0].orientation)
    if len(frames) < 2 or not has_duplicates(places):
        return [frames]
    where = {(item.member.record.path, item.frame): place for item, place in zip(frames, places, strict=True)}
    most = _most_at_one_place(places)
    if most == len(frames) and in_one_file(frames):
        return [frames]
    for index in range(len(frames[0].moments)):
        parts = _by_key(frames, lambda item, at=index: item.moments[at])  # type: ignore[misc]
        if len(parts) == most and not any(
            has_duplicates(np.asarray([where[item.member.record.path, item.frame] for item in part])) for part in parts
        ):
            return parts
    return [frames]


def _by_acquisition(frames: list[Frame]) -> list[list[Frame]]:
    """Split a stack of unequal steps by acquisition or time, where that alone makes regular stacks of it."""
    columns = zip(*(item.moments for item in frames), strict=True)
    # Asked first, since it is cheap: as a rule all frames are of one acquisition, and each has a time of its own.
    several = [index for index, column in enumerate(columns) if 1 < len(set(column)) <= len(frames) // _LEAST_STACK]
    if not several or not _is_irregular(frames):
        return [frames]
    for index in several:
        parts = _by_key(frames, lambda item, at=index: item.moments[at])  # type: ignore[misc]
        if all(len(part) >= _LEAST_STACK and not _is_irregular(part) for part in parts):
            return parts
    return [frames]


def _is_irregular(frames: Sequence[Frame]) -> bool:
    stack = arrange(
        [item.position for item in frames],
        [frames[0].orientation],
        frames[0].spacing_mm,
        [item.tie for item in frames],
    )
    return not {"IRREGULAR", "DUPLICATE_POSITION"}.isdisjoint(stack.notes)


def _most_at_one_place(places_mm: np.ndarray) -> int:
    steps = np.diff(np.sort(places_mm))
    most = run = 1
    for step in steps:
        run = run + 1 if step < SAME_POSITION_MM else 1
        most = max(most, run)
    return most
