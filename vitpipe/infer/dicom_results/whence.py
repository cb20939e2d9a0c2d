"""From a result of ours back to the model that wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pydicom
from pydicom import Dataset

from vitpipe.domains.dicom.files import PARSE_ERRORS
from vitpipe.domains.dicom.quiet import quiet
from vitpipe.errors import DataError
from vitpipe.infer.dicom_results.identity import MANUFACTURER, MODEL, MODEL_SHA256, VERSION, short
from vitpipe.infer.versions import ModelIdentity

_ALGORITHM_NAME: Final = "111001"
_ALGORITHM_VERSION: Final = "111003"


def read_identity(path: Path) -> ModelIdentity:
    """Read which registered model wrote a structured report or a segmentation.

    It stands in the contributing equipment, and must be the one that the algorithm identification names.

    Raises:
        DataError: the file is no DICOM, was not written by vitpipe, or names two models.
    """
    try:
        with quiet():
            if path.is_dir():
                raise DataError(f"{path} is a folder; name one file in it that `vitpipe predict --dicom` wrote")
            if not path.is_file():
                raise DataError(f"{path}: No such file; give one that `vitpipe predict --dicom` wrote")
            dataset = pydicom.dcmread(path, stop_before_pixels=True)
            facts = _facts(dataset)
            named = _algorithm(dataset)
    except PARSE_ERRORS as error:
        raise DataError(
            f"{path} cannot be read as DICOM ({type(error).__name__}); give a file that `vitpipe predict --dicom` wrote"
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from error
    if not facts or named is None:
        raise DataError(
            f"{path} was not written by vitpipe: no contributing equipment and algorithm of it; give a file of "
            "`vitpipe predict --dicom`"
        )
    identity = ModelIdentity(facts.pop(MODEL), facts.pop(VERSION), facts.pop(MODEL_SHA256), facts)
    if named not in ((identity.name, identity.version), (short(identity.name), short(identity.version))):
        raise DataError(
            f"{path} names two models: {identity.title} as its equipment and {'/'.join(named)} as its algorithm; it "
            "was changed after it was written, do not use it"
        )
    return identity


def _facts(dataset: Dataset) -> dict[str, str]:
    for item in dataset.get("ContributingEquipmentSequence") or ():
        if item.get("Manufacturer") == MANUFACTURER:
            pairs = (part.partition("=") for part in str(item.get("ContributionDescription", "")).split("; "))
            found = {name: value for name, _, value in pairs}
            if {MODEL, VERSION, MODEL_SHA256} <= set(found):
                return found
    return {}


def _algorithm(dataset: Dataset) -> tuple[str, str] | None:
    """Give name and version of the algorithm: of the first segment, or of the first group of a report."""
    for segment in dataset.get("SegmentSequence") or ():
        for item in segment.get("SegmentationAlgorithmIdentificationSequence") or ():
            return str(item.AlgorithmName), str(item.AlgorithmVersion)
    texts: dict[str, str] = {}
    waiting = list(dataset.get("ContentSequence") or ())
    while waiting and len(texts) < 2:
        item = waiting.pop(0)
        code = item.ConceptNameCodeSequence[0].get("CodeValue") if item.get("ConceptNameCodeSequence") else None
        if code in (_ALGORITHM_NAME, _ALGORITHM_VERSION):
            texts.setdefault(str(code), str(item.TextValue))
        waiting = [*(item.get("ContentSequence") or ()), *waiting]
    return (texts[_ALGORITHM_NAME], texts[_ALGORITHM_VERSION]) if len(texts) == 2 else None
