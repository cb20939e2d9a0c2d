"""``vitpipe up``, ``down`` and ``status``: Prefect server, MLflow server and a worker on this machine's loopback."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import zoneinfo
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from flows import settings
from flows.deployments import DEPLOYMENTS, POOL, Deployment, Request
from flows.processes import ProcessKey, children, is_alive, start_detached, stop
from flows.static_pages import forbid_foreign_requests
from vitpipe.atomic import file_lock, workspace_errors, write_json
from vitpipe.config import PipelineConfig
from vitpipe.errors import ConfigError, TransientError, WorkspaceError
from vitpipe.records import Json

PREFECT, MLFLOW, WORKER = "prefect", "mlflow", "worker"
_PARTS = (PREFECT, MLFLOW, WORKER)

_STATE_VERSION = 1
_POLL_SECONDS = 0.25
_PROBE_SECONDS = 5.0
_SERVER_GRACE_SECONDS = 15.0
# A training child that is asked to end writes a checkpoint first.
_WORKER_GRACE_SECONDS = 60.0
_REPORT_SECONDS = 5.0
_LOG_LINES = 15


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """What ``vitpipe up`` is told."""

    home: Path
    """The servers' databases, logs and state lie in its folder ``.vitpipe``."""
    config: PipelineConfig | None = None
    """Default of the deployments, with absolute paths. Without it the nightly schedule is made, but not active."""
    prefect_port: int = 4200
    mlflow_port: int = 5000
    timezone: str = "UTC"
    """IANA name; the time zone of the nightly schedule."""
    zombie_seconds: float = 3.0 * settings.HEARTBEAT_SECONDS
    """A run that gives no sign of life for so long is crashed."""
    start_timeout_seconds: float = 240.0
    """A first start makes two databases."""
    deployments: tuple[Deployment, ...] = DEPLOYMENTS


@dataclass(frozen=True, slots=True)
class Part:
    """One of the three: a server or the worker."""

    name: str
    state: str
    """``up``, ``starting`` (it runs, but does not answer yet) or ``down``."""
    pid: int | None
    url: str | None
    log: str


@dataclass(frozen=True, slots=True)
class ServerState:
    """What runs, where."""

    home: str
    parts: tuple[Part, ...]
    deployments: tuple[str, ...] = ()
    """``flow/deployment``."""
    notes: tuple[str, ...] = ()
    """Sentences for the user."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """What another command or program needs to talk to these servers."""

    @property
    def is_up(self) -> bool:
        """Every part is up."""
        return bool(self.parts) and all(part.state == "up" for part in self.parts)

    @property
    def urls(self) -> tuple[str, ...]:
        """The pages: Prefect's, MLflow's."""
        return tuple(part.url for part in self.parts if part.url)

    def to_json(self) -> dict[str, Json]:
        """Give a JSON form, for ``--json``."""
        return {
            "home": self.home,
            "is_up": self.is_up,
            "parts": [dict(asdict(part)) for part in self.parts],
            "deployments": list(self.deployments),
            "notes": list(self.notes),
            "environment": dict(self.environment),
        }


@dataclass(frozen=True, slots=True)
class _Record:
    """The state file: what was started, so that another process can stop it."""

    prefect_port: int
    mlflow_port: int
    keys: Mapping[str, ProcessKey] = field(default_factory=dict)
    deployments: tuple[str, ...] = ()


def up(options: ServerOptions, on_progress: Callable[[str], None] = lambda _: None) -> ServerState:
    """Start what does not run yet: both servers, the deployments, the worker. Returns when all of it answers.

    Args:
        options: where and how.
        on_progress: takes a sentence at a time.

    Raises:
        ConfigError: a port is in use, the time zone is not known, or other ports are asked for than those in use.
        TransientError: a part ended or did not answer in time; what was started is stopped again.
    """
    _check_timezone(options.timezone)
    with _lock(options.home):
        record = _read_record(options.home)
        alive = {name: key for name, key in record.keys.items() if is_alive(key)} if record else {}
        if record and alive:
            _check_ports_kept(options, record)
            all_up = len(alive) == len(_PARTS) and (now := status(options.home)).is_up
            if all_up and options.config is None:
                return replace(now, notes=("The servers are up already; nothing was started.",))
        for name, port in ((PREFECT, options.prefect_port), (MLFLOW, options.mlflow_port)):
            if name not in alive:
                _check_port_free(port, option=f"--{name}-port")
        started: dict[str, ProcessKey] = {}
        done = False
        try:
            deployments = _start(options, alive, started, on_progress)
            done = True
        finally:
            if not done:
                _stop_parts(started, on_progress)
                _write_record(options, alive, record.deployments if record else ())
        _write_record(options, alive | started, deployments)
    notes: tuple[str, ...] = ()
    if len(alive) == len(_PARTS):
        notes = ("The servers were up already; the deployments run the given pipeline now.",)
    elif options.config is None:
        notes = ("No pipeline was given: the forms start empty and the nightly schedule is not active.",)
    return replace(status(options.home), notes=notes)


def down(home: Path, on_progress: Callable[[str], None] = lambda _: None) -> ServerState:
    """Stop the worker with its runs, then the servers; what is down already stays so.

    A run that is stopped so is crashed, and goes on where it was when it is run again.
    """
    with _lock(home):
        record = _read_record(home)
        if record is not None:
            _stop_parts(record.keys, on_progress, record.prefect_port)
            write_json(_state_file(home), _to_json(replace(record, keys={})))
    return status(home)


def status(home: Path) -> ServerState:
    """Look at each part: does its process run, does it answer."""
    record = _read_record(home)
    if record is None:
        return ServerState(home=str(home), parts=tuple(_part(home, name, "down", None, None) for name in _PARTS))
    urls = {PREFECT: settings.prefect_url(record.prefect_port), MLFLOW: settings.prefect_url(record.mlflow_port)}
    parts = []
    for name in _PARTS:
        key = record.keys.get(name)
        if key is None or not is_alive(key):
            parts.append(_part(home, name, "down", None, urls.get(name)))
        else:
            state = "up" if _answers(name, record.prefect_port, record.mlflow_port) else "starting"
            parts.append(_part(home, name, state, key.pid, urls.get(name)))
    some = any(part.state != "down" for part in parts)
    return ServerState(
        home=str(home),
        parts=tuple(parts),
        deployments=record.deployments if some else (),
        environment=_public_environment(record.prefect_port, record.mlflow_port) if some else {},
    )


def _start(
    options: ServerOptions,
    alive: Mapping[str, ProcessKey],
    started: dict[str, ProcessKey],
    on_progress: Callable[[str], None],
) -> tuple[str, ...]:
    """Start the missing parts; each lands in `started` at once, so that a failure can stop it."""
    home = options.home
    root = settings.state_folder(home)
    server = settings.child_environment(settings.server_environment(home, prefect_port=options.prefect_port))
    client = settings.child_environment(
        settings.client_environment(home, prefect_port=options.prefect_port, mlflow_port=options.mlflow_port)
    )
    with workspace_errors(root):
        (root / "prefect").mkdir(parents=True, exist_ok=True)
        (root / "mlflow" / "artifacts").mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + options.start_timeout_seconds

    def begin(name: str, command: list[str], environment: Mapping[str, str]) -> None:
        if name not in alive:
            on_progress(f"Starting {name} ...")
            started[name] = start_detached(command, environment=environment, folder=root, log=_log(home, name))
            _write_record(options, {**alive, **started}, ())

    # Both at once: each spends most of its start importing and making its database.
    begin(PREFECT, _prefect_command(options.prefect_port), server)
    begin(MLFLOW, _mlflow_command(root, options.mlflow_port), server)
    for name in (PREFECT, MLFLOW):
        _wait(options, name, {**alive, **started}[name], deadline)
        on_progress(f"{name} answers.")
    if not forbid_foreign_requests(root / "prefect-ui", options.prefect_port):
        on_progress("Prefect's pages were not found where expected: in the browser they may ask other servers, too.")
    on_progress("Deploying the flows ...")
    names = _deploy(options, client, deadline)
    if WORKER not in alive:
        _forget_dead_workers(options.prefect_port)
    begin(WORKER, [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process"], client)
    _wait(options, WORKER, {**alive, **started}[WORKER], deadline)
    on_progress(f"{WORKER} answers.")
    return names


def _prefect_command(port: int) -> list[str]:
    return [
        *(sys.executable, "-m", "prefect", "server", "start"),
        *("--host", settings.LOOPBACK, "--port", str(port), "--log-level", "WARNING"),
    ]


def _mlflow_command(root: Path, port: int) -> list[str]:
    return [
        *(sys.executable, "-m", "mlflow", "server", "--host", settings.LOOPBACK, "--port", str(port)),
        *("--workers", "1", "--serve-artifacts"),
        *("--backend-store-uri", f"sqlite:///{root / 'mlflow' / 'mlflow.db'}"),
        *("--artifacts-destination", str(root / "mlflow" / "artifacts")),
    ]


def _deploy(options: ServerOptions, environment: Mapping[str, str], deadline: float) -> tuple[str, ...]:
    """Put the deployments on the server, in a child whose settings are right before Prefect is imported."""
    config = options.config.model_dump(mode="json", by_alias=True) if options.config else None
    request = Request(options.deployments, config, options.timezone, options.zombie_seconds)
    log = _log(options.home, "deploy")
    with log.open("wb") as errors:
        try:
            answer = subprocess.run(
                [sys.executable, "-m", "flows.deployments", request.to_json()],
                env=dict(environment),
                cwd=settings.state_folder(options.home),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                timeout=max(1.0, deadline - time.monotonic()),
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise TransientError(_failure(options, "deploy", "did not end in time")) from error
    if answer.returncode:
        raise TransientError(_failure(options, "deploy", f"ended with status {answer.returncode}"))
    # A flow's module may print while it is imported; our line is the last one.
    return tuple(json.loads(answer.stdout.decode().strip().splitlines()[-1]))


def _wait(options: ServerOptions, name: str, key: ProcessKey, deadline: float) -> None:
    while not _answers(name, options.prefect_port, options.mlflow_port):
        if not is_alive(key):
            raise TransientError(_failure(options, name, "ended while it started"))
        if time.monotonic() > deadline:
            raise TransientError(
                _failure(options, name, f"did not answer within {options.start_timeout_seconds:g} seconds")
            )
        time.sleep(_POLL_SECONDS)
    # Another program may have taken the port, and answer in its place.
    if not is_alive(key):
        raise TransientError(_failure(options, name, "ended while it started"))


def _failure(options: ServerOptions, name: str, what: str) -> str:
    log = _log(options.home, name)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:] if log.exists() else []
    shown = "\n".join(f"  {line}" for line in lines) or "  (it wrote nothing)"
    return f"{name} {what}; what was started is stopped again. The end of {log}:\n{shown}"


def _answers(name: str, prefect_port: int, mlflow_port: int) -> bool:
    """Ask a part whether it is well."""
    api = f"{settings.prefect_url(prefect_port)}/api"
    if name == PREFECT:
        return _request(f"{api}/health") == b"true"
    if name == MLFLOW:
        return _request(f"{settings.prefect_url(mlflow_port)}/health") == b"OK"
    answer = _request(f"{api}/work_pools/{POOL}/workers/filter", body=b"{}")
    workers = json.loads(answer) if answer else []
    return any(worker.get("status") == "ONLINE" for worker in workers)


def _forget_dead_workers(prefect_port: int) -> None:
    """Remove the workers of earlier starts: the server takes one that was killed for online for a while."""
    workers = f"{settings.prefect_url(prefect_port)}/api/work_pools/{POOL}/workers"
    for worker in json.loads(_request(f"{workers}/filter", body=b"{}") or b"[]"):
        _request(f"{workers}/{urllib.parse.quote(worker['name'])}", method="DELETE")


def _request(url: str, body: bytes | None = None, method: str | None = None) -> bytes | None:
    """Give what a URL on this machine answers, without any proxy; None if it does not."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, data=body, headers=headers, method=method)  # noqa: S310 - ours, on loopback
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=_PROBE_SECONDS) as response:
            content: bytes = response.read()
            return content
    except (urllib.error.URLError, OSError, ValueError):
        return None


def _stop_parts(
    keys: Mapping[str, ProcessKey], on_progress: Callable[[str], None], prefect_port: int | None = None
) -> None:
    """Stop the worker first, so that its runs can still tell the server how they ended."""
    for name in reversed(_PARTS):
        if (key := keys.get(name)) is None or not is_alive(key):
            continue
        on_progress(f"Stopping {name} ...")
        if name == WORKER:
            # A worker that is asked to end waits for its runs, for hours; and it is the worker that tells the server
            # how a run ended. So the runs are stopped while it lives.
            stop(*children(key), grace_seconds=_WORKER_GRACE_SECONDS)
            if prefect_port is not None:
                _wait_until_reported(prefect_port)
        stop(key, grace_seconds=_SERVER_GRACE_SECONDS)


def _wait_until_reported(prefect_port: int) -> None:
    """Give the worker some seconds to tell the server how the runs ended that were stopped."""
    question = {
        "work_pools": {"name": {"any_": [POOL]}},
        "flow_runs": {"state": {"type": {"any_": ["RUNNING", "CANCELLING"]}}},
    }
    url = f"{settings.prefect_url(prefect_port)}/api/flow_runs/count"
    deadline = time.monotonic() + _REPORT_SECONDS
    while time.monotonic() < deadline and _request(url, body=json.dumps(question).encode()) != b"0":
        time.sleep(_POLL_SECONDS)


def _check_port_free(port: int, *, option: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As the servers do: a port whose last connections linger is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.LOOPBACK, port))
        except OSError as error:
            raise ConfigError(
                f"port {port} of {settings.LOOPBACK} is in use ({error.strerror}); "
                f"stop what uses it, or pass {option} with another port"
            ) from error


def _check_ports_kept(options: ServerOptions, record: _Record) -> None:
    if (options.prefect_port, options.mlflow_port) != (record.prefect_port, record.mlflow_port):
        raise ConfigError(
            f"servers of {options.home} run on ports {record.prefect_port} (Prefect) and "
            f"{record.mlflow_port} (MLflow); `vitpipe down` first, or pass --prefect-port and --mlflow-port with these"
        )


def _check_timezone(name: str) -> None:
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError) as error:
        raise ConfigError(f"--timezone {name!r} is not known; expected a name such as Europe/Berlin or UTC") from error


def _public_environment(prefect_port: int, mlflow_port: int) -> dict[str, str]:
    return {
        "PREFECT_API_URL": f"{settings.prefect_url(prefect_port)}/api",
        "MLFLOW_TRACKING_URI": settings.prefect_url(mlflow_port),
    }


def _part(home: Path, name: str, state: str, pid: int | None, url: str | None) -> Part:
    return Part(name=name, state=state, pid=pid, url=url, log=str(_log(home, name)))


def _log(home: Path, name: str) -> Path:
    return settings.state_folder(home) / f"{name}.log"


def _state_file(home: Path) -> Path:
    return settings.state_folder(home) / "servers.json"


@contextlib.contextmanager
def _lock(home: Path) -> Iterator[None]:
    try:
        with file_lock(settings.state_folder(home) / "servers.lock", wait=False):
            yield
    except WorkspaceError as error:
        if isinstance(error.__cause__, BlockingIOError):
            raise ConfigError(f"another `vitpipe up` or `down` is at work in {home}; wait for it to end") from error
        raise


def _write_record(options: ServerOptions, keys: Mapping[str, ProcessKey], deployments: tuple[str, ...]) -> None:
    record = _Record(options.prefect_port, options.mlflow_port, keys, deployments)
    write_json(_state_file(options.home), _to_json(record))


def _to_json(record: _Record) -> dict[str, Json]:
    return {
        "version": _STATE_VERSION,
        "prefect_port": record.prefect_port,
        "mlflow_port": record.mlflow_port,
        "processes": {name: {"pid": key.pid, "started": key.started} for name, key in record.keys.items()},
        "deployments": list(record.deployments),
    }


def _read_record(home: Path) -> _Record | None:
    path = _state_file(home)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON; stop the servers by hand and remove it") from error
    if not isinstance(values, dict) or values.get("version") != _STATE_VERSION:
        raise ConfigError(f"{path} is of another version of vitpipe; stop the servers with that one, or remove it")
    return _Record(
        prefect_port=values["prefect_port"],
        mlflow_port=values["mlflow_port"],
        keys={name: ProcessKey(**key) for name, key in values["processes"].items()},
        deployments=tuple(values["deployments"]),
    )
