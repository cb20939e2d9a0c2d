"""Fair runs: every case in a fresh process, interleaved (A B C, A B C), CPU seconds, medians, ratios in one table.

A bench module is ``benchmarks/bench_<name>.py`` with one function::

    def tables(folder: Path, *, large: bool) -> list[Table]

that makes its input below `folder` and gives tables of cases. A case names a function of its own module; the frame
calls it in a child process and takes what the process spent between entry and return, so imports do not count.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

Argument: TypeAlias = str | int | float | bool
Work: TypeAlias = Callable[..., float]

_MARK = "benchmark-result "


@dataclass(frozen=True)
class Case:
    """One way to do the work of a table."""

    name: str
    work: Work
    """A function of a bench module. It gives a number: a checksum, where the table says that results must agree."""
    arguments: tuple[Argument, ...] = ()
    requires: tuple[str, ...] = ()
    """Modules imported before the clock starts. One that is not installed: the case is said to be missing."""
    result_may_differ: bool = False
    """A limit or a lossy peer: its checksum is not compared."""


@dataclass(frozen=True)
class Table:
    """Cases that do the same work. The first is ours: ratios are relative to it."""

    title: str
    cases: tuple[Case, ...]
    amount: float
    """How much work a case does, in `unit`."""
    unit: str
    notes: tuple[str, ...] = ()


@dataclass
class Row:
    """What the rounds of one case gave."""

    name: str
    cpu_s: list[float] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)
    extra_mib: list[float] = field(default_factory=list)
    result: float | None = None
    missing: str = ""


class ResultsDiffer(Exception):
    """Two cases of one table that must agree gave other results: the comparison is void."""


def run_table(table: Table, *, rounds: int) -> list[Row]:
    """Run every case once a round, round after round, so that a busy minute hits all cases alike.

    Raises:
        ResultsDiffer: the checksums of two cases differ.
        subprocess.CalledProcessError: a case failed; its output was shown.
    """
    rows = [Row(case.name, missing=_missing(case)) for case in table.cases]
    for _ in range(rounds):
        for case, row in zip(table.cases, rows, strict=True):
            if not row.missing:
                _run_once(case, row)
    results = {
        row.name: row.result
        for case, row in zip(table.cases, rows, strict=True)
        if not row.missing and not case.result_may_differ
    }
    if len(set(results.values())) > 1:
        raise ResultsDiffer(f"{table.title}: the cases did not do the same work: {results}")
    return rows


def format_table(table: Table, rows: list[Row]) -> str:
    """Give a table that reads as Markdown and as plain text."""
    head = ("case", "CPU s", f"{table.unit}/CPU s", "x ours", "wall s", "wall x ours", "extra MiB")
    body = [_format_row(row, table, rows[0]) for row in rows]
    widths = [max(len(line[column]) for line in (head, *body)) for column in range(len(head))]
    lines = [f"| {' | '.join(_pad(line, widths))} |" for line in (head, *body)]
    rule = "|".join("-" * (width + 1) + ("-" if index == 0 else ":") for index, width in enumerate(widths))
    return "\n".join([f"## {table.title}", "", lines[0], f"|{rule}|", *lines[1:], "", *table.notes])


def _pad(line: tuple[str, ...], widths: list[int]) -> list[str]:
    return [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]


def to_json(table: Table, rows: list[Row]) -> dict[str, object]:
    """Give everything that was measured."""
    cases = [
        {"case": row.name, "cpu_s": row.cpu_s, "wall_s": row.wall_s, "extra_mib": row.extra_mib, "missing": row.missing}
        for row in rows
    ]
    return {"title": table.title, "amount": table.amount, "unit": table.unit, "cases": cases}


def _format_row(row: Row, table: Table, ours: Row) -> tuple[str, ...]:
    if row.missing:
        return row.name, f"{row.missing} is not installed", "", "", "", "", ""
    cpu = statistics.median(row.cpu_s)
    wall = statistics.median(row.wall_s)
    ratios = [
        f"{value / statistics.median(beside):.2f}" if beside else ""
        for value, beside in ((cpu, ours.cpu_s), (wall, ours.wall_s))
    ]
    rate, memory = table.amount / max(cpu, 1e-9), statistics.median(row.extra_mib)
    return row.name, f"{cpu:.3f}", f"{rate:,.0f}", ratios[0], f"{wall:.3f}", ratios[1], f"{memory:.0f}"


def _missing(case: Case) -> str:
    return next((name for name in case.requires if importlib.util.find_spec(name) is None), "")


def _run_once(case: Case, row: Row) -> None:
    job = {
        "module": case.work.__module__,
        "work": case.work.__qualname__,
        "arguments": case.arguments,
        "requires": case.requires,
    }
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.frame", json.dumps(job)]
    child = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    lines = [line for line in child.stdout.splitlines() if line.startswith(_MARK)]
    if child.returncode != 0 or not lines:
        print(f"{case.name} failed:\n{child.stdout}{child.stderr}", file=sys.stderr)
        raise subprocess.CalledProcessError(child.returncode or 1, command)
    measured = json.loads(lines[-1].removeprefix(_MARK))
    row.cpu_s.append(measured["cpu_s"])
    row.wall_s.append(measured["wall_s"])
    row.extra_mib.append(measured["extra_mib"])
    row.result = measured["result"]


def _cpu_seconds() -> float:
    """User and system time of this process and of the children that it waited for."""
    kinds = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
    return sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, kinds))


def _peak_mib() -> float:
    """Peak memory of this process; not of the one that started it, which `getrusage` counts in after a fork."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)


def _child(text: str) -> None:
    """Run one case here and print what it took."""
    job = json.loads(text)
    for name in job["requires"]:
        importlib.import_module(name)
    work: Work = getattr(importlib.import_module(job["module"]), job["work"])
    peak, cpu, wall = _peak_mib(), _cpu_seconds(), time.perf_counter()
    result = work(*job["arguments"])
    taken = {
        "cpu_s": _cpu_seconds() - cpu,
        "wall_s": time.perf_counter() - wall,
        "extra_mib": _peak_mib() - peak,
        "result": result,
    }
    print(_MARK + json.dumps(taken))


if __name__ == "__main__":
    _child(sys.argv[1])
