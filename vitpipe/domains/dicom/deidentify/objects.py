"""Which DICOM objects can be de-identified by their attributes and pixels, and which are documents."""

from __future__ import annotations

from typing import Final

from vitpipe.domains.dicom.deidentify.identity import is_well_known
from vitpipe.domains.dicom.files import DicomFile
from vitpipe.errors import UnreadableSource

_STORAGE: Final = "1.2.840.10008.5.1.4.1.1."
# Objects without pixels whose identifying attributes the table names; all their free texts go or are cleaned.
_WITHOUT_PIXELS: Final = frozenset({"481.3", "481.5", "481.8", "66.1", "66.3", "66.5", "67"})
_DOCUMENTS: Final = {
    "88.": "a structured report or a selection of key objects",
    "104.": "an encapsulated document (PDF, CDA or a model)",
    "11.": "a presentation state, which may hold annotations",
    "9.": "a waveform, which may hold annotations",
    "66": "raw data",
    "30": "a parametric map without pixels",
}


def check_object(item: DicomFile, sop_class: str) -> None:
    """Refuse what cannot be made safe by rules.

    The contents of a document are its text: no rule tells a name in it from a finding.

    Raises:
        UnreadableSource: ``NO_UID``, ``PRIVATE_SOP_CLASS``, ``DOCUMENT`` or ``NOT_AN_IMAGE``.
    """
    path = str(item.path)
    if not sop_class:
        raise UnreadableSource("NO_UID", "the file has no SOPClassUID, so nothing says what it is", path)
    if not is_well_known(sop_class):
        raise UnreadableSource(
            "PRIVATE_SOP_CLASS", "its SOP class is a maker's own, whose contents nobody outside knows; export it", path
        )
    kind = sop_class.removeprefix(_STORAGE)
    for prefix, named in _DOCUMENTS.items():
        if kind == prefix or (prefix.endswith(".") and kind.startswith(prefix)):
            if item.pixels is not None and prefix == "30":
                return
            raise UnreadableSource(
                "DOCUMENT", f"{named}: what it says cannot be de-identified by rules; review it by hand", path
            )
    if item.pixels is None and kind not in _WITHOUT_PIXELS:
        raise UnreadableSource(
            "NOT_AN_IMAGE",
            "an object without pixels that is neither an image, a structure set, a plan nor a registration",
            path,
        )
