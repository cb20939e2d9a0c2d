"""Test-time augmentation by the eight symmetries of a square (the group D4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

PixelModel: TypeAlias = "Callable[[NDArray[np.float32], NDArray[np.bool_]], NDArray[np.float32]]"
"""Tiles (N, C, H, W) in physical units and masks (N, H, W) to values of each pixel (N, K, H, W): probabilities, or one
value. Of volumes there is a depth before the rows."""


def over_symmetries(model: PixelModel) -> PixelModel:
    """Give a model that is the mean of `model` over all turns and flips of a tile, each turned back."""

    def averaged(tiles: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        mean: NDArray[np.float32] | None = None
        for number in range(8):
            seen = _back(model(_turned(tiles, number), _turned(valid, number)), number)
            if mean is None:
                mean = seen.copy()
            else:
                # A running mean: what is equal in all eight stays as it is to the last bit.
                mean += (seen - mean) / np.float32(number + 1)
        assert mean is not None
        return mean

    return averaged


def _turned(values: NDArray[Any], number: int) -> NDArray[Any]:
    turned = np.rot90(values, number % 4, axes=(-2, -1))
    return np.ascontiguousarray(turned[..., ::-1] if number >= 4 else turned)


def _back(values: NDArray[Any], number: int) -> NDArray[Any]:
    flipped = values[..., ::-1] if number >= 4 else values
    return np.rot90(flipped, -(number % 4), axes=(-2, -1))
