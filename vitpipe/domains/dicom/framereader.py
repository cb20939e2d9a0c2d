"""Frames of a source, each written where it is wanted: by the plan of the catalog, else by the headers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from vitpipe.domains.dicom.filebytes import Scratch
from vitpipe.domains.dicom.files import read_file
from vitpipe.domains.dicom.geometry import check_positions
from vitpipe.domains.dicom.instance import read_geometry
from vitpipe.domains.dicom.pixelformat import PixelFormat, read_format
from vitpipe.domains.dicom.pixels import FrameDecoder, check_length
from vitpipe.domains.dicom.plan import ReadPlan
from vitpipe.domains.dicom.quiet import quiet
from vitpipe.domains.dicom.sources import arrange_frames
from vitpipe.domains.dicom.values import Transform
from vitpipe.errors import UnreadableSource
from vitpipe.records import Source


class FrameReader:
    """Reads whole frames of a source; for one thread.

    Args:
        source: as :func:`vitpipe.domains.dicom.sources.assemble` made it.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._in_one_file = len(source.files) == 1
        reader: Any = source.reader
        self._order: tuple[int, ...] = tuple(reader.get("frames", ()))
        self._plan = ReadPlan(reader["pixels"], source.files) if "pixels" in reader else None
        self._scratch = Scratch()
        self._file: int | None = None
        self._decoder: FrameDecoder | None = None
        self._transform: Transform | None = None

    def read(self, frame: int, out: NDArray[np.generic]) -> NDArray[np.bool_] | None:
        """Read one frame.

        Args:
            frame: of the source.
            out: (channels, height, width), of the source's dtype or one that holds its values; zero is written where a
                pixel is not valid.

        Returns:
            The valid mask (height, width); None where every pixel is valid.

        Raises:
            UnreadableSource: the frame does not decode, or the file changed since it was indexed.
        """
        self._open(0 if self._in_one_file else frame)
        assert self._decoder is not None
        assert self._transform is not None
        in_file = (self._order[frame] if self._order else frame) if self._in_one_file else 0
        return self._transform.apply(self._decoder.stored(in_file), in_file, out)

    def _open(self, place: int) -> None:
        if place == self._file:
            return
        # Not kept if the next lines fail.
        self._file = None
        path = self._source.files[place]
        if self._plan is None:
            with quiet():
                self._look(Path(path))
        else:
            item, described, expected = self._plan.file(place)
            self._decoder = FrameDecoder(item, described, expected, self._scratch)
            self._transform = Transform(item.dataset, described, path)
        self._file = place

    def _look(self, path: Path) -> None:
        item = read_file(path)
        described = read_format(item)
        self._check(described, path)
        check_length(item, described)
        self._place_frames(item.dataset, described.frames, path)
        self._decoder = FrameDecoder(item, described, None, self._scratch)
        self._transform = Transform(item.dataset, described, str(path))

    def _place_frames(self, dataset: Dataset, frames: int, path: Path) -> None:
        """Give the frames their order, and check that they lie where the affine of the source says.

        A planned read needs no such look: its header is, to the bit, the one whose positions were checked at ingest.
        """
        affine = self._source.grid.affine
        if not self._in_one_file and affine is None:
            return
        geometry = read_geometry(dataset, frames)
        if self._in_one_file and not self._order:
            self._order = arrange_frames(geometry, frames).order
        if affine is not None:
            positions = geometry.positions
            if self._in_one_file and positions:
                positions = tuple(positions[frame] for frame in self._order)
            first = 0 if self._in_one_file else self._source.files.index(str(path))
            check_positions(affine, positions, first, str(path))

    def _check(self, described: PixelFormat, path: Path) -> None:
        grid = self._source.grid
        frames = grid.frames if self._in_one_file else 1
        if self._order and max(self._order) < described.frames:
            frames = described.frames
        wanted = (frames, grid.height, grid.width, self._source.channels)
        found = (described.frames, described.rows, described.cols, described.channels)
        if wanted != found:
            raise UnreadableSource(
                "CHANGED", f"frames, rows, columns and channels were {wanted}, now {found}; ingest again", str(path)
            )
