"""From headers to sources: one scene, one source; the configuration chooses bands and ground blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from vitpipe.config import GeotiffSource
from vitpipe.digest import digest_of_digests
from vitpipe.domains.base import ScanContext
from vitpipe.domains.geotiff.ground import block_names
from vitpipe.errors import ConfigError
from vitpipe.records import Attribute, FileRecord, Grid, Json, Rejected, Source

_SEASONS: Final = ("DJF", "MAM", "JJA", "SON")


@dataclass(frozen=True, slots=True)
class _Bands:
    numbers: tuple[int, ...]
    """From 1, in the order of the channels."""
    names: tuple[str, ...]
    alpha: tuple[int, ...]
    """Bands that only say which pixels are there, and that are not among `numbers`."""


def assemble_scenes(records: Sequence[FileRecord], context: ScanContext) -> Iterator[Source | Rejected]:
    """Make a source of every scene, in the order of paths.

    Raises:
        ConfigError: the configuration is not one of GeoTIFF scenes.
    """
    recipe = context.recipe
    if not isinstance(recipe, GeotiffSource):
        raise ConfigError(f"GeoTIFF scenes need `source: {{kind: geotiff, ...}}`, found kind `{recipe.kind}`")
    ordered = sorted(records, key=lambda record: record.path)
    scenes = {record.path for record in ordered if record.header["kind"] == "scene"}
    masks = {record.path: record for record in ordered if record.header["kind"] == "mask"}
    for record in ordered:
        if record.path in masks:
            if record.path.removesuffix(Path(record.path).suffix) not in scenes:
                yield Rejected(record.path, "SIDECAR", "a mask of a scene that is not here", junk=True)
            continue
        mask = next((masks[name] for name in (record.path + ".msk", record.path + ".MSK") if name in masks), None)
        yield _scene_source(record, mask, recipe, context.root)


def _scene_source(record: FileRecord, mask: FileRecord | None, recipe: GeotiffSource, root: Path) -> Source | Rejected:
    header: Mapping[str, Any] = record.header
    bands = _choose(header, recipe.bands)
    if isinstance(bands, str):
        return Rejected(record.path, "MISSING_BAND", bands)
    if mask is not None:
        reason = _misfit(header, mask)
        if reason:
            return Rejected(record.path, "BAD_MASK_FILE", reason)
    members = (record,) if mask is None else (record, mask)
    source_id = digest_of_digests(member.digest for member in members)
    scaled = any(header["scaled"][number - 1] for number in bands.numbers)
    dtype = np.result_type(*(header["dtypes"][number - 1] for number in bands.numbers))
    if scaled:
        dtype = np.result_type(dtype, np.float32)
    notes = [*header["notes"]]
    notes += ["ALPHA"] * bool(bands.alpha) + ["SCALED"] * scaled + ["MASK_FILE"] * (mask is not None)
    reader: dict[str, Json] = {"bands": list(bands.numbers), "alpha": list(bands.alpha), "block_m": recipe.grouping_m}
    if header["fitted"]:
        reader["fitted"] = header["fitted"]
    return Source(
        source_id=source_id,
        group_id=_group(header["ground"], recipe.grouping_m, source_id),
        domain="geotiff",
        uri=record.path,
        files=tuple(member.path for member in members),
        grid=Grid.from_json(
            {name: header[name] for name in ("height", "width", "transform", "crs")} | {"frames": 1},
        ),
        channels=bands.names,
        units=_units(header, recipe.units, scaled=scaled),
        dtype=dtype.name,
        acquired_at=header["acquired_at"],
        attributes=_attributes(header),
        keys={"path": (_relative(record.path, root),), "scene": (Path(record.path).stem,)},
        bytes=sum(member.size for member in members),
        notes=tuple(notes),
        reader=reader,
    )


def _misfit(header: Mapping[str, Any], mask: FileRecord) -> str:
    """Say why a mask file does not fit its scene: it has the scene's pixels, and one band or as many."""
    found = tuple(mask.header[name] for name in ("height", "width", "count"))
    expected = (header["height"], header["width"], len(header["bands"]))
    if found in (expected, (*expected[:2], 1)):
        return ""
    return (
        f"its mask file {Path(mask.path).name} has height, width, bands {found}, the scene {expected}; correct or "
        "remove the mask file"
    )


def _choose(header: Mapping[str, Any], wanted: tuple[str, ...] | None) -> _Bands | str:
    """Choose the bands; gives a sentence where one is missing."""
    names, alpha = header["bands"], header["alpha"]
    if not wanted:
        numbers = [number for number in range(1, len(names) + 1) if number not in alpha]
        return _Bands(tuple(numbers), tuple(names[number - 1] for number in numbers), tuple(alpha))
    missing = [name for name in wanted if name not in names]
    if missing:
        return f"no band {', '.join(missing)}; there are {', '.join(names)}: correct `source.bands`, or name the bands"
    numbers = [names.index(name) + 1 for name in wanted]
    return _Bands(tuple(numbers), tuple(wanted), tuple(number for number in alpha if number not in numbers))


def _group(ground: Sequence[float] | None, block_m: float, source_id: str) -> str:
    otherwise = scene_group(source_id)
    if ground is None:
        return otherwise
    return block_names(np.array(ground).reshape(2, 1), block_m, otherwise=otherwise)[0]


def scene_group(source_id: str) -> str:
    """Name the group of a scene that lies on no known ground: it is a group by itself."""
    return f"scene-{source_id}"


def _units(header: Mapping[str, Any], units: str, *, scaled: bool) -> str:
    """Digital numbers that were scaled by the file's tags are no digital numbers any more."""
    if scaled and units == "dn":
        return str(header["unit"]) or "scaled"
    return units


def _attributes(header: Mapping[str, Any]) -> dict[str, Attribute]:
    crs = header["crs"]
    attributes: dict[str, Attribute] = {
        "crs": crs if crs is None or crs.startswith("EPSG:") else "other",
        "gsd_m": header["gsd_m"],
    }
    if header["acquired_at"]:
        moment = datetime.fromisoformat(header["acquired_at"])
        attributes |= {
            "year": f"{moment.year:04d}",
            "month": f"{moment.month:02d}",
            "season": _SEASONS[moment.month % 12 // 3],
        }
    return attributes


def _relative(path: str, root: Path) -> str:
    if root.is_file() or not Path(path).is_relative_to(root):
        return Path(path).name
    return Path(path).relative_to(root).as_posix()
