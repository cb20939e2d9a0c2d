"""Text burned into the pixels of whole files: what is masked is black in the result, all else is bit-equal."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import RLELossless
from typer.testing import CliRunner

from flows.cli import app
from tests.domains.burnedin_cases import region, written
from tests.domains.dicom_cases import instance, save

NAME = "QZPERSON JOHN 1937-04-05"
ROWS, COLS = 480, 640
BANNER = 47
"""Of an iU22 with this frame."""
IU22 = {"Manufacturer": "Philips Medical Systems", "ManufacturerModelName": "iU22"}
needs_tesseract = pytest.mark.skipif(shutil.which("tesseract") is None, reason="the program tesseract is not installed")


def scan(frames: int = 1, samples: int = 1, *, light: int = 255) -> NDArray[np.uint8]:
    """Speckle with a name in the banner; (frames, rows, cols[, 3])."""
    shape = (frames, ROWS, COLS, samples)[: 4 if samples > 1 else 3]
    values = np.random.default_rng(5).integers(60, 120, shape, np.uint8)
    values[:, written(NAME, (ROWS, COLS), (12, 30), 16)] = light
    return values


def file_of(values: NDArray[np.uint8], number: int = 0, **more: object) -> Dataset:
    dataset = instance(number, RescaleSlope=None, RescaleIntercept=None)
    dataset.Modality, dataset.SOPClassUID = "US", "1.2.840.10008.5.1.4.1.1.6.1"
    dataset.SOPInstanceUID = f"1.2.3.777.8.{number}"
    dataset.Rows, dataset.Columns = values.shape[1:3]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    if values.ndim == 4:
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    if len(values) > 1:
        dataset.SOPClassUID, dataset.NumberOfFrames = "1.2.840.10008.5.1.4.1.1.3.1", len(values)
    dataset.PixelData = values.tobytes()
    dataset["PixelData"].VR = "OB"
    for keyword, value in more.items():
        setattr(dataset, keyword, value)
    return dataset


def run(folder: Path, *arguments: str) -> tuple[int, dict[str, object], str]:
    call = ["deidentify", str(folder / "in"), str(folder / "out"), "--json", *arguments]
    result = CliRunner().invoke(app, call, env={"VITPIPE_KEY": "key"})
    return result.exit_code, json.loads(result.stdout), result.output


def only(folder: Path) -> Dataset:
    (path,) = (folder / "out").rglob("*.dcm")
    return dcmread(path)


@pytest.mark.parametrize(("frames", "samples"), [(1, 1), (1, 3), (3, 1), (2, 3)])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_known_banner_is_black_and_the_rest_bit_equal(
    tmp_path: Path, frames: int, samples: int, *, compressed: bool
) -> None:
    values = scan(frames, samples)
    data = file_of(values, **IU22)
    path = save(data, tmp_path / "in" / "a.dcm")
    if compressed:
        whole = dcmread(path)
        whole.compress(RLELossless, generate_instance_uid=False)
        whole.save_as(path)
    code, summary, _ = run(tmp_path)
    assert (code, summary["done"]) == (0, 1)
    found = only(tmp_path)
    pixels = found.pixel_array.reshape(values.shape)
    assert (pixels[:, :BANNER] == (0 if samples > 1 else 60)).all()
    np.testing.assert_array_equal(pixels[:, BANNER:], values[:, BANNER:])
    assert found.BurnedInAnnotation == "NO"
    assert "113101" in [item.CodeValue for item in found.DeidentificationMethodCodeSequence]


def test_outside_the_regions_is_black_in_monochrome1_too(tmp_path: Path) -> None:
    values = scan(light=0)
    data = file_of(values, PhotometricInterpretation="MONOCHROME1", BurnedInAnnotation="YES")
    data.SequenceOfUltrasoundRegions = Sequence([region(100, 80, 499, 399)])
    save(data, tmp_path / "in" / "a.dcm")
    assert run(tmp_path)[0] == 0
    pixels = only(tmp_path).pixel_array
    expected = np.full((ROWS, COLS), values.max(), np.uint8)
    expected[80:400, 100:500] = values[0, 80:400, 100:500]
    np.testing.assert_array_equal(pixels, expected)


def test_rejected_screens_stand_in_the_quarantine_without_a_name(tmp_path: Path) -> None:
    save(file_of(scan(), 0, **IU22), tmp_path / "in" / "0.dcm")
    save(file_of(scan(), 1, SeriesDescription=f"{NAME} Dose Report"), tmp_path / "in" / "1.dcm")
    save(file_of(scan(), 2, Manufacturer="Unknown"), tmp_path / "in" / "2.dcm")
    save(file_of(scan(), 3, Modality="OT", SOPClassUID="1.2.840.10008.5.1.4.1.1.7"), tmp_path / "in" / "3.dcm")
    code, summary, output = run(tmp_path)
    assert (code, summary["done"]) == (0, 1)
    assert summary["rejected"] == {"DOSE_REPORT": 1, "SECONDARY_CAPTURE": 1, "ULTRASOUND_SCREEN": 1}
    table = (tmp_path / "out" / "quarantine.csv").read_text()
    assert set(pd.read_csv(tmp_path / "out" / "quarantine.csv")["code"]) == set(summary["rejected"])
    assert "QZPERSON" not in f"{table}{output}".upper()


@needs_tesseract
def test_ocr_masks_what_the_header_does_not_know_of(tmp_path: Path) -> None:
    values = scan()
    save(file_of(values, BurnedInAnnotation="NO"), tmp_path / "in" / "a.dcm")
    code, summary, output = run(tmp_path, "--ocr", "mask")
    assert (code, summary["done"]) == (0, 1)
    pixels = only(tmp_path).pixel_array
    text = written(NAME, (ROWS, COLS), (12, 30), 16)
    assert (pixels[text] == 60).all()
    # Speckle may look like a word, seldom.
    assert (pixels[60:] == values[0, 60:]).mean() > 0.95
    assert "QZPERSON" not in output.upper()
    shutil.rmtree(tmp_path / "out")
    assert run(tmp_path, "--ocr", "reject")[0] == 3
    assert "BURNED_IN_TEXT" in (tmp_path / "out" / "quarantine.csv").read_text()


def test_an_unknown_kind_of_ocr_is_said(tmp_path: Path) -> None:
    save(file_of(scan()), tmp_path / "in" / "a.dcm")
    code, _, output = run(tmp_path, "--ocr", "perhaps")
    assert code == 2
    assert "none, mask, reject" in output
