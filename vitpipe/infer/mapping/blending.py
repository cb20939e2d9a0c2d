"""Tiles put together in a plane: along a row of tiles, and then rows of tiles with one another.

Both have any number of outputs: of a stack of frames they are those of all its frames.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vitpipe.infer.mapping.cover import Cover, blend_into


class Band:
    """The row of tiles that is being blended: (outputs, rows, width)."""

    def __init__(self, outputs: int, rows: int, across: Cover) -> None:
        self._across = across
        self._values = np.zeros((outputs, rows, across.length), np.float32)
        self._next = 0

    def add(self, number: int, tile: NDArray[np.float32], *, last: bool) -> None:
        """Blend a tile (outputs, size, size) in; tiles come in their order, `last` is the last one of the row."""
        self._skip_to(number)
        rows, width = self._values.shape[1:]
        self._across.add(number, tile[:, :rows, :width], self._values)
        self._next = number + 1
        if last:
            self._skip_to(len(self._across.starts))

    def take(self, rows: int) -> NDArray[np.float32] | None:
        """Give the first rows, None where there was no tile; the next row begins."""
        if not self._next:
            return None
        self._next = 0
        return self._values[:, :rows]

    def _skip_to(self, number: int) -> None:
        """Clear what tiles without a valid pixel would have filled: the row before must not show through."""
        for skipped in range(self._next, number):
            both = len(self._across.shares[skipped])
            self._values[..., self._across.starts[skipped] + both : self._across.stop(skipped)] = 0


class RowBlend:
    """Blends rows of tiles, from top to bottom; what the next row of tiles covers too is carried.

    Args:
        down: the rows of tiles.
        outputs: values of a pixel.
        width: pixels of a row.
    """

    def __init__(self, down: Cover, outputs: int, width: int) -> None:
        self._down = down
        self._shape = outputs, width
        self._carried: NDArray[np.float32] | None = None

    def finish(self, number: int, values: NDArray[np.float32] | None) -> NDArray[np.float32]:
        """Blend a whole row of tiles in, and give what is final after it.

        Args:
            number: of the row of tiles.
            values: (outputs, rows, width), changed in place; None where no pixel of them is valid.

        Returns:
            (outputs, rows from its first to `Cover.final`, width); it holds until `values` is used again.
        """
        count = self._down.final(number) - self._down.starts[number]
        if values is None:
            # No pixel of all its rows is valid, so there is nothing to carry either.
            self._carried = None
            outputs, width = self._shape
            return np.broadcast_to(np.float32(0), (outputs, count, width))
        if self._carried is not None:
            carried = self._carried.shape[1]
            share = self._down.shares[number][:, np.newaxis]
            blend_into(self._carried, values[:, :carried], share)
            values[:, :carried] = self._carried
        self._carried = values[:, count:].copy()
        return values[:, :count]


def tiles_with_pixels(valid: NDArray[np.bool_], across: Cover) -> list[int]:
    """Give the numbers of the tiles in a row that have a valid pixel."""
    counts = np.concatenate([[0], np.cumsum(valid.any(axis=0))])
    starts = np.array(across.starts)
    found = counts[np.minimum(starts + across.size, across.length)] > counts[starts]
    return [int(number) for number in np.flatnonzero(found)]
