"""What a run leaves in the Prefect UI: a table a stage, the numbers, where the model is registered."""

from __future__ import annotations

import os
import re
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from vitpipe import stages
from vitpipe.records import StageSummary


def artifact_key(*parts: str) -> str:
    """Give a key that Prefect takes: it keeps a history a key, so the pipeline's name comes first."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")


def publish_summary(name: str, summary: StageSummary) -> None:
    """Show a stage's counts, rejections and notes as a table.

    Args:
        name: of the pipeline.
        summary: of the stage.
    """
    create_table_artifact(
        table=summary_rows(summary),
        key=artifact_key(name, summary.stage, "summary"),
        description=f"{name}, {summary.stage}: {summary.done} done, {sum(summary.rejected.values())} rejected, "
        f"{summary.seconds:.1f} s",
    )


def summary_rows(summary: StageSummary) -> list[dict[str, Any]]:
    """Give the rows of a stage's table."""
    return [
        {"what": "done", "count": summary.done, "detail": ""},
        {"what": "already there", "count": summary.skipped, "detail": ""},
        *({"what": "rejected", "count": count, "detail": code} for code, count in summary.rejected.items()),
        *({"what": "note", "count": "", "detail": note} for note in summary.notes),
    ]


def publish_report(name: str, evaluated: stages.EvaluatedRun) -> None:
    """Show the headline numbers, and where the report lies."""
    create_markdown_artifact(
        markdown=evaluated.headline_markdown(),
        key=artifact_key(name, "evaluation"),
        description=f"{name}: {evaluated.verdict}",
    )


def publish_registered(name: str, registered: stages.RegisteredRun) -> None:
    """Show which version was registered under which alias and why, with a link where an MLflow server runs."""
    if registered.uri is not None:
        create_markdown_artifact(
            markdown=registered_markdown(registered, os.environ.get("MLFLOW_TRACKING_URI", "")),
            key=artifact_key(name, "registered-model"),
            description=f"{name}: {registered.uri} ({', '.join(registered.aliases) or 'no alias'})",
        )


def registered_markdown(registered: stages.RegisteredRun, tracking_uri: str) -> str:
    """Put a registered version into words.

    Args:
        registered: with a URI.
        tracking_uri: a server's is linked to.
    """
    uri = str(registered.uri)
    model, _, version = uri.removeprefix("models:/").rpartition("/")
    shown = f"`{uri}`"
    if tracking_uri.startswith(("http://", "https://")) and "@" not in tracking_uri:
        shown = f"[{uri}]({tracking_uri.rstrip('/')}/#/models/{model}/versions/{version})"
    aliases = ", ".join(f"`{alias}`" for alias in registered.aliases) or "none"
    return "\n".join([f"**{shown}**, aliases: {aliases}", "", *(f"{note}\n" for note in registered.summary.notes)])
