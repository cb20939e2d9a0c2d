"""Pipelines of bad input: how they are changed, run up to the split, and looked at."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml

from vitpipe import stages
from vitpipe.errors import VitpipeError
from vitpipe.loading import load_config
from vitpipe.records import StageSummary

KINDS = ("dicom", "geotiff", "images")
DATA = {"dicom": "dicom", "geotiff": "scenes", "images": "photographs"}
COUNT = 12
Damage = Callable[[bytes], bytes]


def change(pipeline: Path, key: str, value: object) -> None:
    """Set (or, with None, remove) one key of the pipeline file, such as ``labels.column``."""
    values = yaml.safe_load(pipeline.read_text())
    *above, last = key.split(".")
    inner = values
    for name in above:
        inner = inner[name]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    pipeline.write_text(yaml.safe_dump(values, sort_keys=False))


def relabel(pipeline: Path, edit: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    """Rewrite the label table."""
    table = pipeline.parent / "labels.csv"
    edit(pd.read_csv(table)).to_csv(table, index=False)


def files_of(pipeline: Path) -> list[Path]:
    """The data files, sorted."""
    kind = yaml.safe_load(pipeline.read_text())["source"]["kind"]
    return sorted(path for path in (pipeline.parent / DATA[kind]).rglob("*") if path.is_file())


def chain(pipeline: Path) -> list[StageSummary]:
    """Run ingest, tiling, labels and splits as the flow does."""
    config = load_config(pipeline)
    for batch in stages.plan_batches(config):
        stages.index_batch(config, batch)
    summaries = [stages.build_catalog(config)]
    shards = stages.plan_shards(config)
    summaries += [stages.tile_shard(config, shard) for shard in shards]
    summaries.append(stages.check_tiles(config, shards))
    return [*summaries, stages.prepare_run(config).summary]


def refusal(pipeline: Path, kind: type[VitpipeError], exit_code: int) -> str:
    """Run the chain, which must end with this error; gives its sentence."""
    with pytest.raises(kind) as caught:
        chain(pipeline)
    assert caught.value.exit_code == exit_code
    return str(caught.value)


def quarantine(pipeline: Path) -> dict[str, tuple[str, str]]:
    """File name to code and reason."""
    table = pd.read_parquet(pipeline.parent / "workspace" / "quarantine.parquet")
    return {
        Path(uri).name: (code, reason)
        for uri, code, reason in zip(table["uri"], table["code"], table["reason"], strict=True)
    }


def contents(workspace: Path) -> dict[str, str]:
    """Every file below the workspace, and a digest of its bytes."""
    return {
        path.relative_to(workspace).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(workspace.rglob("*"))
        if path.is_file()
    }
