"""The settings of Prefect and MLflow, read back from the libraries themselves."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from flows import settings
from vitpipe.errors import ConfigError, WorkspaceError

ROOT = Path(__file__).resolve().parents[2]


def python(code: str, cwd: Path, **extra: str) -> str:
    """Run code in a fresh interpreter that knows no setting of ours, in another folder; give its last line."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
    kept.pop("DO_NOT_TRACK", None)
    environment = kept | {"HOME": str(cwd), "PYTHONPATH": str(ROOT)} | extra
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert answer.returncode == 0, answer.stderr[-3000:]
    return answer.stdout.strip().splitlines()[-1]


def test_embedded_settings_reach_prefect(tmp_path: Path) -> None:
    code = f"""
import json, sys
from pathlib import Path
from flows.settings import apply_environment
assert not {{"prefect", "mlflow"}} & sys.modules.keys()
apply_environment(Path({str(tmp_path / "work")!r}))
from prefect.settings import get_current_settings
s = get_current_settings()
recorder = s.server.services.task_run_recorder
print(json.dumps({{
    "recorder": [recorder.batch_size, recorder.read_batch_size, recorder.flush_interval],
    "start": s.server.ephemeral.startup_timeout_seconds,
    "home": str(s.home), "home_is_there": s.home.is_dir(),
    "results": str(s.results.local_storage_path),
    "serializer": [s.results.default_serializer, s.results.persist_by_default],
    "analytics": s.server.analytics_enabled,
    "promotion": s.server.ui.show_promotional_content,
    "retries": s.client.max_retries, "heartbeat": s.flows.heartbeat_frequency,
    "loggers": s.logging.extra_loggers, "database": s.server.database.timeout,
}}))
"""
    read = json.loads(python(code, tmp_path))
    home = tmp_path / "work" / ".prefect"
    assert read == {
        "recorder": [200, 200, 1],
        "start": 180,
        "home": str(home),
        "home_is_there": True,
        "results": str(home / "results"),
        "serializer": ["json", False],
        "analytics": False,
        "promotion": False,
        "retries": 8,
        "heartbeat": 30,
        "loggers": ["vitpipe"] if isinstance(read["loggers"], list) else "vitpipe",
        "database": 60.0,
    }


def test_every_prefect_variable_is_a_setting_of_prefect(tmp_path: Path) -> None:
    ours = settings.embedded_environment(tmp_path, {}) | settings.server_environment(tmp_path, prefect_port=4300)
    ours |= settings.client_environment(tmp_path, prefect_port=4300, mlflow_port=5300)
    code = """
from prefect.settings.legacy import _get_settings_fields
from prefect.settings import Settings
import json
print(json.dumps(sorted(_get_settings_fields(Settings))))
"""
    known = set(json.loads(python(code, tmp_path)))
    named = {name for name in ours if name.startswith("PREFECT_")}
    assert len(named) > 15
    assert named <= known, named - known


def test_mlflow_sends_nothing_home(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from flows.settings import apply_environment
apply_environment(Path({str(tmp_path / "work")!r}))
import mlflow
from mlflow.environment_variables import MLFLOW_ALLOW_PICKLE_DESERIALIZATION, MLFLOW_UV_AUTO_DETECT
from mlflow.telemetry.utils import is_telemetry_disabled
print(is_telemetry_disabled(), mlflow.get_tracking_uri(), MLFLOW_ALLOW_PICKLE_DESERIALIZATION.get(),
      MLFLOW_UV_AUTO_DETECT.get())
"""
    assert python(code, tmp_path) == f"True sqlite:///{tmp_path / 'work' / 'mlflow.db'} False False"


def test_servers_that_the_user_names_are_used(tmp_path: Path) -> None:
    given = {"PREFECT_API_URL": "http://prefect.local/api", "MLFLOW_TRACKING_URI": "http://mlflow.local"}
    values = settings.embedded_environment(tmp_path, given)
    assert not settings.is_embedded(given)
    assert not given.keys() & values.keys()
    assert not {name for name in values if name.startswith("PREFECT_SERVER_SERVICES") or name == "PREFECT_HOME"}
    # What keeps quiet and waits longer holds there, too.
    assert values["PREFECT_CLIENT_MAX_RETRIES"] == "8"
    assert values["DO_NOT_TRACK"] == "true"


def test_apply_keeps_what_the_user_set_and_speaks_up_when_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in settings.embedded_environment(tmp_path, {}):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_CLIENT_MAX_RETRIES", "2")
    monkeypatch.setenv("no_proxy", "intern.example")
    # A test before this one in the same process may have imported it.
    monkeypatch.delitem(sys.modules, "mlflow", raising=False)
    monkeypatch.setitem(sys.modules, "prefect", sys)
    with pytest.raises(ConfigError, match="prefect was imported before"):
        settings.apply_environment(tmp_path)
    monkeypatch.delitem(sys.modules, "prefect")
    # monkeypatch undoes only what went through it.
    monkeypatch.setattr(os, "environ", dict(os.environ))
    settings.apply_environment(tmp_path)
    assert os.environ["PREFECT_CLIENT_MAX_RETRIES"] == "2"
    assert os.environ["NO_PROXY"] == "intern.example,127.0.0.1,localhost"
    assert (tmp_path / ".prefect").is_dir()


def test_a_workspace_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from flows.settings import apply_environment
from vitpipe.errors import WorkspaceError
import unittest.mock
try:
    with unittest.mock.patch("pathlib.Path.mkdir", side_effect=PermissionError(13, "denied")):
        apply_environment(Path({str(tmp_path / "work")!r}))
except {WorkspaceError.__name__} as error:
    print(error)
"""
    assert "permission denied" in python(code, tmp_path)


def test_a_child_is_not_led_elsewhere(tmp_path: Path) -> None:
    user = {
        "PREFECT_API_URL": "http://elsewhere/api",
        "PREFECT_PROFILE": "cloud",
        "MLFLOW_TRACKING_URI": "http://elsewhere",
        "PREFECT_CLIENT_MAX_RETRIES": "3",
        "PATH": "/bin",
    }
    server = settings.child_environment(settings.server_environment(tmp_path, prefect_port=4300), user)
    assert not {"PREFECT_API_URL", "PREFECT_PROFILE", "MLFLOW_TRACKING_URI"} & server.keys()
    client = settings.child_environment(
        settings.client_environment(tmp_path, prefect_port=4300, mlflow_port=5300), user
    )
    assert client["PREFECT_API_URL"] == "http://127.0.0.1:4300/api"
    assert client["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:5300"
    assert client["PREFECT_CLIENT_MAX_RETRIES"] == "3"
    assert client["PATH"] == "/bin"
    assert str(ROOT) in client["PYTHONPATH"].split(os.pathsep)


def test_drain_has_nothing_to_do_without_an_embedded_server() -> None:
    assert settings.drain() == 0


@pytest.mark.slow
def test_an_embedded_run_leaves_its_whole_history(tmp_path: Path) -> None:
    work = tmp_path / "work"
    code = f"""
import logging
from pathlib import Path
from flows.settings import apply_environment, drain
apply_environment(Path({str(work)!r}))
from prefect import flow, task

@task
def double(number: int) -> int:
    return 2 * number

@flow
def many() -> int:
    logging.getLogger("vitpipe.test").info("a line of ours")
    return sum(future.result() for future in double.map(range(20)))

assert many() == 380
print("left", drain())
"""
    assert python(code, tmp_path) == "left 0"
    with sqlite3.connect(work / ".prefect" / "prefect.db") as database:
        assert database.execute("select state_type, count(*) from task_run group by 1").fetchall() == [
            ("COMPLETED", 20)
        ]
        assert database.execute("select state_type from flow_run").fetchall() == [("COMPLETED",)]
        messages = {row[0] for row in database.execute("select message from log")}
    assert "a line of ours" in messages
