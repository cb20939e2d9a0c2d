"""Every number of a model of pixels on the locked test split; the stage around it is `vitpipe.evaluate.evaluation`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from vitpipe.config import PipelineConfig
from vitpipe.errors import ContractError
from vitpipe.evaluate.assess import Assessment, assessment_json, difference
from vitpipe.evaluate.beside import Beside, verdict_of, verdict_sentence
from vitpipe.evaluate.calibration import Calibration, CalibrationTiles, fit_calibration
from vitpipe.evaluate.headline import headline_metric
from vitpipe.evaluate.judged import Judged
from vitpipe.evaluate.pixels.assess import Asked, assess_pixels
from vitpipe.evaluate.pixels.sums import PixelUnits, group_numbers, pool_sums, statistic_of, tile_sums
from vitpipe.evaluate.pixels.tables import (
    BASELINES_FOLDER,
    COUNTS,
    VALUE_SUMS,
    baseline_names,
    matrices,
    read_sample,
    read_tiles,
    thinned,
)
from vitpipe.evaluate.predictions import logit_columns
from vitpipe.evaluate.statistics import MIN_BOOTSTRAP_GROUPS
from vitpipe.evaluate.subgroups import (
    ATTRIBUTE_PREFIX,
    Member,
    Subgroup,
    strata,
    subgroup_estimates,
    unused_columns,
)
from vitpipe.manifest import Manifest
from vitpipe.records import Json, Level, Split, Task
from vitpipe.workspace import Workspace

LABELLED: Final = "labelled_px"


def judge_pixels(config: PipelineConfig, manifest: Manifest, run_folder: Path, workspace: Workspace) -> Judged:
    """Make every number; nothing is written.

    Raises:
        ConfigError: the gate names a metric that the task does not have.
        ContractError: the tables of the run and the manifest do not fit together, or no test pixel is labelled.
    """
    recipe, metric = config.evaluate, headline_metric(config, manifest)
    tiles = read_tiles(run_folder, manifest)
    test = tiles.loc[tiles["split"] == str(Split.TEST)].reset_index(drop=True)
    if test.empty:
        raise ContractError("no pixel of the test split is labelled, so nothing can be judged; label more groups")
    calibration = calibrate(run_folder, manifest, tiles, config)
    asked = Asked(manifest, recipe, calibration)
    sampled = _sampled(run_folder, manifest, recipe.seed)
    assessed = {level: assess_pixels(test, sampled, asked, level) for level in Level}
    beside = _beside(run_folder, (test, assessed), asked, metric)
    numbers: dict[str, Json] = {}
    per_class: dict[str, Json] = {}
    for level, each in assessed.items():
        numbers[str(level)], per_class[str(level)] = assessment_json(each)
    numbers |= {
        "task": str(manifest.task),
        "pixels": int(test["n"].sum()),
        "per_class": per_class,
        "confusion": {str(Level.TILE): _confusion(test, manifest)},
        "baselines": beside.numbers,
        "beats_baseline": dict(beside.verdicts),
        "subgroups": [each.to_json() for each in _subgroups(test, asked, metric)],
        "selective": {},
        "conformal": None,
        "calibration": calibration.to_json(),
        "classes": list(manifest.classes),
        "multi_label": False,
        "headline": {"metric": metric, "level": str(recipe.level), "confidence": recipe.confidence},
        "verdict": verdict_sentence(beside.verdicts, metric),
        "digests": {"manifest": manifest.digest, "config": config.content_digest(), "evaluate": recipe.digest()},
        "notes": [*_notes(test, assessed, (config, manifest), beside), *calibration.notes],
    }
    return Judged(config, manifest, run_folder, workspace, calibration, tile_table(tiles, manifest), {}, numbers)


def calibrate(run_folder: Path, manifest: Manifest, tiles: pd.DataFrame, config: PipelineConfig) -> Calibration:
    """Fit the temperature and the prediction sets of pixels on the sampled pixels of the calibration split.

    Every group carries the same mass in the sets, and tiles count alike, since each gave about as many pixels.
    """
    recipe = config.evaluate
    if manifest.task is Task.REGRESSION:
        return Calibration.plain(manifest.classes, recipe.alpha, "values of pixels: nothing is calibrated")
    sampled = read_sample(run_folder, manifest, Split.CALIBRATION)
    found = thinned(sampled, recipe.seed) if sampled is not None else pd.DataFrame()
    columns = logit_columns(manifest.classes)
    rows = found if len(found) else pd.DataFrame(columns=["tile_id", "truth", *columns])
    truth = np.zeros((len(rows), len(manifest.classes)), dtype=bool)
    truth[np.arange(len(rows)), rows["truth"].to_numpy(np.intp)] = True
    place = pd.Index(tiles["tile_id"]).get_indexer(pd.Index(rows["tile_id"]))
    groups = pd.factorize(tiles["group_id"].to_numpy()[place])[0].astype(np.intp)
    return fit_calibration(
        CalibrationTiles(rows[columns].to_numpy(np.float64), truth, groups, manifest.classes, multi_label=False),
        alpha=recipe.alpha,
        seed=recipe.seed,
    )


def _sampled(folder: Path, manifest: Manifest, seed: int) -> pd.DataFrame | None:
    found = read_sample(folder, manifest, Split.TEST)
    return None if found is None or found.empty else thinned(found, seed)


def _beside(
    run_folder: Path, model: tuple[pd.DataFrame, Mapping[Level, Assessment]], asked: Asked, metric: str
) -> Beside:
    """Judge every baseline that the training left, on the same draws of groups."""
    test, assessed = model
    manifest, recipe = asked.manifest, asked.recipe
    # A baseline's probabilities are taken as it gives them.
    plain = Calibration.plain(manifest.classes, recipe.alpha)
    found = Beside({}, {})
    for name in baseline_names(run_folder):
        folder = run_folder / BASELINES_FOLDER / name
        tiles = read_tiles(folder, manifest)
        own = tiles.loc[tiles["split"] == str(Split.TEST)].reset_index(drop=True)
        if not own["tile_id"].equals(test["tile_id"]) or not np.array_equal(own["n"], test["n"]):
            raise ContractError(f"{folder} was judged on other pixels than the model; train again")
        sampled = _sampled(folder, manifest, recipe.seed)
        numbers: dict[str, Json] = {}
        for level in Level:
            each = assess_pixels(own, sampled, Asked(manifest, recipe, plain), level, design_effect=False)
            units = pool_sums(own, tile_sums(own, manifest), level, group_numbers(own))
            gaps = {
                which: difference(which, assessed[level].sampled, each.sampled, units, recipe.confidence)
                for which in assessed[level].overall
                if which in each.overall
            }
            numbers[str(level)] = assessment_json(each)[0]
            numbers[f"{level}_difference"] = {which: gap.to_json() for which, gap in gaps.items()}
            if str(level) == recipe.level:
                found.verdicts[name] = verdict_of(gaps[metric], metric)
        found.numbers[name] = numbers
    return found


def _confusion(test: pd.DataFrame, manifest: Manifest) -> Json:
    if manifest.task is Task.REGRESSION:
        return None
    counts = matrices(test, len(manifest.classes)).sum(axis=0)
    return {"classes": list(manifest.classes), "counts": counts.round().astype(np.int64).tolist()}


def _subgroups(test: pd.DataFrame, asked: Asked, metric: str) -> list[Subgroup]:
    manifest, recipe = asked.manifest, asked.recipe
    sums, (groups, n_groups) = tile_sums(test, manifest), group_numbers(test)
    make = statistic_of(manifest.task, len(manifest.classes))
    members = []
    for attribute, value, rows in strata(test, recipe):
        units: PixelUnits = pool_sums(test.loc[rows], sums[rows], Level(recipe.level), (groups[rows], n_groups))
        members.append(Member(attribute, value, make(units), units.n, units.present, n_groups))
    return subgroup_estimates(members, metric, recipe, recipe.bootstrap)


def tile_table(tiles: pd.DataFrame, manifest: Manifest) -> pd.DataFrame:
    """Give the predictions table of pixels: a row a judged tile with its sums, enough to pool and compare again.

    Returns:
        tile_id, source_id, group_id, split, label, labelled_px, then `counts` and `accuracy`, or the sums of values and
        `rmse`, then the `attr_` columns.
    """
    found = tiles[["tile_id", "source_id", "group_id", "split", "label"]].astype(str)
    found[LABELLED] = tiles["n"].to_numpy(np.int64)
    if manifest.task is Task.SEGMENTATION:
        sums = tile_sums(tiles, manifest)
        found["accuracy"] = sums[:, 1] / np.maximum(sums[:, 0], 1)
        found[COUNTS] = tiles[COUNTS]
    else:
        found["rmse"] = np.sqrt(tiles["sum_sq_error"] / np.maximum(tiles["n"], 1))
        found[list(VALUE_SUMS[1:])] = tiles[list(VALUE_SUMS[1:])]
    for name in tiles.columns:
        if str(name).startswith(ATTRIBUTE_PREFIX):
            found[str(name)] = tiles[name]
    return found


def _notes(
    test: pd.DataFrame,
    assessed: Mapping[Level, Assessment],
    about: tuple[PipelineConfig, Manifest],
    beside: Beside,
) -> Iterator[str]:
    """Say what a reader must know before believing the numbers."""
    config, manifest = about
    recipe = config.evaluate
    yield (
        f"{int(test['n'].sum()):,} labelled pixels of {len(test)} test tiles are judged; pixels without a label or "
        "without valid data count nowhere."
    )
    if LABELLED in test and (again := int(test[LABELLED].sum()) - int(test["n"].sum())) > 0:
        yield (
            f"Tiles overlap, in {again:,} labelled pixels more than once: each pixel counts once, in the tile whose "
            "centre is nearest."
        )
    n_groups = int(test["group_id"].nunique())
    if n_groups < MIN_BOOTSTRAP_GROUPS:
        yield (
            f"The test split has {n_groups} groups, fewer than {MIN_BOOTSTRAP_GROUPS}: the intervals are Student's t "
            "on the group jackknife and are rough."
        )
    if len(test[["source_id", "group_id"]].drop_duplicates()) > test["source_id"].nunique():
        yield "A source that lies in several groups, such as a scene on many blocks, is a unit in each of them."
    lacking = [name for name, count in assessed[Level.TILE].support.items() if count == 0]
    if lacking:
        yield (
            f"The test split has no pixel of {', '.join(lacking)}: their own numbers are not defined, and means over "
            "classes are over the others."
        )
    if config.registration is not None and (asked := config.registration.gate.metric) != headline_metric(
        config, manifest
    ):
        yield f"The gate says {asked}, which values of pixels do not have: it decides by R2."
    if not beside.verdicts:
        yield "No baseline stands beside the model: the training left none in the run."
    if not recipe.subgroups and (unused := unused_columns(test)):
        yield f"Not used as subgroups, for their many values: {', '.join(unused)}; evaluate.subgroups can name them."
    yield from manifest.notes
