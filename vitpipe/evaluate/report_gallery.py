"""Tiles to look at: the errors that the model was surest of, and some hits."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from vitpipe.evaluate.units import probability_columns
from vitpipe.manifest import Manifest
from vitpipe.store import TileStore

MOST_ERRORS: Final = 16
MOST_HITS: Final = 8
_PER_GROUP: Final = 2
_EDGE_PX: Final = 160
_SOFT_TISSUE_HU: Final = (-160.0, 240.0)
_COLOURS: Final = (("b04", "b03", "b02"), ("red", "green", "blue"), ("r", "g", "b"))


def gallery(
    test: pd.DataFrame,
    rows: pd.DataFrame,
    classes: Sequence[str],
    store: TileStore,
    window: tuple[float, float] | None = None,
) -> str:
    """Show worst errors and hits as thumbnails.

    Args:
        test: predictions of the test split.
        rows: the manifest's rows, for the store: tile_id, shard_id, shard_row, valid_fraction.
        classes: of the model, single-label.
        store: of the tiles.
        window: values shown as black and white; None: each tile's own percentiles 2 and 98.
    """
    chosen = choose(test, classes)
    if chosen.empty:
        return ""
    places = rows.set_index("tile_id", drop=False).loc[chosen["tile_id"]]
    tiles, valid = store.gather(places)
    bands = shown_channels(store.channels)
    cards = []
    for number, values in enumerate(chosen.to_dict("records")):
        row = {str(name): value for name, value in values.items()}
        picture = thumbnail(*middle_slice(tiles[number][bands], valid[number]), window)
        cards.append((bool(row["hit"]), _card(row, picture, classes)))
    parts = []
    for hit, title in ((False, "Surest errors"), (True, "Hits")):
        some = [card for is_hit, card in cards if is_hit is hit]
        if some:
            parts.append(f"<h3>{title}</h3><div class='gallery'>{''.join(some)}</div>")
    return "".join(parts)


def choose(test: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Choose at most 16 errors, surest first, two a group at most, and at most 8 hits, class after class."""
    probability = test[probability_columns(classes)].to_numpy().max(axis=1)
    table = test.assign(probability=probability, hit=test["label"] == test["predicted"])
    table = table.sort_values(["probability", "tile_id"], ascending=[False, True], kind="stable")
    errors = table.loc[~table["hit"]]
    errors = errors.loc[errors.groupby("group_id").cumcount() < _PER_GROUP].head(MOST_ERRORS)
    hits = table.loc[table["hit"]]
    hits = hits.loc[hits.groupby("group_id").cumcount() < _PER_GROUP]
    turn = hits.groupby("label").cumcount()
    hits = hits.assign(turn=turn).sort_values(["turn", "label"], kind="stable").head(MOST_HITS)
    return pd.concat([errors, hits.drop(columns="turn")], ignore_index=True)


def shown_channels(channels: Sequence[str]) -> list[int]:
    """Choose what to show: red, green and blue where there are such, else the first three, else the first in grey.

    Of tiles with neighbouring frames as channels (``intensity-1, intensity, intensity+1``) it is the centre.
    """
    centre = [number for number, name in enumerate(channels) if f"{name}+1" in channels]
    if centre:
        return centre if len(centre) == 3 else centre[:1]
    names = [name.lower() for name in channels]
    for colours in _COLOURS:
        if all(name in names for name in colours):
            return [names.index(name) for name in colours]
    return [0, 1, 2] if len(names) >= 3 else [0]


def middle_slice(
    pixels: NDArray[np.float32], valid: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Give the middle slice of a volume (C, D, H, W) and of its mask; a 2-D tile as it is."""
    if valid.ndim == 2:
        return pixels, valid
    # Of the slices that hold something: a tile may be padded in depth.
    inside = np.flatnonzero(valid.any(axis=(1, 2)))
    middle = int(inside[len(inside) // 2]) if len(inside) else len(valid) // 2
    return pixels[:, middle], valid[middle]


def window_of(clip: tuple[float, float] | None, units: str, dtypes: set[str]) -> tuple[float, float] | None:
    """Choose one window for all tiles: what the model saw, soft tissue for CT, the whole range of 8-bit pixels.

    A stretch of its own would make noise of a flat tile (water, air) and an anatomy of a bed.
    """
    if clip is not None:
        return clip
    if units == "HU":
        return _SOFT_TISSUE_HU
    return (0.0, 255.0) if dtypes == {"uint8"} else None


def stretch(
    clip: tuple[float, float] | None, manifest: Manifest, store: TileStore
) -> tuple[tuple[float, float] | None, str]:
    """Choose the window of a run's tiles, see :func:`window_of`.

    Returns:
        The window, and how a reader is told: what each tile does.
    """
    dtypes = {str(store.dtype(shard)) for shard in manifest.table["shard_id"].unique()}
    window = window_of(clip, manifest.units, dtypes)
    if window is None:
        return None, "is stretched to its own percentiles 2 and 98"
    return window, f"shows {window[0]:g} to {window[1]:g} {manifest.units} from black to white"


def thumbnail(
    pixels: NDArray[np.float32], valid: NDArray[np.bool_], window: tuple[float, float] | None = None
) -> bytes:
    """Show a tile (1 or 3, H, W) in a window, or in its percentiles 2 and 98, as a PNG; invalid is transparent."""
    shown = np.zeros(pixels.shape, dtype=np.uint8)
    for channel, values in enumerate(pixels):
        inside = values[valid & np.isfinite(values)]
        if inside.size == 0:
            continue
        low, high = np.percentile(inside, [2, 98]) if window is None else window
        if high <= low:
            high = low + 1.0
        stretched = (np.nan_to_num(values) - low) / (high - low)
        shown[channel] = np.round(255 * np.clip(stretched, 0, 1)).astype(np.uint8)
    colour = np.broadcast_to(shown, (3, *shown.shape[1:])) if len(shown) == 1 else shown
    alpha = np.where(valid, 255, 0).astype(np.uint8)
    return png_of(np.moveaxis(np.concatenate([colour, alpha[None]]), 0, -1), smooth=True)


def png_of(rgba: NDArray[np.uint8], *, smooth: bool) -> bytes:
    """Give a small PNG.

    Args:
        rgba: (H, W, 4).
        smooth: make one pixel of several by their mean; else take one of them, as classes need it.
    """
    image = Image.fromarray(np.ascontiguousarray(rgba), "RGBA")
    if max(image.size) > _EDGE_PX:
        image.thumbnail((_EDGE_PX, _EDGE_PX), Image.Resampling.BOX if smooth else Image.Resampling.NEAREST)
    elif max(image.size) * 2 <= _EDGE_PX:
        # Small tiles are enlarged without smoothing: their pixels are what the model saw.
        factor = _EDGE_PX // max(image.size)
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def short_group(name: str) -> str:
    """Cut a keyed pseudonym to six characters; a block of ground (``ground-<x>-<y>``) is its place."""
    return name if name.startswith("ground") else name[:6]


def _card(row: dict[str, object], png: bytes, classes: Sequence[str]) -> str:
    data = base64.b64encode(png).decode("ascii")
    label, predicted = str(row["label"]), str(row["predicted"])
    kind = "tile hit" if row["hit"] else "tile"
    own = row[f"p_{label}"] if label in classes else None
    said = f"<b>{escape(predicted)}</b> {row['probability']:.0%}"
    about = f"tile said to be {predicted}" + ("" if row["hit"] else f", labelled {label}")
    truth = "" if row["hit"] else f"<br>label <b>{escape(label)}</b> {own:.0%}"
    return (
        f"<div class='{kind}'><div class='pixels'>"
        f"<img alt='{escape(about, quote=True)}' src='data:image/png;base64,{data}'></div>"
        f"{said}{truth}<br><span class='dim'>group {escape(short_group(str(row['group_id'])))}</span></div>"
    )
