"""Champion against challenger: the champion is run on the challenger's test tiles, and the gate compares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from vitpipe.config import PipelineConfig, RegisterRecipe
from vitpipe.digest import digest_of_digests
from vitpipe.errors import ConfigError, ContractError
from vitpipe.evaluate import gate
from vitpipe.evaluate.predictions import baseline_predictions, logit_columns, predictions_of
from vitpipe.infer.predictor import Predictor
from vitpipe.learn.baselines import majority
from vitpipe.manifest import Manifest
from vitpipe.records import Json, Split
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
    challenger = _challenger(run_folder, Predictor.load(run_folder / "model"))
    try:
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
        ("tile size", contract.tile_shape[1:], manifest.tile_shape[1:]),
    )
    for what, theirs, ours in pairs:
        if theirs != ours:
            raise _CannotCompare(f"which has other {what}: {_text(theirs)} there, {_text(ours)} here")


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
