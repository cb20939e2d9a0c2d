"""Sentinel-2 products (SAFE folders, levels 1C and 2A): which files are one scene, and what their numbers mean.

Reflectance is ``(DN + offset) / quantification``; the offset is -1000 from processing baseline 04.00 on and 0 before
(MTD_MSIL*.xml: BOA_ADD_OFFSET, RADIO_ADD_OFFSET). DN 0 is no data, 65535 saturated.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import PurePath, PurePosixPath
from typing import Any, Final

from vitpipe.domains.geotiff.parts import BandFile, SceneParts
from vitpipe.domains.geotiff.products.bands import SENTINEL2
from vitpipe.records import FileRecord, Rejected

_FILE = re.compile(r".*_(B0[1-9]|B8A|B1[0-2]|SCL)(?:_(?:10|20|60)m)?\.(?:jp2|tiff?|jp2\.tiff?)", re.IGNORECASE)
_OWN_NAME = re.compile(r"T\d{2}[A-Z]{3}_|S2[A-Z]_|MSK_|MTD_")
"""How names of a product's files begin: beside a copied MTD file there may lie scenes of any other kind."""
_NOT_PIXELS: Final = ("QI_DATA", "AUX_DATA", "rep_info", "HTML", "preview")
_INVALID: Final = (0, 65535)
UNITS: Final = {"L1C": "toa_reflectance", "L2A": "reflectance"}
"""Reflectance at the top of the atmosphere is another quantity than that of the ground."""


def safe_folder(path: PurePath) -> PurePath | None:
    """Give the SAFE folder above a file, None where there is none."""
    return next((parent for parent in path.parents if parent.name.upper().endswith(".SAFE")), None)


def band_of(path: PurePath) -> str | None:
    """Name the band (or ``SCL``) that a file of a product holds by its name; None for masks, previews and others."""
    match = _FILE.fullmatch(path.name)
    if match is None or any(part in _NOT_PIXELS for part in path.parts):
        return None
    return match[1].upper()


def collect(records: Sequence[FileRecord]) -> tuple[list[SceneParts], list[Rejected], list[FileRecord]]:
    """Take the files of SAFE folders, and of folders that hold a product's MTD file, out of the indexed files.

    Returns:
        Scenes (one a granule), rejections, and the records that are of no Sentinel-2 product.
    """
    roots = {str(PurePosixPath(record.path).parent) for record in records if _is(record, "sentinel2")}
    products: dict[str, list[FileRecord]] = defaultdict(list)
    others: list[FileRecord] = []
    # Files lie in few folders: each folder is asked about once.
    known: dict[str, str | None] = {}
    for record in records:
        folder = record.path.rpartition("/")[0]
        if folder not in known:
            known[folder] = _root_of(PurePosixPath(record.path), roots)
        root = known[folder]
        if root is None or not (_is_safe(root) or _OWN_NAME.match(PurePosixPath(record.path).name)):
            others.append(record)
        else:
            products[root].append(record)
    scenes: list[SceneParts] = []
    rejected: list[Rejected] = []
    for root, members in sorted(products.items()):
        found, refused = _product(root, members)
        scenes += found
        rejected += refused
    return scenes, rejected, others


def _is_safe(folder: str) -> bool:
    return folder.upper().endswith(".SAFE")


def _root_of(path: PurePosixPath, roots: Collection[str]) -> str | None:
    """Give the folder of the product that a file lies in: the nearest with metadata, else the SAFE folder."""
    found = next((parent for parent in path.parents if str(parent) in roots), None) or safe_folder(path)
    return None if found is None else str(found)


def _is(record: FileRecord, product: str) -> bool:
    return record.header.get("product") == product


def _product(root: str, members: Sequence[FileRecord]) -> tuple[list[SceneParts], list[Rejected]]:
    main = [record for record in members if _is(record, "sentinel2")]
    rejected = []
    granules: dict[str, list[FileRecord]] = defaultdict(list)
    about: dict[str, list[FileRecord]] = defaultdict(list)
    for record in members:
        if _is(record, "sentinel2"):
            continue
        granule = _granule(record.path, root)
        if record.header["kind"] == "metadata":
            about[granule].append(record)
        elif record.header["kind"] == "scene" and band_of(PurePosixPath(record.path)) is not None:
            granules[granule].append(record)
        else:
            reason = "a file of a product that holds no band; it is not read"
            rejected.append(Rejected(record.path, "PRODUCT_FILE", reason, junk=True))
    if not granules:
        rejected += [_no_band_here(record) for found in (main, *about.values()) for record in found]
        return [], rejected
    if len(main) != 1:
        reason = (
            f"{len(main)} files MTD_MSIL1C.xml or MTD_MSIL2A.xml that can be read, one is needed: it states the scale "
            "and the offset of the pixels; fetch the product again"
        )
        return [], [*rejected, Rejected(root, "NO_METADATA", reason)]
    scenes = []
    for granule in sorted(granules):
        name = granule if len(granules) > 1 else root
        found = _scene(name, granules[granule], main[0], about.get(granule, []))
        if isinstance(found, Rejected):
            rejected.append(found)
        else:
            scenes.append(found)
    rejected += [_no_band_here(record) for name in sorted(set(about) - set(granules)) for record in about[name]]
    return scenes, rejected


def _no_band_here(record: FileRecord) -> Rejected:
    return Rejected(record.path, "PRODUCT_FILE", "metadata of a product whose bands are not here", junk=True)


def _granule(path: str, root: str) -> str:
    """Name the granule's folder; products of before 2016 hold several, copies of single bands none."""
    below = PurePosixPath(path).relative_to(root).parts
    if "GRANULE" in below[:-2]:
        place = below.index("GRANULE")
        return str(PurePosixPath(root, *below[: place + 2]))
    return root


def _scene(
    uri: str, files: Sequence[FileRecord], main: FileRecord, about: Sequence[FileRecord]
) -> SceneParts | Rejected:
    facts: Mapping[str, Any] = main.header
    granule: Mapping[str, Any] = about[0].header if len(about) == 1 else {}
    bands: list[BandFile] = []
    quality: list[tuple[FileRecord, str]] = []
    seen: set[tuple[str, str]] = set()
    for record in files:
        name = band_of(PurePosixPath(record.path))
        header: Mapping[str, Any] = record.header
        place = (str(name), f"{header['height']}x{header['width']}")
        if place in seen:
            reason = f"band {name} lies in two files of {place[1]} pixels, such as {PurePosixPath(record.path).name}; "
            return Rejected(uri, "DUPLICATE_BAND", reason + "remove one of them")
        seen.add(place)
        if name == "SCL":
            quality.append((record, "scl"))
            continue
        offsets = facts["offsets"]
        if offsets and name not in offsets:
            reason = f"its metadata states offsets, but none of band {name}; fetch the product again"
            return Rejected(uri, "BAD_METADATA", reason)
        scale, offset = 1 / facts["quantification"], offsets.get(name, 0.0) / facts["quantification"]
        bands.append(BandFile(record, str(name), 1, SENTINEL2[str(name)], scale, offset))
    order = list(SENTINEL2)
    return SceneParts(
        uri=uri,
        name=PurePosixPath(uri).name.removesuffix(".SAFE"),
        path=uri,
        bands=tuple(sorted(bands, key=lambda band: (order.index(band.name), band.record.path))),
        units=UNITS[facts["level"]],
        whole_folder=safe_folder(PurePosixPath(files[0].path)) is not None,
        quality=tuple(quality),
        extra=(main, *about),
        invalid=_INVALID,
        acquired_at=granule.get("acquired_at") or facts["acquired_at"],
        attributes={
            "platform": facts["platform"],
            "product": facts["level"],
            "processing_baseline": facts["baseline"],
            "cloud_cover": facts["cloud_cover"],
            "sun_elevation_deg": granule.get("sun_elevation_deg"),
        },
        tile=granule.get("tile") or _tile_of(files[0].path),
    )


def _tile_of(path: str) -> str | None:
    match = re.search(r"T(\d{2}[A-Z]{3})_", PurePosixPath(path).name)
    return match[1] if match else None
