"""From labelled tiles to tiles with a split: groups, the splits they fall into, what must stay out, and the audit.

Splits go by group and never change; see `vitpipe.splits`. A group is a patient or a block of ground. A tile belongs to
the block of its centre, so tiles at the border of two blocks may cover the same ground: those that share ground with
another split, or come nearer to it than `split.buffer_m`, are left out of the manifest. Their group keeps its split, so
they are back as soon as nothing stands in their way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vitpipe.config import GeotiffSource, PipelineConfig
from vitpipe.domains.geotiff.ground import block_names
from vitpipe.errors import SplitError
from vitpipe.ground import Footprints, distance_to_train, ground_audit, left_out, tile_footprints
from vitpipe.ground.audit import check_audit
from vitpipe.ground.blocks import Blocks, check_kept, choose_blocks, keep_blocks, kept_block_m
from vitpipe.labels.base import CLASS_SEPARATOR
from vitpipe.records import Json, Source, Split
from vitpipe.splits import check_leaks, content_order, update_splits
from vitpipe.splits.rules import allowed_of_groups, fits, rule_of
from vitpipe.workspace import Workspace

GROUND_COLUMNS: Final = ("x", "y", "distance_to_train_m")
"""Of tiles on known ground: the centre in EPSG:6933 metres, and of tiles outside train the distance from edge to edge
to the nearest tile of train."""


@dataclass(frozen=True, slots=True)
class Partition:
    """Tiles with their split."""

    table: pd.DataFrame
    """The rows that were given, less those that are left out, with `split` and the columns of `extra`."""
    extra: tuple[str, ...]
    """`GROUND_COLUMNS` where tiles have a map."""
    notes: tuple[str, ...]
    audit: Mapping[str, Json]
    """`torn_groups` and `equal_pixels` (0: else the run had failed); with ground also `buffer_m`, `left_out` (counts),
    `without_ground` (tiles), `same_ground` (whether `pairs` may share it, at other dates), `pairs`, see
    `vitpipe.ground.audit.PairAudit`, and `blocks`, see `vitpipe.ground.blocks.Blocks`."""


@dataclass(frozen=True, slots=True)
class Grounded:
    """Tiles on the ground."""

    ground: Footprints | None
    """None: no source has a map."""
    blocks: Blocks | None

    def groups(self, given: pd.Series) -> pd.Series:
        """Give the group of each tile: what the reader gave, and where the size of blocks was chosen that of its block.

        Args:
            given: of the reader, in the order of the table.
        """
        if self.ground is None or self.blocks is None or self.blocks.asked != "auto":
            return given
        named = pd.Series(
            block_names(self.ground.centres.T, self.blocks.block_m, otherwise=""), index=given.index, dtype="str"
        )
        return given.where(named == "", named)


def place_on_ground(
    config: PipelineConfig,
    workspace: Workspace,
    table: pd.DataFrame,
    sources: Sequence[Source],
    *,
    multi_label: bool,
    values: NDArray[np.float64] | None = None,
) -> Grounded:
    """Find the ground of labelled tiles, and the size of its blocks.

    Args:
        config: the pipeline.
        workspace: may have a size already.
        table: a row a labelled tile: `source_id, label` and its window.
        sources: the catalog.
        multi_label: whether a label holds several classes.
        values: (N, K) what resembles each other, where labels are per pixel: shares of classes, or a mean value; None:
            the labels.

    Raises:
        ConfigError: the workspace has blocks of another size.
    """
    ground = tile_footprints(table, sources, config.tiles)
    if ground is None or not ground.known.any() or not isinstance(config.source, GeotiffSource):
        return Grounded(ground, None)
    kept_m = kept_block_m(workspace.ground_block, workspace.splits)
    asked = config.source.block_m
    check_kept(workspace.ground_block, asked, kept_m)
    order = np.argsort(table["tile_id"].to_numpy(dtype=object))
    order = order[ground.known[order]]
    if values is None:
        values = class_indicators(table["label"], multi_label=multi_label)
    indicators = values[order]
    return Grounded(ground, choose_blocks(asked, ground.centres[order], indicators, kept_m, config.split.seed))


def class_indicators(labels: pd.Series, *, multi_label: bool) -> NDArray[np.float64]:
    """Give (N, K): which classes each label has."""
    if multi_label:
        return labels.str.get_dummies(CLASS_SEPARATOR).to_numpy(dtype=np.float64)
    number, names = pd.factorize(labels, sort=True)
    return np.eye(len(names))[number]


def partition(
    config: PipelineConfig,
    workspace: Workspace,
    table: pd.DataFrame,
    sources: Sequence[Source],
    *,
    grounded: Grounded,
    multi_label: bool,
) -> Partition:
    """Give each tile the split of its group; groups that are new get one, for good.

    Args:
        config: the pipeline.
        workspace: holds the table of splits.
        table: a row a labelled tile: `tile_id, source_id, group_id, label, pixel_digest`, its window, and attributes.
        sources: the catalog.
        grounded: of the same rows, see :func:`place_on_ground`.
        multi_label: whether a label holds several classes.

    Raises:
        SplitError: too few groups, or no tile is left to learn from.
        LeakageError: a group, the same pixels, or the same ground, stand in two splits.
    """
    if grounded.blocks is not None:
        keep_blocks(workspace.ground_block, grounded.blocks)
    kept, table, spheres, ruled_notes = _with_splits(config, workspace, table, sources, multi_label=multi_label)
    audit: dict[str, Json] = {"torn_groups": 0, "equal_pixels": 0}
    if grounded.ground is None or not grounded.ground.where(kept).known.any():
        check_leaks(table)
        return Partition(table, (), ruled_notes, audit)
    ground = grounded.ground.where(kept)
    gone, notes = _too_near(config, table, ground, spheres)
    table, ground, spheres = table[~gone].reset_index(drop=True), ground.where(~gone), spheres[~gone]
    splits = table["split"].to_numpy(dtype=object)
    if not (splits == str(Split.TRAIN)).any():
        raise SplitError(
            "no tile is left in the train split: all share ground with another split or are nearer than "
            f"{config.split.buffer_m:g} m to one; set a smaller `split.buffer_m`, or start over in another "
            "`workspace` with a larger `source.block_m`"
        )
    check_leaks(table)
    pairs = ground_audit(splits, ground)
    for sphere in sorted(set(spheres)) if config.split.same_ground else ():
        check_audit(ground_audit(splits[spheres == sphere], ground.where(spheres == sphere)), config.split.buffer_m)
    if not config.split.same_ground:
        check_audit(pairs, config.split.buffer_m)
    table["x"], table["y"] = ground.centres.T
    table["distance_to_train_m"] = distance_to_train(splits, ground)
    without = int((~ground.known).sum())
    audit |= {"buffer_m": config.split.buffer_m, "without_ground": without, "pairs": [pair.to_json() for pair in pairs]}
    audit["left_out"] = {name: count for name, (count, _) in notes.items()}
    audit["same_ground"] = config.split.same_ground
    said = [*ruled_notes]
    if grounded.blocks is not None:
        audit["blocks"] = grounded.blocks.to_json()
        said += grounded.blocks.sentences()
    said += [text for _, text in notes.values() if text]
    if without:
        said.append(f"{without} tile(s) lie on no known ground: only their pixels and groups are compared")
    return Partition(table, GROUND_COLUMNS, tuple(said), audit)


def _with_splits(
    config: PipelineConfig, workspace: Workspace, table: pd.DataFrame, sources: Sequence[Source], *, multi_label: bool
) -> tuple[NDArray[np.intp], pd.DataFrame, NDArray[np.object_], tuple[str, ...]]:
    """Add `split`; what a rule cannot place is left out.

    Returns:
        The places of the rows that are kept, these rows, each one's sphere (see `Ruled`), and sentences.
    """
    table = table.reset_index(drop=True)
    places = np.arange(len(table))
    acquired = {source.source_id: source.acquired_at for source in sources}
    ruled = rule_of(config.split, table, [acquired.get(name) for name in table["source_id"]])
    spheres = np.full(len(table), "", dtype=object)
    if ruled is not None:
        table["group_id"] = pd.Series(ruled.groups, dtype="str")
        placed = ruled.allowed != ""
        ruled, table, places = ruled.where(placed), table[placed].reset_index(drop=True), places[placed]
        spheres = ruled.spheres
    groups = _groups(table, config.split.seed, multi_label=multi_label)
    if ruled is not None:
        groups["allowed"] = allowed_of_groups(ruled, groups["group_id"]).to_numpy()
    assigned = update_splits(workspace, groups, config.split)
    place = pd.Index(assigned["group_id"]).get_indexer(pd.Index(table["group_id"]))
    table["split"] = pd.Series(assigned["split"].to_numpy()[place], index=table.index, dtype="str")
    if ruled is None:
        return places, table, spheres, ()
    kept = fits(ruled, table["split"].to_numpy(dtype=object))
    notes = list(ruled.notes)
    if not kept.all():
        notes.append(
            f"left out {int((~kept).sum())} tile(s) whose group is in a split that `split.by` does not leave to them"
        )
    table = table[kept].reset_index(drop=True)
    for split in (Split.TRAIN, Split.TEST):
        if str(split) not in set(table["split"]):
            raise SplitError(
                f"`split.by` leaves no tile for the {split} split: the groups assigned to it hold none of its dates or "
                "values; set other dates or values, set `split.same_ground` where it may be, or start over in another "
                "`workspace`"
            )
    return places[kept], table, spheres[kept], tuple(notes)


def _too_near(
    config: PipelineConfig, table: pd.DataFrame, ground: Footprints, spheres: NDArray[np.object_]
) -> tuple[NDArray[np.bool_], dict[str, tuple[int, str]]]:
    """Find what shares ground with another split or is too near to one; gives counts and sentences too."""
    splits = table["split"].to_numpy(dtype=object)
    overlapping, near = np.zeros(len(splits), bool), np.zeros(len(splits), bool)
    for sphere in sorted(set(spheres)):
        part = np.flatnonzero(spheres == sphere)
        overlapping[part], near[part] = left_out(splits[part], ground.where(part), config.split.buffer_m)
    notes = {
        "shared_ground": (
            int(overlapping.sum()),
            f"left out {_by_split(splits[overlapping])} that share ground with a tile of another split (tiles at the "
            "border of a block, or of scenes that overlap there)",
        ),
        "buffer": (
            int(near.sum()),
            f"left out {_by_split(splits[near])} nearer than {config.split.buffer_m:g} m to a tile of another split "
            "(`split.buffer_m`)",
        ),
    }
    return overlapping | near, {name: (count, text if count else "") for name, (count, text) in notes.items()}


def _by_split(splits: NDArray[np.object_]) -> str:
    counts = {split: int((splits == str(split)).sum()) for split in Split}
    return ", ".join(f"{count} {split} tile(s)" for split, count in counts.items() if count)


# --------------------------------------------------------------------------------------------------------------- groups


def _groups(table: pd.DataFrame, seed: int, *, multi_label: bool) -> pd.DataFrame:
    """Give a row a group: `group_id`, `stratum`, `order`.

    The stratum is the label of most of its tiles (multi-label: the rarest class it has). The order comes from its
    smallest source; for groups that share it (blocks of one scene), from their smallest tile.
    """
    groups = table.groupby("group_id", sort=True).agg(source_id=("source_id", "min"), tile_id=("tile_id", "min"))
    shared = groups["source_id"].duplicated(keep=False)
    groups["order"] = content_order(groups["source_id"].where(~shared, groups["tile_id"]).tolist(), seed=seed)
    groups["stratum"] = (_rarest_class if multi_label else _commonest_label)(table).reindex(groups.index)
    return groups.reset_index()[["group_id", "stratum", "order"]]


def _commonest_label(table: pd.DataFrame) -> pd.Series:
    counts = table.groupby(["group_id", "label"], sort=True).size().rename("tiles").reset_index()
    first = counts.sort_values(["group_id", "tiles", "label"], ascending=[True, False, True]).drop_duplicates(
        "group_id"
    )
    return first.set_index("group_id")["label"]


def _rarest_class(table: pd.DataFrame) -> pd.Series:
    pairs = table[["group_id", "label"]].drop_duplicates()
    pairs = pairs.assign(name=pairs["label"].str.split(CLASS_SEPARATOR)).explode("name")
    pairs = pairs[["group_id", "name"]].drop_duplicates()
    rarity = pairs.groupby("name")["group_id"].size()
    # No positive class at all is the stratum of last resort.
    pairs["rank"] = pairs["name"].map(rarity).where(pairs["name"] != "", len(table) + 1)
    first = pairs.sort_values(["group_id", "rank", "name"]).drop_duplicates("group_id")
    return first.set_index("group_id")["name"]
