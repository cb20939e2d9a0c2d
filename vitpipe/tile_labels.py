"""The labels of tiles where labels lie on the image: each tile asks what covers its pixels.

What was found is kept beside the label tables and used again for the same labels and tiles: a new label object costs
its own tiles and no pixel is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import pandas as pd

from vitpipe.atomic import write_parquet
from vitpipe.config import TileRecipe
from vitpipe.digest import digest
from vitpipe.labels import LabelSet
from vitpipe.labels.regions import TileRule
from vitpipe.records import Source, Window
from vitpipe.store import TileStore
from vitpipe.tile_asking import Asker, drawn_on, open_labels
from vitpipe.workspace import Workspace

_COLUMNS: Final = ("tile_id", "label", "drawn")


def label_tiles(
    tiles: pd.DataFrame,
    sources: Sequence[Source],
    labels: LabelSet,
    recipe: TileRecipe,
    store: tuple[Workspace, str],
) -> pd.Series:
    """Give the label of each tile, None where it has none.

    Args:
        tiles: rows of the tile store, with ``shard_id`` and ``shard_row``.
        sources: the catalog.
        labels: their `regions` are asked.
        recipe: how the tiles were cut.
        store: the workspace, and the digest of its tiles.
    """
    regions = labels.regions
    assert regions is not None
    workspace, tiles_digest = store
    path = workspace.labels(digest([labels.digest, tiles_digest]))
    on_source = drawn_on(labels)
    said = tiles["source_id"].map(on_source)
    drawn = tiles.assign(drawn=said)[said.notna()]
    known = pd.read_parquet(path) if path.exists() else pd.DataFrame(columns=list(_COLUMNS))
    if "drawn" not in known:
        known["drawn"] = ""
    wanted = pd.MultiIndex.from_frame(drawn[["tile_id", "drawn"]])
    fresh = drawn[~wanted.isin(pd.MultiIndex.from_frame(known[["tile_id", "drawn"]]))]
    if len(fresh):
        found = _ask(fresh, sources, labels, recipe, TileStore(workspace.tiles(tiles_digest)))
        known = pd.concat([known[~known["tile_id"].isin(found["tile_id"])], found], ignore_index=True)
        known = known.sort_values("tile_id", ignore_index=True)
        write_parquet(path, known)
    by_tile = pd.Series(known["label"].to_numpy(), index=pd.Index(known["tile_id"]), dtype="object")
    label = tiles["tile_id"].map(by_tile.where(by_tile.notna(), None)).astype("object")
    # What was kept may be of a source on which these labels are no longer drawn.
    return label.where(label.notna() & said.notna(), None)


def _ask(
    tiles: pd.DataFrame, sources: Sequence[Source], labels: LabelSet, recipe: TileRecipe, store: TileStore
) -> pd.DataFrame:
    assert labels.regions is not None
    known = {source.source_id: source for source in sources}
    parts: list[pd.DataFrame] = []
    for name, tiles_of in tiles.groupby("source_id", sort=True):
        part = tiles_of.sort_values(["frame", "row", "col"], kind="stable")
        with open_labels(known[str(name)], labels, recipe) as asker:
            found = _label_source(part, asker, labels.regions.rule, store)
        parts.append(
            pd.DataFrame({"tile_id": part["tile_id"].to_numpy(), "label": found, "drawn": part["drawn"].to_numpy()})
        )
    return pd.concat(parts, ignore_index=True)


def _label_source(part: pd.DataFrame, asker: Asker, rule: TileRule, store: TileStore) -> list[str | None]:
    labels: list[str | None] = []
    for row in part.to_dict("records"):
        window = Window(*(int(row[name]) for name in Window._fields))
        depth, height, width = asker.inside(window)
        # A tile of one frame has no axis for it.
        valid = store.mask(str(row["shard_id"]), int(row["shard_row"]))
        valid = valid.reshape((-1, *valid.shape[-2:]))[:depth, :height, :width]
        shares = asker.shares(window, valid)
        if rule.tile_class == "centre":
            labels.append(rule.central(shares.central, shares.by_class.get(str(shares.central), 0.0)))
        else:
            labels.append(rule.label(shares.by_class, shares.known))
    return labels
