"""Ends a run that was told to end, or whose embedded Prefect server is gone.

A signal to the whole process group (``timeout``, a closed terminal, a container that stops) ends the server together
with the run that needs it. Prefect then asks the dead server again and again, for minutes. What is finished lies in the
workspace, so the run leaves at once, and the same command goes on.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Final, TypeAlias

import typer

from flows.processes import children, stop, this_process

_Handler: TypeAlias = "Callable[[int, FrameType | None], object] | int | None"

ENDED: Final = 143
"""Exit status: as after SIGTERM."""
INTERRUPTED: Final = 130
"""Exit status: as after Ctrl-C."""
_GOES_ON: Final = "what is finished is kept, and the same command goes on where it was"
_LOOK_SECONDS: Final = 0.5
_SETTLE_SECONDS: Final = 2.0
# The training writes its checkpoint in this time.
_GRACE_SECONDS: Final = 30.0
_SERVER_MODULE: Final = "prefect.server.api.server"


class ServerWatch:
    """Looks after the embedded server while a flow runs; leaves the process when the server, or a signal, ends it."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._leaving = threading.Lock()
        self._interrupted = False
        self._before: dict[int, _Handler] = {}
        self._thread = threading.Thread(target=self._look, name="vitpipe-server-watch", daemon=True)

    def __enter__(self) -> ServerWatch:
        """Begin to look; in the main thread, which alone is given signals."""
        # Prefect has handlers of its own while the flow runs, and gives a signal on when the flow is recorded.
        for number, handler in ((signal.SIGINT, self._on_interrupt), (signal.SIGTERM, self._on_end)):
            self._before[number] = signal.signal(number, handler)
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        """Look no longer: the flow is over and recorded."""
        self._over.set()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        # A terminal's Ctrl-C goes to the server, too: then it is the user who ended it.
        self._interrupted = True
        before = self._before[number]
        if callable(before):
            before(number, frame)

    def _on_end(self, _number: int, _frame: FrameType | None) -> None:
        self._leave(f"interrupted; {_GOES_ON}", ENDED)

    def _look(self) -> None:
        while not self._over.wait(_LOOK_SECONDS):
            # Prefect itself starts another server where the port was taken: only one that stays away is gone.
            if not server_has_ended() or self._over.wait(_SETTLE_SECONDS) or not server_has_ended():
                continue
            if self._interrupted:
                self._leave(f"interrupted; {_GOES_ON}", INTERRUPTED)
            else:
                why = "Prefect's embedded server has ended, so this run ends too"
                self._leave(f"interrupted: {why}; {_GOES_ON}", ENDED)

    def _leave(self, sentence: str, status: int) -> None:
        if not self._leaving.acquire(blocking=False):
            # Another thread is leaving, or this one was when the next signal came.
            return
        # On a line of its own: something may just have been written.
        typer.echo(f"\n{sentence}", err=True)
        stop(*children(this_process()), grace_seconds=_GRACE_SECONDS)
        # Prefect's own end would wait for the server that is gone.
        os._exit(status)


def server_has_ended() -> bool:
    """Say whether Prefect started an embedded server that runs no more; asking its client would start one."""
    # Another thread may be importing it just now.
    kind = getattr(sys.modules.get(_SERVER_MODULE), "SubprocessASGIServer", None)
    if kind is None:
        return False
    started = [server.server_process for server in list(kind._instances.values())]
    return any(process is not None and process.poll() is not None for process in started)
