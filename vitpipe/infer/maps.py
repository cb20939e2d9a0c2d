"""Maps of sources: a model of pixels, a scene and a recipe give a folder of files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vitpipe import __version__
from vitpipe.config import MapRecipe, TileRecipe
from vitpipe.digest import digest
from vitpipe.domains.base import Raster
from vitpipe.errors import UnreadableSource
from vitpipe.infer.contract import RangeWatch
from vitpipe.infer.mapping import ClassLayers, Layers, MapMade, MapPlan, MapTask, ValueLayers, make_map
from vitpipe.infer.predictor import Predictor
from vitpipe.infer.versions import ModelIdentity
from vitpipe.records import Source, Task
from vitpipe.resample import ResampledRaster, prepare, whole_axes

NO_MAP: Final = "NO_MAP"
_PIXELS_A_TASK: Final = 64 << 20
_SCENES_A_TASK: Final = 256


@dataclass(frozen=True, slots=True)
class SceneMap:
    """What came of a scene."""

    made: MapMade
    notes: tuple[str, ...]
    """Sentences for the user, without a path."""


def map_source(
    predictor: Predictor, source: Source, folder: Path, recipe: MapRecipe, identity: ModelIdentity
) -> SceneMap:
    """Map a source into a folder of its own; what an earlier run left there is used.

    Args:
        predictor: a model of pixels.
        source: fits the model.
        folder: of this map alone.
        recipe: overlap, augmentation, vectors.
        identity: the model, for the lineage in the files.

    Raises:
        UnreadableSource: its pixels cannot be read, or it is no single frame (``NO_MAP``).
        TransientError: the store does not answer.
        WorkspaceError: the folder cannot be written.
    """
    contract, watch = predictor.contract, RangeWatch(predictor.contract)
    if contract.tiles.depth is not None or source.grid.frames != 1:
        reason = f"a map is made of one frame, the source has {source.grid.frames}; give it scenes or single frames"
        raise UnreadableSource(NO_MAP, reason, source.uri)

    def model(tiles: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        # One tile of a batch says enough of units that are wrong.
        watch.add(tiles[:1], valid[:1])
        return predictor.pixels(tiles, valid)

    with predictor.domain.open(source) as opened:
        raster = as_cut(opened, contract.tiles, uri=source.uri)
        task = MapTask(
            folder,
            {
                "source_id": source.source_id,
                "weights": identity.sha256,
                "calibration": digest(predictor.calibration.to_json()),
                "tiles": contract.tiles.model_dump(mode="json"),
            },
            MapPlan(
                size=contract.tiles.size,
                outputs=contract.outputs,
                overlap=recipe.overlap,
                d4=recipe.tta == "d4",
                batch=predictor.tiles_at_once,
            ),
            layers_of(predictor),
            lineage_tags(source, identity),
        )
        made = make_map(raster, model, task)
    notes = watch.notes()
    if raster.grid.crs is None:
        notes.append("scenes without a CRS were mapped: their maps are plain TIFFs that lie nowhere")
    return SceneMap(made, tuple(notes))


def as_cut(raster: Raster, tiles: TileRecipe, *, uri: str) -> Raster:
    """Give the raster that tiles are cut from: at the recipe's resolution, with ``cut: whole`` fitted into a tile."""
    base = prepare(raster, tiles, uri=uri)
    return ResampledRaster(base, *whole_axes(base.grid, tiles.size)) if tiles.cut == "whole" else base


def layers_of(predictor: Predictor) -> Layers:
    """Say what the maps of a model hold."""
    if predictor.contract.task is Task.REGRESSION:
        return ValueLayers("value", predictor.contract.target_units)
    return ClassLayers(predictor.classes)


def lineage_tags(source: Source, identity: ModelIdentity) -> dict[str, str]:
    """Say which model, weights, run and scene a file is from."""
    facts: Mapping[str, str] = {f"VITPIPE_{name.upper()}": value for name, value in sorted(identity.facts.items())}
    return {
        "TIFFTAG_SOFTWARE": f"vitpipe {__version__}",
        "VITPIPE_MODEL": identity.title,
        "VITPIPE_MODEL_SHA256": identity.sha256,
        "VITPIPE_SOURCE_ID": source.source_id,
        **facts,
    }


def batches_of(sources: Sequence[Source]) -> list[list[str]]:
    """Group sources into tasks, by their ids: a large scene is a task, small ones share one."""
    batches: list[list[str]] = []
    room = 0
    for source in sources:
        pixels = source.grid.height * source.grid.width
        if room < pixels or len(batches[-1]) == _SCENES_A_TASK:
            batches.append([])
            room = _PIXELS_A_TASK
        batches[-1].append(source.source_id)
        room -= pixels
    return batches
