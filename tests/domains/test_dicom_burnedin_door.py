"""Text in pixels at the door of the pipeline: refused on request, marked otherwise; a masked file passes."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from tests.domains.burnedin_cases import region
from tests.domains.dicom_cases import context, instance, save
from vitpipe.config import DicomSource
from vitpipe.domains.base import ScanContext
from vitpipe.domains.dicom import Dicom
from vitpipe.fileindex import reader_key
from vitpipe.records import Rejected

ULTRASOUND = {"Modality": "US", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.6.1"}


def door(root: Path, burned_in: str) -> ScanContext:
    plain = context(root)
    recipe = DicomSource.model_validate({"path": str(root), "burned_in": burned_in})
    return ScanContext(plain.root, plain.pseudonym, recipe)


def screen(**values: object) -> Dataset:
    data = instance(0, **ULTRASOUND, **values)
    data.SequenceOfUltrasoundRegions = Sequence([region(1, 2, 4, 8)])
    return data


def masked(data: Dataset) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "113101", "DCM", "Clean Pixel Data Option"
    data.DeidentificationMethodCodeSequence = Sequence([code])
    return data


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (instance(0), None),
        (instance(0, BurnedInAnnotation="YES"), "BURNED_IN_ANNOTATION"),
        (instance(0, ConversionType="DF"), "SCANNED_FILM"),
        (instance(0, Modality="OT"), "SECONDARY_CAPTURE"),
        (instance(0, **ULTRASOUND), "ULTRASOUND_SCREEN"),
        (screen(), "BURNED_IN_NOT_MASKED"),
        # What the device states of itself is not believed; what `deidentify` has masked is.
        (screen(BurnedInAnnotation="NO"), "BURNED_IN_NOT_MASKED"),
        (masked(screen(BurnedInAnnotation="NO")), None),
    ],
)
def test_what_may_name_a_patient_is_refused_on_request_alone(tmp_path: Path, data: Dataset, code: str | None) -> None:
    path = save(data, tmp_path / "a.dcm")
    kept = Dicom().index(path, door(tmp_path, "keep"))
    assert not isinstance(kept, Rejected)
    found = Dicom().index(path, door(tmp_path, "reject"))
    if code is None:
        assert found == kept
    else:
        assert isinstance(found, Rejected)
        assert found.code == code
        assert not found.junk
        assert "Canary" not in found.reason


def test_what_is_no_image_keeps_its_own_code(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text, no image")
    found = Dicom().index(tmp_path / "a.txt", door(tmp_path, "reject"))
    assert isinstance(found, Rejected)
    assert found.code == "NOT_DICOM"


def test_another_choice_reads_the_headers_again(tmp_path: Path) -> None:
    assert reader_key(door(tmp_path, "keep")) != reader_key(door(tmp_path, "reject"))
