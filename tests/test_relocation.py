"""A workspace that is moved or copied takes its registry along: nothing is read from or written to the old place."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from tests.registry_cases import NAME, make_config, make_manifest, make_run
from vitpipe.errors import ConfigError, TransientError
from vitpipe.infer import facts, relocation
from vitpipe.infer.relocation import repoint_artifacts

COLUMNS = relocation._COLUMNS


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with one registered model; tests copy or move copies of it."""
    from vitpipe.registry import open_registry

    root = tmp_path_factory.mktemp("pipelines") / "first" / "work's 100% space"
    root.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        _register(root, seed=1)
        assert open_registry(root).resolve(f"models:/{NAME}@champion") == f"models:/{NAME}/1"
    return root


def _register(root: Path, *, seed: int) -> None:
    from vitpipe.registry import open_registry

    manifest = make_manifest(root)
    folder = make_run(root, manifest, seed=seed, perfect=True)
    registry = open_registry(root)
    run_id = registry.start_run(NAME, folder.name, {facts.RUN_TAG: folder.name}, {})
    registry.log_results(run_id, folder, manifest)
    registry.register(run_id, folder, make_config(root), manifest)


def _places(root: Path) -> list[str]:
    with sqlite3.connect(root / "mlflow.db") as connection:
        found = [row[0] for table, column in COLUMNS for row in connection.execute(f"select {column} from {table}")]
    return [place for place in found if "mlartifacts" in place]


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_moved_workspace_loads_its_model_and_goes_on_in_its_new_place(registered: Path, tmp_path: Path) -> None:
    from vitpipe.registry import open_registry

    # The old place is one that existed, and is gone.
    old, new = registered.parent / "to be moved", tmp_path / "elsewhere" / "workspace"
    shutil.copytree(registered, old)
    open_registry(old)
    new.parent.mkdir()
    shutil.move(old, new)
    assert all(place.startswith(str(old)) for place in _places(new))

    open_registry(new).load_predictor(f"models:/{NAME}@champion")
    assert len(_places(new)) >= len(COLUMNS)
    assert all(place.startswith(f"{new}/mlartifacts/{NAME}") for place in _places(new))
    before = _files(new / "mlartifacts")
    _register(new, seed=2)
    assert len(_files(new / "mlartifacts")) > len(before)
    assert not old.exists()


def test_a_copy_does_not_touch_the_original(registered: Path, tmp_path: Path) -> None:
    from vitpipe.registry import open_registry

    copy = tmp_path / "copy"
    shutil.copytree(registered, copy)
    original = _places(registered), _files(registered / "mlartifacts")
    _register(copy, seed=2)
    assert all(place.startswith(str(copy)) for place in _places(copy))
    assert (_places(registered), _files(registered / "mlartifacts")) == original
    open_registry(registered).load_predictor(f"models:/{NAME}/1")
    assert _places(registered) == original[0]


def test_what_is_not_ours_or_lies_where_it_was_stays(registered: Path, tmp_path: Path) -> None:
    shutil.copy(registered / "mlflow.db", tmp_path)
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        for name, place in (("by hand", "/data/mlartifacts/other"), ("bucket", "s3://b/mlartifacts/bucket")):
            connection.execute(
                "insert into experiments (name, artifact_location, lifecycle_stage, workspace) values (?, ?, 'active', "
                "'default')",
                (name, place),
            )
    before = _places(tmp_path)
    # The database alone was copied; the files are where they were.
    assert repoint_artifacts(tmp_path / "mlflow.db", tmp_path / "mlartifacts") == 0
    (tmp_path / "mlartifacts" / NAME).mkdir(parents=True)
    assert repoint_artifacts(tmp_path / "mlflow.db", tmp_path / "mlartifacts") == 1
    after = _places(tmp_path)
    assert {"/data/mlartifacts/other", "s3://b/mlartifacts/bucket"} <= set(before) & set(after)
    assert repoint_artifacts(tmp_path / "mlflow.db", tmp_path / "mlartifacts") == 0


def test_a_registry_that_cannot_be_corrected_says_what_to_do(
    registered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(registered / "mlflow.db", tmp_path)
    (tmp_path / "mlartifacts" / NAME).mkdir(parents=True)
    monkeypatch.setattr(relocation, "_WAIT_SECONDS", 0.1)
    before = _places(tmp_path)
    with sqlite3.connect(tmp_path / "mlflow.db") as other:
        other.execute("begin immediate")
        with pytest.raises(TransientError, match="locked"):
            repoint_artifacts(tmp_path / "mlflow.db", tmp_path / "mlartifacts")
        other.rollback()
    replace, calls = relocation._replace, []

    def full(connection: sqlite3.Connection, table: str, column: str, folders: tuple[str, str]) -> None:
        if calls:
            raise sqlite3.OperationalError("attempt to write a readonly database")
        calls.append(table)
        replace(connection, table, column, folders)

    monkeypatch.setattr(relocation, "_replace", full)
    with pytest.raises(ConfigError, match=r"was moved here from .*make it writable"):
        repoint_artifacts(tmp_path / "mlflow.db", tmp_path / "mlartifacts")
    # All or nothing.
    assert _places(tmp_path) == before
