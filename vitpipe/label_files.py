"""Tells label rasters from scenes where both lie in one folder: what the labels name is no scene."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from vitpipe.config import LabelRecipe, RasterLabels
from vitpipe.records import Rejected

LABEL_FILE: Final = "LABEL_FILE"
RASTER_SUFFIXES: Final = (".tif", ".tiff", ".gtif", ".gtiff", ".geotiff", ".btf", ".tf8", ".cog")
"""Of label rasters, in small letters."""
_REASON: Final = "`labels.path` names it, so it is taken as labels and not as a scene"


def without_labels(paths: Sequence[str], root: Path, recipe: LabelRecipe | None) -> tuple[list[str], list[Rejected]]:
    """Part the files below `source.path` into those that may be scenes and those that are labels.

    Labels are the raster that `labels.path` names, those in the folder that it names, and where it names the folder of
    the scenes itself those whose name ends as `labels.suffix` says. What GDAL keeps beside a raster goes with it. Links
    are followed: labels are those files and that folder, by whichever name they are reached.

    Args:
        paths: absolute.
        root: `source.path`.
        recipe: of the labels; its path is absolute.

    Returns:
        What may be scenes, and a row of the quarantine table for each of the others (junk: nothing is wrong with it).
    """
    is_label = _rule(paths, root, recipe)
    if is_label is None:
        return list(paths), []
    return (
        [path for path in paths if not is_label(path)],
        [Rejected(path, LABEL_FILE, _REASON, junk=True) for path in paths if is_label(path)],
    )


def _rule(paths: Sequence[str], root: Path, recipe: LabelRecipe | None) -> Callable[[str], bool] | None:
    if not isinstance(recipe, RasterLabels) or root.is_file():
        return None
    # Of the paths of a configuration links are followed, of those that are listed below `source.path` they are not.
    place = os.path.realpath(recipe.path)
    folder_at = functools.cache(os.path.realpath)
    if os.path.isfile(place):
        named = {path for path in paths if _real(path, folder_at) == place}
        beside = tuple(f"{path}." for path in (*named, place))
        return lambda path: path in named or path.startswith(beside)

    @functools.cache
    def is_of_labels(folder: str) -> bool:
        if len(folder) <= len(str(root)):
            return False
        return folder_at(folder) == place or is_of_labels(os.path.dirname(folder))

    suffix = recipe.suffix if Path(os.path.realpath(root)).is_relative_to(place) else ""
    return lambda path: is_of_labels(os.path.dirname(path)) or bool(suffix and _has_suffix(path, suffix))


def _real(path: str, folder_at: Callable[[str], str]) -> str:
    """Follow links; of files side by side the folder's but once."""
    if os.path.islink(path):
        return os.path.realpath(path)
    folder, name = os.path.split(path)
    return os.path.join(folder_at(folder), name)


def _has_suffix(path: str, suffix: str) -> bool:
    """Tell whether a raster is named as a label, or lies beside one as `a_label.tif.aux.xml` does."""
    stem, ending = os.path.splitext(os.path.basename(path))
    while ending and ending.lower() not in RASTER_SUFFIXES and not stem.endswith(suffix):
        stem, ending = os.path.splitext(stem)
    return stem.endswith(suffix)
