"""Small stores, manifests and configurations for the tests of learning: written in the store's real format."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vitpipe.config import PipelineConfig
from vitpipe.digest import digest
from vitpipe.learn.launch import make_task, run_id_of
from vitpipe.learn.task import RunFolder, write_task
from vitpipe.loading import parse_config
from vitpipe.manifest import Manifest, write_manifest
from vitpipe.pixel_targets import IGNORE, write_targets
from vitpipe.records import Task
from vitpipe.store import ShardContract, ShardWriter

SPLITS = ("train", "train", "train", "val", "calibration", "test")
CHANNELS = ("red", "green", "blue")


@dataclass(frozen=True)
class Case:
    """What the small store holds."""

    tiles: int = 96
    size: int = 16
    channels: tuple[str, ...] = CHANNELS
    classes: tuple[str, ...] = ("a", "b")
    units: str = "dn"
    dtype: str = "int16"
    shards: int = 3
    multi_label: bool = False
    depth: int | None = None


def make_manifest(folder: Path, case: Case | None = None) -> Manifest:
    """Write shards below `folder`; the class shows in the brightness of the first channel."""
    case = case or Case()
    generator = np.random.default_rng(5)
    numbers = np.arange(case.tiles)
    label = numbers % len(case.classes)
    pixels = (case.size, case.size) if case.depth is None else (case.depth, case.size, case.size)
    tiles = generator.normal(100, 20, (case.tiles, len(case.channels), *pixels))
    tiles[:, 0] += 30 * label.reshape(-1, *(1 for _ in pixels))
    tiles = tiles.clip(0, 250).astype(case.dtype)
    valid = np.ones((case.tiles, *pixels), bool)
    valid[::7, ..., : case.size // 4, :] = False
    tiles = np.where(valid[:, None], tiles, 0).astype(case.dtype)
    rows = []
    for shard, places in enumerate(np.array_split(numbers, case.shards)):
        rows += _write_shard(folder / f"shard{shard}", case, tiles[places], valid[places], numbers[places])
    table = pd.DataFrame(rows)
    # No pattern between split and class.
    table["split"] = [SPLITS[int(hashlib.md5(name.encode()).hexdigest(), 16) % 6] for name in table["tile_id"]]
    names = [case.classes[number] for number in label]
    table["label"] = (
        [f"{name}|{case.classes[0]}" if name != case.classes[0] else name for name in names]
        if (case.multi_label)
        else names
    )
    return Manifest(
        table=table.sort_values("tile_id", ignore_index=True),
        classes=case.classes,
        multi_label=case.multi_label,
        channels=case.channels,
        units=case.units,
        tile_size=case.size,
        tiles_folder=folder,
        digest=digest([str(case), *table["tile_id"]]),
        notes=(),
        unlabelled=0,
        depth=case.depth,
    )


def _write_shard(
    folder: Path, case: Case, tiles: NDArray[np.generic], valid: NDArray[np.bool_], numbers: NDArray[np.int64]
) -> list[dict[str, object]]:
    folder.mkdir(parents=True)
    rows = [
        {
            "tile_id": f"source{number:04d}:0:0:0",
            "source_id": f"source{number:04d}",
            "group_id": f"group{number:04d}",
            "frame": 0,
            "row": 0,
            "col": 0,
            "height": case.size,
            "width": case.size,
            "valid_fraction": float(mask.mean()),
            "pixel_digest": "",
        }
        for number, mask in zip(numbers, valid, strict=True)
    ]
    writer = ShardWriter(folder, ShardContract(case.channels, case.units, case.dtype, case.size, case.depth))
    writer.append(tiles, valid, pd.DataFrame(rows).to_dict("list"))
    writer.close(dropped=0)
    return [row | {"shard_id": folder.name, "shard_row": place} for place, row in enumerate(rows)]


@dataclass(frozen=True)
class PixelCase:
    """What a small store with targets of every pixel holds."""

    tiles: int = 60
    size: int = 20
    depth: int | None = None
    labelled: float = 1.0
    """Share of the pixels that have a target."""
    task: Task = Task.SEGMENTATION


def make_pixel_manifest(folder: Path, case: PixelCase) -> Manifest:
    """Write shards and targets: the brightness of blocks of pixels shows their class of three, or is their value."""
    generator = np.random.default_rng(7)
    pixels = (case.size, case.size) if case.depth is None else (case.depth, case.size, case.size)
    coarse = tuple(-(-size // 5) for size in pixels)
    kinds = generator.integers(0, 3, (case.tiles, *coarse))
    for axis, size in enumerate(pixels, start=1):
        kinds = kinds.repeat(5, axis).take(range(size), axis)
    tiles = generator.normal(100, 5, (case.tiles, 2, *pixels))
    tiles[:, 0] += 40 * kinds
    valid = np.ones((case.tiles, *pixels), bool)
    valid[::7, ..., : case.size // 4, :] = False
    tiles = np.where(valid[:, None], tiles, 0).clip(0, 250).astype("int16")
    known = valid & (generator.random(valid.shape) < case.labelled)
    if case.task is Task.SEGMENTATION:
        targets = np.where(known, kinds, IGNORE).astype("uint8")
    else:
        targets = np.where(known, 1000.0 + 25.0 * kinds, np.nan).astype("float32")
    store = Case(tiles=case.tiles, size=case.size, channels=("red", "green"), depth=case.depth)
    rows = []
    for shard, places in enumerate(np.array_split(np.arange(case.tiles), 3)):
        rows += _write_shard(folder / "tiles" / f"shard{shard}", store, tiles[places], valid[places], places)
        write_targets(folder / "targets", f"shard{shard}", targets[places])
    table = pd.DataFrame(rows)
    table["split"] = [SPLITS[number % 6] for number in range(case.tiles)]
    table["label"] = "b" if case.task is Task.SEGMENTATION else "value"
    return Manifest(
        table=table.sort_values("tile_id", ignore_index=True),
        classes=("a", "b", "c") if case.task is Task.SEGMENTATION else ("value",),
        multi_label=False,
        channels=store.channels,
        units="dn",
        tile_size=case.size,
        tiles_folder=folder / "tiles",
        digest=digest([str(case)]),
        notes=(),
        unlabelled=0,
        depth=case.depth,
        task=case.task,
        targets_folder=folder / "targets",
    )


def make_config(workspace: Path, *, model: dict[str, object] | None = None, **train: object) -> PipelineConfig:
    """Configure a tiny ViT; `model` and `train` override."""
    values = {
        "name": "tiny",
        "source": {"kind": "images", "path": "/nowhere"},
        "labels": {"kind": "folder"},
        "tiles": {"size": 16},
        "model": {
            "name": "vit_tiny_patch16_224",
            "weights": {"source": "random"},
            "patch_size": 8,
            "embed_dim": 24,
            "depth": 2,
            "num_heads": 3,
        }
        | (model or {}),
        "train": {"epochs": 3, "batch_size": 16, "device": "cpu", "processes": 1, "learning_rate": 0.005} | train,
        "workspace": str(workspace),
    }
    return parse_config(values, origin="test")


def make_run(folder: Path, config: PipelineConfig, manifest: Manifest) -> RunFolder:
    """Write what `launch.train` writes before it starts the child; one thread, as the tests share two cores."""
    run = RunFolder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_manifest(manifest, folder)
    task = make_task(config, manifest, run_id_of(manifest, config), None)
    write_task(run, task.model_copy(update={"threads": 1}))
    return run


def sha256(path: Path) -> str:
    """Digest a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
