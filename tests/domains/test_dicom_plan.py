"""Reads by the plan of the catalog: no header is parsed again, and a file that changed is never misread."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from dicom_cases import COLS, ROWS, instance, read, save, scan, series, stored

from vitpipe.domains.dicom import Dicom, framereader
from vitpipe.domains.dicom.raster import DicomRaster
from vitpipe.errors import UnreadableSource


def test_a_planned_read_parses_no_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(path: Path) -> None:
        raise AssertionError(path)

    series(tmp_path)
    (source,) = scan(tmp_path)[0]
    monkeypatch.setattr(framereader, "read_file", never)
    for frame in range(6):
        pixels, valid = read(source, frame)
        np.testing.assert_array_equal(pixels[0], stored(frame).astype(int) - 1024)
        assert valid.all()


def test_a_plan_takes_less_than_a_hundred_bytes_a_file(tmp_path: Path) -> None:
    for number in range(40):
        # Every value that may differ from file to file does.
        text = {"RescaleSlope": 1 + number / 1000, "RescaleIntercept": -number, "SeriesDescription": "x" * number}
        save(instance(number, **text), tmp_path / str(number))
    (source,) = scan(tmp_path)[0]
    assert len(source.files) == 40
    shared = len(json.dumps(source.reader["pixels"]["kinds"]))  # type: ignore[index, call-overload]
    assert len(json.dumps(source.reader, separators=(",", ":"))) - shared < 100 * 40


@pytest.mark.parametrize(
    ("change", "same_size"),
    [
        ({"RescaleIntercept": -1000}, True),
        ({"PixelPaddingValue": 5}, False),
        ({"Manufacturer": "Taker"}, True),
        ({"Rows": 8, "Columns": 12}, True),
    ],
)
def test_a_changed_header_is_noticed(tmp_path: Path, change: dict[str, object], same_size: bool) -> None:
    path = save(instance(0, RescaleIntercept=-1024), tmp_path / "file")
    (source,) = scan(tmp_path)[0]
    size = path.stat().st_size
    dataset = instance(0, **change)
    if "PixelPaddingValue" in change:
        dataset["PixelPaddingValue"].VR = "US"
    save(dataset, path)
    assert (path.stat().st_size == size) == same_size
    with pytest.raises(UnreadableSource, match=r"CHANGED.*ingest again"):
        read(source)


def test_files_of_several_kinds_are_each_read_their_own_way(tmp_path: Path) -> None:
    signed = stored(1).astype(np.int16) - 500
    save(instance(0), tmp_path / "a")
    save(instance(1, PixelRepresentation=1, PixelData=signed.tobytes(), RescaleSlope=2), tmp_path / "b")
    save(instance(2, BitsStored=16, HighBit=15), tmp_path / "c")
    (source,) = scan(tmp_path)[0]
    wanted = [stored(0).astype(int) - 1024, signed.astype(int) * 2 - 1024, stored(2).astype(int) - 1024]
    for frame in range(3):
        np.testing.assert_array_equal(read(source, frame)[0][0], wanted[frame])


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_a_block_of_frames_is_read_at_once(tmp_path: Path, threads: int) -> None:
    for number in range(5):
        dataset = instance(number, RescaleSlope=0.1 * (number + 1), PixelPaddingValue=303)
        dataset["PixelPaddingValue"].VR = "US"
        save(dataset, tmp_path / str(number))
    (source,) = scan(tmp_path)[0]
    with Dicom().open(source) as raster:
        assert isinstance(raster, DicomRaster)
        pixels, valid = raster.read_frames(1, 5, threads=threads)
        assert (pixels.shape, pixels.dtype) == ((4, 1, ROWS, COLS), np.float32)
        assert valid is not None
        for place, frame in enumerate(range(1, 5)):
            alone, alone_valid = read(source, frame)
            np.testing.assert_array_equal(pixels[place], alone)
            np.testing.assert_array_equal(valid[place], alone_valid)
        with pytest.raises(ValueError, match="frames 3 to 6 of 5"):
            raster.read_frames(3, 6)


def test_a_block_may_be_wanted_in_float(tmp_path: Path) -> None:
    series(tmp_path)
    (source,) = scan(tmp_path)[0]
    with Dicom().open(source) as raster:
        assert isinstance(raster, DicomRaster)
        pixels, valid = raster.read_frames(0, 6, dtype=np.float32)
        assert (pixels.dtype, valid) == (np.float32, None)
        np.testing.assert_array_equal(pixels[:, 0], [stored(frame).astype(int) - 1024 for frame in range(6)])
        with pytest.raises(ValueError, match="does not hold"):
            raster.read_frames(0, 6, dtype=np.uint8)


def test_rescale_rounds_once(tmp_path: Path) -> None:
    """As in float64, rounded once: float32 all the way would be off by a unit in the last place."""
    save(instance(0, RescaleSlope=0.1, RescaleIntercept=-0.3), tmp_path / "file")
    (source,) = scan(tmp_path)[0]
    wanted = (stored(0).astype(np.float64) * 0.1 - 0.3).astype(np.float32)
    np.testing.assert_array_equal(read(source)[0][0], wanted)
    assert (wanted != stored(0).astype(np.float32) * np.float32(0.1) - np.float32(0.3)).any()
