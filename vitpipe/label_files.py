"""Tells label rasters from scenes where both lie in one folder: what the labels name is no scene."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from vitpipe.config import LabelRecipe, RasterLabels
from vitpipe.records import Rejected

LABEL_FILE: Final = "LABEL_FILE"
_REASON: Final = "`labels.path` names it, so it is taken as labels and not as a scene"


def without_labels(paths: Sequence[str], root: Path, recipe: LabelRecipe | None) -> tuple[list[str], list[Rejected]]:
    """Part the files below `source.path` into those that may be scenes and those that are labels.

    Labels are the raster that `labels.path` names, those in the folder that it names, and where it names the folder of
    the scenes itself those whose name ends as `labels.suffix` says. What GDAL keeps beside a raster goes with it.

    Args:
        paths: absolute.
        root: `source.path`.
        recipe: of the labels; its path is absolute.

    Returns:
        What may be scenes, and a row of the quarantine table for each of the others (junk: nothing is wrong with it).
    """
    is_label = _rule(root, recipe)
    if is_label is None:
        return list(paths), []
    return (
        [path for path in paths if not is_label(path)],
        [Rejected(path, LABEL_FILE, _REASON, junk=True) for path in paths if is_label(path)],
    )


def _rule(root: Path, recipe: LabelRecipe | None) -> Callable[[str], bool] | None:
    if not isinstance(recipe, RasterLabels) or root.is_file():
        return None
    place = Path(recipe.path)
    if place.is_file():
        return lambda path: path == str(place) or path.startswith(f"{place}.")
    if place != root and place.is_relative_to(root):
        return lambda path: path.startswith(f"{place}/")
    if recipe.suffix and root.is_relative_to(place):
        # `a_label.tif` and its `a_label.tif.aux.xml`.
        return lambda path: Path(path).name.partition(".")[0].endswith(recipe.suffix)
    return None
