"""Champion against challenger: the champion is run on the challenger's test tiles, and the gate compares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vitpipe.config import PipelineConfig, RegisterRecipe
from vitpipe.digest import digest_of_digests
from vitpipe.errors import ConfigError, ContractError
from vitpipe.evaluate import gate
from vitpipe.evaluate.pixels.contest import compare_pixels
from vitpipe.evaluate.pixels.tables import BASELINES_FOLDER, baseline_names, read_tiles
from vitpipe.evaluate.predictions import baseline_predictions, logit_columns, predictions_of
from vitpipe.infer.predictor import Predictor
from vitpipe.learn.baselines import MAJORITY, majority
from vitpipe.learn.counted import JudgedTiles
from vitpipe.learn.pixel_baselines import MEAN
from vitpipe.learn.pixel_tables import judged_blocks, pixel_sums
from vitpipe.manifest import Manifest
from vitpipe.records import Json, Split, Task
from vitpipe.splits import record_test_use
from vitpipe.store import TileStore
from vitpipe.workspace import Workspace

PREDICTIONS_FILE = "predictions.parquet"
_BLOCK_TILES = 512


@dataclass(frozen=True, slots=True)
class Contest:
    """How a challenger did."""

    allowed: bool
    """It may become the champion."""
    reason: str
    """Sentences: why."""
    record: dict[str, Json]
    """Every number; decision.json."""


def hold(champion: Path | None, run_folder: Path, config: PipelineConfig, manifest: Manifest) -> Contest:
    """Let the gate decide about the model of a run.

    Args:
        champion: package of the version in use; None: there is none yet.
        run_folder: the challenger's, evaluated.
        config: gate, level, seed; its workspace holds the tiles and the ledger of the test split.
        manifest: the challenger's.

    Raises:
        ConfigError: the configuration names no registered model.
        ContractError: the run was not evaluated.
    """
    recipe = config.registration
    if recipe is None:
        raise ConfigError(f"{config.name}: no `register` in the configuration, so there is no gate")
    try:
        if manifest.task is not Task.CLASSIFICATION:
            decision = _compare_pixels(champion, run_folder, recipe, config, manifest)
        else:
            challenger = _challenger(run_folder, Predictor.load(run_folder / "model"))
            decision = _compare(champion, challenger, recipe, config, manifest, run_folder.name)
    except _CannotCompare as error:
        reason = (
            f"The challenger is not accepted: it cannot be compared with the champion, {error}. "
            "`vitpipe promote` makes it champion by hand."
        )
        return Contest(allowed=False, reason=reason, record={"accepted": False, "sentence": reason, "rules": []})
    return Contest(allowed=decision.accepted, reason=decision.sentence, record=decision.to_json())


class _CannotCompare(Exception):
    """The champion cannot be run on these test tiles; the text says why."""


def _compare(
    champion: Path | None,
    challenger: pd.DataFrame,
    recipe: RegisterRecipe,
    config: PipelineConfig,
    manifest: Manifest,
    run_id: str,
) -> gate.Decision:
    workspace = Workspace(Path(config.workspace))
    tiles_digest = digest_of_digests(challenger["tile_id"].astype(str))
    if champion is None:
        record_test_use(workspace, run_id, "gate: first version", tiles_digest)
        guess = baseline_predictions(challenger, majority(manifest), manifest.classes)
        if manifest.multi_label:
            guess.attrs["thresholds"] = [0.5] * len(manifest.classes)
        return gate.accept_first(guess, challenger, recipe.gate, config.evaluate)
    rival = Predictor.load(champion)
    _check_comparable(rival, manifest)
    record_test_use(workspace, run_id, "gate: against the champion", tiles_digest)
    rows = manifest.table.loc[manifest.table["tile_id"].isin(challenger["tile_id"])].sort_values("tile_id")
    return gate.compare(_run(rival, rows, manifest), challenger, recipe.gate, config.evaluate)


def _compare_pixels(
    champion: Path | None, run_folder: Path, recipe: RegisterRecipe, config: PipelineConfig, manifest: Manifest
) -> gate.Decision:
    if not (run_folder / PREDICTIONS_FILE).is_file():
        raise ContractError(
            f"no {run_folder / PREDICTIONS_FILE}: the run was not evaluated; run `vitpipe evaluate` first"
        )
    challenger = _test_tiles(run_folder, manifest)
    workspace = Workspace(Path(config.workspace))
    tiles_digest = digest_of_digests(challenger["tile_id"].astype(str))
    if champion is None:
        record_test_use(workspace, run_folder.name, "gate: first version", tiles_digest)
        trivial = MEAN if manifest.task is Task.REGRESSION else MAJORITY
        if trivial not in baseline_names(run_folder):
            raise ContractError(f"no baseline `{trivial}` in {run_folder / BASELINES_FOLDER}; train the run again")
        guess = _test_tiles(run_folder / BASELINES_FOLDER / trivial, manifest)
        plain = recipe.gate.model_copy(update={"margin": 0.0})
        return gate.as_first(compare_pixels(guess, challenger, plain, config.evaluate, manifest), trivial)
    rival = Predictor.load(champion)
    _check_comparable(rival, manifest)
    record_test_use(workspace, run_folder.name, "gate: against the champion", tiles_digest)
    return compare_pixels(_run_pixels(rival, manifest), challenger, recipe.gate, config.evaluate, manifest)


def _test_tiles(folder: Path, manifest: Manifest) -> pd.DataFrame:
    tiles = read_tiles(folder, manifest)
    return tiles.loc[tiles["split"] == Split.TEST.value].reset_index(drop=True)


def _run_pixels(champion: Predictor, manifest: Manifest) -> pd.DataFrame:
    """Run the champion on the stored test tiles, and sum up its pixels."""
    tiles = JudgedTiles(manifest, TileStore(manifest.tiles_folder), Split.TEST.value)
    # Both know the same classes, but each counts them in its own order.
    order = [champion.classes.index(name) for name in manifest.classes]
    values = manifest.task is Task.REGRESSION

    def predict(block: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        logits = champion.logits(block, valid)
        return np.asarray(logits if values else logits[:, order], dtype=np.float32)

    parts = []
    for ids, truth, logits in judged_blocks(tiles, predict, len(manifest.classes), champion.batch_size):
        parts.append(pd.DataFrame({"tile_id": ids, **pixel_sums(truth, logits, manifest.task)}))
    sums = pd.concat(parts, ignore_index=True)
    sums = sums.loc[sums["n"] > 0]
    keys = manifest.table[["tile_id", "source_id", "group_id"]]
    return sums.merge(keys, on="tile_id", how="left", validate="one_to_one")


def _challenger(run_folder: Path, predictor: Predictor) -> pd.DataFrame:
    path = run_folder / PREDICTIONS_FILE
    if not path.is_file():
        raise ContractError(f"no {path}: the run was not evaluated; run `vitpipe evaluate` first")
    table = pd.read_parquet(path)
    table = table.loc[table["split"] == Split.TEST.value].sort_values("tile_id", ignore_index=True)
    return _with_thresholds(table, predictor, predictor.classes)


def _check_comparable(champion: Predictor, manifest: Manifest) -> None:
    contract = champion.contract
    pairs = (
        ("channels", contract.channels, tuple(manifest.channels)),
        ("units", contract.units, manifest.units),
        ("classes", tuple(sorted(contract.classes)), tuple(sorted(manifest.classes))),
        ("task", str(contract.task), str(manifest.task)),
        ("units of its values", contract.target_units, manifest.target_units),
        ("tile size", contract.tile_shape[1:], manifest.tile_shape[1:]),
    )
    for what, theirs, ours in pairs:
        if theirs != ours:
            raise _CannotCompare(
                f"which has other {what}: {_text(theirs) or 'none'} there, {_text(ours) or 'none'} here"
            )


def _run(champion: Predictor, rows: pd.DataFrame, manifest: Manifest) -> pd.DataFrame:
    """Run the champion on stored tiles, block by block."""
    store = TileStore(manifest.tiles_folder)
    blocks = []
    for start in range(0, len(rows), _BLOCK_TILES):
        tiles, valid = store.gather(rows.iloc[start : start + _BLOCK_TILES])
        blocks.append(champion.logits(tiles, valid))
    logits = pd.DataFrame(np.concatenate(blocks), columns=logit_columns(champion.classes), index=rows.index)
    table = predictions_of(pd.concat([rows, logits], axis=1), champion.calibration)
    return _with_thresholds(table, champion, manifest.classes)


def _with_thresholds(table: pd.DataFrame, predictor: Predictor, classes: Sequence[str]) -> pd.DataFrame:
    """Add the multi-label thresholds, in the order of `classes`, where the gate looks for them."""
    thresholds = predictor.calibration.thresholds
    if thresholds is not None:
        by_class = dict(zip(predictor.classes, thresholds, strict=True))
        table.attrs["thresholds"] = [by_class[name] for name in classes]
    return table


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
