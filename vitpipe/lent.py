"""Arrays whose memory is filled again once nobody holds them: fresh pages cost as much as a copy."""

from __future__ import annotations

import contextlib
import math
import weakref
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Lender:
    """Lends arrays. What nobody holds any more, nor a view of it, comes back by itself and is lent again.

    What is kept is at most what was held at one time, and goes with the lender.
    """

    def __init__(self) -> None:
        self._free: deque[NDArray[np.uint8]] = deque()

    def lend(self, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> NDArray[Any]:
        """Give an array; what it holds is not defined."""
        size = math.prod(shape) * dtype.itemsize
        memory = self._taken(size)
        owner = _Owner(memory)
        weakref.finalize(owner, self._free.append, memory).atexit = False
        # The array and every view of it keep the owner alive, and nothing else does.
        return np.asarray(owner)[:size].view(dtype).reshape(shape)

    def _taken(self, size: int) -> NDArray[np.uint8]:
        # None is free. Asked first, another thread could take the last one meanwhile.
        with contextlib.suppress(IndexError):
            while True:
                # What came back last: it may lie in the processor's cache still.
                memory = self._free.pop()
                if size <= memory.nbytes <= 2 * size:
                    return memory
                # Of another size: it would be in the way of what is asked for now.
        return np.empty(size, np.uint8)


class _Owner:
    """What numpy takes for the owner of the memory."""

    def __init__(self, memory: NDArray[np.uint8]) -> None:
        self.__array_interface__ = memory.__array_interface__
