"""Scenes: GeoTIFF files, Sentinel-2 SAFE folders, Landsat band files, series of them; windowed reads only."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from vitpipe.config import GeotiffSource
from vitpipe.domains.base import ScanContext
from vitpipe.domains.geotiff.checksums import verified, verified_from_afar
from vitpipe.domains.geotiff.composed import ComposedRaster
from vitpipe.domains.geotiff.header import read_header
from vitpipe.domains.geotiff.item import apply_items, read_item
from vitpipe.domains.geotiff.raster import GeotiffRaster
from vitpipe.domains.geotiff.remote import identified, read_remote_header, read_stand_in
from vitpipe.domains.geotiff.scene import assemble_scenes
from vitpipe.opening import ITEM_NAME
from vitpipe.records import FileRecord, Json, Rejected, Source
from vitpipe.web.ranges import RemoteFile


class Geotiff:
    """The domain of GeoTIFF scenes; see :class:`vitpipe.domains.base.Domain`.

    Codes of rejected files: ``ZERO_BYTES NOT_GEOTIFF SIDECAR BAD_HEADER TRUNCATED BLOCK_TOO_LARGE UNREADABLE_FILE
    NO_BANDS UNSUPPORTED_DTYPE BAD_SCALE SCALE_CONFLICT MISSING_BAND BAD_MASK_FILE STAC_ITEM UNDECODABLE``; at a read
    ``TRUNCATED UNDECODABLE CHANGED UNREADABLE_FILE``.

    Of scenes of several files also ``BAD_METADATA NO_METADATA DUPLICATE_BAND GRIDS_DIFFER NO_CLOUD_MASK PRODUCT_CHANGED
    UNMATCHED NOT_ONE_BAND BAD_DATE``, of series ``MISSING_DATE AMBIGUOUS_DATE NO_DATE NO_PLACE NO_TILE UNITS_DIFFER``.
    Files beside them that are not needed are junk: ``PRODUCT_FILE BAND_NOT_USED DATE_NOT_USED``; so are maps that were
    made here, ``OWN_MAP``.

    Notes of sources: ``NO_CRS GCP_ONLY RPC_ONLY NO_GROUND ROTATED COLORMAP ALPHA SCALED MASK_FILE FIRST_PAGE_ONLY
    DUPLICATE_BAND_NAMES OFFSET_APPLIED AUX_XML_IGNORED WORLD_FILE_IGNORED BANDS_RESAMPLED NO_METADATA
    ITEM_BANDS_DIFFER``.
    """

    name = "geotiff"

    def listed_in(self, path: Path) -> None:
        """No GeoTIFF names others."""

    def index(self, path: Path, context: ScanContext) -> Mapping[str, Json] | Rejected:
        """Read one file's header; see :func:`vitpipe.domains.geotiff.header.read_header`.

        Where the configuration says so its checksums are verified too (``UNDECODABLE``).
        """
        if path.name == ITEM_NAME:
            return read_item(path)
        header = read_header(path)
        if isinstance(header, Rejected) and header.code in ("NOT_GEOTIFF", "BAD_METADATA"):
            remote = read_stand_in(path, context.pseudonym)
            return header if remote is None else _from_afar(path, remote, context)
        if isinstance(header, Rejected) or header["kind"] == "metadata" or not _verifies(context):
            return header
        return verified(path) or header

    def assemble(self, records: Sequence[FileRecord], context: ScanContext) -> Iterator[Source | Rejected]:
        """Make a source of every scene; see :func:`vitpipe.domains.geotiff.scene.assemble_scenes`."""
        described: list[FileRecord] = []
        for record in apply_items(records):
            if isinstance(record, Rejected):
                yield record
            else:
                described.append(identified(record))
        yield from assemble_scenes(described, context)

    @contextlib.contextmanager
    def open(self, source: Source) -> Iterator[GeotiffRaster | ComposedRaster]:
        """Open a scene.

        Raises:
            UnreadableSource: the file is gone, changed or broken.
        """
        raster = ComposedRaster(source) if "members" in source.reader else GeotiffRaster(source)
        try:
            yield raster
        finally:
            raster.close()


def _from_afar(path: Path, remote: RemoteFile, context: ScanContext) -> Mapping[str, Json] | Rejected:
    header = read_remote_header(path, remote)
    if isinstance(header, Rejected) or header["kind"] == "metadata" or not _verifies(context):
        return header
    return verified_from_afar(path, remote) or header


def _verifies(context: ScanContext) -> bool:
    return isinstance(context.recipe, GeotiffSource) and context.recipe.verify


__all__ = ["Geotiff"]
