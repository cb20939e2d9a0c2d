"""How maps are made of whole scenes, and masks of whole stacks."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from vitpipe.config.base import Recipe


class MapRecipe(Recipe):
    """How a model of pixels is put together to a map, and what is written beside it."""

    model_config = ConfigDict(title="Map")

    overlap: float = Field(
        0.25,
        ge=0,
        le=0.9,
        title="Overlap",
        description="Share of a tile that the next one covers too; overlapping tiles are blended.",
    )
    tta: Literal["none", "d4"] = Field(
        "none",
        title="Test-time augmentation",
        description="d4: the mean over all eight turns and flips of each tile; eight times the work.",
    )
    vectors: bool = Field(default=False, title="Vectors", description="Write the classes as polygons too (GeoPackage).")
    min_area_px: int = Field(
        1, ge=1, title="Least polygon (px)", description="Polygons of fewer pixels are left out of the vectors."
    )
    grid: bool = Field(
        default=False,
        title="Grid of tiles",
        description="For models of tiles: write a raster of one pixel a tile for each scene.",
    )
