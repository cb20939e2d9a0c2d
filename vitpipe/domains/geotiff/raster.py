"""An opened scene: windows in physical units with a valid mask, read by GDAL in blocks."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.enums import MaskFlags
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.windows import Window as RasterioWindow

from vitpipe.domains.base import BlockRow, Visit
from vitpipe.domains.geotiff.blocks import BlockDamaged, BlockFile, BlockRows, BlockUnread, assembled
from vitpipe.domains.geotiff.facts import window_groups
from vitpipe.domains.geotiff.layout import read_layout
from vitpipe.domains.geotiff.remote import RemoteTiff, remote_of
from vitpipe.errors import TransientError, UnreadableSource
from vitpipe.opening import MIB, TRANSIENT, gdal_environment, missing_bytes, open_tiff
from vitpipe.records import Grid, Source, Window
from vitpipe.web.ranges import RemoteFile

_WANTED_ROWS: Final = 256
_WANTED_BYTES: Final = 64 * MIB
_EXACT: Final = 2.0**53
_READ_BYTES: Final = 16 * MIB


@dataclass(frozen=True, slots=True)
class _Handles:
    """What one process has open."""

    datasets: list[DatasetReader]
    """The scene and, where there is one, its mask file."""
    blocks: BlockRows | None
    """None: the file is not plain, GDAL decodes it."""

    def close(self) -> None:
        """Close GDAL's; a file that is read by position closes with its last reader."""
        for dataset in self.datasets:
            dataset.close()


class GeotiffRaster:
    """One scene. Close it; `vitpipe.domains.geotiff.Geotiff.open` does.

    The file is opened again in a process that was forked from the one that opened it: shared handles share their place
    in the file, and give wrong pixels without an error.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        reader: Any = source.reader
        self._bands: list[int] = list(reader["bands"])
        self._alpha: list[int] = list(reader["alpha"])
        self._dtype = np.dtype(source.dtype)
        self._handles: dict[int, _Handles] = {}
        self._locks: dict[int, threading.RLock] = {}
        self._closed = False
        self._remote = remote_of(reader)
        self._tiffs: dict[int, RemoteTiff] = {}
        dataset = self._opened().datasets[0]
        self._nodata = [_nodata_of(dataset, band) for band in self._bands]
        self._masks_inside = _has_inner_mask(dataset)
        self._scales = [(dataset.scales[band - 1], dataset.offsets[band - 1]) for band in self._bands]
        if stated := reader.get("stated"):
            # By the STAC item beside the file, where the file itself states none.
            self._scales = [(scale, offset) for scale, offset in stated["scales"]]
            self._nodata += [
                _as_stored(value, dataset.dtypes[band - 1])
                for band, value in zip(self._bands, stated["nodata"], strict=True)
            ]
        self._as_is = (
            self._dtype.kind != "f"
            and not self._alpha
            and set(self._scales) == {(1, 0)}
            and all(value is None for value in self._nodata)
        )
        """What is stored are the pixels, and each is valid."""
        block_height, block_width = (int(edge) for edge in dataset.block_shapes[0])
        block_bytes = block_height * block_width * sum(np.dtype(name).itemsize for name in dataset.dtypes)
        self._cache_bytes = 2 * block_bytes
        row_bytes = block_height * dataset.width * len(self._bands) * self._dtype.itemsize
        self._block_rows: int = block_height * max(1, min(_WANTED_ROWS // block_height, _WANTED_BYTES // row_bytes))
        col_bytes = max(1, self._block_rows // block_height) * block_bytes
        # From afar a row comes in fewer requests as a whole.
        blocks = max(1, _READ_BYTES // col_bytes) if self._remote is None else -(-dataset.width // block_width)
        self._cols_a_read: int = blocks * block_width

    @property
    def grid(self) -> Grid:
        """One frame, and where it lies."""
        return self._source.grid

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the chosen bands."""
        return self._source.channels

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Dtype of a read: the widest of the bands, a float where the file's tags scale them."""
        return self._dtype

    @property
    def block_rows(self) -> int:
        """Height of the file's blocks; of low strips, as many as make about 256 rows and at most 64 MiB."""
        return self._block_rows

    def read(self, window: Window) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
        """Read a window.

        Returns:
            Pixels (channels, height, width) in `Source.units` and the valid mask (height, width). A pixel is valid if
            it is valid in every channel: not nodata, finite, not masked, not fully transparent.

        Raises:
            UnreadableSource: `TRUNCATED`, `UNDECODABLE`, or gone or changed since the ingest.
            TransientError: the store does not answer.
            ValueError: the window begins outside the grid, or names another frame.
        """
        if window.frame != 0 or window.row < 0 or window.col < 0:
            raise ValueError(f"a scene has the frame 0 and rows and cols from 0, got {window}")
        height = min(window.height, self.grid.height - window.row)
        width = min(window.width, self.grid.width - window.col)
        shape = (len(self._bands), window.height, window.width)
        if height <= 0 or width <= 0:
            return np.zeros(shape, self._dtype), np.zeros(shape[1:], np.bool_)
        if self._opened().blocks is not None and window.col == 0 and width == self.grid.width:
            block, bottom = self._block_rows, window.row + height
            if window.row % block == 0 and (bottom % block == 0 or bottom == self.grid.height):
                return self._assembled(window, bottom)
        place = RasterioWindow(window.col, window.row, width, height)
        pixels, mask = self._judge(self._stored(place), self._masked(place))
        valid = np.ones((height, width), np.bool_) if mask is None else mask
        if (height, width) == shape[1:]:
            return pixels, valid
        whole, mask = np.zeros(shape, self._dtype), np.zeros(shape[1:], np.bool_)
        whole[:, :height, :width] = pixels
        mask[:height, :width] = valid
        return whole, mask

    def read_block_row(
        self, start: int, stop: int, *, pool: Executor | None = None, spare: BlockRow | None = None
    ) -> BlockRow:
        """Read rows in full width, decoded straight to where they are used; by GDAL where the file is not plain.

        Args:
            start: first row, a multiple of `block_rows`.
            stop: the row after the last, a multiple of `block_rows` or the height.
            pool: decodes blocks side by side.
            spare: a row that is no longer needed; its memory may be filled again.

        Raises:
            UnreadableSource, TransientError: see :meth:`read`.
        """
        place = RasterioWindow(0, start, self.grid.width, stop - start)
        mask = self._masked(place)
        blocks = self._opened().blocks
        if blocks is not None:
            try:
                return blocks.read((start, stop), mask, pool=pool, room=spare.room if spare is not None else None)
            except BlockUnread:
                # A sparse block, or a damaged one: GDAL fills it, or says what is wrong.
                mask = self._masked(place)
            except BlockDamaged as error:
                raise self._unreadable(self._opened().datasets[0]) from error
        pixels, valid = self._judge(self._stored(place), mask)
        return BlockRow(start, stop, [(0, pixels)], valid)

    def visit_blocks(self, start: int, stop: int, visit: Visit, *, pool: Executor | None = None) -> None:
        """Show each block of some rows right after it was decoded; some at once where the file is not plain.

        Args:
            start: first row, a multiple of `block_rows`.
            stop: the row after the last, a multiple of `block_rows` or the height.
            visit: called for each block.
            pool: decodes blocks side by side.

        Raises:
            UnreadableSource, TransientError: see :meth:`read`.
        """
        place = RasterioWindow(0, start, self.grid.width, stop - start)
        mask = self._masked(place)
        blocks = self._opened().blocks
        if blocks is not None:
            try:
                blocks.visit((start, stop), mask, visit, pool=pool)
            except BlockUnread:
                # As for a row of blocks: GDAL fills it, or says what is wrong.
                mask = self._masked(place)
            except BlockDamaged as error:
                raise self._unreadable(self._opened().datasets[0]) from error
            else:
                return
        for left in range(0, self.grid.width, self._cols_a_read):
            right = min(left + self._cols_a_read, self.grid.width)
            part = RasterioWindow(left, start, right - left, stop - start)
            visit(start, left, *self._judge(self._stored(part), None if mask is None else mask[:, left:right]))

    def _assembled(self, window: Window, bottom: int) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
        """Read whole rows of blocks into one array."""
        pixels = np.zeros((len(self._bands), window.height, window.width), self._dtype)
        valid = np.zeros((window.height, window.width), np.bool_)
        row: BlockRow | None = None
        for start in range(window.row, bottom, self._block_rows):
            row = self.read_block_row(start, min(start + self._block_rows, bottom), spare=row)
            place = slice(row.start - window.row, row.stop - window.row)
            assembled(row, pixels[:, place], valid[place, : self.grid.width])
        return pixels, valid

    def groups(self, windows: Sequence[Window]) -> list[str]:
        """Name the block of ground under the centre of each window's part inside the scene.

        A scene on no known ground is one group by itself.
        """
        return window_groups(self._source, windows)

    def close(self) -> None:
        """Close this process's handles; another process's are its own to close.

        Threads may still read ahead, where whoever waits for them was interrupted twice: what they read is waited for,
        and what they ask for next is refused. GDAL crashes where a dataset is closed under a read.
        """
        with self._gdal():
            self._closed = True
            handles = self._handles.pop(os.getpid(), None)
            if handles is not None:
                handles.close()
            if tiff := self._tiffs.pop(os.getpid(), None):
                tiff.close()

    def _opened(self) -> _Handles:
        """Give what is open in this process.

        Raises:
            ValueError: the scene was closed.
        """
        handles = self._handles.get(os.getpid())
        if handles is None:
            with self._gdal():
                if self._closed:
                    raise ValueError(f"{self._source.uri} was closed before all of it was read; read it before that")
                if (handles := self._handles.get(os.getpid())) is None:
                    datasets = [self._open_file(Path(name)) for name in self._source.files]
                    handles = _Handles(datasets, self._plain(Path(self._source.files[0]), datasets[0]))
                    self._handles[os.getpid()] = handles
        return handles

    def _gdal(self) -> threading.RLock:
        """Give the lock of this process: GDAL's handles are not for several threads at once."""
        return self._locks.setdefault(os.getpid(), threading.RLock())

    def _plain(self, path: Path, dataset: DatasetReader) -> BlockRows | None:
        if self._remote is not None:
            return None
        layout = read_layout(path, dataset)
        if layout is None:
            return None
        numbers = tuple(band - 1 for band in self._bands + self._alpha)
        return BlockRows(BlockFile(path, layout), numbers, len(self._bands), self._dtype, self._judge)

    def _open_file(self, path: Path) -> DatasetReader:
        try:
            with gdal_environment():
                dataset = open_tiff(path) if self._remote is None else self._from_afar(self._remote).open()
        except (CPLE_BaseError, RasterioError, ValueError, OverflowError) as error:
            _size_of(path)
            reason = "it can no longer be opened as a GeoTIFF; run the ingest again"
            raise UnreadableSource("CHANGED", reason, str(path)) from error
        found = (dataset.height, dataset.width)
        if found != (self.grid.height, self.grid.width) or dataset.count < max(1, *self._of(path)):
            dataset.close()
            reason = (
                f"{found} pixels and {dataset.count} bands, the catalog has {(self.grid.height, self.grid.width)} and "
                f"band {max(1, *self._of(path))}; run the ingest again"
            )
            raise UnreadableSource("CHANGED", reason, str(path))
        return dataset

    def _from_afar(self, remote: RemoteFile) -> RemoteTiff:
        tiff = self._tiffs[os.getpid()] = RemoteTiff(remote, self._source.uri)
        return tiff

    def _of(self, path: Path) -> list[int]:
        return self._bands + self._alpha if str(path) == self._source.files[0] else [1]

    def _stored(self, window: RasterioWindow) -> NDArray[Any]:
        """Read channels and alpha by GDAL, as stored."""
        with self._gdal():
            dataset = self._opened().datasets[0]
            try:
                with gdal_environment(self._cache_bytes):
                    # One call for all bands: with pixel interleave a block is decoded once.
                    stored: NDArray[Any] = dataset.read(self._bands + self._alpha, window=window)
            except (CPLE_BaseError, RasterioError) as error:
                raise self._unreadable(dataset) from error
            self._fail_if_cut_short()
        return stored

    def _fail_if_cut_short(self) -> None:
        """What GDAL took for the end of a remote file may have been the end of the connection."""
        if self._remote is not None:
            self._tiffs[os.getpid()].raise_failure()

    def _masked(self, window: RasterioWindow) -> NDArray[np.bool_] | None:
        """Read the file's masks; None where there are none."""
        if len(self._source.files) == 1 and not self._masks_inside:
            return None
        with self._gdal():
            dataset, *masks = self._opened().datasets
            try:
                with gdal_environment(self._cache_bytes):
                    valid = np.ones((window.height, window.width), np.bool_)
                    if self._masks_inside:
                        for band in self._bands if self._masks_inside == "band" else [self._bands[0]]:
                            valid &= dataset.read_masks(band, window=window) != 0
                    for mask in masks:
                        numbers = [1] if mask.count == 1 else self._bands
                        valid &= (mask.read(numbers, window=window) != 0).all(axis=0)
            except (CPLE_BaseError, RasterioError) as error:
                raise self._unreadable(dataset) from error
            self._fail_if_cut_short()
        return valid

    def _judge(
        self, stored: NDArray[Any], valid: NDArray[np.bool_] | None
    ) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        """Give pixels in physical units, in place where nothing is converted, and the mask; None: all valid."""
        count = len(self._bands)
        if valid is None and self._as_is and stored.dtype == self._dtype:
            return stored, None
        for usable in self._usable(stored):
            valid = usable if valid is None else np.logical_and(valid, usable, out=valid)
        pixels = self._physical(stored[:count])
        if valid is None or valid.all():
            return pixels, None
        np.copyto(pixels, np.zeros((), self._dtype), where=~valid)
        return pixels, valid

    def _usable(self, stored: NDArray[Any]) -> Iterator[NDArray[np.bool_]]:
        """Tell where each band holds a value, one test after the other."""
        count = len(self._bands)
        # What the file states, then what a STAC item beside it states.
        for place, nodata in enumerate(self._nodata):
            if nodata is not None:
                yield stored[place % count] != nodata
        for band in stored[:count]:
            if band.dtype.kind == "f":
                yield np.isfinite(band)
        for band in stored[count:]:
            yield band != 0

    def _physical(self, stored: NDArray[Any]) -> NDArray[Any]:
        """Apply the file's scale and offset per band, in the dtype of the read."""
        pixels: NDArray[Any] = stored.astype(self._dtype, copy=False)
        # What overflows here lies under the mask (nodata such as -3.4e38) or is not finite in the file.
        with np.errstate(over="ignore", invalid="ignore"):
            for channel, (scale, offset) in enumerate(self._scales):
                if scale != 1:
                    pixels[channel] *= self._dtype.type(scale)
                if offset != 0:
                    pixels[channel] += self._dtype.type(offset)
        return pixels

    def _unreadable(self, dataset: DatasetReader) -> UnreadableSource:
        uri = self._source.uri
        if self._remote is not None:
            self._tiffs[os.getpid()].raise_failure()
        size = _size_of(Path(uri)) if self._remote is None else self._remote.size
        with self._gdal():
            lacking = missing_bytes(dataset, size)
        if lacking:
            reason = f"the last block ends {lacking} bytes past the end of the file: cut off; fetch it again"
            return UnreadableSource("TRUNCATED", reason, uri)
        reason = "a block of pixels cannot be decoded: the file is damaged; fetch it again, or leave it out"
        return UnreadableSource("UNDECODABLE", reason, uri)


def _size_of(path: Path) -> int:
    """Give a file's size; it is asked for after GDAL failed, which does not say why the system refused.

    Raises:
        TransientError: the store does not answer.
        UnreadableSource: the file is gone, or may not be read.
    """
    try:
        with path.open("rb") as stream:
            stream.read(1)
        return path.stat().st_size
    except OSError as error:
        if error.errno in TRANSIENT:
            raise TransientError(f"{path} cannot be read now: {error.strerror}") from error
        reason = f"the file cannot be opened any more ({error.strerror}); run the ingest again"
        raise UnreadableSource("UNREADABLE_FILE", reason, str(path)) from error


def _nodata_of(dataset: DatasetReader, band: int) -> np.generic | None:
    """Give a band's nodata value in the band's dtype; None where no pixel can have it (NaN is never valid anyway)."""
    return None if _is_rounded(dataset, band) else _as_stored(dataset.nodatavals[band - 1], dataset.dtypes[band - 1])


def _is_rounded(dataset: DatasetReader, band: int) -> bool:
    """Tell whether rasterio gives a rounded nodata value: a float does not hold every whole number past 2^53."""
    value = dataset.nodatavals[band - 1]
    return value is not None and np.dtype(dataset.dtypes[band - 1]).kind in "iu" and abs(value) >= _EXACT


def _as_stored(value: float | None, name: str) -> np.generic | None:
    dtype = np.dtype(name)
    if value is None or math.isnan(value):
        return None
    if dtype.kind == "f":
        return dtype.type(value) if abs(value) <= np.finfo(dtype).max else None
    limits = np.iinfo(dtype)
    return dtype.type(int(value)) if value == int(value) and limits.min <= value <= limits.max else None


def _has_inner_mask(dataset: DatasetReader) -> str:
    """Tell whether masks are asked of GDAL: "" none, "dataset" one for all bands, "band" one a band.

    These are mask bands in the file; and nodata values that GDAL alone knows exactly.
    """
    flags = dataset.mask_flag_enums
    if any(not band for band in flags) or any(_is_rounded(dataset, band) for band in dataset.indexes):
        return "band"
    return "dataset" if any(MaskFlags.per_dataset in band and MaskFlags.alpha not in band for band in flags) else ""
