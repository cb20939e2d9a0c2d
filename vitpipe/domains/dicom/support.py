"""Which transfer syntaxes decode on this machine: a tiny frame of each is decoded, not merely a library imported."""

from __future__ import annotations

import base64
import functools
import itertools
import zlib
from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
from pydicom._uid_dict import UID_dictionary
from pydicom.uid import UID

from vitpipe.domains.dicom.codecs import CODECS, DEFLATED_FRAMES, NATIVE, READ, RLE, decode_runs, decode_stream
from vitpipe.domains.dicom.pixelformat import PixelFormat
from vitpipe.records import Findings, Json

_EDGE: Final = 8
_TRANSCODE: Final = "transcode it, for example to JPEG 2000 lossless"
_REINSTALL: Final = "pip install --force-reinstall imagecodecs"
# What one has to do about it, by the beginning of the UID; the first that fits.
_REMEDIES: Final = (
    ("1.2.840.10008.1.2.4.10", "a video: export its frames as images"),
    ("1.2.840.10008.1.2.4.94", "the pixels lie on a JPIP server: fetch them, then convert"),
    ("1.2.840.10008.1.2.4.95", "the pixels lie on a JPIP server: fetch them, then convert"),
    ("1.2.840.10008.1.2.4.204", "the pixels lie on a JPIP server: fetch them, then convert"),
    ("1.2.840.10008.1.2.4.205", "the pixels lie on a JPIP server: fetch them, then convert"),
    ("1.2.840.10008.1.2.7", "a live stream, not a file: record it as images"),
    ("1.2.840.10008.1.2.6", "no encoding of pixels"),
)
# Of PS3.6, but not yet in pydicom's dictionary.
_NEWER: Final = {DEFLATED_FRAMES: "Deflated Image Frame Compression"}
_JPEG_8: Final = (
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAMCAgMCAgMDAwMEAwMEBQgFBQQEBQoHBwYIDAoMDAsKCwsNDhIQDQ4RDgsLEBYQERMUFRUVDA8XGBYU"
    "GBIUFRT/wAALCAAIAAgBAREA/8QAHwAAAQUBAQEBAQEAAAAAAAAAAAECAwQFBgcICQoL/8QAtRAAAgEDAwIEAwUFBAQAAAF9AQIDAAQRBRIhMUEG"
    "E1FhByJxFDKBkaEII0KxwRVS0fAkM2JyggkKFhcYGRolJicoKSo0NTY3ODk6Q0RFRkdISUpTVFVWV1hZWmNkZWZnaGlqc3R1dnd4eXqDhIWGh4iJ"
    "ipKTlJWWl5iZmqKjpKWmp6ipqrKztLW2t7i5usLDxMXGx8jJytLT1NXW19jZ2uHi4+Tl5ufo6erx8vP09fb3+Pn6/9oACAEBAAA/APmTw1+zb9z/"
    "AEX/AMdr/9k="
)
_JPEG_12: Final = (
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAMCAgMCAgMDAwMEAwMEBQgFBQQEBQoHBwYIDAoMDAsKCwsNDhIQDQ4RDgsLEBYQERMUFRUVDA8XGBYU"
    "GBIUFRT/wQALDAAIAAgBAREA/8QAFAABAAAAAAAAAAAAAAAAAAAADP/EABwQAAAGAwAAAAAAAAAAAAAAAAAKDCg2RVNicf/aAAgBAQAAPwAyoW4T"
    "ccWa5iouaD//2Q=="
)
_JPEG_LOSSLESS: Final = (
    "/9j/4AAQSkZJRgABAQAAAQABAAD/wwALDAAIAAgBAREA/8QAFgABAQEAAAAAAAAAAAAAAAAABgkM/9oACAEBAAEAAM/+lSpUqVKlpYlSpUqVKlpY"
    "lSpUqVKlpYlSpUqVKlpYlSpUqVKlpYlSpUqVKlpYlSpUqVKlpYlSpUqVKl//2Q=="
)
_JPEG_LS: Final = (
    "/9j/6AAgU1BJRkYAAgAAAQAAAAgAAAAIChAGAQAAASwAAAEs/+gACAAAAAH/2P/3AAsQAAgACAEBEQD/+AANAf//ABIAQwEUAED/2gAIAQEAAAAA"
    "okxJiTEeRZDoOWIlRIkaRKFQIlZYn08nU4trSJGVrKwrqyqqJGypTUlFQT09IiUpy1asWLFCShWrVKlSpQEnUqVKlQoT4P/Z"
)
_JPEG_2000: Final = (
    "/0//UQApAAAAAAAIAAAACAAAAAAAAAAAAAAACAAAAAgAAAAAAAAAAAABDwEB/1IADAAAAAEAAAQEAAH/XAAEQID/ZAAlAAFDcmVhdGVkIGJ5IE9w"
    "ZW5KUEVHIHZlcnNpb24gMi41LjT/kAAKAAAAAAB+AAH/k9/4k2ASK2cWj4+hghgWUvJ7OEKxzA5dn6W6mKrzXYx0yKqjUpWNKA9Vavf02Cp70qBN"
    "gp0ybxaCehcE28bF+AnEhuNKekTYrlHK4wHVYiW+VblJb5ZSva081p5rTzEgdLq2l1bS6tpeHDYbDYbDYa//2Q=="
)
_HTJ2K: Final = (
    "/0//UQApQAAAAAAIAAAACAAAAAAAAAAAAAAACAAAAAgAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wAEyCIkJCQkJCQkJCQ"
    "kJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAFkAAf+TwAAm+/kFB3QAAADAABLAABMAUAGHdACw+gMHdADAABNAABOAJNIB"
    "AnQARCXqAKNUAMAAKiAAFWAIgiCqcIJ1AFZasWLlwEIB7LYA/9k="
)
# Pixel (row, col) of the encoded frame is row * the first + col * the second; in 8 or in 16 allocated bits.
_FRAMES: Final[dict[str, tuple[str, tuple[int, int, int]]]] = {
    "1.2.840.10008.1.2.4.50": (_JPEG_8, (16, 4, 8)),
    "1.2.840.10008.1.2.4.51": (_JPEG_12, (256, 64, 16)),
    "1.2.840.10008.1.2.4.57": (_JPEG_LOSSLESS, (300, 37, 16)),
    "1.2.840.10008.1.2.4.70": (_JPEG_LOSSLESS, (300, 37, 16)),
    "1.2.840.10008.1.2.4.80": (_JPEG_LS, (300, 37, 16)),
    "1.2.840.10008.1.2.4.81": (_JPEG_LS, (300, 37, 16)),
    "1.2.840.10008.1.2.4.90": (_JPEG_2000, (300, 37, 16)),
    "1.2.840.10008.1.2.4.91": (_JPEG_2000, (300, 37, 16)),
    "1.2.840.10008.1.2.4.201": (_HTJ2K, (300, 37, 16)),
    "1.2.840.10008.1.2.4.202": (_HTJ2K, (300, 37, 16)),
    "1.2.840.10008.1.2.4.203": (_HTJ2K, (300, 37, 16)),
}
_LOSSY_LEVELS: Final = 4
"""How far a lossy frame of the above may lie from its original."""


class Support(NamedTuple):
    """Whether a transfer syntax decodes here."""

    uid: str
    name: str
    decoder: str
    """Empty: it does not."""
    remedy: str
    """What to do where it does not."""


@functools.cache
def support(uid: str) -> Support:
    """Tell whether a transfer syntax decodes here, by which library, else what to do.

    The outcome of the trial is kept: it hangs on what is installed alone.
    """
    known = UID(uid)
    name = known.name if known.is_transfer_syntax else _NEWER.get(uid, "a private transfer syntax")
    if uid not in READ:
        remedy = next((text for start, text in _REMEDIES if uid.startswith(start)), _TRANSCODE)
        return Support(uid, name, "", remedy)
    if uid in NATIVE or uid not in (RLE, DEFLATED_FRAMES, *CODECS):
        return Support(uid, name, "numpy", "")
    decoder = {RLE: "imagecodecs PackBits", DEFLATED_FRAMES: "zlib"}.get(uid) or f"imagecodecs {CODECS[uid].name}"
    return Support(uid, name, decoder, "") if _tried(uid) else Support(uid, name, "", _REINSTALL)


def _tried(uid: str) -> bool:
    """Decode a frame whose pixels are known."""
    try:
        if uid == DEFLATED_FRAMES:
            return bool(zlib.ZLIB_VERSION)
        if uid == RLE:
            return _runs_decode()
        encoded, (down, right, bits) = _FRAMES[uid]
        wanted = np.add.outer(np.arange(_EDGE) * down, np.arange(_EDGE) * right)
        found = decode_stream(uid, base64.b64decode(encoded), _format(bits))
    # imagecodecs' own errors are RuntimeErrors; a codec that was left out of its build raises an ImportError.
    except (ImportError, RuntimeError, ValueError):
        return False
    return int(np.abs(found.astype(np.int64) - wanted).max()) <= (_LOSSY_LEVELS if bits == 8 or down == 256 else 0)


def _runs_decode() -> bool:
    """Decode two segments: a run of 64 times 1, the high bytes, and of 64 times 44, the low ones: 300."""
    header = np.array([2, 64, 66, *[0] * 13], "<u4").tobytes()
    found = decode_runs(header + bytes([193, 1, 193, 44]), _format(16))
    return bool((found == 300).all())


def _format(bits: int) -> PixelFormat:
    return PixelFormat(
        frames=1,
        rows=_EDGE,
        cols=_EDGE,
        samples=1,
        bits_allocated=bits,
        bits_stored=bits,
        signed=False,
        photometric="MONOCHROME2",
        float_bits=0,
        slopes=(1.0,),
        intercepts=(0.0,),
        lut_bits=None,
        palette_bits=None,
        units="stored",
        inverted=False,
    )


def all_support() -> Iterator[Support]:
    """Iterate over all transfer syntaxes of the standard, in the order of PS3.6 annex A."""
    listed = [uid for uid, entry in UID_dictionary.items() if entry[1] == "Transfer Syntax"]
    # The newest ones may be missing in the dictionary of this pydicom.
    for uid in dict.fromkeys((*listed, *sorted(READ))):
        yield support(uid)


def _together(uids: list[str]) -> str:
    """Write the first UID whole, the others by what stands after what they share with it: `1.2.840.1, .2, .3`."""
    # Of equal beginnings as texts, up to the last dot: UIDs are no paths.
    same = sum(1 for _ in itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*uids, strict=False)))
    shared = uids[0][:same].rfind(".")
    return ", ".join((uids[0], *(uid[shared:] for uid in uids[1:])))


def decoder_findings() -> Findings:
    """Say for `vitpipe check` what decodes here by which library, and what to do about the rest."""
    found = list(all_support())
    lines = ["transfer syntaxes that decode here:"]
    lines += [f"  {item.uid}  {item.name}, by {item.decoder}" for item in found if item.decoder]
    by_remedy: dict[str, list[str]] = {}
    for item in found:
        if not item.decoder:
            by_remedy.setdefault(item.remedy, []).append(item.uid)
    lines.append("transfer syntaxes that do not, and what to do:")
    lines += [f"  {_together(uids)}: {remedy}" for remedy, uids in by_remedy.items()]
    rows: list[Json] = [
        {"uid": item.uid, "name": item.name, "decoder": item.decoder, "remedy": item.remedy} for item in found
    ]
    return Findings(tuple(lines), {"transfer_syntaxes": rows})
