"""Stored values to physical values: rescale, dtype, inversion, padding, colours, windows."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from dicom_cases import COLS, ROWS, instance, read, save, scan, series, stored
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import convert_color_space
from pydicom.sequence import Sequence
from pydicom.uid import (
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    UltrasoundImageStorage,
)

from vitpipe.domains.dicom import Dicom, codecs
from vitpipe.domains.dicom.codestream import rle_planes, stated
from vitpipe.domains.dicom.raster import DicomRaster
from vitpipe.domains.dicom.support import support
from vitpipe.errors import UnreadableSource
from vitpipe.records import Source, Window


def one(tmp_path: Path, dataset: Dataset, *syntax: str) -> Source:
    save(dataset, tmp_path / "file", *syntax)
    sources, found = scan(tmp_path)
    assert not found
    (source,) = sources
    return source


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ({}, "int16"),
        ({"RescaleIntercept": 0}, "uint16"),
        ({"BitsStored": 8, "HighBit": 7, "RescaleIntercept": 0}, "uint8"),
        ({"BitsStored": 16, "HighBit": 15}, "int32"),
        ({"BitsStored": 16, "HighBit": 15, "RescaleIntercept": -32768}, "int16"),
        ({"RescaleSlope": 1.5}, "float32"),
        ({"RescaleSlope": 40}, "int32"),
    ],
)
def test_the_dtype_holds_the_range(tmp_path: Path, values: dict[str, Any], dtype: str) -> None:
    dataset = instance(0, **values)
    highest = (1 << dataset.BitsStored) - 1
    pixels = stored(0)
    pixels[0, :2] = (0, highest)
    dataset.PixelData = pixels.tobytes()
    source = one(tmp_path, dataset)
    assert source.dtype == dtype
    found = read(source)[0][0]
    assert found.dtype == np.dtype(dtype)
    slope, intercept = float(dataset.RescaleSlope), float(dataset.RescaleIntercept)
    np.testing.assert_array_equal(found, pixels * slope + intercept)


def test_every_pet_slice_has_its_slope(tmp_path: Path) -> None:
    for number in range(3):
        values = {"RescaleSlope": 0.5 + number, "RescaleIntercept": 0, "Units": "BQML", "Modality": "PT"}
        save(instance(number, **values), tmp_path / str(number))
    (source,) = scan(tmp_path)[0]
    assert (source.units, source.dtype) == ("BQML", "float32")
    for number in range(3):
        np.testing.assert_array_equal(read(source, number)[0][0], stored(number) * np.float32(0.5 + number))


def test_one_wide_slice_widens_the_series(tmp_path: Path) -> None:
    for number in range(3):
        save(instance(number, RescaleSlope=1 if number < 2 else 1.25), tmp_path / str(number))
    (source,) = scan(tmp_path)[0]
    assert source.dtype == "float32"
    assert read(source, 0)[0].dtype == np.float32


@pytest.mark.parametrize(
    ("values", "units"),
    [
        ({}, "HU"),
        ({"RescaleIntercept": None, "RescaleSlope": None}, "stored"),
        ({"Modality": "MR", "RescaleType": "normalized"}, "stored"),
        ({"Modality": "CR", "RescaleType": "OD"}, "OD"),
        ({"RescaleType": "US"}, "stored"),
    ],
)
def test_units(tmp_path: Path, values: dict[str, Any], units: str) -> None:
    assert one(tmp_path, instance(0, **values)).units == units


def test_monochrome1_is_inverted_by_the_stored_range(tmp_path: Path) -> None:
    values = {"PhotometricInterpretation": "MONOCHROME1", "Modality": "CR", "RescaleIntercept": 0}
    source = one(tmp_path, instance(0, **values))
    np.testing.assert_array_equal(read(source)[0][0], 4095 - stored(0))


@pytest.mark.parametrize("values", [{}, {"Modality": "CR", "RescaleType": "OD"}])
def test_physical_units_are_never_inverted(tmp_path: Path, values: dict[str, Any]) -> None:
    source = one(tmp_path, instance(0, PhotometricInterpretation="MONOCHROME1", **values))
    np.testing.assert_array_equal(read(source)[0][0], stored(0).astype(int) - 1024)


@pytest.mark.parametrize(
    ("padding", "limit", "gone"),
    [(5, None, [5]), (3, 7, [3, 4, 5, 6, 7]), (7, 3, [3, 4, 5, 6, 7]), (65531, None, [-5])],
)
def test_padding_is_not_valid(tmp_path: Path, padding: int, limit: int | None, gone: list[int]) -> None:
    pixels = np.arange(-48, 48, dtype=np.int16).reshape(ROWS, COLS)
    dataset = instance(0, PixelRepresentation=1, PixelData=pixels.tobytes(), PixelPaddingValue=padding)
    if limit is not None:
        dataset.PixelPaddingRangeLimit = limit
    # A writer that gives 65531 in a signed image means its bits: -5. As US it is written as such.
    dataset["PixelPaddingValue"].VR = "US" if padding > 32767 else "SS"
    found, valid = read(one(tmp_path, dataset))
    np.testing.assert_array_equal(valid, ~np.isin(pixels, gone))
    assert np.all(found[0][~valid] == 0)
    np.testing.assert_array_equal(found[0][valid], pixels[valid].astype(int) - 1024)


def test_unused_bits_are_cleared_and_the_sign_extended(tmp_path: Path) -> None:
    pixels = np.arange(-48, 48, dtype=np.int16).reshape(ROWS, COLS)
    with_overlay = (pixels.view(np.uint16) & 0x0FFF) | 0x5000
    dataset = instance(0, PixelRepresentation=1, RescaleIntercept=0, PixelData=with_overlay.tobytes())
    np.testing.assert_array_equal(read(one(tmp_path, dataset))[0][0], pixels)


def test_a_modality_lut_replaces_the_rescale(tmp_path: Path) -> None:
    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [96, 0, 16], "OD"
    table.LUTData = (np.arange(96, dtype=np.uint16) ** 2).tobytes()
    table["LUTDescriptor"].VR, table["LUTData"].VR = "US", "OW"
    dataset = instance(0, ModalityLUTSequence=Sequence([table]), Modality="CR")
    source = one(tmp_path, dataset)
    assert (source.units, source.dtype) == ("OD", "uint16")
    np.testing.assert_array_equal(read(source)[0][0], stored(0).astype(int) ** 2)


def colour(pixels: np.ndarray, **values: Any) -> Dataset:
    gone = ("ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope", "RescaleIntercept")
    return instance(
        0,
        **dict.fromkeys(gone),
        **{
            "SOPClassUID": UltrasoundImageStorage,
            "Modality": "US",
            "SamplesPerPixel": 3,
            "PhotometricInterpretation": "RGB",
            "PlanarConfiguration": 0,
            "BitsAllocated": 8,
            "BitsStored": 8,
            "HighBit": 7,
            "PixelData": pixels.tobytes(),
            **values,
        },
    )


def rgb() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (ROWS, COLS, 3), np.uint8)


def test_colours_by_pixel_by_plane_and_by_ybr(tmp_path: Path) -> None:
    pixels = rgb()
    by_pixel = one(tmp_path / "a", colour(pixels))
    assert (by_pixel.channels, by_pixel.units, by_pixel.dtype) == (("red", "green", "blue"), "stored", "uint8")
    by_plane = one(tmp_path / "b", colour(np.moveaxis(pixels, -1, 0).copy(), PlanarConfiguration=1))
    for source in (by_pixel, by_plane):
        np.testing.assert_array_equal(read(source)[0], np.moveaxis(pixels, -1, 0))
    ybr = convert_color_space(pixels, "RGB", "YBR_FULL")
    converted = one(tmp_path / "c", colour(ybr, PhotometricInterpretation="YBR_FULL"))
    assert np.abs(read(converted)[0].astype(int) - np.moveaxis(pixels, -1, 0)).max() <= 2


def test_a_palette_gives_its_colours(tmp_path: Path) -> None:
    indices = np.arange(ROWS * COLS, dtype=np.uint8).reshape(ROWS, COLS)
    values: dict[str, Any] = {"SamplesPerPixel": 1, "PhotometricInterpretation": "PALETTE COLOR"}
    for place, name in enumerate(("Red", "Green", "Blue")):
        values[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 8]
        values[f"{name}PaletteColorLookupTableData"] = bytes((entry + 10 * place) % 256 for entry in range(256))
    dataset = colour(indices, **values)
    del dataset.PlanarConfiguration
    source = one(tmp_path, dataset)
    assert source.channels == ("red", "green", "blue")
    np.testing.assert_array_equal(read(source)[0], np.stack([indices, indices + 10, indices + 20]))


def jpeg(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=95, subsampling=0)
    return stream.getvalue()


def test_a_jpeg_without_colour_marker_follows_the_header(tmp_path: Path) -> None:
    """Its components are RGB where the header says RGB; libjpeg would take them for YCbCr."""
    smooth = np.zeros((16, 16, 3), np.uint8) + np.array([200, 60, 20], np.uint8)
    stream = jpeg(smooth)
    start = stream.index(b"\xff\xe0")
    bare = stream[:start] + stream[start + 2 + int.from_bytes(stream[start + 2 : start + 4], "big") :]
    found = {}
    for name, data, photometric in (("a", stream, "YBR_FULL_422"), ("b", bare, "YBR_FULL_422"), ("c", bare, "RGB")):
        dataset = colour(smooth, PhotometricInterpretation=photometric, Rows=16, Columns=16)
        dataset.PixelData = encapsulate([data])
        dataset["PixelData"].is_undefined_length = True
        found[name] = read(one(tmp_path / name, dataset, JPEGBaseline8Bit))[0][:, 8, 8].astype(int)
    components = convert_color_space(smooth, "RGB", "YBR_FULL")[8, 8].astype(int)
    assert np.abs(found["a"] - (200, 60, 20)).max() <= 3
    assert np.abs(found["b"] - (200, 60, 20)).max() <= 3
    assert np.abs(found["c"] - components).max() <= 3


def rle(frame: np.ndarray) -> bytes:
    """Encode by literal runs alone: a byte plane a segment, the most significant byte first."""
    planes = [frame.astype(">u2").view(np.uint8).reshape(*frame.shape, 2)[..., place].tobytes() for place in (0, 1)]
    segments = [b"".join(bytes([len(run) - 1]) + run for run in (plane[:64], plane[64:])) for plane in planes]
    offsets = [64, 64 + len(segments[0])]
    return np.array([2, *offsets, *[0] * 13], "<u4").tobytes() + b"".join(segments)


_ENCODERS = {
    RLELossless: rle,
    JPEG2000Lossless: lambda frame: imagecodecs.jpeg2k_encode(frame, codecformat="j2k", reversible=True),
    JPEGLSLossless: imagecodecs.jpegls_encode,
    JPEGLosslessSV1: imagecodecs.ljpeg_encode,
}


def compressed(frames: list[np.ndarray], syntax: str, **values: Any) -> Dataset:
    dataset = instance(0, **values)
    dataset.PixelData = encapsulate([_ENCODERS[syntax](frame) for frame in frames])
    dataset["PixelData"].is_undefined_length = True
    return dataset


@pytest.mark.parametrize("syntax", list(_ENCODERS))
@pytest.mark.parametrize("signed", [False, True])
def test_lossless_codecs_give_back_every_bit(tmp_path: Path, syntax: str, signed: bool) -> None:
    pixels = np.random.default_rng(2).integers(-2048, 2048, (ROWS, COLS)).astype(np.int16)
    # No codec here knows a sign: signed values travel as 12 bits.
    stream = (pixels.view(np.uint16) & 0xFFF).astype(np.uint16)
    wanted = pixels if signed else stream
    dataset = compressed([stream], syntax, PixelRepresentation=int(signed), RescaleIntercept=0)
    source = one(tmp_path, dataset, syntax)
    np.testing.assert_array_equal(read(source)[0][0], wanted)


def test_a_stream_that_lies_about_its_size_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(data: bytes, *_: object) -> np.ndarray:
        raise MemoryError

    # Tried before: the trial decodes a frame, too.
    assert support(str(JPEG2000Lossless)).decoder
    monkeypatch.setitem(codecs.CODECS, JPEG2000Lossless, codecs.Codec("never", never))
    pixels = np.zeros((ROWS, COLS), np.uint16)
    stream = bytearray(_ENCODERS[JPEG2000Lossless](pixels))
    assert stated(bytes(stream)).shape == (ROWS, COLS, 1)
    # SIZ: the right and the bottom edge of the image, and of its one tile.
    stream[8:16] = stream[24:32] = (60_000).to_bytes(4, "big") * 2
    assert stated(bytes(stream)).shape == (60_000, 60_000, 1)
    dataset = instance(0, PixelData=encapsulate([bytes(stream)]))
    dataset["PixelData"].is_undefined_length = True
    source = one(tmp_path, dataset, JPEG2000Lossless)
    with pytest.raises(UnreadableSource, match=r"UNDECODABLE.*1\.2\.840\.10008\.1\.2\.4\.90 \(JPEG 2000"):
        read(source)


def test_a_frame_without_its_end_is_truncated(tmp_path: Path) -> None:
    stream = _ENCODERS[JPEGLSLossless](stored(0))
    dataset = instance(0, PixelData=encapsulate([stream[:-40]]))
    dataset["PixelData"].is_undefined_length = True
    with pytest.raises(UnreadableSource, match="TRUNCATED"):
        read(one(tmp_path, dataset, JPEGLSLossless))


def test_rle_segments_outside_the_frame_are_refused() -> None:
    good = rle(stored(0))
    assert [len(plane) for plane in rle_planes(good)] == [98, 98]
    for place, value in ((4, 10), (8, 60_000), (0, 16), (0, 0)):
        damaged = bytearray(good)
        damaged[place : place + 4] = value.to_bytes(4, "little")
        with pytest.raises(ValueError, match="RLE"):
            rle_planes(bytes(damaged))


# ----------------------------------------------------------------------------------------------------------- windows


def test_windows_of_a_frame_decode_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [stored(number) for number in range(3)]
    source = one(tmp_path, compressed(frames, JPEG2000Lossless, NumberOfFrames=3), JPEG2000Lossless)
    decoded = []
    name, original = codecs.CODECS[JPEG2000Lossless]

    def counted(data: bytes, *rest: Any) -> np.ndarray:
        decoded.append(len(data))
        return original(data, *rest)

    monkeypatch.setitem(codecs.CODECS, JPEG2000Lossless, codecs.Codec(name, counted))
    with Dicom().open(source) as raster:
        for frame in (0, 1, 2):
            for row in range(0, ROWS, 4):
                pixels, valid = raster.read(Window(frame, row, 0, 4, COLS))
                np.testing.assert_array_equal(pixels[0], frames[frame][row : row + 4].astype(int) - 1024)
                assert valid.all()
    assert len(decoded) == 3


def test_a_window_past_the_edge_is_zero_and_not_valid(tmp_path: Path) -> None:
    with Dicom().open(one(tmp_path, instance(0))) as raster:
        pixels, valid = raster.read(Window(0, 8, 4, 6, 6))
        assert pixels.shape == (1, 6, 6)
        np.testing.assert_array_equal(valid, np.pad(np.ones((4, 4), bool), ((0, 2), (0, 2))))
        assert not pixels[0][~valid].any()
        np.testing.assert_array_equal(pixels[0, :4, :4], stored(0)[8:, 4:].astype(int) - 1024)
        for outside in (Window(1, 0, 0, 2, 2), Window(0, ROWS, 0, 2, 2), Window(0, 0, -1, 2, 2)):
            with pytest.raises(ValueError, match="begins outside"):
                raster.read(outside)


def test_a_read_is_the_readers_own(tmp_path: Path) -> None:
    with Dicom().open(one(tmp_path, instance(0))) as raster:
        raster.read(Window(0, 0, 0, ROWS, COLS))[0][:] = 0
        assert raster.read(Window(0, 0, 0, ROWS, COLS))[0].any()


def test_groups_are_the_patient(tmp_path: Path) -> None:
    series(tmp_path)
    (source,) = scan(tmp_path)[0]
    windows = [Window(frame, 0, 0, 4, 4) for frame in range(6)]
    assert DicomRaster(source).groups(windows) == [source.group_id] * 6


def test_a_file_that_changed_or_went_is_said(tmp_path: Path) -> None:
    source = one(tmp_path, instance(0))
    save(instance(0, Rows=6, PixelData=stored(0)[:6].tobytes()), tmp_path / "file")
    with pytest.raises(UnreadableSource, match="CHANGED"):
        read(source)
    os.remove(tmp_path / "file")
    with pytest.raises(UnreadableSource, match="UNREADABLE_FILE"):
        read(source)
