"""From the parts of a scene to one scene: bands chosen, files chosen, and all of them on one grid.

Bands of other resolutions come onto the grid of one band without a VRT and without interpolation: a coarser pixel is
repeated in whole numbers, finer pixels are averaged over the area of one, valid where all of them are. Grids that do
not nest so (another origin, CRS or ratio) are refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

import numpy as np

from vitpipe.config import GeotiffSource
from vitpipe.domains.geotiff.facts import stated_of
from vitpipe.domains.geotiff.parts import BandFile, SceneParts
from vitpipe.domains.geotiff.products.bands import choose, describe
from vitpipe.records import FileRecord, Rejected

_NOT_ASKED_FOR: Final = "pan"
"""A band that is only read where it is named: its grid does not nest with the others."""
_SAME_PX: Final = 0.01


@dataclass(frozen=True, slots=True)
class Member:
    """One file of a scene, and how it comes onto the grid."""

    record: FileRecord
    mask: FileRecord | None
    numbers: tuple[int, ...]
    """Bands of the file, from 1."""
    coarser: int = 1
    """Edge of one of its pixels in pixels of the grid."""
    finer: int = 1
    """Edge of a pixel of the grid in its pixels."""


@dataclass(frozen=True, slots=True)
class Channel:
    """One channel: where it lies, and its physical value ``stored * scale + offset``."""

    name: str
    member: int
    place: int
    """Among the member's bands."""
    scale: float
    offset: float


@dataclass(frozen=True, slots=True)
class Scene:
    """One scene on one grid."""

    parts: SceneParts
    header: Mapping[str, Any]
    """Of the file whose grid it has."""
    members: tuple[Member, ...]
    channels: tuple[Channel, ...]
    quality: tuple[int, str] | None
    """Member and kind."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of a read: a float where values are scaled or averaged."""
        used = {channel.member for channel in self.channels}
        dtypes = [np.dtype(_member_dtype(self.members[place])) for place in sorted(used)]
        changed = any(channel.scale != 1 or channel.offset != 0 for channel in self.channels)
        averaged = any(self.members[place].finer > 1 for place in used)
        return np.result_type(*dtypes, *([np.float32] if changed or averaged else []))

    @property
    def paths(self) -> set[str]:
        """Every file that is read or that says how to read."""
        masks = [member.mask.path for member in self.members if member.mask is not None]
        return {*(member.record.path for member in self.members), *masks, *(item.path for item in self.parts.extra)}


def _member_dtype(member: Member) -> str:
    """Name the dtype of a read of a member's bands: as `GeotiffRaster` gives them."""
    header: Mapping[str, Any] = member.record.header
    dtype = np.result_type(*(header["dtypes"][number - 1] for number in member.numbers))
    scaled = any(header["scaled"][number - 1] for number in member.numbers)
    return str(np.result_type(dtype, np.float32) if scaled else dtype)


def member_json(member: Member, files: Sequence[str], invalid: Sequence[int]) -> dict[str, Any]:
    """Say how a member is opened and brought onto the grid.

    Args:
        member: one file.
        files: those of the source.
        invalid: stored values of it that are no measurement.
    """
    header: Mapping[str, Any] = member.record.header
    paths = [member.record.path] + ([member.mask.path] if member.mask is not None else [])
    alpha = [number for number in header["alpha"] if number not in member.numbers]
    return {
        "files": [files.index(path) for path in paths],
        "height": header["height"],
        "width": header["width"],
        "dtype": _member_dtype(member),
        "bands": list(member.numbers),
        "alpha": alpha,
        "coarser": member.coarser,
        "finer": member.finer,
        "invalid": list(invalid),
        **stated_of(header, member.numbers),
    }


def compose(parts: SceneParts, masks: Mapping[str, FileRecord], recipe: GeotiffSource) -> Scene | list[Rejected]:
    """Choose the bands of a scene and the files that hold them.

    Args:
        parts: the scene.
        masks: mask files by the path of the file whose mask they are.
        recipe: which bands, which grid, which clouds.

    Returns:
        The scene, or why it is not used: ``MISSING_BAND GRIDS_DIFFER NO_CLOUD_MASK PRODUCT_CHANGED BAD_MASK_FILE``; of
        a scene that has a folder for itself one rejection, else one a file.
    """
    try:
        return _compose(parts, masks, recipe)
    except _NotUsable as error:
        if parts.whole_folder:
            return [Rejected(parts.uri, error.code, error.reason)]
        return [Rejected(record.path, error.code, error.reason) for record in parts.records]


class _NotUsable(Exception):
    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


def _compose(parts: SceneParts, masks: Mapping[str, FileRecord], recipe: GeotiffSource) -> Scene:
    by_name: dict[str, list[BandFile]] = {}
    for band in parts.bands:
        by_name.setdefault(band.name, []).append(band)
    for found in by_name.values():
        found.sort(key=lambda band: (-band.header["height"] * band.header["width"], band.record.path))
    plain = [name for name, found in by_name.items() if not _is_pan(found[0])]
    wanted = recipe.bands or plain or list(by_name)
    chosen = [by_name[_resolve(text, by_name, "bands")] for text in wanted]
    if recipe.grid is not None:
        target = by_name[_resolve(recipe.grid, by_name, "grid")][0]
    else:
        target = max((found[0] for found in chosen), key=lambda band: band.header["height"] * band.header["width"])
    header = target.header
    files = [_on_grid_or_finest(found, header) for found in chosen]
    numbers: dict[str, list[BandFile]] = {}
    for band in files:
        numbers.setdefault(band.record.path, []).append(band)
    members: list[Member] = []
    places: dict[tuple[str, int], tuple[int, int]] = {}
    for path, bands in numbers.items():
        used = tuple(dict.fromkeys(band.number for band in bands))
        places |= {(path, number): (len(members), place) for place, number in enumerate(used)}
        members.append(_member(bands[0].record, masks.get(path), used, header))
    channels = tuple(
        Channel(text, *places[band.record.path, band.number], band.scale, band.offset)
        for text, band in zip(wanted, files, strict=True)
    )
    for band in files:
        _check_as_stored(band)
    quality = None
    if recipe.clouds == "drop":
        quality = (len(members), _add_quality(parts, header, members))
    return Scene(parts, header, tuple(members), channels, quality)


def _is_pan(band: BandFile) -> bool:
    return band.spectrum is not None and band.spectrum.common == _NOT_ASKED_FOR


def _resolve(text: str, by_name: Mapping[str, Sequence[BandFile]], key: str) -> str:
    names = [(name, found[0].spectrum) for name, found in by_name.items()]
    place = choose(text, names)
    if place is None:
        reason = f"no band {text}; there are {describe(names)}: correct `source.{key}`, or fetch the band"
        raise _NotUsable("MISSING_BAND", reason)
    return names[place][0]


def _on_grid_or_finest(found: Sequence[BandFile], header: Mapping[str, Any]) -> BandFile:
    """Choose the file of a band: the one that lies on the grid, else the finest."""
    same = [band for band in found if _same_grid(band.header, header)]
    return (same or found)[0]


def _same_grid(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    return all(first[name] == second[name] for name in ("height", "width", "crs", "transform"))


def _check_as_stored(band: BandFile) -> None:
    """Refuse a file of a product that was changed since: its numbers are not those whose scale the product states."""
    if band.scale == 1 and band.offset == 0:
        return
    dtype, scaled = band.header["dtypes"][band.number - 1], band.header["scaled"][band.number - 1]
    if scaled or np.dtype(dtype).kind not in "iu":
        found = "a scale of its own" if scaled else f"dtype {dtype}"
        reason = (
            f"{PurePosixPath(band.record.path).name} has {found}, while the product stores integers and states their "
            "scale: it would be scaled twice; use the file as it was delivered"
        )
        raise _NotUsable("PRODUCT_CHANGED", reason)


def _add_quality(parts: SceneParts, header: Mapping[str, Any], members: list[Member]) -> str:
    if not parts.quality:
        reason = (
            "no file says where clouds are (Sentinel-2's SCL of level 2A, Landsat's QA_PIXEL), which "
            "`source.clouds: drop` needs; fetch it, or set `source.clouds: keep`"
        )
        raise _NotUsable("NO_CLOUD_MASK", reason)
    ordered = sorted(parts.quality, key=lambda item: (-item[0].header["height"], item[0].path))  # type: ignore[operator]
    same = [item for item in ordered if _same_grid(item[0].header, header)]
    record, kind = (same or ordered)[0]
    members.append(_member(record, None, (1,), header))
    return kind


def _member(record: FileRecord, mask: FileRecord | None, numbers: tuple[int, ...], header: Mapping[str, Any]) -> Member:
    own: Mapping[str, Any] = record.header
    if mask is not None and (mask.header["height"], mask.header["width"]) != (own["height"], own["width"]):
        reason = f"its mask file {PurePosixPath(mask.path).name} has other pixels; correct or remove the mask file"
        raise _NotUsable("BAD_MASK_FILE", reason)
    ratio = _nesting(own, header)
    if ratio is None:
        shown = [
            f"{item['width']} x {item['height']} pixels, {item['crs']}, {item['transform']}" for item in (own, header)
        ]
        reason = (
            f"{PurePosixPath(record.path).name} lies on a grid ({shown[0]}) that does not nest with that of the scene "
            f"({shown[1]}): pixels must be repeated or averaged in whole numbers from one corner; choose bands that do "
            "with `source.bands` or `source.grid`, or warp the file"
        )
        raise _NotUsable("GRIDS_DIFFER", reason)
    coarser, finer = ratio
    return Member(record, mask, numbers, coarser, finer)


def _nesting(own: Mapping[str, Any], grid: Mapping[str, Any]) -> tuple[int, int] | None:
    """Tell how the grid of a file nests with another: (coarser, finer), one of them 1; None where it does not."""
    if own["transform"] is None or grid["transform"] is None:
        fits = _same_grid(own, grid) and own["fitted"] == grid["fitted"]
        return (1, 1) if fits else None
    if own["crs"] != grid["crs"]:
        return None
    a, b, c, d, e, f = own["transform"]
    to_a, to_b, to_c, to_d, to_e, to_f = grid["transform"]
    ratio = math.sqrt(abs((a * e - b * d) / (to_a * to_e - to_b * to_d)))
    coarser, finer = (round(ratio), 1) if ratio >= 1 else (1, round(1 / ratio))
    fine, coarse = ((to_a, to_b, to_d, to_e), (a, b, d, e)) if ratio >= 1 else ((a, b, d, e), (to_a, to_b, to_d, to_e))
    step = max(coarser, finer)
    fine_px = max(abs(value) for value in fine)
    size = max(own["height"], own["width"], grid["height"], grid["width"])
    # Neither the corner nor, by the error of the step, the far end may be off by more than a hundredth of a fine pixel.
    if any(abs(large - step * small) * size > _SAME_PX * fine_px for small, large in zip(fine, coarse, strict=True)):
        return None
    if max(abs(c - to_c), abs(f - to_f)) > _SAME_PX * fine_px:
        return None
    sizes = [(own[name], grid[name]) for name in ("height", "width")]
    for mine, whole in sizes:
        expected = (-(-whole // coarser)) if finer == 1 else mine
        if mine != expected or (finer > 1 and -(-mine // finer) != whole):
            return None
    return coarser, finer
