"""What is fetched of an item: its assets by key or by band, their names on the disk, and the item without secrets."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Final
from urllib.parse import urlsplit

from vitpipe.config import StacSource
from vitpipe.config.stac import stac_file_label
from vitpipe.digest import digest
from vitpipe.domains.geotiff.item import bands_of, cloud_mask_kind
from vitpipe.errors import ConfigError, UnreadableSource
from vitpipe.stac.catalog import Found, links
from vitpipe.web.address import resolve, shown

_SUFFIXES: Final = {".tif": "tif", ".tiff": "tif", ".gtif": "tif", ".gtiff": "tif", ".jp2": "jp2"}
_LONGEST_JP2: Final = 4 << 30
"""Bytes of a JPEG 2000 file: a band of a Sentinel-2 granule takes some 150 MB."""
_ODD: Final = re.compile(r"[^A-Za-z0-9._-]+")
_SIGNED: Final = re.compile(r"\S*\?\S*=\S*")
_LONGEST_NAME: Final = 120
_SCALING: Final = ("scale", "offset", "raster:scale", "raster:offset")


@dataclass(frozen=True, slots=True)
class WantedFile:
    """One asset, and the file that it becomes."""

    name: str
    """Below the folder of its scene."""
    key: str
    address: str = field(repr=False)
    """May be signed: never told, never kept."""
    size: int | None
    checksum: str | None
    """Multihash in hexadecimal (STAC, file extension)."""
    longest: int | None = None
    """The most bytes that it may have; None: as many as there are."""

    @property
    def identity(self) -> str:
        """What must stay for the file to be the same one: not the signature of its address, which changes."""
        return digest([shown(self.address), self.size, self.checksum])


@dataclass(frozen=True, slots=True)
class WantedScene:
    """One item, and the folder that it becomes."""

    name: str
    files: tuple[WantedFile, ...]
    item: Mapping[str, Any]
    """A STAC item whose assets are the files beside it; no signed address, and no link but that to itself."""
    updated: str
    """When the catalog says that it was changed; empty where it says nothing."""


def scene_names(found: Sequence[Found]) -> list[str]:
    """Name the folders of items: their identifiers, with a digest where these are odd, long or not unique."""
    ids = [str(entry.item["id"]) for entry in found]
    plain = [_ODD.sub("-", name).lstrip(".")[:_LONGEST_NAME] for name in ids]
    counts = Counter(plain)
    result = []
    for entry, name, given in zip(found, plain, ids, strict=True):
        if name and name == given and counts[name] == 1:
            result.append(name)
        else:
            result.append(f"{name or 'item'}-{digest([entry.item.get('collection'), given])[:8]}")
    return result


def choose(found: Found, name: str, source: StacSource) -> WantedScene:
    """Choose the files of an item.

    Args:
        found: the item, and where its references start.
        name: of its folder.
        source: names the assets.

    Raises:
        ConfigError: no assets are named, and the item has several GeoTIFFs.
        UnreadableSource: ``MISSING_ASSET``, ``AMBIGUOUS_ASSET``, ``NOT_GEOTIFF``, ``NO_CLOUD_MASK``,
            ``ADDRESS_REFUSED``, ``BAD_ITEM``: the item lacks what is named, or cannot be used.
    """
    try:
        wanted = _choose(found, name, source)
        json.dumps(wanted.item, ensure_ascii=False).encode()
    except RecursionError:
        raise UnreadableSource("BAD_ITEM", "the item nests values too deep to be read", name) from None
    except UnicodeError:
        raise UnreadableSource("BAD_ITEM", "the item holds text that is no Unicode", name) from None
    return wanted


def _choose(found: Found, name: str, source: StacSource) -> WantedScene:
    assets = {key: asset for key, asset in found.item["assets"].items() if isinstance(asset, dict) and "href" in asset}
    masks = _cloud_masks(assets, source, name) if source.clouds == "drop" else {}
    bands = {key: asset for key, asset in assets.items() if key not in masks}
    chosen = {label: _find(assets, label, name, source) for label in source.assets} or _only(bands, name, source)
    if len(set(chosen.values())) < len(chosen):
        shown_pairs = ", ".join(f"{label} is {key}" for label, key in chosen.items())
        reason = f"`source.assets` names one file by two names ({shown_pairs}); name each once"
        raise UnreadableSource("AMBIGUOUS_ASSET", reason, name)
    chosen |= {key: key for key in masks if key not in chosen.values()}
    files = tuple(_wanted(found, name, (label, key), source) for label, key in chosen.items())
    kept = {file.key: _cleaned(assets[file.key]) | {"href": f"./{file.name}"} for file in files}
    for asset in kept.values():
        asset.pop("alternate", None)
    item = {**_cleaned(found.item), "links": _own_link(found), "assets": kept}
    if source.scaling == "none":
        item = _without_scaling(item)
    properties = found.item.get("properties") or {}
    return WantedScene(name, files, item, str(properties.get("updated") or ""))


def _own_link(found: Found) -> list[dict[str, str]]:
    """Give the link to where the item lies, without its secret: what is made of the item names it so."""
    href = next((str(link["href"]) for link in links(found.item, "self")), None)
    try:
        place = None if href is None else shown(resolve(found.base, href))
    except (ConfigError, ValueError):
        place = None
    return [{"rel": "self", "href": place}] if place and place.startswith(("https://", "http://")) else []


def _cloud_masks(assets: Mapping[str, Any], source: StacSource, name: str) -> dict[str, str]:
    """Give the key of the asset that says where clouds are; a GeoTIFF where there is one."""
    formats = _formats(source)
    found = sorted(
        (formats.index(str(_format(asset))), key)
        for key, asset in assets.items()
        if cloud_mask_kind(key) and _format(asset) in formats
    )
    if not found:
        reason = (
            "the item has no asset that says where clouds are (scl of Sentinel-2, qa_pixel of Landsat), which "
            f"`source.clouds: drop` needs; there are {', '.join(sorted(assets))}: set `source.clouds: keep`"
        )
        raise UnreadableSource("NO_CLOUD_MASK", reason, name)
    return {found[0][1]: found[0][1]}


def _formats(source: StacSource) -> tuple[str, ...]:
    """Name the kinds of files that are read, the ones that are preferred first."""
    return ("tif", "jp2") if source.jpeg2000 else ("tif",)


def _find(assets: Mapping[str, Any], label: str, name: str, source: StacSource) -> str:
    """Give the key of the asset that a label names: a key, else the band of that name, alone in its file if it can."""
    if label in assets:
        return label
    formats = _formats(source)
    having = [
        (formats.index(str(_format(asset))), len(bands), key)
        for key, asset in assets.items()
        if _format(asset) in formats and (bands := bands_of(asset)) and _names(bands, label)
    ]
    best = min(having, default=(0, 0, ""))[:2]
    keys = sorted(key for *rank, key in having if tuple(rank) == best)
    if not keys:
        known = ", ".join(f"{key} ({', '.join(_band_names(asset))})" for key, asset in sorted(assets.items()))
        raise UnreadableSource(
            "MISSING_ASSET", f"the item has no asset or band {label}; there are {known}: correct `source.assets`", name
        )
    if len(keys) > 1:
        raise UnreadableSource(
            "AMBIGUOUS_ASSET", f"the assets {', '.join(keys)} all hold band {label}; name one in `source.assets`", name
        )
    return keys[0]


def _names(bands: Sequence[Mapping[str, Any]], label: str) -> bool:
    return any(label in (band["name"], band["common_name"]) for band in bands)


def _band_names(asset: Mapping[str, Any]) -> list[str]:
    return [str(band["name"] or band["common_name"]) for band in bands_of(asset)] or [str(asset.get("type") or "file")]


def geotiffs_of_data(assets: Mapping[str, Any]) -> list[str]:
    """Give the keys of the GeoTIFF assets that are data by their roles; of all GeoTIFFs where no role says so."""
    return _data(assets, "tif")


def _data(assets: Mapping[str, Any], kind: str) -> list[str]:
    files = [key for key, asset in assets.items() if isinstance(asset, dict) and _format(asset) == kind]
    return [key for key in files if "data" in (assets[key].get("roles") or ())] or files


def _only(assets: Mapping[str, Any], name: str, source: StacSource) -> dict[str, str]:
    data = next((found for kind in _formats(source) if (found := _data(assets, kind))), [])
    if not data:
        raise UnreadableSource("MISSING_ASSET", "the item has no GeoTIFF; only GeoTIFF scenes are read", name)
    if len(data) > 1:
        known = ", ".join(f"{key} ({', '.join(_band_names(assets[key]))})" for key in sorted(data))
        raise ConfigError(
            f"item {name} has {len(data)} GeoTIFFs; choose some by key or band in `source.assets`: {known}"
        )
    return {data[0]: data[0]}


def _format(asset: Mapping[str, Any]) -> str | None:
    """Name the kind of a file, ``tif`` or ``jp2``, by its media type, else by its name; None: another one."""
    kind = str(asset.get("type") or "").lower()
    if not kind:
        return _SUFFIXES.get(PurePosixPath(urlsplit(str(asset.get("href", ""))).path).suffix.lower())
    # A reader that knows GeoTIFF reads a COG: both are image/tiff, with parameters.
    return "tif" if "tiff" in kind else "jp2" if "jp2" in kind or "jpeg2000" in kind else None


def _wanted(found: Found, name: str, chosen: tuple[str, str], source: StacSource) -> WantedFile:
    """Name the file of an asset that is chosen by a label, given with its key."""
    label, key = chosen
    asset = found.item["assets"][key]
    kind = _format(asset)
    if kind not in _formats(source):
        remedy = "set `source.jpeg2000: true`, or choose" if kind == "jp2" else "choose"
        reason = (
            f"asset {key} is {asset.get('type') or 'of no known type'}; only GeoTIFF is read: {remedy} another asset"
        )
        raise UnreadableSource("NOT_GEOTIFF", reason, name)
    try:
        address = resolve(found.base, str(asset["href"]))
    except (ConfigError, ValueError):
        raise UnreadableSource("ADDRESS_REFUSED", f"the reference of asset {key} is no address", name) from None
    size, checksum = asset.get("file:size"), asset.get("file:checksum")
    return WantedFile(
        name=f"{name}_{stac_file_label(label)}.{kind}",
        key=key,
        address=address,
        size=size if isinstance(size, int) and not isinstance(size, bool) else None,
        checksum=checksum.lower() if isinstance(checksum, str) else None,
        longest=_LONGEST_JP2 if kind == "jp2" else None,
    )


def _cleaned(value: Any) -> Any:  # noqa: ANN401 - whatever JSON holds
    """Take the query from every address in a document: a signature lets its reader in."""
    if isinstance(value, dict):
        return {key: _cleaned(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_cleaned(entry) for entry in value]
    # A reference may be relative, too.
    return shown(value) if isinstance(value, str) and ("://" in value or _SIGNED.fullmatch(value)) else value


def _without_scaling(value: Any) -> Any:  # noqa: ANN401 - whatever JSON holds
    if isinstance(value, dict):
        return {key: _without_scaling(entry) for key, entry in value.items() if key not in _SCALING}
    return [_without_scaling(entry) for entry in value] if isinstance(value, list) else value
