"""A timm model (or MONAI's ViT) by name, with the keys of `VisionTransformer` that the configuration overrides."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import timm
import torch
from timm.layers.patch_embed import PatchEmbed
from torch import nn

from vitpipe.errors import ConfigError, ContractError
from vitpipe.records import Json

if TYPE_CHECKING:
    from vitpipe.config import ModelRecipe

MONAI_VIT = "monai_vit"
"""The one architecture that is not timm's: MONAI's ViT."""

_OVERRIDES = ("patch_size", "embed_dim", "depth", "num_heads")
_UNEXPECTED = re.compile(r"unexpected keyword argument '(\w+)'")


class ProbeModel(nn.Module):
    """A frozen backbone and one linear layer on its features.

    Args:
        backbone: a timm model without classifier.
        num_classes: rows of the head.
    """

    def __init__(self, backbone: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(feature_width(backbone), num_classes)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Give the features (N, F): class token and mean of the other tokens, or the mean of a feature map."""
        tokens: torch.Tensor = self.backbone.forward_features(images)  # type: ignore[operator]
        if tokens.ndim == 4:
            return tokens.mean((2, 3))
        prefix = int(getattr(self.backbone, "num_prefix_tokens", 0))
        mean = tokens[:, prefix:].mean(1)
        return torch.cat([tokens[:, 0], mean], 1) if _has_class_token(self.backbone) else mean

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Give logits (N, K)."""
        logits: torch.Tensor = self.head(self.features(images))
        return logits


def _has_class_token(backbone: nn.Module) -> bool:
    return getattr(backbone, "cls_token", None) is not None


def feature_width(backbone: nn.Module) -> int:
    """Give the width of :meth:`ProbeModel.features`."""
    return int(backbone.num_features) * (2 if _has_class_token(backbone) else 1)  # type: ignore[arg-type]


def check_name(name: str) -> None:
    """Refuse an unknown architecture.

    Raises:
        ConfigError: timm has none of this name (a pretrained tag after a dot does not count); names the nearest.
    """
    if name == MONAI_VIT or timm.is_model(name.split(".", maxsplit=1)[0]):
        return
    near = difflib.get_close_matches(name, [*timm.list_models(), MONAI_VIT], n=3)
    hint = f"did you mean {', '.join(f'`{item}`' for item in near)}?" if near else "timm.list_models() gives the names"
    raise ConfigError(f"model.name: timm has no architecture `{name}`; {hint}")


def overrides_of(
    recipe: ModelRecipe, channels: int, classes: int, tile_size: int, depth: int | None = None
) -> dict[str, Json]:
    """Give the keyword arguments of the architecture: what the recipe overrides, and what the data demand.

    Args:
        recipe: names the architecture.
        channels: of the tiles.
        classes: of the labels.
        tile_size: height and width of a tile, pixels.
        depth: slices of a 3-D tile; None: tiles are 2-D.

    Raises:
        ConfigError: `in_chans` or `num_classes` is given and the data say otherwise, heads do not divide the width, or
            the architecture or its sizes are of another number of dimensions than the tiles.
    """
    _check_dimensions(recipe, depth)
    for key, found, what in (("in_chans", channels, "channels of the tiles"), ("num_classes", classes, "classes")):
        asked = getattr(recipe, key)
        if asked is not None and asked != found:
            raise ConfigError(
                f"model.{key} is {asked}, but the number of {what} is {found}; remove the key or correct it"
            )
    if recipe.embed_dim is not None and recipe.num_heads is not None and recipe.embed_dim % recipe.num_heads:
        raise ConfigError(
            f"model.embed_dim {recipe.embed_dim} is not a multiple of model.num_heads {recipe.num_heads}; "
            "each head takes an equal share of the width"
        )
    given: dict[str, Json] = {
        key: list(value) if isinstance(value, tuple) else value
        for key in (*_OVERRIDES, "img_size")
        if (value := getattr(recipe, key)) is not None
    }
    if recipe.drop_path_rate > 0:
        given["drop_path_rate"] = recipe.drop_path_rate
    size: Json = tile_size if depth is None else [depth, tile_size, tile_size]
    return {"img_size": size} | given | {"in_chans": channels, "num_classes": classes}


def _check_dimensions(recipe: ModelRecipe, depth: int | None) -> None:
    if depth is None:
        for key in ("img_size", "patch_size"):
            if isinstance(size := getattr(recipe, key), tuple):
                raise ConfigError(
                    f"model.{key} is {list(size)}, but the tiles are 2-D; give one number, or set `tiles.depth`"
                )
        return
    if recipe.name != MONAI_VIT:
        raise ConfigError(
            f"model.name: `{recipe.name}` takes 2-D tiles, but `tiles.depth` makes 3-D ones of {depth} slices; set "
            f"`model.name: {MONAI_VIT}`, or cut slices with their neighbours as channels (`tiles.neighbours`)"
        )
    if isinstance(recipe.img_size, int):
        raise ConfigError(
            f"model.img_size is {recipe.img_size}, but the tiles are 3-D; give depth, height and width, such as "
            f"[{depth}, {recipe.img_size}, {recipe.img_size}], or remove it"
        )
    if recipe.img_size is not None and recipe.img_size[1] != recipe.img_size[2]:
        # Turning a tile by a quarter asks for it, and another shape would shear what is turned by less.
        raise ConfigError(
            f"model.img_size is {list(recipe.img_size)}, but tiles are square; give height and width alike, such as "
            f"[{recipe.img_size[0]}, {recipe.img_size[1]}, {recipe.img_size[1]}]"
        )


def build(recipe: ModelRecipe, overrides: Mapping[str, Json]) -> tuple[nn.Module, dict[str, Json]]:
    """Build the architecture with fresh weights from torch's global generator.

    Args:
        recipe: its name, and which keys the user gave.
        overrides: as :func:`overrides_of` gives them.

    Returns:
        The model and the keyword arguments that were used (`img_size` is left out where the architecture is made for
        any size).

    Raises:
        ConfigError: an unknown name, a key that this architecture does not take, or sizes that do not fit each other.
    """
    check_name(recipe.name)
    used = dict(overrides)
    try:
        model = _create(recipe.name, used)
    except _KeyNotTaken as error:
        if error.key != "img_size" or recipe.img_size is not None:
            raise ConfigError(
                f"model.{error.key}: the architecture `{recipe.name}` does not take this key; remove it"
            ) from error
        del used["img_size"]
        try:
            model = _create(recipe.name, used)
        except _KeyNotTaken as second:
            raise ConfigError(
                f"model.{second.key}: the architecture `{recipe.name}` does not take this key; remove it"
            ) from second
    _check_patches(recipe.name, model)
    return model, used


class _KeyNotTaken(Exception):
    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def _create(name: str, arguments: Mapping[str, Json]) -> nn.Module:
    try:
        if name == MONAI_VIT:
            # MONAI takes seconds to import: only who asks for it waits.
            from vitpipe.learn.monai_vit import MonaiVit

            return MonaiVit(**arguments)  # type: ignore[arg-type]
        model: nn.Module = timm.create_model(name, pretrained=False, **arguments)  # type: ignore[arg-type]
    except TypeError as error:
        found = _UNEXPECTED.search(str(error))
        if found is None:
            raise
        raise _KeyNotTaken(found.group(1)) from error
    except (AssertionError, ValueError, ZeroDivisionError) as error:
        shown = ", ".join(f"{key} {value}" for key, value in arguments.items())
        raise ConfigError(f"model: `{name}` cannot be built with {shown}: {error or 'the sizes do not fit'}") from error
    return model


def _check_patches(name: str, model: nn.Module) -> None:
    """Refuse an image that whole patches do not cover."""
    embed = getattr(model, "patch_embed", None)
    if not isinstance(embed, PatchEmbed) or embed.img_size is None or embed.dynamic_img_pad:
        return
    size, patch = embed.img_size[0], embed.patch_size[0]
    if size % patch:
        raise ConfigError(
            f"model: {size} px (model.img_size, or the tile size) is not a multiple of the patch size {patch} of "
            f"`{name}`; set img_size to {max(1, size // patch) * patch} or "
            f"{(size // patch + 1) * patch}, or another patch_size"
        )


def rebuild(name: str, overrides: Mapping[str, Json], head: str) -> nn.Module:
    """Build the module of a saved model, weights still fresh.

    Args:
        name: timm's name.
        overrides: as :func:`build` returned them.
        head: ``timm`` (the architecture's own classifier) or ``probe``.

    Raises:
        ContractError: the installed timm cannot build it, or the kind of head is not known.
    """
    try:
        if head == "timm":
            return _create(name, overrides)
        if head == "probe":
            backbone = _create(name, dict(overrides) | {"num_classes": 0})
            return ProbeModel(backbone, int(str(overrides["num_classes"])))
    except (RuntimeError, _KeyNotTaken, ConfigError) as error:
        raise ContractError(
            f"the installed timm {timm.__version__} cannot build the saved model `{name}`: {error}"
        ) from error
    raise ContractError(f"the saved model has a head of the kind `{head}`; known: timm, probe")
