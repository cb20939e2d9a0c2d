"""The registry: one version a model whatever is killed, aliases that a gate moves, a pulled model that is the same."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.infer.infer_cases import BANDS, MEAN, SIZE, make_package, write_scene
from tests.registry_cases import NAME, make_config, make_manifest, make_run
from vitpipe.errors import ConfigError, ContractError, TransientError
from vitpipe.infer import facts
from vitpipe.infer.package import open_package
from vitpipe.infer.predictor import Predictor
from vitpipe.infer.tracking import tracking_store
from vitpipe.infer.versions import Journal
from vitpipe.manifest import Manifest
from vitpipe.results import ask_registry

ROOT = Path(__file__).resolve().parents[1]


class World:
    """A workspace with its registry."""

    def __init__(self, root: Path) -> None:
        from vitpipe.registry import open_registry

        self.root = root
        self.registry = open_registry(root)
        self.config = make_config(root)
        self.manifest: Manifest = make_manifest(root)

    @property
    def client(self) -> Any:
        return self.registry._client

    def start(self, folder: Path) -> str:
        return self.registry.start_run(NAME, folder.name, {facts.RUN_TAG: folder.name}, {"epochs": 3})

    def register(self, seed: int, *, perfect: bool = False, approval: str = "auto") -> Any:
        folder = self.root / "runs" / f"run-{seed}"
        if not folder.exists():
            make_run(self.root, self.manifest, seed=seed, perfect=perfect)
        config = make_config(self.root, approval=approval)
        return self.registry.register(self.start(folder), folder, config, self.manifest)

    def aliases(self) -> dict[str, str]:
        return {name: str(version) for name, version in self.client.get_registered_model(NAME).aliases.items()}

    def versions(self) -> list[str]:
        return sorted(str(version.version) for version in self.client.search_model_versions(f"name = '{NAME}'"))


@pytest.fixture(scope="module")
def store_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty store: making one takes seconds."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        tracking_store(folder).prepare()
    return folder / "mlflow.db"


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def world(tmp_path: Path, store_template: Path) -> World:
    root = tmp_path / "Doe_John"
    root.mkdir()
    shutil.copy(store_template, root / "mlflow.db")
    return World(root)


# -------------------------------------------------------------------------------------------------- the life of a model


def test_the_life_of_a_model(world: World) -> None:
    first = world.register(1)
    assert (first.version, first.verdict, first.aliases) == ("1", "promoted", ("challenger", "champion"))
    assert "no champion yet" in first.reason

    worse = world.register(2)
    assert (worse.version, worse.verdict, worse.aliases) == ("2", "refused", ("challenger",))
    assert "differs from the champion" in worse.reason

    better = world.register(3, perfect=True)
    assert (better.version, better.verdict) == ("3", "promoted")
    assert world.aliases() == {"champion": "3", "challenger": "3", "previous_champion": "1"}

    assert world.registry.challenger(NAME) == "3"
    assert world.registry.resolve(f"models:/{NAME}@previous_champion") == f"models:/{NAME}/1"
    assert "champion" in world.registry.promote(NAME, "2").aliases
    assert world.aliases()["previous_champion"] == "3"
    assert world.registry.rollback(NAME).version == "3"
    assert world.registry.rollback(NAME).version == "1"
    assert "previous_champion" not in world.aliases()
    with pytest.raises(ConfigError, match="version 1 is its first champion"):
        world.registry.rollback(NAME)
    with pytest.raises(ConfigError, match="promote version 9"):
        world.registry.promote(NAME, "9")


def test_manual_approval_waits(world: World) -> None:
    waiting = world.register(1, approval="manual")
    assert waiting.verdict == "waiting"
    assert waiting.aliases == ("challenger",)
    assert f"vitpipe promote {NAME} 1" in waiting.reason


def test_a_version_says_who_it_is(world: World) -> None:
    world.register(1)
    found = world.registry.identify(f"models:/{NAME}@champion")
    package = open_package(world.root / "runs" / "run-1" / "model")
    assert (found.title, found.sha256) == (f"{NAME}/1", package.sha256)
    assert found.facts["run_id"] == "run-1"
    assert found.facts["manifest_digest"] == package.description["digests"]["manifest"]
    assert found.facts["package_digest"] == package.digest
    assert len(found.facts["mlflow_run_id"]) == 32
    assert ask_registry(found, str(world.root)) == f"holds this very model as {NAME}/1"
    other = dataclasses.replace(found, sha256="0" * 64)
    assert ask_registry(other, str(world.root)).startswith("holds other weights")
    assert "does not know" in ask_registry(dataclasses.replace(found, version="7"), str(world.root))
    # A version by that name that somebody else put there.
    world.client.delete_model_version_tag(NAME, "1", facts.SHA_TAG)
    assert "was not registered by vitpipe" in ask_registry(found, str(world.root))


def test_a_champion_of_other_channels_is_not_compared(world: World, tmp_path: Path) -> None:
    world.register(1)
    folder = make_run(world.root, world.manifest, seed=2)
    for file in (folder / "model").iterdir():
        file.unlink()
    (folder / "model").rmdir()
    make_package(folder / "model", seed=2)
    other = Manifest(
        **{name: getattr(world.manifest, name) for name in world.manifest.__dataclass_fields__} | {"units": "m"}
    )
    refused = world.registry.register(world.start(folder), folder, world.config, other)
    assert refused.verdict == "refused"
    assert "other units: dn there, m here" in refused.reason


def test_what_the_run_and_the_version_say(world: World) -> None:
    folder = make_run(world.root, world.manifest, seed=1)
    run = world.start(folder)
    assert world.start(folder) == run
    world.registry.log_progress(run, {"train_loss": 0.7, "val_loss": None, "learning_rate": float("nan")}, step=1)
    world.registry.log_results(run, folder, world.manifest)
    version = world.registry.register(run, folder, world.config, world.manifest)
    world.registry.finish_run(run)

    found = world.client.get_run(run)
    assert found.info.status == "FINISHED"
    assert found.data.metrics == {
        "train/train_loss": 0.7,
        "test/group/balanced_accuracy": 0.5,
        "test/group/balanced_accuracy/low": 0.4,
        "test/group/accuracy/majority": 0.5,
    }
    assert found.data.params == {"epochs": "3"}
    data = found.inputs.dataset_inputs[0].dataset
    assert data.digest == world.manifest.digest
    assert json.loads(data.profile)["splits"]["test"] == {"groups": 12, "sources": 36, "tiles": 36}
    artifacts = {item.path for item in world.client.list_artifacts(run)}
    assert artifacts == {"metrics.json", "report.html", "model_card.md", "decision.json"}
    tags = world.client.get_model_version(NAME, version.version).tags
    assert tags[facts.SHA_TAG] == open_package(folder / "model").sha256
    assert tags["vitpipe.headline"] == "balanced_accuracy 0.500 (12 groups, level group)"
    assert tags["vitpipe.channels"] == ", ".join(BANDS)
    assert tags["vitpipe.manifest_digest"] == "ab" * 8


# --------------------------------------------------------------------------------------------------------------- pulled


def test_the_pulled_model_is_the_same_in_a_fresh_process(world: World, tmp_path: Path) -> None:
    world.register(1)
    tiles = np.random.default_rng(3).normal(MEAN, 300, (5, len(BANDS), SIZE, SIZE)).astype(np.float32)
    np.save(tmp_path / "tiles.npy", tiles)
    scene = tmp_path / "scene.tif"
    write_scene(scene)
    local = Predictor.load(world.root / "runs" / "run-1" / "model")
    script = f"""
import mlflow, numpy as np, pandas as pd
model = mlflow.pyfunc.load_model("models:/{NAME}@champion")
model.predict(np.load("tiles.npy")).to_parquet("array.parquet")
model.predict(pd.DataFrame({{"path": ["{scene}"]}})).to_parquet("path.parquet")
try:
    model.predict(np.zeros((1, 2, {SIZE}, {SIZE}), np.float32))
except Exception as error:
    print("refused:", error)
from pathlib import Path
from vitpipe.registry import open_registry
pulled = open_registry(Path({str(world.root)!r})).load_predictor("models:/{NAME}/1")
np.save("logits.npy", pulled.logits(np.load("tiles.npy"), np.ones((5, {SIZE}, {SIZE}), bool)))
"""
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{world.root / 'mlflow.db'}",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    child = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stderr
    assert "refused: the array has 2 channels" in child.stdout
    exact: dict[str, Any] = {"check_exact": True, "check_dtype": False}
    pd.testing.assert_frame_equal(
        pd.read_parquet(tmp_path / "array.parquet"), local.predict_tiles(tiles).tiles, **exact
    )
    expected = local.predict_path(scene).tiles.assign(input=0)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "path.parquet"), expected, **exact)
    logits = local.logits(tiles, np.ones((5, SIZE, SIZE), bool))
    assert np.load(tmp_path / "logits.npy").tobytes() == logits.tobytes()


def test_a_registered_model_leaks_no_path_and_holds_no_pickle(world: World) -> None:
    world.register(1)
    model = next((world.root / "mlartifacts").rglob("MLmodel")).parent
    files = [path for path in model.rglob("*") if path.is_file()]
    text = "".join(path.read_text(errors="replace") for path in files if path.suffix != ".safetensors")
    for secret in ("Doe", str(world.root), "/tmp/", "/home/", "/root/"):
        assert secret not in text
    known = {"", ".json", ".yaml", ".txt", ".py", ".md", ".safetensors"}
    assert {path.suffix for path in files} <= known


def test_tampered_weights_are_refused(world: World, tmp_path: Path) -> None:
    world.register(1)
    weights = next((world.root / "mlartifacts").rglob("model.safetensors"))
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    with pytest.raises(ContractError, match="not the file that was registered"):
        world.registry.load_predictor(f"models:/{NAME}@champion")


def test_weights_can_be_fetched(world: World, tmp_path: Path) -> None:
    world.register(1)
    package = world.registry.fetch(f"models:/{NAME}@champion", tmp_path / "weights")
    assert {path.name for path in package.iterdir()} == {
        "model.safetensors", "model.json", "calibration.json", "model_card.md",
    }  # fmt: skip
    for uri in (f"models:/{NAME}@none", "models:/other/1", "runs:/1/model", NAME):
        with pytest.raises(ConfigError):
            world.registry.fetch(uri, tmp_path / "nothing")


# -------------------------------------------------------------------------------------------------------------- crashes


class _Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


class _DyingClient:
    """Passes calls on, and dies after some number of writes."""

    def __init__(self, client: Any, writes: int) -> None:
        self._client = client
        self._left = writes

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)
        if name.startswith(("get_", "search_", "list_")):
            return method

        def call(*values: Any, **named: Any) -> Any:
            if self._left == 0:
                raise _Killed(name)
            self._left -= 1
            return method(*values, **named)

        return call


@pytest.fixture
def dying(world: World) -> Iterator[Callable[[int], None]]:
    client = world.registry._client

    def die_after(writes: int) -> None:
        world.registry._client = _DyingClient(client, writes) if writes >= 0 else client

    yield die_after
    world.registry._client = client


def test_a_registration_killed_at_every_step_gives_one_version(world: World, dying: Callable[[int], None]) -> None:
    world.register(1)
    folder = make_run(world.root, world.manifest, seed=2, perfect=True)
    deaths = 0
    for writes in range(40):
        dying(writes)
        try:
            done = world.register(2)
        except _Killed:
            deaths += 1
            dying(-1)
            assert world.aliases()["champion"] in ("1", "2")
            continue
        break
    dying(-1)
    assert deaths > 8
    assert (done.version, done.verdict) == ("2", "promoted")
    assert world.versions() == ["1", "2"]
    assert world.aliases() == {"champion": "2", "challenger": "2", "previous_champion": "1"}
    assert world.register(2) == dataclasses.replace(done, already=True)
    assert len(world.client.search_runs([world.registry._experiment(NAME)])) == 2
    assert folder.is_dir()


def test_a_promotion_killed_at_every_step_leaves_one_champion(world: World, dying: Callable[[int], None]) -> None:
    world.register(1)
    world.register(2)
    for writes in range(10):
        dying(writes)
        try:
            world.registry.promote(NAME, "2")
        except _Killed:
            dying(-1)
            assert world.aliases()["champion"] in ("1", "2")
            continue
        break
    assert writes > 3
    dying(-1)
    assert world.aliases() == {"champion": "2", "challenger": "2", "previous_champion": "1"}
    assert world.registry.rollback(NAME).version == "1"


def test_a_journal_takes_in_what_was_moved_by_hand() -> None:
    text = Journal(("1", "2")).write(done=True)
    assert Journal.read(text, {"champion": "5"}).champions == ("1", "2", "5")
    assert Journal.read(Journal(("1", "2")).write(done=False), {"champion": "1"}).champions == ("1", "2")
    assert Journal.read(None, {}).champions == ()
    assert Journal(("1",)).crowned("1").champions == ("1",)


# ---------------------------------------------------------------------------------------------------------------- store


def test_four_processes_open_a_fresh_store_at_once(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from vitpipe.registry import open_registry; "
        "open_registry(Path(sys.argv[1])).start_run('x', 'r', {'vitpipe.run_id': sys.argv[2]}, {}); "
        "assert 'torch' not in sys.modules"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path), f"run-{number}"],
            cwd=ROOT,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]
    for child in children:
        _, errors = child.communicate(timeout=180)
        assert child.returncode == 0, errors
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        assert connection.execute("select count(*) from runs").fetchone() == (4,)
        assert connection.execute("select count(*) from experiments where name = 'x'").fetchone() == (1,)
        place = connection.execute("select artifact_location from experiments where name = 'x'").fetchone()[0]
    assert place == str(tmp_path / "mlartifacts" / "x")
    assert not list(tmp_path.glob(".partial-*"))


def test_a_wrong_uri_is_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for uri in ("nonsense", "file:///tmp/mlruns", "ftp://user:secret@host", "sqlite:///relative.db"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(ConfigError, match="no store that can be used") as caught:
            tracking_store(tmp_path)
        assert "secret" not in str(caught.value)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(ConfigError, match="no registry is named"):
        tracking_store(None)
    (tmp_path / "mlflow.db").write_text("this is no database, but it is long enough to be looked at" * 20)
    with pytest.raises(ConfigError, match="no database of MLflow"):
        tracking_store(tmp_path).prepare()


def test_a_server_that_does_not_answer_may_be_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from vitpipe.registry import open_registry

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TransientError, match=r"http://127\.0\.0\.1:9 does not answer"):
        open_registry(None)
