"""Which split a group falls into: exact quotas, stratified, append-only.

A group that has a split keeps it for good. New groups, in an order that comes from their content alone, fill what each
stratum lacks; what rounding leaves over is carried from stratum to stratum, so that the shares hold over all groups
even where every stratum is tiny. All of it is integer arithmetic: the same groups give the same table on any machine.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vitpipe.config import SplitRecipe
from vitpipe.errors import ContractError, SplitError
from vitpipe.records import Split

SPLITS: tuple[Split, ...] = (Split.TRAIN, Split.TEST, Split.VAL, Split.CALIBRATION)
"""Order of the columns of every allotment; at a tie the earlier split takes the group."""

RULE_SEPARATOR = "|"
_SCALE = 10**9
"""One group in the integer arithmetic: shares are kept to nine decimals, and 8 million groups fit 64 bits."""

Counts = NDArray[np.int64]


def content_order(keys: Sequence[str], *, seed: int) -> NDArray[np.uint64]:
    """Give the place of each group in the queue: a hash of the seed and of a key made of content.

    Args:
        keys: per group the smallest `source_id` in it (content, thus the same under any pseudonym key).
        seed: of the split recipe.

    Returns:
        64-bit BLAKE2b values, one a key.
    """
    salt = f"{seed}|".encode()
    raw = b"".join(blake2b(salt + key.encode("utf-8"), digest_size=8).digest() for key in keys)
    return np.frombuffer(raw, dtype=">u8").astype(np.uint64)


def assign_groups(groups: pd.DataFrame, existing: pd.DataFrame, recipe: SplitRecipe) -> pd.DataFrame:
    """Give every new group a split; groups that have one keep it.

    Args:
        groups: a row a group that there is now: `group_id` (unique), `stratum` (text), `order` (sortable integers, see
            :func:`content_order`).
        existing: rows already assigned: `group_id`, `split`. Groups in it that are gone count for nothing.
        recipe: the shares.

    Returns:
        `group_id`, `split` of the new groups alone, sorted by stratum and order; independent of the order of rows.

    Raises:
        SplitError: fewer groups than splits, or no group to learn from or to test on.
    """
    shares = _shares(recipe)
    wanted = int((shares > 0).sum())
    if len(groups) < wanted:
        raise SplitError(
            f"{len(groups)} labelled group(s) cannot fill {wanted} splits ({_share_text(shares)}); a group never "
            "straddles splits, so label more groups (patients, blocks of ground), or set `split.val` or "
            "`split.calibration` to 0"
        )
    added = _deal(groups, existing, "split", Bins.of_splits(shares))
    _check_needed(groups, existing, added)
    return added


def assign_allowed(groups: pd.DataFrame, existing: pd.DataFrame, recipe: SplitRecipe) -> pd.DataFrame:
    """Give every new group one of the splits that a rule leaves to it.

    Groups that have the same splits to choose from fill them in the proportion of their shares.

    Args:
        groups: see :func:`assign_groups`, and `allowed`: names of splits joined by ``|``.
        existing: see :func:`assign_groups`.
        recipe: the shares.

    Returns:
        See :func:`assign_groups`.

    Raises:
        SplitError: a rule leaves splits without a share, or no group to learn from or to test on.
    """
    parts = [pd.DataFrame({"group_id": pd.Series(dtype="str"), "split": pd.Series(dtype="str")})]
    for allowed, part in groups.groupby("allowed", sort=True):
        shares = np.where(
            np.isin([str(split) for split in SPLITS], str(allowed).split(RULE_SEPARATOR)), _shares(recipe), 0
        )
        if not shares.any():
            raise SplitError(f"the splits {allowed} have no share; set one in `split`")
        parts.append(_deal(part.reset_index(drop=True), existing, "split", Bins.of_splits(_whole(shares))))
    added = pd.concat(parts, ignore_index=True)
    _check_needed(groups, existing, added)
    return added


def assign_folds(groups: pd.DataFrame, existing: pd.DataFrame, folds: int) -> pd.DataFrame:
    """Give every new group a fold; groups that have one keep it. Which fold is test does not matter here.

    Args:
        groups: see :func:`assign_groups`.
        existing: `group_id`, `fold`.
        folds: how many there are.

    Returns:
        `group_id`, `fold` (int64, from 0) of the new groups.

    Raises:
        SplitError: fewer groups than folds.
    """
    if len(groups) < folds:
        raise SplitError(
            f"{len(groups)} labelled group(s) cannot fill {folds} folds; a group never straddles folds, so label more "
            "groups (patients, blocks of ground), or set fewer `split.folds`"
        )
    shares = _whole(np.ones(folds, dtype=np.int64))
    known = existing.assign(fold=existing["fold"].astype("str"))
    added = _deal(groups, known, "fold", Bins(tuple(str(fold) for fold in range(folds)), shares, None))
    return added.assign(fold=added["fold"].astype("int64"))


@dataclass(frozen=True, slots=True)
class Bins:
    """What groups are dealt into."""

    names: tuple[str, ...]
    shares: Counts
    """In units of 1/_SCALE, summing to _SCALE."""
    taught: int | None
    """The bin that should have a group of every stratum."""

    @classmethod
    def of_splits(cls, shares: Counts) -> Bins:
        """Give the bins of the four splits."""
        train = SPLITS.index(Split.TRAIN)
        return cls(tuple(str(split) for split in SPLITS), shares, train if shares[train] else None)


def _deal(groups: pd.DataFrame, existing: pd.DataFrame, column: str, bins: Bins) -> pd.DataFrame:
    """Deal the groups that have no bin yet; gives `group_id` and the column of bins' names."""
    if not groups["group_id"].is_unique:
        raise ContractError("assign_groups needs one row a group; some group_id stands there twice")
    taken = pd.Index(existing["group_id"]).get_indexer(pd.Index(groups["group_id"]))
    names = np.array(bins.names, dtype=object)
    known = pd.Index(names).get_indexer(existing[column].to_numpy(dtype=object))
    if (known < 0).any():
        raise ContractError(f"unknown {column} in the split table; expected one of {', '.join(names)}")
    split_now = np.where(taken >= 0, known[taken] if len(known) else -1, -1)

    stratum, strata = pd.factorize(groups["stratum"].to_numpy(dtype=object), sort=True)
    new = np.flatnonzero(split_now < 0)
    old = np.flatnonzero(split_now >= 0)
    held = np.zeros((len(strata), len(names)), dtype=np.int64)
    np.add.at(held, (stratum[old], split_now[old]), 1)
    fresh = np.bincount(stratum[new], minlength=len(strata)).astype(np.int64)
    allotment = _allot(bins, held, fresh)

    order = groups["order"].to_numpy()[new]
    ranked = np.lexsort((order, stratum[new]))
    if _has_ties(stratum[new][ranked], order[ranked]):
        text = groups["group_id"].to_numpy(dtype=object)[new]
        ranked = np.lexsort((pd.factorize(text, sort=True)[0], order, stratum[new]))
    # Sorted by stratum: the groups of each are dealt out in the order of the bins, as many as its row allots.
    dealt = np.repeat(np.tile(names, len(strata)), allotment.ravel())
    return pd.DataFrame(
        {
            "group_id": pd.Series(groups["group_id"].to_numpy()[new][ranked], dtype="str"),
            column: pd.Series(dealt, dtype="str"),
        }
    )


def _has_ties(stratum: NDArray[np.int64], order: NDArray[np.uint64]) -> bool:
    return bool(((stratum[1:] == stratum[:-1]) & (order[1:] == order[:-1])).any())


def _shares(recipe: SplitRecipe) -> Counts:
    """Give the shares in the order of SPLITS, in units of 1/_SCALE, summing to _SCALE."""
    test, val, calibration = (round(share * _SCALE) for share in (recipe.test, recipe.val, recipe.calibration))
    return np.array([_SCALE - test - val - calibration, test, val, calibration], dtype=np.int64)


def _whole(shares: Counts) -> Counts:
    """Scale shares so that they sum to _SCALE exactly; the first largest one takes what rounding leaves."""
    scaled: Counts = shares * _SCALE // shares.sum()
    scaled[int(np.argmax(scaled))] += _SCALE - scaled.sum()
    return scaled


def _share_text(shares: Counts) -> str:
    return ", ".join(f"{split} {share / _SCALE:g}" for split, share in zip(SPLITS, shares, strict=True) if share)


def _round(want: Counts, total: int) -> Counts:
    """Round wishes (units of 1/_SCALE) to counts that are not negative and sum to `total`, by largest remainder.

    Wishes below zero get nothing; what they are in debt is taken from the others in equal parts (the nearest point of
    the simplex), so one split alone does not pay. The wishes must sum to `total` groups.
    """
    active = want > 0
    wish = np.where(active, want, 0)
    while active.any():
        debt = (int(want[active].sum()) - total * _SCALE) // int(active.sum())
        wish = np.where(active, want - debt, 0)
        if (wish >= 0).all():
            break
        active &= wish > 0
        wish = np.where(active, wish, 0)
    counts: Counts = np.maximum(wish, 0) // _SCALE
    while int(counts.sum()) < total:
        remainder = want - counts * _SCALE
        counts[int(np.argmax(np.where(active, remainder, np.iinfo(np.int64).min)))] += 1
    return counts


def _allot(bins: Bins, held: Counts, fresh: Counts) -> Counts:
    """Share out the new groups of every stratum.

    Args:
        bins: B of them.
        held: (strata, B) groups that have a bin.
        fresh: (strata,) new groups.

    Returns:
        (strata, B) counts; rows sum to `fresh`, columns to the largest-remainder rounding of the overall shares.
    """
    shares = bins.shares
    size = held.sum(axis=1) + fresh
    ideal = shares[None, :] * size[:, None] - held * _SCALE
    overall = _round(shares * int(size.sum()) - held.sum(axis=0) * _SCALE, int(fresh.sum()))
    overall = _fill_empty(overall, shares, held.sum(axis=0))
    allotment = np.zeros_like(held)
    carry = np.zeros(len(shares), dtype=np.int64)
    # The largest strata first: the small ones at the end take up what rounding left over.
    for row in np.lexsort((np.arange(len(size)), -size)):
        want = ideal[row] + carry
        allotment[row] = _round(want, int(fresh[row]))
        carry = want - allotment[row] * _SCALE
    allotment = _repair(allotment, ideal, overall)
    return allotment if bins.taught is None else _teach_every_stratum(allotment, held, ideal, bins.taught)


def _fill_empty(overall: Counts, shares: Counts, held: Counts) -> Counts:
    """Let every split with a share have one group at least, where a split with two or more can give a new one."""
    overall = overall.copy()
    for empty in np.flatnonzero((shares > 0) & (overall + held == 0)):
        giver = int(np.argmax(np.where(overall > 0, overall + held, 0)))
        if overall[giver] > 0 and (overall + held)[giver] > 1:
            overall[giver] -= 1
            overall[empty] += 1
    return overall


def _repair(allotment: Counts, ideal: Counts, overall: Counts) -> Counts:
    """Move single groups between splits, where it hurts the strata least, until the columns sum to `overall`."""
    while (excess := allotment.sum(axis=0) - overall).any():
        giver, taker = int(np.argmax(excess)), int(np.argmin(excess))
        surplus = allotment * _SCALE - ideal
        gain = np.where(allotment[:, giver] > 0, surplus[:, giver] - surplus[:, taker], np.iinfo(np.int64).min)
        row = int(np.argmax(gain))
        most = min(int(excess[giver]), -int(excess[taker]), int(allotment[row, giver]))
        moved = min(most, max(1, int(excess[giver]) // len(allotment)))
        allotment[row, giver] -= moved
        allotment[row, taker] += moved
    return allotment


def _teach_every_stratum(allotment: Counts, held: Counts, ideal: Counts, train: int) -> Counts:
    """Let train have a group of every stratum, by exchange with strata that have two or more in train.

    What the train split never shows cannot be learned: the only group of a class is of more use there than in a test
    that must fail. The columns keep their sums.
    """
    lacking = np.flatnonzero((held[:, train] + allotment[:, train] == 0) & (allotment.sum(axis=1) > 0))
    spare = np.minimum(allotment[:, train], held[:, train] + allotment[:, train] - 1)
    givers = [(-int(spare[row]), int(row)) for row in np.flatnonzero(spare > 0)]
    heapq.heapify(givers)
    for row in lacking:
        if not givers:
            break
        left, giver = heapq.heappop(givers)
        surplus = np.where(allotment[row] > 0, allotment[row] * _SCALE - ideal[row], np.iinfo(np.int64).min)
        column = int(np.argmax(surplus))
        allotment[row, [train, column]] += (1, -1)
        allotment[giver, [train, column]] += (-1, 1)
        if left + 1 < 0:
            heapq.heappush(givers, (left + 1, giver))
    return allotment


def _check_needed(groups: pd.DataFrame, existing: pd.DataFrame, added: pd.DataFrame) -> None:
    """Refuse a table in which no group that there is now is for train, or none for test."""
    here = pd.Index(groups["group_id"]).get_indexer(pd.Index(existing["group_id"])) >= 0
    found = {*existing.loc[here, "split"].unique(), *added["split"].unique()}
    for split in (Split.TRAIN, Split.TEST):
        if str(split) not in found:
            raise SplitError(
                f"no labelled group is left for the {split} split: every group there is was assigned elsewhere before, "
                "and assigned groups never move; add new groups, or start over in another `workspace`"
            )
