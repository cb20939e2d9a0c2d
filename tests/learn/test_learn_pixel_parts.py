"""Losses, augmentation and tables of pixels: labelled pixels count, and nothing else does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from learn_cases import PixelCase, make_pixel_manifest
from numpy.typing import NDArray
from torch.nn import functional

from vitpipe.config import AugmentRecipe, TrainRecipe
from vitpipe.errors import ConfigError, ContractError, DataError
from vitpipe.learn.augment import draw, move_pixels, move_targets
from vitpipe.learn.loader import SplitTiles
from vitpipe.learn.losses import Objective
from vitpipe.learn.pixel_baselines import _ridge
from vitpipe.learn.pixel_losses import ClassCriterion, ValueCriterion, loss_of
from vitpipe.learn.pixel_statistics import measure_targets
from vitpipe.learn.pixel_tables import SAMPLED_PIXELS, write_pixel_tables
from vitpipe.learn.place import Place
from vitpipe.manifest import Manifest
from vitpipe.pixel_targets import IGNORE, PixelTargets, write_targets
from vitpipe.records import Task
from vitpipe.store import TileStore

HERE = Place(torch.device("cpu"))
NAN = float("nan")


def classes_of(*, dice: bool = False, smoothing: float = 0.1) -> ClassCriterion:
    return ClassCriterion(smoothing, torch.tensor([0.2, -0.1, 0.0]), dice)


OBJECTIVES = [
    pytest.param(classes_of(), id="cross_entropy"),
    pytest.param(classes_of(dice=True), id="dice"),
    pytest.param(ValueCriterion(100.0, 5.0, squared=False), id="huber"),
    pytest.param(ValueCriterion(100.0, 5.0, squared=True), id="mse"),
]


def make_batch(objective: Objective, labelled: float = 0.4) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    known = torch.rand(4, 6, 6) < labelled
    if isinstance(objective, ClassCriterion):
        targets = torch.where(known, torch.randint(0, 3, (4, 6, 6)), IGNORE).to(torch.uint8)
        return torch.randn(4, 3, 6, 6), targets
    return torch.randn(4, 1, 6, 6), torch.where(known, 100 + 5 * torch.randn(4, 6, 6), NAN)


def gradient(objective: Objective, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    leaf = logits.clone().requires_grad_()
    objective.step(leaf, targets, len(targets), HERE).loss.backward()
    assert leaf.grad is not None
    return leaf.grad


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_pixels_without_a_label_do_not_count(objective: Objective) -> None:
    logits, targets = make_batch(objective)
    labelled = targets != IGNORE if targets.dtype == torch.uint8 else torch.isfinite(targets)
    changed = torch.where(labelled[:, None], logits, 1e4 * torch.randn_like(logits))
    one, other = (objective.step(each, targets, 4, HERE) for each in (logits, changed))
    assert torch.equal(one.loss, other.loss)
    assert int(one.count) == int(labelled.sum())
    found = gradient(objective, changed, targets)
    assert torch.equal(
        found[~labelled[:, None].expand_as(found)], torch.zeros(int((~labelled).sum()) * logits.shape[1])
    )
    assert torch.equal(objective.val_sums(logits, targets), objective.val_sums(changed, targets))
    assert len(objective.val_sums(logits, targets)) == objective.val_length


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_batch_without_a_label_has_no_gradient(objective: Objective) -> None:
    logits, targets = make_batch(objective, labelled=0.0)
    assert torch.equal(gradient(objective, logits, targets), torch.zeros_like(logits))
    assert float(objective.step(logits, targets, 4, HERE).loss) == 0.0
    assert objective.val_result(objective.val_sums(logits, targets)) == (None, None)


def test_the_loss_is_the_mean_over_the_labelled_pixels_and_the_score_is_that_of_the_sums() -> None:
    objective = classes_of(smoothing=0.0)
    logits, targets = make_batch(objective)
    labelled = targets != IGNORE
    flat, truth = logits.movedim(1, -1)[labelled], targets[labelled].long()
    step = objective.step(logits, targets, 4, HERE)
    torch.testing.assert_close(step.loss, functional.cross_entropy(flat + objective.adjustment, truth))
    parts = [objective.val_sums(logits[part], targets[part]) for part in (slice(0, 1), slice(1, 4))]
    loss, score = objective.val_result(sum(parts))
    assert loss == pytest.approx(float(step.loss), rel=1e-5)
    said = flat.argmax(1)
    expected = [((said == k) & (truth == k)).sum() / ((said == k) | (truth == k)).sum() for k in range(3)]
    assert score == pytest.approx(float(torch.stack(expected).mean()))


def test_dice_is_that_of_the_labelled_pixels_and_a_class_that_does_not_occur_is_left_out() -> None:
    objective = classes_of(dice=True, smoothing=0.0)
    logits, targets = make_batch(objective)
    targets[targets == 2] = 1
    plain = classes_of(smoothing=0.0).step(logits, targets, 4, HERE).loss
    labelled = targets != IGNORE
    shares, truth = logits.softmax(1).movedim(1, -1)[labelled], functional.one_hot(targets[labelled].long(), 3)
    dice = (2 * (shares * truth).sum(0) + 1) / (shares.sum(0) + truth.sum(0) + 1)
    step = objective.step(logits, targets, 4, HERE)
    torch.testing.assert_close(step.loss - plain, 1 - dice[:2].mean())
    loss, _ = objective.val_result(objective.val_sums(logits, targets))
    assert loss == pytest.approx(float(step.loss), rel=1e-5)


def test_values_are_judged_in_deviations_and_r2_is_that_of_the_sums() -> None:
    objective = ValueCriterion(100.0, 5.0, squared=True)
    logits, targets = make_batch(objective)
    known = torch.isfinite(targets)
    truth, said = (targets[known] - 100) / 5, logits[:, 0][known]
    torch.testing.assert_close(objective.step(logits, targets, 4, HERE).loss, (truth - said).square().mean())
    _, score = objective.val_result(objective.val_sums(logits, targets))
    expected = 1 - (truth - said).square().sum() / (truth - truth.mean()).square().sum()
    assert score == pytest.approx(float(expected), rel=1e-5)


def test_a_loss_of_another_task_is_refused() -> None:
    assert loss_of(TrainRecipe(), Task.REGRESSION) == "huber"
    for loss, task in (("mse", Task.SEGMENTATION), ("dice_cross_entropy", Task.REGRESSION), ("mse", "classification")):
        with pytest.raises(ConfigError, match=rf"train.loss is `{loss}`, but the labels ask for a {task}"):
            loss_of(TrainRecipe.model_validate({"loss": loss}), Task(task))


# --------------------------------------------------------------------------------------------------------- augmentation


@pytest.mark.parametrize("shape", [(16, 8, 8), (16, 3, 8, 8)])
def test_targets_are_flipped_and_turned_with_their_pixels(shape: tuple[int, ...]) -> None:
    draws = draw(AugmentRecipe(flip_horizontal=True, flip_vertical=True, quarter_turns=True), 16, 1, 0, 0)
    classes = torch.randint(0, 4, shape, dtype=torch.uint8)
    classes[0] = IGNORE
    moved = move_targets(classes, draws)
    assert moved.dtype == torch.uint8
    assert torch.equal(moved.float(), move_pixels(classes[:, None].float(), draws)[:, 0])
    assert not torch.equal(moved, classes)


@pytest.mark.parametrize("shape", [(16, 12, 12), (16, 2, 12, 12)])
def test_targets_are_warped_to_the_nearest_and_none_come_from_outside(shape: tuple[int, ...]) -> None:
    recipe = AugmentRecipe(translate=0.3, scale=0.2, rotate_degrees=30, quarter_turns=True)
    draws = draw(recipe, 16, 1, 0, 0)
    classes = torch.randint(0, 255, shape, dtype=torch.uint8)
    classes[:, ..., :3] = IGNORE
    moved = move_targets(classes, draws)
    known = move_pixels((classes != IGNORE).float()[:, None], draws)[:, 0]
    assert (moved[known < 1e-6] == IGNORE).all()
    assert (moved[known > 1 - 1e-6] != IGNORE).all()
    assert 0.2 < (moved != IGNORE).float().mean() < 0.75
    values = torch.where(classes == IGNORE, NAN, classes.float())
    as_values = move_targets(values, draws)
    assert torch.equal(torch.isnan(as_values), moved == IGNORE)
    assert torch.equal(as_values[moved != IGNORE], moved[moved != IGNORE].float())
    # A class is never mixed of two: a smooth slope keeps its place to within half a pixel.
    slope = torch.arange(12.0).expand(16, 12, 12) * 20
    still = draw(AugmentRecipe(translate=0.3), 16, 1, 0, 0)
    exact, near = move_pixels(slope[:, None], still)[:, 0], move_targets(slope.to(torch.uint8), still)
    inside = move_pixels(torch.ones(16, 1, 12, 12), still)[:, 0] > 1 - 1e-6
    assert ((exact - near.float()).abs()[inside] <= 10 + 1e-3).all()


# --------------------------------------------------------------------------------------------------- statistics, tables


@pytest.fixture(scope="module", params=["segmentation", "regression"])
def manifest(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    case = PixelCase(tiles=18, size=24, labelled=0.8, task=Task(request.param))
    return make_pixel_manifest(tmp_path_factory.mktemp("pixels"), case)


def targets_of(manifest: Manifest, rows: pd.DataFrame) -> NDArray[np.generic]:
    assert manifest.targets_folder is not None
    return PixelTargets(manifest.targets_folder, manifest.task, manifest.tile_shape[1:]).gather(rows)


def test_statistics_are_those_of_the_labelled_pixels(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitpipe.learn.pixel_statistics._BLOCK_PIXELS", 3 * 24 * 24)
    found = measure_targets(SplitTiles(manifest, TileStore(manifest.tiles_folder), "train"), manifest.task, 3)
    targets = targets_of(manifest, manifest.table[manifest.table["split"] == "train"])
    if manifest.task is Task.REGRESSION:
        known = targets[np.isfinite(targets)].astype(np.float64)
        assert (found.mean, found.std) == pytest.approx((known.mean(), known.std()))
        return
    counts = [(targets == kind).sum() for kind in range(3)]
    assert found.counts.tolist() == counts
    assert found.priors().tolist() == pytest.approx([(each + 0.5) / (sum(counts) + 1.5) for each in counts])


def test_what_is_not_valid_has_no_target_and_missing_targets_are_said(manifest: Manifest, tmp_path: Path) -> None:
    tiles = SplitTiles(manifest, TileStore(manifest.tiles_folder), "train")
    valid = np.ones((2, 24, 24), bool)
    valid[1, :5] = False
    found = tiles.targets_at(np.array([1, 0]), valid).numpy()
    plain = tiles.targets_at(np.array([1, 0]), None).numpy()
    none = IGNORE if manifest.task is Task.SEGMENTATION else np.nan
    np.testing.assert_array_equal(found, np.where(valid, plain, none))
    names = manifest.__dataclass_fields__
    without = Manifest(**{name: getattr(manifest, name) for name in names} | {"targets_folder": None})
    with pytest.raises(ContractError, match="names no targets"):
        SplitTiles(without, TileStore(manifest.tiles_folder), "train")
    empty = Manifest(**{name: getattr(manifest, name) for name in names} | {"targets_folder": tmp_path})
    blank = np.full((6, 24, 24), none, np.uint8 if manifest.task is Task.SEGMENTATION else np.float32)
    for shard in range(3):
        write_targets(tmp_path, f"shard{shard}", blank)
    with pytest.raises(DataError, match="no pixel of the train split has a label"):
        measure_targets(SplitTiles(empty, TileStore(manifest.tiles_folder), "train"), manifest.task, 3)


def say(tiles: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
    assert valid.shape == (len(tiles), 24, 24)
    return np.stack([tiles[:, 0] / 50, tiles[:, 1] / 80, 3 - tiles[:, 0] / 100], 1)


def say_value(tiles: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
    return tiles[:, :1] * 0.5 + 950 + valid[:, None]


def test_tables_hold_the_sums_of_each_tile_and_a_sample_that_is_the_same_in_every_run(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, classes = TileStore(manifest.tiles_folder), manifest.task is Task.SEGMENTATION
    predict = say if classes else say_value
    write_pixel_tables(tmp_path / "one", manifest, store, predict)
    monkeypatch.setattr("vitpipe.learn.pixel_tables._BLOCK_BYTES", 40_000)
    write_pixel_tables(tmp_path / "other", manifest, store, predict)
    tables = [pd.read_parquet(tmp_path / "one" / f"{name}.parquet") for name in ("pixels", "pixel_sample")]
    for name, table in zip(("pixels", "pixel_sample"), tables, strict=True):
        pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "other" / f"{name}.parquet"), table)
    sums, sample = (table.set_index("tile_id") for table in tables)
    judged = manifest.table[manifest.table["split"] != "train"]
    assert sorted(sums.index) == sorted(judged["tile_id"])
    tiles, valid = store.gather(judged)
    logits, targets = predict(tiles, valid), targets_of(manifest, judged)
    for number, row in enumerate(judged.itertuples()):
        mine, truth, said = sums.loc[row.tile_id], targets[number], logits[number]
        assert mine["split"] == row.split
        known = truth != IGNORE if classes else np.isfinite(truth)
        assert mine["n"] == known.sum()
        if classes:
            counts = np.zeros((3, 3), np.int64)
            np.add.at(counts, (truth[known], said.argmax(0)[known]), 1)
            assert mine["counts"].tolist() == counts.ravel().tolist()
        else:
            y, p = truth[known].astype(np.float64), said[0][known].astype(np.float64)
            expected = [
                y.sum(),
                (y**2).sum(),
                p.sum(),
                (p**2).sum(),
                (y * p).sum(),
                abs(p - y).sum(),
                ((p - y) ** 2).sum(),
            ]
            names = ["sum_y", "sum_y2", "sum_p", "sum_p2", "sum_yp", "sum_abs_error", "sum_sq_error"]
            assert mine[names].tolist() == pytest.approx(expected)
        drawn = sample.loc[[row.tile_id]]
        assert len(drawn) == SAMPLED_PIXELS < known.sum()
        assert set(drawn["weight"]) == {known.sum() / SAMPLED_PIXELS}
        assert known[drawn["row"], drawn["col"]].all()
        assert not drawn[["row", "col"]].duplicated().any()
        assert drawn["truth"].tolist() == truth[drawn["row"], drawn["col"]].tolist()
        columns = ["logit_0", "logit_1", "logit_2"] if classes else ["predicted"]
        assert np.array_equal(drawn[columns].to_numpy().T, said[:, drawn["row"], drawn["col"]])


def test_each_tile_has_a_draw_of_its_own(tmp_path: Path) -> None:
    manifest = make_pixel_manifest(tmp_path / "m", PixelCase(tiles=18, size=24))
    write_pixel_tables(tmp_path, manifest, TileStore(manifest.tiles_folder), say)
    sample = pd.read_parquet(tmp_path / "pixel_sample.parquet")
    places = [tuple(part["row"] * 24 + part["col"]) for _, part in sample.groupby("tile_id")]
    assert len(set(places)) == len(places) > 5


def test_a_ridge_finds_a_line_wherever_the_channels_lie() -> None:
    features = np.random.default_rng(1).normal([3.0, -7.0], [1.0, 2.0], (400, 2))
    targets = features @ [2.0, -1.0] + 40.0
    weight, bias = _ridge((features[:300], targets[:300]), (features[300:], targets[300:]))
    assert np.abs(features @ weight[0] + bias[0] - targets).max() < 0.01


def test_a_first_block_without_a_label_leaves_tables_as_any_other(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = manifest.table[manifest.table["split"] == "val"].iloc[0]
    none = IGNORE if manifest.task is Task.SEGMENTATION else NAN
    for shard in sorted(manifest.table["shard_id"].unique()):
        targets = np.load(manifest.targets_folder / f"{shard}.npy")
        if shard == first["shard_id"]:
            targets[first["shard_row"]] = none
        write_targets(tmp_path / "targets", shard, targets)
    monkeypatch.setattr("vitpipe.learn.pixel_tables._BLOCK_BYTES", 1)
    predict = say if manifest.task is Task.SEGMENTATION else say_value
    write_pixel_tables(
        tmp_path, replace(manifest, targets_folder=tmp_path / "targets"), TileStore(manifest.tiles_folder), predict
    )
    sums, sample = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("pixels", "pixel_sample"))
    assert sums.set_index("tile_id").loc[first["tile_id"], "n"] == 0
    assert set(sample["tile_id"]) == set(sums["tile_id"]) - {first["tile_id"]}
