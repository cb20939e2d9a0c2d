"""From the tokens of a ViT to a map of its image: decoders for two and three dimensions.

Every decoder takes feature maps (N, D, *grid) of layers of the ViT and the image (N, C, *size); it gives (N, K, *size).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import nn
from torch.nn import functional

_CONV: Final[dict[int, Callable[..., nn.Module]]] = {2: nn.Conv2d, 3: nn.Conv3d}
_LINEAR = {2: "bilinear", 3: "trilinear"}
_LEAST_WIDTH = 16
_IMAGE_WIDTH = 8
_DPT_LEVELS = 4
GROUP_NORM = ("group", {"num_groups": 4})
"""In place of MONAI's instance norm, which takes the level of a tile away: the one thing that tells what a field is
that fills the tile."""


def interpolate(values: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Resize maps (N, K, *any) to a size, linearly; the same tensor where they have it."""
    if tuple(values.shape[2:]) == tuple(size):
        return values
    return functional.interpolate(values, tuple(size), mode=_LINEAR[values.ndim - 2], align_corners=False)


def _channels_last(values: torch.Tensor) -> torch.Tensor:
    """Lay the channels of a pixel side by side: convolutions and the norm over channels take half the time so."""
    return values.contiguous(memory_format=torch.channels_last if values.ndim == 4 else torch.channels_last_3d)


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each pixel: no statistic of the tile, so nothing that differs between tiles.

    Args:
        width: channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Give values of the same shape (N, C, *any)."""
        normed: torch.Tensor = self.norm(values.movedim(1, -1))
        return normed.movedim(-1, 1)


class LinearDecoder(nn.Module):
    """One linear layer on each token, resized to the image: what a probe learns.

    Args:
        width: of a token.
        outputs: K.
        dims: 2 or 3.
    """

    taps = (1.0,)
    """Which layers it reads, as shares of the depth."""

    def __init__(self, width: int, outputs: int, dims: int) -> None:
        super().__init__()
        self.out = _CONV[dims](width, outputs, 1)

    def forward(self, maps: Sequence[torch.Tensor], image: torch.Tensor) -> torch.Tensor:
        """Give (N, K, *size)."""
        return interpolate(self.out(maps[-1]), image.shape[2:])


class ConvDecoder(nn.Module):
    """Steps of a linear doubling and a convolution from the grid of tokens to the image; light.

    A doubling by a transposed convolution has weights of its own for each place in a patch, which draw a grid into
    every map (Odena et al. 2016, "Deconvolution and Checkerboard Artifacts"). Channels are narrowed before the
    doubling, which gives the same as after it, for a quarter of the work.

    A patch cannot hold where within it an edge lies better than its token does; so the last step also sees one
    convolution of the image itself.

    Args:
        width: of a token.
        outputs: K.
        channels: of the image.
        patch: footprint of a token, pixels; per axis.
    """

    taps = (1.0,)

    def __init__(self, width: int, outputs: int, channels: int, patch: Sequence[int]) -> None:
        super().__init__()
        dims = len(patch)
        now = min(256, max(32, width // 16 * 8))
        self.enter = nn.Sequential(_CONV[dims](width, now, 1), ChannelNorm(now), nn.GELU())
        steps: list[nn.Module] = []
        for stride in doublings(patch):
            after = max(_LEAST_WIDTH, now // 2)
            up = nn.Upsample(scale_factor=tuple(map(float, stride)), mode=_LINEAR[dims])
            steps += [nn.Sequential(_CONV[dims](now, after, 1), up, _block(after, after, dims))]
            now = after
        self.steps = nn.ModuleList(steps)
        self.image = nn.Sequential(_CONV[dims](channels, _IMAGE_WIDTH, 3, padding=1), nn.GELU())
        self.out = nn.Sequential(_block(now + _IMAGE_WIDTH, _LEAST_WIDTH, dims), _CONV[dims](_LEAST_WIDTH, outputs, 1))

    def forward(self, maps: Sequence[torch.Tensor], image: torch.Tensor) -> torch.Tensor:
        """Give (N, K, *size)."""
        image = _channels_last(image)
        values = self.enter(_channels_last(maps[-1]))
        for step in self.steps:
            values = step(values)
        detail: torch.Tensor = self.image(image)
        values = interpolate(values, image.shape[2:])
        logits: torch.Tensor = self.out(torch.cat([values, detail.to(values.dtype)], 1))
        return logits


def _block(width: int, after: int, dims: int) -> nn.Sequential:
    return nn.Sequential(_CONV[dims](width, after, 3, padding=1), ChannelNorm(after), nn.GELU())


def doublings(patch: Sequence[int]) -> list[tuple[int, ...]]:
    """Give the strides of the steps from a token to its pixels: each doubles the axes that still have room to.

    Args:
        patch: pixels; per axis. What is not a power of two is doubled up to the power below.
    """
    left = [int(math.log2(size)) for size in patch]
    return [tuple(2 if room >= number else 1 for room in left) for number in range(max(left), 0, -1)]


class _Residual(nn.Module):
    """Two convolutions beside a short cut, each after its activation (Ranftl et al. 2021, figure 1)."""

    def __init__(self, width: int, dims: int) -> None:
        super().__init__()
        conv = _CONV[dims]
        self.inner = nn.Sequential(
            nn.GELU(), conv(width, width, 3, padding=1), nn.GELU(), conv(width, width, 3, padding=1)
        )

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Give values of the same shape."""
        result: torch.Tensor = values + self.inner(values)
        return result


class DptDecoder(nn.Module):
    """Four layers of the ViT, reassembled at four resolutions and fused from the coarsest (Ranftl et al. 2021, DPT).

    Args:
        width: of a token.
        outputs: K.
        channels: of the image.
        dims: 2 or 3.
    """

    taps = (0.25, 0.5, 0.75, 1.0)

    def __init__(self, width: int, outputs: int, channels: int, dims: int) -> None:
        super().__init__()
        conv = _CONV[dims]
        inner = min(256, max(32, width // 16 * 8))
        self.project = nn.ModuleList(conv(width, inner, 1) for _ in range(_DPT_LEVELS))
        self.reassemble = nn.ModuleList(conv(inner, inner, 3, padding=1) for _ in range(_DPT_LEVELS))
        self.before = nn.ModuleList(_Residual(inner, dims) for _ in range(_DPT_LEVELS))
        self.after = nn.ModuleList(_Residual(inner, dims) for _ in range(_DPT_LEVELS))
        self.narrow = conv(inner, _LEAST_WIDTH, 3, padding=1)
        self.image = nn.Sequential(conv(channels, _IMAGE_WIDTH, 3, padding=1), nn.GELU())
        self.out = nn.Sequential(
            conv(_LEAST_WIDTH + _IMAGE_WIDTH, _LEAST_WIDTH, 3, padding=1), nn.GELU(), conv(_LEAST_WIDTH, outputs, 1)
        )

    def forward(self, maps: Sequence[torch.Tensor], image: torch.Tensor) -> torch.Tensor:
        """Give (N, K, *size)."""
        image, size = _channels_last(image), image.shape[2:]
        fused: torch.Tensor | None = None
        for level in reversed(range(_DPT_LEVELS)):
            # Early layers at four times the grid, the last at half of it; never finer than the image.
            scale = 2.0 ** (2 - level)
            wanted = [
                min(edge, max(1, math.ceil(grid * scale))) for grid, edge in zip(maps[0].shape[2:], size, strict=True)
            ]
            values = self.reassemble[level](interpolate(self.project[level](_channels_last(maps[level])), wanted))
            values = self.before[level](values)
            fused = self.after[level](values if fused is None else values + interpolate(fused, wanted))
        assert fused is not None
        values = interpolate(self.narrow(fused), size)
        detail: torch.Tensor = self.image(image)
        logits: torch.Tensor = self.out(torch.cat([values, detail.to(values.dtype)], 1))
        return logits


class UnetrDecoder(nn.Module):
    """The decoder of UNETR (Hatamizadeh et al. 2022) from MONAI's blocks, for any patch whose sides are powers of two.

    MONAI's own class has one encoder of 12 blocks and patches of 16 pixels on every axis; with such a ViT this is it.

    Args:
        width: of a token.
        outputs: K.
        channels: of the image.
        patch: footprint of a token, pixels; per axis.
        features: channels at full resolution; each halving doubles them.
    """

    def __init__(self, *, width: int, outputs: int, channels: int, patch: Sequence[int], features: int) -> None:
        super().__init__()
        # MONAI takes seconds to import: only who asks for it waits.
        from monai.networks.blocks.dynunet_block import UnetResBlock, get_conv_layer
        from monai.networks.blocks.unetr_block import UnetrBasicBlock, UnetrUpBlock

        dims, strides = len(patch), doublings(patch)
        levels = len(strides)
        self.taps = tuple((level + 1) / levels for level in range(levels))
        self.image = UnetrBasicBlock(dims, channels, features, 3, 1, GROUP_NORM, res_block=True)
        skips: list[nn.Module] = []
        for level in range(1, levels):
            after, layers = features * 2**level, list[nn.Module]()
            for number, stride in enumerate(strides[: levels - level]):
                before = after if number else width
                layers.append(
                    get_conv_layer(dims, before, after, kernel_size=stride, stride=stride, is_transposed=True)
                )
                layers += [UnetResBlock(dims, after, after, 3, 1, GROUP_NORM)] if number else []
            skips.append(nn.Sequential(*layers))
        self.skips = nn.ModuleList(skips)
        self.ups = nn.ModuleList(
            UnetrUpBlock(
                dims,
                width if level == levels - 1 else features * 2 ** (level + 1),
                features * 2**level,
                3,
                strides[levels - 1 - level],
                GROUP_NORM,
                res_block=True,
            )
            for level in reversed(range(levels))
        )
        self.out = _CONV[dims](features, outputs, 1)

    def forward(self, maps: Sequence[torch.Tensor], image: torch.Tensor) -> torch.Tensor:
        """Give (N, K, *size)."""
        skips = [self.image(image), *(skip(maps[level]) for level, skip in enumerate(self.skips))]
        values = maps[-1]
        for up, skip in zip(self.ups, reversed(skips), strict=True):
            values = up(values, skip)
        logits: torch.Tensor = self.out(values)
        return logits
