"""Open a DICOM file up to its pixels: what it is, where the pixels lie, and a stable code for whatever it is not.

No message of this module quotes a value of the file, nor the text of a parser's error, which may quote one: identifiers
stay inside the reader.
"""

from __future__ import annotations

import errno
import io
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, cast

from pydicom import Dataset, dcmread
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_dataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
)

from vitpipe.domains.dicom.quiet import quiet
from vitpipe.errors import TransientError, UnreadableSource

JUNK_CODES: Final = frozenset({"NOT_DICOM", "DICOMDIR", "NO_PIXELS", "NOT_AN_IMAGE", "OTHER_MODALITY", "LOCALIZER"})
"""Nothing is wrong with such a file; it is no image to learn from."""

PARSE_ERRORS: Final = (
    InvalidDicomError,
    BytesLengthException,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    EOFError,
    NotImplementedError,
    ArithmeticError,
    RecursionError,
    AssertionError,
    struct.error,
    zlib.error,
)
"""What pydicom raises on bytes that do not make sense."""

PIXEL_KEYWORDS: Final = {
    0x7FE00008: "FloatPixelData",
    0x7FE00009: "DoubleFloatPixelData",
    0x7FE00010: "PixelData",
}
_GONE: Final = frozenset({errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP})
_MALFORMED: Final = frozenset({None, errno.EINVAL, errno.EOVERFLOW})
_DEFER_BYTES: Final = 1 << 20
_LARGE_READ_BYTES: Final = 1 << 20
_UNDEFINED: Final = 0xFFFFFFFF
_SNIFF_BYTES: Final = 132
_META_GROUP: Final = 2
LARGEST_INFLATED: Final = 1 << 30
_LARGEST_FIRST_ELEMENT: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class PixelPlace:
    """Where the value of the pixel element begins in the file (or in the inflated data set)."""

    keyword: str
    vr: str
    offset: int
    length: int | None
    """Bytes; None: encapsulated."""
    inflated: bytes | None = None
    """The whole inflated data set where the file is deflated: `offset` counts in it."""
    available: int = 0
    """Bytes from `offset` to the end of the file (or of the inflated data set)."""


@dataclass(frozen=True, slots=True)
class DicomFile:
    """A file's header and where its pixels lie."""

    path: Path
    dataset: Dataset
    transfer_syntax: UID
    """As stated, or as found from the bytes where the file states none."""
    pixels: PixelPlace | None


class BoundedStream(io.BufferedReader):
    """Reads no further than the file goes: a damaged length would make a buffer of gigabytes."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Read at most `size` bytes."""
        if size is not None and size > _LARGE_READ_BYTES:
            size = min(size, max(0, os.fstat(self.fileno()).st_size - self.tell()))
        return super().read(size)


def read_file(path: Path) -> DicomFile:
    """Read the header of a DICOM file, no pixels (a deflated file has to be inflated whole).

    Raises:
        UnreadableSource: ``ZERO_BYTES``, ``NOT_DICOM``, ``DICOMDIR``, ``TRUNCATED``, ``MALFORMED_HEADER`` or
            ``UNREADABLE_FILE``.
        TransientError: the store does not answer.
    """
    try:
        # By a text: pydicom opens the file again for a large value, and takes a path for an open file.
        with quiet(), BoundedStream(io.FileIO(str(path))) as stream:
            return _read_stream(path, stream)
    except PARSE_ERRORS as error:
        raise UnreadableSource(
            "MALFORMED_HEADER",
            f"the header does not follow the standard ({type(error).__name__}); export the file again",
            str(path),
        ) from None
    except OSError as error:
        raise _file_error(path, error) from None


def _file_error(path: Path, error: OSError) -> UnreadableSource | TransientError:
    if error.errno in _GONE:
        return UnreadableSource("UNREADABLE_FILE", f"it cannot be opened: {os.strerror(error.errno or 0)}", str(path))
    if error.errno in _MALFORMED:
        return UnreadableSource(
            "MALFORMED_HEADER", "a length in the header points outside the file; export the file again", str(path)
        )
    return TransientError(f"{path} cannot be read now: {os.strerror(error.errno or 0)}")


def _read_stream(path: Path, stream: BinaryIO) -> DicomFile:
    head = stream.read(_SNIFF_BYTES)
    if not head:
        raise UnreadableSource("ZERO_BYTES", "the file is empty; copy it again from where it came", str(path))
    has_prefix = head[128:132] == b"DICM"
    if not has_prefix and not _begins_like_dicom(head):
        raise UnreadableSource("NOT_DICOM", _what_else(path, head), str(path))
    _check_inflated(path, stream, _SNIFF_BYTES if has_prefix else 0)
    stream.seek(0)
    dataset = dcmread(stream, stop_before_pixels=True, defer_size=_DEFER_BYTES, force=True)
    syntax = _transfer_syntax(dataset)
    if not has_prefix and not any(key in dataset for key in ("SOPClassUID", "Rows", "Modality", "StudyInstanceUID")):
        raise UnreadableSource("NOT_DICOM", _what_else(path, head), str(path))
    if "DirectoryRecordSequence" in dataset or _meta_class(dataset) == MediaStorageDirectoryStorage:
        raise UnreadableSource("DICOMDIR", "a directory of other DICOM files, not an image", str(path))
    if syntax == DeflatedExplicitVRLittleEndian:
        return DicomFile(path, dataset, syntax, _place_in_deflated(path))
    pixels = _place(stream, dataset)
    if pixels is None and _is_cut(dataset, stream.seek(0, io.SEEK_END)):
        raise UnreadableSource(
            "TRUNCATED", "the file ends within its header; copy it again from where it came", str(path)
        )
    return DicomFile(path, dataset, syntax, pixels)


def _check_inflated(path: Path, stream: BinaryIO, start: int) -> None:
    """Refuse a deflated file that inflates to more than is read: by a thousand times, where it is made to do harm.

    Args:
        path: the file.
        stream: of the file; left behind its meta group, from where pydicom inflates.
        start: of the meta group.
    """
    stream.seek(start)
    meta = read_dataset(
        stream, is_implicit_VR=False, is_little_endian=True, stop_when=lambda tag, *_: tag >> 16 != _META_GROUP
    )
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return
    inflater, left = zlib.decompressobj(-zlib.MAX_WBITS), LARGEST_INFLATED
    while not inflater.eof and (block := inflater.unconsumed_tail or stream.read(_LARGE_READ_BYTES)):
        left -= len(inflater.decompress(block, _LARGE_READ_BYTES))
        if left < 0:
            raise UnreadableSource("UNSUPPORTED", "it inflates to more than 1 GiB; export it uncompressed", str(path))


def _is_cut(dataset: Dataset, size: int) -> bool:
    """Tell whether a data set without pixels is empty, or its last element should be longer: pydicom takes either."""
    if not len(dataset):
        return True
    last = cast("DataElement | RawDataElement", dataset.get_item(max(dataset.keys()), keep_deferred=True))
    return isinstance(last, RawDataElement) and last.length != _UNDEFINED and last.value_tell + last.length > size


def _begins_like_dicom(head: bytes) -> bool:
    """Tell whether a file without preamble begins with an element of group 0002 or 0008."""
    if len(head) < 8:
        return False
    little, big = struct.unpack("<H", head[:2])[0], struct.unpack(">H", head[:2])[0]
    explicit = head[4:6].isalpha() and head[4:6].isupper()
    if little in (0x0002, 0x0008):
        return explicit or struct.unpack("<I", head[4:8])[0] <= _LARGEST_FIRST_ELEMENT
    return big in (0x0002, 0x0008) and explicit


def _what_else(path: Path, head: bytes) -> str:
    text = all(byte >= 0x20 or byte in b"\t\r\n\f\x1b" for byte in head)
    found = "it holds text" if text else "it has neither the prefix DICM nor a DICOM element at its start"
    named = f", although its name ends in {path.suffix}" if path.suffix.lower() in (".dcm", ".dicom", ".ima") else ""
    return f"not a DICOM file: {found}{named}"


def _meta_class(dataset: Dataset) -> str:
    return str(dataset.file_meta.get("MediaStorageSOPClassUID", ""))


def _transfer_syntax(dataset: Dataset) -> UID:
    """Give the stated transfer syntax, else the one that pydicom found from the first bytes."""
    stated = dataset.file_meta.get("TransferSyntaxUID")
    if stated:
        return UID(str(stated))
    implicit, little = dataset.original_encoding
    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def _place(stream: BinaryIO, dataset: Dataset) -> PixelPlace | None:
    """Read the element header at which pydicom stopped; None at the end of the file."""
    implicit, little = dataset.original_encoding
    order = "<" if little else ">"
    start = stream.read(8)
    if len(start) < 8:
        return None
    group, element = struct.unpack(f"{order}HH", start[:4])
    keyword = PIXEL_KEYWORDS.get(group << 16 | element)
    if keyword is None:
        return None
    if implicit:
        vr, length = "OW", struct.unpack(f"{order}I", start[4:])[0]
    else:
        vr, length = start[4:6].decode("ascii"), struct.unpack(f"{order}I", stream.read(4))[0]
    offset = stream.tell()
    available = stream.seek(0, io.SEEK_END) - offset
    return PixelPlace(keyword, vr, offset, None if length == _UNDEFINED else length, None, available)


def _place_in_deflated(path: Path) -> PixelPlace | None:
    """Inflate the data set and find the pixels in it: a deflated file has no other way in."""
    whole = dcmread(path, force=True)
    for keyword in PIXEL_KEYWORDS.values():
        if keyword in whole:
            value = bytes(whole[keyword].value)
            return PixelPlace(keyword, whole[keyword].VR, 0, len(value), value, len(value))
    return None
