"""Where on the ground a model errs: its error by block, and by distance to the nearest ground it was trained on.

Made where the manifest says where tiles lie (columns `x, y` in EPSG:6933 and `distance_to_train_m`); sources without
ground have none of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
from rasterio.crs import CRS
from rasterio.warp import transform as warp_points
from scipy import stats
from scipy.spatial import KDTree

from vitpipe.atomic import write_file
from vitpipe.config import EvaluateRecipe
from vitpipe.evaluate.assess import sample
from vitpipe.evaluate.judged import Judged
from vitpipe.evaluate.pixels.evaluation import LABELLED
from vitpipe.evaluate.pixels.sums import PixelUnits
from vitpipe.evaluate.statistics import Counts, Estimate, Floats, Sampling, Statistic, Values, interval
from vitpipe.ground.blocks import read_block_m
from vitpipe.records import Json, Split, Task

LAYER_FILE: Final = "error_blocks.geojson"
DISTANCE: Final = "distance_to_train_m"
_PLACE: Final = ("x", "y")
_MOST_BINS: Final = 6
_LEAST_TILES: Final = 20
"""Of a bin of distances."""
_EDGE_M: Final = 17_367_530.44
_POLE_M: Final = 7_342_230.13
"""Where EPSG:6933 ends, a little inside."""
_CELL: Final = re.compile(r"ground-(-?\d+)-(-?\d+)")


@dataclass(frozen=True, slots=True)
class Ground:
    """The errors of the test tiles on the ground."""

    blocks: pd.DataFrame
    """A row a group: group_id, tiles, weight (tiles or labelled pixels), error, low, high, and its box left, bottom,
    right, top (EPSG:6933, metres)."""
    by_distance: tuple[tuple[float, float, Estimate], ...]
    """From and to how many metres from training ground, and the error there; empty where distances are not known."""
    measure: str
    """Name of the error: ``share of tiles that are wrong`` and so on."""
    is_share: bool = True
    """0 to 1; else an RMSE in the label's units."""

    def to_json(self) -> dict[str, Json]:
        """Give a JSON form."""
        return {
            "error": self.measure,
            "blocks": len(self.blocks),
            "layer": LAYER_FILE,
            "by_distance": [
                {"from_m": low, "to_m": high, **estimate.to_json()} for low, high, estimate in self.by_distance
            ],
        }


def ground_of(judged: Judged) -> Ground | None:
    """Place the errors of the test tiles; None where the manifest does not say where tiles lie."""
    table = judged.manifest.table
    if not set(_PLACE) <= set(table.columns):
        return None
    errors = _tile_errors(judged)
    columns = ["tile_id", *_PLACE, *([DISTANCE] if DISTANCE in table else [])]
    placed = errors.merge(table[columns], on="tile_id", how="left", validate="one_to_one")
    placed = placed.loc[np.isfinite(placed[list(_PLACE)].to_numpy(np.float64)).all(axis=1)].reset_index(drop=True)
    if placed.empty:
        return None
    recipe, squared = judged.config.evaluate, judged.manifest.task is Task.REGRESSION
    stated = getattr(judged.config.source, "block_m", None)
    # With `auto` the workspace alone knows the size that was chosen.
    known = float(stated) if isinstance(stated, int | float) else read_block_m(judged.workspace.ground_block)
    return Ground(
        blocks=_blocks(placed, known, recipe.confidence, squared=squared),
        by_distance=_by_distance(placed, recipe, squared=squared) if DISTANCE in placed else (),
        measure=_MEASURES[judged.manifest.task] + (f" ({unit})" if (unit := judged.manifest.target_units) else ""),
        is_share=not squared,
    )


_MEASURES: Final[Mapping[Task, str]] = {
    Task.CLASSIFICATION: "share of tiles that are wrong",
    Task.SEGMENTATION: "share of labelled pixels that are wrong",
    Task.REGRESSION: "RMSE of labelled pixels",
}


def _tile_errors(judged: Judged) -> pd.DataFrame:
    """Give tile_id, group_id, weight and bad (wrong tiles or pixels, or summed squared error) of the test tiles."""
    test = judged.predictions.loc[judged.predictions["split"] == str(Split.TEST)]
    found = test[["tile_id", "group_id"]].astype(str).reset_index(drop=True)
    if judged.manifest.task is Task.CLASSIFICATION:
        wrong = [
            set(label.split("|")) != set(said.split("|"))
            for label, said in zip(test["label"].astype(str), test["predicted"].astype(str), strict=True)
        ]
        return found.assign(weight=1.0, bad=np.asarray(wrong, dtype=np.float64))
    weight = test[LABELLED].to_numpy(np.float64)
    if judged.manifest.task is Task.SEGMENTATION:
        return found.assign(weight=weight, bad=weight * (1.0 - test["accuracy"].to_numpy(np.float64)))
    return found.assign(weight=weight, bad=test["sum_sq_error"].to_numpy(np.float64))


def _blocks(placed: pd.DataFrame, block_m: float | None, confidence: float, *, squared: bool) -> pd.DataFrame:
    """Sum up the groups. The interval of one block takes its tiles as units, which alone say how it varies inside."""
    grouped = placed.groupby("group_id", sort=True)
    blocks = grouped.agg(
        tiles=("tile_id", "size"),
        weight=("weight", "sum"),
        bad=("bad", "sum"),
        left=("x", "min"),
        right=("x", "max"),
        bottom=("y", "min"),
        top=("y", "max"),
    ).reset_index()
    bad, weight, tiles = (blocks[name].to_numpy(np.float64) for name in ("bad", "weight", "tiles"))
    share = bad / weight
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    if squared:
        of_tile = share[pd.Index(blocks["group_id"]).get_indexer(pd.Index(placed["group_id"]))]
        deviation = (placed["bad"] - of_tile * placed["weight"]) ** 2
        spread = deviation.groupby(placed["group_id"], sort=True).sum().to_numpy(np.float64)
        reach = z * np.sqrt(np.where(tiles > 1, tiles / np.maximum(tiles - 1, 1), np.nan) * spread) / weight
        error, low, high = np.sqrt(share), np.sqrt(np.maximum(share - reach, 0)), np.sqrt(share + reach)
    else:
        # Wilson 1927, with the tiles as units: a share of pixels varies less than one of tiles, so it holds for both.
        middle = (share + z**2 / (2 * tiles)) / (1 + z**2 / tiles)
        half = z / (1 + z**2 / tiles) * np.sqrt(share * (1 - share) / tiles + z**2 / (4 * tiles**2))
        error, low, high = share, np.maximum(middle - half, 0), np.minimum(middle + half, 1)
    blocks = blocks.assign(error=error, low=low, high=high).drop(columns="bad")
    return _boxed(blocks, placed, block_m)


def _boxed(blocks: pd.DataFrame, placed: pd.DataFrame, block_m: float | None) -> pd.DataFrame:
    """Give each group its cell of the grid, or else the box around its tiles."""
    points = placed[list(_PLACE)].to_numpy(np.float64)
    near = np.asarray(KDTree(points).query(points, k=2)[0])[:, 1] if len(points) > 1 else np.array([np.inf])
    near = near[np.isfinite(near) & (near > 0)]
    margin = float(np.median(near)) / 2 if near.size else 500.0
    boxes = blocks[["left", "bottom", "right", "top"]].to_numpy(np.float64)
    boxes += np.array([-margin, -margin, margin, margin])
    if block_m is not None:
        for row, name in enumerate(blocks["group_id"]):
            if cell := _CELL.fullmatch(str(name)):
                x, y = (int(part) * block_m for part in cell.groups())
                boxes[row] = x, y, x + block_m, y + block_m
    return blocks.assign(**dict(zip(("left", "bottom", "right", "top"), boxes.T, strict=True)))


def _by_distance(
    placed: pd.DataFrame, recipe: EvaluateRecipe, *, squared: bool
) -> tuple[tuple[float, float, Estimate], ...]:
    """Estimate the error in bins of about as many tiles each, with intervals by groups."""
    known = placed.loc[np.isfinite(placed[DISTANCE].to_numpy(np.float64))].reset_index(drop=True)
    if len(known) < 2 * _LEAST_TILES:
        return ()
    distance = known[DISTANCE].to_numpy(np.float64)
    bins = min(_MOST_BINS, len(known) // _LEAST_TILES)
    # Distances of a grid of tiles come in steps: an edge is one of them, not a place between two.
    inner = np.quantile(distance, np.linspace(0, 1, bins + 1)[1:-1], method="higher")
    # Two digits are enough to read, and equal edges after rounding are one.
    edges = np.unique([edge for each in inner if (edge := float(f"{each:.2g}")) > distance.min()])
    groups, names = pd.factorize(known["group_id"])
    place = np.searchsorted(edges, distance, side="right")
    found = []
    for number in range(len(edges) + 1):
        rows = place == number
        if not rows.any():
            continue
        sums = known.loc[rows, ["weight", "bad"]].to_numpy(np.float64)
        units = PixelUnits(sums, groups[rows].astype(np.intp), len(names), int(sums[:, 0].sum()))
        sampled = sample(units, _error_statistic(units, squared=squared), recipe.bootstrap, recipe.seed)
        limits = (0.0, float("inf")) if squared else (0.0, 1.0)
        left_out = sampled.left_out.get("error", np.empty(0))
        sampling = Sampling(
            sampled.draws["error"], left_out, units.n, int(units.present.size), recipe.confidence, limits
        )
        low = 0.0 if number == 0 else float(edges[number - 1])
        high = float(edges[number]) if number < len(edges) else float(f"{distance.max():.3g}")
        estimate = interval(float(sampled.estimates["error"]), sampling)
        found.append((low, high, replace(estimate, draws=0)))
    return tuple(found)


def _error_statistic(units: PixelUnits, *, squared: bool) -> Statistic:
    sums = units.by_group()

    def statistic(counts: Counts) -> Values:
        drawn = counts.astype(np.float64) @ sums
        with np.errstate(invalid="ignore", divide="ignore"):
            error: Floats = np.where(drawn[:, 0] > 0, drawn[:, 1] / drawn[:, 0], np.nan)
        return {"error": np.sqrt(error) if squared else error}

    return statistic


def write_layer(ground: Ground, folder: Path) -> None:
    """Write the blocks as GeoJSON in longitude and latitude (RFC 7946), for any GIS.

    Args:
        ground: the errors.
        folder: of the run.
    """
    blocks = ground.blocks
    corners = np.stack(
        [
            blocks[list(pair)].to_numpy(np.float64)
            for pair in (("left", "bottom"), ("right", "bottom"), ("right", "top"), ("left", "top"), ("left", "bottom"))
        ],
        axis=1,
    )
    # The last cell of a row reaches past the antimeridian, where the grid ends: its far side would wrap around.
    flat = np.clip(corners.reshape(-1, 2), (-_EDGE_M, -_POLE_M), (_EDGE_M, _POLE_M))
    lon, lat = warp_points(CRS.from_epsg(6933), CRS.from_epsg(4326), flat[:, 0], flat[:, 1])
    rings = np.round(np.column_stack([lon, lat]), 7).reshape(len(blocks), 5, 2).tolist()
    properties = blocks[["group_id", "tiles", "weight", "error", "low", "high"]].to_dict("records")
    features = [
        {
            "type": "Feature",
            "properties": {
                key: (None if isinstance(value, float) and not np.isfinite(value) else value)
                for key, value in own.items()
            },
            "geometry": {"type": "Polygon", "coordinates": [ring]},
        }
        for own, ring in zip(properties, rings, strict=True)
    ]
    with write_file(folder / LAYER_FILE) as partial:
        text = json.dumps({"type": "FeatureCollection", "features": features}, indent=1, allow_nan=False)
        partial.write_text(text + "\n", encoding="utf-8")
