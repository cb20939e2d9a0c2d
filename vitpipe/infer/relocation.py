"""A workspace that was moved or copied: MLflow keeps absolute places of files, and knows no way to change them.

Without this a moved workspace would not find its models, and a run would write its results into the old place.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from pathlib import Path

from vitpipe.errors import ConfigError, TransientError

_LOGGER = logging.getLogger(__name__)
_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
_WAIT_SECONDS = 60.0


def repoint_artifacts(database: Path, artifact_root: Path) -> int:
    """Let the places of files that lay below a former artifact root lie below this one, in one transaction.

    Only experiments of ours are touched: their files lie in a folder of the experiment's name in the artifact root.
    Such a place is taken for former when this root holds the experiment's folder, or the former root is gone.

    Args:
        database: SQLite file of MLflow.
        artifact_root: absolute; what the experiments of this database lie in.

    Returns:
        How many experiments lay elsewhere.

    Raises:
        ConfigError: the database cannot be written, although it must be.
        TransientError: another process writes into it all the time.
    """
    with contextlib.closing(sqlite3.connect(database, timeout=_WAIT_SECONDS)) as connection:
        moved = _moved(connection, artifact_root)
        if not moved:
            return 0
        try:
            with connection:
                for old, new in moved:
                    for table, column in _COLUMNS:
                        _replace(connection, table, column, (old, new))
        except sqlite3.OperationalError as error:
            kind = TransientError if "locked" in str(error) else ConfigError
            raise kind(
                f"{database} was moved here from {Path(moved[0][0]).parent.parent}, and the places of its files cannot "
                f"be corrected ({error}); make it writable and try again, or move it back"
            ) from error
    _LOGGER.info("the registry was moved from %s to %s: places corrected", Path(moved[0][0]).parent, artifact_root)
    return len(moved)


def _moved(connection: sqlite3.Connection, artifact_root: Path) -> list[tuple[str, str]]:
    """List (old, new) folders of the experiments that lie below a former root."""
    found = []
    for name, location in connection.execute("select name, artifact_location from experiments"):
        old, new = Path(location or ""), artifact_root / name
        ours = old.is_absolute() and old.parts[-2:] == (artifact_root.name, name)
        if ours and old != new and (new.is_dir() or not old.parent.is_dir()):
            found.append((str(old), str(new)))
    return found


def _replace(connection: sqlite3.Connection, table: str, column: str, folders: tuple[str, str]) -> None:
    old, new = folders
    # The names are those above; values are bound.
    statement = (
        f"update {table} set {column} = :new || substr({column}, length(:old) + 1) "  # noqa: S608
        f"where {column} = :old or substr({column}, 1, length(:old) + 1) = :old || '/'"
    )
    connection.execute(statement, {"old": old, "new": new})
