"""Which tiles labels on the ground would label, before any is cut: from the grids of scenes and the labels alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import pandas as pd

from vitpipe.config import TileRecipe
from vitpipe.cutting import planned_windows, windows
from vitpipe.errors import UnreadableSource
from vitpipe.labels.base import LabelSet
from vitpipe.labels.ground import GroundLabels
from vitpipe.pixel_targets import IGNORE
from vitpipe.records import Source, Task, Window
from vitpipe.resample import prepared_grid
from vitpipe.tile_asking import Asker, open_labels

MOST_WINDOWS: Final = 20_000
"""More would take longer than a look should."""
_COLUMNS: Final = ("source_id", *Window._fields, "label")


def survey_tiles(sources: Sequence[Source], labels: LabelSet, recipe: TileRecipe) -> pd.DataFrame | None:
    """Find the tiles that have a label.

    Pixels are not read: a tile of nodata counts as if it were valid, so these are at most the tiles of a run.

    Args:
        sources: the catalog.
        labels: on the ground.
        recipe: how tiles will be cut.

    Returns:
        A row a labelled tile: `source_id`, its window and `label` (per pixel the commonest class; of values ""); None
        where there are more than `MOST_WINDOWS` windows to ask for.

    Raises:
        LabelError: a label file cannot be read.
    """
    regions = labels.regions
    assert isinstance(regions, GroundLabels)
    found: list[tuple[object, ...]] = []
    asked = 0
    for source in sources:
        if source.source_id not in regions.sources:
            continue
        try:
            asked += planned_windows(source.grid, recipe, uri=source.uri)
            if asked > MOST_WINDOWS:
                return None
            grid = prepared_grid(source.grid, recipe, uri=source.uri)
        except UnreadableSource:
            continue  # It gives no tile by this recipe; the check of the tiles says why.
        with open_labels(source, labels, recipe) as asker:
            for window in windows(grid, recipe):
                label = _label(asker, window, labels, regions)
                if label is not None:
                    found.append((source.source_id, *window, label))
    return pd.DataFrame(found, columns=list(_COLUMNS))


def _label(asker: Asker, window: Window, labels: LabelSet, regions: GroundLabels) -> str | None:
    if labels.task is Task.REGRESSION:
        return "" if np.isfinite(asker.targets(window)).any() else None
    if labels.task is Task.SEGMENTATION:
        counts = np.bincount(asker.targets(window).ravel(), minlength=IGNORE + 1)[:IGNORE]
        return regions.classes[int(counts.argmax())] if counts.any() else None
    shares = asker.shares(window, np.ones(asker.inside(window), bool))
    if regions.rule.tile_class == "centre":
        return regions.rule.central(shares.central, shares.by_class.get(str(shares.central), 0.0))
    return regions.rule.label(shares.by_class, shares.known)
