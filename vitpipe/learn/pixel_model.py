"""Networks that say something of every pixel: a ViT with a decoder, or one of MONAI's whole networks.

Any tile size works: the image is padded at its end with zeros (the mean) to what the network's steps divide, and the
result is cut back.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from vitpipe.errors import ConfigError, ContractError
from vitpipe.learn.architecture import MONAI_VIT, build, overrides_of
from vitpipe.learn.decoders import GROUP_NORM, ConvDecoder, DptDecoder, LinearDecoder, UnetrDecoder, interpolate
from vitpipe.records import Json

if TYPE_CHECKING:
    from vitpipe.config import ModelRecipe

PIXELS = "pixels"
"""`ModelRecord.head` of a model of pixels."""
LINEAR = "linear"
UNET = "unet"
SWIN_UNETR = "swin_unetr"
WHOLE_NETWORKS = (UNET, SWIN_UNETR)
_WIDTHS = {UNET: 32, SWIN_UNETR: 24}
_UNETR_FEATURES = 16
_SWIN_STEP_PX = 32
"""Swin UNETR halves each axis five times."""
_UNET_STEPS, _UNET_FEWEST_STEPS = 4, 2
_UNET_LEAST_PX = 4
"""Of the coarsest level of the U-Net."""
_UNET_LEAST_WIDTH = 8
_MONAI_PATCH_PX = 16

Size = tuple[int, ...]
"""Pixels per axis: height and width, of volumes depth, height and width."""


@dataclass(frozen=True, slots=True)
class DecoderPlan:
    """All that decides the shape of a network of pixels, beside the architecture of its ViT."""

    kind: str
    """``linear`` (of a probe), ``conv``, ``dpt``, ``unetr``; ``unet`` and ``swin_unetr`` have no ViT."""
    channels: int
    """Of the image."""
    outputs: int
    """Classes; 1 for values."""
    image_px: Size
    """What the preprocessing gives."""
    padded_px: Size
    """What the network computes on."""
    tile_px: Size
    """What the result is resized to."""
    width: int = 0
    """Channels at full resolution of the networks that have no ViT, and of ``unetr``."""
    strides: tuple[Size, ...] = ()
    """Of the U-Net: of its steps down, after the first level."""

    def to_json(self) -> dict[str, Json]:
        """Give a JSON form that :meth:`from_json` reads back exactly."""
        return dataclasses.asdict(self) | {
            "image_px": list(self.image_px),
            "padded_px": list(self.padded_px),
            "tile_px": list(self.tile_px),
            "strides": [list(step) for step in self.strides],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> DecoderPlan:
        """Read what :meth:`to_json` wrote.

        Raises:
            ContractError: a key is missing or not known.
        """
        values: dict[str, Any] = {name: tuple(item) if isinstance(item, list) else item for name, item in value.items()}
        try:
            plan = cls(**values)
        except TypeError as error:
            raise ContractError(
                f"the model's decoder cannot be read ({error}); use the vitpipe that wrote it"
            ) from error
        return dataclasses.replace(plan, strides=tuple(tuple(step) for step in plan.strides))


class PixelModel(nn.Module):
    """A ViT and a decoder on its tokens.

    Args:
        backbone: a timm ViT or MONAI's, without classifier.
        decoder: as in `vitpipe.learn.decoders`.
        plan: the sizes.
        frozen: only the decoder learns.
    """

    def __init__(self, backbone: nn.Module, decoder: nn.Module, plan: DecoderPlan, *, frozen: bool = False) -> None:
        super().__init__()
        self.backbone, self.decoder, self.plan, self.frozen = backbone, decoder, plan, frozen
        depth = len(backbone.blocks)  # type: ignore[arg-type]
        taps: tuple[float, ...] = decoder.taps  # type: ignore[assignment]
        self._layers = [max(0, round(tap * depth) - 1) for tap in taps]
        if frozen:
            backbone.requires_grad_(requires_grad=False)

    def train(self, mode: bool = True) -> PixelModel:  # noqa: FBT001, FBT002 - torch's signature
        """Set the mode; a frozen backbone draws nothing."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Give (N, K, *tile_px) of images (N, C, *image_px)."""
        image = _pad(images, self.plan.padded_px)
        layers = sorted(set(self._layers))
        found = self.backbone.forward_intermediates(image, indices=layers, norm=True, intermediates_only=True)  # type: ignore[operator]
        maps = dict(zip(layers, found, strict=True))
        values = self.decoder([maps[layer] for layer in self._layers], image)
        return _fit_to_tile(values, self.plan)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:  # noqa: FBT001, FBT002 - timm's signature
        """Name the depth of each parameter, for timm's layer-wise learning rates; the decoder is the last."""
        groups: dict[str, Any] = self.backbone.group_matcher(coarse)  # type: ignore[operator]

        def of_backbone(pattern: str) -> str:
            return rf"^backbone\.(?:{pattern.replace('^', '')})"

        return {
            name: of_backbone(item) if isinstance(item, str) else [(of_backbone(key), order) for key, order in item]
            for name, item in groups.items()
        }

    def no_weight_decay(self) -> set[str]:
        """Name what timm's optimiser does not decay."""
        names = getattr(self.backbone, "no_weight_decay", set)
        return {f"backbone.{name}" for name in names()}


class WholeNetwork(nn.Module):
    """One of MONAI's networks, with padding.

    Args:
        network: gives (N, K, *padded_px) of (N, C, *padded_px).
        plan: the sizes.
    """

    def __init__(self, network: nn.Module, plan: DecoderPlan) -> None:
        super().__init__()
        self.network, self.plan = network, plan

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Give (N, K, *tile_px) of images (N, C, *image_px)."""
        return _fit_to_tile(self.network(_pad(images, self.plan.padded_px)), self.plan)


def _pad(images: torch.Tensor, size: Size) -> torch.Tensor:
    missing = [want - have for want, have in zip(size, images.shape[2:], strict=True)]
    if not any(missing):
        return images
    return functional.pad(images, [step for count in reversed(missing) for step in (0, count)])


def _fit_to_tile(values: torch.Tensor, plan: DecoderPlan) -> torch.Tensor:
    inside = (slice(None), slice(None), *(slice(0, size) for size in plan.image_px))
    return interpolate(values[inside], plan.tile_px)


# ------------------------------------------------------------------------------------------------------------- building


def build_pixel_model(
    recipe: ModelRecipe, channels: int, outputs: int, tile_px: Size, *, probe: bool
) -> tuple[nn.Module, dict[str, Json], DecoderPlan]:
    """Build a network of pixels with fresh weights from torch's global generator.

    Args:
        recipe: names ViT and decoder (None: ``conv``).
        channels: of the tiles.
        outputs: number of classes; 1 for values.
        tile_px: of a tile.
        probe: the backbone is frozen, and one linear layer on each token learns.

    Returns:
        The module, the keyword arguments of its ViT (none for a whole network), and the plan.

    Raises:
        ConfigError: a key does not fit the decoder, or sizes do not fit each other.
    """
    kind = recipe.decoder or (LINEAR if probe else "conv")
    if probe and kind != LINEAR:
        raise ConfigError(
            f"train.recipe is `probe`, which learns one linear layer on frozen tokens, but model.decoder is `{kind}`; "
            "remove `model.decoder`, or set `train.recipe: full`"
        )
    image_px = _image_px(recipe, tile_px)
    if kind in WHOLE_NETWORKS:
        plan = _whole_plan(recipe, kind, DecoderPlan(kind, channels, outputs, image_px, image_px, tile_px))
        return WholeNetwork(_whole_network(plan), plan), {}, plan
    depth = None if len(tile_px) == 2 else tile_px[0]
    asked = overrides_of(recipe, channels, outputs, tile_px[-1], depth)
    patch = _patch_px(recipe, asked, len(tile_px))
    padded = tuple(-(-size // step) * step for size, step in zip(image_px, patch, strict=True))
    size: Json = list(padded) if depth is not None else padded[0]
    backbone, used = build(recipe, asked | {"img_size": size, "num_classes": 0})
    _check_vit(recipe, backbone, used)
    features = _UNETR_FEATURES if kind == "unetr" else 0
    plan = DecoderPlan(kind, channels, outputs, image_px, padded, tile_px, features)
    return PixelModel(backbone, _decoder(plan, backbone, patch), plan, frozen=probe), used, plan


def rebuild_pixel_model(plan: DecoderPlan, backbone: nn.Module | None) -> nn.Module:
    """Build the module of a saved model, weights still fresh.

    Args:
        plan: as :func:`build_pixel_model` returned it.
        backbone: the ViT; None for a whole network.

    Raises:
        ContractError: the kind of decoder is not known.
    """
    if backbone is None:
        if plan.kind not in WHOLE_NETWORKS:
            raise ContractError(f"the saved model has a decoder of the kind `{plan.kind}`, which is no whole network")
        return WholeNetwork(_whole_network(plan), plan)
    patch = tuple(size // count for size, count in zip(plan.padded_px, grid_of(backbone), strict=True))
    return PixelModel(backbone, _decoder(plan, backbone, patch), plan)


def grid_of(backbone: nn.Module) -> Size:
    """Give the number of tokens per axis."""
    grid: Sequence[int] = getattr(getattr(backbone, "patch_embed", backbone), "grid_size")  # noqa: B009 - on either
    return tuple(grid)


def _image_px(recipe: ModelRecipe, tile_px: Size) -> Size:
    size = recipe.img_size
    if size is None:
        return tile_px
    if isinstance(size, int) and len(tile_px) == 2:
        return size, size
    if isinstance(size, tuple) and len(tile_px) == 3:
        return size
    raise ConfigError(
        f"model.img_size is {size}, but the tiles are {len(tile_px)}-D; give "
        f"{'one number' if len(tile_px) == 2 else 'depth, height and width'}, or remove it"
    )


def _patch_px(recipe: ModelRecipe, asked: Mapping[str, Json], dims: int) -> Size:
    """Find the footprint of a token before the size of the image is known that it must divide."""
    given = recipe.patch_size
    if given is None and recipe.name == MONAI_VIT:
        given = _MONAI_PATCH_PX
    if given is None:
        with torch.device("meta"):
            trial, _ = build(recipe, {key: value for key, value in asked.items() if key != "img_size"})
        patch = getattr(getattr(trial, "patch_embed", None), "patch_size", None)
        if patch is None:
            raise _no_vit(recipe)
        return tuple(int(size) for size in patch)
    return (given,) * dims if isinstance(given, int) else given


def _no_vit(recipe: ModelRecipe) -> ConfigError:
    return ConfigError(
        f"model.name: a decoder needs a plain Vision Transformer with one grid of tokens, which `{recipe.name}` is "
        "not; name one such as `vit_tiny_patch16_224`, or set `model.decoder: unet`"
    )


def _check_vit(recipe: ModelRecipe, backbone: nn.Module, used: Mapping[str, Json]) -> None:
    layers = getattr(backbone, "feature_info", None)
    scales = {layer["reduction"] for layer in layers} if isinstance(layers, list) else {0}
    able = hasattr(backbone, "forward_intermediates") and hasattr(backbone, "blocks") and "img_size" in used
    if not able or len(scales) != 1:
        raise _no_vit(recipe)


def _decoder(plan: DecoderPlan, backbone: nn.Module, patch: Size) -> nn.Module:
    width = int(backbone.embed_dim)  # type: ignore[arg-type]
    if plan.kind == LINEAR:
        return LinearDecoder(width, plan.outputs, len(patch))
    if plan.kind == "conv":
        return ConvDecoder(width, plan.outputs, plan.channels, patch)
    if plan.kind == "dpt":
        return DptDecoder(width, plan.outputs, plan.channels, len(patch))
    if plan.kind != "unetr":
        raise ContractError(
            f"the saved model has a decoder of the kind `{plan.kind}`, which this vitpipe does not know"
        )
    if max(patch) < 2 or any(size & (size - 1) for size in patch):
        raise ConfigError(
            f"model.patch_size is {list(patch)}, but the decoder `unetr` doubles its way from a token to its pixels; "
            "set model.patch_size to powers of two, such as 16, or `model.decoder: conv`, which takes any"
        )
    return UnetrDecoder(width=width, outputs=plan.outputs, channels=plan.channels, patch=patch, features=plan.width)


# ------------------------------------------------------------------------------------------------------- whole networks


def _whole_plan(recipe: ModelRecipe, kind: str, plan: DecoderPlan) -> DecoderPlan:
    for key in ("patch_size", "depth", "num_heads"):
        if getattr(recipe, key) is not None:
            raise ConfigError(
                f"model.{key}: the decoder `{kind}` is a whole network, which does not take this key; remove it, or "
                "choose the decoder `conv`, `dpt` or `unetr`"
            )
    if recipe.weights.source != "random":
        raise ConfigError(
            f"model.weights: the decoder `{kind}` is a whole network, and weights of a ViT do not fit it; set "
            "`weights: {source: random}`, or choose the decoder `conv`, `dpt` or `unetr`"
        )
    for key, found in (("in_chans", plan.channels), ("num_classes", plan.outputs)):
        if getattr(recipe, key) not in (None, found):
            raise ConfigError(f"model.{key} is {getattr(recipe, key)}, but the data have {found}; remove the key")
    width = recipe.embed_dim or _WIDTHS[kind]
    if kind == UNET:
        return unet_plan(plan, width)
    if width % 12:
        raise ConfigError(f"model.embed_dim is {width}, but `swin_unetr` needs a multiple of 12, such as 24 or 48")
    padded = tuple(-(-size // _SWIN_STEP_PX) * _SWIN_STEP_PX for size in plan.image_px)
    if any(want >= 2 * have for want, have in zip(padded, plan.image_px, strict=True)):
        raise ConfigError(
            f"model.decoder: `swin_unetr` works on multiples of {_SWIN_STEP_PX} pixels, so tiles of "
            f"{' x '.join(map(str, plan.image_px))} would be mostly padding; set tiles.size (and tiles.depth) or "
            f"model.img_size to {_SWIN_STEP_PX} or more, or take the decoder `unetr` or `unet`"
        )
    return dataclasses.replace(plan, padded_px=padded, width=width)


def unet_plan(plan: DecoderPlan, width: int) -> DecoderPlan:
    """Plan a U-Net: each step halves the axes that keep 4 pixels or more.

    Args:
        plan: channels, outputs and sizes.
        width: channels at full resolution; a multiple of 4, at least 8.

    Raises:
        ConfigError: another width.
    """
    if width % 4 or width < _UNET_LEAST_WIDTH:
        raise ConfigError(f"model.embed_dim is {width}, but `unet` needs a multiple of 4 from 8 on, such as 32")
    strides: list[Size] = []
    left = plan.image_px
    for _ in range(_UNET_STEPS):
        step = tuple(2 if size >= 2 * _UNET_LEAST_PX else 1 for size in left)
        if max(step) == 1 and len(strides) >= _UNET_FEWEST_STEPS:
            break
        strides.append(step)
        left = tuple(-(-size // by) for size, by in zip(left, step, strict=True))
    factor = [math.prod(steps) for steps in zip(*strides, strict=True)]
    padded = tuple(-(-size // by) * by for size, by in zip(plan.image_px, factor, strict=True))
    return dataclasses.replace(plan, kind=UNET, padded_px=padded, width=width, strides=tuple(strides))


def _whole_network(plan: DecoderPlan) -> nn.Module:
    # MONAI takes seconds to import: only who asks for it waits.
    dims = len(plan.image_px)
    if plan.kind == UNET:
        from monai.networks.nets.dynunet import DynUNet

        network = DynUNet(
            spatial_dims=dims,
            in_channels=plan.channels,
            out_channels=plan.outputs,
            kernel_size=[3] * (len(plan.strides) + 1),
            strides=[1, *plan.strides],
            upsample_kernel_size=plan.strides,
            filters=[plan.width * 2**level for level in range(len(plan.strides) + 1)],
            norm_name=GROUP_NORM,
        )
        # The class holds each layer twice, under two names, which a file of tensors cannot.
        return nn.Sequential(network.skip_layers, network.output_block)
    from monai.networks.nets.swin_unetr import SwinUNETR

    heads = plan.width // 8 if plan.width % 8 == 0 else plan.width // 12
    return SwinUNETR(
        in_channels=plan.channels,
        out_channels=plan.outputs,
        feature_size=plan.width,
        num_heads=[heads * factor for factor in (1, 2, 4, 8)],
        norm_name=GROUP_NORM,
        spatial_dims=dims,
    )
