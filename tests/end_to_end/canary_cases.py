"""A small DICOM tree with canaries: made-up identifiers in every place where a real file holds a person's.

Each place has a text of its own, so that a hit says where it came from. No value here is a person's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filewriter import dcmwrite
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEG2000Lossless, SecondaryCaptureImageStorage

from tests.end_to_end.pipeline_cases import MODEL, TRAIN, pattern, write_pipeline

PERSON = "qzperson"
"""Stands in every text that names a person: nothing that is made may hold it."""
ACCENTED = "Qzpérson"
"""The same in another character set than ASCII."""
FOLDER = "qzfolder"
"""Stands in names of files and folders: only local tables, which need the paths to open the files, may hold it."""
ROOT_UID = "1.2.826.0.1.3680043.10.98765"
BIRTH_DATE, STUDY_DATE, STUDY_TIME = "19370405", "20190607", "123456.789"
ROWS = COLS = 32
SLICES = 3


def make_canary_tree(folder: Path, patients: int) -> Path:
    """Write series of three slices, broken files and a table keyed by patient; returns the pipeline file."""
    rng = np.random.default_rng(9)
    rows = []
    for number in range(patients):
        kind = number % 2
        pixels = pattern(rng, kind, (SLICES, ROWS, COLS))
        for position in range(SLICES):
            stored = (pixels[position] + 1024).clip(0, 4095).astype("<u2")
            place = folder / "dicom" / f"Qzfolder_{number:03d}" / f"{FOLDER}-name-{number}-{position}.dcm"
            write(canary_slice(number, position, stored.tobytes()), place)
        rows.append(
            {"patient": patient_id(number), "label": ("rows", "columns")[kind], "family": f"QZPERSON FAMILY{number}"}
        )
    write_oddities(folder / "dicom" / "QZFOLDER odd")
    pd.DataFrame(rows).to_csv(folder / "labels.csv", index=False)
    return write_pipeline(
        folder,
        {
            "name": "series",
            "source": {"kind": "dicom", "path": "dicom", "modality": "CT"},
            "labels": {"kind": "table", "path": "labels.csv", "key": "patient", "column": "label", "group": "family"},
            "tiles": {"cut": "whole", "size": 32},
            "model": MODEL | {"depth": 1},
            "train": TRAIN | {"epochs": 1},
            "preprocess": {"clip": [-100, 300]},
            "evaluate": {"subgroups": ["sex", "manufacturer"], "bootstrap": 200},
        },
    )


def patient_id(number: int) -> str:
    return f"QZPERSON-ID-{number:03d}"


def canary_slice(number: int, position: int, pixels: bytes) -> Dataset:
    """One CT slice whose every identifying element, at every depth, holds a canary."""
    data = Dataset()
    data.SpecificCharacterSet = "ISO_IR 192"
    series_uid = f"{ROOT_UID}.2.{number}"
    values: dict[str, Any] = {
        "SOPClassUID": CTImageStorage, "SOPInstanceUID": f"{series_uid}.{position}",
        "StudyInstanceUID": f"{ROOT_UID}.1.{number}", "SeriesInstanceUID": series_uid,
        "FrameOfReferenceUID": f"{ROOT_UID}.3.{number}",
        "PatientID": patient_id(number), "PatientName": f"{ACCENTED}^Qzperson Name", "PatientSex": "FM"[number % 3 % 2],
        "PatientBirthDate": BIRTH_DATE, "PatientAge": "081Y", "StudyDate": STUDY_DATE, "SeriesDate": STUDY_DATE,
        "StudyTime": STUDY_TIME, "ContentTime": STUDY_TIME, "AcquisitionDateTime": f"{STUDY_DATE}{STUDY_TIME}",
        "Modality": "CT", "Manufacturer": "Maker", "InstanceNumber": SLICES - position,
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "ImagePositionPatient": [0, 0, 2.5 * position], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": [0.8, 0.8], "Rows": ROWS, "Columns": COLS, "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2", "BitsAllocated": 16, "BitsStored": 12, "HighBit": 11,
        "PixelRepresentation": 0, "RescaleSlope": 1, "RescaleIntercept": -1024, "RescaleType": "HU",
        "PixelData": pixels,
    }  # fmt: skip
    for keyword, value in values.items():
        setattr(data, keyword, value)
    for keyword in (
        "AccessionNumber", "StudyID", "InstitutionName", "InstitutionAddress", "ReferringPhysicianName",
        "PerformingPhysicianName", "OperatorsName", "StationName", "StudyDescription", "SeriesDescription",
        "ProtocolName", "PatientComments", "ImageComments", "PatientAddress", "OtherPatientIDs", "OtherPatientNames",
        "PatientBirthName", "AdditionalPatientHistory", "DeviceSerialNumber", "RequestedProcedureDescription",
        "IssuerOfPatientID", "MilitaryRank", "EthnicGroup", "Occupation", "ContrastBolusAgent", "FrameComments",
        "ContentCreatorName", "DerivationDescription",
    ):  # fmt: skip
        setattr(data, keyword, f"QZPERSON {keyword}"[:16])
    data.OtherPatientIDsSequence = Sequence([item(PatientID="QZPERSON-OTHER", TypeOfPatientID="TEXT")])
    data.RequestAttributesSequence = Sequence(
        [item(ScheduledProcedureStepID="QZPERSON-STEP", PatientName="Qzperson^Nested")]
    )
    deep = item(PatientName="Qzperson^Deep", PersonIdentificationCodeSequence=Sequence([item(CodeMeaning="qzperson")]))
    data.ReferencedImageSequence = Sequence([item(PurposeOfReferenceCodeSequence=Sequence([deep]))])
    private = data.private_block(0x0011, "QZPERSON BLOCK", create=True)
    private.add_new(0x01, "LO", "QZPERSON private")
    private.add_new(0x02, "OB", b"QZPERSON bytes")
    private.add_new(0x03, "UN", b"\0QZPERSON unknown\0")
    private.add_new(0x04, "SQ", Sequence([item(PatientName="Qzperson^Private")]))
    return data


def item(**values: object) -> Dataset:
    data = Dataset()
    for keyword, value in values.items():
        setattr(data, keyword, value)
    return data


def write(data: Dataset, path: Path, syntax: str = ExplicitVRLittleEndian) -> Path:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = data.SOPClassUID, data.SOPInstanceUID
    meta.TransferSyntaxUID = syntax
    meta.ImplementationVersionName = meta.SourceApplicationEntityTitle = "QZPERSON META"
    meta.PrivateInformationCreatorUID, meta.PrivateInformation = f"{ROOT_UID}.9", b"QZPERSON META PR"
    path.parent.mkdir(parents=True, exist_ok=True)
    written = FileDataset(str(path), data, file_meta=meta, preamble=b"QZPERSON".ljust(128, b"\0"))
    written.set_original_encoding(is_implicit_vr=False, is_little_endian=True)
    dcmwrite(path, written, enforce_file_format=True)
    return path


def write_oddities(folder: Path) -> None:
    """Write what a real tree holds besides good files; each names a person where a parser would quote it."""
    blank = np.full((ROWS, COLS), 1024, "<u2").tobytes()

    def odd(number: int, name: str, *changes: tuple[bytes, bytes]) -> Path:
        """Write one slice with raw values in place of checked ones."""
        path = write(canary_slice(900 + number, 0, blank), folder / f"{FOLDER}-{name}")
        whole = path.read_bytes()
        for old, new in changes:
            assert old in whole, old
            assert len(old) >= len(new), new
            whole = whole.replace(old, new.ljust(len(old)))
        path.write_bytes(whole)
        return path

    folder.mkdir(parents=True)
    (folder / f"{FOLDER}-notes.txt").write_text("Patient: QZPERSON JOHN, born 19370405\n")
    (folder / f"{FOLDER}-empty.dcm").touch()
    (folder / f"{FOLDER}-noise.dcm").write_bytes(b"QZPERSON\0\1\2\3" * 40)
    cut = odd(0, "cut.dcm")
    cut.write_bytes(cut.read_bytes()[:-700])
    headless = odd(1, "headless.dcm")
    headless.write_bytes(headless.read_bytes()[: 128 + 4 + 12 + 150])
    odd(2, "date.dcm", (STUDY_DATE.encode(), b"QZPERSON"), (BIRTH_DATE.encode(), b"QZPERSON"))
    odd(3, "age.dcm", (b"081Y", b"QZPE"), (STUDY_TIME.encode(), b"QZPERSON"))
    odd(4, "slope.dcm", (b"-1024.0 ", b"QZPERSON"), (b"0.8\\0.8 ", b"QZPERSON"))
    odd(5, "charset.dcm", (b"ISO_IR 192", b"QZPERSON"))
    odd(6, "position.dcm", (b"0.0\\0.0\\0.0", b"QZPERSON"))
    odd(7, "colour.dcm", (b"MONOCHROME2", b"QZPERSON"))
    write_broken_stream(canary_slice(909, 0, blank), folder / f"{FOLDER}-stream.dcm")
    report = canary_slice(908, 0, blank)
    report.SOPClassUID, report.Modality, report.BurnedInAnnotation = SecondaryCaptureImageStorage, "OT", "YES"
    write(report, folder / f"{FOLDER}-screen.dcm")


def write_broken_stream(data: Dataset, path: Path) -> None:
    """Write a compressed slice whose stream is broken behind its header: that is seen when its pixels are read."""
    import imagecodecs

    whole = imagecodecs.jpeg2k_encode(np.arange(ROWS * COLS, dtype=np.uint16).reshape(ROWS, COLS), codecformat="j2k")
    data.PixelData = encapsulate([whole[: len(whole) // 3] + b"\xff\x93 broken" + whole[-2:]])
    data["PixelData"].VR, data["PixelData"].is_undefined_length = "OB", True
    write(data, path, JPEG2000Lossless)
