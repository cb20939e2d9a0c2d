"""The plan by which a source's pixels are read without parsing a header again: made at ingest, kept in the catalog.

A column of the plan is one value where all files share it, else a list of one a file (of slopes and intercepts: one a
frame where one file holds all frames). That is some 25 bytes a file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pydicom import Dataset
from pydicom.uid import UID

from vitpipe.domains.dicom.filebytes import Expected
from vitpipe.domains.dicom.files import DicomFile, PixelPlace
from vitpipe.domains.dicom.instance import Instance, pixels_json
from vitpipe.domains.dicom.pixelformat import PixelFormat
from vitpipe.records import Json

_OWN: Final = ("slopes", "intercepts")
_ENCODING: Final = "syntax"


def make_plan(instances: Sequence[Instance], sizes: Sequence[int]) -> dict[str, Json]:
    """Make the entry ``pixels`` of `Source.reader`.

    Args:
        instances: the records of the source's files, in its order.
        sizes: of the files, bytes.

    Returns:
        The entry; nothing where a file needs its header to be read: it has lookup tables, or is deflated.
    """
    if any(item.pixels.needs_header or item.head is None for item in instances):
        return {}
    kinds: list[dict[str, Json]] = []
    places: list[Json] = []
    for item in instances:
        kind: dict[str, Json] = {name: value for name, value in pixels_json(item.pixels).items() if name not in _OWN}
        kind[_ENCODING] = item.transfer_syntax
        if kind not in kinds:
            kinds.append(kind)
        places.append(kinds.index(kind))
    heads = [item.head for item in instances if item.head is not None]
    pairs = [pair for item in instances for pair in zip(item.pixels.slopes, item.pixels.intercepts, strict=True)]
    columns: dict[str, list[Json]] = {
        "kind": places,
        "offset": [head[0] for head in heads],
        "crc": [head[1] for head in heads],
        "size": list(sizes),
        "slope": [slope for slope, _ in pairs],
        "intercept": [intercept for _, intercept in pairs],
    }
    plan: dict[str, Json] = {name: _column(values) for name, values in columns.items()}
    plan["kinds"] = list(kinds)
    return {"pixels": plan}


def _column(values: list[Json]) -> Json:
    return values[0] if all(value == values[0] for value in values) else values


class ReadPlan:
    """What :func:`make_plan` made, file by file.

    Args:
        plan: the entry ``pixels`` of `Source.reader`.
        files: the source's files.
    """

    def __init__(self, plan: Mapping[str, Any], files: Sequence[str]) -> None:
        self._plan = plan
        self._files = files
        self._formats: dict[tuple[object, ...], PixelFormat] = {}
        self._syntaxes = [UID(kind[_ENCODING]) for kind in plan["kinds"]]

    def file(self, place: int) -> tuple[DicomFile, PixelFormat, Expected]:
        """Give a file as a look at its header would, without its data set; and what it must be."""
        kind, offset = self._at("kind", place), self._at("offset", place)
        described = self._format(kind, place)
        expected = Expected(self._at("size", place), self._at("crc", place))
        available = expected.size - offset
        pixels = PixelPlace("PixelData", "OW", offset, None if described.encapsulated else available, None, available)
        item = DicomFile(Path(self._files[place]), _NO_HEADER, self._syntaxes[kind], pixels)
        return item, described, expected

    def _at(self, name: str, place: int) -> Any:  # noqa: ANN401
        column = self._plan[name]
        return column[place] if isinstance(column, list) else column

    def _format(self, kind: int, place: int) -> PixelFormat:
        if len(self._files) == 1:
            slopes, intercepts = self._plan["slope"], self._plan["intercept"]
        else:
            slopes, intercepts = self._at("slope", place), self._at("intercept", place)
        if isinstance(slopes, list) or isinstance(intercepts, list):
            frames = max(len(column) for column in (slopes, intercepts) if isinstance(column, list))
            pairs = [
                tuple(column) if isinstance(column, list) else (column,) * frames for column in (slopes, intercepts)
            ]
        else:
            pairs = [(slopes,), (intercepts,)]
        key = (kind, *pairs)
        known = self._formats.get(key)
        if known is None:
            fields = {name: value for name, value in self._plan["kinds"][kind].items() if name != _ENCODING}
            padding = fields["padding"]
            fields |= {"slopes": pairs[0], "intercepts": pairs[1], "padding": tuple(padding) if padding else None}
            known = self._formats[key] = PixelFormat(**fields)
        return known


_NO_HEADER: Final = Dataset()
