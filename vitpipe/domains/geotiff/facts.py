"""Facts of a scene that its header gives: its group, its subgroups, its names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
from rasterio.crs import CRS

from vitpipe.domains.geotiff.ground import block_names, to_equal_area
from vitpipe.records import Attribute, Grid, Json, Source, Window

_SEASONS: Final = ("DJF", "MAM", "JJA", "SON")


def scene_group(source_id: str) -> str:
    """Name the group of a scene that lies on no known ground: it is a group by itself."""
    return f"scene-{source_id}"


def ground_group(ground: Sequence[float] | None, block_m: float, source_id: str) -> str:
    """Name the block of ground of a point in EPSG:6933 metres; of no known ground, the scene itself."""
    otherwise = scene_group(source_id)
    if ground is None:
        return otherwise
    return block_names(np.array(ground).reshape(2, 1), block_m, otherwise=otherwise)[0]


def grid_of(header: Mapping[str, Any]) -> Grid:
    """Give the grid of a scene; one that control points alone place has these, and no transform."""
    plain: dict[str, Json] = {name: header[name] for name in ("height", "width", "transform", "crs")}
    fitted = header["fitted"]
    # An index from before they were kept has none.
    if fitted and fitted.get("gcps"):
        plain |= {"gcps": fitted["gcps"], "gcp_crs": fitted["crs"]}
    return Grid.from_json(plain | {"frames": 1})


def window_groups(source: Source, windows: Sequence[Window]) -> list[str]:
    """Name the block of ground under the centre of each window's part inside the scene.

    A scene on no known ground is one group by itself.
    """
    otherwise = scene_group(source.source_id)
    reader: Any = source.reader
    grid, fitted = source.grid, reader.get("fitted")
    crs, transform = (fitted["crs"], fitted["transform"]) if fitted else (grid.crs, grid.transform)
    if crs is None or transform is None:
        return [otherwise] * len(windows)
    row, col, height, width = np.array([window[1:5] for window in windows], dtype=np.float64).reshape(-1, 4).T
    rows = (row + np.minimum(row + height, grid.height)) / 2
    cols = (col + np.minimum(col + width, grid.width)) / 2
    a, b, c, d, e, f = transform
    xs, ys = a * cols + b * rows + c, d * cols + e * rows + f
    points = to_equal_area(CRS.from_user_input(crs), xs, ys)
    return block_names(points, float(reader["block_m"]), otherwise=otherwise)


def subgroups(header: Mapping[str, Any], acquired_at: str | None) -> dict[str, Attribute]:
    """Give the subgroup columns of a scene: CRS, ground sampling distance, and when it was seen."""
    crs = header["crs"]
    attributes: dict[str, Attribute] = {
        "crs": crs if crs is None or crs.startswith("EPSG:") else "other",
        "gsd_m": header["gsd_m"],
        # What a STAC item beside the file states.
        **header.get("attributes", {}),
    }
    if acquired_at:
        moment = datetime.fromisoformat(acquired_at)
        attributes |= {
            "year": f"{moment.year:04d}",
            "month": f"{moment.month:02d}",
            "season": _SEASONS[moment.month % 12 // 3],
        }
    return attributes


def stated_of(header: Mapping[str, Any], numbers: Sequence[int]) -> dict[str, Any]:
    """Give what a raster's `reader` holds of a file beyond its bands: what an item states of them, and where it lies.

    Args:
        header: of the file.
        numbers: bands, from 1.

    Returns:
        `stated` with `scales` and `nodata`, one a band, where an item states any; `remote` where it is read from afar.
    """
    found: dict[str, Any] = {"remote": header["remote"]} if "remote" in header else {}
    if stated := header.get("stated"):
        found["stated"] = {name: [values[number - 1] for number in numbers] for name, values in stated.items()}
    return found


def relative(path: str, root: Path) -> str:
    """Give a path below the root, as label tables name it."""
    if root.is_file() or Path(path) == root or not Path(path).is_relative_to(root):
        return Path(path).name
    return Path(path).relative_to(root).as_posix()
