"""Bad input on the command line, in processes of their own: exit codes, one sentence, JSON, no traceback."""

from __future__ import annotations

import json
import socket
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from tests.empty_stores import give_stores
from tests.end_to_end.pipeline_cases import CHAIN, make_photographs, make_scenes, run_script, vitpipe


def said(done: subprocess.CompletedProcess[str], exit_code: int) -> str:
    """Check the exit code and that there is no traceback; gives the last line of standard error."""
    assert done.returncode == exit_code, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_a_wrong_key_and_a_missing_file(tmp_path: Path) -> None:
    home = tmp_path / "home"
    pipeline = make_photographs(tmp_path, 4)
    pipeline.write_text(pipeline.read_text().replace("tiles:", "tils:"))
    done = vitpipe("check", str(pipeline), "--json", home=home, check=False)
    assert said(done, 2) == "  tils: unknown key; did you mean `tiles`?"
    assert json.loads(done.stdout)["error"]["kind"] == "ConfigError"
    done = vitpipe("check", home=home, check=False)
    assert said(done, 2) == "ConfigError: no pipeline file at pipeline.yaml; `vitpipe init FOLDER` writes one"
    assert done.stdout == ""
    # A verb or option that does not exist: the same code for a wrong call.
    assert vitpipe("chek", home=home, check=False).returncode == 2


def test_init_on_a_folder_without_anything_to_read(tmp_path: Path) -> None:
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "a.txt").write_text("words")
    done = vitpipe("init", str(tmp_path / "words"), "--json", home=tmp_path / "home", check=False)
    sentence = said(done, 3)
    assert sentence == "DataError: " + json.loads(done.stdout)["error"]["message"]
    assert "is a DICOM file, a GeoTIFF or a photograph; give the folder that holds them" in sentence
    assert not (tmp_path / "home" / "pipeline.yaml").exists()


def test_a_port_in_use_starts_nothing(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = vitpipe("up", "--home", str(home), "--prefect-port", port, "--json", home=home, check=False)
    sentence = said(done, 2)
    assert f"port {port} of 127.0.0.1 is in use" in sentence
    assert "--prefect-port" in sentence
    assert json.loads(done.stdout)["error"]["kind"] == "ConfigError"


@pytest.mark.slow
def test_a_run_on_bad_data_ends_with_a_sentence(tmp_path: Path, empty_stores: Path) -> None:
    """Prefect logs every failed task and flow: the sentence, not a wall of frames."""
    home = tmp_path / "home"
    pipeline = make_scenes(tmp_path, 6)
    give_stores(empty_stores, tmp_path / "workspace")
    labels = tmp_path / "labels.csv"
    pd.read_csv(labels).assign(label="rows").to_csv(labels, index=False)
    done = vitpipe("run", str(pipeline), "--json", home=home, check=False)
    said(done, 3)
    sentence = f"LabelError: {labels}, column `label`: the labelled sources have one class only"
    assert [line for line in done.stderr.splitlines() if line.startswith(sentence)]
    # Once as the state of the task, once as that of the flow, once for the user.
    assert done.stderr.count("the labelled sources have one class only") == 3
    assert json.loads(done.stdout)["error"]["kind"] == "LabelError"
    assert 'File "' not in done.stderr
    assert len(done.stderr.splitlines()) < 60
    # Wrong data are not tried again.
    assert "retry" not in done.stderr.lower()

    values = yaml.safe_load(pipeline.read_text())
    (tmp_path / "file").write_text("x")
    pipeline.write_text(yaml.safe_dump(values | {"workspace": "file"}, sort_keys=False))
    done = vitpipe("run", str(pipeline), home=home, check=False)
    assert f"{tmp_path / 'file'} is a file; name a folder that this user can write" in said(done, 2)


CALLS = f"""
{CHAIN}
from typer.testing import CliRunner
from flows import cli, settings

settings.apply_environment(Path(load_config(Path(sys.argv[1])).workspace))
workspace = chain(sys.argv[1])["workspace"]
answers = []
for call in json.loads(sys.argv[2]):
    result = CliRunner().invoke(cli.app, [*call, "--workspace", workspace, "--json"])
    unknown = result.exception is not None and not isinstance(result.exception, SystemExit)
    answers.append([result.exit_code, repr(result.exception) if unknown else result.stdout, result.stderr])
print(json.dumps(answers))
"""


@pytest.mark.slow
def test_a_registered_model_refuses_what_it_was_not_made_for(tmp_path: Path, empty_stores: Path) -> None:
    pipeline = make_photographs(tmp_path, 40)
    values = yaml.safe_load(pipeline.read_text())
    values["train"] |= {"epochs": 1}
    pipeline.write_text(yaml.safe_dump(values, sort_keys=False))
    grey, words, taken, out = (tmp_path / name for name in ("grey", "words", "taken", "out"))
    grey.mkdir()
    words.mkdir()
    Image.fromarray(np.zeros((40, 32), "uint8")).save(grey / "grey.png")
    (words / "a.txt").write_text("words")
    taken.write_text("x")
    uri, to = "models:/photographs@champion", ["--out", str(out)]
    cases: list[tuple[list[str], int, str]] = [
        (["predict", "photographs", str(grey), *to], 2, "write models:/NAME@champion"),
        (["predict", "models:/photo@champion", str(grey), *to], 2, "not found in"),
        (["predict", "models:/photographs/7", str(grey), *to], 2, "correct the name or version"),
        (["predict", uri, str(tmp_path / "gone"), *to], 2, f"no file or folder at {tmp_path / 'gone'}"),
        (["predict", uri, str(grey), *to], 3, "it has 1 channels (intensity), the model takes 3 (red, green, blue)"),
        (["predict", uri, str(words), *to], 3, "NOT_IMAGE"),
        (["predict", uri, str(grey), "--out", str(taken)], 2, f"{taken} is a file"),
        (["promote", "photo"], 2, "not found in"),
        (["promote", "photographs", "7"], 2, "correct the name or version"),
        (["rollback", "photo"], 2, "not found in"),
        (["rollback", "photographs"], 2, "photographs"),
    ]
    give_stores(empty_stores, tmp_path / "workspace")
    results = run_script(CALLS, str(pipeline), json.dumps([call for call, _, _ in cases]), home=tmp_path / "home")
    assert len(results) == len(cases)
    for (call, exit_code, sentence), (code, stdout, stderr) in zip(cases, results, strict=True):
        assert code == exit_code, (call, stdout, stderr)
        assert sentence in stderr, call
        assert json.loads(stdout)["error"]["message"] in stderr, call
        assert "Traceback" not in stderr, call
    assert not list(out.glob("*.parquet"))
