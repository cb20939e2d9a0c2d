"""From physical units to what the model sees: one record, saved with the weights; nothing loads tiles without it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from vitpipe.config import PreprocessRecipe
from vitpipe.errors import ConfigError, ContractError, DataError
from vitpipe.records import Json, Split

if TYPE_CHECKING:
    from vitpipe.manifest import Manifest
    from vitpipe.store import TileStore

_BLOCK_VALUES = 4 << 20
"""Values of one block of the statistics (32 MiB as float64). Fixed: the order of the sums is part of the result."""

ImageSize: TypeAlias = "int | tuple[int, int, int]"
"""Edge of a square image; depth, height and width of a volume."""
FloatTiles = NDArray[np.float32] | torch.Tensor
ValidMask = NDArray[np.bool_] | torch.Tensor


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """Clip, normalise, set invalid pixels to zero (the mean), resize."""

    channels: tuple[str, ...]
    units: str
    clip: tuple[float, float] | None
    mean: tuple[float, ...]
    """Per channel, in `units`."""
    std: tuple[float, ...]
    """Per channel, in `units`."""
    img_size: ImageSize
    """Edge of what the model sees, in pixels; of 3-D tiles its depth, height and width."""

    def __post_init__(self) -> None:
        """Refuse a record that does not hold together."""
        if not len(self.channels) == len(self.mean) == len(self.std):
            raise ContractError(
                f"preprocessing: {len(self.channels)} channels, {len(self.mean)} means and {len(self.std)} deviations"
            )
        if not all(np.isfinite(self.mean)) or not all(np.isfinite(self.std)) or min(self.std) <= 0:
            raise ContractError(f"preprocessing: mean {self.mean} and std {self.std} must be finite, std above 0")

    def to_json(self) -> dict[str, Json]:
        """Give a JSON form that :meth:`from_json` reads back exactly."""
        return {
            "channels": list(self.channels),
            "units": self.units,
            "clip": list(self.clip) if self.clip is not None else None,
            "mean": list(self.mean),
            "std": list(self.std),
            "img_size": list(self.img_size) if isinstance(self.img_size, tuple) else self.img_size,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> Preprocessing:
        """Read what :meth:`to_json` wrote."""
        values = {name: tuple(item) if isinstance(item, list) else item for name, item in value.items()}
        return cls(**values)  # type: ignore[arg-type]

    def apply(self, tiles: FloatTiles, valid: ValidMask) -> torch.Tensor:
        """Make model input of tiles.

        Args:
            tiles: float32 (N, C, H, W) or (N, C, D, H, W), physical units.
            valid: bool, without the channel axis.

        Returns:
            float32 (N, C, *img_size), on the device of `tiles`; invalid pixels are 0, the mean.

        Raises:
            ContractError: the shapes or the number of channels do not fit.
        """
        images, _ = self.normalise(tiles, valid)
        return self.resize(images)

    def normalise(self, tiles: FloatTiles, valid: ValidMask) -> tuple[torch.Tensor, torch.Tensor]:
        """Clip and normalise without resizing.

        Returns:
            Images of the shape of the tiles and the valid mask as float32, with one channel.

        Raises:
            ContractError: the shapes or the number of channels do not fit.
        """
        images = torch.as_tensor(tiles)
        mask = torch.as_tensor(valid)
        axes = 2 if isinstance(self.img_size, int) else 3
        if images.ndim != 2 + axes or images.shape[1] != len(self.channels):
            raise ContractError(
                f"tiles of shape {tuple(images.shape)} do not fit: expected (N, {len(self.channels)}, "
                f"{'H, W' if axes == 2 else 'D, H, W'}), channels {', '.join(self.channels)}"
            )
        if mask.shape != (images.shape[0], *images.shape[2:]):
            raise ContractError(f"a valid mask of shape {tuple(mask.shape)} does not fit tiles {tuple(images.shape)}")
        images = images.to(torch.float32)
        if self.clip is not None:
            images = images.clamp(*self.clip)
        # In float64 first: 1/std of a band in units of 1e-4 keeps its last bit.
        scale = torch.tensor(1.0 / np.asarray(self.std), dtype=torch.float32, device=images.device)
        shift = torch.tensor(self.mean, dtype=torch.float32, device=images.device)
        by_channel = (-1, *(1 for _ in range(axes)))
        images = (images - shift.view(by_channel)) * scale.view(by_channel)
        weights = mask.to(device=images.device, dtype=torch.float32)[:, None]
        # where, not a product: what is not valid may be NaN in an array that a user gives.
        return torch.where(weights > 0, images, images.new_zeros(())), weights

    def resize(self, images: torch.Tensor) -> torch.Tensor:
        """Resize a batch to `img_size`, if it has another size: bilinear, antialiased; linear in depth."""
        size = (self.img_size, self.img_size) if isinstance(self.img_size, int) else self.img_size
        if images.shape[2:] == size:
            return images
        if images.shape[-2:] != size[-2:]:
            # The slices of a volume are resized like channels: torch has no antialiased filter in three dimensions.
            flat = images.flatten(1, -3)
            flat = functional.interpolate(flat, size[-2:], mode="bilinear", antialias=True, align_corners=False)
            images = flat.reshape(*images.shape[:-2], *size[-2:])
        if images.shape[2:] == size:
            return images
        return functional.interpolate(images, size, mode="trilinear", align_corners=False)


@dataclass(frozen=True, slots=True)
class ChannelStatistics:
    """What the train split holds, per channel, after clipping, valid pixels alone."""

    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    pixels: int


def measure_channels(recipe: PreprocessRecipe, manifest: Manifest, store: TileStore) -> ChannelStatistics:
    """Measure the train split in one pass over blocks of fixed size: the same tiles give the same bits.

    Means and squared deviations of blocks are merged by Chan, Golub and LeVeque 1979, in float64.

    Raises:
        DataError: the train split has no valid pixel, or holds NaN or infinite values marked as valid.
    """
    rows = manifest.table.loc[
        manifest.table["split"] == Split.TRAIN.value, ["tile_id", "shard_id", "shard_row", "valid_fraction"]
    ]
    n_channels = len(manifest.channels)
    per_block = max(1, _BLOCK_VALUES // math.prod(manifest.tile_shape))
    mean, squares = np.zeros(n_channels), np.zeros(n_channels)
    low, high = np.full(n_channels, np.inf), np.full(n_channels, -np.inf)
    pixels = 0
    for start in range(0, len(rows), per_block):
        block = rows.iloc[start : start + per_block]
        tiles, valid = store.gather(block)
        count = int(valid.sum())
        if not count:
            continue
        # A channel at a time: one long row is summed several times faster than a short axis beside it.
        whole = count == valid.size
        values = [(tiles[:, c].reshape(-1) if whole else tiles[:, c][valid]) for c in range(n_channels)]
        if not all(np.isfinite(each).all() for each in values):
            finite = np.isfinite(np.where(valid[:, None], tiles, 0)).reshape(len(tiles), -1).all(axis=1)
            bad = block["tile_id"].iloc[int(np.argmin(finite))]
            raise DataError(f"tile {bad} holds NaN or infinite values marked as valid; ingest its source again")
        if recipe.clip is not None:
            values = [each.clip(*recipe.clip) for each in values]
        block_mean = np.array([each.mean(dtype=np.float64) for each in values])
        spread = np.array([np.square(each - centre).sum() for each, centre in zip(values, block_mean, strict=True)])
        delta, total = block_mean - mean, pixels + count
        squares += spread + np.square(delta) * (pixels * count / total)
        mean += delta * (count / total)
        low = np.minimum(low, [each.min() for each in values])
        high = np.maximum(high, [each.max() for each in values])
        pixels = total
    if pixels == 0:
        raise DataError(f"the train split of {manifest.tiles_folder} has no valid pixel; nothing can be learnt from it")
    return ChannelStatistics(mean, np.sqrt(squares / pixels), low, high, pixels)


def fit_preprocessing(
    recipe: PreprocessRecipe,
    manifest: Manifest,
    store: TileStore,
    *,
    img_size: ImageSize,
    weights_statistics: tuple[Sequence[float], Sequence[float]] | None = None,
) -> tuple[Preprocessing, tuple[str, ...]]:
    """Fit the preprocessing on the train split.

    Args:
        recipe: clip and kind of normalisation.
        manifest: its train rows are measured.
        store: its tiles.
        img_size: what the model sees, in pixels.
        weights_statistics: mean and deviation per channel of `manifest` that the weights were trained with, for values
            in 0..1; None where they are not known.

    Returns:
        The record and sentences for the user.

    Raises:
        ConfigError: ``normalise: weights``, and the statistics of the weights do not fit these data.
        DataError: the train split has no valid pixel.
    """
    measured = measure_channels(recipe, manifest, store)
    notes = tuple(
        f"channel {name} holds the one value {value:g} in the whole train split: the model learns nothing from it"
        for name, value, other in zip(manifest.channels, measured.low, measured.high, strict=True)
        if value == other
    )
    if recipe.normalise == "train":
        # A constant channel becomes zero everywhere.
        mean, std = measured.mean, np.where(measured.high > measured.low, measured.std, 1.0)
    elif recipe.normalise == "none":
        mean, std = np.zeros(len(measured.mean)), np.ones(len(measured.mean))
    else:
        scale = _unit_scale(manifest, store, measured)
        if weights_statistics is None:
            raise ConfigError(
                "preprocess.normalise is `weights`, but mean and deviation of these weights are not known for the "
                f"channels {', '.join(manifest.channels)}; set it to `train`"
            )
        mean, std = (np.asarray(values, dtype=np.float64) * scale for values in weights_statistics)
    record = Preprocessing(
        channels=tuple(manifest.channels),
        units=manifest.units,
        clip=recipe.clip,
        mean=tuple(float(value) for value in mean),
        std=tuple(float(value) for value in std),
        img_size=img_size,
    )
    return record, notes


def _unit_scale(manifest: Manifest, store: TileStore, measured: ChannelStatistics) -> float:
    """Give what 1.0 of the weights' units is here: statistics of weights are for values in 0..1 (uint8: /255)."""
    dtypes = {str(store.dtype(shard)) for shard in manifest.table["shard_id"].unique()}
    if dtypes == {"uint8"}:
        return 255.0
    if manifest.units == "reflectance" and measured.low.min() >= -0.2 and measured.high.max() <= 2.0:
        return 1.0
    raise ConfigError(
        "preprocess.normalise is `weights`, which needs 8-bit pixels or reflectance in 0..1, but the tiles are "
        f"{', '.join(sorted(dtypes))} in `{manifest.units}` from {measured.low.min():g} to {measured.high.max():g}; "
        "set preprocess.normalise to `train`"
    )
