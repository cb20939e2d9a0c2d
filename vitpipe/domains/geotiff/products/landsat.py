"""Landsat Collection 2 products: band files of one name are one scene, and MTL says what their numbers mean.

Level 2 is surface reflectance, ``DN * 0.0000275 - 0.2`` in the whole collection, so bands without an MTL file can be
read too (note ``NO_METADATA``). Level 1 becomes reflectance at the top of the atmosphere by MTL's factors and the sun's
height. DN 0 is fill. Thermal and auxiliary bands are not read: they have other units.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, Final

from vitpipe.domains.geotiff.parts import BandFile, SceneParts
from vitpipe.domains.geotiff.products.bands import LANDSAT
from vitpipe.records import FileRecord, Rejected

_FILE = re.compile(
    r"(?P<scene>(?P<sensor>L[A-Z]\d{2})_(?P<level>L[12])\w{2}_(?P<tile>\d{6})_(?P<day>\d{8})_\d{8}_02_\w{2})_"
    r"(?P<what>\w+)\.(?:TIF|tif|tiff|txt|json)"
)
_LEVEL2_SCALE: Final = (0.0000275, -0.2)
_PAN: Final = "B8"


def collect(records: Sequence[FileRecord]) -> tuple[list[SceneParts], list[Rejected], list[FileRecord]]:
    """Take the files of Landsat Collection 2 scenes out of the indexed files.

    Returns:
        Scenes, rejections, and the records that are of no Landsat product.
    """
    products: dict[tuple[str, str], list[tuple[str, FileRecord]]] = defaultdict(list)
    others: list[FileRecord] = []
    for record in records:
        path = PurePosixPath(record.path)
        match = _FILE.fullmatch(path.name)
        if match is None or match["sensor"] not in LANDSAT or record.header["kind"] == "mask":
            others.append(record)
        else:
            products[str(path.parent), match["scene"]].append((match["what"], record))
    scenes: list[SceneParts] = []
    rejected: list[Rejected] = []
    for (folder, name), members in sorted(products.items()):
        parts, refused = _scene(folder, name, members)
        rejected += refused
        if parts is not None:
            scenes.append(parts)
    return scenes, rejected, others


def _scene(
    folder: str, name: str, members: Sequence[tuple[str, FileRecord]]
) -> tuple[SceneParts | None, list[Rejected]]:
    match = _FILE.fullmatch(f"{name}_B1.TIF")
    assert match is not None
    spectra, surface = LANDSAT[match["sensor"]], match["level"] == "L2"
    prefix = "SR_" if surface else ""
    # Both forms of the metadata say the same; json comes first.
    about = sorted((record for what, record in members if what == "MTL"), key=lambda record: record.path)
    facts: Mapping[str, Any] = about[0].header if about else {}
    rejected: list[Rejected] = []
    bands: list[BandFile] = []
    quality: list[tuple[FileRecord, str]] = []
    for what, record in members:
        band = what.removeprefix(prefix)
        if what == "QA_PIXEL":
            quality.append((record, "qa_pixel"))
        elif what == prefix + band and band in spectra:
            scale, offset = facts.get("scales", {}).get(band, _LEVEL2_SCALE if surface else (None, None))
            if scale is None:
                reason = (
                    f"no reflectance factors of band {band}: level 1 needs the MTL file of {name} beside the bands; "
                    "fetch it"
                )
                return None, [Rejected(item.path, "NO_METADATA", reason) for _, item in members]
            bands.append(BandFile(record, band, 1, spectra[band], scale, offset))
        elif what != "MTL" or record is not about[0]:
            reason = "a file of a Landsat product that holds no band of reflectance; it is not read"
            rejected.append(Rejected(record.path, "PRODUCT_FILE", reason, junk=True))
    day = match["day"]
    parts = SceneParts(
        uri=str(PurePosixPath(folder, name)) if not bands else bands[0].record.path,
        name=name,
        path=str(PurePosixPath(folder, name)),
        bands=tuple(sorted(bands, key=lambda band: int(band.name[1:]))),
        units="reflectance" if surface else "toa_reflectance",
        quality=tuple(quality),
        extra=tuple(about[:1]),
        invalid=(0,),
        acquired_at=facts.get("acquired_at") or f"{day[:4]}-{day[4:6]}-{day[6:]}T00:00:00",
        attributes={
            "platform": facts.get("platform") or f"landsat-{int(match['sensor'][2:])}",
            "product": facts.get("level", match["level"]),
            "cloud_cover": facts.get("cloud_cover"),
            "sun_elevation_deg": facts.get("sun_elevation_deg"),
        },
        tile=match["tile"],
        notes=() if about else ("NO_METADATA",),
    )
    if not bands:
        reason = "a file of a Landsat product whose bands are not here"
        return None, [*rejected, *(Rejected(item.path, "PRODUCT_FILE", reason, junk=True) for item in parts.records)]
    return parts, rejected
