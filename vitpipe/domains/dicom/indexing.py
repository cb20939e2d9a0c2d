"""Index plain headers without pydicom, to the very record that pydicom's way gives; the rest raises `InDoubt`.

A record has three parts: the pixel format and what the files of a series share are made once and kept for as long as
the bytes behind them are the same; what moves from file to file is read each time.
"""

from __future__ import annotations

import dataclasses
import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar, cast

from pydicom import Dataset

from vitpipe.domains.base import RenderedHeader, render
from vitpipe.domains.dicom.files import PIXEL_KEYWORDS, DicomFile, PixelPlace
from vitpipe.domains.dicom.header import FIXED, MOVING, PIXELS, Header, view_of
from vitpipe.domains.dicom.instance import Moving, compose, pixels_json, read_fixed, read_moving, read_pixels
from vitpipe.domains.dicom.pixelformat import PixelFormat
from vitpipe.domains.dicom.pixels import check_length
from vitpipe.domains.dicom.scan import HeadTooShort, InDoubt, walk
from vitpipe.domains.dicom.skeleton import Found, Key, Skeleton, layout_of, lengths_of
from vitpipe.pseudonym import Pseudonymiser
from vitpipe.records import Json

_MOVING: Final = view_of(MOVING)
_PIXELS: Final = view_of(PIXELS)
_FIXED: Final = view_of(FIXED)
_HEAD_BYTES: Final = 8 << 10
_LONGEST_HEAD: Final = 1 << 20
_ROOM: Final = 512
_UNDEFINED: Final = 0xFFFFFFFF
_NOTHING: Final = Moving(None, (), ())
_GAPS: Final = ("head", "instance_uid", "moments", "pixels")
# Bounds of what is kept; a tree has few layouts, and few formats each.
_MOST_LAYOUTS: Final = 64
_MOST_RECENT: Final = 6
_MOST_PARTS: Final = 128
_MOST_NAMES: Final = 4096


@dataclass(frozen=True, slots=True)
class _Format:
    """A pixel format, ready to be written."""

    described: PixelFormat
    value: Json
    text: str


@dataclass(frozen=True, slots=True)
class _Shared:
    """A record without what moves and without its pixels."""

    value: dict[str, Json]
    geometry: dict[str, Json]
    texts: tuple[str, ...]
    """What stands before, between and behind positions, instance_uid, moments and pixels in the JSON text."""


@dataclass(slots=True)
class _Layout:
    """A layout that was met, and what was made of headers that have it."""

    lengths: list[int]
    varying: frozenset[int]
    skeleton: Skeleton
    formats: dict[Key, _Format] = field(default_factory=dict)
    shared: dict[Key, _Shared] = field(default_factory=dict)


class HeaderIndex:
    """Reads plain headers, one after the other; fastest where neighbours are alike.

    Args:
        pseudonym: gives the pseudonyms of identifiers.
    """

    def __init__(self, pseudonym: Pseudonymiser) -> None:
        self.pseudonym = pseudonym
        self._named: dict[tuple[str, str], str] = {}
        self._layouts: dict[bytes, _Layout] = {}
        self._recent: tuple[_Layout, ...] = ()
        self._head_bytes = _HEAD_BYTES

    def index(self, path: Path) -> RenderedHeader:
        """Read a file's header.

        Raises:
            InDoubt: it is not plain, or cannot be opened.
            UnreadableSource: see `instance.read_instance`.
        """
        try:
            layout, found, size = self._open(path)
        except (HeadTooShort, OSError) as error:
            raise InDoubt from error
        place = self._pixels(found, size)
        form = layout.formats.get((found.pixel_length, *found.pixels))
        if form is None:
            form = self._format(path, layout, found, place)
        item = DicomFile(path, _as_dataset(Header(found, _MOVING)), found.skeleton.transfer_syntax, place)
        check_length(item, form.described)
        shared = layout.shared.get((form.described.frames, *found.fixed))
        if shared is None:
            shared = self._shared(layout, found, form)
        head = (place.offset, zlib.crc32(memoryview(found.data)[: place.offset]))
        moving = read_moving(item.dataset, self._name, form.described.frames)
        return _write(shared, form, dataclasses.replace(moving, head=head))

    # ------------------------------------------------------------------------------------------------- reading

    def _open(self, path: Path) -> tuple[_Layout, Found, int]:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = os.read(handle, self._head_bytes)
            size = os.fstat(handle).st_size
            for layout in self._recent:
                found = layout.skeleton.lay_over(data)
                if found is not None:
                    return layout, found, size
            while True:
                try:
                    return *self._learn(data), size
                except HeadTooShort:
                    if len(data) >= min(size, _LONGEST_HEAD):
                        raise
                    more = os.pread(handle, min(4 * len(data), _LONGEST_HEAD - len(data)), len(data))
                    if not more:
                        raise
                    data += more
        finally:
            os.close(handle)

    def _learn(self, data: bytes) -> tuple[_Layout, Found]:
        """Walk a header that fits no layout met of late."""
        walked = walk(data)
        name, lengths = layout_of(walked, data), lengths_of(walked)
        layout = self._layouts.get(name)
        varying: frozenset[int] = frozenset()
        if layout is not None:
            pairs = enumerate(zip(layout.lengths, lengths, strict=True))
            varying = layout.varying | {place for place, (before, now) in pairs if before != now}
        if layout is None or varying != layout.varying:
            if layout is None and len(self._layouts) >= _MOST_LAYOUTS:
                self._layouts = {}
            layout = _Layout(lengths, varying, Skeleton(data, walked, varying))
            self._layouts[name] = layout
        found = layout.skeleton.lay_over(data)
        if found is None:
            # Lengths within items of a stated length differ; what is kept belongs to the other ones.
            layout = _Layout(lengths, varying, Skeleton(data, walked, varying))
            found = layout.skeleton.lay_over(data)
        else:
            self._remember(name, layout)
        if found is None:
            raise InDoubt
        return layout, found

    def _remember(self, name: bytes, layout: _Layout) -> None:
        others = tuple(item for item in self._recent if item is not layout and item is not self._layouts.get(name))
        self._recent = (layout, *others[: _MOST_RECENT - 1])
        longest = max(item.skeleton.head_bytes for item in self._recent)
        self._head_bytes = min(max(_HEAD_BYTES, longest + _ROOM), _LONGEST_HEAD)

    # --------------------------------------------------------------------------------------------------- parts

    @staticmethod
    def _pixels(found: Found, size: int) -> PixelPlace:
        offset, length = found.places[-1], found.pixel_length
        skeleton = found.skeleton
        return PixelPlace(
            PIXEL_KEYWORDS[skeleton.pixel_tag],
            skeleton.pixel_vr,
            offset,
            None if length == _UNDEFINED else length,
            None,
            size - offset,
        )

    def _format(self, path: Path, layout: _Layout, found: Found, place: PixelPlace) -> _Format:
        item = DicomFile(path, _as_dataset(Header(found, _PIXELS)), found.skeleton.transfer_syntax, place)
        described = read_pixels(item)
        value = pixels_json(described)
        form = _Format(described, value, render(value))
        _keep(layout.formats, (found.pixel_length, *found.pixels), form)
        return form

    def _shared(self, layout: _Layout, found: Found, form: _Format) -> _Shared:
        frames = form.described.frames
        fixed = read_fixed(_as_dataset(Header(found, _FIXED)), self._name, frames)
        whole = compose(str(found.skeleton.transfer_syntax), form.described, fixed, _NOTHING).to_json()
        geometry = cast("dict[str, Json]", whole["geometry"])
        # No value holds a null character: that is how the gaps are found in the text.
        marks: dict[str, Json] = {name: f"\0{name}" for name in _GAPS}
        rest, texts = render(whole | marks | {"geometry": geometry | {"positions": "\0geometry"}}), []
        for name in ("geometry", *_GAPS):
            before, _, rest = rest.partition(f'"\\u0000{name}"')
            texts.append(before)
        shared = _Shared(whole, geometry, (*texts, rest))
        _keep(layout.shared, (frames, *found.fixed), shared)
        return shared

    def _name(self, kind: str, value: str) -> str:
        if kind == "instance_uid":
            return self.pseudonym(kind, value)
        known = self._named.get((kind, value))
        if known is None:
            known = self.pseudonym(kind, value)
            if len(self._named) >= _MOST_NAMES:
                self._named = {}
            self._named[kind, value] = known
        return known


def _as_dataset(header: Header) -> Dataset:
    """Let a header stand where a data set is asked for: what makes a record calls `get` and `in` alone."""
    return cast("Dataset", header)


_Part = TypeVar("_Part")


def _keep(parts: dict[Key, _Part], key: Key, part: _Part) -> None:
    if len(parts) >= _MOST_PARTS:
        parts.clear()
    parts[key] = part


def _write(shared: _Shared, form: _Format, moving: Moving) -> RenderedHeader:
    positions: list[Json] = [list(position) for position in moving.positions]
    moments: list[Json] = list(moving.moments)
    assert moving.head is not None
    head: list[Json] = list(moving.head)
    first, at_head, second, third, fourth, last = shared.texts
    # The same texts as `json` writes: a float's repr, pseudonyms without a character to escape.
    vectors = ",".join(f"[{','.join(map(repr, position))}]" for position in moving.positions)
    uid = "null" if moving.instance_uid is None else f'"{moving.instance_uid}"'
    named = ",".join(f'"{moment}"' for moment in moving.moments)
    text = f"{first}[{vectors}]{at_head}[{head[0]},{head[1]}]{second}{uid}{third}[{named}]{fourth}{form.text}{last}"
    header = RenderedHeader(shared.value, text)
    header["geometry"], header["head"] = {**shared.geometry, "positions": positions}, head
    header["instance_uid"], header["moments"], header["pixels"] = moving.instance_uid, moments, form.value
    return header
