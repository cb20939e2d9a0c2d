"""Detached processes: started, recognised although process ids are reused, and stopped with all their children."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class ProcessKey:
    """One process, for ever: its id together with its start, which a later process of the same id does not share."""

    pid: int
    started: str
    """Start as the system tells it: clock ticks since boot and the boot's id (Linux), a date (macOS)."""


def start_detached(command: Sequence[str], *, environment: Mapping[str, str], folder: Path, log: Path) -> ProcessKey:
    """Start a process in a session of its own, so that it outlives the terminal; its output goes to `log`.

    The log of the start before is kept beside it as ``.1``.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists():
        log.replace(log.with_name(f"{log.name}.1"))
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            env=dict(environment),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    # Not waited for: it is to outlive us. The object would warn of that when it is collected.
    process.returncode = 0
    return ProcessKey(process.pid, _snapshot().get(process.pid, (0, ""))[1])


def this_process() -> ProcessKey:
    """Give the key of the process that asks."""
    return ProcessKey(os.getpid(), _snapshot()[os.getpid()][1])


def is_alive(key: ProcessKey) -> bool:
    """Say whether this very process runs; one that ended and was not yet collected does not."""
    _collect(key.pid)
    row = _snapshot().get(key.pid)
    return row is not None and row[1] == key.started


def descendants(key: ProcessKey) -> list[ProcessKey]:
    """Give the process and all below it that run, parents first."""
    table = _snapshot()
    if key.pid not in table or table[key.pid][1] != key.started:
        return []
    children: dict[int, list[int]] = {}
    for pid, (parent, _) in table.items():
        children.setdefault(parent, []).append(pid)
    found = [key.pid]
    for pid in found:
        found.extend(children.get(pid, []))
    return [ProcessKey(pid, table[pid][1]) for pid in found]


def children(key: ProcessKey) -> list[ProcessKey]:
    """Give the processes that this one started and that run."""
    table = _snapshot()
    if key.pid not in table or table[key.pid][1] != key.started:
        return []
    return [ProcessKey(pid, started) for pid, (parent, started) in table.items() if parent == key.pid]


def stop(*keys: ProcessKey, grace_seconds: float) -> None:
    """Ask processes to end (SIGTERM), wait, then end what is left of them and their descendants (SIGKILL).

    The descendants are not asked: who started them does that, in its own order.

    Args:
        keys: the processes.
        grace_seconds: how long to wait.
    """
    family = [member for key in keys for member in descendants(key)]
    _send(keys, signal.SIGTERM)
    deadline = time.monotonic() + grace_seconds
    while (left := _still_alive(family)) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        # What they start while they end must not be forgotten.
        family = list(dict.fromkeys((*family, *(member for key in keys for member in descendants(key)))))
    _send(left, signal.SIGKILL)
    deadline = time.monotonic() + grace_seconds
    while _still_alive(left) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)


def _still_alive(keys: Collection[ProcessKey]) -> list[ProcessKey]:
    for key in keys:
        _collect(key.pid)
    table = _snapshot()
    return [key for key in keys if key.pid in table and table[key.pid][1] == key.started]


def _send(keys: Collection[ProcessKey], number: signal.Signals) -> None:
    for key in _still_alive(keys):
        with contextlib.suppress(ProcessLookupError):
            os.kill(key.pid, number)


def _collect(pid: int) -> None:
    """Take the exit status of a child of ours, which stays in the process table until then."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _snapshot() -> dict[int, tuple[int, str]]:
    """Give parent and start of every process that runs (zombies do not)."""
    rows = _rows_of_proc() if (_PROC / "self" / "stat").exists() else _rows_of_ps()
    return {pid: (parent, started) for pid, parent, started in rows}


def _rows_of_proc() -> Iterator[tuple[int, int, str]]:
    boot = (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    for entry in _PROC.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            text = (entry / "stat").read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        # The name, in brackets, may hold spaces and brackets: the fields begin behind the last one.
        fields = text.rpartition(")")[2].split()
        if fields[0] not in ("Z", "X"):
            yield int(entry.name), int(fields[1]), f"{fields[19]}@{boot}"


def _rows_of_ps() -> Iterator[tuple[int, int, str]]:
    # lstart has a fixed form in this locale.
    answer = subprocess.run(
        ["ps", "-axo", "pid=,ppid=,stat=,lstart="],
        env=os.environ | {"LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=True,
    )
    for line in answer.stdout.splitlines():
        pid, parent, state, started = line.split(None, 3)
        if not state.startswith("Z"):
            yield int(pid), int(parent), started
