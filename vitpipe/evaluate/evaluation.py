"""The stage: judge one run on the locked test split, once."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from vitpipe.atomic import write_file, write_json, write_parquet
from vitpipe.config import PipelineConfig
from vitpipe.digest import digest, digest_file, digest_of_digests
from vitpipe.errors import ContractError
from vitpipe.evaluate import metrics
from vitpipe.evaluate.assess import Assessment, assess, assessment_json, share
from vitpipe.evaluate.beside import Question, put_beside, verdict_sentence
from vitpipe.evaluate.calibration import fit_calibration
from vitpipe.evaluate.headline import headline_metric
from vitpipe.evaluate.judged import (
    METRICS_FILE,
    MODEL_CARD_FILE,
    PREDICTIONS_FILE,
    REPORT_FILE,
    Judged,
    estimate_of,
    shown,
)
from vitpipe.evaluate.pixels.evaluation import judge_pixels
from vitpipe.evaluate.pixels.tables import require_tables, table_paths
from vitpipe.evaluate.predictions import (
    LOGITS_FILE,
    calibration_tiles,
    predictions_of,
    public_names,
    read_logits,
)
from vitpipe.evaluate.regions import ground_of, write_layer
from vitpipe.evaluate.selective import selective_numbers
from vitpipe.evaluate.statistics import MIN_BOOTSTRAP_GROUPS, Estimate
from vitpipe.evaluate.subgroups import subgroup_columns, subgroup_numbers, unused_columns
from vitpipe.evaluate.units import Units, mixed_groups, pool
from vitpipe.labels.base import ATTRIBUTE_PREFIX
from vitpipe.manifest import Manifest
from vitpipe.records import Json, Level, Split, StageSummary, Task
from vitpipe.splits import record_test_use
from vitpipe.store import TileStore
from vitpipe.workspace import Workspace

VERSION: Final = 1
"""Part of the digest of the inputs: raised when a formula or the form of the results changes."""


@dataclass(frozen=True, slots=True)
class EvaluationSummary:
    """What the evaluation of a run came to."""

    run_id: str
    folder: str
    report: str
    metric: str
    level: str
    estimate: Estimate
    """The headline number."""
    baselines: Mapping[str, str]
    """Baseline to better, worse or undecided: how the model stands to it."""
    headline: tuple[tuple[str, str, str], ...]
    """Rows of (who, metric, ``estimate [low, high]``), the model's first."""
    verdict: str
    """A sentence."""
    summary: StageSummary


def inputs_digest(config: PipelineConfig, manifest: Manifest, run_folder: Path) -> str:
    """Digest what decides every number: tiles, labels and splits, logits, the recipe, the metric, the formulas."""
    said: Json
    if manifest.task is Task.CLASSIFICATION:
        logits = run_folder / LOGITS_FILE
        if not logits.is_file():
            raise ContractError(f"no {LOGITS_FILE} in {run_folder}; train the run first (`vitpipe train`)")
        said = digest_file(logits)
    else:
        require_tables(run_folder)
        said = [[str(path.relative_to(run_folder)), digest_file(path)] for path in table_paths(run_folder)]
    return digest(
        {
            "manifest": manifest.digest,
            "attributes": _attributes_digest(manifest.table),
            "logits": said,
            "recipe": config.evaluate.digest(),
            "metric": headline_metric(config, manifest),
            "version": VERSION,
        }
    )


def _attributes_digest(table: pd.DataFrame) -> str:
    """Digest the subgroup columns: they change no training, but the tables by subgroup."""
    columns = sorted(name for name in table.columns if name.startswith(ATTRIBUTE_PREFIX))
    return digest([[name, [str(value) for value in table[name]]] for name in columns])


def evaluate(config: PipelineConfig, manifest: Manifest, run_folder: Path, workspace: Workspace) -> EvaluationSummary:
    """Judge a run; writes predictions, metrics, report, model card and the calibration beside the model.

    The same inputs are judged once: where ``metrics.json`` of them lies, it is read. Each use of the test split is
    written into the ledger before the split is looked at.

    Raises:
        ConfigError: a subgroup is asked for that no source has.
        ContractError: logits and manifest do not fit together, or the test split is empty.
        WorkspaceError: nothing can be written.
    """
    started = time.perf_counter()
    inputs = inputs_digest(config, manifest, run_folder)
    known = read_metrics(run_folder)
    if known is not None and known.get("inputs_digest") == inputs:
        return _summary(run_folder, known, StageSummary("evaluate", skipped=1, seconds=time.perf_counter() - started))
    subgroup_columns(manifest.table, config.evaluate.subgroups)
    judge_run = _judge_tiles if manifest.task is Task.CLASSIFICATION else judge_pixels
    test_tiles = manifest.table.loc[manifest.table["split"] == str(Split.TEST), "tile_id"].sort_values()
    if test_tiles.empty:
        raise ContractError("the test split has no labelled tile, so nothing can be judged; label more groups")
    use = record_test_use(workspace, run_folder.name, "evaluate", digest_of_digests(test_tiles.astype(str)))
    judged = judge_run(config, manifest, run_folder, workspace)
    if (ground := ground_of(judged)) is not None:
        write_layer(ground, run_folder)
        judged = replace(judged, numbers={**judged.numbers, "ground": ground.to_json()})
    if "gap" in manifest.audit:
        judged = replace(judged, numbers={**judged.numbers, "split_gap": manifest.audit["gap"]})
    numbers = {**judged.numbers, "inputs_digest": inputs, "run_id": run_folder.name, "test_use": use}
    notes = tuple(str(note) for note in numbers["notes"]) if isinstance(numbers["notes"], list) else ()
    judged = replace(judged, numbers=numbers)
    _write(judged)
    done = StageSummary(
        "evaluate",
        done=int((judged.predictions["split"] == str(Split.TEST)).sum()),
        seconds=time.perf_counter() - started,
        notes=notes,
    )
    return _summary(run_folder, numbers, done)


def _judge_tiles(config: PipelineConfig, manifest: Manifest, run_folder: Path, workspace: Workspace) -> Judged:
    """Judge a model that classifies tiles."""
    table = read_logits(run_folder, manifest)
    calibration = fit_calibration(
        calibration_tiles(table, manifest), alpha=config.evaluate.alpha, seed=config.evaluate.seed
    )
    predictions = predictions_of(table, calibration)
    return judge(Judged(config, manifest, run_folder, workspace, calibration, predictions, {}, {}))


def _write(judged: Judged) -> None:
    """Write the results; metrics.json last: its existence says that all of them are there."""
    # matplotlib is loaded here alone: the predictor and the gate import this room without it.
    from vitpipe.evaluate.model_card import model_card
    from vitpipe.evaluate.pixels.report import pixel_report
    from vitpipe.evaluate.report import report_html

    folder = judged.run_folder
    judged.calibration.save(folder / "model")
    write_parquet(folder / PREDICTIONS_FILE, public_names(judged.predictions))
    page = report_html if judged.manifest.task is Task.CLASSIFICATION else pixel_report
    for name, text in ((REPORT_FILE, page(judged)), (MODEL_CARD_FILE, model_card(judged))):
        with write_file(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")
    write_json(folder / METRICS_FILE, dict(judged.numbers))


def read_metrics(run_folder: Path) -> dict[str, Json] | None:
    """Read the metrics of a run; None where it was not judged yet."""
    path = run_folder / METRICS_FILE
    if not path.is_file():
        return None
    value = json.loads(path.read_text(encoding="utf-8"))
    return value if isinstance(value, dict) else None


def judge(judged: Judged) -> Judged:
    """Make every number of the test split; nothing is written."""
    # torch and scikit-learn take seconds to import, and a run that was judged before has no use for them.
    from vitpipe.learn.baselines import fit_baselines

    config, manifest, calibration = judged.config, judged.manifest, judged.calibration
    recipe, classes = config.evaluate, tuple(manifest.classes)
    test = judged.predictions.loc[judged.predictions["split"] == str(Split.TEST)].reset_index(drop=True)
    thresholds = None if calibration.thresholds is None else np.asarray(calibration.thresholds)
    units = {str(level): pool(test, classes, level, thresholds) for level in Level}
    assessed = {level: assess(each, classes, recipe) for level, each in units.items()}
    metric = headline_metric(config, manifest)
    numbers: dict[str, Json] = {}
    per_class: dict[str, Json] = {}
    for level, each in assessed.items():
        numbers[level], per_class[level] = assessment_json(each)
        _add_ece_null(numbers[level], units[level], recipe.seed)
    store = TileStore(manifest.tiles_folder)
    baselines = fit_baselines(manifest, store, config.train.seed)
    beside = put_beside(test, baselines, assessed, Question(metric, classes, recipe, manifest.multi_label))
    subgroups = subgroup_numbers(test, classes, metric, recipe, thresholds)
    numbers |= {
        "per_class": per_class,
        "confusion": {level: _confusion(each, classes) for level, each in units.items()},
        "baselines": beside.numbers,
        "beats_baseline": dict(beside.verdicts),
        "subgroups": [each.to_json() for each in subgroups],
        "selective": {
            name: each.to_json() for name, each in selective_numbers(units[str(recipe.level)], recipe).items()
        },
        "conformal": _conformal(test, units[str(Level.TILE)], judged),
        "calibration": calibration.to_json(),
        "classes": list(classes),
        "multi_label": manifest.multi_label,
        "headline": {"metric": metric, "level": str(recipe.level), "confidence": recipe.confidence},
        "verdict": verdict_sentence(beside.verdicts, metric),
        "digests": {"manifest": manifest.digest, "config": config.content_digest(), "evaluate": recipe.digest()},
        "notes": [*_notes(test, units, assessed, judged), *calibration.notes],
    }
    return replace(judged, units=units, numbers=numbers)


def _add_ece_null(overall: Json, units: Units, seed: int) -> None:
    mean, quantile, p = metrics.ece_null(units, seed)
    if isinstance(overall, dict) and isinstance(ece := overall["ece"], dict) and np.isfinite(mean):
        ece |= {"null_mean": mean, "null_95": quantile, "p_value": p}


def _confusion(units: Units, classes: Sequence[str]) -> Json:
    if units.multi_label:
        return None
    return {"classes": list(classes), "counts": metrics.confusion(units).tolist()}


def _conformal(test: pd.DataFrame, tiles: Units, judged: Judged) -> Json:
    """Check the prediction sets on the test tiles: coverage, sizes, abstentions."""
    calibration = judged.calibration
    if calibration.multi_label:
        return None
    sets = calibration.prediction_sets(tiles.probabilities)
    covered = np.asarray((sets & tiles.truth).any(axis=1), dtype=bool)
    sizes = sets.sum(axis=1)
    by_class: dict[str, Json] = {}
    for column, name in enumerate(calibration.classes):
        rows = tiles.truth[:, column]
        by_class[name] = float(covered[rows].mean()) if rows.any() else None
    trusted = ~test["abstain"].to_numpy(dtype=bool)
    kept = tiles.take(trusted)
    return {
        "alpha": calibration.alpha,
        "coverage": share(covered, tiles, judged.config.evaluate).to_json(),
        "coverage_by_class": by_class,
        "mean_size": float(sizes.mean()),
        "sizes": {str(size): int(count) for size, count in enumerate(np.bincount(sizes)) if count},
        "abstained": share(~trusted, tiles, judged.config.evaluate).to_json(),
        "accuracy_without_abstained": share(kept.correct, kept, judged.config.evaluate).to_json() if kept.n else None,
    }


def _notes(
    test: pd.DataFrame, units: Mapping[str, Units], assessed: Mapping[str, Assessment], judged: Judged
) -> Iterator[str]:
    """Say what a reader must know before believing the numbers."""
    recipe = judged.config.evaluate
    level = str(recipe.level)
    n_groups = int(units[level].present.size)
    if n_groups < MIN_BOOTSTRAP_GROUPS:
        yield (
            f"The test split has {n_groups} groups, fewer than {MIN_BOOTSTRAP_GROUPS}: the intervals are Student's t "
            "on the group jackknife and are rough."
        )
    lacking = [name for name, count in assessed[level].support.items() if count == 0]
    if lacking:
        yield (
            f"The test split has nothing of {', '.join(lacking)}: their own numbers are not defined, and means over "
            "classes are over the others."
        )
    if mixed := mixed_groups(test):
        yield (
            f"{mixed} test groups carry more than one label: at source and group level a unit is a (group, label), "
            "pooled over its tiles of that label."
        )
    draws = metrics.rank_draws(units[str(Level.TILE)], recipe.bootstrap)
    if draws < recipe.bootstrap:
        yield f"AUROC and average precision of tiles rest on {draws} draws instead of {recipe.bootstrap}: many tiles."
    if judged.config.train.logit_adjustment > 0:
        yield (
            f"The model was trained with logit adjustment {judged.config.train.logit_adjustment:g}: its probabilities "
            "are those of balanced classes, and Brier, NLL and ECE show the distance to the classes as they are."
        )
    if not recipe.subgroups and (unused := unused_columns(test)):
        yield f"Not used as subgroups, for their many values: {', '.join(unused)}; evaluate.subgroups can name them."
    yield from judged.manifest.notes


def _summary(run_folder: Path, numbers: Mapping[str, Json], summary: StageSummary) -> EvaluationSummary:
    headline, beats, baselines = numbers["headline"], numbers["beats_baseline"], numbers["baselines"]
    if not isinstance(headline, dict) or not isinstance(beats, dict) or not isinstance(baselines, dict):
        raise ContractError(f"{run_folder / METRICS_FILE} was written by another version; remove it and evaluate again")
    metric, level = str(headline["metric"]), str(headline["level"])
    estimate = estimate_of(numbers, level, metric)
    others = [(name, estimate_of(table, level, metric)) for name, table in baselines.items() if isinstance(table, dict)]
    return EvaluationSummary(
        run_id=run_folder.name,
        folder=str(run_folder),
        report=str(run_folder / REPORT_FILE),
        metric=metric,
        level=level,
        estimate=estimate,
        baselines={name: str(verdict) for name, verdict in beats.items()},
        headline=tuple((who, metric, shown(each)) for who, each in (("model", estimate), *others)),
        verdict=str(numbers["verdict"]),
        summary=summary,
    )
