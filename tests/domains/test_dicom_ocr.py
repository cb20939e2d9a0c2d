"""Text burned into pixels, found by OCR: drawn in Pillow's own font, in either polarity, in colour, in a cine."""

from __future__ import annotations

import logging
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from tests.domains.burnedin_cases import Frames, covered, header, region, ultrasound, written
from vitpipe.domains.dicom.burnedin import make_judge
from vitpipe.domains.dicom.burnedin.header import HeaderJudge
from vitpipe.domains.dicom.burnedin.judging import OcrJudge
from vitpipe.domains.dicom.burnedin.tesseract import Tesseract
from vitpipe.domains.dicom.deidentify.judge import Keep, Mask, Reject
from vitpipe.errors import ConfigError, UnreadableSource

TEXT = "QZPERSON JOHN 1937-04-05"
SHAPE = (240, 320)
needs_tesseract = pytest.mark.skipif(shutil.which("tesseract") is None, reason="the program tesseract is not installed")


def noise(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> NDArray[np.uint16]:
    return np.random.default_rng(seed).normal(1200, 80, shape).clip(200, 2400).astype(np.uint16)


def with_text(stored: NDArray[np.uint16], value: int, size: int = 14) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
    mask = written(TEXT, SHAPE, (40, 20), size)
    drawn = stored.copy()
    drawn[mask] = value
    return drawn, mask


@needs_tesseract
@pytest.mark.parametrize("size", [10, 14, 20])
@pytest.mark.parametrize("value", [0, 4095])
def test_text_is_masked_and_little_else(value: int, size: int, caplog: pytest.LogCaptureFixture) -> None:
    drawn, mask = with_text(noise(), value, size)
    with caplog.at_level(logging.DEBUG):
        verdict = make_judge("mask").judge(Dataset(), Frames(drawn[None]))
    assert isinstance(verdict, Mask)
    found = covered(verdict.rectangles, *SHAPE)
    assert found[mask].all()
    assert found.mean() < 0.3
    # Noise may look like a word, seldom.
    assert found[100:].mean() < 0.05
    # What was read is told to nobody.
    said = f"{verdict.reason} {caplog.text}".upper()
    assert not any(word in said for word in TEXT.split())


@needs_tesseract
def test_a_frame_without_text_is_kept_and_that_it_was_looked_at_is_said() -> None:
    smooth = np.add.outer(np.arange(SHAPE[0]), np.arange(SHAPE[1])).astype(np.uint16)
    pixels = Frames(smooth[None])
    assert make_judge("mask").judge(Dataset(), pixels) == Keep(inspected=True)
    assert pixels.decoded == 1
    assert make_judge("mask").judge(Dataset(), Frames(np.full((1, 32, 32), 7, np.uint8))) == Keep(inspected=True)


@needs_tesseract
def test_text_in_one_frame_of_a_cine_is_masked_in_all() -> None:
    frames = np.stack([noise(seed) for seed in range(3)])
    frames[2], mask = with_text(frames[2], 4095)
    pixels = Frames(frames)
    verdict = make_judge("mask").judge(Dataset(), pixels)
    assert pixels.decoded == 3
    assert isinstance(verdict, Mask)
    assert covered(verdict.rectangles, *SHAPE)[mask].all()
    assert {box.frame for box in verdict.rectangles} == {-1}


@needs_tesseract
def test_coloured_text_is_found() -> None:
    frame = np.repeat((noise(3) // 16).astype(np.uint8)[..., None], 3, axis=2)
    mask = written(TEXT, SHAPE, (40, 20), 14)
    frame[mask] = (255, 255, 0)
    verdict = make_judge("mask").judge(Dataset(), Frames(frame[None]))
    assert isinstance(verdict, Mask)
    assert covered(verdict.rectangles, *SHAPE)[mask].all()


@needs_tesseract
def test_grey_text_on_a_banner_beside_black_and_white_is_found() -> None:
    frame = np.zeros(SHAPE, np.uint8)
    frame[120:] = noise(4)[120:] // 16
    frame[30:70], frame[200:210, 300:310] = 60, 255
    mask = written(TEXT, SHAPE, (40, 20), 14)
    frame[mask] = 150
    verdict = make_judge("mask").judge(Dataset(), Frames(frame[None]))
    assert isinstance(verdict, Mask)
    assert covered(verdict.rectangles, *SHAPE)[mask].all()


@needs_tesseract
def test_reject_writes_no_file_and_quotes_nothing() -> None:
    drawn, _ = with_text(noise(), 4095)
    verdict = make_judge("reject").judge(Dataset(), Frames(drawn[None]))
    assert isinstance(verdict, Reject)
    assert verdict.code == "BURNED_IN_TEXT"
    assert "QZ" not in verdict.reason


@needs_tesseract
def test_what_the_header_masks_is_not_read_again_and_its_mask_stays() -> None:
    drawn, mask = with_text(noise(), 4095)
    data = ultrasound([region(0, 120, 319, 239)])
    assert make_judge("reject").judge(data, Frames(drawn[None])) == HeaderJudge().judge(data, Frames(drawn[None]))
    # Text inside the image region is found besides.
    lower = written(TEXT, SHAPE, (160, 20), 14)
    drawn[lower] = 4095
    verdict = make_judge("mask").judge(data, Frames(drawn[None]))
    assert isinstance(verdict, Mask)
    assert covered(verdict.rectangles, *SHAPE)[mask | lower].all()


@needs_tesseract
def test_ocr_does_not_make_a_rejected_file_acceptable() -> None:
    pixels = Frames(noise()[None])
    verdict = make_judge("mask").judge(header(BurnedInAnnotation="YES"), pixels)
    assert isinstance(verdict, Reject)
    assert pixels.decoded == 0


def test_without_the_program_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for ocr in ("mask", "reject"):
        with pytest.raises(ConfigError, match="the program tesseract"):
            make_judge(ocr)  # type: ignore[arg-type]
    assert isinstance(make_judge("none"), HeaderJudge)


def test_a_program_that_fails_is_no_reason_to_keep_a_file(tmp_path: Path) -> None:
    program = tmp_path / "tesseract"
    program.write_text(f"#!/bin/sh\necho {TEXT}\necho {TEXT} >&2\nexit 3\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    judge = OcrJudge(HeaderJudge(), Tesseract(str(program)), reject=False)
    with pytest.raises(UnreadableSource, match="OCR_FAILED") as caught:
        judge.judge(Dataset(), Frames(noise()[None]))
    assert "status 3" in str(caught.value)
    assert "QZ" not in str(caught.value)
