"""What Prefect costs: ingest and tiling as a flow with its embedded server, against the same functions called directly.

Goal: at most 1 % of the time of a scene of 10980^2, the size of a Sentinel-2 product. The table shows whole small runs
with the start and end of the server, paid once a run; the notes show what every task adds, and how many there are.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.bench_tiling import write_scene
from benchmarks.frame import Case, Table
from vitpipe import stages
from vitpipe.config import PipelineConfig

_SCENE_EDGE = 10_980
_TASKS = 100
_MARK = "bench-prefect "


def tables(folder: Path, *, large: bool) -> list[Table]:
    """Give one table; its notes are measured in processes of their own."""
    edge, count = (4096, 4) if large else (1024, 2)
    scenes = folder / "scenes"
    scenes.mkdir()
    for number in range(count):
        write_scene(scenes / f"s{number}.tif", edge)
    mib = count * 4 * 2 * edge * edge / (1 << 20)
    cases = (
        Case("vitpipe in Prefect, server started and stopped", in_prefect, (str(scenes), str(folder / "prefect"), 256)),
        Case("vitpipe.stages called directly", direct, (str(scenes), str(folder / "direct"), 256)),
    )
    title = f"Prefect around ingest and tiling: {count} scenes of 4 x uint16 x {edge}^2, tiles 256"
    return [Table(title, cases, mib, "MiB", (*_task_notes(folder, scenes, edge), _count_note(folder, scenes, count)))]


def config_of(scenes: Path, root: Path, size: int) -> PipelineConfig:
    """Give a pipeline without labels: it ends after tiling. Every round has a workspace of its own."""
    root.mkdir(exist_ok=True)
    return PipelineConfig.model_validate(
        {
            "name": "bench",
            "source": {"kind": "geotiff", "path": str(scenes)},
            "tiles": {"size": size, "min_valid_fraction": 0},
            "workspace": str(root / str(sum(1 for _ in root.iterdir()))),
        }
    )


def in_prefect(scenes: str, root: str, size: int) -> float:
    """Run the flow as `vitpipe run` does, until all of its history is recorded and the server has ended."""
    config = config_of(Path(scenes), Path(root), size)
    from flows.settings import apply_environment, drain

    apply_environment(Path(config.workspace))
    from flows.pipeline import pipeline

    pipeline(config)
    left = drain()
    if left:
        raise RuntimeError(f"{left} task runs were not recorded")
    _stop_server()
    return checksum(Path(config.workspace))


def direct(scenes: str, root: str, size: int) -> float:
    """Call the functions that the tasks call, one after the other."""
    config = config_of(Path(scenes), Path(root), size)
    for batch in stages.plan_batches(config):
        stages.index_batch(config, batch)
    stages.build_catalog(config)
    shards = stages.plan_shards(config)
    for shard in shards:
        stages.tile_shard(config, shard)
    stages.check_tiles(config, shards)
    return checksum(Path(config.workspace))


def checksum(workspace: Path) -> float:
    """Sum some pixels of all tiles."""
    paths = sorted(workspace.glob("tiles/*/*/tiles.npy"))
    return sum(float(np.load(path, mmap_mode="r")[..., ::16, ::16].sum(dtype=np.float64)) for path in paths)


# ------------------------------------------------------------------------------------------ in processes of their own


def _task_notes(folder: Path, scenes: Path, edge: int) -> tuple[str, ...]:
    measured = _child("tasks", str(scenes), str(folder / "tasks"), str(edge))
    client, server, wall = (1000 * measured[name] for name in ("client_s", "server_s", "wall_s"))
    scene = measured["scene_s"]
    share = (client + server) / 1000 / scene
    return (
        f"A task costs {client:.1f} ms CPU in the run and {server:.1f} ms in the server, {wall:.1f} ms wall "
        f"(median of 3 x {_TASKS} tasks that do nothing, two at a time).",
        f"To tile a scene of {_SCENE_EDGE}^2 takes {scene:.1f} s CPU (measured at {edge}^2 in the same process, scaled "
        f"by pixels), so a task a scene is {share:.2%} of it (goal: at most 1 %).",
    )


def _count_note(folder: Path, scenes: Path, count: int) -> str:
    one = folder / "one"
    one.mkdir()
    first = min(scenes.iterdir())
    (one / first.name).symlink_to(first)
    runs = {
        "1 scene": _child("count", str(one), str(folder / "count-1"), "256"),
        f"{count} scenes": _child("count", str(scenes), str(folder / "count-n"), "256"),
        f"{count} scenes, tiles 64 (16 times as many)": _child("count", str(scenes), str(folder / "count-64"), "64"),
    }
    return "Task runs: " + "; ".join(f"{name}: {int(value['task_runs'])}" for name, value in runs.items()) + "."


def _child(*arguments: str) -> dict[str, float]:
    answer = subprocess.run(
        [sys.executable, "-m", "benchmarks.bench_prefect", *arguments],
        stdout=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PREFECT_LOGGING_LEVEL": "ERROR"},
        text=True,
        check=True,
    )
    line = next(line for line in answer.stdout.splitlines() if line.startswith(_MARK))
    measured: dict[str, float] = json.loads(line.removeprefix(_MARK))
    return measured


def measure_tasks(scenes: str, root: str, edge: int) -> dict[str, float]:
    """Measure what a mapped task adds, and a scene's tiling beside it."""
    config = config_of(Path(scenes), Path(root), 256)
    from flows.settings import apply_environment, drain

    apply_environment(Path(config.workspace))
    from prefect import flow, task, unmapped
    from prefect.cache_policies import NO_CACHE
    from prefect.task_runners import ThreadPoolTaskRunner

    @task(name="nothing", task_run_name="nothing {number}", cache_policy=NO_CACHE)
    def nothing(config: PipelineConfig, number: int) -> int:  # noqa: ARG001 - handed over as to a real one
        return number

    @flow(task_runner=ThreadPoolTaskRunner(max_workers=2))
    def many(count: int) -> int:
        return sum(nothing.map(unmapped(config), list(range(count))).result())

    def run(count: int) -> None:
        many(count)
        drain()

    run(1)
    count = sum(1 for _ in Path(scenes).iterdir())
    spent = {name: list[float]() for name in ("client_s", "server_s", "wall_s", "scene_s")}
    for _ in range(3):
        empty, full = _spent(lambda: run(0)), _spent(lambda: run(_TASKS))
        for name, before, after in zip(("client_s", "server_s", "wall_s"), empty, full, strict=True):
            spent[name].append((after - before) / _TASKS)
        tiled = _spent(lambda: direct(scenes, f"{root}-direct", 256))[0] / count
        spent["scene_s"].append(tiled * (_SCENE_EDGE / edge) ** 2)
    _stop_server()
    return {name: statistics.median(values) for name, values in spent.items()}


def _spent(work: Callable[[], object]) -> tuple[float, float, float]:
    """Give CPU seconds of this process and of the server, and wall seconds."""
    client, server, wall = time.process_time(), _server_cpu(), time.perf_counter()
    work()
    return time.process_time() - client, _server_cpu() - server, time.perf_counter() - wall


def _servers() -> list[object]:
    from prefect.server.api.server import SubprocessASGIServer

    return [server for server in SubprocessASGIServer._instances.values() if server.running]


def _server_cpu() -> float:
    """CPU seconds of the embedded server until now; nothing where the system does not tell."""
    pids = [server.server_process.pid for server in _servers()]  # type: ignore[attr-defined]
    total = 0
    for path in (Path(f"/proc/{pid}/stat") for pid in pids):
        if path.exists():
            fields = path.read_text(encoding="utf-8").rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def _stop_server() -> None:
    """End the embedded server: what it spent counts once it was waited for."""
    for server in _servers():
        server.stop()  # type: ignore[attr-defined]


def count_task_runs(scenes: str, root: str, size: int) -> dict[str, float]:
    """Run the flow, and ask its history how many task runs there were."""
    import sqlite3

    in_prefect(scenes, root, size)
    (database,) = Path(root).glob("*/.prefect/prefect.db")
    with sqlite3.connect(database) as connection:
        return {"task_runs": float(connection.execute("select count(*) from task_run").fetchone()[0])}


if __name__ == "__main__":
    kind, where, root_folder, number = sys.argv[1:]
    taken = (measure_tasks if kind == "tasks" else count_task_runs)(where, root_folder, int(number))
    print(_MARK + json.dumps(taken))
