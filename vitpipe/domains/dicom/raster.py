"""An opened DICOM source: frames in the order of the source, in physical units."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import DTypeLike, NDArray

from vitpipe.domains.dicom.framereader import FrameReader
from vitpipe.records import Grid, Source, Window


class DicomRaster:
    """Reads windows of a DICOM source; one decoded frame is held at a time.

    Args:
        source: as :func:`vitpipe.domains.dicom.sources.assemble` made it.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._dtype = np.dtype(source.dtype)
        self._reader = FrameReader(source)
        self._frame: int | None = None
        self._pixels: NDArray[np.generic] = np.empty((0, 0, 0), self._dtype)
        self._valid: NDArray[np.bool_] | None = None

    @property
    def grid(self) -> Grid:
        """Frames, height, width and geometry."""
        return self._source.grid

    @property
    def channels(self) -> tuple[str, ...]:
        """``intensity``, or ``red, green, blue``."""
        return self._source.channels

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Dtype of a read, one for all frames."""
        return self._dtype

    @property
    def block_rows(self) -> int:
        """The height: a frame decodes as a whole."""
        return self._source.grid.height

    def read(self, window: Window) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
        """Read a window; a frame is decoded once for all its windows in a row.

        Returns:
            Pixels (channels, height, width) in the source's units and the valid mask (height, width); padding and what
            lies past the edge is zero and not valid.

        Raises:
            UnreadableSource: the frame does not decode, or the file changed since it was indexed.
            ValueError: the window lies outside the source.
        """
        grid = self._source.grid
        if not (0 <= window.frame < grid.frames and 0 <= window.row < grid.height and 0 <= window.col < grid.width):
            raise ValueError(f"{window} begins outside of {grid.frames} x {grid.height} x {grid.width}")
        self._load(window.frame)
        rows = slice(window.row, min(window.row + window.height, grid.height))
        cols = slice(window.col, min(window.col + window.width, grid.width))
        found = self._pixels[:, rows, cols]
        found_valid = np.True_ if self._valid is None else self._valid[rows, cols]
        if found.shape[1:] == (window.height, window.width):
            valid = np.empty((window.height, window.width), np.bool_)
            valid[...] = found_valid
            return found.copy(), valid
        pixels = np.zeros((len(self.channels), window.height, window.width), self._dtype)
        valid = np.zeros((window.height, window.width), np.bool_)
        pixels[:, : found.shape[1], : found.shape[2]] = found
        valid[: found.shape[1], : found.shape[2]] = found_valid
        return pixels, valid

    def read_frames(
        self, first: int, last: int, *, dtype: DTypeLike | None = None, threads: int = 1
    ) -> tuple[NDArray[np.generic], NDArray[np.bool_] | None]:
        """Read whole frames, each straight to its place: the way to a volume.

        Args:
            first: the first frame.
            last: one past the last.
            dtype: of the result, one that holds the source's values, such as float32; None: the source's.
            threads: that decode at once; the codecs let each other run. One where the source has no plan: pydicom then
                parses headers, and its warnings can be silenced in one thread alone.

        Returns:
            Pixels (frames, channels, height, width) in the source's units, and the valid mask (frames, height, width);
            None for the mask where every pixel is valid.

        Raises:
            UnreadableSource: a frame does not decode, or its file changed since it was indexed.
            ValueError: there are no such frames, or the dtype cannot hold the values.
        """
        grid = self._source.grid
        if not 0 <= first < last <= grid.frames:
            raise ValueError(f"frames {first} to {last} of {grid.frames}")
        wanted = self._dtype if dtype is None else np.dtype(dtype)
        if wanted != self._dtype and not (wanted.kind == "f" and self._dtype.kind in "iuf"):
            raise ValueError(f"{wanted} does not hold the values of {self._dtype}; ask for a floating point dtype")
        if "pixels" not in self._source.reader:
            threads = 1
        pixels = np.empty((last - first, len(self.channels), grid.height, grid.width), wanted)
        masks: list[NDArray[np.bool_] | None] = [None] * (last - first)

        def fill(part: range) -> None:
            reader = FrameReader(self._source)
            for place in part:
                masks[place] = reader.read(first + place, pixels[place])

        parts = [range(start, last - first, threads) for start in range(min(threads, last - first))]
        if len(parts) == 1:
            fill(parts[0])
        else:
            with ThreadPoolExecutor(len(parts)) as pool:
                # The first error is raised, when all have ended.
                list(pool.map(fill, parts))
        if all(mask is None for mask in masks):
            return pixels, None
        valid = np.ones((last - first, grid.height, grid.width), np.bool_)
        for place, mask in enumerate(masks):
            if mask is not None:
                valid[place] = mask
        return pixels, valid

    def groups(self, windows: Sequence[Window]) -> list[str]:
        """Give the patient's pseudonym for each window."""
        return [self._source.group_id] * len(windows)

    def _load(self, frame: int) -> None:
        if frame == self._frame:
            return
        # Not kept if the next lines fail.
        self._frame = None
        grid = self._source.grid
        if not self._pixels.size:
            self._pixels = np.empty((len(self.channels), grid.height, grid.width), self._dtype)
        self._valid = self._reader.read(frame, self._pixels)
        self._frame = frame
