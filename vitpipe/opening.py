"""The one place that hands a file to GDAL: its GTiff driver alone, and nothing that lies beside the file.

A VRT, GML or netCDF named ``.tif`` makes GDAL read other files or addresses, and so does a VRT named ``.tif.msk`` even
where the scene itself is opened by the GTiff driver alone. Thus sidecars are not looked for: what is read is what was
digested.
"""

from __future__ import annotations

import contextlib
import errno
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import rasterio
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import DatasetReader

TRANSIENT: Final = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EMFILE, errno.ENFILE)
"""What the operating system says when the store, not the file, is to blame."""
MIB: Final = 1 << 20
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


def open_tiff(path: Path) -> DatasetReader:
    """Open a file by the GTiff driver (it reads BigTIFF and COG too); call it inside :func:`gdal_environment`.

    Raises:
        rasterio.errors.RasterioIOError: it is no TIFF, or its header is broken.
    """
    with warnings.catch_warnings():
        # What the warning says is kept as the note NO_CRS.
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        # A path object, not text: rasterio reads schemes such as zip:// into text.
        return rasterio.open(path, driver="GTiff", sharing=False)


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
