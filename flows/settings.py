"""How Prefect and MLflow are set up, embedded and as servers, and how an embedded server is left.

Both libraries read their settings when they are imported: :func:`apply_environment` comes first, and this module
imports neither. A variable that the user has set is kept; the user knows better.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from vitpipe.atomic import make_folder
from vitpipe.errors import ConfigError

LOOPBACK = "127.0.0.1"
HEARTBEAT_SECONDS = 30
"""Between two signs of life of a flow run; the least that Prefect takes."""

_LOOPBACK_NAMES = ("127.0.0.1", "localhost")

_STARTED_AT = datetime.now(UTC)
_POLL_SECONDS = 0.25
# The recorder writes once a second; nothing new in twice that means that nothing is left.
_QUIET_SECONDS = 2.0
# Task runs of a flow that was interrupted never end: no need to wait for them until the time-out.
_STUCK_SECONDS = 10.0
_OPEN_STATES = ("SCHEDULED", "PENDING", "RUNNING", "PAUSED", "CANCELLING")
_SERVER_MODULE = "prefect.server.api.server"

_NO_PHONING_HOME = {
    # "true" is the one spelling that Prefect and MLflow both take.
    "DO_NOT_TRACK": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_MODEL_CATALOG_URI": "",
}

_CLIENT = {
    # A busy SQLite answers 503; 8 tries wait some minutes instead of half of one.
    "PREFECT_CLIENT_MAX_RETRIES": "8",
    "PREFECT_API_REQUEST_TIMEOUT": "120",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
    "PREFECT_LOGGING_EXTRA_LOGGERS": "vitpipe",
    # The workspace knows what is done; Prefect keeps no results, and none as pickle.
    "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
    "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    # Else a uv.lock in the caller's folder would be uploaded with the model.
    "MLFLOW_UV_AUTO_DETECT": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}

_SERVER = {
    # One event at a time (the default) lags by a minute per 1000 tasks, and an embedded server that ends loses them.
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    # How long a statement waits for SQLite's lock before the server answers 503.
    "PREFECT_SERVER_DATABASE_TIMEOUT": "60",
    "PREFECT_SERVER_DATABASE_CONNECTION_TIMEOUT": "60",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
}


def is_embedded(environ: Mapping[str, str] | None = None) -> bool:
    """Say whether Prefect runs inside the process: no ``PREFECT_API_URL`` is set."""
    return not (os.environ if environ is None else environ).get("PREFECT_API_URL")


def embedded_environment(workspace: Path, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Give the variables for a run without servers: Prefect's temporary API, SQLite, files under the workspace.

    Args:
        workspace: folder of the pipeline.
        environ: where ``PREFECT_API_URL`` and ``MLFLOW_TRACKING_URI`` are looked up; ``os.environ`` if None. What
            they name is used: nothing of it is embedded then.
    """
    environ = os.environ if environ is None else environ
    root = workspace.resolve()
    values = _NO_PHONING_HOME | _CLIENT | {"NO_PROXY": _no_proxy(environ), "no_proxy": _no_proxy(environ)}
    if is_embedded(environ):
        home = root / ".prefect"
        values |= _SERVER | {
            "PREFECT_HOME": str(home),
            "PREFECT_LOCAL_STORAGE_PATH": str(home / "results"),
        }
    if not environ.get("MLFLOW_TRACKING_URI"):
        values["MLFLOW_TRACKING_URI"] = f"sqlite:///{root / 'mlflow.db'}"
    return values


def prefect_url(port: int) -> str:
    """Address of Prefect's pages."""
    return f"http://{LOOPBACK}:{port}"


def client_environment(home: Path, *, prefect_port: int, mlflow_port: int) -> dict[str, str]:
    """Give the variables for everything that talks to the servers of ``vitpipe up``: worker, flows, commands."""
    root = state_folder(home)
    return (
        _NO_PHONING_HOME
        | _CLIENT
        | {
            "PREFECT_HOME": str(root / "prefect"),
            "PREFECT_LOCAL_STORAGE_PATH": str(root / "prefect" / "results"),
            "PREFECT_API_URL": f"{prefect_url(prefect_port)}/api",
            "PREFECT_WORKER_QUERY_SECONDS": "5",
            "PREFECT_WORKER_WEBSERVER_HOST": LOOPBACK,
            "MLFLOW_TRACKING_URI": prefect_url(mlflow_port),
            "NO_PROXY": _no_proxy(os.environ),
            "no_proxy": _no_proxy(os.environ),
        }
    )


def server_environment(home: Path, *, prefect_port: int) -> dict[str, str]:
    """Give the variables for the Prefect and MLflow servers of ``vitpipe up``.

    The second interface (V2) stays on: it draws the source kinds as tabs, the first one shows raw JSON. It asks for
    the settings of Amplitude although analytics are off; `flows.servers` keeps the browser from it.
    """
    root = state_folder(home)
    return (
        _NO_PHONING_HOME
        | _SERVER
        | {
            "PREFECT_HOME": str(root / "prefect"),
            "PREFECT_UI_STATIC_DIRECTORY": str(root / "prefect-ui"),
            "PREFECT_SERVER_UI_V2_ENABLED": "true",
            # Without it the pages ask port 4200, whatever the port.
            "PREFECT_SERVER_UI_API_URL": f"{prefect_url(prefect_port)}/api",
            # The default lets a page of any site start runs through the user's browser.
            "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": ",".join(
                f"http://{name}:{prefect_port}" for name in _LOOPBACK_NAMES
            ),
            "PREFECT_LOGGING_LEVEL": "WARNING",
            # Two processes instead of fifteen.
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
            "GIT_PYTHON_REFRESH": "quiet",
        }
    )


def state_folder(home: Path) -> Path:
    """Folder of the servers: their databases, logs and state."""
    return home.resolve() / ".vitpipe"


def default_home() -> Path:
    """The folder below which the servers live: ``VITPIPE_HOME``, else the user's home."""
    return Path(os.environ.get("VITPIPE_HOME") or Path.home())


def apply_environment(workspace: Path) -> None:
    """Set the variables of :func:`embedded_environment` that are not set yet; call it before Prefect is imported.

    Args:
        workspace: folder of the pipeline.

    Raises:
        ConfigError: Prefect or MLflow is imported already, so that the settings would come too late.
        WorkspaceError: the folder cannot be written.
    """
    values = embedded_environment(workspace)
    late = sorted({"prefect", "mlflow"} & sys.modules.keys())
    if late and not values.keys() <= os.environ.keys():
        raise ConfigError(f"{late[0]} was imported before its settings were made; call apply_environment first")
    for name, value in values.items():
        # The names of proxies are merged, not kept: a proxy must never carry what is meant for this machine.
        if name.lower() == "no_proxy" or name not in os.environ:
            os.environ[name] = value
    if "PREFECT_HOME" in values:
        # Prefect itself makes the last folder alone.
        make_folder(Path(os.environ["PREFECT_HOME"]))
    configure_logging()


def configure_logging() -> None:
    """Let INFO lines of the ``vitpipe`` logger through; a flow calls it first.

    ``PREFECT_LOGGING_EXTRA_LOGGERS`` adds the handler alone: the level stays the root's WARNING.
    """
    logging.getLogger("vitpipe").setLevel(logging.INFO)


def child_environment(values: Mapping[str, str], environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Give the whole environment of a server, worker or deploying child.

    The user's variables are kept, but not those that would lead it to another server or folder.

    Args:
        values: of :func:`server_environment` or :func:`client_environment`.
        environ: ``os.environ`` if None.
    """
    kept = dict(os.environ if environ is None else environ)
    tuned = {name: kept[name] for name in (_CLIENT | _SERVER).keys() & kept.keys() & values.keys()}
    for name in ("PREFECT_API_URL", "PREFECT_PROFILE", "PREFECT_HOME", "MLFLOW_TRACKING_URI"):
        kept.pop(name, None)
    # This package's folder: a worker finds the flows from a checkout, too, and from any folder.
    root = str(Path(__file__).resolve().parents[1])
    installed = Path(root).name in ("site-packages", "dist-packages")
    if not installed and root not in kept.get("PYTHONPATH", "").split(os.pathsep):
        kept["PYTHONPATH"] = os.pathsep.join(part for part in (kept.get("PYTHONPATH"), root) if part)
    return kept | {"PYTHONUNBUFFERED": "1"} | dict(values) | tuned


def _no_proxy(environ: Mapping[str, str]) -> str:
    given = environ.get("NO_PROXY") or environ.get("no_proxy") or ""
    names = [name.strip() for name in given.split(",") if name.strip()]
    return ",".join(dict.fromkeys((*names, *_LOOPBACK_NAMES)))


def drain(timeout_seconds: float = 60.0) -> int:
    """Wait until every task run of this process's flows is recorded with its end.

    Nothing is done where a server of its own keeps the history, or where no flow ran.

    Args:
        timeout_seconds: after it, or when nothing changes any more, the wait ends in any case.

    Returns:
        How many task runs are not recorded as ended: 0 when all is well.
    """
    if not _has_embedded_server():
        return 0
    from prefect.client.orchestration import get_client
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    deadline = time.monotonic() + timeout_seconds
    # First what still waits on our side.
    EventsWorker.drain_all(timeout=timeout_seconds, at_exit=False)
    APILogWorker.drain_all(timeout=timeout_seconds, at_exit=False)
    ours: dict[str, object] = {"flow_runs": {"start_time": {"after_": _STARTED_AT.isoformat()}}}
    still_open = {"task_runs": {"state": {"type": {"any_": list(_OPEN_STATES)}}}}
    seen: tuple[int, int] | None = None
    since = time.monotonic()
    with get_client(sync_client=True) as client:

        def count(question: Mapping[str, object]) -> int:
            answer = client.request("POST", "/task_runs/count", json=dict(question))
            return int(answer.json())

        while True:
            now = (count(ours), count(ours | still_open))
            if now != seen:
                seen, since = now, time.monotonic()
            quiet = time.monotonic() - since
            if quiet > (_STUCK_SECONDS if now[1] else _QUIET_SECONDS) or time.monotonic() > deadline:
                return now[1]
            time.sleep(_POLL_SECONDS)


def _has_embedded_server() -> bool:
    """Say whether Prefect started its temporary server; asking its client would start one."""
    module = sys.modules.get(_SERVER_MODULE)
    return module is not None and any(server.running for server in module.SubprocessASGIServer._instances.values())
