"""What once came through: moved dates beside kept ones, texts within streams, names that look like codes and terms."""

from __future__ import annotations

from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from deidentify_cases import CANARY, KEY, write
from dicom_cases import COLS, ROWS, instance, save, stored
from pydicom import Dataset
from pydicom.dataset import FileDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit, JPEGLSLossless

from vitpipe.domains.dicom.deidentify.identity import read_patient, shift_date
from vitpipe.domains.dicom.deidentify.options import Option
from vitpipe.domains.dicom.deidentify.profile import COLUMNS, TOP, Action, load_profile
from vitpipe.domains.dicom.pixels import stored_values

MARK = CANARY.encode()
NATIVE = {"RescaleSlope": None, "RescaleIntercept": None, "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}


def deidentified(dataset: Dataset, folder: Path, syntax: str, *options: str) -> tuple[FileDataset, Path]:
    """De-identify a data set; gives the result and its path."""
    found = write(save(dataset, folder / "in.dcm", syntax), folder / "out", *options)
    (path,) = (folder / "out").rglob("*.dcm")
    return found, path


def test_beside_dates_that_are_moved_none_stays(tmp_path: Path) -> None:
    # A scanner is calibrated on the morning of the study: if that date stays, it tells by how much others were moved.
    dates = ("StudyDate", "DateOfLastCalibration", "DateOfLastDetectorCalibration", "DateOfManufacture")
    dataset = instance(0, **dict.fromkeys(dates, "20190607"), DateTimeOfLastCalibration="20190607070000")
    found, path = deidentified(dataset, tmp_path, ExplicitVRLittleEndian, "retain-dates", "retain-device")
    moved = shift_date("20190607", read_patient(instance(0), KEY).weeks)
    assert [found[keyword].value for keyword in dates] == [moved] * len(dates)
    assert found.DateTimeOfLastCalibration == f"{moved}070000"
    assert b"20190607" not in path.read_bytes()
    profile, every = load_profile(), frozenset(Option) - {Option.RETAIN_FULL_DATES}
    dated = [tag for tag, row in profile.rows.items() if row[COLUMNS[Option.RETAIN_DATES]] == "C"]
    assert {profile.action(tag, (TOP, dataset.SOPClassUID), every) for tag in dated} == {Action.CLEAN}


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEG2000Lossless, JPEGLSLossless])
def test_texts_within_a_compressed_stream_go_and_its_pixels_stay(tmp_path: Path, syntax: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (ROWS, COLS), np.uint8)
    if syntax == JPEG2000Lossless:
        stream = imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", reversible=True)
        # SOC and SIZ come first (T.800 A.3); a comment of Latin-1 text.
        place, texts = 4 + int.from_bytes(stream[4:6], "big"), segment(0x64, b"\0\1" + MARK)
    else:
        encode = imagecodecs.jpeg8_encode if syntax == JPEGBaseline8Bit else imagecodecs.jpegls_encode
        stream, place = encode(pixels), 2
        # With the fill byte that may stand before any marker (T.81 B.1.1.2).
        texts = segment(0xFE, MARK) + b"\xff" + segment(0xE1, b"Exif\0\0" + MARK) + segment(0xED, MARK)
    stream = stream[:place] + texts + stream[place:]
    dataset = instance(0, **NATIVE, PixelData=encapsulate([stream]))
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    found, path = deidentified(dataset, tmp_path, syntax)
    assert MARK in (tmp_path / "in.dcm").read_bytes()
    assert MARK not in path.read_bytes()
    assert found.file_meta.TransferSyntaxUID == syntax
    np.testing.assert_array_equal(stored_values(path), stored_values(tmp_path / "in.dcm"))


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_what_lies_behind_the_last_frame_goes(tmp_path: Path, syntax: str) -> None:
    order = ">u2" if syntax == ExplicitVRBigEndian else "<u2"
    frames = np.stack([stored(0), stored(1)])
    dataset = instance(0, NumberOfFrames=2, PixelData=frames.astype(order).tobytes() + MARK)
    _, path = deidentified(dataset, tmp_path, syntax)
    assert MARK not in path.read_bytes()
    assert path.read_bytes().endswith(frames.astype(order).tobytes())
    np.testing.assert_array_equal(stored_values(path), frames)


def test_pixels_of_an_odd_number_of_bytes_stay_whole(tmp_path: Path) -> None:
    pixels = np.arange(15, dtype=np.uint8)
    dataset = instance(0, **NATIVE, Rows=3, Columns=5, PixelData=pixels.tobytes() + b"\0" + MARK)
    found, path = deidentified(dataset, tmp_path, ExplicitVRLittleEndian)
    assert found.PixelData == pixels.tobytes() + b"\0"
    assert MARK not in path.read_bytes()


def coded(scheme: str, value: str, meaning: str = "x") -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def test_a_code_that_is_a_name_or_a_number_of_the_file_is_replaced(tmp_path: Path) -> None:
    names = {"PatientName": f"{CANARY}^Smith^Margin", "PatientID": "MRN/123456789", "AccessionNumber": "121071"}
    listed = {("DCM", "121071"), ("DCM", "Margin"), ("UCUM", "mm"), ("SCT", "39607008")}
    planted = {
        *(("UCUM", CANARY), ("UCUM", f"1/{CANARY}"), ("UCUM", "123456789"), ("DCM", "SMITH")),
        *(("SCT", "123456789"), ("SNM3", "Smith"), ("99LOCAL", CANARY)),
    }
    codes = sorted(listed | planted)
    dataset = instance(0, **names, AnatomicRegionSequence=[coded(*code, meaning=CANARY) for code in codes])
    found, path = deidentified(dataset, tmp_path, ExplicitVRLittleEndian)
    after = [(item.CodingSchemeDesignator, item.CodeValue) for item in found.AnatomicRegionSequence]
    assert after == [code if code in listed else ("99ANON", "ANON") for code in codes]
    assert not [text for text in (CANARY, "SMITH", "Smith", "123456789") if text.encode() in path.read_bytes()]
    meanings = {item.CodeValue: item.CodeMeaning for item in found.AnatomicRegionSequence}
    assert (meanings["121071"], meanings["mm"]) == ("Finding", "mm")
    # A code that nobody is called stays, too, though no list has it.
    other = instance(1, AnatomicRegionSequence=[coded("UCUM", "mm8"), coded("SCT", "987654321")])
    kept = write(save(other, tmp_path / "other.dcm"), tmp_path / "out").AnatomicRegionSequence
    assert [item.CodeValue for item in kept] == ["mm8", "987654321"]


@pytest.mark.parametrize("position", ["HFS", "FFDL", "HFP", "RFS", "LFP", "AFDR", "PFDL"])
def test_terms_that_pixels_and_geometry_need_stay_whoever_is_called_so(tmp_path: Path, position: str) -> None:
    names = {"PatientName": f"{position}^Derived^Secondary", "PatientID": "MONOCHROME2", "AccessionNumber": "AXIAL"}
    terms = {"PatientPosition": position, "ImageType": ["DERIVED", "SECONDARY", "AXIAL"], "BurnedInAnnotation": "NO"}
    found, path = deidentified(instance(0, **names, **terms), tmp_path, ExplicitVRLittleEndian)
    assert found.PhotometricInterpretation == "MONOCHROME2"
    assert (found.PatientPosition, found.ImageType) == (position, ["DERIVED", "SECONDARY", "AXIAL"])
    np.testing.assert_array_equal(stored_values(path), stored(0))


def test_other_terms_that_are_a_name_go(tmp_path: Path) -> None:
    for number, (position, kinds) in enumerate([("AFRO", ["ORIGINAL", "PRIMARY", "AFRO"]), ("LFX", ["LFX"])]):
        dataset = instance(number, PatientName=f"{position}^B", PatientPosition=position, ImageType=kinds)
        found = write(save(dataset, tmp_path / f"{number}.dcm"), tmp_path / "out")
        assert (found.PatientPosition, found.ImageType) == ("ANON", "ANON")
