"""Metadata files of products: read once by the index, into the few facts that a scene needs."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

# expat is safe here: a document type, in which alone entities are declared, is refused where it begins.
from xml.parsers import expat

from vitpipe.domains.geotiff.products.bands import SENTINEL2
from vitpipe.records import Json, Rejected

MOST_BYTES: Final = 32 << 20
_PRODUCT = re.compile(r"(MTD_MSIL(1C|2A)|S2[A-Z]_\w{4}_MTD_SAFL(1C|2A)_.*)\.xml")
_GRANULE = re.compile(r"(MTD_TL|S2[A-Z]_\w{4}_MTD_L(1C|2A)_TL_.*)\.xml")
_MTL = re.compile(r"L[A-Z]\d{2}_L[12]\w{2}_\d{6}_\d{8}_\d{8}_02_\w{2}_MTL\.(txt|json)")


class BadMetadata(ValueError):
    """The file does not say what a product's metadata must say."""


def is_metadata(name: str) -> bool:
    """Tell by its name whether a file is the metadata of a known product."""
    return any(pattern.fullmatch(name) for pattern in (_PRODUCT, _GRANULE, _MTL))


def read_metadata(path: Path) -> Mapping[str, Json] | Rejected:
    """Read a metadata file that :func:`is_metadata` knows.

    Returns:
        ``kind`` "metadata", ``product`` ("sentinel2", "sentinel2-granule" or "landsat"), and its facts; a rejection
        `BAD_METADATA` where they are missing.

    Raises:
        OSError: the file cannot be read.
    """
    if path.stat().st_size > MOST_BYTES:
        return _unusable(path, f"it has more than {MOST_BYTES >> 20} MiB")
    return parse_metadata(path, path.read_bytes())


def parse_metadata(path: Path, content: bytes) -> Mapping[str, Json] | Rejected:
    """Give what the bytes of a metadata file say; see :func:`read_metadata`."""
    reader: Callable[[bytes], dict[str, Json]] = _sentinel2_product
    if _GRANULE.fullmatch(path.name):
        reader = _sentinel2_granule
    elif _MTL.fullmatch(path.name):
        reader = _landsat
    try:
        return {"kind": "metadata", **reader(content)}
    except (ValueError, LookupError, TypeError, AttributeError, expat.ExpatError, RecursionError) as error:
        return _unusable(path, f"no {error}" if isinstance(error, KeyError) else str(error))


def _unusable(path: Path, found: str) -> Rejected:
    reason = f"the metadata of a product cannot be used ({found}); fetch the product again"
    return Rejected(str(path), "BAD_METADATA", reason)


# ------------------------------------------------------------------------------------------------------- Sentinel-2


def xml_values(content: bytes) -> list[tuple[str, Mapping[str, str], str]]:
    """List the elements of an XML text that hold text: local name, attributes, text; in the order of their ends.

    Raises:
        BadMetadata: it declares a document type; entities, which could grow without bound or name files, need one.
        xml.parsers.expat.ExpatError: it is not well-formed.
    """
    found: list[tuple[str, Mapping[str, str], str]] = []
    pending: list[tuple[str, Mapping[str, str], list[str]]] = []

    def refuse(*_: object) -> None:
        raise BadMetadata("it declares a document type, which such metadata never does")

    def begin(name: str, attributes: Mapping[str, str]) -> None:
        pending.append((name.rpartition(":")[2], attributes, []))

    def text(data: str) -> None:
        if pending:
            pending[-1][2].append(data)

    def end(_: str) -> None:
        name, attributes, parts = pending.pop()
        value = "".join(parts).strip()
        if value:
            found.append((name, attributes, value))

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler, parser.CharacterDataHandler, parser.EndElementHandler = begin, text, end
    parser.Parse(content, True)  # noqa: FBT003 - expat takes no keyword
    return found


def _sentinel2_product(content: bytes) -> dict[str, Json]:
    elements = xml_values(content)
    plain = {name: value for name, _, value in elements}
    surface = "BOA_QUANTIFICATION_VALUE" in plain or "L2A_BOA_QUANTIFICATION_VALUE" in plain
    quantification = plain.get("BOA_QUANTIFICATION_VALUE", plain.get("L2A_BOA_QUANTIFICATION_VALUE"))
    baseline = plain["PROCESSING_BASELINE"]
    name = "BOA_ADD_OFFSET" if surface else "RADIO_ADD_OFFSET"
    numbers = {int(attributes["band_id"]): _number(value) for tag, attributes, value in elements if tag == name}
    if not set(numbers) <= set(range(len(SENTINEL2))):
        raise BadMetadata(f"{name} of a band that there is not")
    if _number(baseline) >= 4 and not numbers:
        raise BadMetadata(f"no {name}, which processing baseline {baseline} (04.00 and later) must state")
    names = list(SENTINEL2)
    return {
        "product": "sentinel2",
        "level": "L2A" if surface else "L1C",
        "baseline": baseline,
        "quantification": _positive(quantification if quantification is not None else plain["QUANTIFICATION_VALUE"]),
        # In the order of the bands' numbers; a product without offsets has zeros.
        "offsets": {names[number]: value for number, value in sorted(numbers.items())},
        "platform": plain.get("SPACECRAFT_NAME", "").lower() or None,
        "cloud_cover": _maybe(plain.get("Cloud_Coverage_Assessment")),
        "acquired_at": _moment(plain.get("PRODUCT_START_TIME")),
    }


def _sentinel2_granule(content: bytes) -> dict[str, Json]:
    elements = xml_values(content)
    plain: dict[str, str] = {}
    for name, _, value in elements:
        plain.setdefault(name, value)
    # The mean angle of the sun is the first pair that is no grid; angles of the views follow it.
    zenith = next((value for name, _, value in elements if name == "ZENITH_ANGLE"), None)
    tile = re.search(r"_T(\d{2}[A-Z]{3})", plain["TILE_ID"])
    elevation = _maybe(zenith)
    return {
        "product": "sentinel2-granule",
        "tile": tile[1] if tile else None,
        "sun_elevation_deg": None if elevation is None else round(90 - elevation, 3),
        "acquired_at": _moment(plain.get("SENSING_TIME")),
    }


# ---------------------------------------------------------------------------------------------------------- Landsat


def _landsat(content: bytes) -> dict[str, Json]:
    text = content.decode("utf-8")
    groups = json.loads(text)["LANDSAT_METADATA_FILE"] if text.lstrip().startswith("{") else _mtl_groups(text)
    product, image = groups["PRODUCT_CONTENTS"], groups["IMAGE_ATTRIBUTES"]
    level = str(product["PROCESSING_LEVEL"])
    surface = level.startswith("L2")
    # Both levels stand in the file of a level-2 product, under equal keys.
    scales = groups["LEVEL2_SURFACE_REFLECTANCE_PARAMETERS" if surface else "LEVEL1_RADIOMETRIC_RESCALING"]
    elevation = _maybe(image.get("SUN_ELEVATION"))
    # Level 1 is not corrected for the sun's height: USGS, Landsat 8-9 Data Users Handbook, section 5.
    height = 1.0 if surface else math.sin(math.radians(elevation if elevation is not None else math.nan))
    if not height > 0:
        raise BadMetadata("no SUN_ELEVATION above the horizon, without which level 1 gives no reflectance")
    factors: dict[str, Json] = {}
    for key, value in scales.items():
        match = re.fullmatch(r"REFLECTANCE_MULT_BAND_(\d+)", key)
        if match:
            offset = _number(scales[f"REFLECTANCE_ADD_BAND_{match[1]}"])
            factors[f"B{match[1]}"] = [_positive(value) / height, offset / height]
    cover = _maybe(image.get("CLOUD_COVER"))
    return {
        "product": "landsat",
        "level": level,
        "scales": factors,
        "platform": str(image["SPACECRAFT_ID"]).lower().replace("_", "-"),
        # -1: not known.
        "cloud_cover": cover if cover is not None and cover >= 0 else None,
        "sun_elevation_deg": elevation,
        "acquired_at": _moment(f"{image['DATE_ACQUIRED']}T{str(image.get('SCENE_CENTER_TIME', '00:00:00'))[:8]}"),
    }


def _mtl_groups(text: str) -> dict[str, dict[str, str]]:
    """Read the lines ``KEY = VALUE`` of each innermost ``GROUP``."""
    groups: dict[str, dict[str, str]] = {}
    current: dict[str, str] = {}
    for line in text.splitlines():
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals:
            continue
        if key == "GROUP":
            current = groups.setdefault(value, {})
        elif key != "END_GROUP":
            current[key] = value.strip('"')
    return groups


# ---------------------------------------------------------------------------------------------------------- values


def _number(value: str | float) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise BadMetadata(f"{value} is no finite number")
    return number


def _positive(value: str | float) -> float:
    number = _number(value)
    if number <= 0:
        raise BadMetadata(f"a scale is {value}, which must be more than zero")
    return number


def _maybe(value: str | float | None) -> float | None:
    return None if value is None else _number(value)


def _moment(text: str | None) -> str | None:
    """Give a time as ISO 8601 in UTC, without the zone, to the second."""
    if text is None:
        return None
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is not None:
        moment = moment.astimezone(UTC).replace(tzinfo=None)
    return moment.isoformat(timespec="seconds")
