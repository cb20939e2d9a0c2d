"""Commands that are given what they cannot use: a typed error and a sentence that helps."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows import cli, servers
from tests.bad_input.bad_input_cases import change
from vitpipe.check import check_pipeline
from vitpipe.errors import ConfigError
from vitpipe.loading import load_config


def invoke(*arguments: str) -> tuple[int, str, str]:
    """Call the command line in this process: exit code, standard output, standard error."""
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result.exit_code, result.stdout, result.stderr


def test_init_says_what_it_cannot_use(place: Callable[[str], Path], tmp_path: Path) -> None:
    empty, junk = tmp_path / "empty", tmp_path / "junk"
    empty.mkdir()
    junk.mkdir()
    (junk / "readme.txt").write_text("words")
    out = tmp_path / "pipeline.yaml"
    for folder, code, sentence in (
        (tmp_path / "nowhere", 2, "no folder or file at {}; give the folder that holds the data"),
        (empty, 3, "{} holds no file; give the folder that holds the data"),
        (junk, 3, "none of 1 files looked at below {} is a DICOM file, a GeoTIFF or a photograph; give the folder"),
    ):
        exit_code, _, said = invoke("init", str(folder), "--out", str(out))
        assert exit_code == code
        assert sentence.format(folder) in said
        assert said.count("\n") == 1
        assert not out.exists()


def test_init_keeps_what_was_written_by_hand(originals: Path, tmp_path: Path) -> None:
    out = tmp_path / "pipeline.yaml"
    out.write_text("mine")
    data = str(originals / "images" / "photographs")
    exit_code, _, said = invoke("init", data, "--out", str(out))
    assert (exit_code, out.read_text()) == (2, "mine")
    assert "pass --force to overwrite it, or --out to write elsewhere" in said
    exit_code, _, said = invoke("init", data, "--out", str(tmp_path), "--force")
    assert exit_code == 2
    assert f"{tmp_path} is a folder; name the file to write" in said
    assert invoke("init", data, "--out", str(out), "--force", "--json")[0] == 0
    assert load_config(out).source.kind == "images"


def test_errors_are_json_for_machines(place: Callable[[str], Path]) -> None:
    pipeline = place("geotiff")
    change(pipeline, "labels.column", "zzz")
    exit_code, out, _ = invoke("check", str(pipeline), "--json")
    assert exit_code == 3
    assert json.loads(out)["stops"].startswith(str(pipeline.parent / "labels.csv"))
    change(pipeline, "sorce", {})
    exit_code, out, said = invoke("check", str(pipeline), "--json")
    assert exit_code == 2
    assert json.loads(out)["error"]["kind"] == "ConfigError"
    assert "did you mean `source`?" in said


@pytest.mark.parametrize(
    "call", [("promote", "name"), ("rollback", "name"), ("predict", "models:/name@champion", "data")]
)
def test_asking_a_registry_that_is_not_there_makes_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, call: tuple[str, ...]
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    for more in ((), ("--workspace", str(tmp_path / "other"))):
        exit_code, _, said = invoke(*call, *more)
        assert exit_code == 2
        assert said.startswith(f"ConfigError: no registry at {tmp_path / (more[1] if more else 'workspace')}")
        assert "pass `--workspace FOLDER`" in said
    assert list(tmp_path.iterdir()) == []


def test_a_port_in_use_is_said(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} of 127\.0\.0\.1 is in use.*--prefect-port") as caught:
            servers.up(servers.ServerOptions(home=tmp_path, config=None, prefect_port=port, mlflow_port=port))
    assert caught.value.exit_code == 2


def test_weights_that_are_not_there_are_said_before_anything_is_tiled(place: Callable[[str], Path]) -> None:
    pipeline = place("geotiff")
    change(pipeline, "model.weights", {"source": "file", "path": "gone.safetensors"})
    with pytest.raises(ConfigError, match=r"model\.weights: no file .*gone\.safetensors; correct `model.weights.path`"):
        check_pipeline(load_config(pipeline))
