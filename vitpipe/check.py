"""What a run would meet and take, before anything is trained: rejects, labels, groups, tiles, tokens, memory, time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from vitpipe.check_ground import ground_findings
from vitpipe.config import FileWeights, ModelRecipe, PipelineConfig
from vitpipe.cutting import planned_windows, tile_values
from vitpipe.domains.known import machine_findings, planes_of, reading_findings
from vitpipe.errors import ConfigError, DataError, TooManyRejected, UnreadableSource
from vitpipe.ingest import ingest, read_catalog, read_quarantine
from vitpipe.labels import read_labels
from vitpipe.labels.base import CLASS_SEPARATOR, LabelSet
from vitpipe.labels.ground import GroundLabels
from vitpipe.pseudonym import load_pseudonymiser
from vitpipe.records import Findings, Json, Source, Task
from vitpipe.resample import tile_channels
from vitpipe.workspace import Workspace

_CPU_FLOPS_PER_CORE = 5e10
"""What a core of a common CPU reaches on ViT matrix products in single precision; for a rough time only."""

_TOKEN_LIMIT = 4096


def check_pipeline(config: PipelineConfig) -> Findings:
    """Ingest (the index is kept, so a run does not look again) and say what a run would do.

    Raises:
        ConfigError, DataError: what would stop the run, other than too many rejects, which are listed.
    """
    workspace = Workspace(Path(config.workspace))
    given, config = config, config.on_disk()
    machine = machine_findings(config.source.kind)
    lines: list[str] = []
    values: dict[str, Json] = {**machine.values}
    with workspace.lock():
        try:
            ingest(given, workspace)
        except TooManyRejected as error:
            lines.append(f"STOPS: {error}")
            values["stops"] = str(error)
        sources = read_catalog(workspace) if workspace.catalog.exists() else []
        lines += _rejects(workspace, values)
        if sources:
            lines += _sources(sources, values)
            lines += _tiles(config, sources, values)
            reading = reading_findings(config.source.kind, sources, config.tiles.size)
            lines += reading.lines
            values |= reading.values
            lines += _labels(config, sources, workspace, values)
    if config.model is not None and sources:
        lines += _model(config, sources, values)
    lines += machine.lines
    return Findings(lines=tuple(lines), values=values)


def _rejects(workspace: Workspace, values: dict[str, Json]) -> list[str]:
    quarantine = read_quarantine(workspace)
    lines: list[str] = []
    counts: dict[str, Json] = {}
    for code, rows in quarantine.groupby("code", sort=True):
        first = rows.iloc[0]
        kind = "not of this kind" if bool(first["junk"]) else "REJECTED"
        lines.append(f"{kind}: {len(rows)} x {code}, such as {Path(str(first['uri'])).name}: {first['reason']}")
        counts[str(code)] = len(rows)
    values["quarantine"] = counts
    return lines


def _sources(sources: Sequence[Source], values: dict[str, Json]) -> list[str]:
    frames = sum(source.grid.frames for source in sources)
    groups = len({source.group_id for source in sources})
    notes: dict[str, int] = {}
    for source in sources:
        for note in source.notes:
            notes[note] = notes.get(note, 0) + 1
    values |= {"sources": len(sources), "frames": frames, "groups": groups, "notes": dict(sorted(notes.items()))}
    lines = [
        f"{len(sources)} sources ({frames} frames) of {groups} groups,"
        f" channels {', '.join(sources[0].channels)}, units {sources[0].units}"
    ]
    if notes:
        lines.append("odd but usable: " + ", ".join(f"{count} x {note}" for note, count in sorted(notes.items())))
    return lines


def _tiles(config: PipelineConfig, sources: Sequence[Source], values: dict[str, Json]) -> list[str]:
    recipe = config.tiles
    count = size_bytes = 0
    refused: dict[str, list[str]] = {}
    for source in sources:
        try:
            windows = planned_windows(source.grid, recipe, uri=source.uri)
        except UnreadableSource as error:
            refused.setdefault(error.code, []).append(f"{Path(source.uri).name}: {error.reason}")
            continue
        count += windows
        size_bytes += windows * tile_values(recipe, source.channels) * _item_size(source.dtype)
    values |= {"tiles": count, "tile_bytes": size_bytes}
    size = f"{recipe.depth} x {recipe.size} x {recipe.size}" if recipe.depth else f"{recipe.size}"
    lines = [f"at most {count} tiles of {size} px, {size_bytes / 2**20:.0f} MiB on disk"]
    frames = max(source.grid.frames for source in sources)
    if recipe.depth is not None and recipe.cut == "grid" and recipe.depth > frames:
        lines.append(
            f"WARNING: tiles.depth {recipe.depth} is deeper than every stack (the deepest has {frames} slices): what "
            "is missing of a tile is padded and not valid; lower tiles.depth, or set tiles.slice_spacing_mm"
        )
    for code, reasons in sorted(refused.items()):
        lines.append(f"REJECTED when tiles are cut: {len(reasons)} x {code}, such as {reasons[0]}")
    return lines


def _item_size(dtype: str) -> int:
    import numpy as np

    return np.dtype(dtype).itemsize


def _labels(
    config: PipelineConfig, sources: Sequence[Source], workspace: Workspace, values: dict[str, Json]
) -> list[str]:
    if config.labels is None:
        return ["no labels: the run ends after tiling"]
    try:
        labels = read_labels(config.labels, sources, load_pseudonymiser(workspace.root), planes_of)
    except DataError as error:
        # What stops a run first stays the first reason.
        values.setdefault("stops", str(error))
        return [f"STOPS: {error}"]
    on_ground = ground_findings(config, workspace, sources, labels)
    values.update(on_ground.values)
    return _label_lines(labels, values) + _few_groups(config, sources, labels, values) + list(on_ground.lines)


def _label_lines(labels: LabelSet, values: dict[str, Json]) -> list[str]:
    if isinstance(labels.regions, GroundLabels):
        return _ground_lines(labels, values)
    # A frame on which several classes are drawn counts for each of them.
    names = labels.rows["label"].str.split(CLASS_SEPARATOR).explode()
    counts = names[names != ""].value_counts()
    values["classes"] = {str(name): int(count) for name, count in counts.items()}
    listed = ", ".join(f"{name} {count}" for name, count in counts.head(12).items())
    kind = "classes, several a row" if labels.multi_label else "classes"
    more = ", ..." if len(counts) > 12 else ""
    return [f"{len(labels.classes)} {kind}: {listed}{more}", *labels.notes]


def _ground_lines(labels: LabelSet, values: dict[str, Json]) -> list[str]:
    """Say which classes lie on how many sources, or what the values are."""
    if labels.task is Task.REGRESSION:
        values["classes"] = {}
        return [f"a value of each pixel, in {labels.units or 'units that are not said'}", *labels.notes]
    counts = labels.rows["label"].str.split(CLASS_SEPARATOR).explode().value_counts()
    values["classes"] = {name: int(counts.get(name, 0)) for name in labels.classes}
    listed = ", ".join(labels.classes[:12]) + (", ..." if len(labels.classes) > 12 else "")
    of = "pixel" if labels.task is Task.SEGMENTATION else "tile"
    return [f"{len(labels.classes)} classes of each {of}: {listed}", *labels.notes]


def _few_groups(
    config: PipelineConfig, sources: Sequence[Source], labels: LabelSet, values: dict[str, Json]
) -> list[str]:
    """Warn of fewer labelled groups than splits; the tiles of a large scene may still bring more."""
    group_of = {source.source_id: source.group_id for source in sources}
    rows = zip(labels.rows["source_id"], labels.rows["group_id"], strict=True)
    groups = len({str(given) or group_of[str(source_id)] for source_id, given in rows})
    ground = values.get("ground")
    if "labelled_tiles" in values and isinstance(ground, dict) and isinstance(ground["blocks"], int):
        # Tiles of one scene may lie on several blocks, which were counted.
        groups = ground["blocks"]
    splits = config.split.folds or 1 + config.split.held_out
    values["labelled_groups"] = groups
    if groups >= splits:
        return []
    return [
        f"WARNING: {groups} labelled group(s) for {splits} splits; a group never straddles splits, so the run will stop"
        " after tiling unless scenes span more blocks of ground: label more groups, or set `split.val` or"
        " `split.calibration` to 0"
    ]


def _model(config: PipelineConfig, sources: Sequence[Source], values: dict[str, Json]) -> list[str]:
    assert config.model is not None
    weights = config.model.weights
    if isinstance(weights, FileWeights) and not Path(weights.path).is_file():
        raise ConfigError(f"model.weights: no file {weights.path}; correct `model.weights.path`")
    channels = len(tile_channels(config.tiles, sources[0].channels))
    if config.model.decoder is not None or getattr(config.labels, "per", "tile") == "pixel":
        return _pixel_model(config, channels, values)
    parameters, tokens, width, depth = _measure(config.model, config, channels)
    # Multiply-adds of a transformer block on N tokens of width D: 12 N D^2 in its matrices, 2 N^2 D in attention.
    dense, attention = 12 * tokens * width**2, 2 * tokens**2 * width
    tiles = values.get("labelled_tiles", values["tiles"])
    assert isinstance(tiles, int)
    epochs = config.train.epochs if config.train.recipe == "full" else 1
    # Forward and backward take about three times the forward's multiply-adds, of two operations each.
    operations = 6 * depth * (dense + attention) * tiles * config.split.train * epochs
    minutes = operations / (_CPU_FLOPS_PER_CORE * (os.cpu_count() or 1)) / 60
    share = attention / (dense + attention)
    values |= {"tokens": tokens, "parameters": parameters, "attention_share": share, "cpu_minutes": minutes}
    lines = [
        f"model: {parameters / 1e6:.1f} M parameters, {tokens} tokens a tile, {share:.0%} of the work in attention;"
        f" roughly {max(minutes, 0.1):.1f} min of training on this CPU"
    ]
    return [*lines, *_many_tokens(tokens)]


def _many_tokens(tokens: int) -> list[str]:
    if tokens <= _TOKEN_LIMIT:
        return []
    return [f"WARNING: {tokens} tokens a tile; attention grows with their square: take smaller tiles or larger patches"]


def _pixel_model(config: PipelineConfig, channels: int, values: dict[str, Json]) -> list[str]:
    from vitpipe.learn.outlook import pixel_outlook

    assert config.model is not None
    size, tiles = config.tiles.size, values.get("labelled_tiles", values["tiles"])
    assert isinstance(tiles, int)
    tile_px = (size, size) if config.tiles.depth is None else (config.tiles.depth, size, size)
    found = pixel_outlook(config.model, config.train, channels, tile_px)
    networks = [("model", found.cost)] + ([("U-Net beside it", found.unet)] if found.unet is not None else [])
    # Forward and backward take about three times the forward's multiply-adds, of two operations each.
    operations = 6 * sum(cost.multiply_adds for _, cost in networks) * tiles * config.split.train * config.train.epochs
    minutes = operations / (_CPU_FLOPS_PER_CORE * (os.cpu_count() or 1)) / 60
    values |= {"tokens": found.tokens, "parameters": found.cost.parameters, "cpu_minutes": minutes}
    values["multiply_adds"] = found.cost.multiply_adds
    shown = "; ".join(
        f"{name}: {cost.parameters / 1e6:.1f} M parameters, {cost.multiply_adds / 1e9:.3g} G multiply-adds a tile"
        for name, cost in networks
    )
    padded = "" if found.padded_px == tile_px else f", computed at {' x '.join(map(str, found.padded_px))} px"
    lines = [
        f"{shown}; {found.tokens} tokens a tile{padded}; roughly {max(minutes, 0.1):.1f} min of training on this CPU"
    ]
    return [*lines, *_many_tokens(found.tokens)]


def _measure(recipe: ModelRecipe, config: PipelineConfig, channels: int) -> tuple[int, int, int, int]:
    """Build the model without memory and give its parameters, tokens, width and depth."""
    import torch

    from vitpipe.learn.architecture import build, overrides_of

    with torch.device("meta"):
        tiles = config.tiles
        model, _ = build(recipe, overrides_of(recipe, channels, recipe.num_classes or 2, tiles.size, tiles.depth))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    patches = int(getattr(getattr(model, "patch_embed", model), "num_patches", 0))
    tokens = patches + int(getattr(model, "num_prefix_tokens", 0))
    return parameters, tokens, int(getattr(model, "embed_dim", 0)), len(getattr(model, "blocks", ()))
