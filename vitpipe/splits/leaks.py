"""The check of leaks that needs no ground: groups and pixels."""

from __future__ import annotations

import pandas as pd

from vitpipe.errors import LeakageError

_EXAMPLES = 3


def check_leaks(table: pd.DataFrame) -> None:
    """Fail when one group, or the same pixels under two groups, stand in two splits.

    Args:
        table: a row a tile: `group_id`, `source_id`, `split`, and `pixel_digest` where known (empty: not compared).

    Raises:
        LeakageError: says how many, which sources, and what to do.
    """
    pairs = table[["group_id", "split"]].drop_duplicates()
    torn = pairs.loc[pairs["group_id"].duplicated(), "group_id"].drop_duplicates()
    if len(torn):
        sources = table.loc[table["group_id"].isin(set(torn)), "source_id"].drop_duplicates()
        raise LeakageError(
            f"{len(torn)} group(s) stand in more than one split; their sources are {_some(sources)}; a group must have "
            "one split: remove the rows that contradict from splits.parquet, or start over in another `workspace`"
        )
    if "pixel_digest" not in table.columns:
        return
    seen = table.loc[table["pixel_digest"].fillna("") != "", ["pixel_digest", "split", "group_id", "source_id"]]
    first = seen.drop_duplicates(["pixel_digest", "split"])
    twice = first.loc[first["pixel_digest"].duplicated(keep=False)]
    if len(twice):
        shared = twice["pixel_digest"].nunique()
        ordered = twice.sort_values(["pixel_digest", "source_id"])
        pair = ordered.loc[ordered["pixel_digest"] == ordered["pixel_digest"].iloc[0]]
        places = " and ".join(f"source {row.source_id} ({row.split})" for row in pair.itertuples())
        raise LeakageError(
            f"{shared} tile(s) have the same pixels under different groups in different splits, first {places}; in all "
            f"{twice['source_id'].nunique()} sources: {_some(ordered['source_id'].drop_duplicates())}; remove the "
            "duplicates, or give what belongs together one value in a group column (`labels.group`)"
        )


def _some(values: pd.Series) -> str:
    shown = ", ".join(sorted(values)[:_EXAMPLES])
    return shown if len(values) <= _EXAMPLES else f"{shown}, ..."
