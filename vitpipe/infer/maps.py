"""Maps of sources: a model of pixels, a scene and a recipe give a folder of files."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
import rasterio
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning

from vitpipe import __version__
from vitpipe.config import MapRecipe, TileRecipe
from vitpipe.digest import digest
from vitpipe.domains.base import Raster
from vitpipe.domains.geotiff.header import MAP_TAG
from vitpipe.domains.known import address_of
from vitpipe.errors import UnreadableSource
from vitpipe.infer.contract import RangeWatch
from vitpipe.infer.mapping import (
    ClassLayers,
    Layers,
    MapMade,
    MapPlan,
    MapRows,
    MapTask,
    PixelModel,
    ValueLayers,
    make_files,
    make_map,
)
from vitpipe.infer.mapping.polygons import ClassVectors
from vitpipe.infer.mapping.scene import Extra
from vitpipe.infer.mapping.stac import MapItem
from vitpipe.infer.modelitem import model_item
from vitpipe.infer.predictor import Predictor
from vitpipe.infer.tilegrid import TileLayers, tile_grid, tile_rows
from vitpipe.infer.versions import ModelIdentity
from vitpipe.records import Grid, Json, Rejected, Source, Task
from vitpipe.resample import ResampledRaster, SlicedRaster, Slices, prepare, whole_axes, with_neighbours

NO_MAP: Final = "NO_MAP"
NO_VALID_PIXELS: Final = "NO_VALID_PIXELS"
NO_NUMBER: Final = "NO_NUMBER"
_PIXELS_A_TASK: Final = 64 << 20
_SCENES_A_TASK: Final = 256


@dataclass(frozen=True, slots=True)
class SceneMap:
    """What came of a scene."""

    made: MapMade
    notes: tuple[str, ...]
    """Sentences for the user, without a path."""
    refused: Rejected | None = None
    """The map is there and holds nodata alone: the scene has no valid pixel."""


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
        UnreadableSource: its pixels cannot be read, it is no single frame (``NO_MAP``), or the model gives no number
            for a pixel (``NO_NUMBER``).
        TransientError: the store does not answer.
        WorkspaceError: the folder cannot be written.
    """
    contract, watch = predictor.contract, RangeWatch(predictor.contract)
    if contract.tiles.depth is not None or source.grid.frames != 1:
        reason = f"a map is made of one frame, the source has {source.grid.frames}; give it scenes or single frames"
        raise UnreadableSource(NO_MAP, reason, source.uri)

    with predictor.domain.open(source) as opened:
        raster = as_cut(opened, contract.tiles, uri=source.uri)
        plan = MapPlan(
            size=contract.tiles.size,
            outputs=contract.outputs,
            overlap=recipe.overlap,
            d4=recipe.tta == "d4",
            batch=predictor.tiles_at_once,
        )
        lineage = (
            f"{str(contract.task).capitalize()} of every pixel by {identity.title}: tiles of {plan.size} pixels, "
            f"{plan.overlap:.0%} overlap blended by a Hann window, "
            f"{'the mean over eight turns and flips' if plan.d4 else 'no test-time augmentation'}."
        )
        task = _task(predictor, source, (folder, recipe, identity), plan, layers_of(predictor), lineage)
        made = make_map(raster, pixel_model(predictor, watch, uri=source.uri), task)
    refused = None
    if holds_nothing(made.folder / next(name for name in made.files if name.endswith(".tif"))):
        reason = (
            "it has no valid pixel, so its map holds nodata alone; see with `gdalinfo -stats` whether its nodata value "
            "or its mask says what it should"
        )
        refused = Rejected(source.uri, NO_VALID_PIXELS, reason)
    return SceneMap(made, (*watch.notes(), *_place_notes(source, raster.grid)), refused)


def holds_nothing(path: Path) -> bool:
    """Say whether a file of a map holds nodata alone: every valid pixel leaves one in the smallest overview."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, driver="GTiff") as file:
            levels = len(file.overviews(1))
        with rasterio.open(path, driver="GTiff", **({"overview_level": levels - 1} if levels else {})) as file:
            return not file.read_masks(1).any()


def pixel_model(predictor: Predictor, watch: RangeWatch, *, uri: str) -> PixelModel:
    """Give what a predictor says of tiles of a source, which the map engine runs.

    Args:
        predictor: a model of pixels.
        watch: is shown some of the tiles.
        uri: the source, for errors. The model raises `UnreadableSource` (``NO_NUMBER``) where it gives NaN or an
            infinite value for a valid pixel: blended with its neighbours that would be a class like any other.
    """

    def model(tiles: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        # One tile of a batch says enough of units that are wrong.
        watch.add(tiles[:1], valid[:1])
        values = predictor.pixels(tiles, valid)
        # The ends are found in a fraction of the time of a look at each.
        if not np.isfinite([values.min(), values.max()]).all():
            bad = int((~np.isfinite(values).all(axis=1) & valid).sum())
            if bad:
                raise UnreadableSource(
                    NO_NUMBER,
                    f"the model gives NaN or an infinite value for {bad} valid pixels of {len(valid)} tiles; look in "
                    "the source for values far from those of training, such as a nodata value that it does not name",
                    uri,
                )
        return values

    return model


def _place_notes(source: Source, grid: Grid) -> list[str]:
    """Say what is odd about where a map lies."""
    if grid.gcps:
        return [
            "scenes with ground control points and no transform were mapped: their maps have the same points, and "
            "`gdalwarp -tps` brings them to a CRS; their polygons count columns and rows"
        ]
    if grid.crs is None and "RPC_ONLY" in source.notes:
        return [
            "scenes with RPCs alone were mapped: their maps are plain TIFFs that lie nowhere; orthorectify the scenes"
        ]
    if grid.crs is None:
        return ["scenes without a CRS were mapped: their maps are plain TIFFs that lie nowhere"]
    return []


def map_tiles(
    predictor: Predictor,
    source: Source,
    tiles: pd.DataFrame,
    folder: Path,
    options: tuple[MapRecipe, ModelIdentity],
) -> SceneMap:
    """Write what a model of tiles says of a source as a raster of one pixel a tile.

    Args:
        predictor: a model of tiles.
        source: the source.
        tiles: its rows of `PredictionResult.tiles`.
        folder: of this map alone.
        options: vectors, and the model for the lineage in the files.

    Raises:
        UnreadableSource: it is no single frame (``NO_MAP``).
        WorkspaceError: the folder cannot be written.
    """
    contract, (recipe, identity) = predictor.contract, options
    if source.grid.frames != 1:
        reason = f"a grid of tiles is of one frame, the source has {source.grid.frames}; leave `--map` away"
        raise UnreadableSource(NO_MAP, reason, source.uri)
    layers = TileLayers(contract.classes, multi_label=contract.multi_label)
    step = "whole scenes" if contract.tiles.cut == "whole" else f"tiles of {contract.tiles.size} pixels"
    lineage = f"Class of {step} by {identity.title}, a pixel a tile, every {contract.tiles.step} pixels."
    plan = MapPlan(contract.tiles.size, layers.outputs, overlap=0)
    task = _task(predictor, source, (folder, recipe, identity), plan, layers, lineage)
    grid = tile_grid(source.grid, contract.tiles, uri=source.uri)

    def rows_from(first: int) -> Iterator[MapRows]:
        for rows in tile_rows(tiles, source.grid, contract.tiles, contract.classes, uri=source.uri):
            skipped = max(0, first - rows.row)
            if skipped < len(rows.valid):
                yield MapRows(rows.row + skipped, rows.values[:, skipped:], rows.valid[skipped:])

    return SceneMap(make_files(grid, rows_from, task), ())


def _task(
    predictor: Predictor,
    source: Source,
    options: tuple[Path, MapRecipe, ModelIdentity],
    plan: MapPlan,
    layers: Layers,
    lineage: str,
) -> MapTask:
    folder, recipe, identity = options
    made_of: dict[str, Json] = {
        "source_id": source.source_id,
        "weights": identity.sha256,
        "calibration": digest(predictor.calibration.to_json()),
        "tiles": predictor.contract.tiles.model_dump(mode="json"),
        "min_area_px": recipe.min_area_px if recipe.vectors else None,
    }
    tags = lineage_tags(source, identity)
    extras: dict[str, Extra] = {}
    classes = next((file.classes for file in layers.files if file.name == "classes"), ())
    if recipe.vectors and classes:
        extras["vectors"] = ClassVectors(classes, recipe.min_area_px)
    extras["item"] = MapItem(
        item_id=source.source_id,
        acquired_at=source.acquired_at,
        lineage=lineage,
        facts={"model": identity.title, "model_sha256": identity.sha256, **identity.facts},
        # The path of what is no scene may say more than it should.
        derived_from=address_of(source) if source.grid.crs is not None else None,
        model_uri=f"models:/{identity.title}",
        model=model_item(predictor, identity),
    )
    return MapTask(folder, made_of, plan, layers, tags, extras)


def as_cut(raster: Raster, tiles: TileRecipe, *, uri: str) -> Raster:
    """Give the raster that tiles are cut from: at the recipe's resolution, with ``cut: whole`` fitted into a tile.

    Raises:
        UnreadableSource: the recipe asks for what the source does not have, see `vitpipe.resample.prepare`.
    """
    shown = prepare(raster, tiles, uri=uri)
    if tiles.cut == "whole":
        shown = ResampledRaster(shown, *whole_axes(shown.grid, tiles.size))
        if tiles.depth is not None:
            shown = SlicedRaster(shown, Slices.stretch(shown.grid.frames, tiles.depth))
    return with_neighbours(shown, tiles)


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
        MAP_TAG: source.source_id,
        **facts,
    }


def batches_of(sources: Sequence[Source]) -> list[list[str]]:
    """Group sources into tasks, by their ids: a large scene is a task, small ones share one."""
    batches: list[list[str]] = []
    room = 0
    for source in sources:
        pixels = source.grid.frames * source.grid.height * source.grid.width
        if room < pixels or len(batches[-1]) == _SCENES_A_TASK:
            batches.append([])
            room = _PIXELS_A_TASK
        batches[-1].append(source.source_id)
        room -= pixels
    return batches
