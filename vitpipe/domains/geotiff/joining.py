"""From composed scenes to sources: one scene, one source; or the scenes of one place, one source with all dates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np

from vitpipe.config import GeotiffSource, SceneSeries
from vitpipe.digest import digest_of_digests
from vitpipe.domains.geotiff.compose import Scene, compose, member_json
from vitpipe.domains.geotiff.facts import grid_of, ground_group, relative, subgroups
from vitpipe.domains.geotiff.parts import SceneParts
from vitpipe.records import Attribute, FileRecord, Json, Rejected, Source


def join_scenes(
    parts: Sequence[SceneParts], masks: Mapping[str, FileRecord], recipe: GeotiffSource, root: Path
) -> Iterator[Source | Rejected]:
    """Make a source of each scene, or of each place where the configuration asks for series."""
    scenes: list[Scene] = []
    for item in parts:
        found = compose(item, masks, recipe)
        if isinstance(found, Scene):
            scenes.append(found)
        else:
            yield from found
    stacks = [[scene] for scene in scenes]
    if recipe.series is not None:
        stacks, refused = _stack(scenes, recipe.series)
        for scene, refusal in refused:
            yield from _refuse(scene, refusal)
    for stack in stacks:
        for scene in stack:
            yield from _not_used(scene)
        yield _source(stack, recipe, root)


def _not_used(scene: Scene) -> Iterator[Rejected]:
    """List the files of a scene that the chosen bands do not need."""
    used = scene.paths
    for record in scene.parts.records:
        if record.path not in used:
            reason = "a file of a scene that the chosen bands do not need; it is not read"
            yield Rejected(record.path, "BAND_NOT_USED", reason, junk=True)


# ------------------------------------------------------------------------------------------------------------- series


class _Refusal:
    """Why scenes are not used."""

    def __init__(self, code: str, reason: str, *, junk: bool = False) -> None:
        self.code, self.reason, self.junk = code, reason, junk


def _refuse(scene: Scene, refusal: _Refusal) -> Iterator[Rejected]:
    if scene.parts.whole_folder:
        yield Rejected(scene.parts.uri, refusal.code, refusal.reason, junk=refusal.junk)
        return
    for record in scene.parts.records:
        yield Rejected(record.path, refusal.code, refusal.reason, junk=refusal.junk)


def _stack(scenes: Sequence[Scene], series: SceneSeries) -> tuple[list[list[Scene]], list[tuple[Scene, _Refusal]]]:
    """Give the scenes of each place in the order of time, and those that are not used."""
    places: dict[Hashable, list[Scene]] = defaultdict(list)
    refused: list[tuple[Scene, _Refusal]] = []
    for scene in scenes:
        key = _place_of(scene, series)
        if isinstance(key, _Refusal):
            refused.append((scene, key))
        else:
            places[key].append(scene)
    stacks = []
    for place in places.values():
        chosen, left = _choose_dates(place, series)
        refused += left
        if chosen:
            stacks.append(chosen)
    return stacks, refused


def _grid_of(scene: Scene) -> tuple[Any, ...]:
    header = scene.header
    transform = header["transform"]
    return header["crs"], None if transform is None else tuple(transform), header["height"], header["width"]


def _place_of(scene: Scene, series: SceneSeries) -> Hashable | _Refusal:
    if scene.parts.acquired_at is None:
        reason = (
            "nothing says when the scene was seen, which `source.series` needs: a tag, a product's metadata, or {date}"
        )
        return _Refusal("NO_DATE", reason)
    if series.by == "tile":
        if scene.parts.tile is None:
            return _Refusal("NO_TILE", "the scene names no tile; set `source.series.by: place`")
        return scene.parts.tile
    grid = _grid_of(scene)
    if grid[0] is None or grid[1] is None:
        reason = "the scene does not say where it lies, so no other date of its place is known; georeference it"
        return _Refusal("NO_PLACE", reason)
    return grid


def _moment(scene: Scene) -> datetime:
    """Give the time in UTC; a time without a zone is taken as UTC, as products write it."""
    moment = datetime.fromisoformat(str(scene.parts.acquired_at))
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _choose_dates(place: Sequence[Scene], series: SceneSeries) -> tuple[list[Scene], list[tuple[Scene, _Refusal]]]:
    """Give the scenes of one place in the order of time, and those that are not used; none where a date is lacking."""
    ordered = sorted(place, key=lambda scene: (_moment(scene), scene.parts.uri))
    if series.by == "tile" and len({_grid_of(scene) for scene in ordered}) > 1:
        reason = (
            f"the scenes of tile {ordered[0].parts.tile} lie on different grids; cut them to one, or set `by: place`"
        )
        return _all_refused(ordered, "GRIDS_DIFFER", reason)
    kinds = {(tuple(channel.name for channel in scene.channels), scene.parts.units) for scene in ordered}
    if len(kinds) > 1:
        shown = "; ".join(f"{', '.join(names)} in {units}" for names, units in sorted(kinds))
        reason = (
            f"the dates of this place have different bands or units ({shown}); set `source.bands`, or use one product"
        )
        return _all_refused(ordered, "UNITS_DIFFER", reason)
    if isinstance(series.dates, int):
        return _by_number(ordered, series.dates)
    return _by_windows(ordered, series.dates, series.pick)


def _all_refused(scenes: Sequence[Scene], code: str, reason: str) -> tuple[list[Scene], list[tuple[Scene, _Refusal]]]:
    return [], [(scene, _Refusal(code, reason)) for scene in scenes]


def _by_number(ordered: list[Scene], count: int) -> tuple[list[Scene], list[tuple[Scene, _Refusal]]]:
    moments = [_moment(scene) for scene in ordered]
    shown = ", ".join(f"{moment:%Y-%m-%d}" for moment in moments[:10])
    if len(set(moments)) < len(moments):
        reason = f"two scenes of this place have one time ({shown}), so their order is not known; remove one of them"
        return _all_refused(ordered, "AMBIGUOUS_DATE", reason)
    if len(ordered) < count:
        reason = (
            f"{len(ordered)} date(s) of this place ({shown}), where `source.series.dates` needs {count}; fetch the rest"
        )
        return _all_refused(ordered, "MISSING_DATE", reason)
    if len(ordered) > count:
        reason = (
            f"{len(ordered)} dates of this place ({shown}), where `source.series.dates` needs {count}: name windows of "
            "time instead, such as dates: [[2021-03-01, 2021-05-31], [2021-06-01, 2021-08-31]]"
        )
        return _all_refused(ordered, "AMBIGUOUS_DATE", reason)
    return ordered, []


def _by_windows(
    ordered: Sequence[Scene], windows: Sequence[tuple[date, date]], pick: str
) -> tuple[list[Scene], list[tuple[Scene, _Refusal]]]:
    chosen: list[Scene] = []
    for first, last in windows:
        inside = [scene for scene in ordered if first <= _moment(scene).date() <= last]
        if not inside:
            reason = f"no scene of this place from {first} to {last}, a window of `source.series.dates`; fetch one"
            return _all_refused(ordered, "MISSING_DATE", reason)
        if pick == "least_cloud":
            covers = [scene.parts.attributes.get("cloud_cover") for scene in inside]
            if any(not isinstance(cover, float | int) for cover in covers):
                reason = (
                    f"a scene from {first} to {last} does not state its cloud cover; set `source.series.pick: first`"
                )
                return _all_refused(ordered, "AMBIGUOUS_DATE", reason)
            # The earlier of two that are equally clear.
            inside = [inside[int(np.argmin(np.array(covers, dtype=np.float64)))]]
        if pick == "only" and len(inside) > 1:
            reason = (
                f"{len(inside)} scenes of this place from {first} to {last}; narrow the window, or set "
                "`source.series.pick` to first or least_cloud"
            )
            return _all_refused(ordered, "AMBIGUOUS_DATE", reason)
        chosen.append(inside[0])
    used = {id(scene) for scene in chosen}
    reason = "a scene at a date that `source.series` does not take; it is not read"
    refusal = _Refusal("DATE_NOT_USED", reason, junk=True)
    return chosen, [(scene, refusal) for scene in ordered if id(scene) not in used]


# ------------------------------------------------------------------------------------------------------------- sources


def _source(stack: Sequence[Scene], recipe: GeotiffSource, root: Path) -> Source:
    """Make the source of one scene, or of scenes of one place in the order of time."""
    first = stack[0]
    header = first.header
    records: dict[str, FileRecord] = {}
    for scene in stack:
        for member in scene.members:
            records |= {item.path: item for item in (member.record, member.mask) if item is not None}
    for scene in stack:
        records |= {item.path: item for item in scene.parts.extra}
    files = tuple(records)
    source_id = digest_of_digests(record.digest for record in records.values())
    channels: list[str] = []
    plan: list[Json] = []
    members: list[Json] = []
    quality: list[Json] = []
    for number, scene in enumerate(stack):
        base = len(members)
        members += [member_json(member, files, _invalid(scene, place)) for place, member in enumerate(scene.members)]
        plan += [[base + item.member, item.place, item.scale, item.offset] for item in scene.channels]
        channels += [f"{number}_{item.name}" if len(stack) > 1 else item.name for item in scene.channels]
        if scene.quality is not None:
            quality.append([base + scene.quality[0], scene.quality[1]])
    reader: dict[str, Json] = {
        "block_m": recipe.grouping_m, "members": members, "channels": plan, "quality": quality,
    }  # fmt: skip
    if header["fitted"]:
        reader["fitted"] = header["fitted"]
    tile = first.parts.tile
    by_tile = recipe.series is not None and recipe.series.by == "tile" and tile is not None
    return Source(
        source_id=source_id,
        group_id=ground_group(header["ground"], recipe.grouping_m, source_id),
        domain="geotiff",
        uri=first.parts.uri,
        files=files,
        grid=grid_of(header),
        channels=tuple(channels),
        units=first.parts.units if recipe.units == "dn" else recipe.units,
        dtype=np.result_type(*(scene.dtype for scene in stack)).name,
        acquired_at=first.parts.acquired_at,
        attributes=_attributes(stack),
        keys={"path": (relative(first.parts.path, root),), "scene": (str(tile) if by_tile else first.parts.name,)},
        bytes=sum(record.size for record in records.values()),
        notes=_notes(stack),
        reader=reader,
    )


def _invalid(scene: Scene, place: int) -> tuple[int, ...]:
    """Give the values that are no measurement: of bands, not of the file that says where clouds are."""
    return () if scene.quality is not None and scene.quality[0] == place else scene.parts.invalid


def _attributes(stack: Sequence[Scene]) -> dict[str, Attribute]:
    """Give the subgroup columns: of several dates those that all of them share, and how many dates there are."""
    found = [
        {
            **subgroups(scene.header, scene.parts.acquired_at),
            **{name: value for name, value in scene.parts.attributes.items() if value is not None},
        }
        for scene in stack
    ]
    if len(found) == 1:
        return found[0]
    shared = {name: value for name, value in found[0].items() if all(item.get(name) == value for item in found)}
    return {**shared, "dates": str(len(found))}


def _notes(stack: Sequence[Scene]) -> tuple[str, ...]:
    notes: list[str] = []
    for scene in stack:
        for member in scene.members:
            header: Mapping[str, Any] = member.record.header
            notes += header["notes"]
            notes += ["SCALED"] * any(header["scaled"][number - 1] for number in member.numbers)
            notes += ["MASK_FILE"] * (member.mask is not None)
            notes += ["BANDS_RESAMPLED"] * (member.coarser > 1 or member.finer > 1)
        notes += scene.parts.notes
    return tuple(dict.fromkeys(notes))
