"""What `vitpipe check` says of the layout of scenes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from tests.domains.test_geotiff_blocks import _source, _write
from vitpipe.domains.geotiff.advice import Layout, layout_findings

_TILED = {"tiled": True, "blockxsize": 512, "blockysize": 512}


def _scene(path: Path, rows: int = 1024, **profile: Any) -> Path:
    rng = np.random.default_rng(2)
    relief = 2000 + 800 * np.sin(np.arange(1024) / 100)
    return _write(path, (relief + rng.normal(0, 20, (4, rows, 1024))).astype(np.uint16), **profile)


def test_slow_layouts_are_told_with_the_remedy(tmp_path: Path) -> None:
    sources = [
        _source(_scene(tmp_path / "a.tif", 24, compress="lzma", blockysize=1)),
        _source(_scene(tmp_path / "b.tif", 24, compress="lzma", blockysize=1)),
        _source(_scene(tmp_path / "c.tif", compress="zstd", predictor=2, **_TILED)),
    ]
    started = time.monotonic()
    findings = layout_findings(sources, 224)
    assert time.monotonic() - started < 5, "about a tenth of a second on an idle machine"
    slow, fast = findings.lines
    assert slow.startswith("layout: 2 scene(s) of LZMA, strips of 1 row, decoded at ")
    assert "times faster" in slow
    assert "gdal_translate -of COG" in slow
    assert fast.startswith("layout: 1 scene(s) of ZSTD, blocks of 512 x 512, decoded at ")
    assert "gdal_translate" not in fast
    (lzma, zstd) = findings.values["layouts"]  # type: ignore[misc]
    assert lzma["cog_mib_s"] > 2 * lzma["mib_s"]  # type: ignore[index, call-overload, operator]
    assert 0.8 < zstd["size_ratio"] < 1.2  # type: ignore[index, call-overload, operator]


def test_lossy_scenes_are_not_to_be_blown_up(tmp_path: Path) -> None:
    path = _write(
        tmp_path / "a.tif", np.full((3, 600, 600), 9, np.uint8), compress="jpeg", blockysize=16, photometric="rgb"
    )
    (line,) = layout_findings([_source(path)], 224).lines
    assert line.startswith("layout: 1 scene(s) of JPEG, strips of 16 rows")
    assert "gdal_translate" not in line


def test_what_cannot_be_opened_or_decoded_is_left_to_the_read(tmp_path: Path) -> None:
    path = _scene(tmp_path / "a.tif", compress="lzw", **_TILED)
    source = _source(path)
    with rasterio.open(path) as dataset:
        middle = int(dataset.get_tag_item("BLOCK_OFFSET_0_1", "TIFF", bidx=1))
    content = bytearray(path.read_bytes())
    content[middle : middle + 400] = b"\xff" * 400
    path.write_bytes(content)
    assert layout_findings([source], 224).lines == ()
    path.unlink()
    assert layout_findings([source], 224).lines == ()


@pytest.mark.parametrize(
    ("block", "size", "width", "expected"),
    [
        ((1, 8192), 224, 8192, 8192 / 224),
        ((512, 512), 512, 8192, 4.0),
        ((8192, 8192), 256, 8192, 1024),
        ((16, 16), 64, 9, 1),
    ],
)
def test_pixels_decoded_for_one(block: tuple[int, int], size: int, width: int, expected: float) -> None:
    layout = Layout("DEFLATE", block, block[1] == width, 0, 1.0, 1.0, 1.0)
    assert layout.more_pixels(size, width, width) == pytest.approx(expected, rel=0.01)
