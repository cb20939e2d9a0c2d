"""Random changes of training tiles: drawn per tile from (seed, epoch, step), applied to a whole batch on its device."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional

from vitpipe.config import AugmentRecipe
from vitpipe.learn.task import seed_of
from vitpipe.pixel_targets import IGNORE


@dataclass(frozen=True, slots=True)
class Draws:
    """The draws of one batch; every member has a row per tile."""

    flip_columns: torch.Tensor
    flip_rows: torch.Tensor
    transpose: torch.Tensor
    offset: torch.Tensor
    gain: torch.Tensor
    theta: torch.Tensor | None
    """(N, 2, 3) for `affine_grid`; None where nothing is moved by parts of pixels."""

    def part(self, start: int, stop: int, device: torch.device) -> Draws:
        """Give the rows of one rank, on its device."""
        flip_columns, flip_rows, transpose, offset, gain = (
            values[start:stop].to(device)
            for values in (self.flip_columns, self.flip_rows, self.transpose, self.offset, self.gain)
        )
        theta = None if self.theta is None else self.theta[start:stop].to(device)
        return Draws(flip_columns, flip_rows, transpose, offset, gain, theta)


def draw(recipe: AugmentRecipe, count: int, seed: int, epoch: int, step: int) -> Draws:
    """Draw for the global batch on the CPU, so that neither the device nor the number of ranks changes a draw.

    Args:
        recipe: what may change.
        count: tiles of the batch, over all ranks.
        seed: of the run.
        epoch: zero-based.
        step: zero-based, within the epoch.
    """
    generator = torch.Generator().manual_seed(seed_of("augment", seed, epoch, step))
    uniform = torch.rand((9, count), generator=generator)
    signed = 2.0 * uniform - 1.0
    flip_columns = (uniform[0] < 0.5) & recipe.flip_horizontal
    flip_rows = (uniform[1] < 0.5) & recipe.flip_vertical
    turns = (uniform[2] * 4).long() * int(recipe.quarter_turns)
    # A turn by 90 degrees is a transpose and one flip: numpy.rot90's k = 1, 2, 3.
    flip_rows = flip_rows ^ ((turns == 1) | (turns == 2))
    flip_columns = flip_columns ^ ((turns == 2) | (turns == 3))
    theta = None
    if recipe.translate > 0 or recipe.scale > 0 or recipe.rotate_degrees > 0:
        theta = _affine(recipe, signed[3:7])
    return Draws(
        flip_columns=flip_columns,
        flip_rows=flip_rows,
        transpose=turns % 2 == 1,
        offset=recipe.brightness * signed[7],
        gain=1.0 + recipe.contrast * signed[8],
        theta=theta,
    )


def _affine(recipe: AugmentRecipe, signed: torch.Tensor) -> torch.Tensor:
    """Give (N, 2, 3): output to input in units of half an edge, as `affine_grid` reads it."""
    angle = signed[0] * math.radians(recipe.rotate_degrees)
    zoom = 1.0 / (1.0 + recipe.scale * signed[1])
    cosine, sine = zoom * torch.cos(angle), zoom * torch.sin(angle)
    shift = 2.0 * recipe.translate * signed[2:4]
    return torch.stack([torch.stack([cosine, -sine, shift[0]], 1), torch.stack([sine, cosine, shift[1]], 1)], 1)


def change_values(images: torch.Tensor, mask: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Change contrast (about each tile's own mean) and brightness of the valid pixels.

    Args:
        images: normalised (N, C, H, W) or (N, C, D, H, W); invalid pixels are 0.
        mask: 1.0 where valid, of the same shape with one channel.
        draws: of this batch.

    Returns:
        The changed images; invalid pixels stay 0.
    """
    if not bool((draws.offset != 0).any() | (draws.gain != 1).any()):
        return images
    by_tile = (-1, *(1 for _ in images.shape[1:]))
    gain, offset = draws.gain.view(by_tile), draws.offset.view(by_tile)
    pixels = tuple(range(2, images.ndim))
    count = mask.sum(pixels, keepdim=True).clamp(min=1.0)
    centre = images.sum(pixels, keepdim=True) / count
    return ((images - centre) * gain + centre + offset) * mask


def move_pixels(images: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Turn, flip and warp; what comes from outside the tile is 0, as invalid pixels are.

    The slices of a volume are all moved alike, in their plane.

    Args:
        images: square (N, C, S, S), or volumes (N, C, D, S, S).
        draws: of this batch.
    """
    return _moved(images, draws, mode="bilinear")


def move_targets(targets: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Move the targets of pixels as :func:`move_pixels` moves the pixels: the nearest one, none from outside the tile.

    Args:
        targets: uint8 with `IGNORE`, or float32 with NaN: (N, S, S), of volumes (N, D, S, S).
        draws: of this batch.
    """
    values = targets[:, None]
    if draws.theta is None:
        return _moved(values, draws, mode="nearest")[:, 0]
    if targets.dtype == torch.uint8:
        # Class 0 becomes 1, so that what comes from outside is told from it.
        shifted = torch.where(values == IGNORE, 0, values + 1).float()
        moved = _moved(shifted, draws, mode="nearest")[:, 0].to(torch.int16)
        return torch.where(moved == 0, IGNORE, moved - 1).to(torch.uint8)
    known = torch.isfinite(values)
    moved = _moved(torch.where(known, values, 0.0), draws, mode="nearest")
    inside = _moved(known.float(), draws, mode="nearest") > 0
    return torch.where(inside, moved, torch.nan)[:, 0]


def _moved(images: torch.Tensor, draws: Draws, *, mode: str) -> torch.Tensor:
    if images.ndim == 5:
        return _moved(images.flatten(1, 2), draws, mode=mode).reshape(images.shape)

    def where(flag: torch.Tensor, changed: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return torch.where(flag[:, None, None, None], changed, other)

    if bool(draws.transpose.any()):
        images = where(draws.transpose, images.transpose(2, 3), images)
    if bool(draws.flip_rows.any()):
        images = where(draws.flip_rows, images.flip(2), images)
    if bool(draws.flip_columns.any()):
        images = where(draws.flip_columns, images.flip(3), images)
    if draws.theta is not None:
        grid = functional.affine_grid(draws.theta, list(images.shape), align_corners=False)
        images = functional.grid_sample(images, grid, mode=mode, padding_mode="zeros", align_corners=False)
    return images
