"""What a model of pixels will take, before anything is read: for `vitpipe check`."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch

from vitpipe.config import ModelRecipe, TrainRecipe
from vitpipe.learn.pixel_model import SWIN_UNETR, UNET, PixelModel, Size, build_pixel_model
from vitpipe.learn.unet_baseline import Cost, cost_of, plan_of_equal_cost


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a run takes."""

    cost: Cost
    tokens: int
    """Of one tile; 0 for a whole network."""
    padded_px: Size
    """What the network computes on."""
    unet: Cost | None
    """Of the U-Net that learns beside it."""


def pixel_outlook(recipe: ModelRecipe, train: TrainRecipe, channels: int, tile_px: Size) -> Outlook:
    """Plan network and baseline without memory.

    Args:
        recipe: the model.
        train: whether a U-Net learns beside it, and whether a probe does.
        channels: of the tiles.
        tile_px: of a tile.

    Raises:
        ConfigError: as the run would.
    """
    # Swin UNETR reads numbers out of tensors while it is built, which one without memory does not have.
    there = nullcontext() if recipe.decoder == SWIN_UNETR else torch.device("meta")
    with there:
        probe = train.recipe == "probe"
        module, _, plan = build_pixel_model(recipe, channels, recipe.num_classes or 2, tile_px, probe=probe)
    cost = cost_of(module, plan)
    tokens = 0
    if isinstance(module, PixelModel):
        embed = getattr(module.backbone, "patch_embed", module.backbone)
        tokens = int(embed.num_patches) + int(module.backbone.num_prefix_tokens)  # type: ignore[arg-type]
    beside = train.baseline == UNET and plan.kind != UNET
    unet = plan_of_equal_cost(plan, cost.multiply_adds)[1] if beside else None
    return Outlook(cost, tokens, plan.padded_px, unet)
