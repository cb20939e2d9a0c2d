"""How far labels resemble each other: the empirical variogram of classes, and the range of a model fitted to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vitpipe.ground.equal_area import in_space

_BINS: Final = 24
_LEAST_PAIRS: Final = 60
_LEAST_BINS: Final = 5
_MOST_PAIRS: Final = 2.5e7
_MOST_TILES: Final = 20_000
_CHUNK: Final = 512
_RANGES: Final = 60
_LEAST_SILL: Final = 0.05
_LEAST_EXPLAINED: Final = 0.3
_AT_THE_END: Final = 0.9

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Variogram:
    """Half the mean squared difference of pairs, by their distance."""

    lags_m: Values
    """(B,) mean distance of the pairs of each bin."""
    gamma: Values
    """(B,) of classes: the share of pairs that differ."""
    pairs: Values
    """(B,) how many."""
    longest_m: float
    """Half the extent of the places: what lies further apart says more of the edges than of the ground."""


@dataclass(frozen=True, slots=True)
class FittedRange:
    """A model fitted to a variogram."""

    range_m: float
    """Beyond it places resemble each other no more than any two: spherical, where the sill is reached; exponential,
    where 95 % of it are."""
    model: str
    nugget: float
    sill: float
    """Nugget and structure together."""
    reached: bool
    """False: the variogram still rises at half the extent of the data; the true range is longer."""


def class_variogram(centres: Values, indicators: Values, seed: int) -> Variogram | None:
    """Measure the indicator variogram, summed over the classes (Goovaerts 1997, section 2.3).

    Args:
        centres: (N, 2) EPSG:6933 metres, all finite.
        indicators: (N, K) 0 or 1; shares of classes are as good.
        seed: draws places where there are too many pairs.

    Returns:
        None where there are too few pairs for a curve, or all labels are alike.
    """
    # SciPy takes half a second to import, and a training process, which imports this room, never comes here.
    from scipy.spatial import cKDTree
    from scipy.spatial.distance import cdist

    rng = np.random.default_rng(seed)
    if len(centres) > _MOST_TILES:
        chosen = np.sort(rng.choice(len(centres), _MOST_TILES, replace=False))
        centres, indicators = centres[chosen], indicators[chosen]
    if len(centres) < _LEAST_PAIRS or (indicators == indicators[0]).all():
        return None
    places = in_space(centres)
    longest = float(np.linalg.norm(np.ptp(places, axis=0))) / 2
    nearest = np.asarray(cKDTree(places).query(places, k=2)[0])[:, 1]
    shortest = float(np.quantile(nearest[nearest > 0], 0.05)) if (nearest > 0).any() else 0.0
    if not 0 < shortest < longest / 2:
        return None
    edges = np.geomspace(shortest * 0.99, longest, _BINS + 1)
    seeds = np.arange(len(places))
    if (most := int(_MOST_PAIRS / len(places))) < len(places):
        seeds = np.sort(rng.choice(len(places), most, replace=False))
    count, distance, difference = np.zeros((3, _BINS + 2))
    square = np.square(indicators).sum(axis=1)
    for start in range(0, len(seeds), _CHUNK):
        part = seeds[start : start + _CHUNK]
        apart = cdist(places[part], places)
        half = (square[part, None] + square[None] - 2 * indicators[part] @ indicators.T) / 2
        bins = np.searchsorted(edges, apart.ravel(), side="right")
        count += np.bincount(bins, minlength=_BINS + 2)
        distance += np.bincount(bins, apart.ravel(), minlength=_BINS + 2)
        difference += np.bincount(bins, half.ravel(), minlength=_BINS + 2)
    good = np.flatnonzero(count[1:-1] >= _LEAST_PAIRS) + 1
    if len(good) < _LEAST_BINS:
        return None
    return Variogram(distance[good] / count[good], difference[good] / count[good], count[good], longest)


def fit_range(variogram: Variogram) -> FittedRange | None:
    """Fit a spherical and an exponential model with a nugget, and take the better one.

    Weighted least squares with the weights N(h) / h**2 (Pebesma 2004, gstat). For a given range the rest is linear and
    not negative; so the range alone is searched, and no start value matters.

    Returns:
        None where distance explains nothing: labels are no more alike near by than far away.
    """
    from scipy.optimize import minimize_scalar

    best: tuple[float, float, str, Values] | None = None
    weight = np.sqrt(variogram.pairs) / variogram.lags_m
    weight /= weight.max()
    for model in ("spherical", "exponential"):

        def misfit(log_range: float, model: str = model) -> float:
            return _fit_at(variogram, weight, float(np.exp(log_range)), model)[0]

        grid = np.linspace(np.log(variogram.lags_m[0]), np.log(variogram.longest_m), _RANGES)
        near = int(np.argmin([misfit(value) for value in grid]))
        bounds = grid[max(near - 1, 0)], grid[min(near + 1, _RANGES - 1)]
        found = minimize_scalar(misfit, bounds=bounds, method="bounded")
        error, parts = _fit_at(variogram, weight, float(np.exp(found.x)), model)
        if best is None or error < best[0]:
            best = (error, float(np.exp(found.x)), model, parts)
    assert best is not None
    error, range_m, model, (nugget, structure) = best
    sill = float(nugget + structure)
    flat = np.average(variogram.gamma, weights=weight**2)
    scatter = float(np.linalg.norm(weight * (variogram.gamma - flat)))
    if sill <= 0 or structure < _LEAST_SILL * sill or error > (1 - _LEAST_EXPLAINED) * scatter:
        return None
    reached = range_m < _AT_THE_END * variogram.longest_m
    return FittedRange(range_m, model, float(nugget), sill, reached)


def _fit_at(variogram: Variogram, weight: Values, range_m: float, model: str) -> tuple[float, Values]:
    """Give the misfit at a range, and nugget and structure."""
    from scipy.optimize import nnls

    share = variogram.lags_m / range_m
    spherical = np.where(share < 1, 1.5 * share - 0.5 * share**3, 1.0)
    shape = spherical if model == "spherical" else 1 - np.exp(-3 * share)
    parts, error = nnls(np.column_stack([weight, weight * shape]), weight * variogram.gamma)
    return float(error), parts
