"""The leakage audit: what each pair of splits shares on the ground, and how near they come."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Final

import numpy as np
import shapely
from numpy.typing import NDArray

from vitpipe.errors import LeakageError
from vitpipe.ground.footprints import Footprints
from vitpipe.ground.spacing import nearest_m, overlaps
from vitpipe.records import Json, Split

_ORDER: Final = (Split.TRAIN, Split.VAL, Split.CALIBRATION, Split.TEST)
_ROUNDING: Final = 1e-6


@dataclass(frozen=True, slots=True)
class PairAudit:
    """What two splits have in common."""

    first: Split
    second: Split
    shared_m2: float
    """Ground that lies in tiles of both; counted once however many tiles lie on it."""
    least_m: float
    """Between the edges of the two tiles that are nearest."""

    def to_json(self) -> dict[str, Json]:
        """Give a JSON form."""
        return {
            "splits": [str(self.first), str(self.second)],
            "shared_m2": round(self.shared_m2, 1),
            "least_distance_m": round(self.least_m, 1),
        }


def ground_audit(splits: NDArray[np.object_], ground: Footprints) -> tuple[PairAudit, ...]:
    """Measure every pair of splits that have tiles on known ground.

    Args:
        splits: (N,) names.
        ground: of the same tiles.
    """
    parts = {split: ground.where((splits == str(split)) & ground.known).distinct() for split in _ORDER}
    found = []
    for first, second in itertools.combinations(_ORDER, 2):
        mine, others = parts[first], parts[second]
        if not len(mine.centres) or not len(others.centres):
            continue
        if len(others.centres) < len(mine.centres):
            mine, others = others, mine
        _, _, shared = overlaps(mine.polygons, others.polygons)
        area = float(shapely.area(shapely.union_all(shared))) if len(shared) else 0.0
        found.append(PairAudit(first, second, area, float(nearest_m(mine, others).min())))
    return tuple(found)


def check_audit(pairs: tuple[PairAudit, ...], buffer_m: float) -> None:
    """Fail when two splits share ground, or come nearer than the buffer.

    Raises:
        LeakageError: names the splits and the numbers.
    """
    for pair in pairs:
        if pair.shared_m2 > 0:
            raise LeakageError(
                f"{pair.first} and {pair.second} share {pair.shared_m2:,.0f} m2 of ground, expected none; start over "
                "in another `workspace`, or set a larger `source.block_m`"
            )
        if pair.least_m < buffer_m * (1 - _ROUNDING):
            raise LeakageError(
                f"{pair.first} and {pair.second} come as near as {pair.least_m:,.1f} m, expected {buffer_m:g} m "
                "(`split.buffer_m`); start over in another `workspace`, or set a smaller buffer"
            )
