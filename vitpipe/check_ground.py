"""What `vitpipe check` says of the ground: how far labels resemble each other, and what a random split would claim.

Nothing is cut for it: labels on the ground are asked for each tile that would be cut; else each labelled scene counts
with its label and with the tile in its middle.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vitpipe.config import GeotiffSource, PipelineConfig, TileRecipe
from vitpipe.domains.geotiff.ground import block_names
from vitpipe.domains.known import domain_of
from vitpipe.errors import UnreadableSource
from vitpipe.ground import tile_footprints
from vitpipe.ground.blocks import check_kept, choose_blocks, kept_block_m
from vitpipe.ground.gap import measure_gap
from vitpipe.ground.gap_examples import colour_features, examples_of_tiles, sample_of_groups
from vitpipe.labels.base import CLASS_SEPARATOR, LabelSet
from vitpipe.labels.ground import GroundLabels
from vitpipe.partition import class_indicators
from vitpipe.records import WHOLE_SOURCE, Findings, Json, Source, Task, Window
from vitpipe.tile_survey import survey_tiles
from vitpipe.workspace import Workspace

_AFTER_A_RUN = "the range of the labels and what a random split would claim stand in the notes and the report of a run"


def ground_findings(
    config: PipelineConfig, workspace: Workspace, sources: Sequence[Source], labels: LabelSet
) -> Findings:
    """Look at the labels of whole scenes on the ground.

    Returns:
        Nothing where no source has a map.

    Raises:
        ConfigError: the workspace has blocks of another size.
    """
    if not isinstance(config.source, GeotiffSource):
        return Findings(())
    kept_m = kept_block_m(workspace.ground_block, workspace.splits)
    check_kept(workspace.ground_block, config.source.block_m, kept_m)
    if isinstance(labels.regions, GroundLabels):
        return _tiles_on_ground(config, sources, labels, kept_m)
    return _whole_scenes(config, sources, labels, kept_m)


def _whole_scenes(
    config: PipelineConfig, sources: Sequence[Source], labels: LabelSet, kept_m: float | None
) -> Findings:
    assert isinstance(config.source, GeotiffSource)
    table = _scenes(sources, labels)
    ground = tile_footprints(table, sources, TileRecipe())
    if ground is None or not ground.known.any():
        return Findings(("no labelled scene lies on known ground",))
    # A scene counts by its middle; its tiles are asked one by one when they are cut.
    kept = ground.known if labels.aoi is None else ground.inside(labels.aoi)
    if not kept.any():
        return Findings(("WARNING: no labelled scene has its middle in `labels.aoi`; check it and its CRS",))
    table, ground = table[kept].reset_index(drop=True), ground.where(kept)
    indicators = class_indicators(table["label"], multi_label=labels.multi_label)
    blocks = choose_blocks(config.source.block_m, ground.centres, indicators, kept_m, config.split.seed)
    lines = blocks.sentences()
    values = {"ground": blocks.to_json()}
    table["group_id"] = block_names(ground.centres.T, blocks.block_m, otherwise="")
    chosen = table.iloc[sample_of_groups(table["group_id"].to_numpy(dtype=object), config.split.seed)]
    found = {source.source_id: source for source in sources}
    features, kept = _colours([found[name] for name in chosen["source_id"]], config.tiles.size)
    if len(features) < len(chosen):
        lines.append(f"{len(chosen) - len(features)} scene(s) of the sample could not be read here")
    chosen = chosen[kept]
    gap = None
    if len(features):
        gap = measure_gap(examples_of_tiles(features, chosen, multi_label=labels.multi_label), config.split.seed)
    if gap is None:
        lines.append(_AFTER_A_RUN)
        return Findings(tuple(lines), values)
    return Findings((*lines, gap.sentence()), values | {"gap": gap.to_json()})


def _tiles_on_ground(
    config: PipelineConfig, sources: Sequence[Source], labels: LabelSet, kept_m: float | None
) -> Findings:
    """Say how many tiles have a label, and in how many blocks of ground they lie."""
    assert isinstance(config.source, GeotiffSource)
    table = survey_tiles(sources, labels, config.tiles)
    if table is None:
        return Findings((_AFTER_A_RUN,))
    values: dict[str, Json] = {"labelled_tiles": len(table)}
    if table.empty:
        return Findings(("WARNING: no tile would have a label; set a smaller `tiles.size`",), values)
    lines = [f"at most {len(table)} tiles have a label"]
    if labels.task is not Task.REGRESSION:
        named = table["label"].str.split(CLASS_SEPARATOR).explode().value_counts()
        counts = [f"{name} {named.get(name, 0)}" for name in labels.classes]
        kind = ", by their commonest class" if labels.task is Task.SEGMENTATION else ""
        lines[0] += f"{kind}: {', '.join(counts[:12])}{', ...' if len(counts) > 12 else ''}"
    ground = tile_footprints(table, sources, config.tiles)
    if ground is None or not ground.known.any():
        return Findings((*lines, "no labelled tile lies on known ground"), values)
    table, ground = table[ground.known].reset_index(drop=True), ground.where(ground.known)
    indicators = class_indicators(table["label"], multi_label=labels.multi_label)
    blocks = choose_blocks(config.source.block_m, ground.centres, indicators, kept_m, config.split.seed)
    return Findings((*lines, *blocks.sentences()), values | {"ground": blocks.to_json()})


def _scenes(sources: Sequence[Source], labels: LabelSet) -> pd.DataFrame:
    """Give a row a labelled scene: `source_id, label`, and its whole grid as the window."""
    whole = labels.rows.loc[labels.rows["frame"] == WHOLE_SOURCE, ["source_id", "label"]]
    shapes = {source.source_id: (source.grid.height, source.grid.width) for source in sources}
    whole = whole[whole["source_id"].isin(list(shapes))].sort_values("source_id", ignore_index=True)
    heights, widths = ([shapes[name][axis] for name in whole["source_id"]] for axis in (0, 1))
    return whole.assign(row=0, col=0, height=heights, width=widths)


def _colours(sources: Sequence[Source], size: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Give the features of the middle of each scene, and which scenes could be read and have a valid pixel there."""
    parts, kept = [], np.zeros(len(sources), bool)
    for place, source in enumerate(sources):
        # A store that is not mounted here is not asked for thousands of pieces of it.
        if not Path(source.files[0]).is_file():
            continue
        height, width = min(size, source.grid.height), min(size, source.grid.width)
        window = Window(0, (source.grid.height - height) // 2, (source.grid.width - width) // 2, height, width)
        try:
            with domain_of(source.domain).open(source) as raster:
                pixels, valid = raster.read(window)
        except UnreadableSource:
            continue  # The run puts it into quarantine; here it is counted.
        if valid.any():
            parts.append(colour_features(pixels[None].astype(np.float32), valid[None]))
            kept[place] = True
    return np.concatenate(parts) if parts else np.empty((0, 0)), kept
