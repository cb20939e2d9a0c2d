"""Tiles of the test split to look at: image, reference, prediction and difference side by side.

The tables of a run hold sums and samples, so the few tiles that are shown are predicted again, by the model as it was
saved.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final, NamedTuple, TypeAlias

import matplotlib as mpl
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vitpipe.evaluate.judged import Judged
from vitpipe.evaluate.metrics import mean_of_defined, ratio
from vitpipe.evaluate.palette import colours, hexadecimal
from vitpipe.evaluate.pixels.evaluation import LABELLED
from vitpipe.evaluate.pixels.tables import COUNTS, matrices
from vitpipe.evaluate.report_gallery import png_of, short_group, shown_channels, stretch, thumbnail
from vitpipe.evaluate.report_style import section
from vitpipe.evaluate.statistics import Floats
from vitpipe.learn.counted import JudgedTiles
from vitpipe.learn.loader import SplitTiles
from vitpipe.manifest import Manifest
from vitpipe.pixel_targets import IGNORE
from vitpipe.records import Split, Task
from vitpipe.store import TileStore

_MOST: Final = 4
"""Tiles of each kind: worst, middle, best."""
_PER_GROUP: Final = 2
_LEAST_SHARE: Final = 0.25
"""Of the median number of labelled pixels: a tile with fewer is the worst or the best by chance."""
_LOGIT_BYTES: Final = 64 << 20
"""Volumes of many classes have hundreds of megabytes of logits each."""
_MOST_NAMED: Final = 24
_RIGHT: Final = (199, 221, 236)
_WRONG: Final = (213, 94, 0)
_VALUES: Final = "cividis"
_DIFFERENCE: Final = "RdBu_r"
_TITLES: Final = {"worst": "Worst tiles", "middle": "Tiles in the middle", "best": "Best tiles"}

Predict: TypeAlias = Callable[[NDArray[np.float32], NDArray[np.bool_]], NDArray[np.float32]]
"""Gives (N, K, *size) of tiles (N, C, *size) in physical units and their valid masks; values (N, 1, *size)."""
Mask: TypeAlias = NDArray[np.bool_]
Picture: TypeAlias = NDArray[np.uint8]
"""(H, W, 4): red, green, blue and whether there is anything to show."""


@dataclass(frozen=True, slots=True)
class _Looks:
    """How the answers of all tiles shown are painted."""

    paint: Callable[[NDArray[Any], Mask], Picture]
    """Of classes or values."""
    differ: Callable[[NDArray[Any], NDArray[Any], Mask], Picture]
    """Of truth and prediction, where there is a truth."""
    describe: Callable[[NDArray[Any], Mask], str]
    legend: str


def pixel_gallery(judged: Judged, predict: Predict) -> str:
    """Show the worst, the middle and the best tiles; empty where no test tile has enough labelled pixels.

    Args:
        judged: of a task of pixels; its predictions hold the sums of every judged tile.
        predict: the model.

    Raises:
        ContractError: the targets of the run are gone, or do not fit its tiles.
    """
    manifest = judged.manifest
    test = judged.predictions.loc[judged.predictions["split"] == str(Split.TEST)]
    chosen = choose(test, tile_errors(test, manifest))
    if chosen.empty:
        return ""
    store = TileStore(manifest.tiles_folder)
    of_split = SplitTiles(manifest, store, Split.TEST), JudgedTiles(manifest, store, Split.TEST)
    places = pd.Index(of_split[0].tile_ids).get_indexer(pd.Index(chosen["tile_id"])).astype(np.int64)
    tiles, valid = of_split[0].read(places)
    truth, counted = (each.targets_at(places, valid).numpy() for each in of_split)
    answers = _answers(predict, tiles, valid, manifest)
    flat = [
        _flat((tiles[at], valid[at]), (truth[at], answers[at]), (_is_label(truth[at]), _is_label(counted[at])))
        for at in range(len(chosen))
    ]
    looks = _looks(manifest, flat)
    window, seen = stretch(judged.config.preprocess.clip, manifest, store)
    bands = shown_channels(store.channels)
    cards = [
        _card(row, _panels(parts, thumbnail(parts.image[bands], parts.valid, window), looks), manifest)
        for row, parts in zip(chosen.to_dict("records"), flat, strict=True)
    ]
    kinds = chosen["kind"].tolist()
    shown = "".join(
        f"<h3>{title}</h3><div class='looks'>"
        f"{''.join(card for card, of_kind in zip(cards, kinds, strict=True) if of_kind == kind)}</div>"
        for kind, title in _TITLES.items()
        if kind in kinds
    )
    measure = "mean IoU of the tile" if manifest.task is Task.SEGMENTATION else "mean absolute error of the tile"
    overlap = (
        " Tiles overlap: the difference, and the number above it, are of the pixels that a tile answers for, so that "
        "each is judged once."
        if any((each.known != each.judged).any() for each in flat)
        else ""
    )
    return section(
        "Tiles to look at",
        f"By the {measure}, among those with a quarter or more of the median number of labelled pixels, at most "
        f"{_PER_GROUP} of a group in each row. An image {seen}. Hatched: not labelled in the reference and the "
        "difference, not valid in image and prediction." + overlap,
        looks.legend,
        shown,
    )


def _answers(predict: Predict, tiles: NDArray[np.float32], valid: Mask, manifest: Manifest) -> NDArray[Any]:
    """Give the class or the value of every pixel (N, *size); the logits of few tiles are held at once."""
    classes = manifest.task is Task.SEGMENTATION
    tile_bytes = 4 * math.prod(valid.shape[1:]) * (len(manifest.classes) if classes else 1)
    step = max(1, _LOGIT_BYTES // tile_bytes)
    parts = []
    for start in range(0, len(tiles), step):
        said = predict(tiles[start : start + step], valid[start : start + step])
        parts.append(said.argmax(axis=1) if classes else said[:, 0])
    return np.concatenate(parts)


def tile_errors(test: pd.DataFrame, manifest: Manifest) -> Floats:
    """Give how wrong each tile is: 1 minus the mean IoU of its classes, or its mean absolute error.

    Args:
        test: rows of the predictions table of pixels.
        manifest: task and classes. A class that a tile neither has nor is said to have counts not at all.
    """
    if manifest.task is Task.REGRESSION:
        return ratio(test["sum_abs_error"].to_numpy(np.float64), test[LABELLED].to_numpy(np.float64))
    cells = matrices(test[[COUNTS]], len(manifest.classes))
    hits = np.diagonal(cells, axis1=1, axis2=2)
    return 1.0 - mean_of_defined(ratio(hits, cells.sum(axis=2) + cells.sum(axis=1) - hits))


def choose(test: pd.DataFrame, errors: Floats) -> pd.DataFrame:
    """Choose tiles; no tile stands in two kinds.

    Args:
        test: tile_id, group_id, labelled_px.
        errors: of each tile; what is not defined is not shown.

    Returns:
        `test` of the chosen ones with `error` and `kind`: worst from the worst on, middle, best from the best on.
    """
    enough = test[LABELLED].to_numpy() >= _LEAST_SHARE * test[LABELLED].median()
    table = test.assign(error=errors).loc[enough & np.isfinite(errors)]
    table = table.sort_values(["error", "tile_id"], ascending=[False, True], kind="stable")
    worst = _few(table)
    left = table.drop(index=worst.index)
    best = _few(left[::-1])
    left = left.drop(index=best.index)
    from_middle = np.abs(np.arange(len(left)) - (len(left) - 1) / 2)
    middle = _few(left.iloc[np.argsort(from_middle, kind="stable")]).sort_values("error", ascending=False)
    kinds = (("worst", worst), ("middle", middle), ("best", best))
    return pd.concat([part.assign(kind=kind) for kind, part in kinds], ignore_index=True)


def _few(table: pd.DataFrame) -> pd.DataFrame:
    return table.loc[table.groupby("group_id").cumcount() < _PER_GROUP].head(_MOST)


class _Flat(NamedTuple):
    """A tile as it is shown; of a volume one slice."""

    image: NDArray[np.float32]
    """(C, H, W)."""
    valid: Mask
    """(H, W), as all below."""
    truth: NDArray[Any]
    said: NDArray[Any]
    known: Mask
    """Where there is a label."""
    judged: Mask
    """Where the tile is judged by it: where tiles overlap, each pixel in one of them."""


def _is_label(targets: NDArray[Any]) -> Mask:
    return np.asarray(targets != IGNORE if targets.dtype == np.uint8 else np.isfinite(targets))


def _flat(
    tile: tuple[NDArray[np.float32], Mask], answers: tuple[NDArray[Any], NDArray[Any]], labelled: tuple[Mask, Mask]
) -> _Flat:
    """Give a tile as it is; of a volume the slice with the most judged pixels."""
    if tile[1].ndim == 2:
        return _Flat(*tile, *answers, *labelled)
    at = int(labelled[1].sum(axis=(1, 2)).argmax())
    return _Flat(tile[0][:, at], tile[1][at], answers[0][at], answers[1][at], labelled[0][at], labelled[1][at])


def _panels(parts: _Flat, image: bytes, looks: _Looks) -> Iterator[tuple[str, str, bytes]]:
    """Give caption, description and PNG of each picture."""
    yield "image", "image of the tile", image
    for name, values, there in (("reference", parts.truth, parts.known), ("prediction", parts.said, parts.valid)):
        yield name, f"{name}: {looks.describe(values, there)}", png_of(looks.paint(values, there), smooth=False)
    differing = png_of(looks.differ(parts.truth, parts.said, parts.judged), smooth=False)
    yield "difference", "difference of prediction and reference where there is a label", differing


def _card(row: Mapping[Any, Any], panels: Iterator[tuple[str, str, bytes]], manifest: Manifest) -> str:
    figures = "".join(
        f"<figure><div class='pixels'><img alt='{escape(about, quote=True)}' "
        f"src='data:image/png;base64,{base64.b64encode(png).decode('ascii')}'></div>"
        f"<figcaption>{name}</figcaption></figure>"
        for name, about, png in panels
    )
    unit = f" {manifest.target_units}" if manifest.target_units else ""
    said = (
        f"mean IoU <b>{1 - row['error']:.3f}</b>"
        if manifest.task is Task.SEGMENTATION
        else f"mean absolute error <b>{row['error']:.4g}</b>{escape(unit)}"
    )
    group = escape(short_group(str(row["group_id"])))
    return (
        f"<div class='look'><p class='small'>{said} · {row[LABELLED]:,} labelled pixels · "
        f"<span class='nowrap'>group {group}</span></p>"
        f"<div class='panels'>{figures}</div></div>"
    )


def _looks(manifest: Manifest, tiles: Sequence[_Flat]) -> _Looks:
    if manifest.task is Task.SEGMENTATION:
        return _class_looks(tuple(manifest.classes), tiles)
    return _value_looks(manifest.target_units, tiles)


def _class_looks(classes: Sequence[str], tiles: Sequence[_Flat]) -> _Looks:
    """Paint classes as the maps of the model do."""
    shades = np.array(colours(classes), np.uint8)

    def paint(values: NDArray[Any], there: Mask) -> Picture:
        return _opaque(shades[np.where(there, values, 0)], there)

    def differ(truth: NDArray[Any], said: NDArray[Any], known: Mask) -> Picture:
        return _opaque(np.array((_WRONG, _RIGHT), np.uint8)[(truth == said).astype(np.intp)], known)

    def describe(values: NDArray[Any], there: Mask) -> str:
        counts = np.bincount(values[there].astype(np.intp), minlength=len(classes))
        most = [at for at in np.argsort(-counts, kind="stable")[:3] if counts[at]]
        return ", ".join(f"{classes[at]} {counts[at] / counts.sum():.0%}" for at in most) or "nothing"

    used: set[int] = set()
    for each in tiles:
        used |= {int(at) for at in (*np.unique(each.truth[each.known]), *np.unique(each.said[each.valid]))}
    named = range(len(classes)) if len(classes) <= _MOST_NAMED else sorted(used)
    swatches = [(f"#{hexadecimal(colours(classes)[at])}", classes[at]) for at in named]
    swatches += [(_hexadecimal(_RIGHT), "right"), (_hexadecimal(_WRONG), "wrong"), ("", "not labelled, or not valid")]
    return _Looks(paint, differ, describe, _legend(swatches))


def _value_looks(unit: str, tiles: Sequence[_Flat]) -> _Looks:
    """Paint values on one scale for all tiles, and errors on one that is even about 0."""
    truths = np.concatenate([each.truth[each.known] for each in tiles])
    errors = np.concatenate([np.abs(each.said - each.truth)[each.known] for each in tiles])
    low, high = (float(edge) for edge in np.quantile(truths, (0.02, 0.98)))
    reach = max(float(np.quantile(errors, 0.98)), 1e-12)
    high = high if high > low else low + 1.0

    def paint(values: NDArray[Any], there: Mask) -> Picture:
        return _mapped(_VALUES, (np.where(there, values, low) - low) / (high - low), there)

    def differ(truth: NDArray[Any], said: NDArray[Any], known: Mask) -> Picture:
        return _mapped(_DIFFERENCE, 0.5 + np.where(known, said - truth, 0.0) / (2 * reach), known)

    def describe(values: NDArray[Any], there: Mask) -> str:
        return f"mean {values[there].mean():.4g} {unit}".rstrip() if there.any() else "nothing"

    tail = f" {escape(unit)}" if unit else ""
    ramps = _ramp(_VALUES, "Values", f"{low:.4g}", f"{high:.4g}{tail}") + _ramp(
        _DIFFERENCE, "Difference", f"&minus;{reach:.3g}", f"+{reach:.3g}{tail}"
    )
    return _Looks(
        paint, differ, describe, f"<div class='legend'>{ramps}{_swatch('', 'not labelled, or not valid')}</div>"
    )


def _opaque(shades: Picture, there: Mask) -> Picture:
    return np.concatenate([shades, np.where(there, 255, 0).astype(np.uint8)[..., None]], axis=-1)


def _mapped(name: str, shares: Floats, there: Mask) -> Picture:
    painted = mpl.colormaps[name](np.clip(shares, 0, 1), bytes=True)
    return _opaque(np.asarray(painted, np.uint8)[..., :3], there)


def _hexadecimal(shade: tuple[int, int, int]) -> str:
    return f"#{hexadecimal(shade)}"


def _legend(swatches: Sequence[tuple[str, str]]) -> str:
    return f"<div class='legend'>{''.join(_swatch(*each) for each in swatches)}</div>"


def _swatch(shade: str, name: str) -> str:
    look = f" style='background:{shade}'" if shade else " class='none'"
    return f"<span><i{look}></i>{escape(name)}</span>"


def _ramp(name: str, about: str, low: str, high: str) -> str:
    stops = ",".join(mpl.colors.to_hex(mpl.colormaps[name](at)) for at in np.linspace(0, 1, 9))
    return f"<span>{about} {low} <i class='ramp' style='background:linear-gradient(90deg,{stops})'></i> {high}</span>"
