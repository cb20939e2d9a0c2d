"""What the command line prints, and how it runs a flow in its own process."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from typing import TypeVar

import typer

from flows.servers import ServerState
from flows.settings import drain
from flows.watch import ServerWatch
from vitpipe.config import PipelineConfig
from vitpipe.errors import VitpipeError
from vitpipe.infer.versions import RegisteredVersion
from vitpipe.records import StageSummary
from vitpipe.stages import EvaluatedRun, PipelineResult, RegisteredRun

Result = TypeVar("Result")


class _SentencesOnly(logging.Filter):
    """Our errors explain themselves: Prefect's lines with their traceback go, those with the final state say it too."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], VitpipeError))


def run_flow(flow: Callable[[PipelineConfig], Result], config: PipelineConfig) -> Result:
    """Run a flow here, and wait until the server has recorded it."""
    quiet = _SentencesOnly()
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(quiet)
    with ServerWatch():
        try:
            return flow(config)
        finally:
            drain()


def print_stage(outcome: StageSummary | EvaluatedRun | RegisteredRun, *, as_json: bool) -> None:
    """Print what one stage did."""
    summary = outcome if isinstance(outcome, StageSummary) else outcome.summary
    if as_json:
        value = outcome.to_json() if isinstance(outcome, StageSummary) else dataclasses.asdict(outcome)
        typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
        return
    typer.echo(_line(summary))
    for note in summary.notes:
        typer.echo(f"  {note}")


def print_result(result: PipelineResult, *, as_json: bool) -> None:
    """Print what a whole run came to: stages, numbers, where the report lies and how to load the model."""
    if as_json:
        typer.echo(json.dumps(result.to_json(), indent=2, ensure_ascii=False))
        return
    typer.echo(f"\n{result.name}")
    said: set[str] = set()
    for summary in result.summaries:
        typer.echo(f"  {_line(summary)}")
        for note in summary.notes:
            if note not in said:
                typer.echo(f"      {note}")
        said.update(summary.notes)
    if result.run_id is None:
        return
    typer.echo("")
    width = max((len(who) for who, _, _ in result.headline), default=0)
    for who, metric, value in result.headline:
        typer.echo(f"  {who:<{width}}  {metric}  {value}")
    typer.echo(f"\n  {result.verdict}")
    typer.echo(f"  report      {result.report}")
    if result.model_uri:
        typer.echo(f"  registered  {result.model_uri}  ({', '.join(result.aliases) or 'no alias'})")
        typer.echo(f"  use it      {result.use_command()}")
        if result.tiles_make_maps:
            typer.echo(f"  as a map    {result.use_command(as_map=True)}")


def _line(summary: StageSummary) -> str:
    parts = [f"{summary.done} done"]
    if summary.skipped:
        parts.append(f"{summary.skipped} already there")
    parts += [f"{count} x {code}" for code, count in summary.rejected.items()]
    return f"{summary.stage:<9} {', '.join(parts)}  ({summary.seconds:.1f} s)"


def print_version(version: RegisteredVersion, *, as_json: bool) -> None:
    """Print which version holds which alias now."""
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(version) | {"uri": version.uri}, indent=2, ensure_ascii=False))
    else:
        typer.echo(f"{version.uri}: {', '.join(version.aliases) or 'no alias'}")


def print_servers(state: ServerState, *, as_json: bool) -> None:
    """Print which servers run, and where."""
    if as_json:
        typer.echo(json.dumps(state.to_json(), indent=2, ensure_ascii=False))
        return
    for part in state.parts:
        typer.echo(f"{part.name:<8} {part.state:<8} {part.url or ''}")
    for note in state.notes:
        typer.echo(note)
    if state.is_up:
        page = state.urls[0]
        typer.echo(f"Open {page}/deployments, choose `pipeline`, then Run. `vitpipe down` stops all of this.")
