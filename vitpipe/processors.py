"""How many threads read a source."""

from __future__ import annotations

import os
from typing import Final

_MOST_THREADS: Final = 4


def thread_count(wanted: int | None) -> int:
    """Give how many threads read a source; None: as many as this process has processors, at most four."""
    if wanted is not None:
        return wanted
    # Where a scheduler gave this process some processors only, the others are not its own.
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(own, _MOST_THREADS)
