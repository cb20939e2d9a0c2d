"""Find text in a picture with the program tesseract.

The program reads the picture from a pipe and answers in one: neither pixels nor recognised text touch a disk or a log.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitpipe.errors import ConfigError, UnreadableSource

OCR_FAILED: Final = "OCR_FAILED"
_SECONDS: Final = 120
_LINE, _WORD = "4", "5"
_LINE_PER_WORD: Final = 1.6
"""Height of a line that is one, in heights of its highest word."""


@dataclass(frozen=True, slots=True)
class Certainty:
    """Which words count as read."""

    confidence: float
    """The least, of 100, as tesseract gives it for a word."""
    characters: int
    """The least number of letters and digits: side markers (L, R) and specks are single ones."""


class TextBox(NamedTuple):
    """Where a line of text stands in a picture, in pixels."""

    row: int
    col: int
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Tesseract:
    """The program.

    Args:
        program: its path.
    """

    program: str

    @classmethod
    def find(cls) -> Tesseract:
        """Find it on the ``PATH``.

        Raises:
            ConfigError: it is not installed.
        """
        program = shutil.which("tesseract")
        if program is None:
            raise ConfigError(
                "OCR needs the program tesseract, which is not on the PATH; install it (Debian: tesseract-ocr), or "
                "leave `--ocr` out"
            )
        return cls(program)

    def lines(self, picture: NDArray[np.uint8], least: Certainty) -> list[TextBox]:
        """Give the lines that hold a word that counts.

        The whole line, where it is as high as its words: the words beside one that was read are likely to be text that
        was not.

        Args:
            picture: (rows, cols), dark text on a light ground reads best.
            least: which words count.

        Raises:
            UnreadableSource: ``OCR_FAILED``: the program ended with an error, or took too long.
        """
        packed = io.BytesIO()
        Image.fromarray(picture).save(packed, "PNG", compress_level=1)
        try:
            done = subprocess.run(
                # Page segmentation 11: sparse text in no order.
                [self.program, "stdin", "stdout", "--psm", "11", "--dpi", "150", "-l", "eng", "tsv"],
                input=packed.getvalue(),
                # Its threads slow it down on pictures of this size.
                env=os.environ | {"OMP_THREAD_LIMIT": "1"},
                capture_output=True,
                timeout=_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise UnreadableSource(OCR_FAILED, f"tesseract took more than {_SECONDS} s for a frame", "") from None
        if done.returncode:
            reason = f"tesseract ended with status {done.returncode}; check that its language data `eng` are installed"
            raise UnreadableSource(OCR_FAILED, reason, "")
        return _read_table(done.stdout.decode("utf-8", "replace"), least)


def _read_table(table: str, least: Certainty) -> list[TextBox]:
    """Read the tab-separated table: level, page, block, paragraph, line, word, left, top, width, height, conf, text."""
    lines: dict[tuple[str, ...], TextBox] = {}
    words: dict[tuple[str, ...], list[TextBox]] = {}
    for row in table.splitlines()[1:]:
        cells = row.split("\t")
        if len(cells) < 12:
            continue
        line = tuple(cells[1:5])
        left, top, width, height = map(int, cells[6:10])
        box = TextBox(top, left, height, width)
        if cells[0] == _LINE:
            lines[line] = box
        elif cells[0] == _WORD and float(cells[10]) >= least.confidence and _characters(cells[11]) >= least.characters:
            words.setdefault(line, []).append(box)
    found: list[TextBox] = []
    for line, read in words.items():
        whole = lines.get(line)
        # Texture taken for letters makes lines as high as the image.
        plain = whole is not None and whole.height <= _LINE_PER_WORD * max(word.height for word in read)
        found.extend([whole] if plain and whole is not None else read)
    return found


def _characters(word: str) -> int:
    """Count letters and digits."""
    return sum(character.isalnum() for character in word)
