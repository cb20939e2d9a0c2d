"""Folders of one-band GeoTIFFs: the configuration says how a file's name gives its scene, its band and its date."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from datetime import date
from pathlib import Path, PurePosixPath
from typing import Any, Final

from vitpipe.domains.geotiff.parts import BandFile, SceneParts
from vitpipe.records import FileRecord, Rejected

_TOKEN = re.compile(r"\{(\w+)\}|(\*)|([^{*]+|\{)")
# What a field may stand for: shortest first, so that the band is what follows the last separator.
_FIELDS: Final = {"scene": r"[^/]+", "band": r"[^/_]+", "date": r"\d{4}-?\d{2}-?\d{2}"}


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Turn ``{scene}_{band}.tif`` into a regular expression; one that begins with ``^`` is one already.

    A band holds no underscore: ``{scene}_{band}.tif`` of ``a_b_B04.tif`` is the scene ``a_b`` and the band ``B04``.
    """
    if pattern.startswith("^"):
        return re.compile(pattern)
    parts = []
    for name, star, text in _TOKEN.findall(pattern):
        parts.append(f"(?P<{name}>{_FIELDS[name]})" if name else r"[^/]*" if star else re.escape(text))
    return re.compile("".join(parts))


def collect(records: Sequence[FileRecord], pattern: str, root: Path) -> tuple[list[SceneParts], list[Rejected]]:
    """Group the indexed files into scenes by their names.

    Args:
        records: all of them; what the pattern does not match is rejected as `UNMATCHED`, so that none is passed over.
        pattern: with a slash it is matched with the path below `root`, else with the file's name; scenes of two folders
            are two scenes.
        root: the folder of the source.
    """
    expression = compile_pattern(pattern)
    below = "/" in pattern
    groups: dict[tuple[str, str], list[tuple[re.Match[str], FileRecord]]] = defaultdict(list)
    rejected: list[Rejected] = []
    for record in records:
        if record.header["kind"] != "scene":
            rejected.append(Rejected(record.path, "PRODUCT_FILE", "no band of a scene; it is not read", junk=True))
            continue
        path = PurePosixPath(record.path)
        inside = path.relative_to(root.as_posix()) if path.is_relative_to(root.as_posix()) else PurePosixPath(path.name)
        match = expression.fullmatch(inside.as_posix() if below else path.name)
        if match is None:
            reason = (
                f"its name does not fit `source.scenes.pattern: {pattern}`; widen the pattern, or move the file away"
            )
            rejected.append(Rejected(record.path, "UNMATCHED", reason))
        else:
            groups["" if below else str(path.parent), match["scene"]].append((match, record))
    scenes = []
    for (folder, name), members in sorted(groups.items()):
        found = _scene(folder or root.as_posix(), name, members)
        if isinstance(found, SceneParts):
            scenes.append(found)
        else:
            rejected += [Rejected(record.path, *found) for _, record in members]
    return scenes, rejected


def _scene(folder: str, name: str, members: Sequence[tuple[re.Match[str], FileRecord]]) -> SceneParts | tuple[str, str]:
    """Make one scene, or give code and reason."""
    bands: dict[str, BandFile] = {}
    days = set()
    units = set()
    for match, record in members:
        header: dict[str, Any] = dict(record.header)
        file = PurePosixPath(record.path).name
        if len(header["bands"]) != 1:
            return "NOT_ONE_BAND", (
                f"{file} of scene {name} holds {len(header['bands'])} bands, where `source.scenes` needs one a file; "
                "leave `source.scenes` out for files that are whole scenes"
            )
        if match["band"] in bands:
            first = PurePosixPath(bands[match["band"]].record.path).name
            return "DUPLICATE_BAND", f"band {match['band']} of scene {name} lies in {first} and in {file}; remove one"
        bands[match["band"]] = BandFile(record, match["band"])
        units.add(header["unit"] if header["scaled"][0] else "")
        if "date" in match.re.groupindex and match["date"]:
            day = _day(match["date"])
            if day is None:
                return "BAD_DATE", f"the name of {file} has no date in {match['date']!r}; write 2021-07-08 or 20210708"
            days.add(day)
        elif header["acquired_at"]:
            days.add(header["acquired_at"])
    if len(days) > 1:
        return "BAD_DATE", f"the files of scene {name} say {len(days)} times, such as {min(days)} and {max(days)}"
    if len(units) > 1:
        return (
            "UNITS_DIFFER",
            f"the files of scene {name} have different units by their tags: {', '.join(sorted(units))}",
        )
    ordered = tuple(bands[band] for band in sorted(bands))
    return SceneParts(
        uri=ordered[0].record.path,
        name=name,
        path=str(PurePosixPath(folder, name)),
        bands=ordered,
        units=units.pop() or _meaning(ordered),
        acquired_at=days.pop() if days else None,
        attributes=ordered[0].header.get("attributes", {}),
    )


def _meaning(bands: Sequence[BandFile]) -> str:
    """Name what values mean whose unit is not stated: scenes that are scaled in other bands mean something else."""
    scaled = [band.name for band in bands if band.header["scaled"][0]]
    if len(scaled) in (0, len(bands)):
        return "scaled" if scaled else "dn"
    return f"dn, but scaled in {', '.join(scaled)}"


def _day(text: str) -> str | None:
    try:
        return f"{date.fromisoformat(text).isoformat()}T00:00:00"
    except ValueError:
        return None
