"""The parts of learning: losses, checkpoints, and what a run and its model are named by."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from learn_cases import make_config, make_manifest

from vitpipe.config import (
    DicomSource,
    FileWeights,
    PipelineConfig,
    TrainRecipe,
)
from vitpipe.errors import ConfigError, ContractError
from vitpipe.learn import losses
from vitpipe.learn.checkpoint import Checkpoint, TrainState, read_checkpoint, write_checkpoint
from vitpipe.learn.launch import make_task, run_id_of
from vitpipe.learn.place import resolve_precision


def test_logit_adjustment_adds_the_log_prior_in_the_loss() -> None:
    priors = losses.class_priors(torch.tensor([0, 0, 0, 1]), 2, multi_label=False)
    assert priors.tolist() == [3.5 / 5, 1.5 / 5]
    criterion = losses.make_criterion(priors, multi_label=False, label_smoothing=0.2, logit_adjustment=2.0)
    value = criterion.sums(torch.zeros(1, 2), torch.tensor([1]), smooth=False)
    assert float(value) == pytest.approx(-math.log(0.3**2 / (0.3**2 + 0.7**2)), rel=1e-6)
    with pytest.raises(ConfigError, match="multi-label"):
        losses.make_criterion(priors, multi_label=True, label_smoothing=0, logit_adjustment=1.0)


def test_multi_label_loss_and_balanced_accuracy() -> None:
    criterion = losses.make_criterion(torch.ones(2), multi_label=True, label_smoothing=0.0, logit_adjustment=0.0)
    value = criterion.sums(torch.zeros(3, 2), torch.tensor([[1.0, 0], [0, 0], [1, 1]]), smooth=True)
    assert float(value) == pytest.approx(3 * math.log(2))
    sums = losses.confusion_sums(
        torch.tensor([[2.0, -1], [-1, 3], [2, -1]]), torch.tensor([0, 1, 1]), multi_label=False
    )
    assert losses.balanced_accuracy(sums, multi_label=False) == pytest.approx((1 + 0.5) / 2)


def test_a_broken_checkpoint_is_passed_over_and_another_tasks_is_refused(tmp_path: Path) -> None:
    tensors = {"model": {"w": torch.arange(4.0)}, "best": {"w": torch.ones(4)}}
    for step in (3, 5, 9):
        state = TrainState(identity="mine", epoch=1, step=step, global_step=step, best_epoch=0)
        write_checkpoint(tmp_path, Checkpoint(state, tensors | {"model": {"w": torch.full((4,), float(step))}}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000005", "step-000000009"]
    # Unchanged best weights are one file.
    assert (tmp_path / "step-000000009" / "best.safetensors").stat().st_nlink == 2
    broken = tmp_path / "step-000000009" / "model.safetensors"
    broken.write_bytes(broken.read_bytes()[:-1])
    found, notes = read_checkpoint(tmp_path, "mine")
    assert found is not None
    assert found.state.global_step == 5
    assert found.tensors["model"]["w"].tolist() == [5.0] * 4
    assert "step-000000009 is broken" in notes[0]
    with pytest.raises(ContractError, match="belongs to another task"):
        read_checkpoint(tmp_path, "other")


def test_bf16_is_refused_where_it_is_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitpipe.learn.place.computes_bf16", lambda _: False)
    assert resolve_precision("auto", torch.device("cpu")) == "fp32"
    with pytest.raises(ConfigError, match="only emulates bfloat16"):
        resolve_precision("bf16", torch.device("cpu"))
    monkeypatch.setattr("vitpipe.learn.place.computes_bf16", lambda _: True)
    assert resolve_precision("auto", torch.device("cpu")) == "bf16"


def test_the_run_is_named_by_what_decides_its_result(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path / "tiles")
    config = make_config(tmp_path / "w")
    name = run_id_of(manifest, config)
    assert name == run_id_of(manifest, make_config(tmp_path / "elsewhere", checkpoint_seconds=1.0))
    assert name != run_id_of(manifest, make_config(tmp_path / "w", seed=1))
    for number, content in ((0, b"x"), (1, b"x"), (2, b"y")):
        (tmp_path / f"{number}.safetensors").write_bytes(content)
    names = [
        run_id_of(
            manifest,
            make_config(tmp_path, model={"weights": {"source": "file", "path": f"{tmp_path}/{n}.safetensors"}}),
        )
        for n in range(3)
    ]
    assert names[0] == names[1] != names[2]
    task = make_task(config, manifest, name, None)
    assert "path" not in task.source
    assert isinstance(task.train, TrainRecipe)
    assert not isinstance(task.model.weights, FileWeights)
    assert task.config_digest == config.content_digest()


def test_no_place_on_this_machine_is_part_of_what_was_asked_for(tmp_path: Path) -> None:
    weights = {"source": "file", "path": f"{tmp_path}/w.safetensors", "licence": "mit"}
    config = make_config(tmp_path / "w", model={"weights": weights})
    shown = json.dumps(config.without_places())
    assert str(tmp_path) not in shown
    assert "nowhere" not in shown
    assert '"licence": "mit"' in shown
    moved = make_config(tmp_path / "v", model={"weights": weights | {"path": "elsewhere"}}, checkpoint_seconds=1.0)
    assert moved.content_digest() == config.content_digest()
    other = make_config(tmp_path / "w", model={"weights": weights | {"licence": "bsd"}})
    assert other.content_digest() != config.content_digest()


def test_a_model_of_one_modality_says_so(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path / "tiles")
    config = make_config(tmp_path / "w")
    dicom = config.model_copy(update={"source": DicomSource(path="/nowhere")})
    train = manifest.table["split"] == "train"
    first = manifest.table.index[train][0]

    def modality(values: object, where: PipelineConfig = dicom) -> object:
        table = manifest.table.assign(attr_modality=values)
        return make_task(where, replace(manifest, table=table), "r", None).source.get("modality")

    # The other splits are not looked at.
    assert modality(["CT" if learnt else "MR" for learnt in train]) == "CT"
    assert modality(["MR" if row == first else "CT" for row in manifest.table.index]) is None
    assert modality([None if row == first else "CT" for row in manifest.table.index]) is None
    asked = config.model_copy(update={"source": DicomSource(path="/nowhere", modality="PT")})
    assert modality("CT", asked) == "PT"
    assert modality("CT", config) is None
    assert make_task(dicom, manifest, "r", None).source["modality"] is None


def test_cuda_that_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    manifest = make_manifest(tmp_path / "tiles")
    with pytest.raises(ConfigError, match="no CUDA device"):
        make_task(make_config(tmp_path, device="cuda"), manifest, "x", None)
