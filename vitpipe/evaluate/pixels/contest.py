"""Champion against challenger on the same test pixels, by the sums of their tiles."""

from __future__ import annotations

from typing import Final

import numpy as np
import pandas as pd

from vitpipe.config import EvaluateRecipe, GateRecipe
from vitpipe.digest import digest_of_digests
from vitpipe.errors import ContractError
from vitpipe.evaluate import gate as gates
from vitpipe.evaluate import metrics
from vitpipe.evaluate.assess import difference, sample
from vitpipe.evaluate.headline import gate_metric
from vitpipe.evaluate.pixels.sums import PixelUnits, group_numbers, pool_sums, statistic_of, tile_sums
from vitpipe.evaluate.statistics import Floats, bootstrap_p, sign_flip_p
from vitpipe.manifest import Manifest
from vitpipe.records import Level

LINEAR: Final = frozenset({"accuracy", "balanced_accuracy"})
"""Their difference has a share in every group, whose sign can be flipped."""


def compare_pixels(
    champion: pd.DataFrame, challenger: pd.DataFrame, gate: GateRecipe, judging: EvaluateRecipe, manifest: Manifest
) -> gates.Decision:
    """Compare two versions on the same labelled test pixels, by the rules of :func:`vitpipe.evaluate.gate.compare`.

    Args:
        champion: tile_id, source_id, group_id, `n` and the sums of every test tile, of the version in use.
        challenger: the same of the version under test.
        gate: metric and margin.
        judging: level, draws, confidence, seed.
        manifest: task and classes.

    Raises:
        ConfigError: the gate names a metric that the task does not have.
        ContractError: the two were not judged on the same pixels.
    """
    gate = gate.model_copy(update={"metric": gate_metric(gate, manifest.task)})
    tables = [table.sort_values("tile_id", ignore_index=True) for table in (challenger, champion)]
    if not all(np.array_equal(tables[0][name], tables[1][name]) for name in ("tile_id", "group_id", "n")):
        raise ContractError(
            f"champion and challenger were not judged on the same test pixels ({len(tables[1])} and {len(tables[0])} "
            "tiles); run the champion on the challenger's test tiles"
        )
    numbered, level = group_numbers(tables[0]), Level(judging.level)
    units = [pool_sums(tables[0], tile_sums(table, manifest), level, numbered) for table in tables]
    make = statistic_of(manifest.task, len(manifest.classes))
    samples = [sample(each, make(each), judging.bootstrap, judging.seed) for each in units]
    sign = metrics.better_by(gate.metric)
    ordered = samples if sign > 0 else samples[::-1]
    gap = difference(gate.metric, ordered[0], ordered[1], units[0], judging.confidence)
    values = [float(each.estimates[gate.metric]) for each in samples]
    if gate.metric in LINEAR:
        shares = group_shares(units[0], units[1], gate.metric, len(manifest.classes))
        p: float | None = sign_flip_p(shares, gates.PERMUTATIONS, judging.seed)
        method = f"sign flips of whole groups, {gates.PERMUTATIONS} permutations"
    else:
        rows = ordered[0].draws[gate.metric] - ordered[1].draws[gate.metric]
        p = bootstrap_p(rows) if np.isfinite(rows).any() else None
        method = "paired bootstrap of groups"
    rule = gates.rule_of(gate, gap, p, judging.confidence)
    return gates.Decision(
        accepted=rule.passed,
        metric=gate.metric,
        level=judging.level,
        margin=gate.margin,
        champion=values[1] if np.isfinite(values[1]) else None,
        challenger=values[0] if np.isfinite(values[0]) else None,
        difference=gap,
        p_value=p,
        p_method=method,
        confidence=judging.confidence,
        seed=judging.seed,
        tiles_digest=digest_of_digests(tables[0]["tile_id"].astype(str)),
        rules=(rule,),
        notes=(gap.note,) if gap.note else (),
    )


def group_shares(better: PixelUnits, other: PixelUnits, metric: str, classes: int) -> Floats:
    """Share of each group in the difference of a metric that is a sum over units; they add up to the difference.

    Accuracy: right pixels over all; balanced accuracy: a class's right pixels over ``classes * pixels of the class``.
    """
    first, second = better.by_group(), other.by_group()
    if metric == "accuracy":
        return np.asarray((first[:, 1] - second[:, 1]) / first[:, 0].sum())
    hits, support = slice(2, 2 + classes), first[:, 2 + classes : 2 + 2 * classes].sum(axis=0)
    present = support > 0
    weight = np.where(present, 1.0 / np.where(present, support, 1.0), 0.0) / max(1, int(present.sum()))
    return np.asarray((first[:, hits] - second[:, hits]) @ weight)
