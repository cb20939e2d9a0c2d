"""From indexed files to sources: a series is split into stacks of one geometry, a stack is ordered along its normal."""

from __future__ import annotations

import dataclasses
import os
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vitpipe.config import DicomSource
from vitpipe.digest import digest, digest_of_digests
from vitpipe.domains.base import ScanContext
from vitpipe.domains.dicom.geometry import Stack, arrange
from vitpipe.domains.dicom.instance import Geometry, Instance
from vitpipe.domains.dicom.pixelformat import physical_dtype
from vitpipe.domains.dicom.plan import make_plan
from vitpipe.domains.dicom.repair import NOT_REPAIRED, REPAIRABLE, Placed, Repair, pixel_digest, plan_repair
from vitpipe.domains.dicom.repaired import repaired_dtype
from vitpipe.domains.dicom.report import GeometryReport
from vitpipe.domains.dicom.stacks import Frame, Group, Member, in_one_file, split_series
from vitpipe.records import Attribute, FileRecord, Grid, Json, Rejected, Source

NO_STEP_MM: Final = 0.0
"""`spacing_mm[0]` where there is no regular step between frames: never an invented one."""


def assemble(records: Sequence[FileRecord], context: ScanContext) -> Iterator[Source | Rejected]:
    """Make sources of indexed files; the order of `records` does not matter.

    Yields:
        Sources by study, series and first file; before them the files that are not used: ``OTHER_MODALITY``,
        ``CONFLICTING_SOP``, ``DUPLICATE``, ``OUTSIDE_RUN``.

    Raises:
        TransientError: under `geometry: repair` the pixels of copies are compared, and the store does not answer.
    """
    # By content, then path: equal trees give equal sources wherever they lie.
    ordered = sorted(records, key=lambda record: (record.digest, record.path))
    members = [Member(record, Instance.from_json(record.header)) for record in ordered]
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
        for group in split_series(in_series[key]):
            yield from _assembled(group, context)


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


# ------------------------------------------------------------------------------------------------- stacks to sources


def arrange_frames(geometry: Geometry, frames: int) -> Stack:
    """Arrange the frames of one file; where they make no single stack, the order of the file holds."""
    stack = arrange(
        geometry.positions, geometry.orientations, geometry.spacing_mm, [f"{frame:09d}" for frame in range(frames)]
    )
    if "DUPLICATE_POSITION" in stack.notes:
        return dataclasses.replace(stack, order=tuple(range(frames)))
    return stack


def _arrange_group(frames: Sequence[Frame]) -> Stack:
    """Arrange the frames of one source; the frames of a film keep the order of their file or its indices."""
    placed = frames[0].member.has_places
    stack = arrange(
        [item.position for item in frames] if placed else (),
        [frames[0].orientation] if placed else (),
        frames[0].spacing_mm,
        [item.tie for item in frames],
        [item.name for item in frames],
    )
    if "DUPLICATE_POSITION" in stack.notes and in_one_file(frames):
        by_tie = sorted(range(len(frames)), key=lambda frame: frames[frame].tie)
        return dataclasses.replace(stack, order=tuple(by_tie))
    return stack


@dataclass(frozen=True, slots=True)
class _Assembly:
    """What makes one source."""

    frames: tuple[Frame, ...]
    """Frames of the files, in order."""
    grid: Grid
    notes: frozenset[str]
    report: GeometryReport
    shown: tuple[Frame, ...]
    """For each frame of the source the one of the files that it is, or is nearest to."""
    plan: dict[str, Json] | None = None
    repaired: bool = False


def _assembled(group: Group, context: ScanContext) -> Iterator[Source | Rejected]:
    """Make the source of a group; where it is repaired, the files that are left out come before it."""
    stack = _arrange_group(group.frames)
    frames = tuple(group.frames[place] for place in stack.order)
    first, spacing = frames[0].member.instance, frames[0].spacing_mm
    notes = group.notes | {*stack.notes}
    if first.frame_of_reference is None and "NO_GEOMETRY" not in stack.notes:
        notes |= {"NO_FOR_UID"}
    report = stack.report.with_codes(notes)
    recipe = context.recipe
    wanted = isinstance(recipe, DicomSource) and recipe.geometry == "repair" and not REPAIRABLE.isdisjoint(notes)
    repair = _repair(frames, report) if wanted else None
    if repair is not None:
        if not in_one_file(frames):
            yield from _left_out(frames, repair)
        kept = tuple(frames[place] for place in repair.kept)
        shown = tuple(kept[place] for place in repair.nearest)
        notes |= {*repair.report.codes}
        yield _source(_Assembly(kept, repair.grid, notes, repair.report, shown, repair.plan, repaired=True), context)
        return
    if wanted:
        notes |= {NOT_REPAIRED}
        report = report.with_codes(notes)
    grid = Grid(
        frames=len(frames),
        height=first.pixels.rows,
        width=first.pixels.cols,
        spacing_mm=(stack.step_mm if stack.affine else NO_STEP_MM, spacing[0], spacing[1]) if spacing else None,
        affine=stack.affine,
    )
    yield _source(_Assembly(frames, grid, notes, report, frames), context)


def _repair(frames: Sequence[Frame], report: GeometryReport) -> Repair | None:
    first = frames[0].member.instance
    placed = Placed(
        positions=tuple(item.position for item in frames),
        orientation=frames[0].orientation,
        spacing_mm=frames[0].spacing_mm,
        names=tuple(item.name for item in frames),
        rows=first.pixels.rows,
        cols=first.pixels.cols,
    )
    return plan_repair(
        placed, report, lambda place: pixel_digest(Path(frames[place].member.record.path), frames[place].frame)
    )


def _left_out(frames: Sequence[Frame], repair: Repair) -> Iterator[Rejected]:
    for place in repair.copies:
        reason = "another file of its series has the same place and the same pixels; `geometry: repair` uses that one"
        yield Rejected(frames[place].member.record.path, "DUPLICATE", reason)
    for place in repair.outside:
        reason = (
            f"it lies outside of the longest regular run, {len(repair.kept)} of {len(frames)} frames, which alone "
            "`geometry: repair` keeps; find the missing files, or leave this one away"
        )
        yield Rejected(frames[place].member.record.path, "OUTSIDE_RUN", reason)


def _source(made: _Assembly, context: ScanContext) -> Source:
    frames = made.frames
    members = (frames[0].member,) if in_one_file(frames) else tuple(item.member for item in frames)
    instances = [member.instance for member in members]
    first = instances[0]
    notes = made.notes | {note for item in instances for note in (*item.notes, *item.geometry.notes)}
    if frames[0].spacing_mm is not None and "MIXED_SPACING" not in made.notes:
        # Said of the file; its frames were split by it, or are alike.
        notes -= {"MIXED_SPACING"}
    if first.patient is None:
        notes |= {"NO_PATIENT_ID"}
    chosen = _chosen_frames(frames, first.pixels.frames)
    dtype = physical_dtype([item.pixels for item in instances])
    reader = make_plan(instances, [member.record.size for member in members])
    if chosen:
        reader["frames"] = list(chosen)
    if made.plan is not None:
        reader["repair"] = {**made.plan, "dtype": dtype.name}
        dtype = repaired_dtype(dtype)
    source_id = _identity(members, chosen, made)
    files = tuple(member.record.path for member in members)
    return Source(
        source_id=source_id,
        group_id=_group_id(first, source_id, context),
        domain="dicom",
        uri=files[0] if len(files) == 1 else os.path.commonpath([str(Path(path).parent) for path in files]),
        files=files,
        grid=made.grid,
        channels=first.pixels.channels,
        units=first.pixels.units,
        dtype=dtype.name,
        acquired_at=_common([item.acquired_at for item in instances]),
        attributes=_common_attributes(instances),
        keys=_keys(members if len(members) == 1 else [item.member for item in made.shown], context),
        bytes=sum(member.record.size for member in members),
        notes=tuple(sorted(notes)),
        reader=reader,
        geometry=made.report.to_json(),
    )


def _chosen_frames(frames: Sequence[Frame], in_file: int) -> tuple[int, ...]:
    """Give the frames of a multi-frame file that make the source; nothing where that is all of them as they lie."""
    chosen = tuple(item.frame for item in frames)
    return chosen if in_file > 1 and chosen != tuple(range(in_file)) else ()


def _identity(members: Sequence[Member], chosen: Sequence[int], made: _Assembly) -> str:
    """Digest the files; the frames where they are a part of their file; and the repair, which makes other pixels."""
    digests = [member.record.digest for member in members]
    if 0 < len(chosen) < members[0].instance.pixels.frames:
        digests.append(digest(list(chosen)))
    if made.repaired:
        digests.append(digest(["repair", made.plan]))
    return digest_of_digests(digests)


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
    place = Path(path)
    if not place.is_relative_to(root) or place == root:
        root = root.parent
    return place.relative_to(root).as_posix() if place.is_relative_to(root) else place.as_posix()
