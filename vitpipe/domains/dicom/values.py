"""From stored values to physical ones, frame by frame: padding, modality LUT or rescale, inversion, palette."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut

from vitpipe.domains.dicom.fields import value_of
from vitpipe.domains.dicom.files import PARSE_ERRORS
from vitpipe.domains.dicom.pixelformat import PixelFormat
from vitpipe.errors import UnreadableSource


class Transform:
    """The transformation of one file's frames.

    Args:
        dataset: the header.
        described: its pixel format.
        path: the file, for messages.
        dtype: of the result, chosen for the whole source.
    """

    def __init__(self, dataset: Dataset, described: PixelFormat, path: str, dtype: np.dtype[np.generic]) -> None:
        self._dataset = dataset
        self._format = described
        self._path = path
        self._dtype = dtype
        self._padding = _padding(dataset, described)

    def apply(self, stored: NDArray[np.generic], frame: int) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
        """Transform one frame.

        Args:
            stored: (rows, cols) or (rows, cols, 3).
            frame: its place in the file, for slope and intercept.

        Returns:
            (channels, rows, cols) of the source's dtype, zero where not valid, and the valid mask (rows, cols).

        Raises:
            UnreadableSource: ``UNDECODABLE``: a lookup table is broken.
        """
        if stored.ndim == 3:
            return np.moveaxis(stored, -1, 0).astype(self._dtype), np.ones(stored.shape[:2], np.bool_)
        valid = self._valid(stored)
        try:
            values = self._physical(stored, frame)
        except PARSE_ERRORS as error:
            raise UnreadableSource(
                "UNDECODABLE", f"its lookup table cannot be applied ({type(error).__name__})", self._path
            ) from None
        if values.dtype.kind == "f":
            valid &= np.isfinite(values).all(axis=0)
        if not valid.all():
            values = np.where(valid, values, values.dtype.type(0))
        return values, valid

    def _physical(self, stored: NDArray[np.generic], frame: int) -> NDArray[np.generic]:
        if self._format.palette_bits is not None:
            coloured = apply_color_lut(stored, self._dataset)[..., :3]
            return np.moveaxis(coloured, -1, 0).astype(self._dtype)
        if self._format.lut_bits is not None:
            looked_up = apply_modality_lut(stored, self._dataset)
            if self._format.inverted:
                looked_up = (1 << self._format.lut_bits) - 1 - looked_up.astype(np.int64)
            return looked_up.astype(self._dtype)[None]
        if self._format.inverted:
            # By the range that the bits allow: by its own maximum every frame would be shifted by another amount.
            lowest, highest = self._format.stored_range
            stored = (lowest + highest - stored.astype(np.int64)).astype(stored.dtype)
        return self._rescaled(stored, *self._format.rescale(frame))[None]

    def _rescaled(self, stored: NDArray[np.generic], slope: float, intercept: float) -> NDArray[np.generic]:
        if self._dtype.kind == "f":
            return (stored.astype(np.float64) * slope + intercept).astype(self._dtype)
        if slope == 1.0:
            # Wraps and wraps back: the result lies in the dtype's range, for which it was chosen.
            return np.add(stored.astype(self._dtype), self._dtype.type(int(intercept)), dtype=self._dtype)
        return (stored.astype(np.int64) * int(slope) + int(intercept)).astype(self._dtype)

    def _valid(self, stored: NDArray[np.generic]) -> NDArray[np.bool_]:
        if self._padding is None:
            return np.ones(stored.shape, np.bool_)
        lowest, highest = self._padding
        valid: NDArray[np.bool_] = np.less(stored, lowest) | np.greater(stored, highest)
        return valid


def _padding(dataset: Dataset, described: PixelFormat) -> tuple[float, float] | None:
    """Give the range of stored values that stand for no pixel (C.7.5.1.1.2), or None."""
    first = _stored_number(dataset, "PixelPaddingValue", described)
    if first is None:
        return None
    last = _stored_number(dataset, "PixelPaddingRangeLimit", described)
    return (first, first) if last is None else (min(first, last), max(first, last))


def _stored_number(dataset: Dataset, keyword: str, described: PixelFormat) -> float | None:
    """Read a value whose VR follows PixelRepresentation: writers often give the other sign, then the bits are meant."""
    prefix = {32: "Float", 64: "DoubleFloat"}.get(described.float_bits, "")
    value = value_of(dataset, prefix + keyword)
    if isinstance(value, bytes):
        value = int.from_bytes(value, "little" if dataset.original_encoding[1] else "big") if value else None
    if not isinstance(value, int | float):
        return None
    if described.float_bits:
        return float(value)
    span = 1 << max(16, described.bits_allocated)
    wrapped = int(value) % span
    return float(wrapped - span if described.signed and wrapped >= span // 2 else wrapped)
