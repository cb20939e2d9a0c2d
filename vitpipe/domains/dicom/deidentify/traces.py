"""What a file calls its people, to be sought in the texts that stay: a name may stand where none belongs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from pydicom import DataElement, Dataset
from pydicom.datadict import dictionary_has_tag, dictionary_VR

from vitpipe.domains.dicom.deidentify import values
from vitpipe.domains.dicom.deidentify.profile import load_vocabulary
from vitpipe.domains.dicom.files import PARSE_ERRORS

_IDENTIFIERS: Final = frozenset({0x00100020, 0x00101000, 0x00101001, 0x00101090, 0x00080050, 0x00380010, 0x00200010})
"""PatientID, OtherPatientIDs, OtherPatientNames, MedicalRecordLocator, AccessionNumber, AdmissionID, StudyID."""
_PART: Final = re.compile(r"[^\W_]+")
_SHORTEST_NAME: Final = 3
_SHORTEST_NUMBER: Final = 4


def traces_of(dataset: Dataset) -> frozenset[str]:
    """Collect the parts of all names, and the identifiers, of a data set and its sequences, in lower case.

    Words of the vocabulary are left out: the name of a phantom (``Head^Neck``) is anatomy wherever else it stands.
    """
    found: set[str] = set()
    for element in _naming(dataset):
        shortest = _SHORTEST_NAME if element.VR == "PN" else _SHORTEST_NUMBER
        found |= {part for part in parts_of(element) if len(part) >= shortest}
    return frozenset(found - load_vocabulary())


def parts_of(element: DataElement) -> set[str]:
    """Give the words and numbers of an element's texts, in lower case."""
    return {part for value in values.texts(element) for part in _PART.findall(value.lower())}


def _naming(dataset: Dataset) -> Iterator[DataElement]:
    """Iterate over names and identifiers at all levels, without converting anything else."""
    for tag in list(dataset.keys()):
        vr = dictionary_VR(tag) if dictionary_has_tag(tag) else ""
        if vr not in ("PN", "SQ") and int(tag) not in _IDENTIFIERS:
            continue
        try:
            element = dataset[tag]
            items = list(element.value) if element.VR == "SQ" else []
        except PARSE_ERRORS:
            continue
        if element.VR != "SQ":
            yield element
        for item in items:
            yield from _naming(item)
