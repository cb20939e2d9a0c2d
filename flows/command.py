"""What all verbs of the command line share: their options, how they print, and what their errors become."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import typer

from vitpipe.errors import VitpipeError

ConfigPath = Annotated[Path, typer.Argument(help="pipeline.yaml, or the folder that holds it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, for machines.")]
Home = Annotated[
    Path | None, typer.Option("--home", help="Folder of the servers' databases and logs; VITPIPE_HOME, else your home.")
]
WorkspaceOption = Annotated[
    Path | None,
    typer.Option(
        "--workspace", help="Workspace whose registry to use when MLFLOW_TRACKING_URI is not set; ./workspace."
    ),
]


@contextlib.contextmanager
def reporting(*, as_json: bool) -> Iterator[None]:
    """Turn our errors into a sentence (or a JSON object) and the exit code of their kind."""
    try:
        yield
    except VitpipeError as error:
        if as_json:
            typer.echo(json.dumps({"error": {"kind": type(error).__name__, "message": str(error)}}))
        typer.secho(f"{type(error).__name__}: {error}", err=True, fg="red")
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt as error:
        # After ^C, or what was being written.
        typer.secho("\ninterrupted; what is finished is kept, and the same command goes on where it was", err=True)
        raise typer.Exit(130) from error


@contextlib.contextmanager
def lines_of_progress() -> Iterator[None]:
    """Show our own INFO lines on stderr, where no flow does: what takes long says where it is."""
    lines = logging.StreamHandler()
    logger = logging.getLogger("vitpipe")
    level = logger.level
    logger.addHandler(lines)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(lines)
        logger.setLevel(level)


def print_json(value: Mapping[str, object]) -> None:
    """Print one JSON object."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
