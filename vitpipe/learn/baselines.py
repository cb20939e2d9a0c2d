"""Trivial baselines: a model that does not beat them has learnt nothing about pictures.

`majority` says the shares of the train split for every tile. `pixels` is a logistic regression on what no network is
needed for: mean, deviation and quantiles per channel, and a 12 x 12 thumbnail (of volumes 4 x 12 x 12).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.special import expit, softmax
from torch.nn import functional

from vitpipe.learn.loader import SplitTiles
from vitpipe.learn.logistic import fit_logistic
from vitpipe.records import Split

if TYPE_CHECKING:
    from vitpipe.manifest import Manifest
    from vitpipe.store import TileStore

MAJORITY = "majority"
PIXELS = "pixels"
_JUDGED = (Split.VAL, Split.CALIBRATION, Split.TEST)
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_QUANTILE_EDGE_PX = 64
"""Quantiles are taken of every second, third, ... pixel of larger tiles."""
_THUMBNAIL_PX = 12
_THUMBNAIL_SLICES = 4
_TRAIN_TILES = 10_000
_BLOCK_BYTES = 32 << 20
_STRENGTHS = (1e-3, 1e-2, 1e-1)


def fit_baselines(manifest: Manifest, store: TileStore, seed: int) -> dict[str, pd.DataFrame]:
    """Fit both baselines on the train split.

    Args:
        manifest: classes, splits, labels.
        store: its tiles.
        seed: draws the train tiles where there are more than 10 000.

    Returns:
        ``majority`` and ``pixels``: tile_id and ``p_<i>`` for every val, calibration and test tile. The same input
        gives the same bits.
    """
    return {MAJORITY: majority(manifest), PIXELS: pixel_statistics(manifest, store, seed)}


def majority(manifest: Manifest) -> pd.DataFrame:
    """Give the class shares of the train split for every val, calibration and test tile.

    Returns:
        tile_id and ``p_<i>``.
    """
    table = manifest.table
    train = table.loc[table["split"] == Split.TRAIN.value, "label"]
    counts = [train.str.split("|").map(lambda names, of=name: of in names).sum() for name in manifest.classes]
    shares = np.asarray(counts, dtype=np.float64) / max(1, len(train))
    judged = table.loc[table["split"].isin([split.value for split in _JUDGED]), "tile_id"].reset_index(drop=True)
    return _frame(judged.tolist(), np.tile(shares, (len(judged), 1)))


def pixel_statistics(manifest: Manifest, store: TileStore, seed: int) -> pd.DataFrame:
    """Fit a standardised logistic regression on pixel statistics; its strength is chosen on the val split.

    Returns:
        tile_id and ``p_<i>`` for every val, calibration and test tile.
    """
    splits = {split: SplitTiles(manifest, store, split.value) for split in (Split.TRAIN, *_JUDGED)}
    train = splits[Split.TRAIN]
    places = np.arange(len(train))
    if len(places) > _TRAIN_TILES:
        places = np.sort(np.random.default_rng(seed).choice(places, _TRAIN_TILES, replace=False))
    features = _features(train, places)
    mean, std = features.mean(axis=0), features.std(axis=0)
    std = np.where(std > 0, std, 1.0)
    judged = {split: (_features(splits[split], None) - mean) / std for split in _JUDGED}
    targets = train.targets[torch.from_numpy(places)]
    classes = len(manifest.classes)
    val_targets = splits[Split.VAL].targets
    fits = [
        fit_logistic((features - mean) / std, targets.numpy(), classes, strength)
        for strength in (_STRENGTHS if len(val_targets) else _STRENGTHS[1:2])
    ]
    losses = [_loss(judged[Split.VAL] @ weight.T + bias, val_targets) for weight, bias in fits]
    weight, bias = fits[int(np.argmin(losses))]
    logits = np.concatenate([values @ weight.T + bias for values in judged.values()])
    tile_ids = [tile_id for split in _JUDGED for tile_id in splits[split].tile_ids]
    return _frame(tile_ids, expit(logits) if manifest.multi_label else softmax(logits, axis=1))


def _features(tiles: SplitTiles, places: NDArray[np.int64] | None) -> NDArray[np.float64]:
    places = np.arange(len(tiles)) if places is None else places
    block = max(1, _BLOCK_BYTES // (4 * int(np.prod(tiles.tile_shape))))
    parts = [_block_features(*tiles.read(places[start : start + block])) for start in range(0, len(places), block)]
    channels, slices = tiles.tile_shape[0], _THUMBNAIL_SLICES if len(tiles.tile_shape) == 4 else 1
    width = channels * (2 + len(_QUANTILES) + slices * _THUMBNAIL_PX**2)
    return np.concatenate(parts) if parts else np.empty((0, width))


def _block_features(tiles: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Give (N, F) of tiles (N, C, H, W) or (N, C, D, H, W), valid pixels alone.

    A part of the thumbnail that has no valid pixel takes the tile's mean; a tile without any gives 0.
    """
    axes = tuple(range(2, tiles.ndim))
    spread = (slice(None), slice(None), *(np.newaxis for _ in axes))
    count = np.maximum(valid.reshape(len(valid), -1).sum(1), 1)[:, None].astype(np.float64)
    mask = valid[:, None]
    mean = np.where(mask, tiles, 0).sum(axes, dtype=np.float64) / count
    centred = np.where(mask, tiles - mean[spread], 0)
    std = np.sqrt(np.square(centred).sum(axes, dtype=np.float64) / count)
    thumbnail = _pooled(centred)
    share = _pooled(mask.astype(np.float64))
    thumbnail = thumbnail / np.where(share > 0, share, 1.0) + mean[spread]
    flat = (mean, std, _quantiles(tiles, valid).reshape(len(tiles), -1), thumbnail.reshape(len(tiles), -1))
    return np.concatenate(flat, axis=1)


def _pooled(values: NDArray[np.float64]) -> NDArray[np.float64]:
    tensor = torch.from_numpy(values)
    if values.ndim == 4:
        return np.asarray(functional.adaptive_avg_pool2d(tensor, _THUMBNAIL_PX))
    return np.asarray(functional.adaptive_avg_pool3d(tensor, (_THUMBNAIL_SLICES, _THUMBNAIL_PX, _THUMBNAIL_PX)))


def _quantiles(tiles: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Give (N, C, Q): the nearest rank among the valid pixels of a sparse grid, 0 where there is none."""
    step = -(-tiles.shape[-1] // _QUANTILE_EDGE_PX)
    values, mask = tiles[..., ::step, ::step], valid[:, None, ..., ::step, ::step]
    ordered = np.sort(np.where(mask, values, np.inf).reshape(*values.shape[:2], -1), axis=-1)
    count = mask.reshape(len(mask), 1, -1).sum(-1)
    ranks = np.rint((count - 1).clip(0)[:, :, None] * np.asarray(_QUANTILES)).astype(np.int64)
    found = np.take_along_axis(ordered, np.broadcast_to(ranks, (*values.shape[:2], len(_QUANTILES))), axis=-1)
    return np.where(np.isfinite(found), found, 0.0)


def _loss(logits: NDArray[np.float64], targets: torch.Tensor) -> float:
    scores = torch.from_numpy(logits)
    if not len(targets):
        return 0.0
    if targets.ndim == 2:
        return float(functional.binary_cross_entropy_with_logits(scores, targets.double()))
    return float(functional.cross_entropy(scores, targets))


def _frame(tile_ids: list[str], probabilities: NDArray[np.float64]) -> pd.DataFrame:
    columns = {f"p_{number}": probabilities[:, number] for number in range(probabilities.shape[1])}
    return pd.DataFrame({"tile_id": tile_ids, **columns}).sort_values("tile_id", ignore_index=True)
