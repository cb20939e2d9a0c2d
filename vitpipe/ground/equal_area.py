"""From EPSG:6933, in which areas are true, to planes in which distances are.

EPSG:6933 (EASE-Grid 2.0 global) is Lambert's cylindrical equal-area map of WGS 84 with standard parallels of 30
degrees: at 60 degrees of latitude it stretches east-west by 1.7, so that a distance must not be measured on it.
Mercator's map is conformal: near a place it is the ground times one factor, so what is nearest on it is nearest on the
ground. The formulas are those of Snyder 1987, Map Projections: A Working Manual (USGS 1395), equations 3-12, 3-18, 7-7,
7-9, 10-1 and 10-17.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

_A_M: Final = 6_378_137.0
_E2: Final = 0.006_694_379_990_14
_E: Final = _E2**0.5
_K0: Final = float(np.cos(np.pi / 6) / np.sqrt(1 - _E2 * np.sin(np.pi / 6) ** 2))
_QP: Final = float(1 + (1 - _E2) / _E * np.arctanh(_E))
_MEAN_RADIUS_M: Final = 6_371_008.8

EQUAL_AREA: Final = "EPSG:6933"
WORLD_M: Final = 2 * np.pi * _A_M * _K0
"""Once around the equator on EPSG:6933."""
MERCATOR_WORLD_M: Final = 2 * np.pi * _A_M

Points = NDArray[np.float64]


def latitude(y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give the geodetic latitude in radians of EPSG:6933 northings."""
    beta = np.arcsin(np.clip(2 * _K0 * y / _A_M / _QP, -1, 1))
    second = _E2 / 3 + 31 * _E2**2 / 180 + 517 * _E2**3 / 5040
    fourth = 23 * _E2**2 / 360 + 251 * _E2**3 / 3780
    sixth = 761 * _E2**3 / 45360
    found: NDArray[np.float64] = beta + second * np.sin(2 * beta) + fourth * np.sin(4 * beta) + sixth * np.sin(6 * beta)
    return found


def to_mercator(points: Points) -> Points:
    """Give the world Mercator (EPSG:3395) coordinates of EPSG:6933 points, (N, 2) to (N, 2) metres."""
    sine = np.sin(latitude(points[:, 1]))
    # The map ends at the pole; EPSG:6933 has none of it either.
    sine = np.clip(sine, -1 + 1e-12, 1 - 1e-12)
    northing = _A_M * (np.arctanh(sine) - _E * np.arctanh(_E * sine))
    return np.column_stack([points[:, 0] / _K0, northing])


def from_mercator(points: Points) -> Points:
    """Give the EPSG:6933 coordinates of world Mercator points; the inverse of :func:`to_mercator`."""
    conformal = np.arcsin(np.tanh(points[:, 1] / _A_M))
    sine = np.sin(conformal)
    # Equation 7-9, a contraction by e**2 = 0.0067 a step: seven steps reach the last digit.
    for _ in range(7):
        sine = np.tanh(points[:, 1] / _A_M + _E * np.arctanh(_E * sine))
    q = (1 - _E2) * (sine / (1 - _E2 * sine**2) + np.arctanh(_E * sine) / _E)
    return np.column_stack([points[:, 0] * _K0, _A_M * q / (2 * _K0)])


def in_space(points: Points) -> Points:
    """Give the Earth-centred coordinates of EPSG:6933 points on the ellipsoid, (N, 2) to (N, 3) metres."""
    phi, lam = latitude(points[:, 1]), points[:, 0] / (_A_M * _K0)
    radius = _A_M / np.sqrt(1 - _E2 * np.sin(phi) ** 2)
    return np.column_stack(
        [radius * np.cos(phi) * np.cos(lam), radius * np.cos(phi) * np.sin(lam), radius * (1 - _E2) * np.sin(phi)]
    )


def distance_m(first: Points, second: Points) -> NDArray[np.float64]:
    """Give the distance in metres of pairs of EPSG:6933 points: the arc over their chord, exact where they are near."""
    chord = np.linalg.norm(in_space(first) - in_space(second), axis=1)
    arc: NDArray[np.float64] = 2 * _MEAN_RADIUS_M * np.arcsin(np.clip(chord / (2 * _MEAN_RADIUS_M), 0, 1))
    return arc
