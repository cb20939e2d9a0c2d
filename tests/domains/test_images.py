"""Photographs: every format to the right pixels, upright; what is broken has a code; EXIF stays inside."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import rasterio
from PIL import ExifTags, Image, ImageFile, ImageOps

from vitpipe.config import ImagesSource
from vitpipe.digest import digest_file
from vitpipe.domains.base import ScanContext
from vitpipe.domains.images import Images
from vitpipe.errors import UnreadableSource
from vitpipe.pseudonym import Pseudonymiser
from vitpipe.records import FileRecord, Rejected, Source, Window

_RNG = np.random.default_rng(7)
_RGB = _RNG.integers(1, 255, (20, 30, 3), dtype=np.uint8)
_DEEP = _RNG.integers(1, 65535, (20, 30, 3), dtype=np.uint16)


def _context(root: Path) -> ScanContext:
    return ScanContext(root, Pseudonymiser(b"key"), ImagesSource(path=str(root)))


def _source(path: Path) -> Source:
    header = Images().index(path, _context(path.parent))
    assert not isinstance(header, Rejected), header
    json.dumps(header, allow_nan=False)
    record = FileRecord(str(path), path.stat().st_size, 0, digest_file(path), header)
    (source,) = Images().assemble([record], _context(path.parent))
    assert isinstance(source, Source)
    return source


def _read(path: Path, frame: int = 0) -> tuple[Source, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    source = _source(path)
    with Images().open(source) as raster:
        pixels, valid = raster.read(Window(frame, 0, 0, source.grid.height, source.grid.width))
    assert pixels.dtype == source.dtype
    assert pixels.shape == (len(source.channels), source.grid.height, source.grid.width)
    return source, pixels, valid


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.webp", "no_suffix"])
def test_lossless_colour_is_read_as_written(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    kind = {"a.bmp": "BMP", "a.tif": "TIFF", "a.webp": "WEBP"}.get(name, "PNG")
    Image.fromarray(_RGB).save(path, kind, **({"lossless": True} if kind == "WEBP" else {}))
    source, pixels, valid = _read(path)
    assert source.channels == ("red", "green", "blue")
    assert np.array_equal(pixels, _RGB.transpose(2, 0, 1))
    assert valid.all()


def test_jpeg_decodes_as_pillow_does(tmp_path: Path) -> None:
    Image.fromarray(_RGB).save(tmp_path / "a.jpg")
    _, pixels, _ = _read(tmp_path / "a.jpg")
    assert np.array_equal(pixels, np.asarray(Image.open(tmp_path / "a.jpg")).transpose(2, 0, 1))


def test_palette_becomes_colour_and_greyscale_stays_one_channel(tmp_path: Path) -> None:
    palette = Image.fromarray(_RGB).quantize(16)
    palette.save(tmp_path / "p.png")
    source, pixels, _ = _read(tmp_path / "p.png")
    assert source.channels == ("red", "green", "blue")
    assert np.array_equal(pixels, np.asarray(palette.convert("RGB")).transpose(2, 0, 1))
    Image.fromarray(_RGB[..., 0]).save(tmp_path / "g.png")
    source, pixels, _ = _read(tmp_path / "g.png")
    assert source.channels == ("intensity",)
    assert np.array_equal(pixels[0], _RGB[..., 0])
    Image.fromarray(_RGB[..., 0] > 100).save(tmp_path / "bit.png")
    _, pixels, _ = _read(tmp_path / "bit.png")
    assert np.array_equal(pixels[0], np.where(_RGB[..., 0] > 100, 255, 0))


def test_cmyk_becomes_colour_with_a_note(tmp_path: Path) -> None:
    Image.fromarray(_RGB).convert("CMYK").save(tmp_path / "c.jpg")
    source, pixels, _ = _read(tmp_path / "c.jpg")
    assert source.notes == ("CMYK",)
    assert np.array_equal(pixels, np.asarray(Image.open(tmp_path / "c.jpg").convert("RGB")).transpose(2, 0, 1))


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp"])
def test_fully_transparent_pixels_are_not_valid_and_zero(tmp_path: Path, name: str) -> None:
    alpha = np.full((20, 30), 255, np.uint8)
    alpha[:5] = 0
    alpha[5:10] = 1
    Image.fromarray(np.dstack([_RGB, alpha])).save(tmp_path / name, **({"lossless": True} if name == "a.webp" else {}))
    source, pixels, valid = _read(tmp_path / name)
    assert source.channels == ("red", "green", "blue")
    assert np.array_equal(valid, alpha > 0)
    assert not pixels[:, :5].any()
    assert np.array_equal(pixels[:, 5:], _RGB.transpose(2, 0, 1)[:, 5:])


def test_a_transparent_palette_entry_is_not_valid(tmp_path: Path) -> None:
    indices = Image.fromarray(_RGB[..., 0] % 4, "P")
    indices.putpalette([value for entry in range(4) for value in (entry * 20 + 1,) * 3])
    indices.save(tmp_path / "t.png", transparency=2)
    _, pixels, valid = _read(tmp_path / "t.png")
    assert np.array_equal(valid, _RGB[..., 0] % 4 != 2)
    assert np.array_equal(pixels[1], np.where(valid, _RGB[..., 0] % 4 * 20 + 1, 0))


@pytest.mark.parametrize("shape", ["grey", "grey+alpha", "colour", "colour+alpha"])
def test_deep_png_keeps_its_bits(tmp_path: Path, shape: str) -> None:
    alpha = np.full((20, 30, 1), 65535, np.uint16)
    alpha[0] = 0
    colour = _DEEP if shape.startswith("colour") else _DEEP[..., :1]
    stored = np.concatenate([colour, alpha], axis=2) if "alpha" in shape else colour
    (tmp_path / "d.png").write_bytes(imagecodecs.png_encode(np.ascontiguousarray(stored.squeeze())))
    source, pixels, valid = _read(tmp_path / "d.png")
    assert source.dtype == "uint16"
    assert source.channels == (("red", "green", "blue") if shape.startswith("colour") else ("intensity",))
    first = 1 if "alpha" in shape else 0
    assert np.array_equal(pixels[:, first:], colour.transpose(2, 0, 1)[:, first:])
    assert valid[first:].all()
    assert valid[0].all() == ("alpha" not in shape)


@pytest.mark.parametrize("interleave", ["pixel", "band"])
@pytest.mark.parametrize("count", [1, 3])
def test_deep_tiff_keeps_its_bits(tmp_path: Path, interleave: str, count: int) -> None:
    profile = {"driver": "GTiff", "count": count, "height": 20, "width": 30, "dtype": "uint16", "compress": "deflate"}
    profile |= {"photometric": "rgb"} if count == 3 else {}
    with rasterio.open(tmp_path / "d.tif", "w", interleave=interleave, crs="EPSG:32633", **profile) as dataset:
        dataset.write(_DEEP.transpose(2, 0, 1)[:count])
    source, pixels, _ = _read(tmp_path / "d.tif")
    assert source.dtype == "uint16"
    assert np.array_equal(pixels, _DEEP.transpose(2, 0, 1)[:count])


def test_float_tiff_masks_what_is_not_finite(tmp_path: Path) -> None:
    values = _RGB[..., 0].astype(np.float32)
    values[0, 0] = np.nan
    Image.fromarray(values).save(tmp_path / "f.tif")
    source, pixels, valid = _read(tmp_path / "f.tif")
    assert source.dtype == "float32"
    assert not valid[0, 0]
    assert pixels[0, 0, 0] == 0
    assert np.array_equal(pixels[0, 1:], values[1:])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["o.png", "o.tif", "lzw.tif"])
def test_orientation_is_applied(tmp_path: Path, name: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    upright = ImageOps.exif_transpose(_with_exif(_RGB, exif))
    if name == "o.png":
        Image.fromarray(_RGB).save(tmp_path / name, exif=exif)
    else:
        options = {"compression": "tiff_lzw"} if name == "lzw.tif" else {}
        Image.fromarray(_RGB).save(tmp_path / name, tiffinfo={274: orientation}, **options)
    _, pixels, _ = _read(tmp_path / name)
    assert np.array_equal(pixels, np.asarray(upright).transpose(2, 0, 1))


def _with_exif(pixels: np.ndarray[Any, Any], exif: Image.Exif) -> Image.Image:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", exif=exif)
    return Image.open(io.BytesIO(stream.getvalue()))


def test_turned_palette_tiff_is_refused_rather_than_scrambled(tmp_path: Path) -> None:
    Image.fromarray(_RGB).quantize(16).save(tmp_path / "p.tif", tiffinfo={274: 6})
    found = Images().index(tmp_path / "p.tif", _context(tmp_path))
    assert isinstance(found, Rejected)
    assert found.code == "UNSUPPORTED"


def test_pages_of_a_tiff_are_frames_and_unlike_pages_are_not(tmp_path: Path) -> None:
    pages = [Image.fromarray(np.full((8, 9), value, np.uint8)) for value in (10, 20, 30)]
    pages[0].save(tmp_path / "m.tif", save_all=True, append_images=pages[1:])
    source = _source(tmp_path / "m.tif")
    assert source.grid.frames == 3
    with Images().open(source) as raster:
        assert [int(raster.read(Window(frame, 2, 2, 1, 1))[0][0, 0, 0]) for frame in (2, 0, 1)] == [30, 10, 20]
        with pytest.raises(ValueError, match="frames 0 to 2"):
            raster.read(Window(3, 0, 0, 1, 1))
    pages[0].save(tmp_path / "t.tif", save_all=True, append_images=[pages[1].resize((3, 3))])
    source = _source(tmp_path / "t.tif")
    assert source.grid.frames == 1
    assert source.notes == ("FIRST_FRAME_ONLY",)


def test_an_animation_gives_its_first_frame_with_a_note(tmp_path: Path) -> None:
    pages = [Image.fromarray(np.full((8, 9), value, np.uint8)) for value in (10, 200)]
    pages[0].save(tmp_path / "a.gif", save_all=True, append_images=pages[1:])
    source, pixels, _ = _read(tmp_path / "a.gif")
    assert source.grid.frames == 1
    assert source.notes == ("FIRST_FRAME_ONLY",)
    assert (pixels == 10).all()


def test_of_the_exif_only_camera_and_year_leave(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Make], exif[ExifTags.Base.Model] = "Maker\x00", "Model 7"
    exif[ExifTags.Base.Artist], exif[ExifTags.Base.Copyright] = "Jane Roe", "Jane Roe"
    exif[ExifTags.Base.ImageDescription] = "Jane Roe at home"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "2021:05:06 07:08:09"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[2] = (47.0, 22.0, 11.0)
    Image.fromarray(_RGB).save(tmp_path / "e.jpg", exif=exif, comment=b"Jane Roe")
    source = _source(tmp_path / "e.jpg")
    assert {**source.attributes} == {"make": "Maker", "model": "Model 7", "year": "2021", "width": 30, "height": 20}
    assert source.acquired_at == "2021"
    header = Images().index(tmp_path / "e.jpg", _context(tmp_path))
    text = str(header) + str(source)
    assert all(secret not in text for secret in ("Jane", "47.0", "22.0", "05:06", "07:08"))


@pytest.mark.parametrize("kind", ["jpg", "png", "bmp", "gif", "tif"])
def test_a_truncated_file_is_said_and_never_padded(tmp_path: Path, kind: str) -> None:
    noise = _RNG.integers(0, 255, (100, 100, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / f"t.{kind}")
    whole = (tmp_path / f"t.{kind}").read_bytes()
    (tmp_path / f"t.{kind}").write_bytes(whole[: len(whole) // 2])
    source = _source(tmp_path / f"t.{kind}")
    with Images().open(source) as raster, pytest.raises(UnreadableSource) as caught:
        raster.read(Window(0, 0, 0, 10, 10))
    assert caught.value.code == "TRUNCATED"
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_a_damaged_file_is_undecodable(tmp_path: Path) -> None:
    for name, content in (("d.png", _DEEP), ("e.png", _RGB)):
        whole = bytearray(imagecodecs.png_encode(content))
        whole[len(whole) // 2 : len(whole) // 2 + 200] = bytes(200)
        (tmp_path / name).write_bytes(whole)
        with Images().open(_source(tmp_path / name)) as raster, pytest.raises(UnreadableSource) as caught:
            raster.read(Window(0, 0, 0, 10, 10))
        assert caught.value.code == "UNDECODABLE"


def test_what_is_no_image_has_a_code(tmp_path: Path) -> None:
    bomb = bytearray(imagecodecs.png_encode(_RGB))
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2
    crc = __import__("zlib").crc32(bomb[12:29]).to_bytes(4, "big")
    bomb[29:33] = crc
    files = {
        "text.jpg": (b"hello", "NOT_IMAGE", False),
        "notes.txt": (b"hello", "NOT_IMAGE", True),
        "._mac.jpg": (b"\x00\x05\x16\x07" + bytes(40), "NOT_IMAGE", True),
        "sound.wav": (b"RIFF\x00\x00\x00\x00WAVEfmt ", "NOT_IMAGE", True),
        "phone.heic": (b"\x00\x00\x00\x18ftypheic", "NOT_IMAGE", False),
        "zero.png": (b"", "ZERO_BYTES", False),
        "zero": (b"", "ZERO_BYTES", True),
        "head.png": (b"\x89PNG\r\n\x1a\n" + bytes(40), "BAD_HEADER", False),
        "head.tif": (b"II*\x00" + bytes(3), "BAD_HEADER", False),
        "bomb.png": (bytes(bomb), "TOO_LARGE", False),
    }
    for name, (content, code, junk) in files.items():
        (tmp_path / name).write_bytes(content)
        found = Images().index(tmp_path / name, _context(tmp_path))
        assert isinstance(found, Rejected), name
        assert (found.code, found.junk) == (code, junk), (name, found)
        assert found.uri == str(tmp_path / name)
    found = Images().index(tmp_path / "gone.png", _context(tmp_path))
    assert isinstance(found, Rejected)
    assert found.code == "UNREADABLE_FILE"


def test_a_file_that_changed_or_went_is_said(tmp_path: Path) -> None:
    Image.fromarray(_RGB).save(tmp_path / "a.png")
    source = _source(tmp_path / "a.png")
    Image.fromarray(_RGB[:10]).save(tmp_path / "a.png")
    with Images().open(source) as raster, pytest.raises(UnreadableSource, match="CHANGED"):
        raster.read(Window(0, 0, 0, 4, 4))
    (tmp_path / "a.png").unlink()
    with pytest.raises(UnreadableSource, match="UNREADABLE_FILE"), Images().open(source):
        pass


def test_broken_bytes_never_escape_as_another_error(tmp_path: Path) -> None:
    """Flip bytes of every format: each file ends as a source that reads, or with a code."""
    outcomes = set()
    for kind in ("jpg", "png", "bmp", "gif", "tif", "webp"):
        Image.fromarray(_RGB).save(tmp_path / f"whole.{kind}")
        whole = (tmp_path / f"whole.{kind}").read_bytes()
        for trial in range(60):
            rng = np.random.default_rng(trial)
            broken = bytearray(whole)
            for place in rng.integers(8, min(len(broken), 400), 6):
                broken[place] = rng.integers(256)
            path = tmp_path / f"broken.{kind}"
            path.write_bytes(broken)
            found = Images().index(path, _context(tmp_path))
            if isinstance(found, Rejected):
                outcomes.add(found.code)
                continue
            try:
                _, pixels, valid = _read(path)
                outcomes.add("read")
                assert not pixels[:, ~valid].any()
            except UnreadableSource as error:
                outcomes.add(error.code)
    assert {"read", "BAD_HEADER", "UNDECODABLE"} <= outcomes
