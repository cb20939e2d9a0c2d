"""From scenes and what lies on them to a map, by what the three commands of a new user do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import rasterio
import shapely
from numpy.typing import NDArray
from rasterio.transform import from_origin
from rio_cogeo.cogeo import cog_validate

from tests.conftest import SHARED
from tests.empty_stores import give_stores
from tests.end_to_end.pipeline_cases import CHAIN, run_script
from tests.labels.test_label_vector import write_vectors

pytestmark = pytest.mark.slow

COMMANDS = f"""
{CHAIN}
import yaml
from typer.testing import CliRunner
from flows import cli, settings

def command(*arguments):
    # In one process: each of its own would import torch and MLflow again.
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, (arguments, result.output, result.exception)

folder, changes, options = Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3:]
pipeline, workspace = folder.parent / "pipeline.yaml", folder.parent / "workspace"
command("init", folder, "--out", pipeline)
guessed = yaml.safe_load(pipeline.read_text(encoding="utf-8"))
small = {{key: {{**guessed.get(key, {{}}), **part}} for key, part in changes.items()}}
pipeline.write_text(yaml.safe_dump({{**guessed, **small}}, sort_keys=False), encoding="utf-8")
settings.apply_environment(workspace)
done = chain(pipeline)
uri = f"models:/{{guessed['register']['model']}}@champion"
source = folder.parent / guessed["source"]["path"]
command("predict", uri, source, "--out", folder.parent / "predictions", "--workspace", workspace, *options)
print(json.dumps([guessed, done]))
"""
X, Y = 400_000, 5_000_000
NAMES = ("forest", "urban", "water")
LEVELS = ((30, 90, 40), (160, 120, 110), (20, 40, 120))
"""Red, green and blue of each class."""


def write_scene(path: Path, truth: NDArray[np.uint8], seed: int) -> None:
    """Write a scene of pixels of 10 m whose colours tell the class, 30 pixels at the left being nodata."""
    values = np.random.default_rng(seed).normal(0, 8, (3, *truth.shape)) + np.array(LEVELS)[truth].transpose(2, 0, 1)
    values = values.clip(1, 255).astype(np.uint8)
    values[:, :, :30] = 0
    write_tif(path, values, seed, nodata=0)


def write_tif(path: Path, values: NDArray[np.uint8], number: int, **more: Any) -> None:
    count, height, width = values.shape
    place = from_origin(X + 50_000 * number, Y, 10, 10)
    profile = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": "uint8"}
    with rasterio.open(path, "w", crs="EPSG:32632", transform=place, **profile, **more) as raster:
        raster.write(values)


def truth_of(height: int, width: int, edge: int, seed: int) -> NDArray[np.uint8]:
    """Give squares of an edge, of a random class each."""
    cells = np.random.default_rng(seed).integers(0, 3, (height // edge + 1, width // edge + 1))
    return np.kron(cells, np.ones((edge, edge), int))[:height, :width].astype(np.uint8)


def chain(
    stores: Path, folder: Path, changes: dict[str, dict[str, Any]], *options: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run init, the stages of a run, and predict; gives the configuration that init wrote, and what was registered.

    Args:
        stores: empty databases.
        folder: of the data; `made`, `predictions` and the workspace stand beside it.
        changes: keys of the configuration, so that it takes seconds.
        options: of predict.
    """
    give_stores(stores, folder.parent / "workspace")
    guessed, done = run_script(COMMANDS, str(folder), json.dumps(changes), *options, home=folder.parent / "home")
    return guessed, done


TINY = {
    "model": {"embed_dim": 24, "depth": 1, "num_heads": 2},
    "train": {"epochs": 12, "batch_size": 8, "learning_rate": 0.01, "baseline": "none", "ema_decay": None},
    "evaluate": {"bootstrap": 200},
}


def valid_cogs(folder: Path) -> list[Path]:
    """Check every raster below a folder; gives them."""
    found = sorted(folder.rglob("*.tif"))
    assert found
    for path in found:
        valid, errors, warnings = cog_validate(path)
        assert valid, (path.name, errors)
        assert not warnings, (path.name, warnings)
    return found


def test_a_sparse_label_raster_becomes_a_map_of_every_pixel(tmp_path: Path, empty_stores: Path) -> None:
    data = tmp_path / "valley"
    data.mkdir()
    truth = truth_of(250, 250, 20, 3)
    write_scene(data / "scene.tif", truth, 1)
    # One pixel of sixteen is labelled.
    labels = np.where(np.indices(truth.shape).sum(0) % 16 == 0, truth + 1, 0).astype(np.uint8)
    write_tif(data / "training.tif", labels[None], 1, nodata=0)
    named = {"labels": {"classes": {number + 1: name for number, name in enumerate(NAMES)}}}
    guessed, _ = chain(empty_stores, data, {**TINY, **named})
    assert guessed["labels"]["classes"] == {"1": "1", "2": "2", "3": "3"}
    assert (guessed["tiles"]["size"], guessed["source"]["block_m"]) == (32, "auto")
    paths = valid_cogs(tmp_path / "predictions" / "maps")
    (classes,) = (path for path in paths if path.name == "classes.tif")
    with rasterio.open(classes) as raster:
        assert (raster.shape, raster.crs.to_epsg(), raster.bounds.left) == (truth.shape, 32632, X + 50_000)
        shown, nodata = raster.read(1), raster.nodata
    assert (shown[:, :30] == nodata).all()
    assert (shown[:, 30:] == truth[:, 30:]).mean() > 0.85


def test_polygon_cells_become_a_map_of_tiles(tmp_path: Path, empty_stores: Path) -> None:
    data = tmp_path / "cells"
    data.mkdir()
    for number in range(2):
        truth = truth_of(300, 300, 30, number)
        write_scene(data / f"scene{number}.tif", truth, number)
        left = X + 50_000 * number
        places = [(row, col) for row in range(0, 300, 30) for col in range(0, 300, 30)]
        shapes = [shapely.box(left + 10 * c, Y - 10 * (r + 30), left + 10 * (c + 30), Y - 10 * r) for r, c in places]
        write_vectors(data / f"cells{number}.gpkg", shapes, [NAMES[truth[place]] for place in places])
    guessed, done = chain(empty_stores, data, TINY, "--map")
    assert (guessed["labels"]["per"], guessed["tiles"]["size"], guessed["tiles"]["stride"]) == ("tile", 30, 15)
    run = tmp_path / "workspace" / "runs" / done["run_id"]
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["group"]["balanced_accuracy"]["estimate"] > 0.8
    valid_cogs(tmp_path / "predictions" / "maps")
    rows = pd.read_parquet(next((tmp_path / "predictions").glob("*.parquet")))
    assert len(rows) > 0


@pytest.mark.shared
def test_a_real_scene_with_a_label_raster_becomes_a_map(tmp_path: Path, empty_stores: Path) -> None:
    data = tmp_path / "landsat"
    data.mkdir()
    for name in ("LE70220491999322EDC01_stack.gtif", "training_data.gtif"):
        shutil.copy(SHARED / "pixel_scene" / name, data / name)
    names = dict(enumerate(("forest", "water", "herbaceous", "barren", "urban"), start=1))
    chain(empty_stores, data, {**TINY, "labels": {"classes": names}})
    paths = valid_cogs(tmp_path / "predictions" / "maps")
    (classes,) = (path for path in paths if path.name == "classes.tif")
    with rasterio.open(classes) as raster:
        assert raster.shape == (250, 250)
        assert raster.crs.to_epsg() == 32615
        assert set(np.unique(raster.read(1))) <= {0, 1, 2, 3, 4, raster.nodata}
