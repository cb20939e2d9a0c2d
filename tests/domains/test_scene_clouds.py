"""Files that say where clouds are, by the STAC item beside them: used for the scene of that item, and for no other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.domains.scene_cases import look, read, write_band

_CLOUD, _CLEAR = 9, 4


def _write(folder: Path, *files: str) -> np.ndarray[Any, Any]:
    """Write files, and an item that describes a.tif and its mask alone; gives the codes of the mask."""
    codes = np.full((64, 64), _CLEAR, np.uint8)
    codes[8:20, 30:] = _CLOUD
    for name in files:
        pixels = codes if name == "scl.tif" else np.full((64, 64), 500, np.uint16)
        write_band(folder / name, pixels, 10)
    assets = {"red": {"href": "./a.tif"}, "scl": {"href": "./scl.tif"}}
    properties = {"datetime": "2021-07-08T10:14:10Z"}
    item = {"type": "Feature", "properties": properties, "assets": assets, "links": []}
    (folder / "item.json").write_text(json.dumps(item))
    return codes


def test_clouds_of_one_scene_are_not_those_of_its_neighbour(tmp_path: Path) -> None:
    codes = _write(tmp_path, "a.tif", "b.tif", "scl.tif")
    (source,), rejected = look(tmp_path, clouds="drop")
    assert Path(source.uri).name == "a.tif"
    assert np.array_equal(read(source)[1], codes == _CLEAR)
    assert {(Path(row.uri).name, row.code) for row in rejected if not row.junk} == {("b.tif", "NO_CLOUD_MASK")}


def test_a_cloud_mask_without_its_scene_is_told(tmp_path: Path) -> None:
    _write(tmp_path, "scl.tif")
    sources, rejected = look(tmp_path, clouds="drop")
    assert sources == []
    assert ("scl.tif", "PRODUCT_FILE", True) in {(Path(row.uri).name, row.code, row.junk) for row in rejected}
