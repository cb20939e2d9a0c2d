"""Empty databases of Prefect and MLflow, made once for all tests: a new pair takes seven seconds of a processor.

What makes them in a new workspace, and in a new home, is tested by the commands of the README, by the history of an
embedded run, and by the tests of the registry.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

from flows.settings import embedded_environment, state_folder
from tests.end_to_end.pipeline_cases import environment
from vitpipe.atomic import file_lock, write_folder
from vitpipe.infer.tracking import TrackingStore

_MIGRATE = """
import asyncio
from prefect.server.database import provide_database_interface
asyncio.run(provide_database_interface().create_db())
"""


def make_empty_stores(folder: Path) -> Path:
    """Make a workspace that holds both databases, unless another process has made it; gives `folder`."""
    with file_lock(folder.with_suffix(".lock"), wait=True):
        if not folder.is_dir():
            with write_folder(folder) as partial:
                values = environment(partial)
                values |= embedded_environment(partial, values)
                (partial / ".prefect").mkdir()
                subprocess.run([sys.executable, "-c", _MIGRATE], env=values, cwd=partial, check=True, timeout=300)
                with contextlib.closing(sqlite3.connect(partial / ".prefect" / "prefect.db")) as database:
                    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                TrackingStore(f"sqlite:///{partial / 'mlflow.db'}", None).prepare()
    return folder


def give_stores(stores: Path, workspace: Path) -> None:
    """Copy both databases into a workspace that is yet to be used."""
    for name in (".prefect/prefect.db", "mlflow.db"):
        (workspace / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(stores / name, workspace / name)


def give_stores_to_servers(stores: Path, home: Path) -> None:
    """Copy both databases to where `vitpipe up` would make them below a home."""
    for name in ("prefect/prefect.db", "mlflow/mlflow.db"):
        place = state_folder(home) / name
        place.parent.mkdir(parents=True)
        shutil.copy(next(stores.rglob(place.name)), place)


def shared_folder(base: Path) -> Path:
    """Give the folder that all processes of pytest-xdist share: the one above each process's own."""
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
