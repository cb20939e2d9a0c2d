"""Photographs: a tree of JPEG, PNG, TIFF, WebP, BMP and GIF files, found by content.

A read gives upright pixels (EXIF orientation applied) as ``intensity`` or ``red, green, blue``. Of the EXIF only camera
make, camera model and the year leave this module: no place, no owner, no day.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import re
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from vitpipe.digest import digest_of_digests
from vitpipe.domains.base import ScanContext
from vitpipe.errors import TransientError, UnreadableSource
from vitpipe.records import Attribute, FileRecord, Grid, Json, Rejected, Source, Window

_FORMATS: Final = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF")
_MAGIC: Final = (
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"II*\x00",
    b"MM\x00*",
    b"II+\x00",
    b"MM\x00+",
    b"RIFF",
    b"BM",
    b"GIF87a",
    b"GIF89a",
)
_IMAGE_NAMES: Final = re.compile(r"\.(jpe?g|jpe|jfif|png|tiff?|webp|bmp|gif|heic|heif|avif|jp2|jxl|dng|cr2|nef)$", re.I)
_TRANSIENT: Final = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EMFILE, errno.ENFILE)
_MOST_PIXELS: Final = 178_956_970
"""A frame with more is refused: 512 MiB as RGB, the bound from which Pillow speaks of a decompression bomb."""
_MOST_FRAMES: Final = 10_000
# What Pillow's parsers raise on broken bytes; they raise no error of their own.
_BROKEN: Final = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, ArithmeticError, RuntimeError, struct.error,
    zlib.error,
)  # fmt: skip
_GREY: Final = ("intensity",)
_COLOUR: Final = ("red", "green", "blue")
_TURNED: Final = (5, 6, 7, 8)
"""EXIF orientations that swap rows and columns."""


class Images:
    """The domain of photographs; see :class:`vitpipe.domains.base.Domain`.

    Codes of rejected files: ``ZERO_BYTES NOT_IMAGE BAD_HEADER TOO_LARGE UNSUPPORTED UNREADABLE_FILE``; at a read
    ``TRUNCATED UNDECODABLE CHANGED UNREADABLE_FILE``. Notes of sources: ``CMYK FIRST_FRAME_ONLY``.
    """

    name = "images"

    def listed_in(self, path: Path) -> None:
        """No photograph names others."""

    def index(self, path: Path, context: ScanContext) -> Mapping[str, Json] | Rejected:  # noqa: ARG002 - the seam's
        """Read one file's header.

        Raises:
            TransientError: the store does not answer.
        """
        uri = str(path)
        try:
            with path.open("rb") as stream:
                start = stream.read(32)
        except OSError as error:
            if error.errno in _TRANSIENT:
                raise TransientError(f"{uri} cannot be read now: {error.strerror}") from error
            reason = f"the file cannot be opened ({error.strerror}); check that it may be read"
            return Rejected(uri, "UNREADABLE_FILE", reason)
        if not start.startswith(_MAGIC) or (start[:4] == b"RIFF" and start[8:12] != b"WEBP"):
            return _not_image(path, start)
        try:
            with _open_image(path) as image:
                return _header(image, start, uri)
        except Image.DecompressionBombError:
            return _too_large(uri, "its header promises more")
        except UnidentifiedImageError:
            reason = (
                "it begins as an image, but its header cannot be read: damaged, or of a kind that is not supported; a "
                "TIFF of many bands is read with `source: {kind: geotiff, ...}`"
            )
            return Rejected(uri, "BAD_HEADER", reason)
        except _BROKEN:
            return Rejected(uri, "BAD_HEADER", "it begins as an image, but its header is damaged; fetch it again")

    def assemble(self, records: Sequence[FileRecord], context: ScanContext) -> Iterator[Source | Rejected]:
        """Make a source of every file, in the order of paths."""
        for record in sorted(records, key=lambda record: record.path):
            yield _source(record, context.root)

    @contextlib.contextmanager
    def open(self, source: Source) -> Iterator[ImageRaster]:
        """Open a photograph.

        Raises:
            UnreadableSource: the file is gone.
        """
        if not Path(source.files[0]).is_file():
            raise UnreadableSource("UNREADABLE_FILE", "the file is gone; run the ingest again", source.uri)
        yield ImageRaster(source)


class ImageRaster:
    """An opened photograph: a frame is decoded once, whole, and its windows are cut from it."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._frame = -1
        self._pixels: NDArray[Any] = np.empty(0)
        self._valid: NDArray[np.bool_] = np.empty(0, np.bool_)

    @property
    def grid(self) -> Grid:
        """Frames, and the size of the upright picture."""
        return self._source.grid

    @property
    def channels(self) -> tuple[str, ...]:
        """``intensity``, or ``red, green, blue``."""
        return self._source.channels

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Dtype of a read."""
        return np.dtype(self._source.dtype)

    @property
    def block_rows(self) -> int:
        """All rows: a photograph is decoded whole."""
        return self.grid.height

    def read(self, window: Window) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
        """Read a window.

        Returns:
            Pixels (channels, height, width) as stored, and the valid mask (height, width): not fully transparent.

        Raises:
            UnreadableSource: `TRUNCATED`, `UNDECODABLE`, or changed since the ingest.
            TransientError: the store does not answer.
            ValueError: the window begins outside the grid, or names a frame that is not there.
        """
        if not 0 <= window.frame < self.grid.frames or window.row < 0 or window.col < 0:
            raise ValueError(f"frames 0 to {self.grid.frames - 1}, rows and cols from 0; got {window}")
        if window.frame != self._frame:
            self._pixels, self._valid = self._decode(window.frame)
            self._frame = window.frame
        rows = slice(window.row, window.row + window.height)
        cols = slice(window.col, window.col + window.width)
        valid = np.zeros((window.height, window.width), np.bool_)
        pixels = np.zeros((len(self.channels), window.height, window.width), self.dtype)
        inside = self._valid[rows, cols]
        valid[: inside.shape[0], : inside.shape[1]] = inside
        pixels[:, : inside.shape[0], : inside.shape[1]] = self._pixels[:, rows, cols]
        return pixels, valid

    def groups(self, windows: Sequence[Window]) -> list[str]:
        """Give the source itself as the group of every window."""
        return [self._source.group_id] * len(windows)

    def _decode(self, frame: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        path = Path(self._source.files[0])
        try:
            with _open_image(path) as image:
                stored = _decode_frame(image, path, frame)
        except FileNotFoundError as error:
            reason = "the file is gone; run the ingest again"
            raise UnreadableSource("UNREADABLE_FILE", reason, self._source.uri) from error
        except (*_BROKEN, Image.DecompressionBombError) as error:
            if isinstance(error, OSError) and error.errno in _TRANSIENT:
                raise TransientError(f"{path} cannot be read now: {error.strerror}") from error
            if "truncated" in str(error).lower() or isinstance(error, EOFError):
                reason = f"the pixels of frame {frame} end too early: cut off; fetch the file again"
                raise UnreadableSource("TRUNCATED", reason, self._source.uri) from error
            reason = f"the pixels of frame {frame} cannot be decoded: damaged; fetch the file again, or leave it out"
            raise UnreadableSource("UNDECODABLE", reason, self._source.uri) from error
        count = len(self.channels)
        expected = (self.grid.height, self.grid.width)
        if stored.shape[:2] != expected or stored.shape[2] not in (count, count + 1):
            reason = (
                f"height, width, channels {stored.shape}, the catalog has {(*expected, count)}; run the ingest again"
            )
            raise UnreadableSource("CHANGED", reason, self._source.uri)
        # One more channel than named is alpha.
        valid = stored[..., count] != 0 if stored.shape[2] > count else np.ones(expected, np.bool_)
        pixels = np.require(stored[..., :count].transpose(2, 0, 1), self.dtype, ["C", "W"])
        if pixels.dtype.kind == "f":
            valid &= np.isfinite(pixels).all(axis=0)
        if not valid.all():
            np.copyto(pixels, np.zeros((), self.dtype), where=~valid)
        return pixels, valid


# Pillow says on standard error, too, why it gives a file up; it is said once, by the rejection's code.
logging.getLogger("PIL").addHandler(logging.NullHandler())


@contextlib.contextmanager
def _open_image(path: Path) -> Iterator[Image.Image]:
    with warnings.catch_warnings():
        # Sizes are bounded by `_MOST_PIXELS`; odd EXIF is of no interest.
        warnings.simplefilter("ignore")
        with Image.open(path, formats=_FORMATS) as image:
            yield image


def _not_image(path: Path, start: bytes) -> Rejected:
    # macOS leaves ._NAME beside NAME on foreign disks.
    named = bool(_IMAGE_NAMES.search(path.name)) and not path.name.startswith("._")
    if not start:
        return Rejected(str(path), "ZERO_BYTES", "the file holds no bytes; fetch it again", junk=not named)
    kinds = "JPEG, PNG, TIFF, WebP, BMP and GIF"
    if not named:
        return Rejected(str(path), "NOT_IMAGE", f"not one of {kinds}", junk=True)
    reason = f"named {path.suffix}, but does not hold one of {kinds}; convert it to one of them"
    return Rejected(str(path), "NOT_IMAGE", reason)


def _too_large(uri: str, found: str) -> Rejected:
    reason = f"{found}; a frame of at most {_MOST_PIXELS} pixels is read: cut it up, or use `source: {{kind: geotiff}}`"
    return Rejected(uri, "TOO_LARGE", reason)


def _header(image: Image.Image, start: bytes, uri: str) -> Mapping[str, Json] | Rejected:
    width, height = _upright_size(image)
    if width * height > _MOST_PIXELS:
        return _too_large(uri, f"{width} x {height} pixels")
    plain = _plain_tiff(image)
    if image.format == "TIFF" and not plain and _orientation(image) in _TURNED:
        # Pillow 13 scrambles such pixels where they are not compressed.
        reason = "a turned TIFF (orientation 5 to 8) of this pixel format is not read; save it upright"
        return Rejected(uri, "UNSUPPORTED", reason)
    if image.mode not in _CHANNELS and not plain:
        return Rejected(uri, "UNSUPPORTED", f"pixel format {image.mode} is not read; save it as RGB or greyscale")
    channels, dtype = plain or (_CHANNELS[image.mode], _DTYPES.get(image.mode, "uint8"))
    if _png_depth(start) == 16:
        channels, dtype = _COLOUR if start[25] in (2, 6) else _GREY, "uint16"
    notes = ["CMYK"] if image.mode == "CMYK" else []
    frames = _same_frames(image) if image.format == "TIFF" else 1
    if getattr(image, "n_frames", 1) > frames:
        notes.append("FIRST_FRAME_ONLY")
    return {
        "width": width,
        "height": height,
        "frames": frames,
        "channels": list(channels),
        "dtype": dtype,
        "format": image.format,
        "notes": list(notes),
        **_camera(image),
    }


_CHANNELS: Final[Mapping[str, tuple[str, ...]]] = {
    **dict.fromkeys(("1", "L", "LA", "La", "I", "F", "I;16", "I;16L", "I;16B", "I;16N"), _GREY),
    **dict.fromkeys(("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"), _COLOUR),
}
_DTYPES: Final[Mapping[str, str]] = {
    "I": "int32",
    "F": "float32",
    **dict.fromkeys(("I;16", "I;16L", "I;16B", "I;16N"), "uint16"),
}


def _png_depth(start: bytes) -> int:
    """Bits a sample of a PNG by its IHDR (PNG 3rd edition, 11.2.1); 0 where it is none."""
    return start[24] if start.startswith(b"\x89PNG") and len(start) > 24 else 0


def _plain_tiff(image: Image.Image) -> tuple[tuple[str, ...], str] | None:
    """Tell channels and dtype of a TIFF frame that libtiff gives as it is: grey or RGB, 8 or 16 bits, unsigned.

    Pillow would cut 16-bit colours down to 8.
    """
    tags = getattr(image, "tag_v2", None)
    if tags is None:
        return None
    bits = tags.get(258, (1,))
    samples, photometric = tags.get(277, 1), tags.get(262)
    extra = len(tags.get(338, ()))
    if set(tags.get(339, (1,))) != {1} or len(set(bits)) != 1 or bits[0] not in (8, 16) or extra > 1:
        return None
    channels = {1: _GREY, 2: _COLOUR}.get(photometric)
    return (channels, f"uint{bits[0]}") if channels and samples == len(channels) + extra else None


def _decode_frame(image: Image.Image, path: Path, frame: int) -> NDArray[Any]:
    """Decode one frame, upright: (height, width, channels), alpha last."""
    if frame:
        image.seek(frame)
    plain, orientation = _plain_tiff(image), _orientation(image)
    if plain or (image.format == "PNG" and _png_depth(path.open("rb").read(32)) == 16):
        stored = _decode_deep(image, path.read_bytes(), frame)
        if plain and stored.shape[2] > len(plain[0]) and image.tag_v2[338][0] == 0:  # type: ignore[attr-defined]
            stored = stored[..., : len(plain[0])]  # an extra sample that is not said to be alpha
        return _upright(stored, orientation)
    if image.mode in ("La", "RGBa"):
        converted = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    elif image.has_transparency_data:
        converted = image.convert("LA" if _CHANNELS[image.mode] == _GREY else "RGBA")
    elif _CHANNELS[image.mode] == _COLOUR:
        converted = image.convert("RGB")
    else:
        converted = image.convert("L") if image.mode == "1" else image
    pixels = np.asarray(converted)
    # Of a TIFF, Pillow has applied the orientation.
    return _upright(pixels.reshape(*pixels.shape[:2], -1), 1 if image.format == "TIFF" else orientation)


def _decode_deep(image: Image.Image, content: bytes, frame: int) -> NDArray[Any]:
    try:
        if image.format == "PNG":
            stored: NDArray[Any] = imagecodecs.png_decode(content)
        else:
            stored = imagecodecs.tiff_decode(content, index=frame)
    except RuntimeError as error:
        if _ends_early(image, content):
            raise EOFError(str(error)) from error
        raise
    if stored.ndim == 2:
        return stored[..., None]
    # Bands that are stored apart come first.
    apart = image.format == "TIFF" and image.tag_v2.get(284, 1) == 2  # type: ignore[attr-defined]
    return stored.transpose(1, 2, 0) if apart else stored


def _ends_early(image: Image.Image, content: bytes) -> bool:
    """Tell whether the file ends before its last chunk or block does."""
    if image.format == "PNG":
        return b"IEND" not in content[-16:]
    tags = image.tag_v2  # type: ignore[attr-defined]
    blocks = [(tags.get(273, ()), tags.get(279, ())), (tags.get(324, ()), tags.get(325, ()))]
    return any(
        start + length > len(content)
        for starts, lengths in blocks
        for start, length in zip(starts, lengths, strict=False)
    )


def _upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Apply an EXIF orientation (CIPA DC-008, tag 0x0112) to (height, width, channels)."""
    turned = pixels.transpose(1, 0, 2) if orientation in _TURNED else pixels
    row_step = -1 if orientation in (3, 4, 7, 8) else 1
    col_step = -1 if orientation in (2, 3, 6, 7) else 1
    return turned[::row_step, ::col_step]


def _exif(image: Image.Image) -> Image.Exif:
    """Give the EXIF without decoding pixels: of a PNG, Pillow's own way to it decodes them all."""
    if image.format != "PNG":
        return image.getexif()
    exif = Image.Exif()
    exif.load(image.info.get("exif", b""))
    return exif


def _orientation(image: Image.Image) -> int:
    value = _exif(image).get(ExifTags.Base.Orientation, 1)
    return value if value in range(1, 9) else 1


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height after the orientation is applied."""
    tags = getattr(image, "tag_v2", None)
    # Of a TIFF, Pillow's versions differ in whether `size` is turned already: the tags are plain.
    width, height = (int(tags[256]), int(tags[257])) if tags else image.size
    return (height, width) if _orientation(image) in _TURNED else (width, height)


def _same_frames(image: Image.Image) -> int:
    """Count the pages if all are alike in size and format; else 1: further pages are thumbnails or other pictures."""
    count = int(getattr(image, "n_frames", 1))
    if not 1 < count <= _MOST_FRAMES:
        return 1
    first = (_upright_size(image), image.mode, _plain_tiff(image))
    alike = True
    for frame in range(1, count):
        image.seek(frame)
        alike = (_upright_size(image), image.mode, _plain_tiff(image)) == first
        if not alike:
            break
    image.seek(0)
    return count if alike else 1


def _camera(image: Image.Image) -> dict[str, Json]:
    """Make, model and year: all that leaves of the EXIF."""
    exif = _exif(image)
    inner = exif.get_ifd(ExifTags.IFD.Exif)
    moment = str(inner.get(ExifTags.Base.DateTimeOriginal) or exif.get(ExifTags.Base.DateTime) or "")
    year = re.match(r"(1[89]|2\d)\d\d(?=[:-])", moment)
    return {
        "make": _clean(exif.get(ExifTags.Base.Make)),
        "model": _clean(exif.get(ExifTags.Base.Model)),
        "year": year.group() if year else None,
    }


def _clean(value: object) -> str | None:
    """Keep printable text, 64 characters at most."""
    text = "".join(letter for letter in value if letter.isprintable()).strip()[:64] if isinstance(value, str) else ""
    return text or None


def _source(record: FileRecord, root: Path) -> Source:
    header: Mapping[str, Any] = record.header
    path = Path(record.path)
    inside = path.is_relative_to(root) and path != root
    source_id = digest_of_digests([record.digest])
    camera: dict[str, Attribute] = {name: header[name] for name in ("make", "model", "year")}
    return Source(
        source_id=source_id,
        group_id=f"image-{source_id}",
        domain="images",
        uri=record.path,
        files=(record.path,),
        grid=Grid(frames=header["frames"], height=header["height"], width=header["width"]),
        channels=tuple(header["channels"]),
        units="dn",
        dtype=header["dtype"],
        acquired_at=header["year"],
        attributes=camera | {"width": float(header["width"]), "height": float(header["height"])},
        keys={"path": (path.relative_to(root).as_posix() if inside else path.name,), "scene": (path.stem,)},
        bytes=record.size,
        notes=tuple(header["notes"]),
    )
