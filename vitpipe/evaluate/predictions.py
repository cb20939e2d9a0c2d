"""The table of predictions: logits joined with the manifest, read by a calibration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vitpipe.errors import ContractError
from vitpipe.evaluate.calibration import Calibration, CalibrationTiles
from vitpipe.evaluate.statistics import Floats
from vitpipe.evaluate.subgroups import ATTRIBUTE_PREFIX
from vitpipe.evaluate.units import LABEL_SEPARATOR, probability_columns, truth_matrix
from vitpipe.manifest import Manifest
from vitpipe.records import BOX_COLUMN, Split

LOGITS_FILE = "logits.parquet"
JUDGED_SPLITS = (Split.VAL, Split.CALIBRATION, Split.TEST)
_KEYS = ("tile_id", "source_id", "group_id", "split", "label")
_RESERVED = frozenset(
    (*_KEYS, "predicted", "conformal_set", "abstain", "frame", "row", "col", "height", "width", BOX_COLUMN)
)


def read_logits(run_folder: Path, manifest: Manifest) -> pd.DataFrame:
    """Join the logits of a run with its manifest.

    Returns:
        A row a tile of val, calibration and test, sorted by tile_id: the manifest's columns and ``logit_<i>``.

    Raises:
        ContractError: the logits are missing, of another number of classes, not finite, or not of these tiles.
    """
    path = run_folder / LOGITS_FILE
    if not path.is_file():
        raise ContractError(f"no {LOGITS_FILE} in {run_folder}; train the run first (`vitpipe train`)")
    logits = pd.read_parquet(path)
    columns = logit_columns(manifest.classes)
    found = sorted(str(column) for column in logits.columns if str(column).startswith("logit_"))
    if found != sorted(columns):
        raise ContractError(
            f"{path} has {len(found)} columns of logits, but the manifest has {len(columns)} classes; train again"
        )
    if not np.isfinite(logits[columns].to_numpy(dtype=np.float64)).all():
        raise ContractError(
            f"{path} holds logits that are not finite; the training diverged: lower `train.learning_rate`"
        )
    table = manifest.table
    judged = table.loc[table["split"].isin([str(split) for split in JUDGED_SPLITS])].sort_values("tile_id")
    if set(logits["tile_id"]) != set(judged["tile_id"]) or not logits["tile_id"].is_unique:
        raise ContractError(
            f"{path} is of {len(logits)} tiles, but the manifest has {len(judged)} in val, calibration and test, and "
            "they are not the same; train again on this manifest"
        )
    return judged.merge(logits[["tile_id", *columns]], on="tile_id", how="left", validate="one_to_one")


def logit_columns(classes: Sequence[str]) -> list[str]:
    """Names of the logit columns."""
    return [f"logit_{index}" for index in range(len(classes))]


def calibration_tiles(table: pd.DataFrame, manifest: Manifest) -> CalibrationTiles:
    """Take the calibration split of what :func:`read_logits` gave."""
    rows = table.loc[table["split"] == str(Split.CALIBRATION)]
    labels = rows["label"].astype(str).tolist()
    return CalibrationTiles(
        logits=rows[logit_columns(manifest.classes)].to_numpy(dtype=np.float64),
        truth=truth_matrix(labels, manifest.classes, multi_label=manifest.multi_label),
        groups=pd.factorize(rows["group_id"])[0].astype(np.intp),
        classes=tuple(manifest.classes),
        multi_label=manifest.multi_label,
    )


def predictions_of(table: pd.DataFrame, calibration: Calibration) -> pd.DataFrame:
    """Read logits by a calibration.

    Returns:
        tile_id, source_id, group_id, split, label, predicted, p_<class>, conformal_set, abstain, box_mm (see
        `vitpipe.records.box_mm`), then the `attr_` columns; in the order of `table`.
    """
    classes = calibration.classes
    probabilities = calibration.probabilities(table[logit_columns(classes)].to_numpy(dtype=np.float64))
    columns: dict[str, object] = {name: table[name].astype(str).to_numpy() for name in _KEYS}
    columns["predicted"] = joined_names(calibration.decide(probabilities), classes)
    for index, name in enumerate(probability_columns(classes)):
        columns[name] = probabilities[:, index]
    columns["conformal_set"] = joined_names(calibration.prediction_sets(probabilities), classes)
    columns["abstain"] = calibration.abstain(probabilities)
    if BOX_COLUMN in table:  # The manifest of a run from before has none.
        columns[BOX_COLUMN] = table[BOX_COLUMN].to_numpy()
    for name in table.columns:
        if str(name).startswith(ATTRIBUTE_PREFIX):
            columns[str(name)] = table[name].to_numpy()
    return pd.DataFrame(columns)


def public_names(predictions: pd.DataFrame) -> pd.DataFrame:
    """Take the `attr_` prefix off the attribute columns, but where the bare name is taken already."""
    taken = {str(name) for name in predictions.columns} | _RESERVED
    names = {
        str(name): str(name).removeprefix(ATTRIBUTE_PREFIX)
        for name in predictions.columns
        if str(name).startswith(ATTRIBUTE_PREFIX)
        and str(name).removeprefix(ATTRIBUTE_PREFIX) not in taken
        and not str(name).removeprefix(ATTRIBUTE_PREFIX).startswith("p_")
    }
    return predictions.rename(columns=names)


def joined_names(chosen: NDArray[np.bool_], classes: Sequence[str]) -> list[str]:
    """Write rows of a matrix (N, K) as class names joined by ``|``. Rows that are alike share one string."""
    patterns, which = np.unique(chosen, axis=0, return_inverse=True)
    names = [LABEL_SEPARATOR.join(name for name, take in zip(classes, row, strict=True) if take) for row in patterns]
    return [names[index] for index in which.ravel()]


def baseline_predictions(test: pd.DataFrame, baseline: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Put a baseline's probabilities into the place of the model's.

    Args:
        test: the model's predictions on the test split.
        baseline: tile_id and ``p_<i>``.
        classes: of the model.

    Raises:
        ContractError: the baseline lacks a test tile.
    """
    indexed = baseline.set_index("tile_id")
    if not test["tile_id"].isin(indexed.index).all():
        raise ContractError(f"the baseline has no prediction for some of the {len(test)} test tiles; this is a bug")
    values: Floats = indexed.loc[test["tile_id"], [f"p_{index}" for index in range(len(classes))]].to_numpy(np.float64)
    keys = test[[name for name in test.columns if not str(name).startswith("p_")]]
    columns = pd.DataFrame(values, columns=probability_columns(classes), index=test.index)
    return pd.concat([keys, columns], axis=1)
