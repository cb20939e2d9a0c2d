"""Labels that are drawn on the image: which part of a frame belongs to which class.

A tile asks for the label of the pixels that it covers. What is drawn is kept as it is in the label object and made a
mask when a frame's first tile asks; so a thousand segmentations cost no memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

SEPARATOR = "|"
"""Between the classes of a multi-label tile."""
Frame = tuple[str, int]
"""Source and frame."""


class Drawing(Protocol):
    """A part of one frame."""

    def mask(self, height: int, width: int) -> NDArray[np.bool_]:
        """Give the mask (height, width) on the pixels of the source.

        Raises:
            LabelError: the label object cannot be read any more.
        """


@dataclass(frozen=True, slots=True)
class TileRule:
    """How the parts of a tile become its label."""

    min_share: float
    """Least share of the tile's valid pixels that a class must cover."""
    background: str | None
    """Class of a tile that no other covers; None: it has no label. Multi-label: such a tile is of no class."""
    multi_label: bool
    tile_class: str = "majority"
    """``majority`` or ``centre``: the class of what lies at the tile's centre."""
    priority: tuple[str, ...] = ()
    """Where classes overlap in a pixel the one listed first wins; those not listed come after, by their names."""

    def label(self, shares: Mapping[str, float], known: float = 1.0) -> str | None:
        """Give the label of a tile: the class of the largest share, or all over the least; None: unlabelled.

        Args:
            shares: class to share of the valid pixels; of equal shares the class that sorts first.
            known: share of the valid pixels of which the labels say anything, nothing being drawn there too.
        """
        over = sorted(name for name, share in shares.items() if share > 0 and share >= self.min_share)
        background = self.background if known >= self.min_share else None
        if self.multi_label:
            return SEPARATOR.join(over) if over or background is not None else None
        if over:
            return max(over, key=lambda name: shares[name])
        return background

    def central(self, name: str | None, share: float) -> str | None:
        """Give the label of a tile by what lies at its centre; None where that covers less than the least share.

        Args:
            name: class at the centre.
            share: of the valid pixels that are of it.
        """
        return name if share >= self.min_share else None

    def order(self, names: Iterable[str]) -> list[str]:
        """Sort classes so that the one that wins where they overlap comes first."""
        rank = {name: place for place, name in enumerate(self.priority)}
        return sorted(names, key=lambda name: (rank.get(name, len(rank)), name))

    def notes(self, classes: Iterable[str]) -> list[str]:
        """Say which names of the priority no label has: one that is mistyped would change nothing."""
        unknown = sorted({*self.priority} - {*classes})
        return [f"`labels.priority` names what no label is: {', '.join(unknown)}"] if unknown else []


@dataclass(frozen=True)
class RegionLabels:
    """What is drawn on the frames of all sources."""

    rule: TileRule
    drawings: Mapping[Frame, tuple[tuple[str, Drawing], ...]]
    """Class and part; frames without one are absent."""
    sources: frozenset[str]
    """Sources with a label object: what is not drawn on there is background."""

    def masks(self, source_id: str, frame: int, height: int, width: int) -> dict[str, NDArray[np.bool_]]:
        """Give a mask (height, width) a class that is drawn on a frame."""
        masks: dict[str, NDArray[np.bool_]] = {}
        for name, drawing in self.drawings.get((source_id, frame), ()):
            mask = drawing.mask(height, width)
            masks[name] = masks[name] | mask if name in masks else mask
        return masks

    def rows(self, frames_of: Mapping[str, int]) -> pd.DataFrame:
        """Say what is drawn on which frame, as label rows; for people and counts, since tiles ask for themselves.

        Args:
            frames_of: how many frames each source has.
        """
        found: list[tuple[str, int, str]] = []
        for source_id in sorted(self.sources):
            for frame in range(frames_of[source_id]):
                names = sorted({name for name, _ in self.drawings.get((source_id, frame), ())})
                if names:
                    found.append((source_id, frame, SEPARATOR.join(names)))
                elif self.rule.background is not None:
                    found.append((source_id, frame, "" if self.rule.multi_label else self.rule.background))
        table = pd.DataFrame(found, columns=["source_id", "frame", "label"])
        return table.astype({"source_id": "str", "frame": "int64", "label": "str"}).assign(
            group_id=pd.Series("", table.index, dtype="str")
        )


def shares_of(masks: Mapping[str, NDArray[np.bool_]], valid: NDArray[np.bool_]) -> dict[str, float]:
    """Give the share of the valid pixels that each mask covers; nothing where no pixel is valid."""
    count = int(np.count_nonzero(valid))
    if not count:
        return {}
    return {name: int(np.count_nonzero(mask & valid)) / count for name, mask in masks.items()}


def classes_of(drawings: Iterable[tuple[tuple[str, Drawing], ...]], rule: TileRule) -> list[str]:
    """Name the classes: what is drawn anywhere, and the background where it is one."""
    names = {name for parts in drawings for name, _ in parts}
    if rule.background is not None and not rule.multi_label:
        names.add(rule.background)
    return sorted(names)
