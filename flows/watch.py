"""Ends a run whose embedded Prefect server is gone.

A signal to the whole process group (``timeout``, a closed terminal, a container that stops) ends the server together
with the run that needs it. Prefect then asks the dead server again and again, for minutes. What is finished lies in the
workspace, so the run leaves at once, and the same command goes on.
"""

from __future__ import annotations

import os
import sys
import threading
from types import TracebackType
from typing import Final

import typer

from flows.processes import children, stop, this_process

INTERRUPTED: Final = 143
"""Exit status: as after SIGTERM."""
_LOOK_SECONDS: Final = 0.5
_SETTLE_SECONDS: Final = 2.0
# The training writes its checkpoint in this time.
_GRACE_SECONDS: Final = 30.0
_SERVER_MODULE: Final = "prefect.server.api.server"


class ServerWatch:
    """Looks after the embedded server while a flow runs; leaves the process when the server has ended."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="vitpipe-server-watch", daemon=True)

    def __enter__(self) -> ServerWatch:
        """Begin to look."""
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        """Look no longer: the flow is over and recorded."""
        self._over.set()

    def _look(self) -> None:
        while not self._over.wait(_LOOK_SECONDS):
            # Prefect itself starts another server where the port was taken: only one that stays away is gone.
            if server_has_ended() and not self._over.wait(_SETTLE_SECONDS) and server_has_ended():
                self._leave()

    def _leave(self) -> None:
        typer.echo(
            "interrupted: Prefect's embedded server has ended, so this run ends too; what is finished is kept, and the "
            "same command goes on where it was",
            err=True,
        )
        stop(*children(this_process()), grace_seconds=_GRACE_SECONDS)
        # Prefect's own end would wait for the server that is gone.
        os._exit(INTERRUPTED)


def server_has_ended() -> bool:
    """Say whether Prefect started an embedded server that runs no more; asking its client would start one."""
    # Another thread may be importing it just now.
    kind = getattr(sys.modules.get(_SERVER_MODULE), "SubprocessASGIServer", None)
    if kind is None:
        return False
    started = [server.server_process for server in list(kind._instances.values())]
    return any(process is not None and process.poll() is not None for process in started)
