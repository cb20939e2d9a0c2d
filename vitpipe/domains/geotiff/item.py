"""A STAC item beside its scenes: ``item.json`` in the same folder says what their files do not.

Where a file states a scale, an offset, band names or a nodata value of its own, the file's hold, or the two agree: an
item that states another scale is not believed, and neither is the file.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from vitpipe.digest import digest, digest_of_digests
from vitpipe.errors import TransientError
from vitpipe.opening import ITEM_NAME
from vitpipe.records import FileRecord, Json, Rejected
from vitpipe.web.address import shown

_LONGEST: Final = 16 << 20
_ATTRIBUTES: Final = {
    "platform": "platform",
    "eo:cloud_cover": "cloud_cover",
    "view:sun_elevation": "sun_elevation",
    "processing:level": "processing_level",
    "s2:processing_baseline": "processing_baseline",
    "processing:version": "processing_baseline",
}
"""Properties of an item that become columns of subgroups; the last one that is stated wins."""
_OFFSET_APPLIED: Final = ("earthsearch:boa_offset_applied", "sentinel:boa_offset_applied")
"""Says that the pixels hold the offset already; the offset stays stated, and would be taken away twice."""
_OF_ALL_BANDS: Final = ("raster:scale", "raster:offset", "nodata", "unit")
_CLOUD_MASKS: Final = ((re.compile(r"scl(_\d+m)?(-jp2)?", re.I), "scl"), (re.compile(r"qa_pixel", re.I), "qa_pixel"))
"""Keys of assets that say what each pixel shows, and of which kind these are: Sentinel-2's SCL, Landsat's QA_PIXEL."""
_UNNAMED: Final = re.compile(r"b\d+")
_SAME: Final = 1e-9


def bands_of(asset: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Give what an asset states of each band, in the order of the file.

    STAC 1.1 has one list ``bands``; before that ``eo:bands`` names them and ``raster:bands`` says how they are stored.

    Args:
        asset: of an item.

    Returns:
        Dictionaries with `name, common_name, scale, offset, nodata, unit, centre_um, width_um`, each None where it
        is not stated.
    """
    lists = [_dictionaries(asset.get(name)) for name in ("raster:bands", "eo:bands", "bands")]
    result = []
    for place in range(max(map(len, lists))):
        # What holds for all bands may stand once, above them.
        merged = {name: asset[name] for name in _OF_ALL_BANDS if name in asset}
        for listed in lists:
            merged |= listed[place] if place < len(listed) else {}
        result.append(_band(merged))
    return result


def cloud_mask_kind(key: str) -> str | None:
    """Name the kind of an asset that says where clouds are, by its key: ``scl`` or ``qa_pixel``; None of others."""
    return next((kind for pattern, kind in _CLOUD_MASKS if pattern.fullmatch(key)), None)


def _band(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": _first(values, "name"),
        "common_name": _first(values, "eo:common_name", "common_name"),
        "scale": _first(values, "raster:scale", "scale"),
        "offset": _first(values, "raster:offset", "offset"),
        "nodata": _first(values, "nodata"),
        "unit": _first(values, "unit"),
        "centre_um": _first(values, "eo:center_wavelength", "center_wavelength"),
        "width_um": _first(values, "eo:full_width_half_max", "full_width_half_max"),
    }


def _first(values: Mapping[str, Any], *names: str) -> Any:  # noqa: ANN401 - whatever JSON holds
    return next((values[name] for name in names if values.get(name) is not None), None)


def _dictionaries(value: object) -> list[dict[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def read_item(path: Path) -> Mapping[str, Json] | Rejected:
    """Look at an ``item.json``.

    Returns:
        A header of kind "item": `files` (file name to what is stated of its bands), `acquired_at`, `attributes`.

    Raises:
        TransientError: the store does not answer.
    """
    uri = str(path)
    not_one = Rejected(uri, "NOT_GEOTIFF", "found no STAC item; only GeoTIFF files are scenes", junk=True)
    try:
        if path.stat().st_size > _LONGEST:
            return not_one
        # NaN is no JSON, but Python writes it: it states nothing.
        item = json.loads(path.read_bytes(), parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return not_one
    except PermissionError:
        return Rejected(uri, "UNREADABLE_FILE", "the file cannot be opened; check that it may be read")
    except OSError as error:
        raise TransientError(f"{uri} cannot be read now: {error.strerror}") from error
    if not isinstance(item, dict) or item.get("type") != "Feature" or not isinstance(item.get("assets"), dict):
        return not_one
    stated = item.get("properties")
    properties: dict[str, Any] = stated if isinstance(stated, dict) else {}
    applied = any(properties.get(name) is True for name in _OFFSET_APPLIED)
    files: dict[str, Json] = {}
    for key, asset in item["assets"].items():
        name = str(asset.get("href", "")).removeprefix("./") if isinstance(asset, dict) else ""
        if name and "/" not in name:
            kind = cloud_mask_kind(key)
            files[name] = {**_stated(asset, applied=applied), **({"quality": kind} if kind else {})}
    attributes: dict[str, Json] = {}
    for name, column in _ATTRIBUTES.items():
        value = properties.get(name)
        stated_value = value if isinstance(value, str) else _number(value, None)
        if stated_value is not None:
            attributes[column] = stated_value
    if isinstance(item.get("collection"), str):
        attributes["collection"] = item["collection"]
    return {"kind": "item", "files": files, "acquired_at": _moment(properties), "attributes": attributes}


def _stated(asset: Mapping[str, Any], *, applied: bool) -> dict[str, Json]:
    listed = bands_of(asset)
    # STAC 1.1: an asset may state for all its bands what it does not list.
    bands = listed or [_band({name: asset[name] for name in _OF_ALL_BANDS if name in asset})]
    names = [str(band["name"] or band["common_name"] or "") for band in bands]
    scales: list[Json] = [_scale(band, applied=applied) for band in bands]
    units = {str(band["unit"] or "") for band in bands}
    return {
        "listed": bool(listed),
        "names": list(names) if all(names) and len(set(names)) == len(names) else [],
        "scales": scales,
        "nodata": [_number(band["nodata"], None) for band in bands],
        "unit": units.pop() if len(units) == 1 else "",
        "spectra": [_range_nm(band["centre_um"], band["width_um"]) for band in bands],
        "offset_applied": applied and any(_number(band["offset"], 0.0) != 0 for band in bands),
    }


def _scale(band: Mapping[str, Any], *, applied: bool) -> list[Json]:
    """Give scale and offset; a scale of zero, which is refused, where one of them is stated but is no finite number."""
    if any(band[name] is not None and _number(band[name], None) is None for name in ("scale", "offset")):
        return [0.0, 0.0]
    return [_number(band["scale"], 1.0), 0.0 if applied else _number(band["offset"], 0.0)]


def _number(value: object, otherwise: float | None) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return otherwise
    try:
        number = float(value)
    except OverflowError:
        return otherwise
    return number if math.isfinite(number) else otherwise


def _range_nm(centre_um: object, width_um: object) -> Json:
    """Give centre, lower and upper wavelength in nm, as the index holds them; None where the item does not say both."""
    centre, width = _number(centre_um, None), _number(width_um, None)
    if not centre or not width or centre < 0 or width < 0:
        return None
    return [round(1000 * value, 4) for value in (centre, centre - width / 2, centre + width / 2)]


def _moment(properties: Mapping[str, Any]) -> str | None:
    for name in ("datetime", "start_datetime"):
        try:
            return datetime.fromisoformat(properties[name]).isoformat()
        except (KeyError, TypeError, ValueError):
            continue
    return None


def address_of_item(file: Path) -> str | None:
    """Give the address of the STAC item that describes a file, by the one beside it; None where none says so.

    What is made of it is handed on: it holds no signature and no credentials.
    """
    try:
        item = json.loads(file.with_name(ITEM_NAME).read_bytes())
        found = [link["href"] for link in item["links"] if link["rel"] == "self"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return shown(found[0]) if found and isinstance(found[0], str) and "://" in found[0] else None


def apply_items(records: Sequence[FileRecord]) -> Iterator[FileRecord | Rejected]:
    """Add what items state to the headers of the scenes beside them; items themselves become junk of the table.

    The digest of a scene whose pixel values change by it takes in what is stated: other values are another source.

    Args:
        records: of one source folder, in any order.

    Returns:
        The other records, and rejections; ``SCALE_CONFLICT`` where file and item state different scales or offsets.
    """
    items = {str(Path(record.path).parent): record for record in records if record.header["kind"] == "item"}
    for record in records:
        path = Path(record.path)
        if record.header["kind"] == "item":
            yield Rejected(record.path, "STAC_ITEM", "the metadata of the scenes beside it; they are used", junk=True)
            continue
        item = items.get(str(path.parent))
        header: Any = item.header if item else {}
        if record.header["kind"] != "scene" or path.name not in header.get("files", {}):
            yield record
            continue
        yield _described(record, header, header["files"][path.name])


def _described(record: FileRecord, item: Mapping[str, Any], stated: Mapping[str, Any]) -> FileRecord | Rejected:
    header: dict[str, Any] = dict(record.header)
    count = len(header["bands"])
    header |= {"acquired_at": item["acquired_at"] or header["acquired_at"], "attributes": dict(item["attributes"])}
    # Products are told by the names of their files; an item that describes one file alone says itself what that is.
    header["alone"] = sum("quality" not in other for other in item["files"].values()) == 1
    if "quality" in stated:
        header["quality"] = stated["quality"]
    fitted = _of_each_band(stated, count, header["alpha"])
    if fitted is None:
        # It speaks of other bands than the file has.
        if any(pair != [1.0, 0.0] for pair in stated["scales"]) or any(value is not None for value in stated["nodata"]):
            header["notes"] = [*header["notes"], "ITEM_BANDS_DIFFER"]
        return dataclasses.replace(record, header=header)
    stated = fitted
    if stated["names"] and all(_UNNAMED.fullmatch(name) for name in header["bands"]):
        header["bands"] = list(stated["names"])
    if any(stated["spectra"]) and "spectra" not in header:
        header["spectra"] = list(stated["spectra"])
    if any(scale == 0 for scale, _ in stated["scales"]):
        reason = (
            "its STAC item states a scale of zero, or a scale or offset that is no number; correct it, or set "
            "`source.scaling: none`"
        )
        return Rejected(record.path, "BAD_SCALE", reason)
    own = header.get("scales") or [[1.0, 0.0]] * count
    scales = []
    for mine, theirs in zip(own, stated["scales"], strict=True):
        plain = list(mine) == [1.0, 0.0]
        if not plain and theirs != [1.0, 0.0] and not _same(mine, theirs):
            reason = (
                f"its tags state scale and offset {mine[0]:g}, {mine[1]:g}, its STAC item {theirs[0]:g}, {theirs[1]:g};"
                " find out which holds, and set `source.scaling: none` where the item is wrong"
            )
            return Rejected(record.path, "SCALE_CONFLICT", reason)
        scales.append(theirs if plain else list(mine))
    values = {"scales": scales, "nodata": stated["nodata"]}
    if scales != [list(pair) for pair in own] or any(value is not None for value in stated["nodata"]):
        header["stated"] = values
        header["scaled"] = [pair != [1.0, 0.0] for pair in scales]
        record = dataclasses.replace(record, digest=digest_of_digests((record.digest, digest(values))))
    header["unit"] = header["unit"] or stated["unit"]
    if stated["offset_applied"]:
        header["notes"] = [*header["notes"], "OFFSET_APPLIED"]
    return dataclasses.replace(record, header=header)


def _of_each_band(stated: Mapping[str, Any], count: int, alpha: Sequence[int]) -> Mapping[str, Any] | None:
    """Give what is stated, one a band of the file; items seldom count its alpha. None where the numbers differ."""
    plain: dict[str, Any] = {"scales": [1.0, 0.0], "nodata": None, "spectra": None}
    if not stated["listed"]:
        return {**stated, **{name: [stated[name][0]] * count for name in plain}}
    if len(stated["scales"]) == count:
        return stated
    if len(stated["scales"]) != count - len(alpha):
        return None
    spread: dict[str, Any] = {}
    for name, otherwise in plain.items():
        values = iter(stated[name])
        spread[name] = [otherwise if number in alpha else next(values) for number in range(1, count + 1)]
    names = iter(stated["names"] or ())
    spread["names"] = [
        f"b{number}" if number in alpha else next(names) for number in range(1, count + 1) if stated["names"]
    ]
    return {**stated, **spread}


def _same(first: Sequence[float], second: Sequence[float]) -> bool:
    return all(math.isclose(a, b, rel_tol=_SAME, abs_tol=1e-12) for a, b in zip(first, second, strict=True))
