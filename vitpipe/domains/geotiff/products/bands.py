"""Spectral bands of known sensors, and how a band is named: by its own name, its common name, or a wavelength."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

_WAVELENGTH = re.compile(r"(\d+(?:\.\d+)?) ?(nm|um|µm)")


class Spectrum(NamedTuple):
    """What a band sees."""

    common: str
    """STAC's common name (eo extension), such as ``red``; empty where it has none."""
    centre_nm: float
    low_nm: float
    """Half the response is reached here."""
    high_nm: float


def _centred(common: str, centre_nm: float, width_nm: float) -> Spectrum:
    return Spectrum(common, centre_nm, centre_nm - width_nm / 2, centre_nm + width_nm / 2)


def _between(common: str, low_nm: float, high_nm: float) -> Spectrum:
    return Spectrum(common, (low_nm + high_nm) / 2, low_nm, high_nm)


SENTINEL2: Final[Mapping[str, Spectrum]] = {
    "B01": _centred("coastal", 442.7, 21),
    "B02": _centred("blue", 492.4, 66),
    "B03": _centred("green", 559.8, 36),
    "B04": _centred("red", 664.6, 31),
    "B05": _centred("rededge071", 704.1, 15),
    "B06": _centred("rededge075", 740.5, 15),
    "B07": _centred("rededge078", 782.8, 20),
    "B08": _centred("nir", 832.8, 106),
    "B8A": _centred("nir08", 864.7, 21),
    "B09": _centred("nir09", 945.1, 20),
    "B10": _centred("cirrus", 1373.5, 31),
    "B11": _centred("swir16", 1613.7, 91),
    "B12": _centred("swir22", 2202.4, 175),
}
"""Sentinel-2A's centre and width (Sentinel-2 User Handbook); those of B and C differ by some nanometres."""

_OLI: Final[Mapping[str, Spectrum]] = {
    "B1": _between("coastal", 435, 451),
    "B2": _between("blue", 452, 512),
    "B3": _between("green", 533, 590),
    "B4": _between("red", 636, 673),
    "B5": _between("nir08", 851, 879),
    "B6": _between("swir16", 1566, 1651),
    "B7": _between("swir22", 2107, 2294),
    "B8": _between("pan", 503, 676),
    "B9": _between("cirrus", 1363, 1384),
}
_ETM: Final[Mapping[str, Spectrum]] = {
    "B1": _between("blue", 450, 520),
    "B2": _between("green", 520, 600),
    "B3": _between("red", 630, 690),
    "B4": _between("nir08", 770, 900),
    "B5": _between("swir16", 1550, 1750),
    "B7": _between("swir22", 2080, 2350),
    "B8": _between("pan", 520, 900),
}
_TM: Final[Mapping[str, Spectrum]] = {name: item for name, item in _ETM.items() if name != "B8"}
LANDSAT: Final[Mapping[str, Mapping[str, Spectrum]]] = {
    "LC08": _OLI, "LC09": _OLI, "LO08": _OLI, "LO09": _OLI, "LE07": _ETM, "LT05": _TM, "LT04": _TM,
}  # fmt: skip
"""By sensor and satellite, as product names begin; bands of reflectance alone (USGS, Landsat band designations)."""


def choose(wanted: str, bands: Sequence[tuple[str, Spectrum | None]]) -> int | None:
    """Find the band that a text names.

    Args:
        wanted: a band's name, else its common name, else a wavelength such as ``865nm`` or ``1.61um``.
        bands: name and spectrum of each, no name twice.

    Returns:
        The place in `bands`. Of bands that cover a wavelength it is the one whose centre is nearest, then the
        narrowest; None where no band is named so or covers it.
    """
    for place, (name, _) in enumerate(bands):
        if name == wanted:
            return place
    known = [(place, spectrum) for place, (_, spectrum) in enumerate(bands) if spectrum is not None]
    named = [place for place, spectrum in known if spectrum.common and spectrum.common == wanted]
    if named:
        return named[0] if len(named) == 1 else None
    match = _WAVELENGTH.fullmatch(wanted)
    if match is None:
        return None
    at_nm = float(match[1]) * (1 if match[2] == "nm" else 1000)
    covering = [
        (abs(spectrum.centre_nm - at_nm), spectrum.high_nm - spectrum.low_nm, place)
        for place, spectrum in known
        if spectrum.low_nm <= at_nm <= spectrum.high_nm
    ]
    return min(covering)[2] if covering else None


def describe(bands: Sequence[tuple[str, Spectrum | None]]) -> str:
    """Name the bands that there are, for a sentence."""
    return ", ".join(
        name if spectrum is None or not spectrum.common else f"{name} ({spectrum.common}, {spectrum.centre_nm:g} nm)"
        for name, spectrum in bands
    )
