"""The report of a model of pixels; the parts that every task has come from `report_parts`."""

from __future__ import annotations

from typing import Final

import numpy as np

from vitpipe.evaluate.judged import Judged, estimate_of
from vitpipe.evaluate.pixels.assess import Asked, sample_units
from vitpipe.evaluate.pixels.figures import agreement
from vitpipe.evaluate.pixels.sums import COUNTED, SAMPLED, VALUES
from vitpipe.evaluate.pixels.tables import read_sample, read_tiles, thinned
from vitpipe.evaluate.report_figures import reliability
from vitpipe.evaluate.report_page import report_page
from vitpipe.evaluate.report_parts import errors, header, levels, part, per_class
from vitpipe.evaluate.report_style import bullets, section
from vitpipe.records import Level, Split, Task

_CLASSES: Final = (
    "The bar shows the intersection over union and its interval; pixels are all that carry the label, groups those "
    "that hold any."
)
_LEVELS: Final = (
    "By tile every labelled pixel counts once; by source or group every source (group) counts once, however many of "
    "its pixels are labelled. The interval resamples whole groups; deff, the design effect, says how many times larger "
    "the variance is than if tiles (sources) were independent."
)


def pixel_report(judged: Judged) -> str:
    """Write the report of a segmentation or of values of pixels.

    Args:
        judged: the numbers and where they are from.

    Returns:
        A whole HTML page: pictures are data URIs, no script, nothing is fetched.
    """
    values = judged.manifest.task is Task.REGRESSION
    pixels = judged.numbers.get("pixels", 0)
    about = f"{pixels:,} labelled pixels" if values else f"{len(judged.manifest.classes)} classes of {pixels:,} pixels"
    shown = [name for name in ((*VALUES,) if values else (*COUNTED, *SAMPLED)) if _has(judged, name)]
    tail = ("ece",) if not values and _has(judged, "ece") else ()
    top = [header(judged, VALUES if values else COUNTED, about, tail), levels(judged, shown, _LEVELS)]
    own = [_agreement(judged)] if values else _of_classes(judged)
    return report_page(judged, top, own, _gallery(judged))


def _of_classes(judged: Judged) -> list[str]:
    return [
        errors(judged, Level.TILE.value, "counted in labelled pixels"),
        per_class(judged, "iou", ("recall", "precision", "f1", "auroc"), "pixels", _CLASSES),
        _probabilities(judged),
    ]


def _has(judged: Judged, name: str) -> bool:
    return name in part(judged.numbers.get(Level.TILE.value))


def _probabilities(judged: Judged) -> str:
    if not _has(judged, "ece"):
        return ""
    manifest = judged.manifest
    tiles = read_tiles(judged.run_folder, manifest)
    test = tiles.loc[tiles["split"] == str(Split.TEST)].reset_index(drop=True)
    sampled = read_sample(judged.run_folder, manifest, Split.TEST)
    if sampled is None or sampled.empty:
        return ""
    asked = Asked(manifest, judged.config.evaluate, judged.calibration)
    units = sample_units(test, thinned(sampled, judged.config.evaluate.seed), asked, Level.TILE)
    figure = reliability(units, estimate_of(dict(judged.numbers), Level.TILE.value, "ece"), None)
    return section(
        "Probabilities",
        f"What the model claims of pixels against what came true, on {units.n:,} sampled pixels. The band takes them "
        "as independent; those of one tile are not.",
        f"<div style='max-width:500px'>{figure}</div>",
        bullets(judged.calibration.notes),
    )


def _gallery(judged: Judged) -> str:
    # A judged run without its model, such as one whose tables alone were kept, has numbers but nothing to look at.
    if not judged.model_record.is_file():
        return ""
    # torch takes seconds to import, and a report of tiles has no use for it.
    from vitpipe.evaluate.pixels.gallery import pixel_gallery
    from vitpipe.learn.model import load_model

    return pixel_gallery(judged, load_model(judged.model_record.parent).logits)


def _agreement(judged: Judged) -> str:
    sampled = read_sample(judged.run_folder, judged.manifest, Split.TEST)
    if sampled is None or sampled.empty:
        return ""
    rows = thinned(sampled, judged.config.evaluate.seed)
    drawn = agreement(
        rows["truth"].to_numpy(np.float64), rows["predicted"].to_numpy(np.float64), judged.manifest.target_units
    )
    return section(
        "Predicted and true values",
        f"{len(rows):,} sampled pixels of the test split, as many of each tile as it has labelled ones, 256 at most.",
        f"<div class='figures'>{drawn}</div>",
    )
