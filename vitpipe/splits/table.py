"""The append-only table ``group_id -> split`` on the disk."""

from __future__ import annotations

import pandas as pd

from vitpipe.atomic import write_parquet
from vitpipe.config import SplitRecipe
from vitpipe.errors import ContractError
from vitpipe.splits.assign import assign_groups
from vitpipe.workspace import Workspace


def read_splits(workspace: Workspace) -> pd.DataFrame:
    """Read the table; empty before the first run."""
    if not workspace.splits.is_file():
        return pd.DataFrame({"group_id": pd.Series(dtype="str"), "split": pd.Series(dtype="str")})
    return pd.read_parquet(workspace.splits, columns=["group_id", "split"])


def update_splits(workspace: Workspace, groups: pd.DataFrame, recipe: SplitRecipe) -> pd.DataFrame:
    """Assign new groups and append them to the table on disk; rows that stood there stay as they are.

    Args:
        workspace: holds the table.
        groups: see :func:`assign_groups`.
        recipe: the shares.

    Returns:
        The whole table: `group_id`, `split`; the rows that stood there first.

    Raises:
        SplitError: the groups do not fill the splits.
        WorkspaceError: the table cannot be written.
    """
    existing = read_splits(workspace)
    added = assign_groups(groups, existing, recipe)
    if added.empty:
        return existing
    table = pd.concat([existing, added], ignore_index=True)
    if not table.iloc[: len(existing)].equals(existing) or not table["group_id"].is_unique:
        raise ContractError(f"{workspace.splits} would lose or change a row; this is a bug, nothing was written")
    write_parquet(workspace.splits, table)
    return table
