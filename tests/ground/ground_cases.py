"""Scenes that exist as grids alone, and the tables of their tiles."""

from __future__ import annotations

import pandas as pd
from rasterio.crs import CRS
from rasterio.warp import transform as warp_points

from vitpipe.config import PipelineConfig, TileRecipe
from vitpipe.cutting import windows
from vitpipe.domains.geotiff.ground import block_names, to_equal_area
from vitpipe.ground import Footprints, tile_footprints
from vitpipe.partition import Partition, partition, place_on_ground
from vitpipe.records import Grid, Source
from vitpipe.resample import prepared_grid
from vitpipe.workspace import Workspace

RECIPE = TileRecipe(size=64)


def scene(name: str, epsg: int, corner: tuple[float, float], *, size: int = 640, gsd: float = 10.0) -> Source:
    """A north-up scene whose top left corner lies at x, y of its CRS."""
    return Source(
        name, "ground-0-0", "geotiff", name, (name,),
        Grid(1, size, size, transform=(gsd, 0.0, corner[0], 0.0, -gsd, corner[1]), crs=f"EPSG:{epsg}"),
        ("b1",), "dn", "uint16", reader={"bands": [1], "alpha": [], "block_m": 10_000.0},
    )  # fmt: skip


def corner_at(epsg: int, longitude: float, latitude: float) -> tuple[float, float]:
    """Whole pixels of 10 m near a place."""
    xs, ys = warp_points(CRS.from_epsg(4326), CRS.from_epsg(epsg), [longitude], [latitude])[:2]
    return round(xs[0] / 10) * 10.0, round(ys[0] / 10) * 10.0


def tiles_of(sources: list[Source], recipe: TileRecipe = RECIPE, *, block_m: float = 10_000.0) -> pd.DataFrame:
    """Rows as the tile store gives them, groups of the block of each tile's centre."""
    rows = [
        {
            "tile_id": f"{source.source_id}:0:{window.row}:{window.col}",
            "source_id": source.source_id,
            **window._asdict(),
            "pixel_digest": f"{source.source_id}{window.row}.{window.col}",
        }
        for source in sources
        for window in windows(prepared_grid(source.grid, recipe, uri=""), recipe)
    ]
    table = pd.DataFrame(rows)
    ground = footprints_of(table, sources, recipe)
    return table.assign(group_id=block_names(ground.centres.T, block_m, otherwise="nowhere"))


def footprints_of(table: pd.DataFrame, sources: list[Source], recipe: TileRecipe = RECIPE) -> Footprints:
    found = tile_footprints(table, sources, recipe)
    assert found is not None
    return found


def config_of(workspace: object, recipe: TileRecipe = RECIPE, **split: object) -> PipelineConfig:
    return PipelineConfig.model_validate(
        {
            "name": "t",
            "source": {"kind": "geotiff", "path": "/nowhere"},
            "tiles": recipe.model_dump(),
            "split": split,
            "workspace": str(workspace),
        }
    )


def parted(config: PipelineConfig, workspace: Workspace, table: pd.DataFrame, sources: list[Source]) -> Partition:
    """The way of the manifest: on the ground, into blocks, into splits."""
    grounded = place_on_ground(config, workspace, table, sources, multi_label=False)
    table = table.assign(group_id=grounded.groups(table["group_id"]))
    return partition(config, workspace, table, sources, grounded=grounded, multi_label=False)


__all__ = ["RECIPE", "config_of", "corner_at", "footprints_of", "parted", "scene", "tiles_of", "to_equal_area"]
