"""Targets of every pixel where labels are drawn on patients: by position, turned, resampled, in volumes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.domains.dicom_cases import save
from tests.labels.dicom_label_cases import drawn, make_series, read_rtstruct, rtstruct
from tests.test_tile_labels import PATIENTS, cohort, made, make_config
from vitpipe.config import DicomSegLabels, RasterLabels, TileRecipe, VectorLabels
from vitpipe.errors import ConfigError
from vitpipe.ingest import read_catalog
from vitpipe.loading import load_config, parse_config
from vitpipe.manifest import build_manifest
from vitpipe.pixel_targets import IGNORE, PixelTargets
from vitpipe.records import Task, Window
from vitpipe.store import TileStore
from vitpipe.tile_asking import open_labels
from vitpipe.tile_places import TilePlaces
from vitpipe.tiling import tile_digest

__all__ = ["cohort"]

Cohort = tuple[Path, NDArray[np.bool_]]


@pytest.mark.parametrize(
    "tiles",
    [
        {"stride": 4},
        {"depth": 2, "stride_depth": 1},
        {"cut": "whole", "size": 24},
        {"cut": "whole", "size": 16, "depth": 4},
        {"orientation": "PIR", "depth": 2},
        {"spacing_mm": 0.4},
    ],
)
def test_segments_are_the_targets_of_the_pixels_that_a_tile_shows(
    cohort: Cohort,
    tmp_path: Path,
    tiles: dict[str, object],
) -> None:
    root, masks = cohort
    config = make_config(root, tiles, per="pixel", priority=["part 2"])
    config = config.model_copy(update={"workspace": str(tmp_path / "w")})
    workspace, labels, table = made(config)
    manifest = build_manifest(config, workspace, labels)
    assert manifest.task is Task.SEGMENTATION
    assert manifest.classes == ("background", "part 1", "part 2")
    store = TileStore(workspace.tiles(tile_digest(config)))
    assert manifest.targets_folder is not None
    found = PixelTargets(manifest.targets_folder, manifest.task, manifest.tile_shape[1:]).gather(manifest.table)
    order = table.set_index("tile_id")["patient"]
    sources = {source.source_id: source for source in read_catalog(workspace)}
    several = 0
    for row, tile in zip(manifest.table.to_dict("records"), found, strict=True):
        places = TilePlaces.of(sources[row["source_id"]].grid, config.tiles, uri="u")
        voxels = places.voxels(Window(*(int(row[name]) for name in Window._fields)))
        part = masks[order[row["tile_id"]]][np.ix_(*voxels.of_source())].transpose((*voxels.axes, 3))
        expected = np.full(part.shape[:3], 0)
        expected[part[..., 0]] = 1
        expected[part[..., 1]] = 2
        valid = store.mask(row["shard_id"], row["shard_row"])
        whole = np.full(tile.shape if tile.ndim == 3 else (1, *tile.shape), IGNORE)
        whole[: part.shape[0], : part.shape[1], : part.shape[2]] = expected
        whole[~valid.reshape(whole.shape)] = IGNORE
        assert (tile.reshape(whole.shape) == whole).all()
        several += len(np.unique(tile)) > 1
    assert several >= PATIENTS


def test_contours_are_targets_too(tmp_path: Path) -> None:
    _, sources = make_series(tmp_path / "ct")
    square = np.array([[0, 0, 0], [7, 0, 0], [7, 7, 0], [0, 7, 0]])
    path = save(rtstruct({"A": [square]}), tmp_path / "rs" / "a")
    labels = read_rtstruct(path, sources, per="pixel", background=None)
    assert labels.task is Task.SEGMENTATION
    assert labels.classes == ("A",)
    assert labels.digest != read_rtstruct(path, sources, background=None).digest
    drawn_on = drawn(labels, sources[0], "A")
    recipe = TileRecipe(size=16)
    with open_labels(sources[0], labels, recipe) as asker:
        found = [asker.targets(Window(frame, 0, 0, 16, 16))[0] for frame in range(len(drawn_on))]
    assert np.isin(found, (0, IGNORE)).all()
    assert (np.array(found) == 0).sum() == drawn_on[:, :16, :16].sum() > 10


def test_labels_of_before_keep_their_digest() -> None:
    """Keys that came later are not in the dump at their default."""
    recipe = DicomSegLabels.model_validate({"path": "p"})
    assert set(recipe.model_dump()) == {
        "path", "min_share", "background", "multi_label", "kind", "name", "segments", "threshold",
    }  # fmt: skip
    assert recipe.model_dump_json() == (
        '{"path":"p","min_share":0.5,"background":"background","multi_label":false,"kind":"dicom_seg","name":"label",'
        '"segments":null,"threshold":0.5}'
    )
    raster = RasterLabels.model_validate({"path": "p", "per": "tile", "classes": {1: "a"}})
    assert RasterLabels.model_validate(raster.model_dump(mode="json")) == raster
    pixels = RasterLabels.model_validate({"path": "p"})
    assert RasterLabels.model_validate(pixels.model_dump(mode="json")).per == "pixel"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"kind": "dicom_seg", "per": "pixel", "multi_label": True}, "a pixel is of one class"),
        ({"kind": "vector", "column": "c", "tile_class": "centre", "per": "pixel"}, "set `per: tile`"),
        ({"kind": "raster", "background": "b"}, "name its value in `labels.classes`"),
        ({"kind": "raster", "classes": {1: "a"}, "ignore": [1]}, "value 1 stands in classes and in ignore"),
        ({"kind": "raster", "values": "continuous", "classes": {1: "a"}}, "has no classes"),
        ({"kind": "raster", "values": "continuous", "per": "tile"}, "set `per: pixel`"),
        ({"kind": "raster", "units": "m"}, "units are for"),
        ({"kind": "raster", "suffix": "_l"}, "suffix is for"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_config(
            {"name": "n", "source": {"kind": "geotiff", "path": "p"}, "model": {}, "labels": {"path": "p", **values}},
            origin="here",
        )


def test_the_paths_of_labels_are_relative_to_the_file(tmp_path: Path) -> None:
    text = "{kind: vector, path: a.gpkg, column: c, aoi: b.gpkg}"
    (tmp_path / "pipeline.yaml").write_text(
        f"name: n\nsource: {{kind: geotiff, path: s}}\nlabels: {text}\nmodel: {{weights: {{source: random}}}}\n"
    )
    config = load_config(tmp_path)
    assert isinstance(config.labels, VectorLabels)
    assert (config.labels.path, config.labels.aoi) == (str(tmp_path / "a.gpkg"), str(tmp_path / "b.gpkg"))
    other = config.model_copy(update={"labels": config.labels.model_copy(update={"aoi": "/elsewhere/b.gpkg"})})
    assert other.content_digest() == config.content_digest()
