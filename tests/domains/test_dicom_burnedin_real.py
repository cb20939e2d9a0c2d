"""Real ultrasound screens: their banner is masked, and OCR, which reads it in the file, reads nothing afterwards."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from tests.conftest import SHARED
from tests.domains.burnedin_cases import Frames, covered
from vitpipe.domains.dicom.burnedin import make_judge
from vitpipe.domains.dicom.burnedin.judging import OcrJudge
from vitpipe.domains.dicom.burnedin.tesseract import Tesseract
from vitpipe.domains.dicom.deidentify.judge import Keep, Mask, StatedJudge
from vitpipe.domains.dicom.deidentify.pixels import FilePixels
from vitpipe.domains.dicom.files import read_file

pytestmark = pytest.mark.shared
FILES = SHARED / "dicom_edge" / "files"
SCREEN = "pylibjpeg-data__JPEGExtended_3s_1f_u_08_08.dcm"
needs_tesseract = pytest.mark.skipif(shutil.which("tesseract") is None, reason="the program tesseract is not installed")


@pytest.mark.parametrize(
    ("name", "banner_rows"),
    [
        (SCREEN, 57),
        ("pylibjpeg-data__OBXXXX1A_rle_2frame.dcm", 60),
        ("pydicom__examples_palette.dcm", 60),
        ("pydicom__examples_ybr_color.dcm", 31),
        ("pydicom-data__JPGLosslessP14SV1_1s_1f_8b.dcm", 38),
    ],
)
def test_the_banner_of_a_real_screen_is_masked(name: str, banner_rows: int) -> None:
    item = read_file(FILES / name)
    pixels = FilePixels(item)
    verdict = make_judge().judge(item.dataset, pixels)
    assert isinstance(verdict, Mask)
    mask = covered(verdict.rectangles, pixels.rows, pixels.cols)
    assert mask[:banner_rows].all()
    assert not mask.all()


@needs_tesseract
def test_ocr_finds_the_banner_of_a_real_screen_and_nothing_in_the_masked_one() -> None:
    item = read_file(FILES / SCREEN)
    pixels = FilePixels(item)
    tesseract = Tesseract.find()
    found = OcrJudge(StatedJudge(), tesseract, reject=False).judge(item.dataset, pixels)
    assert isinstance(found, Mask)
    # Two grey lines at the left of a coloured banner, a date at its right: no value in them is near an extreme.
    mask = covered(found.rectangles, pixels.rows, pixels.cols)
    assert mask[4:34, 40:180].mean() > 0.95
    assert mask[4:20, 690:750].mean() > 0.95
    by_header = make_judge().judge(item.dataset, pixels)
    assert isinstance(by_header, Mask)
    black = np.array(pixels.stored(0))
    black[covered(by_header.rectangles, pixels.rows, pixels.cols)] = 0
    again = OcrJudge(StatedJudge(), tesseract, reject=False).judge(item.dataset, Frames(black[None]))
    assert again == Keep(inspected=True)
