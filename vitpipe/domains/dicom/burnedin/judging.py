"""Judge pixels by what is written in them: text that tesseract finds is masked, or the file is rejected."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset
from scipy.ndimage import grey_closing, grey_opening

from vitpipe.domains.dicom.burnedin.tesseract import Certainty, Tesseract, TextBox
from vitpipe.domains.dicom.deidentify.judge import Keep, Mask, PixelAccess, PixelJudge, Rectangle, Reject, Verdict

TEXT_FOUND: Final = "BURNED_IN_TEXT"
_BESIDE, _ABOVE = 0.5, 0.2
"""Margins, of a line's height: letters that were not read stand beside those that were."""
_MARGIN_PX: Final = 3
_SMALL_PX, _LARGE_PX = 300, 1600
_LOW, _HIGH = 1.0, 99.5
"""Percentiles that become black and white."""
_NEAR: Final = 0.2
"""Of the range of values: how near to an extreme text may be."""
_LARGEST_SHARE: Final = 0.1
"""Of the frame: text covers less."""
_IN_EXTREMES: Final = Certainty(confidence=40.0, characters=2)
_LEAST_STROKE_PX: Final = 9
_STROKES_PER_FRAME: Final = 100
"""Strokes are thinner than this part of the longer side, or than `_LEAST_STROKE_PX`."""
_STROKE_SHARE: Final = 0.2
"""Of the range of values: how far a stroke stands out from what is around it, at least."""
_OVER_TEXTURE: Final = 1.6
"""And how far in what nine tenths of the frame stay below: noise and speckle have strokes, too."""
_IN_STROKES: Final = Certainty(confidence=60.0, characters=2)
_IN_GREY: Final = Certainty(confidence=70.0, characters=4)


class OcrJudge:
    """Has another judge decide first; what that one does not reject is read, every frame of it.

    What is found in one frame is masked in all: text that stands still is not read in each of them. OCR misses text,
    above all handwriting and letters lower than about 8 pixels: it is a second look, and no file that the other judge
    rejects is accepted because of it.

    Args:
        first: decides by the header.
        tesseract: the program.
        reject: reject a file with text instead of masking the text.
    """

    def __init__(self, first: PixelJudge, tesseract: Tesseract, *, reject: bool) -> None:
        self._first = first
        self._tesseract = tesseract
        self._reject = reject

    def judge(self, header: Dataset, pixels: PixelAccess) -> Verdict:
        """Decide; see :class:`vitpipe.domains.dicom.deidentify.judge.PixelJudge`.

        Raises:
            UnreadableSource: a frame does not decode, or ``OCR_FAILED``.
        """
        verdict = self._first.judge(header, pixels)
        if isinstance(verdict, Reject):
            return verdict
        masked = verdict.rectangles if isinstance(verdict, Mask) else ()
        found = dict.fromkeys(box for frame in range(pixels.frames) for box in self._text(pixels, frame, masked))
        if not found:
            return verdict if masked else Keep(inspected=True)
        if self._reject:
            return Reject(
                TEXT_FOUND,
                f"OCR found text in {len(found)} place(s) of the pixels; use `--ocr mask`, or export it without text",
            )
        return Mask((*masked, *found), f"masked {len(found)} place(s) where OCR found text")

    def _text(self, pixels: PixelAccess, frame: int, masked: Sequence[Rectangle]) -> Iterator[Rectangle]:
        """Give where text stands in a frame, with a margin, in every frame's name."""
        stored = pixels.stored(frame)
        if masked:
            stored = stored.copy()
            for box in masked:
                stored[max(box.row, 0) : box.row + box.height, max(box.col, 0) : box.col + box.width] = stored.min()
        factor = _enlargement(pixels.rows, pixels.cols)
        size = (pixels.cols * factor, pixels.rows * factor)
        for picture, least in renderings(stored):
            large = Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC)
            for line in self._tesseract.lines(np.asarray(large), least):
                yield _with_margin(line, factor, pixels)


def _enlargement(rows: int, cols: int) -> int:
    """Give the factor that brings letters of 8 pixels and more to the size that tesseract reads."""
    longest = max(rows, cols)
    return 3 if longest <= _SMALL_PX else 2 if longest <= _LARGE_PX else 1


def _with_margin(line: TextBox, factor: int, pixels: PixelAccess) -> Rectangle:
    beside, above = (max(_MARGIN_PX, round(share * line.height / factor)) for share in (_BESIDE, _ABOVE))
    top, left = max(0, line.row // factor - above), max(0, line.col // factor - beside)
    bottom = min(pixels.rows, -(-(line.row + line.height) // factor) + above)
    right = min(pixels.cols, -(-(line.col + line.width) // factor) + beside)
    return Rectangle(top, left, bottom - top, right - left)


def renderings(stored: NDArray[np.generic]) -> Iterator[tuple[NDArray[np.uint8], Certainty]]:
    """Draw a frame in the ways in which burned-in text is read best: what is near an extreme, and thin strokes.

    Text is mostly written with the lowest or the highest value there is, over an image that seldom reaches it: a
    threshold cuts it out. Grey text on a coloured banner is not near an extreme, but its strokes are thinner than what
    is around them: they are what a top-hat leaves (the value less its morphological opening, and the closing less the
    value), and the banner is gone.

    Args:
        stored: (rows, cols), or (rows, cols, 3).

    Yields:
        Pictures (rows, cols) to be read as dark text on a light ground, and which words count in them.
    """
    values = stored.astype(np.float32)
    light, dark = (values.max(axis=-1), values.min(axis=-1)) if values.ndim == 3 else (values, values)
    low, high = float(dark.min()), float(light.max())
    if low == high:
        return
    # Lossy compression blurs the extremes.
    for extreme in (light >= high - _NEAR * (high - low), dark <= low + _NEAR * (high - low)):
        # A large part of the frame is its ground or its image; there text shows by its strokes.
        if extreme.mean() < _LARGEST_SHARE:
            yield np.where(extreme, 0, 255).astype(np.uint8), _IN_EXTREMES
    size = 2 * (max(light.shape) // _STROKES_PER_FRAME // 2) + 1
    size = max(size, _LEAST_STROKE_PX)
    for values, ink in (
        (light, light - grey_opening(light, (size, size))),
        (dark, grey_closing(dark, (size, size)) - dark),
    ):
        least = max(_STROKE_SHARE * (high - low), _OVER_TEXTURE * float(np.percentile(ink, 90)))
        strokes = ink > least
        if strokes.mean() < _LARGEST_SHARE:
            yield np.where(strokes, 0, 255).astype(np.uint8), _IN_STROKES
        else:
            yield _stretched(values if values is dark else -values), _IN_GREY


def _stretched(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    low, high = np.percentile(values, (_LOW, _HIGH))
    if high <= low:
        low, high = float(values.min()), float(values.max())
    scaled: NDArray[np.uint8] = (np.clip((values - low) / max(high - low, 1e-6), 0, 1) * 255).astype(np.uint8)
    return scaled
