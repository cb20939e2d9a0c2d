"""Decode one frame of a file to its stored values.

One codec a transfer syntax: imagecodecs, which lets other threads run, proven equal to pydicom's own decoders on the
corpus of `tests/domains`; where it fails, pylibjpeg, if ``vitpipe[gpl-decoders]`` is installed. Never gdcm: on a
damaged JPEG it ends the process (`terminate called after throwing gdcm::Exception`), and the run with it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import convert_color_space
from pydicom.pixels.utils import expand_ybr422
from pydicom.uid import UID, ExplicitVRBigEndian

from vitpipe.domains.dicom.codecs import (
    DEFLATED_FRAMES,
    ENCAPSULATED,
    JPEG_LOSSY,
    NATIVE,
    RLE,
    CutStream,
    decode_runs,
    decode_stream,
    inflate_frame,
)
from vitpipe.domains.dicom.fields import value_of
from vitpipe.domains.dicom.filebytes import Expected, FileBytes, Scratch, head_of
from vitpipe.domains.dicom.files import PARSE_ERRORS, DicomFile, read_file
from vitpipe.domains.dicom.fragments import Span, find_fragments, frames_of
from vitpipe.domains.dicom.pixelformat import PixelFormat, read_format
from vitpipe.domains.dicom.quiet import quiet
from vitpipe.domains.dicom.support import support
from vitpipe.errors import UnreadableSource

__all__ = ["FrameDecoder", "check_decodable", "check_length", "head_of", "stored_values"]

# imagecodecs' errors derive from RuntimeError; pydicom raises that and the parse errors.
_DECODE_ERRORS: Final = (*PARSE_ERRORS, RuntimeError)


def check_decodable(item: DicomFile) -> None:
    """Refuse a transfer syntax that nothing here reads.

    Raises:
        UnreadableSource: ``UNDECODABLE``, with the syntax's UID and name.
    """
    syntax = item.transfer_syntax
    encapsulated = item.pixels is not None and item.pixels.length is None
    if syntax in NATIVE and encapsulated:
        raise UnreadableSource(
            "UNDECODABLE",
            f"the pixels are compressed, but the file states {_named(syntax)}; set its TransferSyntaxUID",
            str(item.path),
        )
    found = support(str(syntax))
    if not found.decoder:
        raise UnreadableSource(
            "UNDECODABLE", f"its transfer syntax {_named(syntax)} is not read; {found.remedy}", str(item.path)
        )


def check_length(item: DicomFile, described: PixelFormat) -> None:
    """Compare the bytes that are there with the bytes that the header promises; no pixel is read.

    Raises:
        UnreadableSource: ``TRUNCATED``, or ``FRAME_COUNT``: there are more frames than NumberOfFrames states, or it
            cannot be told which fragments belong to which frame.
    """
    place = item.pixels
    if place is None:
        return
    if place.length is not None:
        wanted = -(-described.frame_bits * described.frames // 8)
        found = min(place.length, place.available)
        if found < wanted:
            raise UnreadableSource(
                "TRUNCATED", f"{found} of {wanted} bytes of pixels are there; copy the file again", str(item.path)
            )
        # One byte more may make the length even.
        if place.length - wanted >= max(described.frame_bits / 8, 2):
            raise UnreadableSource(
                "FRAME_COUNT",
                f"NumberOfFrames states {described.frames}, but {place.length} bytes hold more frames of"
                f" {described.frame_bits / 8:g} bytes; correct the header, or export the file again",
                str(item.path),
            )
        return
    with FileBytes(item, None) as source:
        fragments = find_fragments(source.read, place.offset, place.offset + place.available)
        if len(fragments.spans) < described.frames or not fragments.complete:
            raise UnreadableSource(
                "TRUNCATED",
                f"{len(fragments.spans)} whole fragments for {described.frames} frames are there; copy the file again",
                str(item.path),
            )
        try:
            frames_of(fragments, described.frames, read=source.read, extended=_extended_offsets(item))
        except ValueError:
            raise UnreadableSource(
                "FRAME_COUNT",
                f"NumberOfFrames states {described.frames}, but {len(fragments.spans)} fragments do not make as many;"
                " correct the header, or export the file again",
                str(item.path),
            ) from None


def _extended_offsets(item: DicomFile) -> tuple[bytes, bytes] | None:
    offsets, lengths = (value_of(item.dataset, f"ExtendedOffsetTable{part}") for part in ("", "Lengths"))
    return (bytes(offsets), bytes(lengths)) if offsets and lengths else None


class FrameDecoder:
    """Decodes frames of one file, which is opened for each of them.

    Args:
        item: the file, as :func:`vitpipe.domains.dicom.files.read_file` gives it.
        described: its pixel format.
        expected: what the index knows of it; None: it was looked at just now.
        scratch: memory to read into; a frame is then valid until the next one is asked for.
    """

    def __init__(
        self,
        item: DicomFile,
        described: PixelFormat,
        expected: Expected | None = None,
        scratch: Scratch | None = None,
    ) -> None:
        check_decodable(item)
        if item.pixels is None:
            raise UnreadableSource("NO_PIXELS", "the object carries no pixels", str(item.path))
        self._item = item
        self._format = described
        self._place = item.pixels
        self._expected = expected
        self._scratch = scratch
        self._stamp: tuple[int, ...] | None = None
        self._frames: list[tuple[Span, ...]] | None = None

    def stored(self, frame: int) -> NDArray[np.generic]:
        """Decode one frame.

        Returns:
            (rows, cols), or (rows, cols, 3) as RGB; stored values, sign extended, bits above BitsStored cleared, in the
            machine's byte order. A palette's values are its indices.

        Raises:
            UnreadableSource: ``UNDECODABLE``, ``TRUNCATED`` or ``CHANGED``.
        """
        try:
            with FileBytes(self._item, self._expected) as source:
                if self._stamp not in (None, source.stamp):
                    raise UnreadableSource(
                        "CHANGED", "it was changed while it was read; ingest again", str(self._item.path)
                    )
                self._stamp = source.stamp
                values = self._decode(source, frame)
            # The head was checked: it needs no second look.
            self._expected = None
        except _DECODE_ERRORS as error:
            raise UnreadableSource(
                "UNDECODABLE",
                f"frame {frame} in {_named(self._item.transfer_syntax)} does not decode ({type(error).__name__})"
                f"{_remedy(self._item.transfer_syntax)}",
                str(self._item.path),
            ) from None
        except OSError as error:
            raise UnreadableSource(
                "UNREADABLE_FILE", f"it cannot be read any more ({type(error).__name__})", str(self._item.path)
            ) from None
        return values

    def _decode(self, source: FileBytes, frame: int) -> NDArray[np.generic]:
        syntax = str(self._item.transfer_syntax)
        if self._place.length is not None:
            return self._colours(self._unused_bits(self._native(source, frame)))
        data = self._encapsulated(source, frame)
        if syntax in (ENCAPSULATED, DEFLATED_FRAMES):
            try:
                raw = inflate_frame(data, self._format) if syntax == DEFLATED_FRAMES else data
            except CutStream:
                raise self._cut() from None
            values = np.frombuffer(raw, np.uint8)
            if 8 * len(values) < self._format.frame_bits:
                raise self._cut()
            return self._colours(self._unused_bits(self._from_bytes(values, 0, swapped=False)))
        try:
            decoded = self._by_codec(data)
        except _DECODE_ERRORS:
            with quiet():
                return self._by_pylibjpeg(data)
        return self._colours(self._unused_bits(decoded))

    def _encapsulated(self, source: FileBytes, frame: int) -> bytes:
        if self._frames is None:
            start, end = self._place.offset, self._place.offset + self._place.available
            self._frames = frames_of(
                find_fragments(source.read, start, end),
                self._format.frames,
                read=source.read,
                extended=_extended_offsets(self._item),
            )
        parts = [source.read(*span) for span in self._frames[frame]]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _native(self, source: FileBytes, frame: int) -> NDArray[np.generic]:
        """Take an uncompressed frame from its bytes."""
        described = self._format
        first_bit = frame * described.frame_bits
        first, end = first_bit // 8, -(-(first_bit + described.frame_bits) // 8)
        swapped = self._item.transfer_syntax == ExplicitVRBigEndian
        words = swapped and described.bits_allocated <= 8 and self._place.vr == "OW"
        if words:
            # Big endian files keep bytes in 16-bit words.
            first, end = first // 2 * 2, -(-end // 2) * 2
        data = self._scratch.take(end - first) if self._scratch else np.empty(end - first, np.uint8)
        found = source.fill(self._place.offset + first, data)
        if found < end - first - words:
            raise self._cut()
        data[found:] = 0
        if words:
            data = data.view(">u2").astype("<u2").view(np.uint8)
        return self._from_bytes(data, first_bit - 8 * first, swapped=swapped)

    def _from_bytes(self, data: NDArray[np.uint8], first_bit: int, *, swapped: bool) -> NDArray[np.generic]:
        """Give a frame of the bytes in which it begins at a bit."""
        described = self._format
        if described.bits_allocated == 1:
            values = np.unpackbits(data, bitorder="little")[first_bit : first_bit + described.frame_bits]
            return values.reshape(described.rows, described.cols)
        data = data[first_bit // 8 : (first_bit + described.frame_bits) // 8]
        if described.photometric == "YBR_FULL_422":
            expanded = expand_ybr422(data.tobytes(), described.bits_allocated)
            return np.frombuffer(expanded, np.uint8).reshape(described.rows, described.cols, 3)
        dtype = described.stored_dtype
        values = data.view(dtype.newbyteorder(">" if swapped else "<")).astype(dtype, copy=False)
        return self._planes(values, by_plane=described.planar)

    def _planes(self, values: NDArray[np.generic], *, by_plane: bool) -> NDArray[np.generic]:
        described = self._format
        if described.samples == 1:
            return values.reshape(described.rows, described.cols)
        if by_plane:
            return values.reshape(described.samples, described.rows, described.cols).transpose(1, 2, 0)
        return values.reshape(described.rows, described.cols, described.samples)

    def _by_codec(self, data: bytes) -> NDArray[np.generic]:
        syntax = str(self._item.transfer_syntax)
        try:
            if syntax == RLE:
                return self._planes(decode_runs(data, self._format).ravel(), by_plane=True)
            return decode_stream(syntax, data, self._format)
        except CutStream:
            raise self._cut() from None

    def _cut(self) -> UnreadableSource:
        return UnreadableSource("TRUNCATED", "a frame ends before its end; copy the file again", str(self._item.path))

    def _unused_bits(self, values: NDArray[np.generic]) -> NDArray[np.generic]:
        """Extend the sign from the highest stored bit and clear the bits above it (overlays), PS3.5 8.1.1."""
        described = self._format
        shift = 8 * values.dtype.itemsize - described.bits_stored
        if described.float_bits or described.bits_allocated == 1 or shift <= 0 or values.dtype.kind not in "iu":
            return values
        integers: NDArray[np.integer] = values  # type: ignore[assignment]
        if not described.signed and int(integers.max()) >> described.bits_stored == 0:
            return values
        return (integers << shift) >> shift

    def _colours(self, values: NDArray[np.generic]) -> NDArray[np.generic]:
        """Convert YBR to RGB where the codec has not: JPEG and JPEG 2000's own transforms are undone by them."""
        if self._format.photometric in ("YBR_FULL", "YBR_FULL_422") and self._item.transfer_syntax not in JPEG_LOSSY:
            converted: NDArray[np.generic] = convert_color_space(np.ascontiguousarray(values), "YBR_FULL", "RGB")
            return converted
        return values

    def _by_pylibjpeg(self, data: bytes) -> NDArray[np.generic]:
        described, single = self._format, Dataset()
        single.file_meta = FileMetaDataset()
        single.file_meta.TransferSyntaxUID = self._item.transfer_syntax
        single.Rows, single.Columns, single.NumberOfFrames = described.rows, described.cols, 1
        single.SamplesPerPixel, single.PhotometricInterpretation = described.samples, described.photometric
        single.BitsAllocated, single.BitsStored = described.bits_allocated, described.bits_stored
        single.PixelRepresentation = int(described.signed)
        single.PlanarConfiguration = int(described.planar)
        single.PixelData = encapsulate([data], has_bot=False)
        values, _ = get_decoder(self._item.transfer_syntax).as_array(single, index=0, decoding_plugin="pylibjpeg")
        return values


def stored_values(path: Path) -> NDArray[np.generic]:
    """Decode all frames of a file to stored values, for checks against other decoders.

    Returns:
        (rows, cols), (rows, cols, 3), or either with a leading axis of frames.

    Raises:
        UnreadableSource: with the code of what is wrong.
    """
    with quiet():
        item = read_file(path)
        described = read_format(item)
        check_decodable(item)
        check_length(item, described)
        decoder = FrameDecoder(item, described)
        frames = [decoder.stored(frame).copy() for frame in range(described.frames)]
    return frames[0] if described.frames == 1 else np.stack(frames)


def _named(syntax: UID) -> str:
    # A private or made-up UID is not shown: it may come from a site's own root.
    if not str(syntax).startswith("1.2.840.10008."):
        return "a private transfer syntax"
    return f"{syntax} ({syntax.name})"


def _remedy(syntax: UID) -> str:
    if str(syntax).startswith(("1.2.840.10008.1.2.4.5", "1.2.840.10008.1.2.4.7", "1.2.840.10008.1.2.4.8")):
        return "; pip install 'vitpipe[gpl-decoders]' adds another decoder for it"
    return "; export the file again, uncompressed"
