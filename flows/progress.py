"""Where training stands: a bar in a terminal, a progress artifact in the Prefect UI, a line an epoch in the log."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from types import TracebackType
from typing import Self
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import FlowRunContext, TaskRunContext
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from flows.artifacts import artifact_key
from flows.settings import configure_logging
from vitpipe.learn.progress import DONE, EPOCH, NOTE, Progress

_LOGGER = logging.getLogger("vitpipe.progress")
# An artifact is a request to the server; steps may come many times a second.
_ARTIFACT_SECONDS = 5.0


class ProgressReporter:
    """Takes the events of a training; use it as a context manager.

    Args:
        title: what runs, such as ``fine-tune ct-contrast``.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._stack = contextlib.ExitStack()
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._artifact: UUID | None = None
        self._next_artifact = 0.0

    def __enter__(self) -> Self:
        """Show the bar where someone can see it, and make the artifact where there is a run."""
        configure_logging()
        if sys.stderr.isatty():
            self._bar = self._stack.enter_context(
                Bar(
                    TextColumn("{task.description}"),
                    BarColumn(),
                    TextColumn("{task.percentage:>3.0f} %  {task.fields[state]}"),
                    TimeRemainingColumn(),
                    console=Console(stderr=True),
                )
            )
            self._task = self._bar.add_task(self._title, total=1.0, state="")
        if TaskRunContext.get() is not None or FlowRunContext.get() is not None:
            made = create_progress_artifact(0.0, key=artifact_key(self._title), description=self._title)
            # Prefect's functions are of both kinds; called without an event loop this one answers at once.
            self._artifact = made if isinstance(made, UUID) else None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave the bar as it stands."""
        self._stack.close()

    def __call__(self, progress: Progress) -> None:
        """Show one event."""
        sentence = describe(progress)
        if progress.event == EPOCH or progress.message:
            _LOGGER.info("%s: %s", self._title, sentence)
        share = share_done(progress)
        if self._bar is not None and self._task is not None:
            changes = {} if share is None else {"completed": share}
            self._bar.update(self._task, state=sentence, **changes)  # type: ignore[arg-type]
        now = time.monotonic()
        if self._artifact is not None and share is not None and (now >= self._next_artifact or share >= 1.0):
            self._next_artifact = now + _ARTIFACT_SECONDS
            update_progress_artifact(self._artifact, progress=100.0 * share, description=f"{self._title}: {sentence}")


def share_done(progress: Progress) -> float | None:
    """Give how much of the training is done, 0 to 1; None where the event does not know."""
    if progress.event == DONE:
        return 1.0
    if progress.step is None or not progress.steps:
        return None
    return min(1.0, progress.step / progress.steps)


def describe(progress: Progress) -> str:
    """Put an event into words: the epoch counted from 1, losses, speed."""
    parts = []
    if progress.event == DONE:
        # Its epoch is how many there were.
        parts.append("done" if progress.epoch is None else f"done after {progress.epoch} epoch(s)")
    elif progress.epoch is not None:
        parts.append(f"epoch {progress.epoch + 1}" + (f"/{progress.epochs}" if progress.epochs else ""))
    for name, value in (
        ("train loss", progress.train_loss),
        ("validation loss", progress.val_loss),
        ("balanced accuracy", progress.val_balanced_accuracy),
        ("mean IoU", progress.val_mean_iou),
        ("R2", progress.val_r2),
    ):
        if value is not None:
            parts.append(f"{name} {value:.3f}")
    if progress.images_per_second is not None:
        parts.append(f"{progress.images_per_second:.0f} tiles/s")
    if progress.event == NOTE and parts:
        return f"{progress.message}: {', '.join(parts)}"
    if progress.message:
        parts.append(progress.message)
    return ", ".join(parts) or progress.event
