"""From headers to sources: one scene, one source, or one series; the configuration chooses bands and ground blocks."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from vitpipe.config import GeotiffSource
from vitpipe.digest import digest_of_digests
from vitpipe.domains.base import ScanContext
from vitpipe.domains.geotiff import patterns
from vitpipe.domains.geotiff.facts import grid_of, ground_group, relative, stated_of, subgroups
from vitpipe.domains.geotiff.joining import join_scenes
from vitpipe.domains.geotiff.parts import BandFile, SceneParts
from vitpipe.domains.geotiff.products import landsat, sentinel2
from vitpipe.domains.geotiff.products.bands import Spectrum, choose
from vitpipe.errors import ConfigError
from vitpipe.records import FileRecord, Json, Rejected, Source


@dataclass(frozen=True, slots=True)
class _Bands:
    numbers: tuple[int, ...]
    """From 1, in the order of the channels."""
    names: tuple[str, ...]
    alpha: tuple[int, ...]
    """Bands that only say which pixels are there, and that are not among `numbers`."""


def assemble_scenes(records: Sequence[FileRecord], context: ScanContext) -> Iterator[Source | Rejected]:
    """Make a source of every scene, in the order of paths: of products first, then of single files.

    Raises:
        ConfigError: the configuration is not one of GeoTIFF scenes.
    """
    recipe = context.recipe
    if not isinstance(recipe, GeotiffSource):
        raise ConfigError(f"GeoTIFF scenes need `source: {{kind: geotiff, ...}}`, found kind `{recipe.kind}`")
    ordered = sorted(records, key=lambda record: record.path)
    scenes = {record.path for record in ordered if record.header["kind"] == "scene"}
    masks: dict[str, FileRecord] = {}
    rest: list[FileRecord] = []
    for record in ordered:
        if record.header["kind"] != "mask":
            rest.append(record)
        elif (masked := record.path.removesuffix(Path(record.path).suffix)) in scenes:
            masks[masked] = record
        else:
            yield Rejected(record.path, "SIDECAR", "a mask of a scene that is not here", junk=True)
    quality, rest = _cloud_masks(rest, recipe)
    parts, rejected, rest = _of_many_files(rest, recipe, context.root)
    if recipe.series is not None or recipe.clouds == "drop":
        parts += [_single_file(record) for record in rest]
        rest = []
    parts = [item if item.quality else replace(item, quality=quality.get(_folder(item), ())) for item in parts]
    yield from rejected
    used = {record.path for item in parts for record, _ in item.quality}
    for record in (record for found in quality.values() for record, _ in found if record.path not in used):
        yield Rejected(record.path, "PRODUCT_FILE", "it says where clouds are of a scene that is not here", junk=True)
    singles = (_scene_source(record, masks.get(record.path), recipe, context.root) for record in rest)
    yield from _of_one_meaning(itertools.chain(join_scenes(parts, masks, recipe, context.root), singles), recipe)


def _cloud_masks(
    records: Sequence[FileRecord], recipe: GeotiffSource
) -> tuple[dict[str | None, tuple[tuple[FileRecord, str], ...]], list[FileRecord]]:
    """Take out the files that say where clouds are, by the STAC item beside them; gives these by folder, and the rest.

    Where clouds are kept they are bands as any other.
    """
    if recipe.clouds == "keep":
        return {}, list(records)
    found: dict[str | None, tuple[tuple[FileRecord, str], ...]] = {}
    rest = []
    for record in records:
        kind = record.header.get("quality")
        if kind is None:
            rest.append(record)
        else:
            folder = str(PurePosixPath(record.path).parent)
            found[folder] = (*found.get(folder, ()), (record, str(kind)))
    return found, rest


def _folder(parts: SceneParts) -> str | None:
    """Give the folder of the item that describes a scene; None where none does: its clouds are not its neighbour's."""
    record = parts.bands[0].record
    return str(PurePosixPath(record.path).parent) if "alone" in record.header else None


def _of_one_meaning(found: Iterable[Source | Rejected], recipe: GeotiffSource) -> Iterator[Source | Rejected]:
    """Refuse numbers as stored where other scenes are scaled, although `source.units` gives both one name."""
    if recipe.units == "dn":
        yield from found
        return
    everything = list(found)
    scaled = next((item for item in everything if isinstance(item, Source) and _is_scaled(item)), None)
    for item in everything:
        if scaled is None or isinstance(item, Rejected) or np.dtype(item.dtype).kind == "f":
            yield item
            continue
        reason = (
            f"it holds integers without a scale, while {Path(scaled.uri).name} is scaled to `source.units: "
            f"{recipe.units}`; state its scale and offset in its tags, or leave one kind out"
        )
        yield from (Rejected(path, "UNITS_DIFFER", reason) for path in item.files)


def _is_scaled(source: Source) -> bool:
    reader: Any = source.reader
    return "SCALED" in source.notes or any(item[2:] != [1, 0] for item in reader.get("channels", ()))


def _of_many_files(
    records: Sequence[FileRecord], recipe: GeotiffSource, root: Path
) -> tuple[list[SceneParts], list[Rejected], list[FileRecord]]:
    """Take out the files that are scenes together; gives these, rejections, and the other files."""
    if recipe.scenes is not None:
        return *patterns.collect(records, recipe.scenes.pattern, root), []
    alone = [record for record in records if record.header.get("alone")]
    parts, rejected, rest = sentinel2.collect([record for record in records if not record.header.get("alone")])
    found, refused, rest = landsat.collect(rest)
    stray = [record for record in rest if record.header["kind"] == "metadata"]
    reason = "metadata of a product whose bands are not here"
    rejected += [*refused, *(Rejected(record.path, "PRODUCT_FILE", reason, junk=True) for record in stray)]
    rest = [record for record in rest if record.header["kind"] != "metadata"]
    return parts + found, rejected, sorted([*rest, *alone], key=lambda record: record.path)


def _single_file(record: FileRecord) -> SceneParts:
    """Take a file that is a whole scene for the parts of one, where scenes are joined or masked."""
    header: Mapping[str, Any] = record.header
    numbers = [number for number in range(1, len(header["bands"]) + 1) if number not in header["alpha"]]
    spectra = _spectra(header)
    return SceneParts(
        uri=record.path,
        name=Path(record.path).stem,
        path=record.path,
        bands=tuple(BandFile(record, header["bands"][at - 1], at, spectra[at - 1]) for at in numbers),
        units=_units(header, "dn", scaled=any(header["scaled"][at - 1] for at in numbers)),
        acquired_at=header["acquired_at"],
        attributes=header.get("attributes", {}),
    )


def _spectra(header: Mapping[str, Any]) -> list[Spectrum | None]:
    """Give what each band of a file sees, where its tags say so."""
    found = header.get("spectra") or [None] * len(header["bands"])
    return [Spectrum("", *item) if item else None for item in found]


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
    reader |= stated_of(header, bands.numbers)
    return Source(
        source_id=source_id,
        group_id=ground_group(header["ground"], recipe.grouping_m, source_id),
        domain="geotiff",
        uri=record.path,
        files=tuple(member.path for member in members),
        grid=grid_of(header),
        channels=bands.names,
        units=_units(header, recipe.units, scaled=scaled),
        dtype=dtype.name,
        acquired_at=header["acquired_at"],
        attributes=subgroups(header, header["acquired_at"]),
        keys={"path": (relative(record.path, root),), "scene": (Path(record.path).stem,)},
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
    known = list(zip(names, _spectra(header), strict=True))
    places = [choose(name, known) for name in wanted]
    missing = [name for name, place in zip(wanted, places, strict=True) if place is None]
    if missing:
        return f"no band {', '.join(missing)}; there are {', '.join(names)}: correct `source.bands`, or name the bands"
    numbers = [place + 1 for place in places if place is not None]
    return _Bands(tuple(numbers), tuple(wanted), tuple(number for number in alpha if number not in numbers))


def _units(header: Mapping[str, Any], units: str, *, scaled: bool) -> str:
    """Digital numbers that were scaled by the file's tags are no digital numbers any more."""
    if scaled and units == "dn":
        return str(header["unit"]) or "scaled"
    return units
