"""A small pipeline over folders of text files."""

from __future__ import annotations

import json
from pathlib import Path

from vitpipe.config import PipelineConfig


def make_config(root: Path, workspace: Path, **source: object) -> PipelineConfig:
    return PipelineConfig.model_validate(
        {"name": "t", "source": {"kind": "images", "path": str(root), **source}, "workspace": str(workspace)}
    )


def write(root: Path, name: str, **header: object) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"name": name, **header}))
    return path
