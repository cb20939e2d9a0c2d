"""``python -m benchmarks [NAME ...]``: run the benches, all of them by default, and print a table each."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.frame import format_table, run_table, to_json

_FOLDER = Path(__file__).resolve().parent


def main() -> int:
    """Run and print; the exit code is 2 for a name that there is not."""
    known = sorted(path.stem.removeprefix("bench_") for path in _FOLDER.glob("bench_*.py"))
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(known)}; all if empty")
    parser.add_argument("--large", action="store_true", help="inputs as large as in the goals: minutes, and gigabytes")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each case (default 3)")
    parser.add_argument("--only", default="", metavar="TEXT", help="only tables whose title holds this text")
    parser.add_argument("--json", type=Path, help="also write every measured number to this file")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(known))
    if unknown:
        print(f"no bench named {', '.join(unknown)}; there are: {', '.join(known)}", file=sys.stderr)
        return 2
    load = os.getloadavg()[0]
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, load {load:.1f}, Python {platform.python_version()}")
    print("CPU seconds of one process, interleaved runs, medians. Only ratios inside one table compare.\n")
    measured = []
    for name in arguments.names or known:
        started = time.monotonic()
        module = importlib.import_module(f"benchmarks.bench_{name}")
        with tempfile.TemporaryDirectory(prefix=f"vitpipe-bench-{name}-") as folder:
            for table in module.tables(Path(folder), large=arguments.large):
                if arguments.only not in table.title:
                    continue
                rows = run_table(table, rounds=arguments.rounds)
                print(format_table(table, rows), flush=True)
                measured.append(to_json(table, rows))
        print(f"\n({name}: {time.monotonic() - started:.0f} s)\n", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
