"""Where the registry lies: the tracking URI checked, its SQLite file made once, its failures put into words.

Nothing here imports MLflow; `vitpipe.registry` does.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from vitpipe.atomic import file_lock, write_file
from vitpipe.errors import ConfigError, TransientError, VitpipeError, WorkspaceError
from vitpipe.infer.relocation import repoint_artifacts

URI_VARIABLE: Final = "MLFLOW_TRACKING_URI"

_DATABASE = "mlflow.db"
_ARTIFACTS = "mlartifacts"
_SERVERS = ("http", "https", "databricks")
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_FULL = "disk is full"
_ERROR_LINE = re.compile(r"[\w.]+(Error|Exception)\b")
_FIRST_OPEN = "import sys, mlflow; mlflow.MlflowClient(sys.argv[1], sys.argv[1]).search_experiments()"


@dataclass(frozen=True, slots=True)
class TrackingStore:
    """One tracking store with its model registry."""

    uri: str
    artifact_root: Path | None
    """Absolute; None where a server keeps the files."""

    @property
    def served(self) -> bool:
        """Whether an MLflow server stands before it."""
        return _scheme(self.uri) in _SERVERS

    @property
    def missing(self) -> Path | None:
        """The SQLite file, where the store is one that is not there yet."""
        file = _sqlite_file(self.uri) if _scheme(self.uri) == "sqlite" else None
        return file if file is not None and not file.is_file() else None

    @property
    def shown(self) -> str:
        """The URI without user and password."""
        return re.sub(r"//[^/@]*@", "//", self.uri)

    def error(self, what: str, status: int, text: str) -> VitpipeError:
        """Put a failure of the store into words.

        Args:
            what: what was tried: ``register ct-contrast``.
            status: the HTTP status that the failure has or would have.
            text: what the store said.
        """
        first = text.strip().partition("\n")[0][:300]
        if _FULL in text:
            return WorkspaceError(f"cannot {what}: the disk of {self.shown} is full; free some space and try again")
        if status in (429, 503) or (self.served and status >= 500):
            return TransientError(f"cannot {what}: {self.shown} does not answer ({first})")
        if "out-of-date database schema" in text:
            return ConfigError(
                f"cannot {what}: {self.shown} was made by another version of MLflow; back it up, then run "
                "`mlflow db upgrade URI`"
            )
        if status == HTTPStatus.NOT_FOUND:
            return ConfigError(
                f"cannot {what}: not found in {self.shown} ({first}); correct the name or version, or name another "
                f"registry: `--workspace`, or {URI_VARIABLE}"
            )
        return ConfigError(f"cannot {what} in {self.shown}: {first}")

    def prepare(self) -> None:
        """Make the SQLite file, if it is one and is missing.

        First opens that race break the file, and a first open that is killed leaves half of one: it is made under a
        lock, beside its place, and renamed. A child process makes it, because MLflow's migrations reconfigure the
        logging of the process that they run in. One that was moved with its workspace learns where its files lie now.

        Raises:
            ConfigError: the file is no database of MLflow, or it cannot be made.
            WorkspaceError: the folder cannot be written.
        """
        if _scheme(self.uri) != "sqlite":
            return
        database = _sqlite_file(self.uri)
        if _is_database(database):
            if self.artifact_root is not None:
                repoint_artifacts(database, self.artifact_root)
            return
        with file_lock(database.parent / f".{database.name}.lock", wait=True):
            if _is_database(database):
                return
            with write_file(database) as partial:
                child = subprocess.run(
                    [sys.executable, "-P", "-c", _FIRST_OPEN, f"sqlite:///{partial}"],
                    cwd=database.parent,
                    capture_output=True,
                    text=True,
                    check=False,
                )
                if child.returncode != 0:
                    lines = child.stderr.splitlines()
                    if any(_FULL in line for line in lines):
                        raise OSError(errno.ENOSPC, _FULL, str(database))
                    said = [line for line in lines if _ERROR_LINE.match(line)]
                    words = said[-1] if said else f"it ended with {child.returncode}"
                    raise ConfigError(f"MLflow cannot make its database {database}: {words}")


def tracking_store(workspace: Path | None) -> TrackingStore:
    """Give the store that ``MLFLOW_TRACKING_URI`` names, else ``mlflow.db`` of the workspace.

    Args:
        workspace: its root; artifacts lie in its ``mlartifacts`` unless a server keeps them.

    Raises:
        ConfigError: the URI names no store that can be used, or neither URI nor workspace is given.
    """
    uri = os.environ.get(URI_VARIABLE)
    if not uri:
        if workspace is None:
            raise ConfigError(f"no registry is named: set {URI_VARIABLE}, or name the workspace that holds one")
        uri = f"sqlite:///{workspace.resolve() / _DATABASE}"
    scheme = _scheme(uri)
    if scheme in _SERVERS:
        return TrackingStore(uri, None)
    store = TrackingStore(uri, workspace.resolve() / _ARTIFACTS if workspace else None)
    if scheme not in _DATABASES or (scheme == "sqlite" and not uri.startswith("sqlite:////")):
        raise ConfigError(
            f"{URI_VARIABLE} is {store.shown!r}, which is no store that can be used; set it to "
            "sqlite:////absolute/path/mlflow.db, to a database, or to the http address of an MLflow server"
        )
    if scheme == "sqlite":
        return TrackingStore(uri, _sqlite_file(uri).parent / _ARTIFACTS)
    return store


def _scheme(uri: str) -> str:
    return urlsplit(uri).scheme.partition("+")[0]


def _sqlite_file(uri: str) -> Path:
    return Path(uri.partition("?")[0].removeprefix("sqlite:///"))


def _is_database(path: Path) -> bool:
    if not path.is_file() or path.stat().st_size == 0:
        return False
    try:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("select version_num from alembic_version").fetchone()
    except sqlite3.DatabaseError as error:
        raise ConfigError(
            f"{path} is no database of MLflow ({error}); move it away, or set another `workspace`"
        ) from error
    return True
