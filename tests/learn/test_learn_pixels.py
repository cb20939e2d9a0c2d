"""Models of pixels: targets that are mostly unknown, other sizes than the patch divides, volumes, values."""

from __future__ import annotations

import json
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from learn_cases import PixelCase, make_config, make_manifest, make_pixel_manifest, make_run, sha256
from numpy.typing import NDArray
from test_learn_run import start_child, wait_for_step

from vitpipe.config import PipelineConfig
from vitpipe.errors import ConfigError, ContractError
from vitpipe.learn import child
from vitpipe.learn.launch import run_id_of, train
from vitpipe.learn.lesson import Stopped
from vitpipe.learn.model import load_model
from vitpipe.learn.progress import NOTE, STOPPED, read_progress
from vitpipe.learn.task import RunFolder
from vitpipe.manifest import Manifest
from vitpipe.pixel_targets import IGNORE, PixelTargets, write_targets
from vitpipe.records import Task
from vitpipe.store import TileStore
from vitpipe.workspace import Workspace

FAST = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


def run_here(folder: RunFolder) -> RunFolder:
    child.run(folder, threading.Event())
    return folder


def pixel_config(workspace: Path, *, model: dict[str, object] | None = None, **train: object) -> PipelineConfig:
    keys = {"epochs": 20, "batch_size": 6, "baseline": "none", "label_smoothing": 0.0, "learning_rate": 0.01} | train
    return make_config(workspace, model=FAST | (model or {}), **keys)


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Nine of ten pixels have no label."""
    return make_pixel_manifest(tmp_path_factory.mktemp("sparse"), PixelCase(labelled=0.1))


def judged(manifest: Manifest) -> tuple[pd.DataFrame, NDArray[np.float32], NDArray[np.bool_], NDArray[np.generic]]:
    rows = manifest.table[manifest.table["split"] != "train"]
    tiles, valid = TileStore(manifest.tiles_folder).gather(rows)
    assert manifest.targets_folder is not None
    return (
        rows,
        tiles,
        valid,
        PixelTargets(manifest.targets_folder, manifest.task, manifest.tile_shape[1:]).gather(rows),
    )


TABLES = ("pixels.parquet", "pixel_sample.parquet")


@pytest.mark.parametrize("decoder", ["conv", "dpt"])
def test_classes_of_which_nine_of_ten_pixels_are_unknown_are_learnt(
    tmp_path: Path, sparse: Manifest, decoder: str
) -> None:
    # Targets that did not move with their pixels would teach nothing.
    augment = {"flip_horizontal": True, "quarter_turns": decoder == "conv"}
    config = pixel_config(tmp_path, model={"decoder": decoder}, augment=augment)
    folder = run_here(make_run(tmp_path / "run", config, sparse))
    rows, tiles, valid, targets = judged(sparse)
    model = load_model(folder.model)
    logits = model.logits(tiles, valid)
    assert (logits.dtype, logits.shape) == (np.float32, (len(rows), 3, 20, 20))
    labelled = targets != IGNORE
    assert labelled.mean() < 0.15
    assert (logits.argmax(1)[labelled] == targets[labelled]).mean() > 0.85
    scores = [event.val_mean_iou for event in read_progress(folder.progress) if event.event == "epoch"]
    assert scores[-1] > 0.75
    # The tables hold what the saved model says, whatever the batch and the number of threads.
    sample = pd.read_parquet(folder.root / "pixel_sample.parquet")
    order = {tile_id: number for number, tile_id in enumerate(rows["tile_id"])}
    place = sample["tile_id"].map(order).to_numpy()
    said = logits[place, :, sample["row"], sample["col"]]
    assert np.array_equal(said, sample[["logit_0", "logit_1", "logit_2"]].to_numpy())
    torch.set_num_threads(2)
    assert np.array_equal(model.logits(tiles[5:6], valid[5:6]), logits[5:6])
    torch.set_num_threads(1)
    assert model.logits(tiles[:0], valid[:0]).shape == (0, 3, 20, 20)
    with pytest.raises(ContractError, match=r"maps of 20 x 20 pixels; cut tiles of this size"):
        model.logits(tiles[..., :16], valid[..., :16])
    record = json.loads((folder.model / "model.json").read_text())
    assert (record["task"], record["decoder"]["kind"], record["head"]) == ("segmentation", decoder, "pixels")
    assert record["priors"] == pytest.approx([1 / 3] * 3, abs=0.05)
    assert not folder.logits.exists()
    assert not folder.baselines.joinpath("unet").exists(), "train.baseline is none"


def test_a_label_of_what_is_not_valid_changes_no_bit(tmp_path: Path) -> None:
    """The tiles have invalid rows: whatever the targets say there, the run is the same."""
    digests = []
    for number, kind in enumerate((IGNORE, 1)):
        manifest = make_pixel_manifest(tmp_path / f"m{number}", PixelCase(tiles=24, labelled=0.5))
        assert manifest.targets_folder is not None
        for shard in range(3):
            path = manifest.targets_folder / f"shard{shard}.npy"
            targets = np.load(path)
            rows = pd.DataFrame({"shard_id": f"shard{shard}", "shard_row": range(len(targets)), "valid_fraction": 0.5})
            _, valid = TileStore(manifest.tiles_folder).gather(rows)
            assert not valid.all()
            targets[~valid] = kind
            path.unlink()
            write_targets(manifest.targets_folder, f"shard{shard}", targets)
        folder = run_here(make_run(tmp_path / f"run{number}", pixel_config(tmp_path, epochs=2), manifest))
        # The statistics of the train split look at the targets alone.
        model = json.loads((folder.model / "model.json").read_text())
        digests.append([sha256(folder.root / name) for name in ("model/model.safetensors", *TABLES)])
        assert model["task"] == "segmentation"
    assert digests[0] == digests[1]


@pytest.mark.parametrize("loss", ["huber", "mse"])
def test_values_are_learnt_in_their_units_beside_a_unet_and_a_ridge(tmp_path: Path, loss: str) -> None:
    manifest = make_pixel_manifest(tmp_path / "m", PixelCase(labelled=0.3, task=Task.REGRESSION))
    # Those of the label rasters' band: the configuration says none.
    manifest = replace(manifest, target_units="t/ha")
    config = pixel_config(tmp_path, loss=loss, epochs=8, baseline="unet" if loss == "huber" else "none")
    folder = run_here(make_run(tmp_path / "run", config, manifest))
    rows, tiles, valid, targets = judged(manifest)
    model = load_model(folder.model)
    values = model.logits(tiles, valid)
    assert (values.dtype, values.shape) == (np.float32, (len(rows), 1, 20, 20))
    known = np.isfinite(targets)
    assert np.square(values[:, 0][known] - targets[known]).mean() < 0.25 * targets[known].var()
    assert model.record.target["units"] == "t/ha"
    assert model.record.target["mean"] == pytest.approx(1025, abs=3)

    def r2(name: str) -> float:
        table = pd.read_parquet(folder.root / name / "pixels.parquet")
        sums = table.loc[table["split"] == "test"].drop(columns=["tile_id", "split"]).sum()
        return float(1 - sums["sum_sq_error"] / (sums["sum_y2"] - sums["sum_y"] ** 2 / sums["n"]))

    assert r2("baselines/mean") == pytest.approx(0, abs=0.05)
    assert r2("baselines/ridge") > 0.9
    assert r2(".") > 0.8
    if loss == "huber":
        assert 0.2 < r2("baselines/unet") < 1
        assert load_model(folder.baselines / "unet" / "model").logits(tiles, valid).shape == values.shape
        budget = json.loads((folder.baselines / "unet" / "baseline.json").read_text())
        assert 0.4 < budget["own"]["multiply_adds"] / budget["of_model"]["multiply_adds"] < 2.5
        assert budget["epochs"] == 8


def test_a_probe_of_pixels_moves_the_linear_layer_alone(tmp_path: Path, sparse: Manifest) -> None:
    folder = run_here(make_run(tmp_path / "run", pixel_config(tmp_path, recipe="probe", epochs=4), sparse))
    model = load_model(folder.model)
    assert model.record.decoder["kind"] == "linear"
    losses = [event.val_loss for event in read_progress(folder.progress) if event.event == "epoch"]
    assert losses[-1] < losses[0]
    fresh = run_here(make_run(tmp_path / "fresh", pixel_config(tmp_path, recipe="probe", epochs=1), sparse))
    one, other = (each.state_dict() for each in (model.module, load_model(fresh.model).module))
    assert {name for name in one if not torch.equal(one[name], other[name])} == {
        "decoder.out.weight",
        "decoder.out.bias",
    }


HARD = {
    "epochs": 3,
    "checkpoint_seconds": 0.0,
    "layer_decay": 0.75,
    "logit_adjustment": 1.0,
    "label_smoothing": 0.1,
    "loss": "dice_cross_entropy",
    "augment": {"quarter_turns": True, "translate": 0.1, "rotate_degrees": 20, "brightness": 0.1},
    "baseline": "unet",
}


def stop_at_step(folder: RunFolder, step: int, stop: threading.Event) -> None:
    limit = time.monotonic() + 60
    while time.monotonic() < limit and not any(int(path.name[5:]) >= step for path in folder.checkpoint.glob("step-*")):
        time.sleep(0.005)
    stop.set()


def test_kill_and_stop_and_again_gives_the_same_bytes_of_model_and_unet(tmp_path: Path, sparse: Manifest) -> None:
    model = {"drop_path_rate": 0.2}
    config = pixel_config(tmp_path, model=model, **HARD | {"checkpoint_seconds": 60.0})
    unbroken = run_here(make_run(tmp_path / "unbroken", config, sparse))
    broken = make_run(tmp_path / "broken", pixel_config(tmp_path, model=model, **HARD), sparse)
    process = start_child(broken)
    wait_for_step(broken, process, 7)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    unet, stop = RunFolder(broken.baselines / "unet"), threading.Event()
    watcher = threading.Thread(target=stop_at_step, args=(unet, 6, stop))
    watcher.start()
    with pytest.raises(Stopped):
        child.run(broken, stop)
    watcher.join()
    assert not broken.done.exists()
    run_here(broken)
    names = ["model/model.safetensors", "model/model.json", *TABLES]
    names += [f"baselines/unet/{name}" for name in names]
    names += [f"baselines/{kind}/{name}" for kind in ("majority", "pixels") for name in TABLES]
    for name in names:
        assert sha256(broken.root / name) == sha256(unbroken.root / name), name
    events = read_progress(broken.progress)
    assert any(event.event == STOPPED for event in events)
    assert any("U-Net beside it: resumed after step" in event.message for event in events)
    beside = [event for event in events if event.event == NOTE and event.epoch is not None]
    assert {event.message for event in beside} == {"U-Net beside it"}
    assert all(event.val_loss is not None and event.step is None for event in beside)
    assert not any(event.event == "epoch" for event in events[-3:]), "curves are those of the model"
    assert not broken.checkpoint.exists()
    assert not unet.checkpoint.exists()


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path: Path, sparse: Manifest) -> None:
    keys = HARD | {"epochs": 2, "checkpoint_seconds": 60.0, "batch_size": 10, "precision": "fp32"}
    alone = run_here(make_run(tmp_path / "alone", pixel_config(tmp_path, **keys), sparse))
    both = train(pixel_config(tmp_path, **keys, processes=2), sparse, Workspace(tmp_path / "w"), lambda _: None)
    for name in ("progress.jsonl", "baselines/unet/progress.jsonl"):
        one, two = (
            [(event.val_loss, event.val_mean_iou) for event in read_progress(root / name) if event.event == "epoch"]
            for root in (alone.root, both.folder)
        )
        assert len(one) == 2
        assert np.array(two, float) == pytest.approx(np.array(one, float), rel=2e-3), name
    for name in ("pixels.parquet", "baselines/unet/pixels.parquet"):
        counts = [np.stack(pd.read_parquet(root / name)["counts"]).sum(0) for root in (alone.root, both.folder)]
        assert abs(counts[0] - counts[1]).sum() <= 0.02 * counts[0].sum()


@pytest.mark.parametrize("decoder", [None, "unetr", "unet"])
def test_volumes_are_learnt(tmp_path: Path, decoder: str | None) -> None:
    manifest = make_pixel_manifest(tmp_path / "m", PixelCase(tiles=18, size=16, depth=3, labelled=0.4))
    vit = {"name": "monai_vit", "patch_size": [2, 4, 4]}
    whole = {"patch_size": None, "depth": None, "num_heads": None, "embed_dim": 8}
    model = (whole if decoder == "unet" else vit) | {"decoder": decoder}
    augment = {"flip_horizontal": True, "translate": 0.1}
    config = pixel_config(tmp_path, model=model, epochs=3, augment=augment, baseline="unet" if decoder else "none")
    folder = run_here(make_run(tmp_path / "run", config, manifest))
    rows, tiles, valid, _ = judged(manifest)
    saved = load_model(folder.model)
    logits = saved.logits(tiles, valid)
    assert logits.shape == (len(rows), 3, 3, 16, 16)
    assert saved.record.training["precision"] == "fp32"
    sample = pd.read_parquet(folder.root / "pixel_sample.parquet")
    assert set(sample["frame"]) == {0, 1, 2}
    events = read_progress(folder.progress)
    losses = [event.val_loss for event in events if event.event == "epoch"]
    assert losses[-1] < losses[0]
    notes = " ".join(event.message for event in events if event.event == NOTE)
    assert ("no other one learns beside it" in notes) == (decoder == "unet")
    assert folder.baselines.joinpath("unet").exists() == (decoder == "unetr")


def test_a_model_of_tiles_is_a_start_for_pixels(tmp_path: Path, sparse: Manifest) -> None:
    first = run_here(make_run(tmp_path / "first", make_config(tmp_path, epochs=1), make_manifest(tmp_path / "tiles")))
    record = json.loads((first.model / "model.json").read_text())
    assert not {"task", "decoder", "target"} & set(record), "records of tiles are what they were"
    keys = {"embed_dim": 24, "num_heads": 3, "weights": {"source": "mlflow", "uri": "models:/x/1"}}
    config = pixel_config(tmp_path, model=keys, epochs=1, learning_rate=1e-9, ema_decay=None)
    second = make_run(tmp_path / "second", config, sparse)
    task = json.loads(second.task.read_text())
    second.task.write_text(json.dumps(task | {"weights_folder": str(first.model)}))
    run_here(second)
    one, other = load_model(first.model).module.state_dict(), load_model(second.model).module.state_dict()
    name = "blocks.1.attn.qkv.weight"
    torch.testing.assert_close(one[name], other[f"backbone.{name}"], atol=1e-6, rtol=0)
    found = json.loads((second.model / "model.json").read_text())["weights"]
    assert "position embedding resampled from 5 to 10 tokens" in found["adapted"]
    # And a model of pixels is one for pixels again: the ViT is taken over, the decoder starts fresh.
    third = make_run(tmp_path / "third", config, sparse)
    third.task.write_text(json.dumps(task | {"weights_folder": str(second.model)}))
    run_here(third)
    last = load_model(third.model).module.state_dict()
    torch.testing.assert_close(last[f"backbone.{name}"], one[name], atol=1e-6, rtol=0)


def test_keys_of_another_task_are_refused_and_leave_old_runs_what_they_were(tmp_path: Path, sparse: Manifest) -> None:
    tiles = make_manifest(tmp_path / "tiles")
    config = make_config(tmp_path)
    assert run_id_of(tiles, config) == run_id_of(tiles, make_config(tmp_path, baseline="unet", loss=None))
    assert run_id_of(tiles, config) != run_id_of(tiles, make_config(tmp_path, baseline="none"))
    assert not {"decoder", "loss", "baseline"} & set(json.dumps(config.model_dump(mode="json")).split('"'))
    for changes, said in (
        ({"model": {"decoder": "conv"}}, r"model.decoder is `conv`, but the labels give a class for a whole tile"),
        ({"loss": "mse"}, r"train.loss is `mse`, but the labels ask for a classification: remove it"),
    ):
        with pytest.raises(ConfigError, match=said):
            run_here(make_run(tmp_path / "refused", make_config(tmp_path, **changes), tiles))
    with pytest.raises(ConfigError, match=r"set it to `cross_entropy` or `dice_cross_entropy`"):
        run_here(make_run(tmp_path / "huber", pixel_config(tmp_path, loss="huber"), sparse))
