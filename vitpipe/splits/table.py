"""The append-only table ``group_id -> split`` on the disk; of folds also which fold of how many a group is in."""

from __future__ import annotations

from typing import Final

import pandas as pd

from vitpipe.atomic import write_parquet
from vitpipe.config import SplitRecipe
from vitpipe.errors import ConfigError, ContractError
from vitpipe.records import Split
from vitpipe.splits.assign import assign_allowed, assign_folds, assign_groups
from vitpipe.workspace import Workspace

_FOLD_COLUMNS: Final = ("fold", "folds")


def read_splits(workspace: Workspace) -> pd.DataFrame:
    """Read the table; empty before the first run."""
    return _read(workspace)[["group_id", "split"]]


def _read(workspace: Workspace) -> pd.DataFrame:
    if not workspace.splits.is_file():
        return pd.DataFrame({"group_id": pd.Series(dtype="str"), "split": pd.Series(dtype="str")})
    return pd.read_parquet(workspace.splits)


def update_splits(workspace: Workspace, groups: pd.DataFrame, recipe: SplitRecipe) -> pd.DataFrame:
    """Assign new groups and append them to the table on disk; rows that stood there stay as they are.

    Args:
        workspace: holds the table.
        groups: see :func:`assign_groups`; with `allowed` where a rule holds, see :func:`assign_allowed`.
        recipe: the shares, or the folds.

    Returns:
        The whole table: `group_id`, `split`; the rows that stood there first.

    Raises:
        ConfigError: the table was made with other folds.
        SplitError: the groups do not fill the splits.
        WorkspaceError: the table cannot be written.
    """
    existing = _read(workspace)
    _check_same_folds(workspace, existing, recipe)
    if recipe.folds is not None:
        added = _dealt_into_folds(groups, existing, recipe)
    elif "allowed" in groups:
        added = assign_allowed(groups, existing, recipe)
    else:
        added = assign_groups(groups, existing, recipe)
    if added.empty:
        return existing[["group_id", "split"]]
    table = added if existing.empty else pd.concat([existing, added[list(existing.columns)]], ignore_index=True)
    if not table.loc[: len(existing) - 1, list(existing.columns)].equals(existing) or not table["group_id"].is_unique:
        raise ContractError(f"{workspace.splits} would lose or change a row; this is a bug, nothing was written")
    write_parquet(workspace.splits, table)
    return table[["group_id", "split"]]


def split_of_fold(fold: int, recipe: SplitRecipe) -> Split:
    """Give the split that a fold is: `recipe.fold` is test, the next val, then calibration, in a circle; else train."""
    assert recipe.folds is not None
    assert recipe.fold is not None
    held_out = [Split.TEST, *[Split.VAL] * (recipe.val > 0), *[Split.CALIBRATION] * (recipe.calibration > 0)]
    after = (fold - recipe.fold) % recipe.folds
    return held_out[after] if after < len(held_out) else Split.TRAIN


def _dealt_into_folds(groups: pd.DataFrame, existing: pd.DataFrame, recipe: SplitRecipe) -> pd.DataFrame:
    assert recipe.folds is not None
    known = existing if len(existing) else existing.assign(fold=pd.Series(dtype="int64"))
    added = assign_folds(groups, known, recipe.folds)
    splits = [str(split_of_fold(fold, recipe)) for fold in range(recipe.folds)]
    names = pd.Series([splits[fold] for fold in added["fold"]], dtype="str")
    return pd.DataFrame({"group_id": added["group_id"], "split": names, "fold": added["fold"], "folds": recipe.folds})


def _check_same_folds(workspace: Workspace, existing: pd.DataFrame, recipe: SplitRecipe) -> None:
    """Refuse to go on with other folds: the test split of the workspace would move."""
    if existing.empty:
        return
    dealt = set(_FOLD_COLUMNS) <= set(existing.columns)
    if not dealt and recipe.folds is None:
        return
    if dealt and recipe.folds is not None:
        due = [str(split_of_fold(fold, recipe)) for fold in existing["fold"]]
        if (existing["folds"] == recipe.folds).all() and existing["split"].tolist() == due:
            return
    found = f"was dealt into {existing['folds'].iloc[0]} folds" if dealt else "was split by shares"
    wanted = "shares" if recipe.folds is None else f"fold {recipe.fold} of {recipe.folds} as test"
    raise ConfigError(
        f"{workspace.splits} {found}{', another one of which is test,' if dealt and recipe.folds else ''} but the "
        f"configuration asks for {wanted}; groups that are assigned never move: take another `workspace` for each fold"
    )
