"""A child never outlives the one it works for: `kill -9` of the parent ends the child within a second."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

SUPERVISOR_VARIABLE = "VITPIPE_SUPERVISOR"
EXIT_ORPHAN = 76
_POLL_SECONDS = 0.5


def describe_process(pid: int) -> str:
    """Name a process so that a later one of the same number is another: ``pid:start time``; no time without /proc."""
    return f"{pid}:{_start_time(pid) or ''}"


def is_alive(description: str) -> bool:
    """Whether the process of :func:`describe_process` still runs; a zombie does not."""
    pid, started = description.split(":")
    if started:
        return _start_time(int(pid)) == started
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def watch_supervisor() -> None:
    """End this process when the supervisor named in the environment, or this process's own parent, is gone."""
    supervisor, parent = os.environ.get(SUPERVISOR_VARIABLE), os.getppid()
    if not supervisor:
        return

    def watch() -> None:
        while is_alive(supervisor) and os.getppid() == parent:
            time.sleep(_POLL_SECONDS)
        # At once and without clean-up: whatever is on disk is whole, or a partial that the next run sweeps.
        os._exit(EXIT_ORPHAN)

    threading.Thread(target=watch, name="vitpipe-watch", daemon=True).start()


def _start_time(pid: int) -> str | None:
    """Give the 22nd field of /proc/pid/stat (proc(5)); None where there is no such live process, or no /proc."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *fields = text.rsplit(")", 1)[1].split()
    return None if state in "ZX" else fields[18]
