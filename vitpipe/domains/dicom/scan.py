"""Walk the elements of a little endian header without building a data set: where each begins, how long it is.

What is walked here is only what leaves no doubt: a preamble, a stated and known transfer syntax, ascending tags, known
VRs, lengths that add up, a plain character set. Whatever else there is raises `InDoubt`, and pydicom reads the file.
Source of the layout: PS3.5 7.1 (elements), 7.5 (sequences and items), PS3.10 7.1 (meta group).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from pydicom.charset import python_encoding
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.uid import AllTransferSyntaxes

START: Final = 128
"""Where the prefix lies; what the preamble holds does not matter."""

_PREFIX: Final = b"DICM"
_UNDEFINED: Final = 0xFFFFFFFF
_TRANSFER_SYNTAX: Final = 0x00020010
_MEDIA_CLASS: Final = 0x00020002
_CHARACTER_SET: Final = 0x00080005
_DIRECTORY: Final = b"1.2.840.10008.1.3.10"
_IMPLICIT: Final = b"1.2.840.10008.1.2"
# Little endian and not deflated; all but the first are explicit.
_SYNTAXES: Final = frozenset(
    str(uid).encode("ascii")
    for uid in AllTransferSyntaxes
    if uid.is_little_endian and not uid.is_deflated and not uid.is_private
)
_FIRST_PIXELS: Final = 0x7FE00008
_PIXEL_TAGS: Final = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
_PIXEL_VRS: Final = frozenset({b"OB", b"OW", b"OF", b"OD"})
_FIRST_TAG: Final = 0x00080000
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_DEEPEST: Final = 8
# VRs whose length takes 2 bytes, and those whose length takes 4 after two reserved ones (PS3.5 7.1.2).
_VR_LENGTHS: Final = dict.fromkeys(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split(), 2)
_VR_LENGTHS.update(dict.fromkeys(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split(), 4))

_explicit = struct.Struct("<HH2sH").unpack_from
_implicit = struct.Struct("<HHI").unpack_from
_long = struct.Struct("<I").unpack_from


class InDoubt(Exception):
    """The header, or a value, is not as plain as this reader wants it: let pydicom read the file."""


class HeadTooShort(Exception):
    """The header goes on behind the bytes that were given."""


@dataclass(slots=True)
class Element:
    """One element, item or delimiter of a header; offsets count from the beginning of the file."""

    tag: int
    vr: bytes
    """Empty in implicit VR."""
    head: int
    """Where its tag lies."""
    start: int
    """Where its value lies; the length field ends here."""
    end: int
    """Behind its value; `start` where the value is walked as elements of their own."""
    level: int
    """0: of the data set or the meta group."""
    frozen: bool
    """Within something whose length is stated: its own length cannot change alone."""


@dataclass(slots=True)
class Walk:
    """A header that was walked up to its pixels."""

    elements: list[Element]
    """In the order of the file; the last one is the pixel element."""
    transfer_syntax: bytes
    implicit: bool


def walk(data: bytes) -> Walk:
    """Walk a header.

    Args:
        data: the first bytes of a file.

    Raises:
        InDoubt: see the head of this module.
        HeadTooShort: the pixels do not begin within `data`.
    """
    try:
        return _Walker(data).run()
    except struct.error:
        raise HeadTooShort from None


class _Walker:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._elements: list[Element] = []

    def run(self) -> Walk:
        if self._data[START : START + 4] != _PREFIX:
            raise InDoubt
        place, syntax = self._meta(START + 4)
        implicit = syntax == _IMPLICIT
        # pydicom believes the bytes of the first element more than the stated syntax.
        if implicit and all(0x40 < letter < 0x5B for letter in self._data[place + 4 : place + 6]):
            raise InDoubt
        self._data_set(place, implicit=implicit)
        return Walk(self._elements, syntax, implicit)

    def _meta(self, place: int) -> tuple[int, bytes]:
        syntax, last = b"", 0
        while _explicit(self._data, place)[0] == 2:
            element = self._element(place, implicit=False)
            # pydicom reads the group's length, and refuses it where it is no long integer.
            if element.tag <= last or (element.tag == 0x00020000 and element.end - element.start != 4):
                raise InDoubt
            last, place = element.tag, element.end
            value = self._data[element.start : element.end]
            if element.tag == _TRANSFER_SYNTAX:
                syntax = value.rstrip(b"\0")
                if syntax not in _SYNTAXES:
                    raise InDoubt
            elif element.tag == _MEDIA_CLASS and value.rstrip(b"\0 ") == _DIRECTORY:
                raise InDoubt
            self._elements.append(element)
        if not syntax:
            raise InDoubt
        return place, syntax

    def _data_set(self, place: int, *, implicit: bool) -> None:
        last = _FIRST_TAG
        while True:
            element = self._element(place, implicit=implicit)
            if element.tag < last:
                raise InDoubt
            last = element.tag + 1
            if element.tag >= _FIRST_PIXELS:
                if element.tag not in _PIXEL_TAGS or not (implicit or element.vr in _PIXEL_VRS):
                    raise InDoubt
                element.end = element.start
                self._elements.append(element)
                return
            self._elements.append(element)
            place = element.end if element.end >= 0 else self._items(element, implicit=implicit, level=1)
            if element.tag == _CHARACTER_SET:
                self._check_character_set(element)

    def _element(self, place: int, *, implicit: bool) -> Element:
        """Read the head of one element; its end is -1 where its length is undefined."""
        vr, start = b"", place + 8
        if implicit:
            group, number, length = _implicit(self._data, place)
        else:
            group, number, vr, length = _explicit(self._data, place)
            size = _VR_LENGTHS.get(vr)
            if size is None:
                raise InDoubt
            if size == 4:
                length, start = _long(self._data, start)[0], start + 4
        tag = group << 16 | number
        if length != _UNDEFINED or tag in _PIXEL_TAGS:
            return Element(tag, vr, place, start, start + length, 0, frozen=False)
        if vr != b"SQ" and not (implicit and dictionary_has_tag(tag) and dictionary_VR(tag) == "SQ"):
            raise InDoubt
        return Element(tag, vr, place, start, -1, 0, frozen=False)

    def _check_character_set(self, element: Element) -> None:
        """Refuse repertoires that pydicom does not know: in all others the bytes of ASCII text mean ASCII."""
        names = self._data[element.start : element.end].rstrip(b"\0 ").decode("latin-1").split("\\")
        extended = all(not name or name.startswith("ISO 2022 IR") for name in names)
        if any(name not in python_encoding for name in names) or (len(names) > 1 and not extended):
            raise InDoubt

    def _items(self, sequence: Element, *, implicit: bool, level: int) -> int:
        """Walk the items of a sequence of undefined length; gives the place behind its delimiter."""
        if level > _DEEPEST:
            raise InDoubt
        place, frozen = sequence.start, sequence.frozen
        sequence.end = sequence.start
        while True:
            tag, length = self._structure(place, level)
            place += 8
            if tag == _SEQUENCE_END:
                if length:
                    raise InDoubt
                return place
            if tag != _ITEM:
                raise InDoubt
            end = -1 if length == _UNDEFINED else place + length
            place = self._item(place, end, implicit=implicit, level=level, frozen=frozen or end >= 0)

    def _structure(self, place: int, level: int) -> tuple[int, int]:
        """Take an item's head or a delimiter: a tag and a length, no VR."""
        group, number, length = _implicit(self._data, place)
        tag = group << 16 | number
        self._elements.append(Element(tag, b"", place, place + 8, place + 8, level, frozen=True))
        return tag, length

    def _item(self, place: int, end: int, *, implicit: bool, level: int, frozen: bool) -> int:
        while place != end:
            group, number, length = _implicit(self._data, place)
            if group == 0xFFFE:
                if group << 16 | number != _ITEM_END or length or end >= 0:
                    raise InDoubt
                self._structure(place, level)
                return place + 8
            element = self._element(place, implicit=implicit)
            element.level, element.frozen = level, frozen
            self._elements.append(element)
            place = element.end if element.end >= 0 else self._items(element, implicit=implicit, level=level + 1)
            if element.tag == _CHARACTER_SET:
                self._check_character_set(element)
            if 0 <= end < place:
                raise InDoubt
        return place
