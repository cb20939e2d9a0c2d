"""The model package: a folder of safetensors and JSON that holds all it takes to predict.

::

    model.safetensors   weights
    model.json          architecture, preprocessing, channels, units, classes, tiling recipe, digests, licence
    calibration.json    temperature, conformal threshold, abstain rule
    model_card.md       for people; optional

The registry stores this folder as it is. Nothing in it is pickled, and no code in it is run by `Predictor.load`.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from vitpipe import __version__
from vitpipe.digest import digest_bytes, digest_of_digests
from vitpipe.errors import ContractError

WEIGHTS_FILE: Final = "model.safetensors"
MODEL_FILE: Final = "model.json"
CALIBRATION_FILE: Final = "calibration.json"
CARD_FILE: Final = "model_card.md"
PACKAGE_FILES: Final = (WEIGHTS_FILE, MODEL_FILE, CALIBRATION_FILE)

_PINNED: Final = ("torch", "timm", "numpy", "pandas", "safetensors")

MODEL_CODE: Final = '''"""Serves a vitpipe package; the code is the installed `vitpipe`, this file only names it."""

from vitpipe.registry import serve_package

serve_package()
'''


@dataclass(frozen=True, slots=True)
class Package:
    """What a package folder says of itself."""

    folder: Path
    digest: str
    """Of weights, description and calibration; 16 hexadecimal characters. Equal packages are one registered version."""
    sha256: str
    """Of model.safetensors; 64 hexadecimal characters."""
    description: Mapping[str, Any]
    """model.json."""


def open_package(folder: Path, *, sha256: str | None = None) -> Package:
    """Read what a package says of itself, and check that it is whole.

    Args:
        folder: the package.
        sha256: what the registry says of model.safetensors; another file is refused.

    Raises:
        ContractError: a file is missing or unreadable, or the weights are not those that were registered.
    """
    missing = [name for name in PACKAGE_FILES if not (folder / name).is_file()]
    if missing:
        raise ContractError(
            f"{folder} is no model package: {', '.join(missing)} not found; a package holds {', '.join(PACKAGE_FILES)}"
        )
    with (folder / WEIGHTS_FILE).open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if sha256 is not None and found != sha256:
        raise ContractError(
            f"{folder / WEIGHTS_FILE} is not the file that was registered: its SHA-256 is {found}, the registry says "
            f"{sha256}; do not use it, and register the model again from its run folder"
        )
    description = _read_object(folder / MODEL_FILE)
    _read_object(folder / CALIBRATION_FILE)
    texts = [digest_bytes((folder / name).read_bytes()) for name in (MODEL_FILE, CALIBRATION_FILE)]
    return Package(folder=folder, digest=digest_of_digests([found, *texts]), sha256=found, description=description)


def stage_package(run_folder: Path, into: Path) -> tuple[Path, Path]:
    """Copy the package of a run, and the code that serves it, into a folder whose path says nothing.

    A registered model keeps the paths that it was made from; a run folder's may carry a name.

    Returns:
        The package folder and the model code file.
    """
    package = into / "package"
    package.mkdir(parents=True)
    for name in PACKAGE_FILES:
        shutil.copyfile(run_folder / "model" / name, package / name)
    if (run_folder / CARD_FILE).is_file():
        shutil.copyfile(run_folder / CARD_FILE, package / CARD_FILE)
    code = into / "vitpipe_model.py"
    code.write_text(MODEL_CODE, encoding="utf-8")
    return package, code


def neutralise(mlmodel: Path) -> None:
    """Replace the absolute paths that MLflow leaves in an MLmodel file by paths inside the model."""
    text = yaml.safe_load(mlmodel.read_text(encoding="utf-8"))
    flavour = text["flavors"]["python_function"]
    for artifact in flavour.get("artifacts", {}).values():
        artifact["uri"] = artifact["path"]
    flavour["model_code_path"] = Path(flavour["model_code_path"]).name
    mlmodel.write_text(yaml.safe_dump(text, sort_keys=True), encoding="utf-8")


def requirements() -> list[str]:
    """Name what a server of the model must install: this version of vitpipe, and the libraries that compute."""
    return [f"vitpipe=={__version__}", *(f"{name}=={importlib.metadata.version(name)}" for name in _PINNED)]


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ContractError(f"{path} is not JSON ({error}); register the model again from its run folder") from error
    if not isinstance(value, dict):
        raise ContractError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value
