"""Which fragments make a frame, and the traps of single codecs: wrong pixels that no decoder complains about."""

from __future__ import annotations

import base64
import struct
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from dicom_cases import COLS, ROWS, codes, instance, read, save, scan, stored
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.uid import HTJ2KLossless, JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless

from vitpipe.domains.dicom.codecs import decode_runs, decode_stream
from vitpipe.domains.dicom.codestream import stated
from vitpipe.domains.dicom.pixelformat import PixelFormat
from vitpipe.domains.dicom.pixels import stored_values
from vitpipe.errors import UnreadableSource

FORMAT_64 = PixelFormat(
    frames=1, rows=64, cols=64, samples=1, bits_allocated=16, bits_stored=16, signed=False, photometric="MONOCHROME2",
    float_bits=0, slopes=(1.0,), intercepts=(0.0,), lut_bits=None, palette_bits=None, units="stored", inverted=False,
)  # fmt: skip
# CharLS' encoding of 12 bits; imagecodecs always states 8 or 16.
JPEG_LS_12 = (
    "/9j/9wALDAAMAAgBAREA/9oACAEBAAAAAAAAAAAe/U9NS0lHRUMAICgnJiUkIygX5EQkD989JxfPHbpy4bkwvWzVoTJESUnhAg++88SE7QIIIQ"
    "hAACB11xxxsjJ0220000RE5ZZZZYYIScMMMMLrkBN11111137/2Q=="
)
FRAMES = [stored(number) for number in range(3)]
STREAMS = [imagecodecs.jpegls_encode(frame) for frame in FRAMES]


def multi(pixels: bytes, **values: object) -> Dataset:
    dataset = instance(0, NumberOfFrames=3, PixelData=pixels, RescaleIntercept=0, **values)
    dataset["PixelData"].is_undefined_length = True
    return dataset


def frames_in(path: Path) -> None:
    np.testing.assert_array_equal(stored_values(path), FRAMES)
    (source,) = scan(path.parent)[0]
    for number, frame in enumerate(FRAMES):
        np.testing.assert_array_equal(read(source, number)[0][0], frame)


@pytest.mark.parametrize("fragments", [1, 2, 3])
@pytest.mark.parametrize("table", [True, False])
def test_frames_of_several_fragments(tmp_path: Path, fragments: int, table: bool) -> None:
    """Without an offset table a frame begins where a stream does: pydicom looks for the end of one instead."""
    pixels = encapsulate(STREAMS, fragments_per_frame=fragments, has_bot=table)
    frames_in(save(multi(pixels), tmp_path / "file", JPEGLSLossless))


@pytest.mark.parametrize("fragments", [1, 2])
def test_an_extended_offset_table(tmp_path: Path, fragments: int) -> None:
    pixels, offsets, lengths = encapsulate_extended(STREAMS)
    if fragments == 2:
        pixels = encapsulate(STREAMS, fragments_per_frame=2, has_bot=False)
        sizes = [len(stream) + len(stream) % 2 + 2 * 8 for stream in STREAMS]
        offsets = struct.pack("<3Q", 0, sizes[0], sizes[0] + sizes[1])
        lengths = struct.pack("<3Q", *(len(stream) for stream in STREAMS))
    dataset = multi(pixels, ExtendedOffsetTable=offsets, ExtendedOffsetTableLengths=lengths)
    frames_in(save(dataset, tmp_path / "file", JPEGLSLossless))


def test_an_offset_table_that_points_between_fragments_is_refused(tmp_path: Path) -> None:
    pixels = bytearray(encapsulate(STREAMS, fragments_per_frame=2, has_bot=True))
    pixels[12:16] = (int.from_bytes(pixels[12:16], "little") + 2).to_bytes(4, "little")
    save(multi(bytes(pixels)), tmp_path / "file", JPEGLSLossless)
    assert codes(scan(tmp_path)[1]) == ["FRAME_COUNT"]


@pytest.mark.parametrize("number", [1, 2, None, 0])
def test_more_frames_than_stated_are_not_dropped(tmp_path: Path, number: int | None) -> None:
    dataset = multi(encapsulate(STREAMS, has_bot=False))
    dataset.NumberOfFrames = number
    save(dataset, tmp_path / "file", JPEGLSLossless)
    (rejected,) = scan(tmp_path)[1]
    assert rejected.code == "FRAME_COUNT"
    assert "3 fragments" in rejected.reason


@pytest.mark.parametrize(("frames", "found"), [(1, ["FRAME_COUNT"]), (2, []), (3, ["TRUNCATED"])])
def test_uncompressed_frames_are_counted_too(tmp_path: Path, frames: int, found: list[str]) -> None:
    pixels = FRAMES[0].tobytes() + FRAMES[1].tobytes() + b"padding!"
    save(instance(0, NumberOfFrames=frames, PixelData=pixels), tmp_path / "file")
    assert codes(scan(tmp_path)[1]) == found


def test_fewer_frames_than_stated_are_truncated(tmp_path: Path) -> None:
    save(multi(encapsulate(STREAMS[:2], has_bot=False)), tmp_path / "file", JPEGLSLossless)
    assert codes(scan(tmp_path)[1]) == ["TRUNCATED"]


# ------------------------------------------------------------------------------------------------------ codecs' traps


def single(stream: bytes, **values: object) -> Dataset:
    dataset = instance(0, PixelData=encapsulate([stream]), RescaleIntercept=0, **values)
    dataset["PixelData"].is_undefined_length = True
    return dataset


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless])
def test_the_sign_is_that_of_the_streams_precision(tmp_path: Path, syntax: str) -> None:
    """Signed values of 12 bits in a header of 16: the stream knows no sign, but how many bits it has."""
    pixels = np.arange(-48, 48, dtype=np.int16).reshape(ROWS, COLS) * 40
    twelve = (pixels.view(np.uint16) & 0xFFF).astype(np.uint16)
    if syntax == JPEGLSLossless:
        stream = base64.b64decode(JPEG_LS_12)
        assert stated(stream).precision == 12
    else:
        stream = imagecodecs.jpeg2k_encode(twelve, codecformat="j2k", reversible=True, bitspersample=12)
    dataset = single(stream, PixelRepresentation=1, BitsStored=16, HighBit=15)
    path = save(dataset, tmp_path / "file", syntax)
    np.testing.assert_array_equal(stored_values(path), pixels)


def test_lossless_colours_are_not_converted(tmp_path: Path) -> None:
    """libjpeg takes three components without a marker for YCbCr."""
    pixels = np.random.default_rng(0).integers(0, 256, (ROWS, COLS, 3), np.uint8)
    stream = imagecodecs.jpeg8_encode(pixels, lossless=True, predictor=1, colorspace="RGB", outcolorspace="RGB")
    values = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "PhotometricInterpretation": "RGB"}
    dataset = single(stream, BitsAllocated=8, BitsStored=8, HighBit=7, **values)
    np.testing.assert_array_equal(stored_values(save(dataset, tmp_path / "file", JPEGLosslessSV1)), pixels)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_high_throughput_frame_that_stops_half_way_is_refused(tmp_path: Path) -> None:
    """imagecodecs drops OpenJPH's error and leaves the rest of the frame zero."""
    rng = np.random.default_rng(5)
    frame = rng.integers(1, 4096, (64, 64)).astype(np.uint16)
    good = imagecodecs.htj2k_encode(frame, reversible=True)
    silent = refused = 0
    for _ in range(300):
        damaged = bytearray(good)
        damaged[int(rng.integers(45, 300))] = int(rng.integers(256))
        try:
            found = decode_stream(HTJ2KLossless, bytes(damaged), FORMAT_64)
        except (ValueError, RuntimeError):
            refused += 1
            continue
        silent += not found[-1].any()
    assert silent == 0
    assert refused > 50


def test_a_tile_grid_that_does_not_cover_the_image_is_refused() -> None:
    """OpenJPH would run for hours."""
    stream = bytearray(imagecodecs.htj2k_encode(np.ones((64, 64), np.uint16), reversible=True))
    stream[36:40] = (7936).to_bytes(4, "big")
    with pytest.raises(ValueError, match="tile grid"):
        decode_stream(HTJ2KLossless, bytes(stream), FORMAT_64)


def test_a_run_of_one_byte_is_no_frame() -> None:
    header = np.array([2, 64, 66, *[0] * 13], "<u4").tobytes()
    with pytest.raises(ValueError, match="fewer bytes"):
        decode_runs(header + bytes([0, 1, 0, 44]), FORMAT_64)


def test_a_file_that_is_cut_in_its_runs_is_refused(tmp_path: Path) -> None:
    header = np.array([2, 64, 66, *[0] * 13], "<u4").tobytes()
    path = save(single(header + bytes([0, 1, 0, 44])), tmp_path / "file", RLELossless)
    with pytest.raises(UnreadableSource, match="UNDECODABLE"):
        stored_values(path)
