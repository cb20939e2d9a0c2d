"""MONAI's ViT learns, is saved and judged like timm's."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from learn_cases import make_config, make_manifest, make_run
from timm.optim import create_optimizer_v2

from vitpipe.config import ModelRecipe, RandomWeights
from vitpipe.errors import ConfigError
from vitpipe.learn import child
from vitpipe.learn.architecture import build, overrides_of
from vitpipe.learn.model import load_model
from vitpipe.store import TileStore

KEYS = {"name": "monai_vit", "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}


def recipe_of(**changes: object) -> ModelRecipe:
    return ModelRecipe.model_validate({**KEYS, "weights": RandomWeights(), **changes})


@pytest.mark.parametrize("kind", ["full", "probe"])
def test_it_learns_and_its_saved_model_gives_the_logits_of_the_run(tmp_path: Path, kind: str) -> None:
    manifest = make_manifest(tmp_path / "tiles")
    config = make_config(tmp_path, recipe=kind, epochs=6)
    assert config.model is not None
    config = config.model_copy(update={"model": recipe_of()})
    folder = make_run(tmp_path / "run", config, manifest)
    child.run(folder, threading.Event())
    logits = pd.read_parquet(folder.logits)
    judged = manifest.table[manifest.table["split"] != "train"]
    tiles, valid = TileStore(manifest.tiles_folder).gather(judged)
    found = load_model(folder.model).logits(tiles, valid)
    assert np.array_equal(found, logits[["logit_0", "logit_1"]].to_numpy())
    assert (np.array(manifest.classes)[found.argmax(1)] == judged["label"]).mean() > 0.9


def test_its_layers_decay_from_head_to_stem() -> None:
    model, _ = build(recipe_of(), overrides_of(recipe_of(), 3, 2, 16))
    optimiser = create_optimizer_v2(model, "adamw", lr=1.0, layer_decay=0.5)
    scales = {
        name: group["lr_scale"]
        for group in optimiser.param_groups
        for name, parameter in model.named_parameters()
        if any(parameter is other for other in group["params"])
    }
    stem = next(scale for name, scale in scales.items() if "patch_embedding" in name)
    assert stem < scales["encoder.blocks.0.mlp.linear1.weight"] < scales["encoder.blocks.1.mlp.linear1.weight"]
    assert scales["encoder.blocks.1.mlp.linear1.weight"] < scales["head.weight"] == 1.0


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"drop_path_rate": 0.1}, "drop_path_rate: the architecture `monai_vit` does not take"), ({"img_size": 20}, "20")],
)
def test_what_it_does_not_take_is_said(changes: dict[str, object], said: str) -> None:
    recipe = recipe_of(**changes)
    with pytest.raises(ConfigError, match=said):
        build(recipe, overrides_of(recipe, 3, 2, 16))


def test_logits_are_not_squashed() -> None:
    torch.manual_seed(0)
    model, _ = build(recipe_of(), overrides_of(recipe_of(), 3, 2, 16))
    with torch.no_grad():
        model.head.weight.mul_(100)  # type: ignore[operator, union-attr]
    assert model(torch.randn(4, 3, 16, 16)).abs().max() > 1
