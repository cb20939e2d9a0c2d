"""A file with identities in every place that a file has, and what to look for afterwards. Nobody's: canaries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from dicom_cases import instance, save
from pydicom import Dataset, dcmread
from pydicom.dataelem import DataElement
from pydicom.dataset import FileDataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag

from vitpipe.domains.dicom.deidentify.judge import PixelJudge, StatedJudge
from vitpipe.domains.dicom.deidentify.options import options_from
from vitpipe.domains.dicom.deidentify.single import Deidentifier
from vitpipe.pseudonym import Pseudonymiser

KEY = Pseudonymiser(b"test key")
# A word that no vocabulary has, in the form that each VR allows.
CANARY = "Zyxquorth"
UPPER = "ZYXQUORTH"
NUMBERS = ("1937040", "77123456", "1.2.3.777.")
"""Beginnings of the dates, numbers and UIDs that are planted."""
MARKS = tuple(text.encode() for text in (CANARY, UPPER, *NUMBERS))

# One tag a VR that the table does not name and that may hold what a person writes, and some that it names.
_TEXTS = {
    "LO": ["SegmentLabel", "DimensionDescriptionLabel", "PatientComments", "StudyDescription", "MedicalRecordLocator"],
    "SH": ["LUTLabel", "StudyID", "AccessionNumber", "StationName", "ChannelLabel"],
    "LT": ["PatientComments", "ImageComments", "AdditionalPatientHistory", "DetectorDescription", "FrameComments"],
    "ST": ["InstitutionAddress", "DerivationDescription", "SegmentDescription", "PartialViewDescription"],
    "UT": ["TextValue", "StrainAdditionalInformation", "AnnotationGroupDescription", "ObservationDescription"],
    "UC": ["LongCodeValue", "StrainDescription"],
    "UR": ["RetrieveURL", "CodingSchemeURL"],
    "PN": ["ReferringPhysicianName", "OperatorsName", "PersonName", "EvaluatorName", "OtherPatientNames"],
    "AE": ["StationAETitle", "RetrieveAETitle"],
}
_MOMENTS = {
    "StudyDate": "19370405",
    "PatientBirthDate": "19370405",
    "ContentDate": "19370405",
    "SecondaryReviewDate": "19370405",
    "AcquisitionDateTime": "19370405101112",
    "FrameReferenceDateTime": "19370405101112.5",
    "StudyUpdateDateTime": "19370405101112",
}


def plant(dataset: Dataset) -> Dataset:
    """Put canaries into every kind of element of one level, private ones too."""
    for vr, keywords in _TEXTS.items():
        for keyword in keywords:
            setattr(dataset, keyword, CANARY if vr != "AE" else UPPER)
    for keyword, value in _MOMENTS.items():
        setattr(dataset, keyword, value)
    dataset.PatientName, dataset.PatientID = f"{CANARY}^A", "77123456"
    dataset.OtherPatientIDs = ["77123456", CANARY]
    dataset.IrradiationEventUID, dataset.ReferencedSOPInstanceUID = "1.2.3.777.5", "1.2.3.777.4.1"
    dataset.TargetFrameOfReferenceUID = "1.2.3.777.3"
    private = dataset.private_block(0x0009, f"{UPPER} 1.0", create=True)
    private.add_new(1, "LO", CANARY)
    private.add_new(2, "PN", CANARY)
    private.add_new(3, "OB", CANARY.encode() + b"\0")
    private.add_new(4, "SQ", [_named()])
    # A known tag with another VR than its own, a tag of no dictionary, a name in the place of a number.
    dataset.add(DataElement(Tag(0x0008, 0x0303), "LO", CANARY))
    dataset.add(DataElement(Tag(0x0018, 0x9345), "LO", CANARY))
    dataset.add(DataElement(Tag(0x0018, 0x7FFF), "UN", CANARY.encode() + b"\0"))
    return dataset


def _named() -> Dataset:
    item = Dataset()
    item.PatientName, item.PatientID, item.StudyDate = f"{CANARY}^B", "77123456", "19370405"
    return item


def _code() -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = CANARY, "99LOCAL", CANARY
    return item


def nested(depth: int = 3) -> Dataset:
    """Canaries in sequences that the table does not name, within each other."""
    item = plant(Dataset())
    item.AnatomicRegionSequence = [_code()]
    item.PersonIdentificationCodeSequence = [_code()]
    item.RequestAttributesSequence = [_named()]
    if depth:
        item.ViewCodeSequence = [nested(depth - 1)]
    return item


def poisoned(number: int = 0, **values: object) -> Dataset:
    """One CT slice with canaries in all these places."""
    dataset = plant(instance(number, **values))
    dataset.ReferencedImageSequence = [_reference("1.2.3.777.4.0"), _reference("1.2.3.777.4.1")]
    dataset.SharedFunctionalGroupsSequence = [nested()]
    dataset.PerFrameFunctionalGroupsSequence = [nested(1), nested(1)]
    dataset.add(DataElement(Tag(0x6000, 0x0010), "US", 2))
    dataset.add(DataElement(Tag(0x6000, 0x0022), "LO", CANARY))
    dataset.add(DataElement(Tag(0x6000, 0x3000), "OW", CANARY.encode() + b"\0"))
    dataset.add(DataElement(Tag(0x6000, 0x4000), "LT", CANARY))
    dataset.add(DataElement(Tag(0x5000, 0x0022), "LO", CANARY))
    icon = Dataset()
    icon.Rows, icon.PixelData = 1, CANARY.encode() + b"\0"
    icon["PixelData"].VR = "OB"
    dataset.IconImageSequence = Sequence([icon])
    return dataset


def _reference(uid: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", uid
    return item


def save_poisoned(path: Path, number: int = 0, syntax: str = "1.2.840.10008.1.2.1", **values: object) -> Path:
    """Write such a file, with canaries in its preamble, its file meta group and behind its end."""
    save(poisoned(number, **values), path, syntax)
    whole = dcmread(path)
    whole.file_meta.SourceApplicationEntityTitle = UPPER
    whole.file_meta.PrivateInformationCreatorUID = "1.2.3.777.9"
    whole.file_meta.PrivateInformation = CANARY.encode() + b"\0"
    whole.preamble = (CANARY.encode() * 20)[:128]
    whole.save_as(path)
    return path


def write(path: Path, target: Path, *options: str, judge: PixelJudge | None = None) -> FileDataset:
    """De-identify one file and read the result."""
    written = Deidentifier(options_from(options), KEY, judge or StatedJudge()).write(path, target)
    return dcmread(target / written.output)


def marks(data: bytes) -> list[bytes]:
    """Give the canaries that some bytes hold, in one byte a character or in two."""
    return [mark for mark in MARKS if mark in data or mark.decode().encode("utf-16-le") in data]


def pixels_of(dataset: Dataset) -> np.ndarray:
    return np.frombuffer(dataset.PixelData, np.uint16).reshape(dataset.Rows, dataset.Columns)
