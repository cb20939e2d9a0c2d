"""The size of the blocks of ground: given, or as long as labels resemble each other; chosen once for a workspace."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from vitpipe.atomic import write_json
from vitpipe.errors import ConfigError, ContractError
from vitpipe.ground.variogram import FittedRange, class_variogram, fit_range
from vitpipe.records import Json

FEWEST_BLOCKS: Final = 20
"""With fewer, shares are coarse and intervals over groups are wide."""
DEFAULT_BLOCK_M: Final = 10_000.0
_STEPS: Final = (1.0, 2.0, 5.0)

Asked = float | Literal["auto"]


@dataclass(frozen=True, slots=True)
class Blocks:
    """How ground is divided."""

    block_m: float
    asked: Asked
    count: int
    """Blocks with labelled tiles."""
    fitted: FittedRange | None
    """Of the labels; None: no range was found."""
    kept: bool = False
    """The size stood in the workspace already."""

    def sentences(self) -> list[str]:
        """Say what was found; warnings begin with ``WARNING``."""
        said = [f"{self.count} block(s) of ground of {self.block_m:g} m"]
        if self.asked == "auto":
            said[0] += f", {self._why()}"
        if self.fitted is None:
            said.append(
                "no range of the labels was found: near tiles are no more alike than others, or they are too few"
            )
        else:
            more = "" if self.fitted.reached else " or more: it still rises at half the extent of the data"
            said.append(
                f"labels resemble each other up to {self.fitted.range_m:,.0f} m ({self.fitted.model} variogram{more})"
            )
            if self.block_m < self.fitted.range_m:
                said.append(
                    f"WARNING: blocks of {self.block_m:g} m are smaller than the range of the labels, "
                    f"{self.fitted.range_m:,.0f} m, so a test tile may resemble its neighbours in training; "
                    + ("there are too few blocks of that size" if self.asked == "auto" else "raise `source.block_m`")
                    + ", or set `split.buffer_m`"
                )
        if self.count < FEWEST_BLOCKS:
            said.append(
                f"WARNING: {self.count} blocks of ground are few for honest splits and intervals; label more ground, "
                "or set a smaller `source.block_m`"
            )
        return said

    def _why(self) -> str:
        if self.kept:
            return "the size that this workspace has"
        if self.block_m < (DEFAULT_BLOCK_M if self.fitted is None else self.fitted.range_m):
            return f"the largest that leaves {min(self.count, FEWEST_BLOCKS)} blocks with labels"
        return "the default" if self.fitted is None else "chosen by the range of the labels"

    def to_json(self) -> dict[str, Json]:
        """Give a JSON form."""
        found: dict[str, Json] = {"block_m": self.block_m, "asked": self.asked, "blocks": self.count, "range_m": None}
        if self.fitted is not None:
            found |= {
                "range_m": round(self.fitted.range_m, 1),
                "model": self.fitted.model,
                "nugget": round(self.fitted.nugget, 4),
                "sill": round(self.fitted.sill, 4),
                "range_reached": self.fitted.reached,
            }
        return found


def choose_blocks(
    asked: Asked, centres: NDArray[np.float64], indicators: NDArray[np.float64], kept_m: float | None, seed: int
) -> Blocks:
    """Look at labels on the ground, and choose a size of blocks where none is given.

    The size is the range of the labels, rounded up to 1, 2 or 5 times a power of ten, so that some more data would not
    change it; without a range it is `DEFAULT_BLOCK_M`. Where fewer than `FEWEST_BLOCKS` blocks of that size have
    labels, it is the largest smaller one that leaves as many, or as many as there can be.

    Args:
        asked: metres, or ``auto``.
        centres: (N, 2) EPSG:6933 metres of labelled tiles on known ground.
        indicators: (N, K) which classes each has.
        kept_m: the size that the workspace has.
        seed: see :func:`class_variogram`.
    """
    variogram = class_variogram(centres, indicators, seed)
    fitted = None if variogram is None else fit_range(variogram)
    if kept_m is not None:
        size = kept_m
    elif asked == "auto":
        size = _size_for(DEFAULT_BLOCK_M if fitted is None else fitted.range_m, centres)
    else:
        size = asked
    return Blocks(size, asked, count_blocks(centres, size), fitted, kept=kept_m is not None)


def count_blocks(centres: NDArray[np.float64], block_m: float) -> int:
    """Count the blocks that have a centre."""
    return len(np.unique(np.floor(centres / block_m), axis=0))


def _size_for(range_m: float, centres: NDArray[np.float64]) -> float:
    decade = math.floor(math.log10(range_m)) + 1
    ladder = [step * 10.0**power for power in range(decade, -1, -1) for step in reversed(_STEPS)]
    wanted = min(size for size in ladder if size >= range_m)
    counts = {size: count_blocks(centres, size) for size in ladder if size <= wanted}
    enough = min(FEWEST_BLOCKS, max(counts.values()))
    return next(size for size, count in counts.items() if count >= enough)


def read_block_m(path: Path) -> float | None:
    """Read the size that a workspace states; None where it states none. See :func:`kept_block_m`.

    Raises:
        ContractError: the file is broken.
    """
    if not path.is_file():
        return None
    try:
        return float(json.loads(path.read_text(encoding="utf-8"))["block_m"])
    except (ValueError, KeyError, TypeError) as error:
        raise ContractError(f"{path} does not say the size of blocks (`block_m`); put it back from a copy") from error


def kept_block_m(path: Path, splits: Path) -> float | None:
    """Give the size that holds for a workspace; None before its first splits.

    Args:
        path: of the size.
        splits: the table of splits, whose first writing is the commit of both.

    Raises:
        ContractError: the file is broken.
    """
    return read_block_m(path) if splits.is_file() else None


def keep_blocks(path: Path, blocks: Blocks) -> None:
    """Write the size, before the first splits: once they are there, it holds for the workspace.

    A run that is killed, or fails, between the two leaves a size without splits, which binds nobody; splits without
    their size would let a second run choose another one, under which the same ground lies in other groups.
    """
    if not blocks.kept:
        write_json(path, blocks.to_json())


def check_kept(path: Path, asked: Asked, kept_m: float | None) -> None:
    """Refuse another size than the workspace has: the same ground would be in another block, and in another split.

    Raises:
        ConfigError: says both sizes.
    """
    if kept_m is not None and asked not in ("auto", kept_m):
        raise ConfigError(
            f"`source.block_m: {asked:g}`, but the splits of this workspace were made with blocks of {kept_m:g} m "
            f"({path.name}), and assigned ground never moves; keep that size, or start over in another `workspace`"
        )
