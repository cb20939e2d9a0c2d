"""The parts of learning: preprocessing, augmentation, order of tiles, channels, weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from learn_cases import CHANNELS, Case, make_manifest, sha256
from safetensors.torch import save_file

from vitpipe.config import (
    AugmentRecipe,
    ModelRecipe,
    PreprocessRecipe,
)
from vitpipe.errors import ConfigError, ContractError, DataError, TransientError
from vitpipe.learn import augment
from vitpipe.learn.architecture import build, overrides_of
from vitpipe.learn.channels import adapt_channels
from vitpipe.learn.fit import make_scheduler
from vitpipe.learn.loader import Prefetcher, SplitTiles, epoch_order, epoch_parts, steps_per_epoch
from vitpipe.learn.preprocessing import Preprocessing, fit_preprocessing
from vitpipe.learn.weights import load_into, read_weights, statistics_for
from vitpipe.store import TileStore


def recipe_of(**keys: object) -> ModelRecipe:
    values = {"name": "vit_tiny_patch16_224", "weights": {"source": "random"}, "patch_size": 8, "embed_dim": 24}
    return ModelRecipe.model_validate(values | {"depth": 2, "num_heads": 3} | keys)


# ------------------------------------------------------------------------------------------------------ preprocessing


def test_statistics_are_those_of_the_valid_train_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = make_manifest(tmp_path / "tiles")
    store = TileStore(manifest.tiles_folder)
    train = manifest.table[manifest.table["split"] == "train"]
    tiles, valid = store.gather(train)
    values = np.moveaxis(tiles, 1, -1)[valid].astype(np.float64).clip(60, 140)
    recipe = PreprocessRecipe(clip=(60, 140))
    # Several blocks, the last one shorter.
    monkeypatch.setattr("vitpipe.learn.preprocessing._BLOCK_VALUES", 7 * 3 * 16 * 16)
    fitted, notes = fit_preprocessing(recipe, manifest, store, img_size=16)
    assert np.allclose(fitted.mean, values.mean(axis=0), rtol=1e-12)
    assert np.allclose(fitted.std, values.std(axis=0), rtol=1e-12)
    assert notes == ()
    assert Preprocessing.from_json(json.loads(json.dumps(fitted.to_json()))) == fitted
    images = fitted.apply(tiles, valid)
    assert (images.permute(0, 2, 3, 1)[~torch.from_numpy(valid)] == 0).all()
    assert abs(float(images.permute(0, 2, 3, 1)[torch.from_numpy(valid)].double().mean())) < 1e-6


def test_invalid_pixels_are_zero_even_where_they_are_nan() -> None:
    record = Preprocessing(("a",), "HU", None, (10.0,), (2.0,), 4)
    tiles = np.full((1, 1, 4, 4), 14, np.float32)
    tiles[0, 0, 0] = np.nan
    valid = np.ones((1, 4, 4), bool)
    valid[0, 0] = False
    assert record.apply(tiles, valid).squeeze().tolist() == [[0.0] * 4] + [[2.0] * 4] * 3


def test_preprocessing_refuses_other_channels_and_masks() -> None:
    record = Preprocessing(("a", "b"), "HU", None, (0.0, 0.0), (1.0, 1.0), 8)
    with pytest.raises(ContractError, match=r"expected \(N, 2, H, W\), channels a, b"):
        record.apply(np.zeros((1, 3, 8, 8), np.float32), np.ones((1, 8, 8), bool))
    with pytest.raises(ContractError, match="valid mask of shape"):
        record.apply(np.zeros((1, 2, 8, 8), np.float32), np.ones((1, 4, 8), bool))


def test_a_constant_channel_is_said_and_nan_is_refused(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path / "tiles", Case(dtype="float32"))
    constant = np.load(manifest.tiles_folder / "shard0" / "tiles.npy")
    for shard in ("shard0", "shard1", "shard2"):
        tiles = np.lib.format.open_memmap(manifest.tiles_folder / shard / "tiles.npy", mode="r+")
        tiles[:, 1] = 0
        tiles.flush()
    del constant
    fitted, notes = fit_preprocessing(PreprocessRecipe(), manifest, TileStore(manifest.tiles_folder), img_size=16)
    assert fitted.std[1] == 1.0
    assert "channel green holds the one value 0" in notes[0]
    row = manifest.table[manifest.table["split"] == "train"].iloc[3]
    tiles = np.lib.format.open_memmap(manifest.tiles_folder / row["shard_id"] / "tiles.npy", mode="r+")
    tiles[row["shard_row"], 0, -1, -1] = np.nan
    tiles.flush()
    with pytest.raises(DataError, match=row["tile_id"]):
        fit_preprocessing(PreprocessRecipe(), manifest, TileStore(manifest.tiles_folder), img_size=16)


def test_statistics_of_the_weights_need_known_units(tmp_path: Path) -> None:
    recipe = PreprocessRecipe(normalise="weights")
    of_weights = ((0.5, 0.4, 0.3), (0.25, 0.2, 0.1))
    eight_bit = make_manifest(tmp_path / "a", Case(dtype="uint8"))
    store = TileStore(eight_bit.tiles_folder)
    fitted, _ = fit_preprocessing(recipe, eight_bit, store, img_size=16, weights_statistics=of_weights)
    assert fitted.mean == (127.5, 102.0, 76.5)
    with pytest.raises(ConfigError, match="are not known for the channels"):
        fit_preprocessing(recipe, eight_bit, store, img_size=16)
    other = make_manifest(tmp_path / "b")
    with pytest.raises(ConfigError, match="needs 8-bit pixels or reflectance"):
        fit_preprocessing(recipe, other, TileStore(other.tiles_folder), img_size=16, weights_statistics=of_weights)


# ------------------------------------------------------------------------------------------------- augmentation, order

EVERYTHING = AugmentRecipe(
    flip_horizontal=True, flip_vertical=True, quarter_turns=True, translate=0.1, scale=0.1, rotate_degrees=10,
    brightness=0.2, contrast=0.2,
)  # fmt: skip


def test_draws_are_a_function_of_seed_epoch_and_step_and_ranks_take_their_rows() -> None:
    whole = augment.draw(EVERYTHING, 10, 1, 2, 3)
    assert torch.equal(whole.gain, augment.draw(EVERYTHING, 10, 1, 2, 3).gain)
    for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4)):
        assert not torch.equal(whole.gain, augment.draw(EVERYTHING, 10, *other).gain)
    part = whole.part(4, 7, torch.device("cpu"))
    assert part.theta is not None
    assert whole.theta is not None
    assert torch.equal(part.theta, whole.theta[4:7])


def test_turns_and_flips_give_all_eight_poses_and_nothing_else() -> None:
    image = torch.arange(9.0).reshape(1, 1, 3, 3)
    recipe = AugmentRecipe(flip_horizontal=True, flip_vertical=True, quarter_turns=True)
    images = augment.move_pixels(image.expand(400, 1, 3, 3), augment.draw(recipe, 400, 0, 0, 0))
    turned = [torch.rot90(image, turns, (2, 3)) for turns in range(4)]
    poses = {tuple(pose.flatten().tolist()) for pose in turned + [pose.flip(3) for pose in turned]}
    assert {tuple(each.flatten().tolist()) for each in images} == poses
    only_turns = augment.move_pixels(
        image.expand(400, 1, 3, 3), augment.draw(AugmentRecipe(quarter_turns=True), 400, 0, 0, 0)
    )
    assert {tuple(each.flatten().tolist()) for each in only_turns} == {tuple(p.flatten().tolist()) for p in turned}


def test_warp_shifts_by_pixels_and_fills_with_the_mean() -> None:
    draws = augment.draw(AugmentRecipe(translate=0.5), 1, 0, 0, 0)
    assert draws.theta is not None
    draws.theta[0] = torch.tensor([[1.0, 0.0, 2.0 / 8], [0.0, 1.0, 0.0]])
    image = torch.arange(64.0).reshape(1, 1, 8, 8) + 1
    moved = augment.move_pixels(image, draws)
    assert torch.allclose(moved[..., :7], image[..., 1:], atol=1e-4)
    assert (moved[..., 7] == 0).all()


def test_values_change_within_bounds_and_only_where_valid() -> None:
    recipe = AugmentRecipe(brightness=0.5, contrast=0.3)
    images = torch.randn(64, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(64, 1, 6, 6)
    mask[:, :, :2] = 0
    images *= mask
    draws = augment.draw(recipe, 64, 0, 0, 0)
    changed = augment.change_values(images, mask, draws)
    assert (changed[:, :, :2] == 0).all()
    centre = images.sum((2, 3)) / 24
    assert torch.allclose(changed.sum((2, 3)) / 24, centre + draws.offset[:, None], atol=1e-5)
    spread = (changed[:, :, 2:].std((2, 3)) / images[:, :, 2:].std((2, 3))).mean(1)
    assert torch.allclose(spread, draws.gain, atol=1e-4)
    assert draws.offset.abs().max() <= 0.5
    assert (draws.gain - 1).abs().max() <= 0.3


def test_an_epoch_sees_every_tile_once_whatever_the_ranks() -> None:
    order = epoch_order(101, 7, 3)
    assert np.array_equal(order, epoch_order(101, 7, 3))
    assert not np.array_equal(order, epoch_order(101, 7, 4))
    steps = steps_per_epoch(101, 16, 3)
    assert steps == 7
    seen = {rank: list(epoch_parts(order, steps, rank, 3)) for rank in range(3)}
    assert sorted(place for parts in seen.values() for *_, places in parts for place in places) == list(range(101))
    for step in range(steps):
        joined = np.concatenate([seen[rank][step][4] for rank in range(3)])
        assert np.array_equal(joined, np.array_split(order, steps)[step])
    assert [part[0] for part in epoch_parts(order, steps, 0, 3, first_step=5)] == [5, 6]
    with pytest.raises(ConfigError, match=r"train.processes is 8, but a step has only 4 tiles"):
        steps_per_epoch(12, 4, 8)


def test_prefetched_batches_are_the_tiles_asked_for_and_errors_come_through(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path / "tiles")
    store = TileStore(manifest.tiles_folder)
    tiles = SplitTiles(manifest, store, "train")
    order = epoch_order(len(tiles), 0, 0)
    rows = manifest.table[manifest.table["split"] == "train"]
    with Prefetcher(tiles, epoch_parts(order, 12, 0, 1), pin_memory=False) as batches:
        for number, batch in enumerate(batches):
            places = np.array_split(order, 12)[number]
            wanted, valid = TileStore(manifest.tiles_folder).gather(rows.iloc[places])
            assert np.array_equal(batch.tiles.numpy(), wanted)
            assert np.array_equal(batch.valid.numpy(), valid)
            assert [manifest.classes[index] for index in batch.targets] == rows["label"].iloc[places].tolist()
        assert number == 11
    (manifest.tiles_folder / "shard1" / "tiles.npy").unlink()
    broken = SplitTiles(manifest, TileStore(manifest.tiles_folder), "train")
    with (
        pytest.raises(ContractError, match="shard1"),
        Prefetcher(broken, epoch_parts(order, 3, 0, 1), pin_memory=False) as batches,
    ):
        list(batches)


# ------------------------------------------------------------------------------------------------ architecture, weights


def test_any_channel_count_and_size_builds() -> None:
    for channels, size in ((1, 16), (13, 32)):
        recipe = recipe_of()
        model, used = build(recipe, overrides_of(recipe, channels, 5, size))
        assert model(torch.zeros(2, channels, size, size)).shape == (2, 5)
        assert used["img_size"] == size
    plain = recipe_of(name="resnet10t", patch_size=None, embed_dim=None, depth=None, num_heads=None)
    model, used = build(plain, overrides_of(plain, 4, 2, 40))
    assert "img_size" not in used
    assert model.eval()(torch.zeros(1, 4, 40, 40)).shape == (1, 2)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"name": "vit_tinny_patch16_224"}, "did you mean `vit_tiny_patch16_224`"),
        ({"in_chans": 4}, "model.in_chans is 4, but the number of channels of the tiles is 3"),
        ({"num_classes": 9}, "model.num_classes is 9, but the number of classes is 2"),
        ({"num_heads": 5}, "embed_dim 24 is not a multiple of model.num_heads 5"),
        ({"img_size": 20}, "20 px .* is not a multiple of the patch size 8 .* set img_size to 16 or 24"),
        ({"name": "resnet18", "img_size": 32}, "resnet18` does not take this key"),
        ({"name": "resnet18"}, "model.patch_size: the architecture `resnet18` does not take this key"),
    ],
)
def test_what_cannot_be_built_is_said(keys: dict[str, object], sentence: str) -> None:
    recipe = recipe_of(**keys)
    with pytest.raises(ConfigError, match=sentence):
        build(recipe, overrides_of(recipe, 3, 2, 16))


def test_filters_find_their_channels_by_name() -> None:
    weight = torch.arange(1.0, 13.0).reshape(2, 3, 1, 2)
    grey, _ = adapt_channels(weight, CHANNELS, ("CT",))
    assert torch.equal(grey, weight.sum(1, keepdim=True))
    swapped, _ = adapt_channels(weight, CHANNELS, ("B02", "B03", "B04"))
    assert torch.equal(swapped, weight.flip(1))
    bands, note = adapt_channels(weight, CHANNELS, ("B02", "B03", "B04", "B08"))
    assert torch.equal(bands[:, :3], weight.flip(1))
    assert torch.allclose(bands[:, 3], weight.mean(1) / 4)
    assert note == "B02, B03, B04 take the filters of their own name; B08 take the mean of all filters, scaled"
    radar, _ = adapt_channels(weight, CHANNELS, ("VV", "VH"))
    # A constant image gives the response it gave.
    assert torch.allclose(radar.sum(1), weight.sum(1))
    unnamed, note = adapt_channels(weight, CHANNELS, ("b1", "b2", "b3"))
    assert torch.equal(unnamed, weight)
    assert "by position" in note
    landsat_7, _ = adapt_channels(weight, CHANNELS, ("B1", "B2", "B3", "B4"))
    assert not torch.equal(landsat_7[:, 3], weight[:, 0])


def test_weights_from_a_file_are_resampled_and_placed(tmp_path: Path) -> None:
    source = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3)
    path = tmp_path / "weights.safetensors"
    save_file(source.state_dict(), path)
    weights = {"source": "file", "path": str(path), "sha256": sha256(path), "licence": "mit"}
    recipe = recipe_of(weights=weights)
    model, _ = build(recipe, overrides_of(recipe, 4, 2, 16))
    fresh_head = model.head.weight.clone()
    start = read_weights(recipe, None)
    assert start is not None
    assert start.provenance["sha256"] == sha256(path)
    notes = load_into(model, start, ("green", "red", "nir", "blue"), recipe.name)
    assert torch.equal(model.blocks[1].mlp.fc1.weight, source.blocks[1].mlp.fc1.weight)
    assert torch.equal(model.patch_embed.proj.weight[:, 0], source.patch_embed.proj.weight[:, 1])
    assert torch.equal(model.head.weight, fresh_head)
    assert model.pos_embed.shape[1] == 5
    assert any("resampled from 17 to 5 tokens" in note for note in notes)
    # 0.5 is the mean of this architecture's pretrained weights.
    assert statistics_for(start, ("red", "green", "blue")) == ((0.5,) * 3, (0.5,) * 3)
    assert statistics_for(start, ("red", "nir")) is None


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    source = timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=24, depth=3, num_heads=3)
    path = tmp_path / "weights.safetensors"
    state = source.state_dict()
    del state["norm.weight"]
    save_file(state, path)
    recipe = recipe_of(weights={"source": "file", "path": str(path)})
    model, _ = build(recipe, overrides_of(recipe, 3, 2, 16))
    start = read_weights(recipe, None)
    assert start is not None
    with pytest.raises(
        ContractError, match=r"missing: norm.weight; unexpected: blocks.2.attn.proj.bias,.* and \d+ more"
    ):
        load_into(model, start, CHANNELS, recipe.name)
    with pytest.raises(ContractError, match="it is another file"):
        read_weights(recipe_of(weights={"source": "file", "path": str(path), "sha256": "0" * 64}), None)
    with pytest.raises(ConfigError, match="no file"):
        read_weights(recipe_of(weights={"source": "file", "path": str(tmp_path / "none")}), None)
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(ContractError, match="pickled weights"):
        read_weights(recipe_of(weights={"source": "file", "path": str(tmp_path / "weights.pt")}), None)


def test_timm_weights_check_the_licence_before_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def no_network(*_: object, **__: object) -> None:
        calls.append(1)
        raise FileNotFoundError("no route to the hub")

    monkeypatch.setattr("vitpipe.learn.weights.timm.create_model", no_network)
    # MAE's weights are CC-BY-NC-4.0.
    with pytest.raises(ConfigError, match=r"licence of vit_base_patch16_224\.mae is `cc-by-nc-4\.0`"):
        read_weights(recipe_of(name="vit_base_patch16_224.mae", weights={"source": "timm"}), None)
    assert not calls
    with pytest.raises(TransientError, match="source: file"):
        read_weights(recipe_of(weights={"source": "timm"}), None)
    assert calls
    with pytest.raises(ConfigError, match=r"timm has no weights for `vit_tiny_patch16_224\.nonsense`"):
        read_weights(recipe_of(name="vit_tiny_patch16_224.nonsense", weights={"source": "timm"}), None)


def test_layer_decay_reaches_the_learning_rates() -> None:
    """torch's own schedulers ignore `lr_scale`; every layer would then learn at one rate."""
    model = timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=24, depth=2, num_heads=3)
    optimiser = timm.optim.create_optimizer_v2(model, "adamw", lr=1.0, layer_decay=0.5)
    scheduler = make_scheduler(optimiser, 100, 0.1, 1.0)
    scheduler.step_update(10)
    rates = sorted({round(group["lr"], 6) for group in optimiser.param_groups})
    assert rates == [0.125, 0.25, 0.5, 1.0]
    scheduler.step_update(0)
    assert max(group["lr"] for group in optimiser.param_groups) == pytest.approx(0.01)
    scheduler.step_update(55)
    assert max(group["lr"] for group in optimiser.param_groups) == pytest.approx(0.5)
