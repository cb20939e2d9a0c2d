"""One codec a transfer syntax: from a frame's compressed bytes to its samples.

All come with imagecodecs, let other threads run while they decode, and are proven equal to pydicom's own decoders on
the corpus of `tests/domains`. The fastest were measured (`benchmarks/bench_dicom_pixels.py`): libjpeg-turbo for JPEG
lossless too, OpenJPH for the lossless High-Throughput syntaxes; the lossy one stays with OpenJPEG, from which OpenJPH's
inverse differs by rounding. Never gdcm nor pylibjpeg-rle: on a damaged frame they end the process.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable
from typing import Final, NamedTuple

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from vitpipe.domains.dicom.codestream import Stated, has_end, names_colours, rle_planes, stated
from vitpipe.domains.dicom.pixelformat import PixelFormat

NATIVE: Final = frozenset({"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"})
RLE: Final = "1.2.840.10008.1.2.5"
ENCAPSULATED: Final = "1.2.840.10008.1.2.1.98"
DEFLATED_FRAMES: Final = "1.2.840.10008.1.2.8.1"
_SEEN_BYTES: Final = 31 << 20
JPEG_LOSSY: Final = frozenset({"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"})
_JPEG_LS: Final = frozenset({"1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"})

Samples = NDArray[np.generic]


class Codec(NamedTuple):
    """A library's decoder."""

    name: str
    decode: Callable[[bytes, PixelFormat, Stated], Samples]


class CutStream(ValueError):
    """A frame ends before its end marker."""


def _jpeg_lossy(data: bytes, described: PixelFormat, _: Stated) -> Samples:
    if described.photometric == "RGB" and not names_colours(data):
        # libjpeg guesses YCbCr where the stream says nothing; the header does say.
        return _samples(imagecodecs.jpeg8_decode(data, colorspace="RGB", outcolorspace="RGB"))
    return _samples(imagecodecs.jpeg8_decode(data))


def _jpeg_lossless(data: bytes, described: PixelFormat, _: Stated) -> Samples:
    if described.samples == 3:
        # The components as they are: a conversion would lose bits, and the header says what they mean.
        return _samples(imagecodecs.jpeg8_decode(data, colorspace="RGB", outcolorspace="RGB"))
    return _samples(imagecodecs.jpeg8_decode(data))


def _jpeg_ls(data: bytes, _: PixelFormat, __: Stated) -> Samples:
    return _samples(imagecodecs.jpegls_decode(data))


def _jpeg_2000(data: bytes, _: PixelFormat, __: Stated) -> Samples:
    return _samples(imagecodecs.jpeg2k_decode(data))


def _high_throughput(data: bytes, described: PixelFormat, found: Stated) -> Samples:
    """Decode by OpenJPH, and by OpenJPEG where OpenJPH may have stopped half-way.

    imagecodecs drops the error that OpenJPH raises on a damaged stream: the lines from there to the last stay zero. A
    zero last line is thus no proof of a whole frame; OpenJPEG gives the same values or the error.
    """
    kind = "i" if found.signed else "u"
    out = np.zeros(described.frame_shape, f"{kind}{1 if found.precision <= 8 else 2}")
    decoded = _samples(imagecodecs.htj2k_decode(data, out=out))
    return decoded if decoded[-1].any() else _jpeg_2000(data, described, found)


def _samples(values: object) -> Samples:
    assert isinstance(values, np.ndarray)
    return values


_TURBO: Final = "libjpeg-turbo"
CODECS: Final[dict[str, Codec]] = {
    "1.2.840.10008.1.2.4.50": Codec(_TURBO, _jpeg_lossy),
    "1.2.840.10008.1.2.4.51": Codec(_TURBO, _jpeg_lossy),
    "1.2.840.10008.1.2.4.57": Codec(_TURBO, _jpeg_lossless),
    "1.2.840.10008.1.2.4.70": Codec(_TURBO, _jpeg_lossless),
    "1.2.840.10008.1.2.4.80": Codec("CharLS", _jpeg_ls),
    "1.2.840.10008.1.2.4.81": Codec("CharLS", _jpeg_ls),
    "1.2.840.10008.1.2.4.90": Codec("OpenJPEG", _jpeg_2000),
    "1.2.840.10008.1.2.4.91": Codec("OpenJPEG", _jpeg_2000),
    "1.2.840.10008.1.2.4.201": Codec("OpenJPH", _high_throughput),
    "1.2.840.10008.1.2.4.202": Codec("OpenJPH", _high_throughput),
    "1.2.840.10008.1.2.4.203": Codec("OpenJPEG", _jpeg_2000),
}
READ: Final = frozenset({*NATIVE, *CODECS, RLE, ENCAPSULATED, DEFLATED_FRAMES})
"""Transfer syntaxes that are read where the libraries are whole; `vitpipe.domains.dicom.support` tries them here."""


@functools.cache
def _keep_freed_memory() -> None:
    """Let the C library keep for the next frame what a codec frees after one.

    glibc maps blocks over 128 KiB anew each time, which costs OpenJPH a third of its time in page faults, until it has
    seen a larger one freed (mallopt(3), M_MMAP_THRESHOLD). This one is never touched, so it takes no memory.
    """
    np.empty(_SEEN_BYTES, np.uint8)


def decode_stream(syntax: str, data: bytes, described: PixelFormat) -> Samples:
    """Decode a frame's JPEG, JPEG-LS or JPEG 2000 stream.

    Args:
        syntax: one of `CODECS`.
        data: the stream.
        described: what the header says.

    Returns:
        Samples (rows, cols) or (rows, cols, 3), in the dtype of the header where the stream's has the same or a lesser
        width; the sign is extended from the stream's own precision where the stream knows no sign.

    Raises:
        CutStream: its end is missing.
        ValueError: the stream states another size than the header, or more bits than are allocated.
        RuntimeError: the codec refuses it.
    """
    _keep_freed_memory()
    if not has_end(data):
        raise CutStream
    found = stated(data)
    if found.shape != (described.rows, described.cols, described.samples) or found.precision > described.bits_allocated:
        raise ValueError("the stream is not what the header says")
    decoded = CODECS[syntax].decode(data, described, found)
    if decoded.shape != described.frame_shape:
        raise ValueError("the decoded frame has another shape than the header says")
    return _with_sign(decoded, syntax, described, found)


def _with_sign(decoded: Samples, syntax: str, described: PixelFormat, found: Stated) -> Samples:
    """Give the header's dtype: a stream may state another sign, or fewer bits.

    A signed header over a JPEG-LS stream, which has no sign, or over a JPEG 2000 stream that states none: the values
    are two's complement in the stream's precision (PS3.5 8.2.3 and 8.2.4).
    """
    dtype = described.stored_dtype
    if decoded.dtype.itemsize > dtype.itemsize:
        raise ValueError("the decoded samples are wider than the header says")
    signless = found.signed is False or (found.signed is None and syntax in _JPEG_LS)
    shift = 8 * decoded.dtype.itemsize - found.precision
    if described.signed and signless:
        signed = np.ascontiguousarray(decoded).view(f"i{decoded.dtype.itemsize}")
        decoded = (signed << shift) >> shift if shift > 0 else signed
    if decoded.dtype.itemsize == dtype.itemsize:
        return np.ascontiguousarray(decoded).view(dtype)
    return decoded.astype(dtype)


def decode_runs(data: bytes, described: PixelFormat) -> Samples:
    """Decode an RLE frame segment by segment: the whole-frame decoders end the process on a damaged one.

    Returns:
        (samples, rows * cols): RLE keeps the samples plane by plane; PlanarConfiguration has no say (PS3.5 annex G).

    Raises:
        ValueError: the segments do not fit the header.
        RuntimeError: a segment does not decode.
    """
    dtype, pixels = described.stored_dtype, described.rows * described.cols
    segments = rle_planes(data)
    if described.bits_allocated == 1 or len(segments) != described.samples * dtype.itemsize:
        raise ValueError("the number of RLE segments is not that of the bytes of a pixel")
    unsigned = np.zeros((described.samples, pixels), f"u{dtype.itemsize}")
    # A damaged segment may unpack to 64 times its size.
    room = bytearray(2 * pixels + 256)
    for place, segment in enumerate(segments):
        # Padding may follow the pixels of a segment, never precede them.
        unpacked = np.frombuffer(imagecodecs.packbits_decode(segment, out=room), np.uint8)[:pixels]
        if len(unpacked) < pixels:
            raise ValueError("an RLE segment holds fewer bytes than the frame has pixels")
        # The most significant byte of a sample comes first.
        values = unsigned[place // dtype.itemsize]
        if place % dtype.itemsize:
            values <<= 8
        values |= unpacked
    return unsigned.view(dtype)


def inflate_frame(data: bytes, described: PixelFormat) -> bytes:
    """Inflate a frame of Deflated Image Frame Compression (PS3.5 A.4.13, RFC 1951); never more than the frame holds.

    Raises:
        CutStream: it ends early.
        zlib.error: it is no deflated stream.
    """
    wanted = -(-described.frame_bits // 8)
    inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, wanted)
    if len(inflated) < wanted:
        raise CutStream
    return inflated
