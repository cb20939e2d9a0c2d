"""Predictions on disk: a table for machines, a summary for people."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from vitpipe.atomic import write_json, write_parquet
from vitpipe.infer.predictor import PredictionResult
from vitpipe.records import Json, count_codes

TILES_FILE: Final = "predictions.parquet"
SOURCES_FILE: Final = "sources.parquet"
SUMMARY_FILE: Final = "predictions.json"
_SHOWN = 20


def write_predictions(result: PredictionResult, folder: Path) -> Path:
    """Write the table of tiles, the table of sources and, last, the summary; each whole or not at all.

    Returns:
        The summary.

    Raises:
        WorkspaceError: the folder cannot be written.
    """
    write_parquet(folder / TILES_FILE, result.tiles)
    if len(result.sources):
        write_parquet(folder / SOURCES_FILE, result.sources)
    write_json(folder / SUMMARY_FILE, summarise(result))
    return folder / SUMMARY_FILE


def summarise(result: PredictionResult) -> dict[str, Json]:
    """Count what was predicted and what was not used, without a path."""
    table = result.sources if len(result.sources) else result.tiles
    reasons: list[Json] = [*dict.fromkeys(f"{item.code}: {item.reason}" for item in result.rejected)]
    counts = table["predicted"].value_counts(sort=False).sort_index()
    return {
        "tiles": len(result.tiles),
        "sources": len(result.sources),
        "predicted": {str(name): int(count) for name, count in counts.items()},
        "abstain_share": float(result.tiles["abstain"].mean()) if len(result.tiles) else 0.0,
        "rejected": dict(count_codes(result.rejected)),
        "reasons": reasons[:_SHOWN],
        "notes": list(result.notes),
    }
