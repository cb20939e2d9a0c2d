"""Colours of classes: by what their names say where that is land cover, else of a fixed list.

They depend on the list of names alone, so two maps of one model look alike.
"""

from __future__ import annotations

import colorsys
import re
from collections.abc import Iterator, Sequence
from typing import Final

Colour = tuple[int, int, int]

_NATURAL: Final = (
    ("water sea lake lakes river rivers ocean stream pond reservoir canal", "1F78C8 6BB3EA 0B4F8A 9CD3F5"),
    ("forest forests tree trees wood woods woodland", "1E7B34 58A65C 0F5223 86BF86"),
    (
        "urban built builtup building buildings residential industrial city town settlement settlements artificial "
        "impervious developed",
        "D7301F 99123B F4796B 7A3B2E",
    ),
    ("crop crops cropland croplands agriculture agricultural arable farmland field fields cultivated", "F2C230 C98A12"
     " FFE680 9C7A1E"),
    ("grass grassland grasslands herbaceous pasture meadow meadows rangeland", "A6D854 CFEBA5 7FB02F DDF3B8"),
    ("shrub shrubs shrubland scrub bush heath heathland moor moors", "A08A3C C9B870"),
    ("wetland wetlands marsh marshes swamp bog mangrove mangroves peatland", "3FB8A0 8ADBCB"),
    ("bare barren rock rocks soil sand desert mine quarry beach", "A8A29A CFC8BC 7F7972"),
    ("snow ice glacier", "DDF1FF B5D9EE"),
    ("cloud clouds", "F5F5F5"),
    ("road roads highway highways railway runway", "4D4D4D 6E6E6E"),
)  # fmt: skip
"""Words and the shades of what they name."""
_SHADES: Final = {word: shades.split() for words, shades in _NATURAL for word in words.split()}
_DENIALS: Final = frozenset(("no", "non", "not", "other", "un"))

# Paul Tol's "light" and "bright" sets (Colour Schemes, SRON/EPS/TN/09-002): told apart by colour-blind readers too.
_FIRST: Final = (
    "4477AA EE6677 228833 CCBB44 66CCEE AA3377 BBBBBB EE8866 44BB99 FFAABB 99DDFF AAAA00 77AADD BBCC33 882255 DDDDDD"
)
_GOLDEN: Final = 0.618033988749895
_APART: Final = 60.0
"""Least distance in red, green and blue between a colour of the list and those that names have given."""


def colours(classes: Sequence[str]) -> list[Colour]:
    """Give a colour of each class, no two alike.

    Args:
        classes: the model's, in their order.
    """
    found: list[Colour | None] = [None] * len(classes)
    used: list[Colour] = []
    for number, name in enumerate(classes):
        shade = next((shade for shade in map(_colour, _shades(name)) if shade not in used), None)
        if shade is not None:
            found[number] = shade
            used.append(shade)
    natural = tuple(used)
    others = (shade for shade in _others() if all(_distance(shade, one) >= _APART for one in natural))
    return [next(others) if shade is None else shade for shade in found]


def hexadecimal(colour: Colour) -> str:
    """Give a colour as six hexadecimal digits."""
    return "{:02X}{:02X}{:02X}".format(*colour)


def _shades(name: str) -> Sequence[str]:
    """Give the shades of what a name means; nothing where it names no land cover, or denies one."""
    words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]
    if _DENIALS & set(words):
        return ()
    # What it is stands last in English: a herbaceous wetland is a wetland.
    return next((_SHADES[word] for word in reversed(words) if word in _SHADES), ())


def _others() -> Iterator[Colour]:
    yield from map(_colour, _FIRST.split())
    number = len(_FIRST.split())
    while True:
        # More classes than anyone tells apart: hues that never repeat, in three shades.
        shade = number % 3
        parts = colorsys.hsv_to_rgb(number * _GOLDEN % 1, 0.55 + 0.2 * (shade == 1), 0.95 - 0.25 * (shade == 2))
        red, green, blue = (round(255 * part) for part in parts)
        yield red, green, blue
        number += 1


def _colour(digits: str) -> Colour:
    red, green, blue = bytes.fromhex(digits)
    return red, green, blue


def _distance(one: Colour, other: Colour) -> float:
    return float(sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) ** 0.5)
