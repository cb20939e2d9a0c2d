"""Look for canaries in every byte that a run leaves: unpacked tables, databases, archives and encoded parts too."""

from __future__ import annotations

import base64
import gzip
import io
import re
import sqlite3
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError

_DATA_URI = re.compile(rb"base64,([A-Za-z0-9+/=\s]+)")
_PACKED_TEXT = re.compile(rb"(?:H4sI|UEsDB|eJ[wxyz])[A-Za-z0-9+/]{40,}={0,2}")
_SHOWN = 40
_DEEPEST = 4


def forms(canary: str) -> dict[str, bytes]:
    """Give the encodings in which a text may stand, each to be sought in lower-cased bytes unless named ``exact``."""
    found: dict[str, bytes] = {}
    for variant in dict.fromkeys((canary, canary.lower(), canary.upper(), canary.title())):
        raw = variant.encode("utf-8")
        found[f"utf-8 {variant}"] = raw.lower()
        found[f"latin-1 {variant}"] = variant.encode("latin-1").lower()
        found[f"utf-16-le {variant}"] = variant.encode("utf-16-le").lower()
        found[f"utf-16-be {variant}"] = variant.encode("utf-16-be").lower()
        found[f"escaped {variant}"] = variant.encode("unicode_escape").lower()
        found[f"json {variant}"] = re.sub(r"[^\x00-\x7f]", lambda m: f"\\u{ord(m[0]):04x}", variant).encode().lower()
        found[f"hex {variant}"] = raw.hex().encode()
        for shift in range(3):
            text = base64.b64encode(b"\0" * shift + raw)
            # What surrounds the text changes the first and the last character of its code.
            inner = text[(shift * 8 + 5) // 6 : (shift + len(raw)) * 8 // 6]
            found[f"exact base64+{shift} {variant}"] = inner
    return found


class Search:
    """Looks for some texts.

    Args:
        canaries: texts.
    """

    def __init__(self, *canaries: str) -> None:
        # A text in ASCII is the same in many encodings: each is sought once.
        names = {form: name for canary in canaries for name, form in reversed(forms(canary).items())}
        self._forms = {name: form for form, name in names.items()}

    def folder(self, root: Path) -> list[str]:
        """Search all files of a folder, and their names; gives sentences that say what stands where."""
        hits = []
        for path in sorted(root.rglob("*")):
            place = path.relative_to(root).as_posix()
            hits += self.blob(place.encode(), f"the name of {place}")
            if path.is_file() and not path.is_symlink():
                hits += self.file(path, place)
        return hits

    def file(self, path: Path, place: str) -> list[str]:
        """Search one file, raw and unpacked."""
        data = path.read_bytes()
        hits = self.blob(data, place)
        if data.startswith(b"SQLite format 3\0"):
            hits += [hit for name, cell in cells(path) for hit in self.blob(cell, f"{place} {name}")]
        return hits

    def blob(self, data: bytes, place: str, depth: int = 0) -> list[str]:
        """Search bytes, and what is packed in them."""
        lower = data.lower()
        hits = []
        for name, form in self._forms.items():
            at = (data if name.startswith("exact") else lower).find(form)
            if at >= 0:
                hits.append(f"{place}: {name} in {data[max(0, at - _SHOWN) : at + _SHOWN]!r}")
        if depth < _DEEPEST:
            for name, part in unpacked(data):
                hits += self.blob(part, f"{place}/{name}", depth + 1)
        return hits


def unpacked(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Give the parts of packed bytes: Parquet cells, zip members, gzip, text of PNG files, base64 in pages."""
    if data.startswith(b"PAR1"):
        table = pq.read_table(io.BytesIO(data))
        yield "schema", repr((table.schema.names, table.schema.metadata)).encode()
        for name in table.column_names:
            yield f"column {name}", "\n".join(str(value) for value in table[name].to_pylist()).encode()
    elif data.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                yield name, name.encode() + b"\n" + archive.read(name)
    elif data.startswith(b"\x1f\x8b"):
        yield "gzip", gzip.decompress(data)
    elif data.startswith(b"\x89PNG"):
        try:
            with Image.open(io.BytesIO(data)) as picture:
                picture.load()
                yield "text", repr(picture.info).encode()
        except UnidentifiedImageError:
            return
    for found in _DATA_URI.finditer(data):
        yield "base64", base64.b64decode(re.sub(rb"\s", b"", found[1]) + b"==")
    for found in _PACKED_TEXT.finditer(data):
        packed = base64.b64decode(found[0].rstrip(b"=") + b"==")
        if packed[:1] == b"\x78":
            try:
                packed = zlib.decompress(packed)
            except zlib.error:
                continue
        yield "base64", packed


def cells(path: Path) -> Iterator[tuple[str, bytes]]:
    """Give every column of every table of a database, all its texts in one, each of its blobs alone."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            answer = connection.execute(f'SELECT * FROM "{table}"')
            names = [column[0] for column in answer.description]
            rows = answer.fetchall()
            for index, name in enumerate(names):
                values = [row[index] for row in rows]
                yield from ((f"{table}.{name}", value) for value in values if isinstance(value, bytes))
                told = (str(value) for value in values if not isinstance(value, bytes))
                yield f"{table}.{name}", "\n".join(told).encode()
    finally:
        connection.close()
