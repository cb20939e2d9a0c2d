"""A good pipeline of each kind, to be spoilt by a test."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bad_input.bad_input_cases import COUNT
from tests.end_to_end.pipeline_cases import make_photographs, make_scenes, make_series


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good pipeline of each kind."""
    folder = tmp_path_factory.mktemp("originals")
    for kind, make in (("dicom", make_series), ("geotiff", make_scenes), ("images", make_photographs)):
        (folder / kind).mkdir()
        make(folder / kind, COUNT)
    return folder


@pytest.fixture(autouse=True)
def _fixed_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITPIPE_KEY", "bad-input")


@pytest.fixture
def place(originals: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Copies the pipeline of a kind and gives its file."""

    def copy(kind: str) -> Path:
        shutil.copytree(originals / kind, tmp_path / kind)
        return tmp_path / kind / "pipeline.yaml"

    return copy
