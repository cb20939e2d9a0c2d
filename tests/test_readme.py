"""The README: every command in it is run as it stands, every link leads somewhere, the pipeline in it is a real one."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from tests.conftest import ROOT
from tests.end_to_end.pipeline_cases import MODEL, environment, make_photographs
from tests.end_to_end.test_whole_chain import check_rows
from vitpipe.loading import load_config

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ("README.md", "CONTRIBUTING.md", "data/README.md", "mlflow/README.md", "benchmarks/README.md")
SCENES = 200
SMALL = {"embed_dim": 24, "depth": 1, "num_heads": 2}
"""Keys of the samples' models that make them tiny."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def commands(block: str) -> list[str]:
    """The commands of a block, without what is said beside them."""
    lines = (line.split("  #")[0].split(" #")[0].strip() for line in block.splitlines())
    return [line for line in lines if line]


def part_of(command: str) -> str:
    """Say which of the three tests below runs a command."""
    if "landsat-map" in command:
        return "map"
    program, verb, *_ = command.split()
    own = ("init", "check", "run", "up", "status", "down")
    return "new" if program == "vitpipe" and verb in own else "samples"


def small_samples(root: Path) -> None:
    """The repository's samples, with fewer scenes, epochs and weights, at the same places below another root."""
    for name, epochs in (("ct-contrast", 1), ("land-cover", 2)):
        source, folder = ROOT / "data" / "samples" / name, root / "data" / "samples" / name
        folder.mkdir(parents=True)
        values = yaml.safe_load((source / "pipeline.yaml").read_text(encoding="utf-8"))
        values["train"]["epochs"] = epochs
        values["model"] |= SMALL
        values["evaluate"]["bootstrap"] = 200
        (folder / "pipeline.yaml").write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
        labels = pd.read_csv(source / "labels.csv")
        if len(labels) > SCENES:
            labels = labels.sample(SCENES, random_state=0)
        labels.to_csv(folder / "labels.csv", index=False)
        data = source / values["source"]["path"]
        found = {path.name: path for path in data.rglob("*") if path.is_file()}
        for path in labels["path"]:
            original = found[Path(path).name]
            target = folder / original.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(original, target)


def small_map_sample(root: Path) -> None:
    """The sample of a model of pixels, with one epoch and few weights."""
    folder = root / "data" / "samples" / "landsat-map"
    shutil.copytree(ROOT / "data" / "samples" / "landsat-map", folder)
    values = yaml.safe_load((folder / "pipeline.yaml").read_text(encoding="utf-8"))
    values["train"]["epochs"] = 1
    values["model"] |= SMALL
    values["evaluate"] = {"bootstrap": 200}
    (folder / "pipeline.yaml").write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


class Shell:
    """Runs commands as a user would, in a folder that looks like the checkout."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ran: list[str] = []
        bin_folder = Path(sys.executable).parent
        self.environment = environment(root / "home") | {"VITPIPE_HOME": str(root / "servers")}
        # One database of Prefect for all the workspaces: to make one takes as long as a small stage.
        self.environment["PREFECT_HOME"] = str(root / "home" / "prefect")
        self.environment["PATH"] = f"{bin_folder}{os.pathsep}{self.environment['PATH']}"
        (root / "home").mkdir()

    def __call__(self, command: str, *, written: str | None = None, code: int = 0) -> str:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.root,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
        self.ran.append(written or command)
        return done.stdout + done.stderr


def test_the_pages_link_to_what_is_there() -> None:
    for page in PAGES:
        place = ROOT / page
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", place.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (place.parent / target).exists(), f"{page}: {target}"


def test_the_pipeline_of_the_readme_is_a_real_one(tmp_path: Path) -> None:
    block, dicom, ground = blocks("yaml")
    path = tmp_path / "pipeline.yaml"
    path.write_text(block, encoding="utf-8")
    config = load_config(path)
    sample = load_config(ROOT / "data" / "samples" / "land-cover" / "pipeline.yaml")
    assert config.source.model_dump(exclude={"path"}) == sample.source.model_dump(exclude={"path"})
    assert config.split == sample.split
    # The part about DICOM, in the rest of the same file.
    whole = yaml.safe_load(block) | yaml.safe_load(dicom)
    path.write_text(yaml.safe_dump(whole), encoding="utf-8")
    config = load_config(path)
    assert (config.source.kind, config.labels.kind, config.tiles.neighbours) == ("dicom", "dicom_seg", 1)
    path.write_text(yaml.safe_dump(yaml.safe_load(block) | yaml.safe_load(ground)), encoding="utf-8")
    config = load_config(path)
    assert (config.source.block_m, config.labels.per, config.model.decoder) == ("auto", "pixel", "dpt")


def test_the_install_without_make_is_that_of_make() -> None:
    wanted = next(block for block in blocks("bash") if "-m venv" in block)
    venv, install, _ = commands(wanted)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert venv == "python3 -m venv .venv"
    assert "-m venv $(VENV)" in makefile
    assert install.split()[1:4] == ["install", "-c", "constraints.txt"]
    assert "--constraint constraints.txt --editable" in makefile


def check_dicom_commands(shell: Shell) -> None:
    """De-identify the sample, write reports, and ask one of them where it is from."""
    sample, workspace = "data/samples/ct-contrast/dicom", "--workspace data/workspace/ct-contrast"
    said = shell(f"vitpipe deidentify {sample} deidentified --option retain-dates --key-file key")
    assert "deidentify" in said
    assert len(list((shell.root / "deidentified").rglob("*.dcm"))) == 56
    shell(f"vitpipe predict models:/ct-contrast@champion {sample} {workspace} --out results --dicom sr")
    assert len(list((shell.root / "results" / "dicom_sr").glob("*.dcm"))) == 56
    assert "holds this very model as ct-contrast/1" in shell(
        f'vitpipe whence "$(ls results/dicom_sr/*.dcm | head -1)" {workspace}'
    )


def check_all_ran(shell: Shell, part: str) -> None:
    """See that a test has run the README's commands of its part, as they stand there, and no others."""
    wanted = {command for block in blocks("bash") for command in commands(block)}
    assert {command for command in wanted if part_of(command) == part} == set(shell.ran)


def as_made_by_make(root: Path) -> None:
    """Let the folder look to `make` as if it had been installed: with the environment of this test."""
    shutil.copy(ROOT / "Makefile", root)
    for name in ("pyproject.toml", "constraints.txt"):
        (root / name).touch()
    (root / ".venv").mkdir()
    for name in ("bin", "lib", "pyvenv.cfg"):
        (root / ".venv" / name).symlink_to(Path(sys.prefix) / name)
    (root / ".venv" / ".installed").touch()


@pytest.mark.slow
@pytest.mark.skipif(sys.prefix == sys.base_prefix, reason="needs the tests to run in a virtual environment")
def test_every_command_on_the_samples_runs(tmp_path: Path) -> None:
    small_samples(tmp_path)
    as_made_by_make(tmp_path)
    shell = Shell(tmp_path)
    said = shell("make demo")
    for shown in (
        "1 of 2",
        "2 of 2",
        "report      ",
        "registered  models:/land-cover/1",
        "use it      vitpipe predict",
    ):
        assert shown in said
    # This is what runs this test.
    assert "-m pytest" in shell("make -n test", written="make test")
    shell.ran += ["python3 -m venv .venv", ".venv/bin/pip install -c constraints.txt -e ."]
    # Once more, as it stands there: nothing is done twice.
    said = shell(".venv/bin/vitpipe run data/samples/ct-contrast/pipeline.yaml")
    assert "ingest    0 done, 56 already there" in said
    assert "tile      0 done, 56 already there" in said
    assert "models:/ct-contrast/1" in said

    shell("vitpipe predict models:/land-cover@champion data/samples/land-cover/scenes"
          " --workspace data/workspace/land-cover --out predictions")  # fmt: skip
    (run,) = (tmp_path / "data" / "workspace" / "land-cover" / "runs").iterdir()
    check_rows(
        pd.read_parquet(run / "predictions.parquet"), pd.read_parquet(tmp_path / "predictions" / "predictions.parquet")
    )
    check_dicom_commands(shell)
    shell("vitpipe promote land-cover 1 --workspace data/workspace/land-cover")
    # There is one version: nothing to go back to, which is said.
    assert "cannot be rolled back" in shell("vitpipe rollback land-cover --workspace data/workspace/land-cover", code=2)
    check_all_ran(shell, "samples")
    (script,) = blocks("python")
    (tmp_path / "use.py").write_text(script, encoding="utf-8")
    assert "predicted" in shell(f"{sys.executable} use.py")


@pytest.mark.slow
def test_every_command_that_maps_runs(tmp_path: Path) -> None:
    """Learn a class for every pixel of the sample, and map it."""
    small_map_sample(tmp_path)
    shell = Shell(tmp_path)
    assert "models:/landsat-map/1" in shell("vitpipe run data/samples/landsat-map")
    shell("vitpipe predict models:/landsat-map@champion data/samples/landsat-map/scenes"
          " --workspace data/workspace/landsat-map --out map --tta d4")  # fmt: skip
    (folder,) = (path.parent for path in (tmp_path / "map" / "maps").rglob("classes.tif"))
    assert {"classes.qml", "entropy.tif", "item.json", "probabilities.tif"} <= {path.name for path in folder.iterdir()}
    check_all_ran(shell, "map")


@pytest.mark.slow
def test_every_command_on_data_of_ones_own_and_the_servers_runs(tmp_path: Path) -> None:
    for port in (4200, 5000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                pytest.skip(f"port {port}, which `vitpipe up` takes, is in use")
    shell = Shell(tmp_path)
    make_photographs(tmp_path / "path" / "to", 40)
    (tmp_path / "path" / "to" / "photographs").rename(tmp_path / "path" / "to" / "data")
    (tmp_path / "path" / "to" / "pipeline.yaml").unlink()
    assert "the folder names (2 classes: columns, rows)" in shell("vitpipe init path/to/data")
    written = yaml.safe_load((tmp_path / "pipeline.yaml").read_text(encoding="utf-8"))
    assert written["labels"] == {"kind": "folder"}
    # What `init` wrote is run; only its size is that of a test.
    written |= {"train": written["train"] | {"epochs": 1}, "model": MODEL, "evaluate": {"bootstrap": 200}}
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(written), encoding="utf-8")
    assert "40" in shell("vitpipe check")
    shell("vitpipe run")
    try:
        said = shell("vitpipe up --config pipeline.yaml")
        assert "http://127.0.0.1:4200" in said
        assert "up" in shell("vitpipe status")
    finally:
        shell("vitpipe down")
    check_all_ran(shell, "new")
