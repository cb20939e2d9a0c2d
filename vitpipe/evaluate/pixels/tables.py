"""What the training left of the judged tiles: sums of every tile, and a sample of its labelled pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from vitpipe.errors import ContractError
from vitpipe.evaluate.predictions import logit_columns
from vitpipe.evaluate.statistics import Floats
from vitpipe.manifest import Manifest
from vitpipe.records import Split, Task

PIXELS_FILE: Final = "pixels.parquet"
SAMPLE_FILE: Final = "pixel_sample.parquet"
BASELINES_FOLDER: Final = "baselines"
COUNTS: Final = "counts"
VALUE_SUMS: Final = ("n", "sum_y", "sum_y2", "sum_p", "sum_p2", "sum_yp", "sum_abs_error", "sum_sq_error")
MOST_SAMPLED: Final = 200_000
"""Sampled pixels that are judged: more would make the rank metrics slow and change no digit that is shown."""
_JUDGED: Final = (Split.VAL, Split.CALIBRATION, Split.TEST)


def require_tables(run_folder: Path) -> None:
    """Refuse a run that was not trained to its end.

    Raises:
        ContractError: a table is missing.
    """
    for name in (PIXELS_FILE, SAMPLE_FILE):
        if not (run_folder / name).is_file():
            raise ContractError(f"no {name} in {run_folder}; train the run first (`vitpipe train`)")


def table_paths(run_folder: Path) -> list[Path]:
    """Name every table that decides the numbers, the model's first, then those of the baselines."""
    folders = [run_folder, *(run_folder / BASELINES_FOLDER / name for name in baseline_names(run_folder))]
    return [folder / name for folder in folders for name in (PIXELS_FILE, SAMPLE_FILE) if (folder / name).is_file()]


def baseline_names(run_folder: Path) -> list[str]:
    """Name the baselines that stand beside the model, in the order of their names."""
    folder = run_folder / BASELINES_FOLDER
    return sorted(path.parent.name for path in folder.glob(f"*/{PIXELS_FILE}"))


def read_tiles(folder: Path, manifest: Manifest) -> pd.DataFrame:
    """Join the sums of the judged tiles with the manifest.

    Args:
        folder: of the run, or of one baseline in it.
        manifest: of the run.

    Returns:
        A row a tile of val, calibration and test that has a labelled pixel, sorted by tile_id: the manifest's columns
        and those of the table.

    Raises:
        ContractError: the table is of other tiles or of another number of classes.
    """
    path = folder / PIXELS_FILE
    found = pd.read_parquet(path)
    needed = ["tile_id", "n", COUNTS] if manifest.task is Task.SEGMENTATION else ["tile_id", *VALUE_SUMS]
    if missing := [name for name in needed if name not in found]:
        raise ContractError(f"{path} has no column {', '.join(missing)}, so it is of another task; train again")
    table = manifest.table
    judged = table.loc[table["split"].isin([str(split) for split in _JUDGED])].sort_values("tile_id")
    if set(found["tile_id"]) != set(judged["tile_id"]) or not found["tile_id"].is_unique:
        raise ContractError(
            f"{path} is of {len(found)} tiles, but the manifest has {len(judged)} in val, calibration and test, and "
            "they are not the same; train again on this manifest"
        )
    joined = judged.merge(found[needed], on="tile_id", how="left", validate="one_to_one")
    joined = joined.loc[joined["n"] > 0].reset_index(drop=True)
    if manifest.task is Task.SEGMENTATION:
        widths = {len(counts) for counts in joined[COUNTS]}
        if widths - {len(manifest.classes) ** 2}:
            raise ContractError(
                f"{path} holds matrices of {sorted(widths)} cells, but the manifest has {len(manifest.classes)} "
                "classes; train again"
            )
    elif not np.isfinite(joined[list(VALUE_SUMS)].to_numpy(np.float64)).all():
        raise ContractError(
            f"{path} holds sums that are not finite; the training diverged: lower `train.learning_rate`"
        )
    return joined


def read_sample(folder: Path, manifest: Manifest, split: Split) -> pd.DataFrame | None:
    """Read the sampled pixels of a split; None where a baseline left none.

    Returns:
        tile_id, row, col, weight, truth, and ``logit_<i>`` or `predicted`, in the order of tile_id, row, col.

    Raises:
        ContractError: another number of classes, or logits that are not finite.
    """
    path = folder / SAMPLE_FILE
    if not path.is_file():
        return None
    columns = logit_columns(manifest.classes) if manifest.task is Task.SEGMENTATION else ["predicted"]
    table = pd.read_parquet(path, filters=[("split", "==", str(split))])
    said = [str(name) for name in table.columns if str(name).startswith("logit_") or str(name) == "predicted"]
    if len(table) and sorted(said) != sorted(columns):
        raise ContractError(f"{path} has {len(said)} columns of outputs, {len(columns)} are needed; train again")
    if len(table) and not np.isfinite(table[columns].to_numpy(np.float64)).all():
        raise ContractError(f"{path} holds outputs that are not finite; the training diverged: lower the learning rate")
    order = [name for name in ("tile_id", "frame", "row", "col") if name in table]
    return table.sort_values(order, ignore_index=True)


def thinned(sample: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Keep at most `MOST_SAMPLED` rows, drawn evenly; the weights stay as they are, since only shares count."""
    if len(sample) <= MOST_SAMPLED:
        return sample
    kept = np.random.default_rng(seed).choice(len(sample), MOST_SAMPLED, replace=False)
    return sample.iloc[np.sort(kept)].reset_index(drop=True)


def matrices(tiles: pd.DataFrame, classes: int) -> Floats:
    """Give the confusion counts of tiles (N, K, K), reference x predicted."""
    if tiles.empty:
        return np.empty((0, classes, classes))
    return np.stack([np.asarray(each, dtype=np.float64) for each in tiles[COUNTS]]).reshape(-1, classes, classes)
