"""What a run leaves in the Prefect UI: a table a stage and a summary with the numbers."""

from __future__ import annotations

from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from vitpipe import stages
from vitpipe.records import StageSummary


def publish_summary(summary: StageSummary) -> None:
    """Show a stage's counts, rejections and notes as a table."""
    rows: list[dict[str, Any]] = [
        {"what": "done", "count": summary.done, "": ""},
        {"what": "already there", "count": summary.skipped, "": ""},
        *({"what": "rejected", "count": count, "": code} for code, count in summary.rejected.items()),
        *({"what": "note", "count": "", "": note} for note in summary.notes),
    ]
    create_table_artifact(
        table=rows, key=f"{summary.stage}-summary", description=f"{summary.stage}: {summary.seconds:.1f} s"
    )


def publish_report(evaluated: stages.EvaluatedRun) -> None:
    """Show the headline numbers, and where the report lies."""
    create_markdown_artifact(
        markdown=evaluated.headline_markdown(), key="evaluation-report", description=f"Report: {evaluated.report}"
    )
