"""How GDAL is set where it writes: a small cache, no sidecars, no warning of a raster that has no place yet."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from vitpipe.atomic import workspace_errors
from vitpipe.errors import WorkspaceError

_CACHE_BYTES: Final = 32 << 20


@contextlib.contextmanager
def gdal_writes(path: Path) -> Iterator[None]:
    """Set GDAL for the writing of one file.

    Raises:
        WorkspaceError: the file cannot be written.
    """
    options = {"GDAL_CACHEMAX": _CACHE_BYTES, "GDAL_PAM_ENABLED": False}
    with workspace_errors(path), rasterio.Env(**options):
        try:
            with warnings.catch_warnings():
                # Strips are placed later; a scene without a place is told of elsewhere.
                warnings.simplefilter("ignore", NotGeoreferencedWarning)
                yield
        except (RasterioError, CPLE_BaseError) as error:
            # GDAL says that a write failed, and seldom why.
            raise WorkspaceError(
                f"cannot write {path}: {error}; see that the disk has room, and run the same command again: it goes on "
                "where it was"
            ) from error
