"""Servers that the tests of a session share, and a plain client of their APIs."""

from __future__ import annotations

import dataclasses
import json
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from flows import servers
from flows.deployments import Deployment
from flows.processes import ProcessKey, descendants

SCENES = 24
TEST_DEPLOYMENTS = (
    Deployment("tiny", "vitpipe_test_flows.tiny", "A tiny flow.", tags=("test",)),
    Deployment("nightly", "vitpipe_test_flows.nightly", "Every night.", cron="0 2 * * *", concurrency_limit=1),
)
FLOWS = """
import time
from typing import Annotated, Literal
from prefect import flow, task
from pydantic import BaseModel, Field

class Left(BaseModel):
    kind: Literal["left"] = "left"
    number: int = Field(1, ge=0)

class Right(BaseModel):
    kind: Literal["right"] = "right"
    factor: int = 2

class Config(BaseModel):
    side: Annotated[Left | Right, Field(discriminator="kind")]

@task
def double(number: int) -> int:
    return 2 * number

@flow
def tiny(settings: Config, seconds: float = 0.0) -> None:
    assert [future.result() for future in double.map(range(3))] == [0, 2, 4]
    time.sleep(seconds)

@flow
def nightly() -> None:
    pass
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def options_for(home: Path, **changes: Any) -> servers.ServerOptions:
    made = servers.ServerOptions(home=home, prefect_port=free_port(), mlflow_port=free_port())
    return dataclasses.replace(made, **changes)


def ask_url(url: str, body: object = None) -> Any:
    """Ask for JSON, without any proxy."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        try:
            with opener.open(request, timeout=30) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            # SQLite is busy: Prefect's own client tries again, too.
            if error.code != 503:
                raise
            time.sleep(1)


class Running:
    """Servers that are up."""

    def __init__(self, options: servers.ServerOptions) -> None:
        self.options = options
        self.messages: list[str] = []
        self.state = servers.up(options, self.messages.append)

    def ask(self, path: str, body: object = None) -> Any:
        """Ask Prefect's server."""
        return ask_url(f"http://127.0.0.1:{self.options.prefect_port}/api{path}", body)

    def ask_mlflow(self, path: str, body: object = None) -> Any:
        """Ask MLflow's server."""
        return ask_url(f"http://127.0.0.1:{self.options.mlflow_port}/api/2.0/mlflow{path}", body)

    def start_run(self, deployment: str, parameters: object) -> str:
        """Create a run as the interface's button does."""
        found = self.ask(f"/deployments/name/{deployment}")
        run = self.ask(
            f"/deployments/{found['id']}/create_flow_run",
            {"parameters": parameters, "state": {"type": "SCHEDULED"}, "enforce_parameter_schema": True},
        )
        return str(run["id"])

    def wait(self, run_id: str, *names: str, seconds: float = 90.0) -> dict[str, Any]:
        """Wait until a run has one of these states."""
        deadline = time.monotonic() + seconds
        while (run := self.ask(f"/flow_runs/{run_id}"))["state_name"] not in names:
            assert time.monotonic() < deadline, run["state"]
            assert not (run["state_type"] in ("FAILED", "CRASHED") and "Crashed" not in names), run["state"]
            time.sleep(0.5)
        return dict(run)

    def task_runs(self, run_id: str, count: int, seconds: float = 20.0) -> list[dict[str, Any]]:
        """Give the task runs of a run, as soon as so many are recorded as completed: the recorder lags."""
        deadline = time.monotonic() + seconds
        question = {"flow_runs": {"id": {"any_": [run_id]}}}
        while True:
            found = self.ask("/task_runs/filter", question)
            if len(found) == count and all(run["state_type"] == "COMPLETED" for run in found):
                return list(found)
            assert time.monotonic() < deadline, [(run["name"], run["state_name"]) for run in found]
            time.sleep(0.5)

    def key(self, name: str) -> ProcessKey:
        """Give the process of a part."""
        record = json.loads((self.options.home / ".vitpipe" / "servers.json").read_text())
        return ProcessKey(**record["processes"][name])

    def wait_for_process(self) -> ProcessKey:
        """Give the process of the one run that the worker has."""
        deadline = time.monotonic() + 60
        while len(family := descendants(self.key("worker"))) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        return family[1]
