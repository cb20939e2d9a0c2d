"""What the child says while it works: one JSON line per event, appended; the parent reads along."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

STARTED = "started"
STEP = "step"
EPOCH = "epoch"
NOTE = "note"
STOPPED = "stopped"
DONE = "done"


@dataclass(frozen=True, slots=True)
class Progress:
    """One event of a run; what an event does not know is None."""

    event: str
    """started, step, epoch, note, stopped or done."""
    epoch: int | None = None
    """Zero-based."""
    epochs: int | None = None
    step: int | None = None
    """Optimiser steps done, over all epochs."""
    steps: int | None = None
    train_loss: float | None = None
    val_loss: float | None = None
    val_balanced_accuracy: float | None = None
    val_mean_iou: float | None = None
    """Where every pixel has a class."""
    val_r2: float | None = None
    """Where every pixel has a value."""
    learning_rate: float | None = None
    seconds: float | None = None
    """Seconds of training so far, killed attempts up to their checkpoint included."""
    images_per_second: float | None = None
    message: str = ""
    """A sentence for the user."""


class ProgressWriter:
    """Appends events to ``progress.jsonl``; on other ranks than 0 it is silent.

    Args:
        path: the file.
        rank: of this process.
    """

    def __init__(self, path: Path, rank: int) -> None:
        self._path = path if rank == 0 else None

    def write(self, progress: Progress) -> None:
        """Append one event, whole lines only: a line that a killed child tore is closed first."""
        if self._path is None:
            return
        values = {name: value for name, value in dataclasses.asdict(progress).items() if value not in (None, "")}
        line = json.dumps(values, sort_keys=True).encode() + b"\n"
        with self._path.open("ab+") as stream:
            if stream.tell() > 0:
                stream.seek(-1, 2)
                if stream.read(1) != b"\n":
                    line = b"\n" + line
            stream.write(line)

    def note(self, sentence: str) -> None:
        """Append a sentence for the user."""
        self.write(Progress(NOTE, message=sentence))


class ProgressReader:
    """Gives the events that were appended since the last call.

    Args:
        path: the file; it need not exist yet. What it holds now is skipped.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = path.stat().st_size if path.is_file() else 0
        self._rest = b""

    def read(self) -> Iterator[Progress]:
        """Give the new whole lines; a line that a killed child tore is passed over."""
        if not self._path.is_file():
            return
        with self._path.open("rb") as stream:
            stream.seek(self._position)
            data = stream.read()
            self._position = stream.tell()
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            event = _parse(line)
            if event is not None:
                yield event


def read_progress(path: Path) -> list[Progress]:
    """Read all events of a run, for its curves."""
    if not path.is_file():
        return []
    return [event for line in path.read_bytes().split(b"\n") if (event := _parse(line)) is not None]


def _parse(line: bytes) -> Progress | None:
    try:
        values = json.loads(line)
    except ValueError:
        return None
    return Progress(**values) if isinstance(values, dict) and "event" in values else None
