"""Vector files as labels of a small scene."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.warp import transform as warp_points

from tests.labels.ground_cases import UTM, Run, X, Y, make_config
from vitpipe.pixel_targets import IGNORE
from vitpipe.records import Task

H, W = 60, 80


def box(row: float, col: float, height: float, width: float) -> shapely.Polygon:
    """A rectangle of pixels of 10 m of the scene at X, Y."""
    return shapely.box(X + 10 * col, Y - 10 * (row + height), X + 10 * (col + width), Y - 10 * row)


def write_vectors(path: Path, shapes: list[Any], names: list[Any], crs: str | None = UTM, **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = more.pop("geometry_type", None) or shapes[0].geom_type
    geometries = np.array([shapely.to_wkb(shape) for shape in shapes], object)
    pyogrio.raw.write(
        path, geometries, [np.array(names, object)], ["kind"], crs=crs, geometry_type=kind, **more,
    )  # fmt: skip
    return path


def run_of(tmp_path: Path, path: Path, tiles: dict[str, object] | None = None, **labels: object) -> Run:
    values: dict[str, object] = {"kind": "vector", "path": str(path), "column": "kind", "per": "pixel", **labels}
    return Run(make_config(tmp_path, values, **(tiles or {})))


def as_values(run: Run) -> dict[str, object]:
    assert run.config.labels is not None
    return run.config.labels.model_dump(mode="json")


def painted(run: Run, name: str = "a") -> NDArray[Any]:
    labels, found = run.targets()
    assert labels.task is Task.SEGMENTATION
    return found[name]


def moved(shape: shapely.Geometry, crs: str) -> shapely.Geometry:
    def move(points: NDArray[Any]) -> NDArray[Any]:
        return np.array(warp_points(CRS.from_string(UTM), CRS.from_string(crs), *points.T)).T

    return shapely.transform(shape, move)


def at_centres(shapes: list[shapely.Geometry], crs: str, scene: tuple[str, Affine, int]) -> NDArray[np.uint8]:
    """The targets of a square scene by the place of each pixel's centre; the first shape wins."""
    of_scene, transform, size = scene
    cols, rows = np.meshgrid(np.arange(size) + 0.5, np.arange(size) + 0.5)
    x, y = transform @ (cols.ravel(), rows.ravel())
    x, y = warp_points(CRS.from_string(of_scene), CRS.from_string(crs), x, y)
    found = np.full(size * size, IGNORE, np.uint8)
    for place in reversed(range(len(shapes))):
        found[shapely.contains_xy(shapes[place], x, y)] = place
    return found.reshape(size, size)
