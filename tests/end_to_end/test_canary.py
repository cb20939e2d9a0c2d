"""No identifier of a patient comes out of a run: canaries are planted in files, then sought in every byte it wrote.

File names: the tables that lead to the files (`LOCAL_TABLES`) have to hold their paths, and what is printed for the one
who named them may. Nothing else may: no tile, no prediction, no report, no registered model, no database of MLflow or
Prefect, no log in a file. What a user writes into a label, a subgroup column or the name of a device is his own choice
and is not sought here. The sentence of a run that fails names the file that made it fail, and Prefect keeps it.
"""

from __future__ import annotations

import base64
import gzip
import json
import sqlite3
import subprocess
import sys
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pandas as pd
import pytest
import yaml
from PIL import Image, PngImagePlugin

from tests.empty_stores import give_stores
from tests.end_to_end.canary_cases import (
    ACCENTED,
    BIRTH_DATE,
    FOLDER,
    PERSON,
    ROOT_UID,
    STUDY_DATE,
    STUDY_TIME,
    make_canary_tree,
)
from tests.end_to_end.canary_search import Search
from tests.end_to_end.pipeline_cases import environment, result_of

PERSONAL = (PERSON, ACCENTED, ROOT_UID, BIRTH_DATE, "1937-04-05", STUDY_DATE, "2019-06-07", STUDY_TIME)
LOCAL_TABLES = ("catalog.parquet", "index.parquet", "index/*", "quarantine.parquet", "tiles/*/*/rejected.parquet")
"""The tables of the workspace that hold the paths of the files: they are opened by them, or named as rejected."""
KEY = "qzsecret-key"
"""Of the pseudonyms: who has it can try out names."""


def run(pipeline: Path, home: Path, scratch: Path) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, as a user starts it; its temporary files are searched, too."""
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", "run", str(pipeline), "--json"],
        env=environment(home) | {"TMPDIR": str(scratch), "VITPIPE_KEY": KEY},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


def personal_hits(done: subprocess.CompletedProcess[str], *folders: Path) -> list[str]:
    """Search what a run wrote and printed for identifiers."""
    personal = Search(*PERSONAL, KEY)
    hits = [hit for folder in folders for hit in personal.folder(folder)]
    return hits + personal.blob(done.stdout.encode(), "stdout") + personal.blob(done.stderr.encode(), "stderr")


@pytest.mark.slow
def test_no_canary_comes_out_of_a_whole_run(tmp_path: Path, empty_stores: Path) -> None:
    pipeline = make_canary_tree(tmp_path / "case", patients=20)
    home, scratch, workspace = tmp_path / "home", tmp_path / "scratch", tmp_path / "case" / "workspace"
    home.mkdir()
    scratch.mkdir()
    give_stores(empty_stores, tmp_path / "case" / "workspace")
    done = run(pipeline, home, scratch)
    assert done.returncode == 0, done.stderr
    result = result_of(done)

    # The run was a whole one: what is searched is there.
    assert result["model_uri"] == "models:/series/1"
    run_folder = workspace / "runs" / result["run_id"]
    for name in ("predictions.parquet", "report.html", "metrics.json", "model_card.md", "model/model.safetensors"):
        assert (run_folder / name).is_file(), name
    assert any(workspace.glob("mlartifacts/**/model.safetensors"))
    assert (workspace / "mlflow.db").is_file()
    assert (workspace / ".prefect" / "prefect.db").is_file()
    quarantine = pd.read_parquet(workspace / "quarantine.parquet")
    assert {"NOT_DICOM", "ZERO_BYTES", "TRUNCATED", "UNDECODABLE"} <= set(quarantine["code"])
    assert any(workspace.glob("tiles/*/*/rejected.parquet"))

    hits = personal_hits(done, workspace, home, scratch)
    assert not hits, "\n".join(hits)

    by_path = Search(FOLDER)
    found = by_path.folder(workspace)
    # The search sees them where they have to be.
    assert any(hit.startswith("catalog.parquet/column files") for hit in found)
    leaked = [hit for hit in found if not any(fnmatch(place_of(hit), pattern) for pattern in LOCAL_TABLES)]
    leaked += by_path.folder(home) + by_path.folder(scratch)
    assert not leaked, "\n".join(leaked)


@pytest.mark.slow
def test_no_name_comes_out_of_a_run_that_fails(tmp_path: Path, empty_stores: Path) -> None:
    pipeline = make_canary_tree(tmp_path / "case", patients=2)
    values = yaml.safe_load(pipeline.read_text())
    values["source"]["max_reject_share"] = 0.0
    pipeline.write_text(yaml.safe_dump(values))
    home, scratch = tmp_path / "home", tmp_path / "scratch"
    home.mkdir()
    scratch.mkdir()
    give_stores(empty_stores, tmp_path / "case" / "workspace")
    done = run(pipeline, home, scratch)
    assert done.returncode == 3
    assert json.loads(done.stdout)["error"]["kind"] == "TooManyRejected"
    hits = personal_hits(done, tmp_path / "case" / "workspace", home, scratch)
    assert not hits, "\n".join(hits)


def place_of(hit: str) -> str:
    """Give the file of a hit, without the part of it."""
    place = hit.partition(": ")[0]
    return place.partition(".parquet/")[0] + ".parquet" if ".parquet/" in place else place


def plant(folder: Path, kind: str) -> None:
    """Hide a canary in a file, as `kind` says."""
    text = f"before {PERSON.upper()} after"
    path = folder / "file"
    picture = PngImagePlugin.PngInfo()
    picture.add_text("note", text, zip=True)
    if kind == "name":
        (folder / PERSON).touch()
    elif kind == "parquet":
        pd.DataFrame({"a": [1, 2], "b": ["", text * 100]}).to_parquet(path, compression="zstd")
    elif kind == "parquet nested":
        pd.DataFrame({"a": [[{"x": text}]]}).to_parquet(path, compression="zstd")
    elif kind == "sqlite":
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE t (a TEXT, b BLOB)")
            connection.execute("INSERT INTO t VALUES (?, ?)", ("x" * 9000, gzip.compress(text.encode())))
        connection.close()
    elif kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("inner.txt", text * 50)
    elif kind == "page":
        Image.new("L", (4, 4)).save(folder / "p.png", pnginfo=picture)
        code = base64.b64encode((folder / "p.png").read_bytes()).decode()
        (folder / "p.png").unlink()
        path.write_text(f'<img src="data:image/png;base64,{code}">')
    else:
        written = {
            "utf-8": text.encode(),
            "lower": text.lower().encode(),
            "utf-16": text.encode("utf-16-le"),
            "utf-16 odd": b"\0" + text.encode("utf-16-be"),
            "hex": text.encode().hex().encode(),
            "HEX": text.encode().hex().upper().encode(),
            "base64": base64.b64encode(text.encode()),
            "base64+1": base64.b64encode(b"1" + text.encode()),
            "base64+2": base64.b64encode(b"22" + text.encode()),
            "base64 of gzip": b'{"x": "' + base64.b64encode(gzip.compress(text.encode() * 3)) + b'"}',
            "gzip": gzip.compress(text.encode()),
            "accent": ACCENTED.encode("utf-8"),
            "accent latin": ACCENTED.upper().encode("latin-1"),
            "accent json": json.dumps(ACCENTED).encode(),
            "accent repr": ascii(ACCENTED).encode(),
        }[kind]
        path.write_bytes(b"\x01 some bytes " + written + b" more" if not kind.startswith("gzip") else written)


@pytest.mark.parametrize(
    "kind",
    [
        "name", "parquet", "parquet nested", "sqlite", "zip", "page", "utf-8", "lower", "utf-16", "utf-16 odd", "hex",
        "HEX", "base64", "base64+1", "base64+2", "base64 of gzip", "gzip", "accent", "accent latin", "accent json",
        "accent repr",
    ],
)  # fmt: skip
def test_the_search_finds_what_is_hidden(tmp_path: Path, kind: str) -> None:
    assert not Search(PERSON, ACCENTED).folder(tmp_path)
    plant(tmp_path, kind)
    assert Search(PERSON, ACCENTED).folder(tmp_path)
