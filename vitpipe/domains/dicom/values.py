"""From stored values to physical ones, frame by frame: padding, modality LUT or rescale, inversion, palette."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut

from vitpipe.domains.dicom.files import PARSE_ERRORS
from vitpipe.domains.dicom.pixelformat import PixelFormat
from vitpipe.domains.dicom.quiet import quiet
from vitpipe.errors import UnreadableSource

_EXACT_F4: Final = 1 << 24
"""Whole numbers up to here are exact in float32."""
_LARGEST_F4: Final = float(np.finfo(np.float32).max)
_BLOCK: Final = 1 << 15
"""Pixels that are computed at once in float64: what fits a core's cache."""


class Transform:
    """The transformation of one file's frames.

    Args:
        dataset: the header; it is asked for lookup tables alone.
        described: its pixel format.
        path: the file, for messages.
    """

    def __init__(self, dataset: Dataset, described: PixelFormat, path: str) -> None:
        self._dataset = dataset
        self._format = described
        self._path = path

    def apply(self, stored: NDArray[np.generic], frame: int, out: NDArray[np.generic]) -> NDArray[np.bool_] | None:
        """Transform one frame.

        Args:
            stored: (rows, cols) or (rows, cols, 3).
            frame: its place in the file, for slope and intercept.
            out: (channels, rows, cols), of a dtype that holds every value; zero is written where a pixel is not valid.

        Returns:
            The valid mask (rows, cols); None where every pixel is valid.

        Raises:
            UnreadableSource: ``UNDECODABLE``: a lookup table is broken.
        """
        if stored.ndim == 3:
            out[...] = np.moveaxis(stored, -1, 0)
            return None
        valid = self._valid(stored)
        try:
            self._physical(stored, frame, out)
        except PARSE_ERRORS as error:
            raise UnreadableSource(
                "UNDECODABLE", f"its lookup table cannot be applied ({type(error).__name__})", self._path
            ) from None
        if self._may_be_infinite(frame):
            finite = np.isfinite(out).all(axis=0)
            if not finite.all():
                valid = finite if valid is None else valid & finite
        if valid is not None:
            out[:, ~valid] = 0
        return valid

    def _physical(self, stored: NDArray[np.generic], frame: int, out: NDArray[np.generic]) -> None:
        if self._format.palette_bits is not None:
            with quiet():
                out[...] = np.moveaxis(apply_color_lut(stored, self._dataset)[..., :3], -1, 0)
            return
        if self._format.lut_bits is not None:
            with quiet():
                looked_up = apply_modality_lut(stored, self._dataset)
            if self._format.inverted:
                looked_up = (1 << self._format.lut_bits) - 1 - looked_up.astype(np.int64)
            out[0] = looked_up
            return
        if self._format.inverted:
            # By the range that the bits allow: by its own maximum every frame would be shifted by another amount.
            lowest, highest = self._format.stored_range
            stored = (lowest + highest - stored.astype(np.int64)).astype(stored.dtype)
        rescale(stored, *self._format.rescale(frame), out[0], self._format.stored_range)

    def _may_be_infinite(self, frame: int) -> bool:
        if self._format.float_bits:
            return True
        slope, intercept = self._format.rescale(frame)
        ends = self._format.stored_range
        return max(abs(slope * end + intercept) for end in ends) > _LARGEST_F4

    def _valid(self, stored: NDArray[np.generic]) -> NDArray[np.bool_] | None:
        padding = self._format.padding
        if padding is None:
            return None
        lowest, highest = padding
        valid: NDArray[np.bool_]
        if lowest == highest:
            valid = np.not_equal(stored, lowest if self._format.float_bits else int(lowest))
        else:
            valid = np.less(stored, lowest) | np.greater(stored, highest)
        return None if valid.all() else valid


def rescale(
    stored: NDArray[np.generic], slope: float, intercept: float, out: NDArray[np.generic], ends: tuple[int, int]
) -> None:
    """Write slope * stored + intercept, as computed in float64 and rounded once, or in whole numbers.

    Args:
        stored: (rows, cols).
        slope: of the rescale.
        intercept: of the rescale.
        out: (rows, cols), contiguous, of a dtype that holds every value.
        ends: lowest and highest value that `stored` can hold.
    """
    whole = slope.is_integer() and intercept.is_integer() and stored.dtype.kind in "iu"
    if out.dtype.kind in "iu":
        _rescale_whole(stored, int(slope), int(intercept), out)
    elif whole and abs(slope) * max(map(abs, ends)) + abs(intercept) <= _EXACT_F4 and out.dtype == np.float32:
        # Nothing is rounded on the way, so single precision gives the same as double.
        np.copyto(out, stored, casting="same_kind")
        if slope != 1.0:
            np.multiply(out, np.float32(slope), out=out)
        if intercept != 0.0:
            np.add(out, np.float32(intercept), out=out)
    else:
        flat, target = stored.reshape(-1), out.reshape(-1)
        for start in range(0, flat.size, _BLOCK):
            block = np.multiply(flat[start : start + _BLOCK], slope, dtype=np.float64, casting="unsafe")
            block += intercept
            # A value that float32 does not hold is infinite, and then not valid.
            with np.errstate(over="ignore"):
                target[start : start + _BLOCK] = block


def _rescale_whole(stored: NDArray[np.generic], slope: int, intercept: int, out: NDArray[np.generic]) -> None:
    if slope != 1:
        out[...] = stored.astype(np.int64) * slope + intercept
    elif intercept == 0:
        np.copyto(out, stored, casting="unsafe")
    else:
        # Wraps and wraps back: the result lies in the dtype's range, for which it was chosen.
        offset = np.asarray(intercept).astype(out.dtype)
        np.add(stored, offset, out=out, dtype=out.dtype, casting="unsafe")
