"""A made-up run: tiles in a store, a manifest, and the logits of a model that is right about as often as asked."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from vitpipe.config import PipelineConfig
from vitpipe.digest import digest
from vitpipe.loading import parse_config
from vitpipe.manifest import Manifest
from vitpipe.store import ShardContract, ShardWriter
from vitpipe.workspace import Workspace

SIZE = 16
SPLITS = ("train", "val", "calibration", "test")


@dataclass(frozen=True)
class Case:
    """What `evaluate` is called with, and the baselines that stand in for the real ones."""

    config: PipelineConfig
    manifest: Manifest
    run_folder: Path
    workspace: Workspace
    baselines: dict[str, pd.DataFrame]


def config_of(root: Path, **evaluate: object) -> PipelineConfig:
    return parse_config(
        {
            "name": "made-up",
            "source": {"kind": "images", "path": "somewhere"},
            "labels": {"kind": "folder"},
            "model": {"name": "vit_tiny_patch16_224", "weights": {"source": "random"}},
            "evaluate": {"bootstrap": 300, **evaluate},
            "workspace": str(root),
        },
        origin="a test",
    )


def make_case(
    root: Path,
    *,
    classes: tuple[str, ...] = ("cat", "dog", "owl"),
    groups: int = 160,
    per_group: int = 6,
    skill: float = 2.0,
    multi_label: bool = False,
    seed: int = 0,
    **evaluate: object,
) -> Case:
    """Make a run of `groups` groups whose logits exceed noise by `skill` at the label."""
    generator = np.random.default_rng(seed)
    n, k = groups * per_group, len(classes)
    group = np.repeat(np.arange(groups), per_group)
    source = np.arange(n) // 2
    if multi_label:
        truth = generator.random((n, k)) < 0.4
        labels = ["|".join(np.array(classes)[row]) for row in truth]
    else:
        own = generator.integers(0, k, size=groups)[group]
        truth = np.eye(k, dtype=bool)[own]
        labels = [classes[index] for index in own]
    # A group is hard or easy as a whole, and the logits are twice too sure.
    hard = generator.normal(0, 0.8, size=groups)[group][:, None]
    logits = 2.0 * (truth * (skill + hard) + generator.normal(0, 1.0, size=(n, k)))
    if multi_label:
        logits -= skill
    names = np.array([f"{digest(['group', int(index)])}" for index in range(groups)])
    sources = np.array([f"{digest(['source', int(index)])}" for index in range(n // 2 + 1)])
    split = np.array(SPLITS)[np.minimum(np.arange(groups) * 4 // groups, 3)][group]
    table = pd.DataFrame(
        {
            "tile_id": [f"{sources[s]}:0:0:{index}" for index, s in enumerate(source)],
            "source_id": sources[source],
            "group_id": names[group],
            "frame": 0,
            "row": 0,
            "col": np.arange(n),
            "height": SIZE,
            "width": SIZE,
            "valid_fraction": np.where(np.arange(n) % 5 == 0, 0.75, 1.0),
            "label": labels,
            "split": split,
            "shard_id": "shard-0",
            "shard_row": np.arange(n),
            "attr_sex": np.array(["F", "M"])[group % 2],
            "attr_age_years": (20.0 + (group * 7) % 70),
            "attr_site": np.where(group % 40 == 0, "small", "large"),
        }
    )
    tiles_folder = root / "tiles" / "0123456789abcdef"
    _write_tiles(tiles_folder / "shard-0", table, truth, generator)
    order = np.argsort(table["tile_id"].to_numpy())
    table = table.iloc[order].reset_index(drop=True)
    manifest = Manifest(
        table=table,
        classes=classes,
        multi_label=multi_label,
        channels=("red", "green", "blue"),
        units="dn",
        tile_size=SIZE,
        tiles_folder=tiles_folder,
        digest=digest([list(table["tile_id"]), labels]),
        notes=("3 sources have no label.",),
        unlabelled=3,
    )
    workspace = Workspace(root)
    folder = workspace.run("0000111122223333")
    (folder / "model").mkdir(parents=True)
    judged = table["split"].to_numpy() != "train"
    columns = {f"logit_{index}": logits[order][judged, index].astype(np.float32) for index in range(k)}
    pd.DataFrame({"tile_id": table["tile_id"][judged], "split": table["split"][judged], **columns}).to_parquet(
        folder / "logits.parquet"
    )
    _write_progress(folder)
    return Case(config_of(root, **evaluate), manifest, folder, workspace, baselines_of(table, truth[order], seed))


def baselines_of(table: pd.DataFrame, truth: np.ndarray, seed: int) -> dict[str, pd.DataFrame]:
    """Give a majority and a weak baseline on the test split."""
    test = (table["split"] == "test").to_numpy()
    share = truth[(table["split"] == "train").to_numpy()].mean(axis=0)
    noise = np.random.default_rng(seed + 1).normal(size=(int(test.sum()), truth.shape[1])) + 0.7 * truth[test]
    weak = np.exp(noise) / np.exp(noise).sum(axis=1, keepdims=True)

    def frame(values: np.ndarray) -> pd.DataFrame:
        columns = {f"p_{index}": values[:, index] for index in range(values.shape[1])}
        return pd.DataFrame({"tile_id": table["tile_id"][test].to_numpy(), **columns})

    return {"majority": frame(np.tile(share, (int(test.sum()), 1))), "pixels": frame(weak)}


def _write_tiles(folder: Path, table: pd.DataFrame, truth: np.ndarray, generator: np.random.Generator) -> None:
    folder.mkdir(parents=True)
    tiles = generator.integers(0, 80, size=(len(table), 3, SIZE, SIZE)).astype(np.uint8)
    tiles[:, :, 4:12, 4:12] += (truth[:, [0, 1, 2 % truth.shape[1]]] * 120).astype(np.uint8)[:, :, None, None]
    valid = np.ones((len(table), SIZE, SIZE), dtype=bool)
    partly = table["valid_fraction"].to_numpy() < 1
    valid[partly, :, 12:] = False
    tiles[~np.broadcast_to(valid[:, None], tiles.shape)] = 0
    writer = ShardWriter(folder, ShardContract(("red", "green", "blue"), "dn", "uint8", SIZE))
    columns = ("tile_id", "source_id", "group_id", "frame", "row", "col", "height", "width", "valid_fraction")
    writer.append(tiles, valid, {name: table[name] for name in columns} | {"pixel_digest": [""] * len(table)})
    writer.close(dropped=0)


def _write_progress(folder: Path) -> None:
    lines = [
        {
            "event": "epoch",
            "epoch": epoch,
            "epochs": 12,
            "train_loss": 1.1 * 0.86**epoch,
            "val_loss": 0.35 + 0.8 * 0.8**epoch + 0.01 * epoch,
            "val_balanced_accuracy": 0.9 - 0.5 * 0.8**epoch,
            "seconds": 2.0 * epoch,
        }
        for epoch in range(12)
    ]
    (folder / "progress.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def with_notes(case: Case, *notes: str) -> Case:
    return replace(case, manifest=replace(case.manifest, notes=notes))
