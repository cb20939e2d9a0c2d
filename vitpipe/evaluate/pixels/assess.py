"""Intervals of the metrics of pixels: whole groups are drawn again, for sums and sample alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from vitpipe.config import EvaluateRecipe
from vitpipe.evaluate import metrics
from vitpipe.evaluate.assess import Assessment, Sampled, sample
from vitpipe.evaluate.calibration import Calibration
from vitpipe.evaluate.pixels.sums import (
    COUNTED,
    COUNTED_BY_CLASS,
    SAMPLED,
    VALUES,
    PixelUnits,
    group_numbers,
    pool_sums,
    statistic_of,
    tile_sums,
    unit_of,
)
from vitpipe.evaluate.predictions import logit_columns
from vitpipe.evaluate.statistics import Estimate, Floats, Sampling, bootstrap, interval, jackknife_error, spread
from vitpipe.evaluate.units import Units
from vitpipe.manifest import Manifest
from vitpipe.records import Level, Task

_NAIVE_DRAWS = 400


@dataclass(frozen=True, slots=True)
class Asked:
    """What holds for the model and every baseline."""

    manifest: Manifest
    recipe: EvaluateRecipe
    calibration: Calibration
    """Reads the logits of a sample."""

    @property
    def names(self) -> tuple[str, ...]:
        """Metrics of the task."""
        return VALUES if self.manifest.task is Task.REGRESSION else (*COUNTED, *SAMPLED)


def pixel_units(tiles: pd.DataFrame, manifest: Manifest) -> dict[Level, PixelUnits]:
    """Pool test tiles to every level."""
    sums, numbered = tile_sums(tiles, manifest), group_numbers(tiles)
    return {level: pool_sums(tiles, sums, level, numbered) for level in Level}


def sample_units(tiles: pd.DataFrame, sampled: pd.DataFrame, asked: Asked, level: Level) -> Units:
    """Make units of sampled pixels, weighted so that they stand for all labelled pixels as the level counts them.

    Args:
        tiles: the judged tiles: tile_id, source_id, group_id.
        sampled: of :func:`vitpipe.evaluate.pixels.tables.read_sample`.
        asked: classes and calibration.
        level: at source and group every source (group) weighs the same.
    """
    place = pd.Index(tiles["tile_id"]).get_indexer(pd.Index(sampled["tile_id"]))
    rows, place = sampled.loc[place >= 0], place[place >= 0]
    groups, n_groups = group_numbers(tiles)
    probabilities = asked.calibration.probabilities(rows[logit_columns(asked.manifest.classes)].to_numpy(np.float64))
    truth = np.zeros(probabilities.shape, dtype=bool)
    truth[np.arange(len(rows)), rows["truth"].to_numpy(np.intp)] = True
    weights: Floats = rows["weight"].to_numpy(np.float64)
    if level is not Level.TILE:
        unit = unit_of(tiles, level)[place]
        weights = weights / np.bincount(unit, weights=weights)[unit]
    return Units(
        keys=tuple(rows["tile_id"].astype(str)),
        truth=truth,
        probabilities=probabilities,
        decided=asked.calibration.decide(probabilities),
        groups=groups[place],
        n_groups=n_groups,
        weights=weights,
    )


def assess_pixels(
    tiles: pd.DataFrame, sampled: pd.DataFrame | None, asked: Asked, level: Level, *, design_effect: bool = True
) -> Assessment:
    """Give every metric of a level an interval by groups.

    Args:
        tiles: the test tiles with their sums.
        sampled: their sampled pixels; None, or values: no metric of probabilities.
        asked: task, classes, recipe.
        level: tile, source or group.
        design_effect: also draw units as if they were independent, to say what the groups cost.
    """
    manifest, recipe = asked.manifest, asked.recipe
    classes = len(manifest.classes)
    units = pool_sums(tiles, tile_sums(tiles, manifest), level, group_numbers(tiles))
    make = statistic_of(manifest.task, classes)
    found = sample(units, make(units), recipe.bootstrap, recipe.seed)
    naive: Mapping[str, Floats] = {}
    if design_effect and units.n > units.present.size:
        # Another seed: the same one would tie these draws to those of the groups.
        naive = bootstrap(make(units.alone()), units.n, _NAIVE_DRAWS, recipe.seed + 1)
    behind = _groups_by_class(tiles, manifest)
    overall = {
        name: _estimate(name, units, found, (naive, None), recipe.confidence)
        for name in (VALUES if manifest.task is Task.REGRESSION else COUNTED)
    }
    if manifest.task is Task.REGRESSION:
        return Assessment(overall, {}, {}, found)
    per_class = {
        label: {
            name.removeprefix("class_"): replace(
                _estimate(name, units, found, (naive, column), recipe.confidence, int(behind[column])),
                n_groups=int(behind[column]),
            )
            for name in COUNTED_BY_CLASS
        }
        for column, label in enumerate(manifest.classes)
    }
    counted = tile_sums(tiles, manifest)[:, 2 + classes : 2 + 2 * classes].sum(axis=0)
    support = {label: int(counted[column]) for column, label in enumerate(manifest.classes)}
    if sampled is not None and len(sampled):
        of_sample = sample_units(tiles, sampled, asked, level)
        more = _of_probabilities(of_sample, recipe)
        overall |= {name: _estimate(name, units, more, ({}, None), recipe.confidence) for name in SAMPLED}
        for column, label in enumerate(manifest.classes):
            per_class[label] |= {
                name.removeprefix("class_"): _estimate(
                    name, units, more, ({}, column), recipe.confidence, int(behind[column])
                )
                for name in metrics.CLASS_RANKS
            }
        found = Sampled(found.estimates | more.estimates, found.draws | more.draws, found.left_out | more.left_out)
    return Assessment(overall, per_class, support, found)


def _of_probabilities(of_sample: Units, recipe: EvaluateRecipe) -> Sampled:
    """Sample the metrics of probabilities; the exact ones of the same names are left out."""
    sums = sample(of_sample, metrics.sum_statistic(of_sample), recipe.bootstrap, recipe.seed)
    draws = metrics.rank_draws(of_sample, recipe.bootstrap)
    ranks = sample(of_sample, metrics.rank_statistic(of_sample), draws, recipe.seed)
    names = {*SAMPLED, *metrics.CLASS_RANKS}

    def kept(first: Mapping[str, Floats], second: Mapping[str, Floats]) -> dict[str, Floats]:
        return {name: values for name, values in (*first.items(), *second.items()) if name in names}

    found = Sampled(
        kept(sums.estimates, ranks.estimates), kept(sums.draws, ranks.draws), kept(sums.left_out, ranks.left_out)
    )
    # ECE is biased upwards, and a draw of groups adds to it: the draws are moved back by what they show of that.
    moved = found.draws["ece"] - (np.nanmean(found.draws["ece"]) - float(found.estimates["ece"]))
    return replace(found, draws=found.draws | {"ece": moved})


def _groups_by_class(tiles: pd.DataFrame, manifest: Manifest) -> np.ndarray:
    """Count the groups in which each class is labelled."""
    if manifest.task is Task.REGRESSION:
        return np.empty(0)
    classes = len(manifest.classes)
    support = tile_sums(tiles, manifest)[:, 2 + classes : 2 + 2 * classes] > 0
    groups, _ = group_numbers(tiles)
    return np.array([np.unique(groups[support[:, column]]).size for column in range(classes)])


def _estimate(
    name: str,
    units: PixelUnits,
    sampled: Sampled,
    naive: tuple[Mapping[str, Floats], int | None],
    confidence: float,
    groups: int | None = None,
) -> Estimate:
    rows, column = naive
    n_groups = int(units.present.size) if groups is None else groups

    def of(values: Mapping[str, Floats]) -> Floats:
        if name not in values:
            return np.empty(0)
        return values[name] if column is None else values[name][:, column]

    value = np.asarray(sampled.estimates[name])
    estimate = float(value if column is None else value[column])
    draws, left_out = of(sampled.draws), of(sampled.left_out)
    found = interval(
        estimate, Sampling(draws, left_out, units.n, n_groups, confidence, metrics.LIMITS.get(name, (0.0, 1.0)))
    )
    error = jackknife_error(left_out) if left_out.size else spread(draws)
    return replace(found, design_effect=_effect(error, of(rows), units))


def _effect(error: float, rows: Floats, units: PixelUnits) -> float | None:
    if units.n == units.present.size:
        return 1.0
    independent = spread(rows)
    if not np.isfinite(error) or not np.isfinite(independent) or independent < 1e-12:
        return None
    return float((error / independent) ** 2)


def names_of(sequence: Sequence[Assessment]) -> list[str]:
    """Name the metrics that every assessment has, in the order of the first."""
    return [name for name in sequence[0].overall if all(name in each.overall for each in sequence)]
