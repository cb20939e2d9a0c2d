"""What all tests share: telemetry off, one torch thread, where the shared data lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples each time: CI judges a change, not luck. `--hypothesis-profile=default` looks for new ones.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
_LONGEST = ("test_pipeline_on_servers.py", "test_servers.py", "test_readme.py", "test_kill.py", "test_whole_chain.py")
"""Files whose tests take a minute and more. One process runs all tests on servers, one after the other."""


# Before pytest-xdist looks at the groups, else there are none.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs the shared data where they are missing; spread the tests well over processes."""
    for item in items:
        if not SHARED.is_dir() and item.get_closest_marker("shared"):
            item.add_marker(pytest.mark.skip(reason=f"needs the data folder {SHARED}"))
        # Under pytest-xdist: one process has the servers, and the quick tests of a file share their fixtures.
        if "session_servers" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("servers"))
        elif not item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.xdist_group(item.path.name))
    # The long ones first, the longest before: else one process would be left with them at the end.
    items.sort(key=lambda item: (item.get_closest_marker("slow") is None, _rank(item.path.name)))


def _rank(file: str) -> int:
    return _LONGEST.index(file) if file in _LONGEST else len(_LONGEST)


@pytest.fixture(scope="session")
def empty_stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with nothing but empty databases of Prefect and MLflow, for `give_stores`."""
    from tests.empty_stores import make_empty_stores, shared_folder

    return make_empty_stores(shared_folder(tmp_path_factory.getbasetemp()) / "empty-stores")


@pytest.fixture
def samples() -> Path:
    """The sample data of the repository."""
    return ROOT / "data" / "samples"
