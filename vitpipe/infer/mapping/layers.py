"""What a map holds: from probabilities or values to the bands that are kept, and the files they go into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from vitpipe.errors import ContractError

NODATA: Final = 255
"""In bands of uint8: the pixel is not valid, or lies outside."""
MOST_CLASSES: Final = 255
STEPS: Final = 250
"""A probability of 1, or an entropy of log K, is kept as 250: a step is 0.004 exactly."""
_VALUES_AT_ONCE: Final = 1 << 17
"""Few enough to stay in the processor's cache."""

_LEAST: Final = np.float32(1e-30)

Resampling = Literal["mode", "average"]


@dataclass(frozen=True, slots=True)
class MapFile:
    """A file of the map: some of the kept bands."""

    name: str
    """Without its ending."""
    bands: tuple[int, ...]
    """Which of the kept bands."""
    descriptions: tuple[str, ...]
    """A name a band."""
    resampling: Resampling
    """How overviews are made."""
    scale: float | None = None
    """Times the stored number gives the value; None: they are the same."""
    unit: str = ""
    classes: tuple[str, ...] = ()
    """Names of the stored numbers, 0 first; empty: the numbers are quantities."""


class Layers(Protocol):
    """How the model's output is kept."""

    @property
    def outputs(self) -> int:
        """Values that the model gives for a pixel."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the kept bands."""

    @property
    def bands(self) -> int:
        """Kept bands."""

    @property
    def nodata(self) -> float:
        """Kept where a pixel is not valid."""

    @property
    def files(self) -> tuple[MapFile, ...]:
        """The files, in the order in which they are written."""

    def keep(self, values: NDArray[np.float32], valid: NDArray[np.bool_], into: NDArray[Any]) -> None:
        """Turn values (outputs, rows, width) into bands (bands, rows, width), in place."""


class ClassLayers:
    """A class of each pixel: the class, the entropy of the probabilities, the probabilities; all of uint8.

    Args:
        classes: their names, in the order of the model's outputs.

    Raises:
        ContractError: more classes than a byte can name.
    """

    dtype: np.dtype[Any] = np.dtype(np.uint8)
    nodata: float = NODATA

    def __init__(self, classes: Sequence[str]) -> None:
        if not 0 < len(classes) <= MOST_CLASSES:
            raise ContractError(f"a map holds 1 to {MOST_CLASSES} classes, the model has {len(classes)}")
        self.outputs = len(classes)
        self.bands = 2 + len(classes)
        names = tuple(classes)
        self.files: tuple[MapFile, ...] = (
            MapFile("classes", (0,), ("class",), "mode", classes=names),
            MapFile("probabilities", tuple(range(2, self.bands)), names, "average", 1 / STEPS),
            MapFile("entropy", (1,), ("entropy",), "average", 1 / STEPS),
        )

    def keep(self, values: NDArray[np.float32], valid: NDArray[np.bool_], into: NDArray[Any]) -> None:
        """Keep the most probable class (the first of equal ones), ``-sum(p log p) / log K`` and ``p``, in steps.

        Args:
            values: probabilities (outputs, rows, width).
            valid: (rows, width).
            into: uint8 (bands, rows, width).
        """
        rows, width = valid.shape
        step = max(1, _VALUES_AT_ONCE // (width * self.outputs))
        for row in range(0, rows, step):
            part = slice(row, row + step)
            # What is not valid may be anything, NaN too, and is overwritten.
            with np.errstate(invalid="ignore"):
                self._keep(values[:, part], into[:, part])
            if not valid[part].all():
                into[:, part][:, ~valid[part]] = NODATA

    def _keep(self, values: NDArray[np.float32], into: NDArray[Any]) -> None:
        """Keep some rows."""
        best = values.max(axis=0)
        into[0] = self.outputs - 1
        for number in range(self.outputs - 2, -1, -1):
            np.copyto(into[0], number, where=values[number] == best)
        # Where it is zero its term is zero too, not NaN. `clip` is twice as fast as `maximum`.
        terms = np.clip(values, _LEAST, np.float32(np.inf))
        np.log(terms, out=terms)
        terms *= values
        entropy = terms.sum(axis=0)
        entropy /= np.float32(-max(np.log(self.outputs), _LEAST))
        _keep_steps(values, terms, into[2:])
        _keep_steps(entropy, entropy, into[1])


class ValueLayers:
    """A value of each pixel, as float32; NaN where it is not valid.

    Args:
        name: of the quantity.
        unit: of the labels.
    """

    outputs = 1
    bands = 1
    dtype: np.dtype[Any] = np.dtype(np.float32)
    nodata: float = float("nan")

    def __init__(self, name: str, unit: str = "") -> None:
        self.files: tuple[MapFile, ...] = (MapFile("values", (0,), (name,), "average", unit=unit),)

    def keep(self, values: NDArray[np.float32], valid: NDArray[np.bool_], into: NDArray[Any]) -> None:
        """Keep values (1, rows, width)."""
        np.copyto(into, values)
        into[:, ~valid] = np.nan


def _keep_steps(share: NDArray[np.float32], scratch: NDArray[np.float32], into: NDArray[Any]) -> None:
    """Round shares of 0 to 1 to steps; what lies outside by rounding is put to the end. `scratch` is overwritten."""
    np.multiply(share, np.float32(STEPS), out=scratch)
    scratch += np.float32(0.5)
    np.copyto(into, np.clip(scratch, 0, STEPS, out=scratch), casting="unsafe")
