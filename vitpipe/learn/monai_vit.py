"""MONAI's Vision Transformer under the keys of timm's, so that one configuration names either.

MONAI's own classifier puts a Tanh on the logits, wants one image size and returns a tuple; the head here is plain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.nets.vit import ViT
from torch import nn


class MonaiVit(nn.Module):
    """MONAI's ViT (learnable positions, no class token), the mean of its tokens, and a linear head; 2-D or 3-D.

    Args:
        img_size: edge of the image, pixels; depth, height and width of a volume.
        patch_size: edge of a token's footprint, pixels; of a volume also depth, height and width.
        in_chans: channels of the image.
        num_classes: rows of the head; 0: no head.
        embed_dim: width of a token.
        depth: blocks.
        num_heads: heads of each block.
    """

    num_prefix_tokens = 0
    cls_token = None

    def __init__(  # noqa: PLR0913 - the keys of timm's VisionTransformer
        self,
        *,
        img_size: int | Sequence[int] = 224,
        patch_size: int | Sequence[int] = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
    ) -> None:
        super().__init__()
        image = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        patch = (patch_size,) * len(image) if isinstance(patch_size, int) else tuple(patch_size)
        if len(patch) != len(image) or any(size % step for size, step in zip(image, patch, strict=True)):
            shown = " x ".join(map(str, image)), " x ".join(map(str, patch))
            raise ValueError(
                f"tiles of {shown[0]} px (depth x height x width: tiles.depth, tiles.size, or model.img_size) are no "
                f"multiple of model.patch_size {shown[1]}; change one of them"
            )
        self.grid_size = tuple(size // step for size, step in zip(image, patch, strict=True))
        self.num_patches = math.prod(self.grid_size)
        self.encoder = ViT(
            in_channels=in_chans,
            img_size=image,
            patch_size=patch,
            hidden_size=embed_dim,
            mlp_dim=4 * embed_dim,
            num_layers=depth,
            num_heads=num_heads,
            spatial_dims=len(image),
            qkv_bias=True,
        )
        self.embed_dim = self.num_features = embed_dim
        self.head: nn.Module = nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks."""
        blocks: nn.ModuleList = self.encoder.blocks
        return blocks

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:  # noqa: ARG002, FBT001, FBT002 - timm's signature
        """Name the depth of each parameter, for timm's layer-wise learning rates."""
        return {
            "stem": r"^encoder\.patch_embedding",
            "blocks": [(r"^encoder\.blocks\.(\d+)", None), (r"^encoder\.norm", (99999,))],
        }

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        """Give the tokens (N, T, D) of images (N, C, H, W) or volumes (N, C, D, H, W)."""
        tokens: torch.Tensor = self.encoder(images)[0]
        return tokens

    def forward_intermediates(
        self,
        images: torch.Tensor,
        indices: Sequence[int],
        *,
        norm: bool = False,
        intermediates_only: bool = True,  # noqa: ARG002 - timm's signature
    ) -> list[torch.Tensor]:
        """Give the tokens of some blocks as maps (N, D, *grid), as timm's method of this name does.

        Args:
            images: (N, C, H, W) or (N, C, D, H, W).
            indices: of blocks, increasing.
            norm: whether the last norm is applied to each.
            intermediates_only: always.
        """
        last, states = self.encoder(images)
        chosen = [last if norm and index == len(states) - 1 else states[index] for index in indices]
        if norm:
            chosen = [state if state is last else self.encoder.norm(state) for state in chosen]
        return [state.movedim(1, 2).unflatten(2, self.grid_size) for state in chosen]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Give logits (N, K), or the mean token (N, D) without a head."""
        logits: torch.Tensor = self.head(self.forward_features(images).mean(1))
        return logits
