"""Whole runs: the recipes, the saved model, kill and resume, the child process and its errors."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from learn_cases import Case, make_config, make_manifest, make_run, sha256

import vitpipe
from vitpipe.config import PipelineConfig
from vitpipe.errors import ConfigError, ContractError, TrainingFailed, TransientError
from vitpipe.learn import child, launch
from vitpipe.learn.launch import TrainResult, train
from vitpipe.learn.lesson import Stopped
from vitpipe.learn.model import load_model
from vitpipe.learn.progress import NOTE, Progress, read_progress
from vitpipe.learn.task import RunFolder
from vitpipe.learn.watch import SUPERVISOR_VARIABLE, describe_process, is_alive
from vitpipe.manifest import Manifest
from vitpipe.store import TileStore
from vitpipe.workspace import Workspace

HARD = {
    "epochs": 8,
    "batch_size": 8,
    "checkpoint_seconds": 0.0,
    "layer_decay": 0.75,
    "logit_adjustment": 1.0,
    "augment": {"flip_horizontal": True, "quarter_turns": True, "translate": 0.1, "brightness": 0.2, "contrast": 0.1},
}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return make_manifest(tmp_path_factory.mktemp("store") / "tiles")


def run_here(folder: RunFolder) -> None:
    child.run(folder, threading.Event())


def start_child(folder: RunFolder, **environment: str) -> subprocess.Popen[bytes]:
    """Start the child as a launch of one process does."""
    root = str(Path(vitpipe.__file__).parents[1])
    variables = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"} | environment
    return subprocess.Popen([sys.executable, "-m", "vitpipe.learn.child", str(folder.root)], env=variables)


def wait_for_step(folder: RunFolder, process: subprocess.Popen[bytes], step: int) -> None:
    limit = time.monotonic() + 120
    while time.monotonic() < limit and process.poll() is None:
        if any(int(path.name[5:]) >= step for path in folder.checkpoint.glob("step-*")):
            return
        time.sleep(0.005)
    raise AssertionError(f"no checkpoint at step {step}; the child's code is {process.poll()}")


@pytest.mark.parametrize("recipe", ["full", "probe"])
def test_the_saved_model_gives_the_logits_of_the_run_bit_for_bit(
    tmp_path: Path, manifest: Manifest, recipe: str
) -> None:
    folder = make_run(tmp_path / "run", make_config(tmp_path, recipe=recipe, epochs=6), manifest)
    run_here(folder)
    logits = pd.read_parquet(folder.logits)
    judged = manifest.table[manifest.table["split"] != "train"]
    assert logits["tile_id"].tolist() == judged["tile_id"].tolist()
    assert logits["split"].tolist() == judged["split"].tolist()
    shuffled = judged.sample(frac=1, random_state=3)
    tiles, valid = TileStore(manifest.tiles_folder).gather(shuffled)
    model = load_model(folder.model)
    expected = logits.set_index("tile_id").loc[shuffled["tile_id"], ["logit_0", "logit_1"]].to_numpy()
    assert expected.dtype == np.float32
    assert np.array_equal(model.logits(tiles, valid), expected)
    # One tile alone, and another number of threads.
    torch.set_num_threads(2)
    assert np.array_equal(model.logits(tiles[:1], valid[:1]), expected[:1])
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    accuracy = (np.array(model.classes)[expected.argmax(1)] == shuffled["label"]).mean()
    assert accuracy > 0.9
    assert sorted(path.name for path in folder.model.iterdir()) == ["model.json", "model.safetensors"]
    assert not folder.checkpoint.exists()
    record = json.loads((folder.model / "model.json").read_text())
    assert (record["channels"], record["units"], record["weights"]["source"]) == (
        ["red", "green", "blue"],
        "dn",
        "random",
    )
    assert str(tmp_path) not in json.dumps(record)


def test_a_model_folder_that_does_not_hold_together_is_refused(tmp_path: Path, manifest: Manifest) -> None:
    folder = make_run(tmp_path / "run", make_config(tmp_path, epochs=1), manifest)
    run_here(folder)
    path = folder.model / "model.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"overrides": record["overrides"] | {"depth": 3}}))
    with pytest.raises(ContractError, match=r"model\.safetensors does not fit model.json"):
        load_model(folder.model)
    path.write_text(json.dumps(record | {"format": 2}))
    with pytest.raises(ContractError, match="format 2"):
        load_model(folder.model)
    path.unlink()
    with pytest.raises(ContractError, match=r"no model\.json"):
        load_model(folder.model)


def test_kill_and_sigterm_and_again_gives_the_same_bytes(tmp_path: Path, manifest: Manifest) -> None:
    model = {"drop_path_rate": 0.2}
    unbroken = make_run(
        tmp_path / "unbroken", make_config(tmp_path, model=model, **HARD | {"checkpoint_seconds": 60.0}), manifest
    )
    run_here(unbroken)
    broken = make_run(tmp_path / "broken", make_config(tmp_path, model=model, **HARD), manifest)
    process = start_child(broken)
    wait_for_step(broken, process, 8)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    steps = [int(path.name[5:]) for path in broken.checkpoint.glob("step-*")]
    assert 8 <= max(steps) < 8 * 6
    process = start_child(broken)
    wait_for_step(broken, process, max(steps) + 3)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == child.EXIT_STOPPED
    assert not broken.done.exists()
    run_here(broken)
    for name in ("model/model.safetensors", "model/model.json", "logits.parquet"):
        assert sha256(broken.root / name) == sha256(unbroken.root / name), name
    assert json.loads(broken.done.read_text())["resumed_from"] > max(steps)
    assert any("resumed after step" in event.message for event in read_progress(broken.progress))


def test_a_probe_that_was_stopped_keeps_its_features(tmp_path: Path, manifest: Manifest) -> None:
    config = make_config(tmp_path, recipe="probe")
    unbroken, broken = (make_run(tmp_path / name, config, manifest) for name in ("unbroken", "broken"))
    run_here(unbroken)
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        child.run(broken, stop)
    run_here(broken)
    assert sha256(broken.model / "model.safetensors") == sha256(unbroken.model / "model.safetensors")


def test_other_seeds_and_no_ema_give_other_weights(tmp_path: Path, manifest: Manifest) -> None:
    digests = set()
    for number, keys in enumerate(({}, {"seed": 1}, {"ema_decay": None}, {"clip_grad": None})):
        folder = make_run(tmp_path / str(number), make_config(tmp_path, epochs=2, **keys), manifest)
        run_here(folder)
        digests.add(sha256(folder.model / "model.safetensors"))
    assert len(digests) == 4


def test_patience_ends_a_run_and_the_best_epoch_is_kept(tmp_path: Path, manifest: Manifest) -> None:
    # A rate that ruins the weights after the warm-up: the first epochs are the best. In float32, as the two passes over
    # the val split batch it differently, and such weights turn the rounding of bfloat16 into a percent of the loss.
    keys = {"learning_rate": 3.0, "clip_grad": None, "warmup_share": 0.1, "ema_decay": None, "precision": "fp32"}
    config = make_config(tmp_path, epochs=30, patience=2, **keys)
    folder = make_run(tmp_path / "run", config, manifest)
    run_here(folder)
    done = json.loads(folder.done.read_text())
    losses = [event.val_loss for event in read_progress(folder.progress) if event.event == "epoch"]
    assert done["epochs"] == len(losses) < 30
    assert done["best_epoch"] == int(np.argmin(losses)) == len(losses) - 3
    assert done["val_loss"] == min(losses)
    # The kept weights are those of the best epoch: their loss on the val split is its loss.
    logits = pd.read_parquet(folder.logits).merge(manifest.table[["tile_id", "label"]], on="tile_id")
    val = logits[logits["split"] == "val"]
    targets = torch.tensor([manifest.classes.index(label) for label in val["label"]])
    scores = torch.from_numpy(val[["logit_0", "logit_1"]].to_numpy(copy=True))
    assert float(torch.nn.functional.cross_entropy(scores, targets)) == pytest.approx(min(losses), rel=1e-4)


def test_multi_label_and_many_channels(tmp_path: Path) -> None:
    case = Case(tiles=80, channels=tuple(f"B{n:02d}" for n in range(1, 8)), classes=("a", "b", "c"), multi_label=True)
    manifest = make_manifest(tmp_path / "tiles", case)
    for recipe in ("full", "probe"):
        folder = make_run(tmp_path / recipe, make_config(tmp_path, recipe=recipe), manifest)
        run_here(folder)
        assert load_model(folder.model).multi_label
        assert list(pd.read_parquet(folder.logits).columns) == ["tile_id", "split", "logit_0", "logit_1", "logit_2"]


def test_a_model_of_ours_is_a_start_for_other_channels(tmp_path: Path, manifest: Manifest) -> None:
    first = make_run(tmp_path / "first", make_config(tmp_path), manifest)
    run_here(first)
    other = make_manifest(tmp_path / "other", Case(channels=("nir", "red"), classes=("a", "b", "c")))
    config = make_config(tmp_path, model={"weights": {"source": "mlflow", "uri": "models:/x/1"}}, epochs=1)
    second = make_run(tmp_path / "second", config, other)
    task = json.loads(second.task.read_text())
    second.task.write_text(json.dumps(task | {"weights_folder": str(first.model)}))
    run_here(second)
    record = json.loads((second.model / "model.json").read_text())["weights"]
    assert record["id"] == "models:/x/1"
    assert record["started_from"]["source"] == "random"
    assert "first layer: red take the filters of their own name; nir take the mean" in record["adapted"][0]


def test_a_loss_that_is_not_finite_names_the_step(tmp_path: Path, manifest: Manifest) -> None:
    config = make_config(tmp_path, learning_rate=1e30, clip_grad=None, warmup_share=0.0)
    folder = make_run(tmp_path / "run", config, manifest)
    with pytest.raises(TrainingFailed, match=r"the loss is (nan|inf) at step \d+ of \d+ .* lower train.learning_rate"):
        run_here(folder)
    assert not folder.done.exists()


def test_augmentation_of_a_probe_and_a_missing_val_split_are_said(tmp_path: Path, manifest: Manifest) -> None:
    table = manifest.table[manifest.table["split"] != "val"].reset_index(drop=True)
    without = Manifest(**{name: getattr(manifest, name) for name in manifest.__dataclass_fields__} | {"table": table})
    config = make_config(tmp_path, recipe="probe", augment={"flip_horizontal": True})
    folder = make_run(tmp_path / "run", config, without)
    run_here(folder)
    notes = [event.message for event in read_progress(folder.progress) if event.event == NOTE]
    assert any("train.augment has no effect" in note for note in notes)
    assert any("the val split has no tile" in note for note in notes)


# -------------------------------------------------------------------------------------------------------- the processes


def check_launched(config: PipelineConfig, manifest: Manifest, workspace: Workspace) -> TrainResult:
    """Train in two processes, and see that a complete run returns at once."""
    events = list[Progress]()
    result = train(config, manifest, workspace, events.append)
    assert (result.epochs, result.resumed_from, result.folder) == (8, None, workspace.run(result.run_id))
    assert [event.event for event in events if event.event in ("started", "done")] == ["started", "done"]
    assert [event.epoch for event in events if event.event == "epoch"] == list(range(8))
    assert load_model(result.folder / "model").record.training["processes"] == 2
    before = time.monotonic()
    assert train(config, manifest, workspace, events.append) == dataclasses.replace(result, reused=True)
    assert time.monotonic() - before < 0.5
    return result


@pytest.mark.slow
def test_two_ranks_learn_and_a_killed_one_ends_the_run_with_a_sentence_and_again_gives_the_same_bytes(
    tmp_path: Path, manifest: Manifest
) -> None:
    keys = {"processes": 2, "epochs": 8, "batch_size": 10}
    unbroken = check_launched(make_config(tmp_path, **keys), manifest, Workspace(tmp_path / "unbroken"))
    workspace = Workspace(tmp_path / "broken")

    def kill_a_rank(progress: Progress) -> None:
        if progress.event == "epoch" and progress.epoch == 1:
            os.kill(max(started_for(workspace)[1]), signal.SIGKILL)

    with pytest.raises(TrainingFailed, match="was killed"):
        train(make_config(tmp_path, **keys, checkpoint_seconds=0.0), manifest, workspace, kill_a_rank)
    again = train(make_config(tmp_path, **keys), manifest, workspace, lambda _: None)
    assert again.resumed_from
    for name in ("model/model.safetensors", "logits.parquet"):
        assert sha256(again.folder / name) == sha256(unbroken.folder / name), name


@pytest.mark.parametrize(
    "keys",
    [
        pytest.param({"precision": "bf16"}, id="bf16"),
        pytest.param({"compile": True}, id="compile", marks=pytest.mark.slow),
    ],
)
def test_bf16_and_compile_learn_nearly_the_same(
    tmp_path: Path, manifest: Manifest, keys: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    if "compile" in keys and shutil.which("g++") is None and shutil.which("c++") is None:
        pytest.skip("torch.compile needs a C++ compiler")
    compiled, losses, plainly = [], [], torch.compile
    monkeypatch.setattr("torch.compile", lambda network: compiled.append(1) or plainly(network))
    for name, extra in (("plain", {"precision": "fp32"}), ("other", keys)):
        if extra is keys:
            # Emulated where the CPU has no bfloat16: slow, but these tiles are few.
            monkeypatch.setattr("vitpipe.learn.place.computes_bf16", lambda _: "precision" in keys)
        folder = make_run(tmp_path / name, make_config(tmp_path, model={"depth": 1}, epochs=2, **extra), manifest)
        run_here(folder)
        losses.append([event.val_loss for event in read_progress(folder.progress) if event.event == "epoch"])
    assert losses[1] == pytest.approx(losses[0], rel=0.02 if "precision" in keys else 1e-3)
    if "compile" in keys:
        assert compiled, "torch.compile was not used"
    else:
        assert losses[1] != losses[0], "the same bits: the key had no effect"


def test_errors_of_the_child_come_back_typed(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    folder = make_run(tmp_path / "run", make_config(tmp_path, model={"name": "vit_tinny_patch16_224"}), manifest)
    assert child.main([str(folder.root)]) == child.EXIT_FAILED
    found = launch._failure(folder, child.EXIT_FAILED, 0, stopped=False)
    assert isinstance(found, ConfigError)
    assert "did you mean" in str(found)


def test_what_ends_a_child_becomes_a_sentence(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.log.write_text("Traceback\nValueError: broken thing\nmore\n")
    assert "ValueError: broken thing" in str(launch._failure(folder, 1, 0, stopped=False))
    folder.log.write_text("traceback : Signal 9\n  exitcode  : -9 (pid: 7)\n")
    found = launch._failure(folder, 1, 0, stopped=False)
    assert isinstance(found, TrainingFailed)
    assert "ran out of memory" in str(found)
    assert isinstance(launch._failure(folder, 1, 0, stopped=True), TransientError)
    for text in ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes",):
        assert "train.batch_size" in str(child._memory_sentence(RuntimeError(text)))
    assert child._memory_sentence(RuntimeError("shape mismatch")) is None


PARENT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from learn_cases import make_config
from vitpipe.learn.launch import train
from vitpipe.manifest import read_manifest
from vitpipe.workspace import Workspace
root = Path(sys.argv[1])
config = make_config(root, epochs=10_000, checkpoint_seconds=0.0, processes=int(sys.argv[3]))
train(config, read_manifest(root), Workspace(root / "w"), lambda _: None)
"""


@pytest.mark.parametrize("processes", [1, 2])
def test_no_child_outlives_a_killed_parent(tmp_path: Path, manifest: Manifest, processes: int) -> None:
    from vitpipe.manifest import write_manifest

    write_manifest(manifest, tmp_path)
    root = str(Path(vitpipe.__file__).parents[1])
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path), str(Path(__file__).parent), str(processes)],
        # As if something had launched us with ranks of its own.
        env=os.environ | {"PYTHONPATH": root, "RANK": "1", "WORLD_SIZE": "3"},
    )
    limit = time.monotonic() + 120
    while not list(tmp_path.glob("w/runs/*/checkpoint/step-*")):
        assert parent.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.05)
    torchrun, ranks = started_for(Workspace(tmp_path / "w"))
    assert (len(torchrun), len(ranks)) == ((0, 1) if processes == 1 else (1, 2))
    family = [describe_process(pid) for pid in (*torchrun, *ranks)]
    # Not waited for: a zombie must count as dead.
    parent.send_signal(signal.SIGKILL)
    limit = time.monotonic() + 30
    while any(is_alive(each) for each in family):
        assert time.monotonic() < limit, "a child lives on"
        time.sleep(0.05)
    assert parent.wait() == -signal.SIGKILL


def started_for(workspace: Workspace) -> tuple[list[int], list[int]]:
    """Find torchrun and its ranks in a workspace, by what they were started with: other children there may be too."""
    torchrun, ranks = list[int](), list[int]()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if any(word.startswith(str(workspace.root)) for word in words):
                (torchrun if "torch.distributed.run" in words else ranks).append(int(entry.name))
    return torchrun, ranks


def test_a_process_is_known_by_number_and_start() -> None:
    assert is_alive(describe_process(os.getpid()))
    assert not is_alive(f"{os.getpid()}:1")
    assert SUPERVISOR_VARIABLE not in os.environ
