"""Tiny packages and files for the tests of prediction and registry."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import rasterio
import torch
from rasterio.transform import from_origin

from vitpipe.config import ModelRecipe, TileRecipe
from vitpipe.evaluate.calibration import Calibration
from vitpipe.learn.architecture import build, overrides_of
from vitpipe.learn.model import ModelRecord, save_model, versions
from vitpipe.learn.preprocessing import Preprocessing

SIZE = 32
CLASSES = ("forest", "water")
BANDS = ("B03", "B04", "B08")
MEAN, STD = 1000.0, 300.0


def make_package(
    folder: Path,
    *,
    seed: int = 0,
    classes: tuple[str, ...] = CLASSES,
    channels: tuple[str, ...] = BANDS,
    units: str = "dn",
    source: dict | None = None,
    head_scale: float = 1.0,
    tiles: TileRecipe | None = None,
    multi_label: bool = False,
) -> Path:
    """Write a package of a tiny ViT with random weights."""
    torch.manual_seed(seed)
    tiles = tiles or TileRecipe(size=SIZE)
    recipe = ModelRecipe.model_validate(
        {
            "name": "vit_tiny_patch16_224",
            "weights": {"source": "random"},
            "patch_size": 8,
            "embed_dim": 24,
            "depth": 1,
            "num_heads": 2,
        }
    )
    module, overrides = build(recipe, overrides_of(recipe, len(channels), len(classes), tiles.size))
    state = {name: value.clone() for name, value in module.state_dict().items()}
    state["head.weight"] = torch.randn(state["head.weight"].shape) * head_scale
    record = ModelRecord(
        architecture=recipe.name,
        overrides=overrides,
        head="timm",
        preprocessing=Preprocessing(channels, units, None, (MEAN,) * len(channels), (STD,) * len(channels), tiles.size),
        classes=classes,
        multi_label=multi_label,
        priors=(1 / len(classes),) * len(classes),
        logit_adjustment=0.0,
        batch_size=8,
        tile_size=tiles.size,
        tiles=tiles.model_dump(mode="json"),
        source=source or {"kind": "geotiff", "bands": list(channels), "units": units},
        weights={"source": "random", "licence": None},
        training={"seed": seed},
        digests={"manifest": "ab" * 8, "config": "cd" * 8},
        versions=versions(),
    )
    save_model(folder, state, record)
    Calibration(
        classes=classes,
        multi_label=multi_label,
        temperature=1.5,
        log_prior=(0.0,) * len(classes),
        alpha=0.1,
        qhat=None if multi_label else 0.7,
        thresholds=(0.5,) * len(classes) if multi_label else None,
        n_groups=20,
    ).save(folder)
    return folder


def write_scene(
    path: Path,
    *,
    bands: tuple[str, ...] = BANDS,
    height: int = 70,
    width: int = 100,
    seed: int = 0,
    mean: float = MEAN,
) -> np.ndarray:
    """Write a GeoTIFF scene of noise; gives its pixels (C, H, W)."""
    rng = np.random.default_rng(seed)
    pixels = rng.normal(mean, mean * STD / MEAN, (len(bands), height, width)).clip(1).astype(np.uint16)
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=height,
        width=width,
        count=len(bands),
        dtype="uint16",
        crs="EPSG:32633",
        transform=from_origin(500_000, 5_000_000, 10, 10),
    ) as file:
        file.write(pixels)
        for number, name in enumerate(bands, start=1):
            file.set_band_description(number, name)
    return pixels
