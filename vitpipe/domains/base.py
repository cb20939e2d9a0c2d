"""The seam to the outside: what a domain and an opened source must do.

A domain indexes files one by one (headers only, no pixels; the index is kept, so a file is looked at once), assembles
the indexed files into sources, and opens a source for windowed reads in physical units. Every later room sees nothing
else of it: whatever a later stage needs is a field of :class:`vitpipe.records.Source`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from vitpipe.config import SourceRecipe
from vitpipe.pseudonym import Pseudonymiser
from vitpipe.records import FileRecord, Grid, Json, Rejected, Source, Window


@dataclass(frozen=True, slots=True)
class ScanContext:
    """What a domain may know while it looks at files."""

    root: Path
    """The folder (or the one file) that the user named; relative paths in `Source.keys` are relative to it."""
    pseudonym: Pseudonymiser
    recipe: SourceRecipe


class RenderedHeader(dict[str, Json]):
    """What `index` found, with the JSON text that :func:`render` gives of it: a reader of many files may have it cheap.

    Args:
        value: the header.
        text: its text.
    """

    __slots__ = ("text",)

    def __init__(self, value: Mapping[str, Json], text: str) -> None:
        super().__init__(value)
        self.text = text


def render(header: Mapping[str, Json]) -> str:
    """Give the JSON text in which the index keeps a header: sorted keys, no spaces."""
    if isinstance(header, RenderedHeader):
        return header.text
    return json.dumps(header, separators=(",", ":"), sort_keys=True)


class Raster(Protocol):
    """An opened source."""

    @property
    def grid(self) -> Grid:
        """Frames, height, width and where they lie; equal to the source's."""

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the first axis of a read."""

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Dtype of a read."""

    @property
    def block_rows(self) -> int:
        """Rows that the file decodes at once: reads of whole multiples decode nothing twice."""

    def read(self, window: Window) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
        """Read a window.

        Returns:
            Pixels (channels, height, width) in physical units and the valid mask (height, width). Pixels that are not
            valid (nodata, padding, NaN, past the edge) are zero.

        Raises:
            UnreadableSource: the pixels cannot be decoded.
            TransientError: the store does not answer.
        """

    def groups(self, windows: Sequence[Window]) -> list[str]:
        """Give the group of each window: the patient, or the block of ground on which its centre lies."""


@dataclass(frozen=True, slots=True)
class BlockRow:
    """Rows of a frame in full width, each part as the file's blocks gave it: nothing is copied to join them."""

    start: int
    stop: int
    parts: Sequence[tuple[int, NDArray[Any]]]
    """First column and pixels (channels, rows, width) of each part, from left to right, with any strides."""
    valid: NDArray[np.bool_] | None
    """(rows, full width); None: all valid."""
    room: NDArray[Any] | None = None
    """What the parts are views of, where it may be filled again."""


Visit: TypeAlias = "Callable[[int, int, NDArray[Any], NDArray[np.bool_] | None], None]"
"""Takes the first row and column of a block, pixels (channels, rows, columns) with any strides, and the mask (rows,
columns); None: all valid. Arrays are filled again once it returns."""


@runtime_checkable
class BlockRowRaster(Raster, Protocol):
    """A raster that gives rows of blocks as they were decoded. It has one frame."""

    def visit_blocks(self, start: int, stop: int, visit: Visit, *, pool: Executor | None = None) -> None:
        """Show each block of some rows in full width, right after it was decoded.

        Args:
            start: first row, a multiple of `block_rows`.
            stop: the row after the last, a multiple of `block_rows` or the height.
            visit: called for each block, by several threads where there is a pool; where a block could not be decoded
                at first, again for all of them.
            pool: decodes blocks side by side; None: one after the other.

        Raises:
            UnreadableSource, TransientError: see :meth:`Raster.read`.
        """

    def read_block_row(
        self, start: int, stop: int, *, pool: Executor | None = None, spare: BlockRow | None = None
    ) -> BlockRow:
        """Read rows in full width.

        Args:
            start: first row, a multiple of `block_rows`.
            stop: the row after the last, a multiple of `block_rows` or the height.
            pool: decodes blocks side by side; None: one after the other.
            spare: a row that is no longer needed. Its memory may be filled again: fresh pages cost as much as a copy.

        Raises:
            UnreadableSource, TransientError: see :meth:`Raster.read`.
        """


class Domain(Protocol):
    """A kind of data."""

    @property
    def name(self) -> str:
        """The `kind` of the configuration."""

    def listed_in(self, path: Path) -> Sequence[Path] | None:
        """Give the files that a file names as the data, as a DICOMDIR does; None where it is data itself.

        Raises:
            DataError: it names files, but cannot be used.
        """

    def index(self, path: Path, context: ScanContext) -> Mapping[str, Json] | Rejected:
        """Read one file's header, no pixels. The result is kept as long as path, size and mtime stay the same.

        Raises:
            TransientError: the store does not answer. Nothing else: what is wrong with the file is a `Rejected`.
        """

    def assemble(self, records: Sequence[FileRecord], context: ScanContext) -> Iterator[Source | Rejected]:
        """Make sources of all indexed files, in a deterministic order, whatever the order of `records`."""

    def open(self, source: Source) -> AbstractContextManager[Raster]:
        """Open a source for reading.

        Raises:
            UnreadableSource: the files are gone, changed or broken.
        """
