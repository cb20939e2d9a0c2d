"""A learning step out of the store, and a probe that computes its features once.

The model is a small ViT (64 px, patch 8, width 96, depth 4, 3 heads), batch 64, as in a first run on a laptop: the
smaller the model, the more reading and augmenting weigh. One thread. Goals: within 15 % of the bare model; a probe at
least 40 times cheaper than running the frozen backbone 50 times (with a large backbone: here the heads weigh too).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.frame import Case, Table
from vitpipe.atomic import write_folder
from vitpipe.config import PipelineConfig
from vitpipe.manifest import Manifest, write_manifest
from vitpipe.store import ShardContract, ShardWriter, TileStore

_SIZE = 64
_BATCH = 64
_SHARD_TILES = 256
_CLASSES = tuple("abcdefghij")
_PASSES = 50
_IMPORTS = ("torch", "timm", "vitpipe.learn.child", "vitpipe.learn.launch", "vitpipe.learn.probe")
_FLIPS = {"flip_horizontal": True, "flip_vertical": True, "quarter_turns": True}


def tables(folder: Path, *, large: bool) -> list[Table]:
    """Give a table of the recipe `full` and one of the recipe `probe`."""
    steps, probed = (2048, 512) if large else (384, 96)
    for name, count in (("full", steps), ("probe", probed)):
        write_run(folder / name, count, name)
    at = str(folder)
    learn = (
        Case("vitpipe full: read, augment, learn, EMA", ours, (f"{at}/full",), _IMPORTS),
        Case("limit: the bare model, one batch in memory", bare, (f"{at}/full",), _IMPORTS, result_may_differ=True),
        Case("DataLoader, a tile at a time, no EMA", data_loader, (f"{at}/full", 0), _IMPORTS, result_may_differ=True),
        Case("DataLoader, 2 workers, no EMA", data_loader, (f"{at}/full", 2), _IMPORTS, result_may_differ=True),
    )
    probe = (
        Case("vitpipe probe: features once, 17 heads", ours, (f"{at}/probe",), _IMPORTS),
        Case(
            f"frozen backbone run {_PASSES} times, one head", frozen, (f"{at}/probe",), _IMPORTS, result_may_differ=True
        ),
    )
    return [
        Table(f"Learning step: {steps} tiles of 3 x uint8 x {_SIZE}^2, ViT 96 x 4", learn, steps, "tiles"),
        Table(f"Probe: {probed} tiles, {_PASSES} passes", probe, probed, "tiles"),
    ]


def write_run(folder: Path, count: int, recipe: str) -> None:
    """Write a store of noise with its manifest; the loss means nothing, the work is that of any other tiles."""
    rng = np.random.default_rng(0)
    rows = []
    for start in range(0, count, _SHARD_TILES):
        tiles = rng.integers(0, 255, (min(_SHARD_TILES, count - start), 3, _SIZE, _SIZE)).astype(np.uint8)
        names = [f"{start + index:08}" for index in range(len(tiles))]
        table = pd.DataFrame({"tile_id": names, "source_id": names, "group_id": names})
        table = table.assign(frame=0, row=0, col=0, height=_SIZE, width=_SIZE, valid_fraction=1.0, pixel_digest="")
        with write_folder(folder / "tiles" / f"{start:08}") as partial:
            writer = ShardWriter(partial, ShardContract(("red", "green", "blue"), "dn", "uint8", _SIZE))
            writer.append(tiles, np.ones((len(tiles), _SIZE, _SIZE), bool), table.to_dict("list"))
            writer.close(dropped=0)
        rows.append(table.assign(shard_id=f"{start:08}", shard_row=np.arange(len(tiles))))
    joined = pd.concat(rows, ignore_index=True)
    joined["label"] = rng.choice(_CLASSES, len(joined))
    joined["split"] = "train"
    manifest = Manifest(
        table=joined,
        classes=_CLASSES,
        multi_label=False,
        channels=("red", "green", "blue"),
        units="dn",
        tile_size=_SIZE,
        tiles_folder=folder / "tiles",
        digest=recipe,
        notes=(),
        unlabelled=0,
    )
    write_manifest(manifest, folder)


def _config(recipe: str) -> PipelineConfig:
    keys = {"img_size": _SIZE, "patch_size": 8, "embed_dim": 96, "depth": 4, "num_heads": 3}
    return PipelineConfig.model_validate(
        {
            "name": "bench",
            "source": {"kind": "images", "path": "/nowhere"},
            "tiles": {"size": _SIZE},
            "model": {"name": "vit_tiny_patch16_224", "weights": {"source": "random"}, **keys},
            "train": {
                "recipe": recipe, "epochs": 1, "batch_size": _BATCH, "device": "cpu", "processes": 1,
                "augment": _FLIPS if recipe == "full" else {},
            },
        }
    )  # fmt: skip


def ours(folder: str) -> float:
    """Learn for one epoch as the child process does, from the manifest to the trained weights."""
    from vitpipe.learn.architecture import ProbeModel
    from vitpipe.learn.fit import Fit
    from vitpipe.learn.launch import make_task
    from vitpipe.learn.lesson import Surroundings
    from vitpipe.learn.place import take_place
    from vitpipe.learn.prepare import prepare
    from vitpipe.learn.probe import fit_probe
    from vitpipe.learn.progress import ProgressWriter
    from vitpipe.learn.task import RunFolder
    from vitpipe.manifest import read_manifest

    home = Path(folder)
    manifest = read_manifest(home)
    task = make_task(_config(home.name), manifest, "bench", None).model_copy(update={"threads": 1})
    run = RunFolder(home / "run")
    run.root.mkdir(exist_ok=True)
    around = Surroundings(run, take_place(task), ProgressWriter(run.progress, 0), threading.Event())
    lesson = prepare(task, manifest, TileStore(home / "tiles"), around)
    learnt = fit_probe(lesson) if isinstance(lesson.model, ProbeModel) else Fit(lesson).run()
    # The next round starts from nothing.
    for path in sorted(run.root.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    return float(len(learnt.state))


def _model(classes: int) -> object:
    import timm
    import torch

    torch.set_num_threads(1)
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=_SIZE, patch_size=8, embed_dim=96, depth=4, num_heads=3, num_classes=classes
    )


def bare(folder: str) -> float:
    """Forward, backward and AdamW on the same batch, again and again."""
    import torch

    model = _model(len(_CLASSES))
    optimiser = torch.optim.AdamW(model.parameters(), fused=True)
    images, targets = torch.randn(_BATCH, 3, _SIZE, _SIZE), torch.randint(0, 10, (_BATCH,))
    count = sum(len(np.load(path, mmap_mode="r")) for path in Path(folder).glob("tiles/*/tiles.npy"))
    for _ in range(count // _BATCH):
        torch.nn.functional.cross_entropy(model(images), targets).backward()
        optimiser.step()
        optimiser.zero_grad()
    return 0.0


class _Tiles:
    """The usual dataset: one tile a call, as float, normalised, flipped and turned."""

    def __init__(self, folder: Path) -> None:
        from vitpipe.manifest import read_manifest

        self._rows = read_manifest(folder).table
        self._maps = {path.parent.name: np.load(path, mmap_mode="r") for path in folder.glob("tiles/*/tiles.npy")}

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[object, int]:
        import torch

        row = self._rows.iloc[index]
        tile = torch.from_numpy(self._maps[row["shard_id"]][row["shard_row"]].astype(np.float32))
        tile = (tile - 127.5) / 73.6
        for axis in (1, 2):
            if torch.rand(()) < 0.5:
                tile = tile.flip(axis)
        return torch.rot90(tile, int(torch.randint(0, 4, ())), (1, 2)), _CLASSES.index(row["label"])


def data_loader(folder: str, workers: int) -> float:
    """Learn with torch's DataLoader, a dataset that gives a tile a call, and a plain loop."""
    import torch
    from torch.utils.data import DataLoader

    model = _model(len(_CLASSES))
    optimiser = torch.optim.AdamW(model.parameters(), fused=True)
    loader = DataLoader(_Tiles(Path(folder)), batch_size=_BATCH, shuffle=True, num_workers=workers)
    for images, targets in loader:
        torch.nn.functional.cross_entropy(model(images), targets).backward()
        optimiser.step()
        optimiser.zero_grad()
    return 0.0


def _batches(folder: Path) -> Iterator[tuple[object, object]]:
    import torch

    from vitpipe.manifest import read_manifest

    table, store = read_manifest(folder).table, TileStore(folder / "tiles")
    for start in range(0, len(table), _BATCH):
        rows = table.iloc[start : start + _BATCH]
        tiles, _ = store.gather(rows)
        yield torch.from_numpy((tiles - 127.5) / 73.6), torch.tensor([_CLASSES.index(name) for name in rows["label"]])


def frozen(folder: str) -> float:
    """Run the frozen backbone in every pass and fit one head by AdamW: the usual linear probe."""
    import torch

    backbone = _model(0).eval()
    head = torch.nn.Linear(96, len(_CLASSES))
    optimiser = torch.optim.AdamW(head.parameters(), fused=True)
    for _ in range(_PASSES):
        for images, targets in _batches(Path(folder)):
            with torch.inference_mode():
                features = backbone(images)
            torch.nn.functional.cross_entropy(head(features.clone()), targets).backward()
            optimiser.step()
            optimiser.zero_grad()
    return 0.0
