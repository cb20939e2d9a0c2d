"""How tiles are cut."""

from __future__ import annotations

from typing import Final, Literal, Self

from pydantic import (
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from vitpipe.config.base import Recipe

_SINCE_FIRST: Final = {
    "neighbours": 0, "depth": None, "stride_depth": None, "slice_spacing_mm": None, "orientation": None,
    "crs": None,
}  # fmt: skip
"""Keys that came later, with the value that means what was done before: left out of every dump, and so of every digest,
so that tiles and runs from before stay valid."""
_OPPOSITE: Final = {"R": "L", "A": "P", "I": "S"}


class TileRecipe(Recipe):
    """How tiles are cut."""

    model_config = ConfigDict(title="Tiles")

    cut: Literal["grid", "whole"] = Field(
        "grid",
        title="Cut",
        description="grid: tiles on a grid; whole: each frame (with a depth: the whole stack) resampled into one tile.",
    )
    size: int = Field(224, ge=8, le=4096, title="Tile size (px)")
    stride: int | None = Field(None, ge=1, title="Stride (px)", description="Step between tiles; the size if empty.")
    edge: Literal["pad", "shift", "drop"] = Field(
        "pad",
        title="Edge",
        description="At the right and bottom edge: pad and mask, shift the last tile inwards, or drop it.",
    )
    min_valid_fraction: float = Field(0.5, ge=0, le=1, title="Least valid share of a tile")
    spacing_mm: float | None = Field(None, gt=0, title="Spacing (mm)", description="Resample to it first (DICOM).")
    gsd_m: float | None = Field(None, gt=0, title="Ground sampling distance (m)", description="Resample to it first.")
    crs: str | None = Field(
        None,
        title="CRS of the tiles",
        pattern=r"^(EPSG:\d{1,6}|utm)$",
        description="Warp scenes to it first (bilinear, north up): a projected EPSG code, or utm for the zone of each "
        "scene's centre. With gsd_m its pixels are that large.",
    )
    neighbours: int = Field(
        0,
        ge=0,
        le=16,
        title="Neighbours (frames)",
        description="2.5-D: this many frames before and after each as channels (DICOM stacks of one regular step).",
    )
    depth: int | None = Field(
        None, ge=2, le=1024, title="Depth (slices)", description="3-D tiles of this many slices (regular DICOM stacks)."
    )
    stride_depth: int | None = Field(
        None, ge=1, title="Stride in depth (slices)", description="Step between 3-D tiles; the depth if empty."
    )
    slice_spacing_mm: float | None = Field(
        None, gt=0, title="Slice spacing (mm)", description="Resample a stack along its normal to it first (linear)."
    )
    orientation: str | None = Field(
        None,
        title="Orientation",
        description="Where columns, rows and slices grow towards, such as LPS: left, posterior, superior. Stacks are "
        "flipped and their axes swapped to it; no pixel is resampled.",
    )
    shard_mib: int = Field(128, ge=1, le=4096, title="Shard size (MiB)", description="Tiles written by one task.")

    @property
    def step(self) -> int:
        """The stride, or the size where none is given."""
        return self.stride or self.size

    @property
    def along_stack(self) -> tuple[str, ...]:
        """The keys that are set and go along the frames, for which these must be a regular stack."""
        along = (name for name in _SINCE_FIRST if name != "crs")
        return tuple(name for name in along if getattr(self, name) != _SINCE_FIRST[name])

    @property
    def step_depth(self) -> int:
        """The stride in depth, or the depth where none is given; 1 for 2-D tiles."""
        return self.stride_depth or self.depth or 1

    @property
    def moves_frames(self) -> bool:
        """Whether a tile's frame is another one than the source's frame of this number."""
        return self.depth is not None or self.slice_spacing_mm is not None or self.orientation is not None

    @model_serializer(mode="wrap")
    def _without_what_changes_nothing(self, dump: SerializerFunctionWrapHandler) -> dict[str, JsonValue]:
        values: dict[str, JsonValue] = dump(self)
        return {key: value for key, value in values.items() if key not in _SINCE_FIRST or value != _SINCE_FIRST[key]}

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if self.spacing_mm is not None and self.gsd_m is not None:
            raise ValueError("set spacing_mm (DICOM) or gsd_m (earth observation), not both")
        if self.crs is not None and (self.spacing_mm is not None or self.along_stack):
            raise ValueError(
                "crs is for scenes on the ground; spacing_mm, depth and the like are for DICOM: remove one"
            )
        if self.step > self.size:
            raise ValueError(f"stride {self.step} is larger than size {self.size}: pixels between tiles would be lost")
        return self

    @model_validator(mode="after")
    def _volumes_hold_together(self) -> Self:
        if self.depth is None and self.stride_depth is not None:
            raise ValueError("stride_depth is the step between 3-D tiles: set depth too, or remove it")
        if self.depth is not None and self.neighbours:
            raise ValueError("set neighbours (2.5-D: slices as channels) or depth (3-D tiles), not both")
        if self.depth is not None and self.step_depth > self.depth:
            raise ValueError(
                f"stride_depth {self.stride_depth} is larger than depth {self.depth}: slices between tiles would be "
                "lost"
            )
        return self

    @field_validator("orientation")
    @classmethod
    def _three_directions(cls, value: str | None) -> str | None:
        if value is None:
            return None
        code = value.upper()
        if sorted(_OPPOSITE.get(letter, letter) for letter in code) != ["L", "P", "S"]:
            raise ValueError(
                f"orientation {value!r} does not name three directions: one of L or R, one of P or A, one of S or I, "
                "in the order of columns, rows and slices, such as LPS (as most axial DICOM series) or RAS"
            )
        return code
