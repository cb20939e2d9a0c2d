"""What is to happen to the pixels of a file that is de-identified: text may be burned into them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from vitpipe.domains.dicom.fields import text

ALL_FRAMES: Final = -1


class Rectangle(NamedTuple):
    """Pixels to be blackened, zero-based: ``row`` to ``row + height - 1``, ``col`` to ``col + width - 1``.

    It may reach over the edges of the frame: the part outside does not count.
    """

    row: int
    col: int
    height: int
    width: int
    frame: int = ALL_FRAMES
    """The frame that it lies in; ``ALL_FRAMES``: every one."""


@dataclass(frozen=True, slots=True)
class Keep:
    """Leave the pixels as they are, byte for byte."""

    inspected: bool = False
    """The pixels were looked at and hold no text: BurnedInAnnotation NO and the Clean Pixel Data option are written."""


@dataclass(frozen=True, slots=True)
class Mask:
    """Blacken rectangles; BurnedInAnnotation NO and the Clean Pixel Data option are written."""

    rectangles: tuple[Rectangle, ...]
    reason: str
    """A sentence without any text that was found."""

    def __post_init__(self) -> None:
        """Refuse a mask of nothing: it would state that text was removed."""
        if not self.rectangles or any(min(item.height, item.width) < 1 for item in self.rectangles):
            raise ValueError("a mask needs rectangles of at least one pixel; to leave the pixels alone, give Keep")


@dataclass(frozen=True, slots=True)
class Reject:
    """Write no file."""

    code: str
    """Stable and upper case, such as ``BURNED_IN_ANNOTATION``."""
    reason: str
    """A sentence: what was found, what to do. No text that was found, no value of an identifying element."""


Verdict = Keep | Mask | Reject


class PixelAccess(Protocol):
    """The pixels of one file, decoded only when they are asked for."""

    @property
    def frames(self) -> int:
        """Number of frames."""
        ...

    @property
    def rows(self) -> int:
        """Height of a frame."""
        ...

    @property
    def cols(self) -> int:
        """Width of a frame."""
        ...

    def stored(self, frame: int) -> NDArray[np.generic]:
        """Decode one frame to stored values: (rows, cols), or (rows, cols, 3) as RGB.

        Raises:
            UnreadableSource: it does not decode. A judge may let it pass: the file is then rejected with its code.
        """
        ...


class PixelJudge(Protocol):
    """Decides on the pixels of one file after another; the same file gives the same verdict."""

    def judge(self, header: Dataset, pixels: PixelAccess) -> Verdict:
        """Decide.

        Args:
            header: the original header, identifiers and all, without pixels. It is not to be changed.
            pixels: the pixels; a verdict that needs none decodes none.

        Raises:
            UnreadableSource: the pixels do not decode; the file is rejected with that code.
        """
        ...


class StatedJudge:
    """Believes the header: a file that states BurnedInAnnotation YES is rejected, every other is kept."""

    def judge(self, header: Dataset, pixels: PixelAccess) -> Verdict:  # noqa: ARG002
        """Decide by BurnedInAnnotation (0028,0301)."""
        if (text(header, "BurnedInAnnotation") or "").upper() == "YES":
            return Reject(
                "BURNED_IN_ANNOTATION",
                "the file states that text is burned into its pixels (BurnedInAnnotation YES), which may name the"
                " patient; mask the text, or export the image without annotations",
            )
        return Keep()
