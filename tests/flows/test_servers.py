"""The servers, for real: started on free ports of the loopback, used over their APIs, killed and stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml
from server_cases import Running, free_port, options_for

from flows import servers, settings
from flows.deployments import DEPLOYMENTS, POOL, Deployment
from flows.processes import ProcessKey, descendants, is_alive, start_detached, stop
from flows.static_pages import forbid_foreign_requests
from vitpipe.atomic import file_lock
from vitpipe.errors import ConfigError, TransientError

ROOT = Path(__file__).resolve().parents[2]
ZOMBIE_SECONDS = 20.0


# ------------------------------------------------------------------------------------------------ without any server


def test_a_port_in_use_is_named_with_the_option_to_pass(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for name, option in (("prefect_port", "--prefect-port"), ("mlflow_port", "--mlflow-port")):
            with pytest.raises(ConfigError, match=rf"port {port} .*{option}"):
                servers.up(options_for(tmp_path, **{name: port}))
    assert not any(part.state != "down" for part in servers.status(tmp_path).parts)


def test_an_unknown_time_zone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Atlantis"):
        servers.up(options_for(tmp_path, timezone="Europe/Atlantis"))


def test_two_at_a_time_are_refused(tmp_path: Path) -> None:
    with (
        file_lock(tmp_path / ".vitpipe" / "servers.lock", wait=False),
        pytest.raises(ConfigError, match="another `vitpipe up` or `down`"),
    ):
        servers.down(tmp_path)


def test_down_and_status_before_any_up(tmp_path: Path) -> None:
    for state in (servers.down(tmp_path), servers.status(tmp_path)):
        assert [part.state for part in state.parts] == ["down"] * 3
        assert not state.is_up
        assert json.loads(json.dumps(state.to_json()))["parts"][0]["pid"] is None


def test_a_start_that_fails_shows_the_log_and_stops_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = [sys.executable, "-c", "import sys, time; time.sleep(1); sys.exit('the disk is on fire')"]
    waiting = [sys.executable, "-c", "import time; time.sleep(600)"]
    monkeypatch.setattr(servers, "_prefect_command", lambda _: failing)
    monkeypatch.setattr(servers, "_mlflow_command", lambda *_: waiting)
    seen: list[str] = []
    started: list[ProcessKey] = []

    def remember(*args: Any, **kwargs: Any) -> ProcessKey:
        started.append(start_detached(*args, **kwargs))
        return started[-1]

    monkeypatch.setattr(servers, "start_detached", remember)
    with pytest.raises(TransientError, match=r"(?s)prefect ended while it started.*the disk is on fire"):
        servers.up(options_for(tmp_path), seen.append)
    assert len(started) == 2
    assert not any(is_alive(key) for key in started)
    assert "Stopping mlflow ..." in seen
    monkeypatch.setattr(servers, "_prefect_command", lambda _: waiting)
    with pytest.raises(TransientError, match="prefect did not answer within 1 seconds"):
        servers.up(options_for(tmp_path, start_timeout_seconds=1.0))
    assert not any(is_alive(key) for key in started)


def test_a_reused_process_id_is_not_taken_for_ours(tmp_path: Path) -> None:
    other = start_detached(
        ["sleep", "600"], environment={"PATH": os.environ["PATH"]}, folder=tmp_path, log=tmp_path / "l"
    )
    try:
        record = {
            "version": 1,
            "prefect_port": free_port(),
            "mlflow_port": free_port(),
            "processes": {"prefect": {"pid": other.pid, "started": "long ago"}},
            "deployments": [],
        }
        state = tmp_path / ".vitpipe" / "servers.json"
        state.parent.mkdir()
        state.write_text(json.dumps(record))
        assert servers.down(tmp_path).parts[0].state == "down"
        assert is_alive(other)
    finally:
        stop(other, grace_seconds=5)


def test_stop_takes_grandchildren_that_do_not_listen(tmp_path: Path) -> None:
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {deaf!r}], start_new_session=True)"
    log = tmp_path / "log"
    key = start_detached([sys.executable, "-c", parent], environment=os.environ, folder=tmp_path, log=log)
    deadline = time.monotonic() + 20
    while "deaf" not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    family = descendants(key)
    assert len(family) == 2
    stop(key, grace_seconds=1.0)
    assert not any(is_alive(member) for member in family)
    stop(key, grace_seconds=1.0)


def test_the_policy_is_written_once_and_again_for_another_port(tmp_path: Path) -> None:
    page = tmp_path / "v2" / "index.html"
    page.parent.mkdir()
    page.write_text("<html><head><title>Prefect</title></head></html>")
    assert forbid_foreign_requests(tmp_path, 4300) == 1
    once = page.read_text()
    assert once.startswith('<html><head><meta http-equiv="Content-Security-Policy" content="connect-src \'self\' ')
    assert forbid_foreign_requests(tmp_path, 4300) == 1
    assert page.read_text() == once
    forbid_foreign_requests(tmp_path, 4400)
    assert page.read_text().count("Content-Security-Policy") == 1
    assert ":4400" in page.read_text()
    assert ":4300" not in page.read_text()
    page.write_text("<html><HEAD></HEAD></html>")
    assert forbid_foreign_requests(tmp_path, 4400) == 0


def test_prefect_yaml_says_what_the_table_says() -> None:
    written = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    assert written["pull"] == []
    rows = []
    for item in written["deployments"]:
        assert item["work_pool"]["name"] == POOL
        schedules = item.get("schedules", [])
        limit = item.get("concurrency_limit")
        if limit:
            assert limit["collision_strategy"] == "CANCEL_NEW"
        # Without its parameter a schedule would fail every night.
        assert not any(schedule["active"] for schedule in schedules)
        rows.append(
            Deployment(
                name=item["name"],
                entrypoint=item["entrypoint"],
                description=item["description"],
                tags=tuple(item["tags"]),
                cron=schedules[0]["cron"] if schedules else None,
                concurrency_limit=limit["limit"] if limit else None,
            )
        )
    assert tuple(rows) == DEPLOYMENTS


# ------------------------------------------------------------------------------------------------- the servers for real


@pytest.fixture(scope="module")
def running(session_servers: Running) -> Running:
    """The servers of the session, with a zombie time that a test can wait for and a real run could not."""
    session_servers.options = dataclasses.replace(session_servers.options, zombie_seconds=ZOMBIE_SECONDS)
    session_servers.state = servers.up(session_servers.options)
    return session_servers


@pytest.mark.slow
def test_everything_answers_after_up(running: Running) -> None:
    state = running.state
    assert state.is_up
    assert [part.name for part in state.parts] == ["prefect", "mlflow", "worker"]
    assert state.urls == (
        f"http://127.0.0.1:{running.options.prefect_port}",
        f"http://127.0.0.1:{running.options.mlflow_port}",
    )
    assert state.deployments[0] == "pipeline/pipeline"
    assert state.deployments[-2:] == ("tiny/tiny", "nightly/nightly")
    assert len(state.deployments) == len(DEPLOYMENTS) + 2
    assert state.environment["PREFECT_API_URL"] == f"{state.urls[0]}/api"
    assert all(is_alive(running.key(name)) for name in ("prefect", "mlflow", "worker"))
    # Two processes instead of fifteen.
    assert len(descendants(running.key("mlflow"))) == 2
    again = servers.up(dataclasses.replace(running.options, config=None))
    assert again.notes == ("The servers are up already; nothing was started.",)
    assert again.parts == state.parts
    with pytest.raises(ConfigError, match="vitpipe down"):
        servers.up(dataclasses.replace(running.options, prefect_port=free_port()))


@pytest.mark.slow
def test_the_deployments_are_as_the_table_says(running: Running) -> None:
    tiny = running.ask("/deployments/name/tiny/tiny")
    assert tiny["work_pool_name"] == POOL
    assert tiny["enforce_parameter_schema"]
    assert tiny["parameter_openapi_schema"]["definitions"]["Config"]["properties"]["side"]["oneOf"]
    nightly = running.ask("/deployments/name/nightly/nightly")
    assert nightly["schedules"][0]["schedule"]["cron"] == "0 2 * * *"
    assert nightly["schedules"][0]["schedule"]["timezone"] == "Europe/Berlin"
    assert nightly["global_concurrency_limit"]["limit"] == 1
    assert nightly["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    (automation,) = running.ask("/automations/filter", {})
    assert automation["trigger"]["within"] == ZOMBIE_SECONDS
    assert automation["trigger"]["posture"] == "Proactive"
    assert "prefect.flow-run.Suspended" in automation["trigger"]["expect"]
    assert automation["actions"][0]["state"] == "CRASHED"


@pytest.mark.slow
def test_the_pages_ask_this_machine_alone(running: Running) -> None:
    base = running.state.urls[0]
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{base}/", timeout=30) as answer:
        page = answer.read().decode()
    assert "connect-src 'self'" in page
    with opener.open(f"{answer.url.rstrip('/')}/ui-settings", timeout=30) as settings_answer:
        read = settings_answer.read().decode()
    assert f"{base}/api" in read
    assert not running.ask("/admin/settings")["server"]["analytics_enabled"]
    foreign = urllib.request.Request(f"{base}/api/health", headers={"Origin": "https://foreign.example"})
    with opener.open(foreign, timeout=30) as answer:
        assert "access-control-allow-origin" not in {name.lower() for name in answer.headers}


@pytest.mark.slow
def test_a_run_of_the_api_completes_with_its_parameters(running: Running) -> None:
    run_id = running.start_run("tiny/tiny", {"settings": {"side": {"kind": "right", "factor": 5}}})
    run = running.wait(run_id, "Completed")
    assert run["parameters"]["settings"]["side"]["factor"] == 5
    assert len(running.task_runs(run_id, 3)) == 3
    with pytest.raises(urllib.error.HTTPError, match=r"4\d\d"):
        running.start_run("tiny/tiny", {"settings": {"side": {"kind": "left", "number": "many"}}})


@pytest.mark.slow
def test_a_killed_flow_is_crashed_by_its_worker(running: Running) -> None:
    run_id = running.start_run("tiny/tiny", {"settings": {"side": {"kind": "left"}}, "seconds": 300})
    running.wait(run_id, "Running")
    os.kill(running.wait_for_process().pid, signal.SIGKILL)
    run = running.wait(run_id, "Crashed", seconds=30)
    assert "-9" in run["state"]["message"]


@pytest.mark.slow
def test_a_killed_worker_leaves_no_run_running_and_up_mends_it(running: Running) -> None:
    run_id = running.start_run("tiny/tiny", {"settings": {"side": {"kind": "left"}}, "seconds": 300})
    running.wait(run_id, "Running")
    flow_process, worker = running.wait_for_process(), running.key("worker")
    time.sleep(1)
    os.kill(worker.pid, signal.SIGKILL)
    os.kill(flow_process.pid, signal.SIGKILL)
    assert {part.name: part.state for part in servers.status(running.options.home).parts} == {
        "prefect": "up",
        "mlflow": "up",
        "worker": "down",
    }
    run = running.wait(run_id, "Crashed", seconds=ZOMBIE_SECONDS + 30)
    assert "No sign of life" in run["state"]["message"]
    before = running.key("prefect")
    mended = servers.up(running.options)
    assert mended.is_up
    assert running.key("prefect") == before
    assert running.key("worker") != worker
    # The dead one is gone from the list; "up" is said of the living one.
    assert len(running.ask(f"/work_pools/{POOL}/workers/filter", {})) == 1


@pytest.mark.slow
def test_down_stops_runs_and_servers_and_frees_the_ports(running: Running) -> None:
    run_id = running.start_run("tiny/tiny", {"settings": {"side": {"kind": "left"}}, "seconds": 300})
    running.wait(run_id, "Running")
    family = [member for name in ("prefect", "mlflow", "worker") for member in descendants(running.key(name))]
    assert len(family) >= 5
    state = servers.down(running.options.home)
    assert [part.state for part in state.parts] == ["down"] * 3
    assert not any(is_alive(member) for member in family)
    for port in (running.options.prefect_port, running.options.mlflow_port):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
    assert servers.down(running.options.home) == state
    database = settings.state_folder(running.options.home) / "prefect" / "prefect.db"
    with contextlib.closing(sqlite3.connect(database)) as connection:
        rows = connection.execute("select state_type from flow_run where id = ?", (run_id,)).fetchall()
    # The run could still tell the server that it was stopped.
    assert rows == [("CRASHED",)]
    assert subprocess.run(["pgrep", "-f", str(running.options.home)], check=False, capture_output=True).returncode == 1
