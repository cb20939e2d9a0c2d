"""What the layout of scenes costs, and what rewriting them would gain: measured on a few blocks of the real files.

The rewritten form is not written: the pixels of the same blocks are packed in memory as a cloud-optimised GeoTIFF would
hold them (blocks of 512, Zstandard, horizontal differences), and what is timed is the decoding of both.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.windows import Window as RasterioWindow

from vitpipe.domains.geotiff.blocks import BlockDamaged, BlockFile, BlockUnread
from vitpipe.domains.geotiff.layout import read_layout
from vitpipe.opening import MIB, gdal_environment, open_tiff
from vitpipe.records import Findings, Json, Source

_Answer = TypeVar("_Answer")
_SAMPLE_BYTES: Final = 2 * MIB
_MOST_BYTES: Final = 64 * MIB
_LOOK_S: Final = 0.3
_MOST_KINDS: Final = 3
_ROUNDS: Final = 3
_WORTH_IT: Final = 1.3
_COG_BLOCK: Final = 512
_WIDE_ROW_BYTES: Final = 256 * MIB
_LOSSY: Final = frozenset({"JPEG", "YCbCr JPEG", "WEBP", "LERC", "LERC_DEFLATE", "LERC_ZSTD", "JXL", "JPEG2000"})
_TRANSLATE: Final = "gdal_translate -of COG -co COMPRESS=ZSTD -co PREDICTOR=YES -co BLOCKSIZE=512 IN.tif OUT.tif"


@dataclass(frozen=True, slots=True)
class Layout:
    """How files hold their pixels, and how fast they are decoded."""

    compression: str
    block: tuple[int, int]
    """Rows, columns."""
    strips: bool
    row_bytes: int
    """One row of blocks, decoded."""
    mib_s: float
    """Decoded, a core."""
    cog_mib_s: float
    size_ratio: float
    """Bytes as a COG by the bytes of the file; 0 where they are not known."""

    @property
    def gain(self) -> float:
        """How many times faster a COG is decoded."""
        return self.cog_mib_s / self.mib_s

    def more_pixels(self, size: int, height: int, width: int) -> float:
        """Give how many pixels are decoded for one of a tile of `size` that is read by itself, at most the scene's."""
        rows, cols = (
            min(-(-(size + edge - 1) // edge) * edge, max(limit, size))
            for edge, limit in zip(self.block, (height, width), strict=True)
        )
        return rows * cols / size**2

    def __str__(self) -> str:
        """Name it."""
        rows, cols = self.block
        shape = f"strips of {rows} row{'s' * (rows > 1)}" if self.strips else f"blocks of {rows} x {cols}"
        return f"{self.compression}, {shape}"


def layout_findings(sources: Sequence[Source], size: int) -> Findings:
    """Say how scenes are laid out and what rewriting would gain, in well under a second.

    Files are looked at until 0.3 s are over; the three most frequent layouts are measured, on one file each.

    Args:
        sources: scenes of the catalog.
        size: edge of a tile, in pixels.
    """
    kinds: dict[tuple[str, tuple[int, int], bool], list[Path]] = {}
    started = time.monotonic()
    for source in sources:
        if time.monotonic() - started > _LOOK_S:
            break
        path = Path(source.files[0])
        kind = _with_dataset(path, _kind)
        if kind is not None:
            kinds.setdefault(kind, []).append(path)
    lines: list[str] = []
    values: list[Json] = []
    for _, paths in sorted(kinds.items(), key=lambda item: -len(item[1]))[:_MOST_KINDS]:
        found = _with_dataset(paths[0], measured)
        if found is None:
            continue
        layout, shape = found
        lines.append(_line(layout, len(paths), layout.more_pixels(size, *shape), size))
        values.append({
            "layout": str(layout), "scenes": len(paths), "mib_s": layout.mib_s, "cog_mib_s": layout.cog_mib_s,
            "size_ratio": layout.size_ratio, "row_bytes": layout.row_bytes,
        })  # fmt: skip
    return Findings(tuple(lines), {"layouts": values} if values else {})


def _line(layout: Layout, count: int, more: float, size: int) -> str:
    line = f"layout: {count} scene(s) of {layout}, decoded at {layout.mib_s:.0f} MiB/s a core"
    reasons = []
    if layout.gain >= _WORTH_IT:
        reasons.append(f"{layout.gain:.1f} times faster")
    if more >= 2 * _cog_pixels(size):
        reasons.append(f"{more / _cog_pixels(size):.0f} times fewer pixels for a tile of {size} px read by itself")
    if layout.row_bytes > _WIDE_ROW_BYTES and layout.block[0] > _COG_BLOCK:
        reasons.append(f"{layout.block[0] / _COG_BLOCK:.0f} times less memory")
    if not reasons or layout.compression in _LOSSY:
        return line
    grown = f", at {layout.size_ratio:.2f} times the bytes" if layout.size_ratio else ""
    return f"{line}; rewriting gains: {', '.join(reasons)}{grown}: `{_TRANSLATE}`"


def _cog_pixels(size: int) -> float:
    return float((-(-(size + _COG_BLOCK - 1) // _COG_BLOCK) * _COG_BLOCK / size) ** 2)


def _with_dataset(path: Path, ask: Callable[[Path, DatasetReader], _Answer | None]) -> _Answer | None:
    """Ask about an opened file; None where it cannot be read: the ingest or the read says why."""
    try:
        with gdal_environment(), open_tiff(path) as dataset:
            return ask(path, dataset) if dataset.driver == "GTiff" else None
    except (CPLE_BaseError, RasterioError, OSError):
        return None


def _kind(path: Path, dataset: DatasetReader) -> tuple[str, tuple[int, int], bool]:  # noqa: ARG001 - as `measured`
    rows, cols = (int(edge) for edge in dataset.block_shapes[0])
    strips = _strips(dataset)
    # Strips are as wide as their scene: the width makes no other layout.
    return _compression(dataset), (rows, 0 if strips else cols), strips


def _strips(dataset: DatasetReader) -> bool:
    # A width of a tile is a multiple of 16 (TIFF 6.0, section 15); what is as wide as the scene reads like a strip.
    return bool(dataset.block_shapes[0][1] == dataset.width)


def _compression(dataset: DatasetReader) -> str:
    return str(dataset.tags(ns="IMAGE_STRUCTURE").get("COMPRESSION", "uncompressed"))


def measured(path: Path, dataset: DatasetReader) -> tuple[Layout, tuple[int, int]] | None:
    """Time the decoding of some blocks in the middle of a file, and of the same pixels as a COG would hold them.

    Returns:
        The layout, and height and width of the scene; None where a block is too large to try, or cannot be decoded.
    """
    rows, cols = (int(edge) for edge in dataset.block_shapes[0])
    item = np.dtype(dataset.dtypes[0]).itemsize
    block_bytes = rows * cols * dataset.count * item
    if block_bytes > _MOST_BYTES:
        return None
    across, down = -(-dataset.width // cols), -(-dataset.height // rows)
    wanted = max(1, _SAMPLE_BYTES // block_bytes)
    if across > 1:
        first, count = (down // 2, 0), (1, min(wanted, across))
    else:
        first, count = (max(0, (down - wanted) // 2), 0), (min(wanted, down), 1)
    window = RasterioWindow(0, first[0] * rows, count[1] * cols, count[0] * rows).intersection(
        RasterioWindow(0, 0, dataset.width, dataset.height)
    )
    pixels: NDArray[Any] = dataset.read(window=window)
    packed = _packed(pixels)
    spent = _spent(_reader(path, dataset, (first[0], count)) or (lambda: _read_anew(path, window)))
    layout = Layout(
        _compression(dataset),
        (rows, cols),
        _strips(dataset),
        rows * dataset.width * dataset.count * item,
        pixels.nbytes / MIB / spent,
        pixels.nbytes / MIB / _spent(lambda: _unpacked(packed, pixels)),
        _size_ratio(path, dataset, (first[0], count), len(packed)),
    )
    return layout, (int(dataset.height), int(dataset.width))


def _reader(path: Path, dataset: DatasetReader, sample: tuple[int, tuple[int, int]]) -> Callable[[], None] | None:
    """Give what decodes the sample as a read does; None where GDAL does."""
    layout = read_layout(path, dataset)
    if layout is None:
        return None
    first, (down, across) = sample
    planes = layout.bands if layout.by_plane else 1
    places = [(plane, first + row, col) for plane in range(planes) for row in range(down) for col in range(across)]

    def read() -> None:
        file = BlockFile(path, layout)
        try:
            for place in places:
                file.decode(place, np.empty(layout.block_shape(place[1]), layout.dtype.newbyteorder("=")))
        except (BlockUnread, BlockDamaged):
            # A block that was never written costs nothing; one that is broken is told when it is read.
            return

    return read


def _read_anew(path: Path, window: RasterioWindow) -> None:
    # GDAL keeps decoded blocks as long as a file is open.
    with gdal_environment(), open_tiff(path) as dataset:
        dataset.read(window=window)


def _size_ratio(path: Path, dataset: DatasetReader, sample: tuple[int, tuple[int, int]], packed: int) -> float:
    layout = read_layout(path, dataset)
    if layout is None:
        return 0.0
    first, (down, across) = sample
    stored = int(layout.counts[:, first : first + down, :across].sum())
    return packed / stored if stored else 0.0


def _packed(pixels: NDArray[Any]) -> bytes:
    """Pack pixels (bands, rows, width) as a block of a COG: pixel by pixel, differences along rows, Zstandard."""
    block = np.ascontiguousarray(pixels.transpose(1, 2, 0)).view(f"u{pixels.itemsize}")
    return bytes(imagecodecs.zstd_encode(imagecodecs.delta_encode(block, axis=1).tobytes(), level=9))


def _unpacked(packed: bytes, pixels: NDArray[Any]) -> None:
    bands, rows, width = pixels.shape
    block = np.empty((rows, width, bands), f"u{pixels.itemsize}")
    imagecodecs.zstd_decode(packed, out=block.reshape(-1).view(np.uint8).data)
    imagecodecs.delta_decode(block, axis=1, out=block)


def _spent(work: Callable[[], object]) -> float:
    """Give the least CPU seconds of this thread: other processes do not count."""
    found = []
    for _ in range(_ROUNDS):
        started = time.thread_time()
        work()
        found.append(time.thread_time() - started)
    return max(min(found), 1e-6)
