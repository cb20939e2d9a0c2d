"""The one place that hands a file to GDAL: to its GTiff driver alone, and nothing that lies beside the file.

A JPEG 2000 file is opened only inside a SAFE folder or beside the STAC item that describes it, by the JP2OpenJPEG
driver alone.

A VRT, GML or netCDF named ``.tif`` makes GDAL read other files or addresses, and so does a VRT named ``.tif.msk`` even
where the scene itself is opened by the GTiff driver alone. Thus sidecars are not looked for: what is read is what was
digested.
"""

from __future__ import annotations

import contextlib
import errno
import io
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import Final

import rasterio
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import DatasetReader

TRANSIENT: Final = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EMFILE, errno.ENFILE)
"""What the operating system says when the store, not the file, is to blame."""
MIB: Final = 1 << 20
_STREAM_NAME: Final = "scene.tif"
ITEM_NAME: Final = "item.json"
"""Name of the STAC item beside the files that it describes."""
LEAST_CACHE_BYTES: Final = 16 * MIB
MOST_CACHE_BYTES: Final = 256 * MIB


@contextlib.contextmanager
def gdal_environment(cache_bytes: int = LEAST_CACHE_BYTES) -> Iterator[None]:
    """Set GDAL for one file: no sidecars, no world files, a small block cache.

    A large cache helps only by holding the whole scene, and costs a quarter of the time in page faults.
    """
    options = {
        "GDAL_CACHEMAX": min(max(cache_bytes, LEAST_CACHE_BYTES), MOST_CACHE_BYTES),
        "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
        "GDAL_GEOREF_SOURCES": "INTERNAL",
        "GDAL_PAM_ENABLED": False,
    }
    with rasterio.Env(**options):
        yield


def is_known_jp2(path: Path) -> bool:
    """Tell whether a file is a JPEG 2000 that says what it is: inside a SAFE folder, or beside a STAC item."""
    return path.suffix.lower() == ".jp2" and (in_safe(path) or path.with_name(ITEM_NAME).is_file())


def in_safe(path: PurePath) -> bool:
    """Tell whether a file lies inside a SAFE folder."""
    return any(parent.name.upper().endswith(".SAFE") for parent in path.parents)


def jp2_is_whole(path: Path) -> bool:
    """Tell whether a JPEG 2000 file has its end: the decoder gives a part of the pixels of one that was cut off.

    Boxes are walked to the codestream (ISO/IEC 15444-1 Annex I), which must end with the marker EOC.

    Raises:
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = 0
        while start + 8 <= size:
            stream.seek(start)
            head = stream.read(16)
            length, kind, header = int.from_bytes(head[:4], "big"), head[4:8], 8
            if length == 1:
                length, header = int.from_bytes(head[8:16], "big"), 16
            end = size if length == 0 else start + length
            if kind == b"jp2c" or end < start + header:
                stream.seek(max(0, end - 2))
                return kind == b"jp2c" and end <= size and stream.read(2) == b"\xff\xd9"
            start = end
    return False


def open_tiff(path: Path) -> DatasetReader:
    """Open a file by the GTiff driver (it reads BigTIFF and COG too); call it inside :func:`gdal_environment`.

    A JPEG 2000 file that says what it is, see :func:`is_known_jp2`, is opened by the JP2OpenJPEG driver.

    Raises:
        rasterio.errors.RasterioIOError: it is no TIFF, or its header is broken.
    """
    with warnings.catch_warnings():
        # What the warning says is kept as the note NO_CRS.
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        # A path object, not text: rasterio reads schemes such as zip:// into text.
        return rasterio.open(path, driver="JP2OpenJPEG" if is_known_jp2(path) else "GTiff", sharing=False)


def open_stream(opener: Callable[[], io.RawIOBase]) -> DatasetReader:
    """Open what is no file of this machine by the GTiff driver; call it inside :func:`gdal_environment`.

    Args:
        opener: gives a stream of its own at each call.

    Raises:
        rasterio.errors.RasterioIOError: it is no TIFF, or its header is broken.
    """

    def open_it(path: str, mode: str = "r") -> io.RawIOBase:  # noqa: ARG001 - rasterio gives both, by these names
        # "test" is what rasterio tries an opener with.
        if path not in (_STREAM_NAME, "test"):
            raise FileNotFoundError(path)
        return opener()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return rasterio.open(_STREAM_NAME, driver="GTiff", sharing=False, opener=open_it)


def missing_bytes(dataset: DatasetReader, size: int) -> int:
    """Tell how many bytes the last block lies past the end of a file of `size` bytes; 0 if it lies inside.

    Writers put blocks in order, so a file that was cut off lacks its last block. A block left out on purpose (a sparse
    file) has no offset.
    """
    block_height, block_width = dataset.block_shapes[-1]
    col = -(-dataset.width // block_width) - 1
    row = -(-dataset.height // block_height) - 1
    band = dataset.count
    offset = dataset.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=band)
    length = dataset.get_tag_item(f"BLOCK_SIZE_{col}_{row}", "TIFF", bidx=band)
    if offset is None or length is None:
        return 0
    return max(0, int(offset) + int(length) - size)
