"""What a model says of one source, taken from the tables of a prediction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitpipe.evaluate.units import probability_columns
from vitpipe.labels.base import CLASS_SEPARATOR, table_digest
from vitpipe.records import Source, Window
from vitpipe.tile_places import Box, TilePlaces

if TYPE_CHECKING:
    import pandas as pd

    from vitpipe.infer.contract import ModelContract


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of a tile, or of a source."""

    predicted: tuple[str, ...]
    """One class; several or none for a multi-label model."""
    probabilities: Mapping[str, float]
    abstains: bool | None
    """None for a source, whose tiles may differ."""


@dataclass(frozen=True, slots=True)
class SourceFindings:
    """Of a source and of its tiles."""

    source: Verdict
    tiles: tuple[tuple[Box, Verdict], ...]
    """Where each lies in the source's own pixels, and what the model says."""
    digest: str
    """Of places, classes and probabilities."""


@dataclass(frozen=True, slots=True)
class MaskFindings:
    """Of each pixel of a source."""

    classes: tuple[str, ...]
    """That have a segment; a background has none."""
    labels: NDArray[np.uint8]
    """(frames, height, width) of the source: the number of the segment, from 1 on; 0 where there is none."""
    volumes_ml: Mapping[str, float]
    """Of each of the classes; empty where the source has no regular step between its frames."""
    digest: str
    """Of the labels."""


def findings_of(source: Source, tiles: pd.DataFrame, row: Mapping[Any, Any], contract: ModelContract) -> SourceFindings:
    """Take the findings of one source.

    Args:
        source: what was predicted on.
        tiles: its rows of the table of tiles.
        row: its row of the table of sources.
        contract: the model's; its tiling recipe says where a window lies.
    """
    columns = dict(zip(contract.classes, probability_columns(contract.classes), strict=True))
    places = TilePlaces.of(source.grid, contract.tiles, uri=source.uri)
    found = []
    for item in tiles.to_dict("records"):
        window = Window(*(int(item[name]) for name in Window._fields))
        found.append((places.box(window), _verdict(item, columns, abstains=bool(item["abstain"]))))
    said = tiles[[*Window._fields, "predicted", *columns.values()]].reset_index(drop=True)
    return SourceFindings(_verdict(row, columns, abstains=None), tuple(found), table_digest(said))


def _verdict(item: Mapping[Any, Any], columns: Mapping[str, str], *, abstains: bool | None) -> Verdict:
    predicted = str(item["predicted"])
    names = tuple(predicted.split(CLASS_SEPARATOR)) if predicted else ()
    return Verdict(names, {name: float(item[column]) for name, column in columns.items()}, abstains)
