"""Volumes go through preprocessing, augmentation, baselines, model and saved model as 2-D tiles do."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from learn_cases import Case, make_config, make_manifest, make_run
from torch.nn import functional

from vitpipe.config import AugmentRecipe, ModelRecipe, PreprocessRecipe
from vitpipe.errors import ConfigError, ContractError
from vitpipe.learn import child
from vitpipe.learn.architecture import build, overrides_of
from vitpipe.learn.augment import change_values, draw, move_pixels
from vitpipe.learn.baselines import pixel_statistics
from vitpipe.learn.model import batch_size_for, load_model
from vitpipe.learn.preprocessing import Preprocessing, measure_channels
from vitpipe.manifest import Manifest, read_manifest, write_manifest
from vitpipe.store import TileStore

KEYS = {"name": "monai_vit", "patch_size": [2, 8, 8], "embed_dim": 24, "depth": 1, "num_heads": 2}


def recipe_of(**changes: object) -> ModelRecipe:
    return ModelRecipe.model_validate({**KEYS, "weights": {"source": "random"}, **changes})


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return make_manifest(tmp_path_factory.mktemp("volumes") / "tiles", Case(depth=4))


@pytest.mark.parametrize("kind", ["full", "probe"])
def test_volumes_are_learnt_and_the_saved_model_gives_the_logits_of_the_run(
    tmp_path: Path, manifest: Manifest, kind: str
) -> None:
    augment = {"flip_horizontal": True, "quarter_turns": True, "translate": 0.1, "brightness": 0.1, "contrast": 0.1}
    config = make_config(tmp_path, recipe=kind, epochs=6, **({"augment": augment} if kind == "full" else {}))
    config = config.model_copy(update={"model": recipe_of()})
    folder = make_run(tmp_path / "run", config, manifest)
    child.run(folder, threading.Event())
    logits = pd.read_parquet(folder.logits)
    judged = manifest.table[manifest.table["split"] != "train"]
    tiles, valid = TileStore(manifest.tiles_folder).gather(judged)
    assert tiles.shape[1:] == (3, 4, 16, 16)
    model = load_model(folder.model)
    found = model.logits(tiles, valid)
    assert np.array_equal(found, logits[["logit_0", "logit_1"]].to_numpy())
    assert np.array_equal(model.logits(tiles[3:4], valid[3:4]), found[3:4])
    assert (np.array(manifest.classes)[found.argmax(1)] == judged["label"]).mean() > 0.9
    assert model.preprocessing.img_size == (4, 16, 16)
    assert Preprocessing.from_json(model.preprocessing.to_json()) == model.preprocessing


@pytest.mark.parametrize(
    ("changes", "depth", "said"),
    [
        ({"name": "vit_tiny_patch16_224"}, 4, "takes 2-D tiles.*`model.name: monai_vit`.*`tiles.neighbours`"),
        ({"img_size": 16}, 4, "the tiles are 3-D; give depth, height and width"),
        ({"img_size": [8, 16, 24]}, 4, r"img_size is \[8, 16, 24\].*height and width alike, such as \[8, 16, 16\]"),
        ({"patch_size": [3, 8, 8]}, 4, "no multiple"),
        ({"patch_size": 8}, 4, "no multiple"),
        ({}, None, r"model.patch_size is \[2, 8, 8\], but the tiles are 2-D"),
        ({"patch_size": 8, "img_size": [4, 16, 16]}, None, r"model.img_size is \[4, 16, 16\], but the tiles are 2-D"),
    ],
)
def test_dimensions_that_do_not_fit_are_said(changes: dict[str, object], depth: int | None, said: str) -> None:
    recipe = recipe_of(**changes)
    with pytest.raises(ConfigError, match=said):
        build(recipe, overrides_of(recipe, 3, 2, 16, depth))


def test_a_volume_is_resized_and_its_batches_count_its_tokens() -> None:
    recipe = recipe_of(img_size=[8, 32, 32])
    model, used = build(recipe, overrides_of(recipe, 1, 2, 16, 4))
    assert used["img_size"] == [8, 32, 32]
    assert model.num_patches == 4 * 4 * 4
    assert batch_size_for(model, (8, 32, 32)) == 32
    record = Preprocessing(("a",), "HU", (-5.0, 200.0), (10.0,), (2.0,), (8, 32, 32))
    tiles, valid = torch.rand(2, 1, 4, 16, 16) * 20, torch.ones(2, 4, 16, 16, dtype=torch.bool)
    valid[0, 1, :4] = False
    images = record.apply(tiles, valid)
    assert model(images).shape == (2, 2)
    plain = torch.where(valid[:, None], (tiles - 10) / 2, 0)
    flat = functional.interpolate(plain[:, 0], (32, 32), mode="bilinear", antialias=True)
    expected = functional.interpolate(flat[:, None], (8, 32, 32), mode="trilinear")
    torch.testing.assert_close(images, expected)
    same = dataclasses.replace(record, img_size=(4, 16, 16))
    torch.testing.assert_close(same.apply(tiles, valid), plain)
    with pytest.raises(ContractError, match=r"expected \(N, 1, D, H, W\)"):
        record.apply(tiles[:, :, 0], valid[:, 0])


def test_every_slice_of_a_volume_moves_as_a_tile_of_its_own_would() -> None:
    recipe = AugmentRecipe(
        flip_horizontal=True, flip_vertical=True, quarter_turns=True, translate=0.2, scale=0.1, rotate_degrees=10
    )
    draws = draw(recipe, 16, 1, 0, 0)
    images = torch.rand(16, 2, 3, 8, 8)
    moved = move_pixels(images, draws)
    for slice_ in range(3):
        torch.testing.assert_close(moved[:, :, slice_], move_pixels(images[:, :, slice_], draws))
    assert not torch.equal(moved, images)


def test_contrast_turns_about_the_mean_of_the_whole_volume() -> None:
    draws = draw(AugmentRecipe(brightness=0.3, contrast=0.5), 4, 1, 0, 0)
    mask = (torch.rand(4, 1, 3, 8, 8) < 0.8).float()
    images = torch.rand(4, 2, 3, 8, 8) * mask
    changed = change_values(images, mask, draws)
    flat = change_values(images.flatten(2, 3), mask.flatten(2, 3), draws)
    torch.testing.assert_close(changed.flatten(2, 3), flat)


def test_statistics_and_baselines_see_every_voxel(manifest: Manifest) -> None:
    store = TileStore(manifest.tiles_folder)
    measured = measure_channels(PreprocessRecipe(), manifest, store)
    tiles, valid = store.gather(manifest.table[manifest.table["split"] == "train"])
    inside = np.moveaxis(tiles, 1, -1)[valid].astype(np.float64)
    np.testing.assert_allclose(measured.mean, inside.mean(0), rtol=1e-6)
    np.testing.assert_allclose(measured.std, inside.std(0), rtol=1e-6)
    assert measured.pixels == len(inside)
    guess = pixel_statistics(manifest, store, 0).set_index("tile_id")
    labels = manifest.table.set_index("tile_id")["label"].loc[guess.index]
    assert (np.array(manifest.classes)[guess.to_numpy().argmax(1)] == labels).mean() > 0.9


def test_a_manifest_of_volumes_reads_back(tmp_path: Path, manifest: Manifest) -> None:
    write_manifest(manifest, tmp_path)
    assert read_manifest(tmp_path).tile_shape == (3, 4, 16, 16)
