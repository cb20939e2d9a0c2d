"""Predictions on disk: a table for machines, a summary for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from vitpipe.atomic import write_json, write_parquet
from vitpipe.infer.predictor import PredictionResult
from vitpipe.records import Json, Rejected, count_codes

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


def write_map_summary(folder: Path, maps: int, rejected: Sequence[Rejected], notes: Sequence[str]) -> None:
    """Write the summary of maps, without a path.

    Raises:
        WorkspaceError: the folder cannot be written.
    """
    values: dict[str, Json] = {"maps": maps, **_refusals(rejected), "notes": list(notes)}
    write_json(folder / SUMMARY_FILE, values)


def write_volume_summary(
    folder: Path, sources: int, objects: int, rejected: Sequence[Rejected], notes: Sequence[str]
) -> None:
    """Write the summary of masks, without a path; `objects` are those of DICOM.

    Raises:
        WorkspaceError: the folder cannot be written.
    """
    values: dict[str, Json] = {"sources": sources, "dicom_objects": objects, **_refusals(rejected)}
    write_json(folder / SUMMARY_FILE, values | {"notes": list(notes)})


def left_out(rejected: Sequence[Rejected], folder: Path) -> list[str]:
    """Say why sources were not predicted, the first of each code, without a path."""
    first = {item.code: item.reason for item in reversed(rejected)}
    counts = count_codes(rejected)
    said = [f"left out, {count} x {code}: {first[code]}" for code, count in counts.items()]
    return [*said, f"{folder / SUMMARY_FILE} has all reasons"] if said else []


def _refusals(rejected: Sequence[Rejected]) -> dict[str, Json]:
    # Files that nobody meant as a source come last: they must not crowd out what was.
    ordered = sorted(rejected, key=lambda item: item.junk)
    reasons: list[Json] = [*dict.fromkeys(f"{item.code}: {item.reason}" for item in ordered)]
    return {"rejected": dict(count_codes(rejected)), "reasons": reasons[:_SHOWN]}


def summarise(result: PredictionResult) -> dict[str, Json]:
    """Count what was predicted and what was not used, without a path."""
    table = result.sources if len(result.sources) else result.tiles
    counts = table["predicted"].value_counts(sort=False).sort_index()
    return {
        "tiles": len(result.tiles),
        "sources": len(result.sources),
        "predicted": {str(name): int(count) for name, count in counts.items()},
        "abstain_share": float(result.tiles["abstain"].mean()) if len(result.tiles) else 0.0,
        **_refusals(result.rejected),
        "notes": list(result.notes),
    }
