"""Labels: from tables and folder names to rows that say which class a source, or a frame of it, belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vitpipe.config import (
    DicomSegLabels,
    FolderLabels,
    LabelRecipe,
    RasterLabels,
    TableLabels,
    VectorLabels,
)
from vitpipe.digest import digest
from vitpipe.errors import ConfigError
from vitpipe.labels.base import LabelSet, PlanesOf
from vitpipe.labels.folder import read_folder_labels
from vitpipe.labels.table import read_table_labels
from vitpipe.pseudonym import Pseudonymiser
from vitpipe.records import Source

__all__ = ["LabelSet", "read_labels"]


def read_labels(
    recipe: LabelRecipe, sources: Sequence[Source], pseudonym: Pseudonymiser, planes_of: PlanesOf | None = None
) -> LabelSet:
    """Read the labels of a catalog.

    Args:
        recipe: the kind of labels, and where they are.
        sources: the catalog.
        pseudonym: maps identifiers as the domains do.
        planes_of: reads where a source's frames lie; needed for labels that are drawn on the image.

    Raises:
        ConfigError: the labels are not there, or the sources have no place in a patient to draw on.
        LabelError: the labels do not fit the sources; the sentence names what was found and what to do.
    """
    if isinstance(recipe, TableLabels):
        table = read_table_labels(recipe, sources, pseudonym)
        return table if recipe.aoi is None else _within(recipe.aoi, table, sources)
    if isinstance(recipe, FolderLabels):
        return read_folder_labels(recipe, sources)
    if isinstance(recipe, RasterLabels | VectorLabels):
        return _read_ground_labels(recipe, sources)
    if planes_of is None or not any("series_uid" in source.keys for source in sources):
        raise ConfigError(f"`labels.kind: {recipe.kind}` is drawn on DICOM images, and no source is one")
    # pydicom takes its time to load: only where it is needed.
    from vitpipe.labels.dicom_rtstruct import read_rtstruct_labels
    from vitpipe.labels.dicom_seg import read_seg_labels

    if isinstance(recipe, DicomSegLabels):
        return read_seg_labels(recipe, sources, pseudonym, planes_of)
    return read_rtstruct_labels(recipe, sources, pseudonym, planes_of)


def _within(path: str, labels: LabelSet, sources: Sequence[Source]) -> LabelSet:
    # GDAL takes its time to load: only where it is needed.
    from vitpipe.labels.vector import placed_on_ground, read_aoi

    placed = placed_on_ground(sources)
    if not placed:
        raise ConfigError(
            f"`labels.aoi` ({path}) is an area on the ground, and none of the {len(sources)} source(s) has a place "
            "there (photographs, DICOM, or scenes without a CRS); remove `labels.aoi`, or give the scenes a CRS"
        )
    aoi = read_aoi(path, placed)
    return replace(labels, aoi=aoi, digest=digest([labels.digest, aoi.digest]))


def _read_ground_labels(recipe: RasterLabels | VectorLabels, sources: Sequence[Source]) -> LabelSet:
    # GDAL takes its time to load: only where it is needed.
    from vitpipe.labels.raster import read_raster_labels
    from vitpipe.labels.vector import placed_on_ground, read_aoi, read_vector_labels

    if isinstance(recipe, VectorLabels):
        return read_vector_labels(recipe, sources)
    aoi = read_aoi(recipe.aoi, placed_on_ground(sources)) if recipe.aoi is not None else None
    return read_raster_labels(recipe, sources, aoi)
