"""The layout holds: rooms import only what stands below them, and names that would shadow a library are not used."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted([*(ROOT / "vitpipe").rglob("*.py"), *(ROOT / "flows").rglob("*.py")])
MAX_FILE_LINES = 450
MAX_FUNCTION_LINES = 80


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def test_there_are_sources() -> None:
    assert len(SOURCES) > 30


def test_the_folder_mlflow_holds_no_python() -> None:
    assert (ROOT / "mlflow" / "README.md").is_file()
    assert not list((ROOT / "mlflow").rglob("*.py"))


def test_no_flow_file_is_named_like_a_library() -> None:
    names = {path.stem for path in (ROOT / "flows").glob("*.py")}
    assert names
    assert not names & {"mlflow", "prefect", "data", "torch", "monai", "vitpipe", "evaluate", "typing", "types"}


def test_the_real_mlflow_is_imported_at_the_root() -> None:
    code = "import importlib.util; print(importlib.util.find_spec('mlflow').origin)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "site-packages" in found.stdout


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_prefect_and_mlflow_stay_in_their_rooms(path: Path) -> None:
    names = imported(path)
    if path.parts[-2] != "flows":
        assert "prefect" not in names
    if path != ROOT / "vitpipe" / "registry.py":
        assert "mlflow" not in names


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < MAX_FUNCTION_LINES, node.name


def test_importing_vitpipe_loads_nothing_heavy() -> None:
    heavy = {"torch", "monai", "mlflow", "prefect", "timm", "rasterio", "pydicom", "pandas", "numpy", "sklearn"}
    code = "import sys, vitpipe, flows.cli; print(' '.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    names = {name.split(".")[0] for name in loaded.stdout.split()}
    assert {"vitpipe", "flows", "typer"} <= names
    assert not names & heavy


def test_what_reads_results_loads_no_torch() -> None:
    # A run that was judged before, and the origin of a report, take a second and not ten.
    code = "import sys, vitpipe.evaluate.evaluation, vitpipe.infer.dicom_results.whence; print(' '.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    names = {name.split(".")[0] for name in loaded.stdout.split()}
    assert {"vitpipe", "numpy"} <= names
    assert not names & {"torch", "timm", "monai", "sklearn", "mlflow", "prefect", "matplotlib"}


def test_help_costs_little_more_than_typer_itself(tmp_path: Path) -> None:
    bare = tmp_path / "bare.py"
    bare.write_text("import typer\napp = typer.Typer()\n@app.command()\ndef hello(name: str) -> None: ...\napp()\n")

    def cpu_seconds(arguments: list[str]) -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, *arguments, "--help"], cwd=ROOT, capture_output=True, check=True)
        return time.perf_counter() - started

    # Interleaved, and the least of each: a busy machine only adds.
    pairs = [(cpu_seconds([str(bare)]), cpu_seconds(["-m", "flows.cli"])) for _ in range(5)]
    assert min(ours for _, ours in pairs) < 1.5 * min(typer for typer, _ in pairs)
