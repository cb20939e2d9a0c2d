"""The door of the pipeline: tiles show pixels, reports show tiles, so that a name in pixels would be handed on."""

from __future__ import annotations

from typing import Final

from vitpipe.domains.dicom.burnedin.header import HeaderJudge
from vitpipe.domains.dicom.burnedin.rules import Facts
from vitpipe.domains.dicom.deidentify.judge import Mask, Reject
from vitpipe.domains.dicom.fields import children, number, text
from vitpipe.domains.dicom.files import DicomFile
from vitpipe.errors import UnreadableSource

NOT_MASKED: Final = "BURNED_IN_NOT_MASKED"
_CLEAN_PIXELS: Final = "113101"


def refuse_text_in_pixels(item: DicomFile) -> None:
    """Refuse a file whose header makes it likely that its pixels name the patient; no pixel is decoded.

    What `vitpipe deidentify` has masked states BurnedInAnnotation NO and passes.

    Raises:
        UnreadableSource: with a code of the rules (``BURNED_IN_ANNOTATION ENCAPSULATED_DOCUMENT DOSE_REPORT SCREEN_SAVE
            SCANNED_FILM SECONDARY_CAPTURE ULTRASOUND_SCREEN``), or ``BURNED_IN_NOT_MASKED``.
    """
    rows, cols = (int(number(item.dataset, keyword) or 0) for keyword in ("Rows", "Columns"))
    facts = Facts.of(item.dataset, rows, cols)
    verdict = HeaderJudge().decide(facts, item.dataset)
    if isinstance(verdict, Reject):
        raise UnreadableSource(verdict.code, verdict.reason, str(item.path))
    # The device itself may state NO, too: only who says that the pixels were cleaned has masked its banner.
    codes = children(item.dataset, "DeidentificationMethodCodeSequence")
    cleaned = facts.burned_in == "NO" and any(text(code, "CodeValue") == _CLEAN_PIXELS for code in codes)
    if isinstance(verdict, Mask) and not cleaned:
        raise UnreadableSource(
            NOT_MASKED,
            "its device writes names into known places of the frame, which are not masked; run `vitpipe deidentify` on "
            "the files first, which masks them",
            str(item.path),
        )
