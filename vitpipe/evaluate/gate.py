"""May the challenger take the champion's place? A paired comparison on the same test tiles, by groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Final

import numpy as np
import pandas as pd

from vitpipe.config import EvaluateRecipe, GateRecipe
from vitpipe.digest import digest_of_digests
from vitpipe.errors import ContractError
from vitpipe.evaluate import metrics
from vitpipe.evaluate.assess import difference, sample
from vitpipe.evaluate.statistics import Estimate, Floats, bootstrap_p, sign_flip_p
from vitpipe.evaluate.units import Units, pool, probability_columns
from vitpipe.records import Json, Level

PERMUTATIONS: Final = 9999
THRESHOLDS: Final = "thresholds"
"""Key of ``DataFrame.attrs``: the thresholds of a multi-label model, in the order of its p_ columns."""
LINEAR: Final = frozenset({"accuracy", "balanced_accuracy", "brier"})
"""Metrics that are sums over units: their difference has a share in every group, whose sign can be flipped."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One condition and how it came out."""

    name: str
    passed: bool
    sentence: str


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict with every number it rests on."""

    accepted: bool
    metric: str
    level: str
    margin: float
    champion: float | None
    """Value of the champion, or of the majority baseline for a first version."""
    challenger: float | None
    difference: Estimate
    """Challenger minus champion; positive means better whatever the metric (a Brier score is turned round)."""
    p_value: float | None
    """Two-sided, of "the two are alike"."""
    p_method: str
    confidence: float
    seed: int
    tiles_digest: str
    """Of the test tiles compared."""
    rules: tuple[Rule, ...]
    first: bool = False
    notes: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """Give the verdict and its reasons as text."""
        verdict = "The challenger is accepted." if self.accepted else "The challenger is not accepted."
        return " ".join([verdict, *(rule.sentence for rule in self.rules)])

    def to_json(self) -> dict[str, Json]:
        """Give a JSON form: every number, the verdict of each rule, and the sentences."""
        values: dict[str, Json] = asdict(self)
        return values | {
            "difference": self.difference.to_json(),
            "rules": [asdict(rule) for rule in self.rules],
            "notes": list(self.notes),
            "sentence": self.sentence,
        }


@dataclass(frozen=True, slots=True)
class _Paired:
    better: Units
    """The challenger's."""
    other: Units
    tiles_digest: str


def compare(
    champion: pd.DataFrame,
    challenger: pd.DataFrame,
    gate: GateRecipe,
    judging: EvaluateRecipe,
) -> Decision:
    """Compare two versions on the same test tiles.

    Margin 0 asks for superiority: the challenger's metric is higher and the paired test gives ``p < 1 - confidence``
    (groups swapped as wholes; for metrics that are no sums over units, the paired bootstrap of groups, whose interval
    must lie above 0). A margin above 0 asks for non-inferiority: the lower bound of the difference lies above
    ``-margin``.

    Args:
        champion: predictions of the version in use, on the test tiles: tile_id, source_id, group_id, label, p_<class>;
            those of a multi-label model carry their thresholds, see :data:`THRESHOLDS`.
        challenger: predictions of the version under test, on the same tiles.
        gate: metric and margin.
        judging: level, draws, confidence, seed.

    Raises:
        ContractError: the tiles, labels, groups or classes of the two differ.
    """
    paired = _pair(champion, challenger, judging)
    sign = metrics.better_by(gate.metric)
    statistic = metrics.metric_statistic
    draws = metrics.rank_draws(paired.better, judging.bootstrap) if gate.metric in metrics.RANK_METRICS else None
    samples = [
        sample(units, statistic(units, gate.metric), draws or judging.bootstrap, judging.seed)
        for units in (paired.better, paired.other)
    ]
    ordered = samples if sign > 0 else samples[::-1]
    gap = difference(gate.metric, ordered[0], ordered[1], paired.better, judging.confidence)
    values = [float(each.estimates[gate.metric]) for each in samples]
    if gate.metric in LINEAR:
        p: float | None = sign_flip_p(
            sign * group_differences(paired.better, paired.other, gate.metric), PERMUTATIONS, judging.seed
        )
        method = f"sign flips of whole groups, {PERMUTATIONS} permutations"
    else:
        rows = ordered[0].draws[gate.metric] - ordered[1].draws[gate.metric]
        p = bootstrap_p(rows) if np.isfinite(rows).any() else None
        method = "paired bootstrap of groups"
    rule = rule_of(gate, gap, p, judging.confidence)
    return Decision(
        accepted=rule.passed,
        metric=gate.metric,
        level=judging.level,
        margin=gate.margin,
        champion=_defined(values[1]),
        challenger=_defined(values[0]),
        difference=gap,
        p_value=p,
        p_method=method,
        confidence=judging.confidence,
        seed=judging.seed,
        tiles_digest=paired.tiles_digest,
        rules=(rule,),
        notes=(gap.note,) if gap.note else (),
    )


def accept_first(
    baseline: pd.DataFrame,
    challenger: pd.DataFrame,
    gate: GateRecipe,
    judging: EvaluateRecipe,
) -> Decision:
    """Judge a first version: it is accepted unless it is shown to be worse than always guessing the commonest class.

    Args:
        baseline: predictions of the majority baseline on the test tiles.
        challenger: predictions of the first version on the same tiles.
        gate: metric; the margin is not used.
        judging: level, draws, confidence, seed.

    Raises:
        ContractError: the tiles, labels, groups or classes of the two differ.
    """
    return as_first(compare(baseline, challenger, gate.model_copy(update={"margin": 0.0}), judging))


def as_first(decision: Decision, baseline: str = "majority") -> Decision:
    """Turn a comparison with a trivial baseline into the decision on a first version: only a worse one is refused."""
    gap, metric = decision.difference, decision.metric
    worse = gap.high is not None and gap.high < 0
    if gap.estimate is None:
        verdict = (
            f"the comparison with the {baseline} baseline is not defined on these data, so nothing speaks against it"
        )
    elif worse:
        verdict = f"it is worse than the {baseline} baseline: {_numbers(gap)} in {metric}"
    elif gap.low is not None and gap.low > 0:
        verdict = f"it beats the {baseline} baseline: {_numbers(gap)} in {metric}"
    else:
        verdict = f"it cannot be told from the {baseline} baseline: {_numbers(gap)} in {metric}"
    rule = Rule("first_version", not worse, f"There is no champion yet, and {verdict}.")
    return replace(decision, accepted=not worse, margin=0.0, rules=(rule,), first=True)


def group_differences(better: Units, other: Units, metric: str) -> Floats:
    """Share of each group in the difference of a metric that is a sum over units; they add up to the difference.

    Accuracy: ``(right_A - right_B) / n``; balanced accuracy: each unit weighs ``1 / (classes * units of its class)``;
    Brier: its own score.
    """
    if metric == "brier":
        scores = [
            metrics.brier_of(units.truth, units.probabilities, multi_label=units.multi_label)
            for units in (better, other)
        ]
        shares = (scores[0] - scores[1]) / better.n
    elif metric == "accuracy":
        shares = (better.correct.astype(np.float64) - other.correct) / better.n
    else:
        shares = _balanced_shares(better, other)
    return np.bincount(better.groups, weights=shares, minlength=better.n_groups).astype(np.float64)


def _balanced_shares(better: Units, other: Units) -> Floats:
    weight = _balanced_weights(better)
    gained = (better.truth == better.decided).astype(np.float64) - (other.truth == other.decided)
    return np.asarray((gained * weight).sum(axis=1))


def _balanced_weights(units: Units) -> Floats:
    """Weight (units, classes) of each right decision on a class in the balanced accuracy."""
    truth = units.truth
    support = truth.sum(axis=0).astype(np.float64)
    others = units.n - support
    present = support > 0
    if not units.multi_label:
        share = np.where(present, 1.0 / np.maximum(support, 1.0), 0.0) / max(1, int(present.sum()))
        return np.asarray(truth * share)
    defined = present & (others > 0)
    halves = np.where(truth, 1.0 / np.maximum(support, 1.0), 1.0 / np.maximum(others, 1.0)) / 2.0
    return np.asarray(np.where(defined, halves, 0.0) / max(1, int(defined.sum())))


def rule_of(gate: GateRecipe, gap: Estimate, p: float | None, confidence: float) -> Rule:
    """Say whether a difference is enough: superiority at margin 0, else non-inferiority; see :func:`compare`."""
    if gap.estimate is None:
        return Rule(
            name="defined",
            passed=False,
            sentence=f"{gate.metric} is not defined on the test split, so nothing can be compared.",
        )
    numbers = _numbers(gap)
    if gate.margin > 0:
        passed = gap.low is not None and gap.low > -gate.margin
        relation = "above" if passed else "not above"
        bound = "it has no interval" if gap.low is None else f"its lower bound is {relation} {-gate.margin:g}"
        return Rule("non_inferiority", passed, f"In {gate.metric} it differs from the champion by {numbers}; {bound}.")
    level = 1.0 - confidence
    if gate.metric in LINEAR:
        passed = gap.estimate > 0 and p is not None and p < level
        shown = "no p" if p is None else f"p = {p:.4f} (below {level:g} is needed)"
    else:
        passed = gap.low is not None and gap.low > 0
        shown = "its interval must lie above 0"
    return Rule("superiority", passed, f"In {gate.metric} it differs from the champion by {numbers}; {shown}.")


def _numbers(gap: Estimate) -> str:
    if gap.low is None or gap.high is None:
        return f"{gap.estimate:+.4f} (no interval; {gap.n_groups} groups)"
    return f"{gap.estimate:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}] ({gap.n_groups} groups)"


def _defined(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _classes_of(table: pd.DataFrame) -> list[str]:
    return [str(column).removeprefix("p_") for column in table.columns if str(column).startswith("p_")]


def _pair(champion: pd.DataFrame, challenger: pd.DataFrame, judging: EvaluateRecipe) -> _Paired:
    classes = _classes_of(challenger)
    if sorted(classes) != sorted(_classes_of(champion)):
        raise ContractError(
            f"champion and challenger know different classes ({', '.join(_classes_of(champion))} and "
            f"{', '.join(classes)}); their numbers cannot be compared: promote by hand, or train on the same labels"
        )
    needed = ["tile_id", "source_id", "group_id", "label", *probability_columns(classes)]
    tables = [table.sort_values("tile_id", ignore_index=True) for table in (champion, challenger)]
    for column in ("tile_id", "group_id", "label"):
        if not _equal(tables[0][column], tables[1][column]):
            raise ContractError(
                f"champion and challenger were not run on the same test tiles: column `{column}` differs "
                f"({len(tables[0])} and {len(tables[1])} rows); run the champion on the challenger's test tiles"
            )
    ordered = tables[1][needed]
    others = tables[0][needed].assign(source_id=ordered["source_id"])
    level = Level(judging.level)
    better = pool(ordered, classes, level, _thresholds_of(challenger, classes))
    other = pool(others, classes, level, _thresholds_of(champion, classes))
    return _Paired(better, other, digest_of_digests(ordered["tile_id"].astype(str)))


def _equal(first: pd.Series, second: pd.Series) -> bool:
    return len(first) == len(second) and bool((first.astype(str).to_numpy() == second.astype(str).to_numpy()).all())


def _thresholds_of(table: pd.DataFrame, classes: Sequence[str]) -> Floats | None:
    """Give the thresholds of a table in the order of `classes`; None where it has none: single-label."""
    thresholds = table.attrs.get(THRESHOLDS)
    if thresholds is None:
        return None
    by_class = dict(zip(_classes_of(table), thresholds, strict=True))
    return np.asarray([by_class[name] for name in classes], dtype=np.float64)
