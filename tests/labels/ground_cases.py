"""Small scenes on the ground with labels beside them, tiled and read as a run does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import rasterio
from numpy.typing import NDArray
from rasterio.transform import from_origin

from vitpipe.config import PipelineConfig
from vitpipe.domains.known import planes_of
from vitpipe.ingest import ingest, read_catalog
from vitpipe.labels import LabelSet, read_labels
from vitpipe.manifest import Manifest, build_manifest
from vitpipe.pixel_targets import PixelTargets
from vitpipe.pseudonym import load_pseudonymiser
from vitpipe.records import Source
from vitpipe.store import TileStore
from vitpipe.tile_labels import label_tiles
from vitpipe.tile_places import tile_grid
from vitpipe.tile_targets import make_targets
from vitpipe.tiling import plan_shards, tile_digest, tile_shard
from vitpipe.workspace import Workspace

UTM = "EPSG:32632"
X, Y = 500_000.0, 5_300_000.0


def write_tif(path: Path, values: NDArray[Any], *, crs: str | None = UTM, **more: Any) -> Path:
    """Write (rows, cols) or (bands, rows, cols); `gsd_m`, `x` and `y` or `transform` say where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bands = values if values.ndim == 3 else values[None]
    transform = more.pop("transform", None)
    gsd_m, x, y = more.pop("gsd_m", 10.0), more.pop("x", X), more.pop("y", Y)
    if transform is None and crs is not None:
        transform = from_origin(x, y, gsd_m, gsd_m)
    with rasterio.open(
        path, "w", driver="GTiff", count=len(bands), height=bands.shape[1], width=bands.shape[2], dtype=bands.dtype,
        crs=crs, transform=transform, **more,
    ) as dataset:  # fmt: skip
        dataset.write(bands)
    return path


def write_scene(path: Path, height: int, width: int, *, seed: int = 0, **more: Any) -> Path:
    """Write a scene of noise, nowhere nodata unless `holes` (rows, cols) says so."""
    values = np.random.default_rng(seed).integers(1, 255, (2, height, width)).astype(np.uint8)
    holes = more.pop("holes", None)
    if holes is not None:
        values[:, holes] = 0
    return write_tif(path, values, nodata=0, **more)


def make_config(root: Path, labels: dict[str, object], **tiles: object) -> PipelineConfig:
    return PipelineConfig.model_validate(
        {
            "name": "ground",
            "source": {"kind": "geotiff", "path": str(root / "scenes"), "block_m": 200},
            "labels": labels,
            "tiles": {"size": 16, "min_valid_fraction": 0.0, **tiles},
            "model": {"weights": {"source": "random"}, "patch_size": 8},
            "workspace": str(root / "work"),
        }
    )


class Run:
    """A catalog, tiles and labels."""

    def __init__(self, config: PipelineConfig) -> None:
        self.config = config
        self.workspace = Workspace(Path(config.workspace))
        self.workspace.prepare()
        ingest(config, self.workspace)
        self.sources: list[Source] = list(read_catalog(self.workspace))
        for shard in plan_shards(config, self.workspace, self.sources):
            tile_shard(config, self.workspace, self.sources, shard)
        self.digest = tile_digest(config)
        self.store = TileStore(self.workspace.tiles(self.digest))

    def labels(self) -> LabelSet:
        assert self.config.labels is not None
        return read_labels(self.config.labels, self.sources, load_pseudonymiser(self.workspace.root), planes_of)

    def manifest(self) -> Manifest:
        return build_manifest(self.config, self.workspace, self.labels())

    def tile_labels(self) -> dict[tuple[str, int, int], str]:
        """Label the tiles by what lies on them: scene, row, col to label, of those that have one."""
        tiles = self.store.table()
        found = label_tiles(tiles, self.sources, self.labels(), self.config.tiles, (self.workspace, self.digest))
        kept = tiles.assign(label=found)[found.notna()]
        keys = zip(kept["source_id"].map(self.name), kept["row"], kept["col"], strict=True)
        return dict(zip(keys, kept["label"], strict=True))

    def targets(self) -> tuple[LabelSet, dict[str, NDArray[Any]]]:
        """Make the targets of every pixel; gives the labels, and scene to its targets put together again."""
        tiles, labels = self.store.table(), self.labels()
        folder, _ = make_targets(tiles, self.sources, labels, self.config.tiles, (self.workspace, self.digest))
        tiles = tiles[tiles["source_id"].isin(labels.regions.sources if labels.regions else ())]
        size, depth = self.store.tile_size, self.store.depth
        shape = (size, size) if depth is None else (depth, size, size)
        found = PixelTargets(folder, labels.task, shape).gather(tiles)
        whole = {}
        for source in self.sources:
            grid = tile_grid(source.grid, self.config.tiles, uri=source.uri)
            empty = np.full((grid.height + size, grid.width + size), 255, found.dtype)
            for (row, col, of), tile in zip(tiles[["row", "col", "source_id"]].to_numpy(), found, strict=True):
                if of == source.source_id:
                    empty[row : row + size, col : col + size] = tile
            whole[self.name(source.source_id)] = empty[: grid.height, : grid.width]
        return labels, whole

    def name(self, source_id: str) -> str:
        return next(Path(source.uri).stem for source in self.sources if source.source_id == source_id)


def targets_of(manifest: Manifest) -> NDArray[Any]:
    """Read the targets of all tiles of a manifest."""
    assert manifest.targets_folder is not None
    shape = manifest.tile_shape[1:]
    return PixelTargets(manifest.targets_folder, manifest.task, shape).gather(manifest.table)


def mosaic(manifest: Manifest, source_id: str, height: int, width: int, nothing: float = 255) -> NDArray[Any]:
    """Put the targets of one source together again (height, width)."""
    found = targets_of(manifest)
    whole = np.full((height + manifest.tile_size, width + manifest.tile_size), nothing, found.dtype)
    rows: list[dict[str, Any]] = manifest.table.to_dict("records")
    for row, tile in zip(rows, found, strict=True):
        if row["source_id"] == source_id:
            whole[row["row"] : row["row"] + len(tile), row["col"] : row["col"] + len(tile)] = tile
    return whole[:height, :width]


def counted(table: pd.DataFrame) -> dict[str, int]:
    return {str(name): int(count) for name, count in table["label"].value_counts().items()}
