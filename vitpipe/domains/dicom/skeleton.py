"""What the headers of a series have in common: the same elements in the same order, most of the same length.

A skeleton is learned from a header that was walked. The next header is laid over it: stretches between the few
elements whose length varies are compared as one large integer under a mask, so a header of a hundred elements costs
some ten operations. Where every tag, VR and length meets, the header has been walked: each element begins where the
one before ends. Where one does not, the header is walked in full, and the skeleton learns which lengths vary.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from pydicom.uid import UID

from vitpipe.domains.dicom.header import FIXED, MOVING, PIXELS, VR_OF, tag_of
from vitpipe.domains.dicom.scan import START, Element, InDoubt, Walk

# Their values decide how all others are read, or whether they are read here at all.
_PINNED: Final = frozenset({0x00020002, 0x00020010, 0x00080005})
_FIRST_TAG: Final = 0x00080000
_FIXED_TAGS: Final = frozenset(map(tag_of, FIXED))
_PIXEL_TAGS: Final = frozenset(map(tag_of, PIXELS))
_WANTED: Final = frozenset(map(tag_of, (*FIXED, *PIXELS, *MOVING)))

Key = tuple[int | bytes, ...]


@dataclass(frozen=True, slots=True)
class Segment:
    """The bytes from behind a value of varying length to the length field of the next one."""

    size: int
    mask: int
    expected: int
    """What the bytes under the mask are."""
    shift: int
    """By so many bits the length field at the end of the segment lies above its beginning."""
    fixed: int
    """Mask of the values that `instance.read_fixed` reads; 0: none."""
    pixels: int
    """Mask of the values that `instance.read_pixels` reads; 0: none."""
    value_fixed: bool
    """The value behind the segment is one that `instance.read_fixed` reads."""
    value_pixels: bool


@dataclass(frozen=True, slots=True)
class Found:
    """A header laid over its skeleton: where the segments begin. See :class:`vitpipe.domains.dicom.header.Places`."""

    data: bytes
    skeleton: Skeleton
    places: tuple[int, ...]
    """Where each segment begins; last, where the pixels begin."""
    pixel_length: int
    fixed: Key
    """Equal keys: equal values of all that `instance.read_fixed` reads."""
    pixels: Key

    def value(self, tag: int) -> bytes:
        """Give the bytes of a value; see the protocol."""
        found = self.skeleton.values.get(tag)
        if found is None:
            return b""
        segment, first, last = found
        if segment < 0:
            raise InDoubt
        if last < 0:
            # The value of varying length that follows the segment ends where the next one begins.
            return self.data[self.places[segment] + first : self.places[segment + 1]]
        place = self.places[segment]
        return self.data[place + first : place + last]

    def has(self, tag: int) -> bool:
        """Tell whether the data set has the element."""
        return tag in self.skeleton.values


class Skeleton:
    """The layout of headers.

    Args:
        data: the header that was walked.
        walked: its elements.
        varying: places in `walked.elements` whose lengths vary; the last one, the pixels, is always one of them.
    """

    def __init__(self, data: bytes, walked: Walk, varying: Collection[int] = ()) -> None:
        self.transfer_syntax = UID(walked.transfer_syntax.decode("ascii"))
        self.implicit = walked.implicit
        last = walked.elements[-1]
        self.pixel_tag, self.pixel_vr = last.tag, "OW" if walked.implicit else last.vr.decode("ascii")
        self.head_bytes = last.start
        self.values: dict[int, tuple[int, int, int]] = {}
        """Tag to segment, first and last byte in it; last -1: up to the next segment; segment -1: another VR."""
        self._segments: list[Segment] = []
        ends = {*varying, len(walked.elements) - 1}
        begin, inside = START, []
        for place, element in enumerate(walked.elements):
            inside.append(element)
            if place in ends:
                self._add(data, begin, inside)
                begin, inside = element.end, []

    def _add(self, data: bytes, begin: int, elements: list[Element]) -> None:
        """Make the segment that ends with the length field of the last element."""
        last = elements[-1]
        size = last.start - begin
        mask, fixed, pixels = bytearray(size), bytearray(size), bytearray(size)
        mask[: elements[0].head - begin] = b"\xff" * (elements[0].head - begin)
        length_bytes = 2 if last.vr and last.start - last.head == 8 else 4
        for element in elements[:-1]:
            first, end = element.start - begin, element.end - begin
            mask[element.head - begin : first] = b"\xff" * (element.start - element.head)
            if element.tag in _PINNED:
                mask[first:end] = b"\xff" * (end - first)
            if element.level == 0:
                if element.tag in _FIXED_TAGS:
                    fixed[first:end] = b"\xff" * (end - first)
                if element.tag in _PIXEL_TAGS:
                    pixels[first:end] = b"\xff" * (end - first)
                self._place(element, first, end)
        mask[last.head - begin : size - length_bytes] = b"\xff" * (last.start - last.head - length_bytes)
        if last.level == 0 and last.tag != self.pixel_tag:
            self._place(last, size, -1)
        whole = int.from_bytes(mask, "little")
        self._segments.append(
            Segment(
                size,
                whole,
                int.from_bytes(data[begin : last.start], "little") & whole,
                8 * (size - length_bytes),
                int.from_bytes(fixed, "little"),
                int.from_bytes(pixels, "little"),
                last.level == 0 and last.tag in _FIXED_TAGS,
                last.level == 0 and last.tag in _PIXEL_TAGS,
            )
        )

    def _place(self, element: Element, first: int, last: int) -> None:
        if element.tag < _FIRST_TAG:
            # pydicom keeps the meta group apart from the data set.
            return
        stated = element.vr.decode("ascii")
        other = not self.implicit and element.tag in _WANTED and stated not in VR_OF[element.tag].split(" or ")
        self.values[element.tag] = (-1 if other else len(self._segments), first, last)

    def lay_over(self, data: bytes) -> Found | None:
        """Give the values of a header of this layout; None where it has another one, or ends behind `data`."""
        places: list[int] = []
        fixed: list[int | bytes] = []
        pixels: list[int | bytes] = []
        place, length, behind = START, 0, len(data)
        for segment in self._segments:
            places.append(place)
            end = place + segment.size
            if end > behind:
                return None
            read = int.from_bytes(data[place:end], "little")
            if read & segment.mask != segment.expected:
                return None
            if segment.fixed:
                fixed.append(read & segment.fixed)
            if segment.pixels:
                pixels.append(read & segment.pixels)
            length = read >> segment.shift
            place = end + length
            if segment.value_fixed:
                fixed.append(data[end:place])
            if segment.value_pixels:
                pixels.append(data[end:place])
        places.append(end)
        return Found(data, self, tuple(places), length, tuple(fixed), tuple(pixels))


def layout_of(walked: Walk, data: bytes) -> bytes:
    """Name a layout: tags, VRs and nesting in their order, and the values that decide how the rest is read."""
    return b"\n".join(_layout_parts(walked.elements, data))


def _layout_parts(elements: Iterable[Element], data: bytes) -> Iterable[bytes]:
    for element in elements:
        yield b"%x %s %d %d" % (element.tag, element.vr, element.level, element.frozen)
        if element.tag in _PINNED:
            yield data[element.start : element.end]


def lengths_of(walked: Walk) -> list[int]:
    """Give the length of each element's value; of those that cannot vary alone, -1."""
    return [
        -1 if element.frozen or element.tag in _PINNED else element.end - element.start for element in walked.elements
    ]
