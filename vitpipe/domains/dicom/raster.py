"""An opened DICOM source: frames in the order of the source, in physical units."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from vitpipe.domains.dicom.files import read_file
from vitpipe.domains.dicom.geometry import check_positions
from vitpipe.domains.dicom.instance import read_geometry
from vitpipe.domains.dicom.pixelformat import PixelFormat, read_format
from vitpipe.domains.dicom.pixels import FrameDecoder, check_length
from vitpipe.domains.dicom.quiet import quiet
from vitpipe.domains.dicom.sources import arrange_frames
from vitpipe.domains.dicom.values import Transform
from vitpipe.errors import UnreadableSource
from vitpipe.records import Grid, Source, Window


class DicomRaster:
    """Reads windows of a DICOM source; one file's header and one decoded frame are held at a time.

    Args:
        source: as :func:`vitpipe.domains.dicom.sources.assemble` made it.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._dtype = np.dtype(source.dtype)
        self._in_one_file = len(source.files) == 1
        self._file: int | None = None
        chosen: Any = source.reader.get("frames", ())
        self._chosen: tuple[int, ...] = tuple(chosen)
        self._order: tuple[int, ...] = ()
        self._decoder: FrameDecoder | None = None
        self._transform: Transform | None = None
        self._frame: int | None = None
        self._pixels: NDArray[np.generic] = np.empty((0, 0, 0), self._dtype)
        self._valid: NDArray[np.bool_] = np.empty((0, 0), np.bool_)

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
        found, found_valid = self._pixels[:, rows, cols], self._valid[rows, cols]
        if found_valid.shape == (window.height, window.width):
            return found.copy(), found_valid.copy()
        pixels = np.zeros((len(self.channels), window.height, window.width), self._dtype)
        valid = np.zeros((window.height, window.width), np.bool_)
        pixels[:, : found.shape[1], : found.shape[2]] = found
        valid[: found.shape[1], : found.shape[2]] = found_valid
        return pixels, valid

    def groups(self, windows: Sequence[Window]) -> list[str]:
        """Give the patient's pseudonym for each window."""
        return [self._source.group_id] * len(windows)

    def _load(self, frame: int) -> None:
        if frame == self._frame:
            return
        self._open_file(0 if self._in_one_file else frame)
        assert self._decoder is not None
        assert self._transform is not None
        in_file = self._order[frame] if self._in_one_file else 0
        # Not kept if the next lines fail.
        self._frame = None
        with quiet():
            self._pixels, self._valid = self._transform.apply(self._decoder.stored(in_file), in_file)
        self._frame = frame

    def _open_file(self, place: int) -> None:
        if place == self._file:
            return
        path = Path(self._source.files[place])
        with quiet():
            self._describe(path)
        self._file = place

    def _describe(self, path: Path) -> None:
        item = read_file(path)
        described = read_format(item)
        self._check(described, path)
        check_length(item, described)
        self._place_frames(item.dataset, described.frames, path)
        self._decoder = FrameDecoder(item, described)
        self._transform = Transform(item.dataset, described, str(path), self._dtype)

    def _place_frames(self, dataset: Dataset, frames: int, path: Path) -> None:
        """Give the frames their order, and check that they lie where the affine of the source says."""
        affine = self._source.grid.affine
        if not self._in_one_file and affine is None:
            return
        geometry = read_geometry(dataset, frames)
        if self._in_one_file:
            self._order = self._chosen or arrange_frames(geometry, frames).order
        if affine is not None:
            positions = geometry.positions
            if self._in_one_file and positions:
                positions = tuple(positions[frame] for frame in self._order)
            first = 0 if self._in_one_file else self._source.files.index(str(path))
            check_positions(affine, positions, first, str(path))

    def _check(self, described: PixelFormat, path: Path) -> None:
        grid = self._source.grid
        frames = grid.frames if self._in_one_file else 1
        if self._chosen and max(self._chosen) < described.frames:
            frames = described.frames
        wanted = (frames, grid.height, grid.width, self._source.channels)
        found = (described.frames, described.rows, described.cols, described.channels)
        if wanted != found:
            raise UnreadableSource(
                "CHANGED", f"frames, rows, columns and channels were {wanted}, now {found}; ingest again", str(path)
            )
