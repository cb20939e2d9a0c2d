"""From indexed files to sources: a series is split into stacks of one geometry, a stack is ordered along its normal."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from vitpipe.config import DicomSource
from vitpipe.digest import digest_of_digests
from vitpipe.domains.base import ScanContext
from vitpipe.domains.dicom.geometry import (
    ORIENTATION_TOLERANCE,
    Stack,
    along_normal,
    arrange,
    has_duplicates,
)
from vitpipe.domains.dicom.instance import Instance, Vector
from vitpipe.domains.dicom.pixelformat import physical_dtype
from vitpipe.records import Attribute, FileRecord, Grid, Json, Rejected, Source

NO_STEP_MM: Final = 0.0
"""`spacing_mm[0]` where there is no regular step between frames: never an invented one."""

_SPACING_TOLERANCE: Final = 1e-4


@dataclass(frozen=True, slots=True)
class Member:
    """An indexed file and its record."""

    record: FileRecord
    instance: Instance

    @property
    def is_frame(self) -> bool:
        """One frame with a place: it may belong to a stack. Any other instance is a source of its own."""
        geometry = self.instance.geometry
        return self.instance.pixels.frames == 1 and bool(geometry.positions) and bool(geometry.orientations)


@dataclass(frozen=True, slots=True)
class Group:
    """Files that make one source, and what is odd about how they came together."""

    members: tuple[Member, ...]
    notes: frozenset[str]


def assemble(records: Sequence[FileRecord], context: ScanContext) -> Iterator[Source | Rejected]:
    """Make sources of indexed files; the order of `records` does not matter.

    Yields:
        Sources by study, series and first file; before them the files that are not used: ``OTHER_MODALITY``,
        ``CONFLICTING_SOP``, ``DUPLICATE``.
    """
    # By content, then path: equal trees give equal sources wherever they lie.
    ordered = sorted(records, key=lambda record: (record.digest, record.path))
    known: dict[int, tuple[Json, object]] = {}
    members = [Member(record, Instance.from_json(record.header, known)) for record in ordered]
    del known
    kept: list[Member] = []
    for item in _without_conflicts(_of_modality(members, context)):
        if isinstance(item, Rejected):
            yield item
        else:
            kept.append(item)
    in_series: dict[Hashable, list[Member]] = defaultdict(list)
    for member in kept:
        in_series[_series_of(member)].append(member)
    for key in sorted(in_series, key=str):
        for group in _split_series(in_series[key]):
            yield _source(group, context)


def _series_of(member: Member) -> tuple[str, ...]:
    instance = member.instance
    if instance.series_uid is None:
        return (instance.study_uid or "", "", member.record.digest)
    return (instance.study_uid or "", instance.series_uid)


def _of_modality(members: Iterable[Member], context: ScanContext) -> Iterator[Member | Rejected]:
    recipe = context.recipe
    wanted = recipe.modality.upper() if isinstance(recipe, DicomSource) and recipe.modality else None
    for member in members:
        found = member.instance.modality
        if wanted is None or found == wanted:
            yield member
        else:
            yield Rejected(
                member.record.path, "OTHER_MODALITY", f"modality {found or 'not stated'}, not {wanted}", junk=True
            )


def _without_conflicts(items: Iterable[Member | Rejected]) -> Iterator[Member | Rejected]:
    """Drop copies of a file, and all versions of an instance that has several: none is known to be the right one."""
    versions: dict[str, set[str]] = defaultdict(set)
    listed = list(items)
    for item in listed:
        if isinstance(item, Member) and item.instance.instance_uid:
            versions[item.instance.instance_uid].add(item.record.digest)
    seen: set[str] = set()
    for item in listed:
        if isinstance(item, Rejected):
            yield item
            continue
        path = item.record.path
        if len(versions[item.instance.instance_uid or ""]) > 1:
            reason = "another file has the same SOPInstanceUID but other bytes; keep the right one of them"
            yield Rejected(path, "CONFLICTING_SOP", reason)
        elif item.record.digest in seen:
            yield Rejected(path, "DUPLICATE", "another file has the same bytes")
        else:
            seen.add(item.record.digest)
            yield item


# ------------------------------------------------------------------------------------------------ series into stacks


def _split_series(members: list[Member]) -> Iterator[Group]:
    """Split a series by all that one stack shares (rule 1), then by time where positions repeat."""
    frames = [member for member in members if member.is_frame]
    for member in members:
        if not member.is_frame:
            yield Group((member,), frozenset())
    groups = [Group(tuple(frames), frozenset())] if frames else []
    splits: tuple[tuple[str, Callable[[list[Member]], list[list[Member]]]], ...] = (
        ("MIXED_KIND", lambda items: _by_key(items, _kind)),
        (
            "MIXED_SHAPE",
            lambda items: _by_key(items, _shape),
        ),
        ("MIXED_ORIENTATION", lambda items: _by_distance(items, _orientation, ORIENTATION_TOLERANCE)),
        ("MIXED_SPACING", lambda items: _by_distance(items, _spacing, _SPACING_TOLERANCE)),
        ("MIXED_STACK", lambda items: _by_key(items, lambda item: (item.instance.stack, item.instance.image_type))),
        ("TEMPORAL_STACK", _by_moment),
    )
    for code, split in splits:
        parted: list[Group] = []
        for group in groups:
            parts = split(list(group.members))
            notes = group.notes | {code} if len(parts) > 1 else group.notes
            parted.extend(Group(tuple(part), notes) for part in parts)
        groups = parted
    yield from groups


def _kind(member: Member) -> Hashable:
    pixels = member.instance.pixels
    return (
        member.instance.frame_of_reference,
        member.instance.modality,
        pixels.channels,
        pixels.units,
        pixels.inverted,
        pixels.lut_bits,
        pixels.palette_bits,
    )


def _shape(member: Member) -> Hashable:
    return member.instance.pixels.rows, member.instance.pixels.cols


def _orientation(member: Member) -> Vector:
    return member.instance.geometry.orientations[0]


def _spacing(member: Member) -> Vector:
    return member.instance.geometry.spacing_mm or (0.0, 0.0)


def _by_key(members: list[Member], key: Callable[[Member], Hashable]) -> list[list[Member]]:
    parts: dict[Hashable, list[Member]] = defaultdict(list)
    for member in members:
        parts[key(member)].append(member)
    return list(parts.values())


def _by_distance(members: list[Member], value: Callable[[Member], Vector], tolerance: float) -> list[list[Member]]:
    """Gather members whose numbers differ by no more than a tolerance from those of the first of their part."""
    parts: list[tuple[np.ndarray, list[Member]]] = []
    for member in members:
        found = np.asarray(value(member))
        for first, part in parts:
            if np.abs(found - first).max() <= tolerance:
                part.append(member)
                break
        else:
            parts.append((found, [member]))
    return [part for _, part in parts]


def _by_moment(members: list[Member]) -> list[list[Member]]:
    """Split a stack whose positions repeat by acquisition or time, where that alone explains every repetition."""
    places = along_normal([member.instance.geometry.positions[0] for member in members], _orientation(members[0]))
    if len(members) < 2 or not has_duplicates(places):
        return [members]
    where = dict(zip((member.record.path for member in members), places, strict=True))
    most = _most_at_one_place(places)
    for index in range(len(members[0].instance.moments)):
        parts = _by_key(members, lambda member, at=index: member.instance.moments[at])  # type: ignore[misc]
        whole = all(not has_duplicates(np.asarray([where[item.record.path] for item in part])) for part in parts)
        if len(parts) == most and whole:
            return parts
    return [members]


def _most_at_one_place(places_mm: np.ndarray) -> int:
    steps = np.diff(np.sort(places_mm))
    most = run = 1
    for step in steps:
        run = run + 1 if step < 0.01 else 1
        most = max(most, run)
    return most


# ------------------------------------------------------------------------------------------------- stacks to sources


def arrange_group(members: Sequence[Instance], ties: Sequence[str]) -> Stack:
    """Arrange the frames of one multi-frame file, or of several files of one frame."""
    first = members[0].geometry
    if len(members) == 1:
        return arrange_frames(first.positions, first.orientations, first.spacing_mm, members[0].pixels.frames)
    positions = [member.geometry.positions[0] for member in members]
    return arrange(positions, first.orientations, first.spacing_mm, ties)


def arrange_frames(
    positions: tuple[Vector, ...], orientations: tuple[Vector, ...], spacing_mm: Vector | None, frames: int
) -> Stack:
    """Arrange the frames of one file; where they make no single stack, the order of the file holds."""
    stack = arrange(positions, orientations, spacing_mm, [f"{frame:09d}" for frame in range(frames)])
    if "DUPLICATE_POSITION" in stack.notes:
        return Stack(tuple(range(frames)), NO_STEP_MM, None, stack.notes)
    return stack


def _source(group: Group, context: ScanContext) -> Source:
    members, instances = group.members, [member.instance for member in group.members]
    stack = arrange_group(instances, [member.record.digest for member in members])
    in_order = members if len(members) == 1 else tuple(members[frame] for frame in stack.order)
    first = in_order[0].instance
    source_id = digest_of_digests(member.record.digest for member in in_order)
    notes = group.notes | {*stack.notes} | {note for item in instances for note in (*item.notes, *item.geometry.notes)}
    spacing = first.geometry.spacing_mm
    if first.patient is None:
        notes |= {"NO_PATIENT_ID"}
    if first.frame_of_reference is None and "NO_GEOMETRY" not in stack.notes:
        notes |= {"NO_FOR_UID"}
    files = tuple(member.record.path for member in in_order)
    return Source(
        source_id=source_id,
        group_id=_group_id(first, source_id, context),
        domain="dicom",
        uri=files[0] if len(files) == 1 else os.path.commonpath([str(Path(path).parent) for path in files]),
        files=files,
        grid=Grid(
            frames=first.pixels.frames if len(members) == 1 else len(members),
            height=first.pixels.rows,
            width=first.pixels.cols,
            spacing_mm=(stack.step_mm, spacing[0], spacing[1]) if spacing else None,
            affine=stack.affine,
        ),
        channels=first.pixels.channels,
        units=first.pixels.units,
        dtype=physical_dtype([item.pixels for item in instances]).name,
        acquired_at=_common([item.acquired_at for item in instances]),
        attributes=_common_attributes(instances),
        keys=_keys(in_order, context),
        bytes=sum(member.record.size for member in in_order),
        notes=tuple(sorted(notes)),
    )


def _group_id(instance: Instance, source_id: str, context: ScanContext) -> str:
    """Give the patient's pseudonym; without one the study stands for the patient, then the series, then the source."""
    for value in (instance.patient, instance.study_uid, instance.series_uid):
        if value is not None:
            return value
    return context.pseudonym("source", source_id)


def _common(values: list[str | None]) -> str | None:
    return values[0] if len(set(values)) == 1 else None


def _common_attributes(instances: list[Instance]) -> dict[str, Attribute]:
    """Keep what all files of the source agree on."""
    first = instances[0].attributes
    return {
        name: value if all(item.attributes.get(name) == value for item in instances) else None
        for name, value in first.items()
    }


def _keys(members: Sequence[Member], context: ScanContext) -> dict[str, tuple[str, ...]]:
    first = members[0].instance
    keys: dict[str, tuple[str, ...]] = {"path": tuple(_relative(item.record.path, context.root) for item in members)}
    for kind, value in (("patient", first.patient), ("study_uid", first.study_uid), ("series_uid", first.series_uid)):
        if value is not None:
            keys[kind] = (value,)
    uids = [item.instance.instance_uid for item in members]
    if all(uids):
        keys["instance_uid"] = tuple(uid for uid in uids if uid)
    return keys


def _relative(path: str, root: Path) -> str:
    """Give a path relative to the root; to its folder where the root is a file: this one, or a DICOMDIR."""
    # Texts, not paths: this is done for every file of the catalog.
    for folder in (str(root), str(root.parent)):
        prefix = f"{folder.rstrip('/')}/"
        if path.startswith(prefix):
            return path.removeprefix(prefix)
    return path
