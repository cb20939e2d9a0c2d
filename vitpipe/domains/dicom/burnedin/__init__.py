"""Text burned into pixels: rules about headers, and, where asked for, a look at the pixels by OCR."""

from __future__ import annotations

from typing import Literal

from vitpipe.domains.dicom.burnedin.header import HeaderJudge
from vitpipe.domains.dicom.deidentify.judge import PixelJudge

Ocr = Literal["none", "mask", "reject"]


def make_judge(ocr: Ocr = "none") -> PixelJudge:
    """Make the judge of pixels.

    Args:
        ocr: ``none``: the header decides alone. ``mask``: what the header lets through is read by tesseract, and found
            text is masked. ``reject``: such a file is rejected.

    Raises:
        ConfigError: OCR is asked for, and the program tesseract is missing.
    """
    if ocr == "none":
        return HeaderJudge()
    from vitpipe.domains.dicom.burnedin.judging import OcrJudge
    from vitpipe.domains.dicom.burnedin.tesseract import Tesseract

    return OcrJudge(HeaderJudge(), Tesseract.find(), reject=ocr == "reject")
