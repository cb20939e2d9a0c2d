"""Real GeoTIFF files: the edge cases of rasterio and stars, Landsat 7, and Sentinel-2 tiles and scenes of EuroSAT."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.crs import CRS

from vitpipe.config import GeotiffSource
from vitpipe.digest import digest_file
from vitpipe.domains.base import ScanContext
from vitpipe.domains.geotiff import Geotiff
from vitpipe.pseudonym import Pseudonymiser
from vitpipe.records import FileRecord, Rejected, Source, Window

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not SHARED.is_dir(), reason=f"no folder {SHARED}"),
    pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning"),
]


def _assemble(root: Path, paths: list[Path], **recipe: Any) -> tuple[dict[str, Source], dict[str, Rejected]]:
    context, domain = ScanContext(root, Pseudonymiser(b"key"), GeotiffSource(path=str(root), **recipe)), Geotiff()
    records, rejected = [], {}
    for path in paths:
        header = domain.index(path, context)
        if isinstance(header, Rejected):
            rejected[path.relative_to(root).as_posix()] = header
        else:
            records.append(FileRecord(str(path), path.stat().st_size, 0, digest_file(path), header))
    sources = {}
    for item in domain.assemble(records, context):
        if isinstance(item, Source):
            sources[item.keys["path"][0]] = item
        else:
            rejected[Path(item.uri).relative_to(root).as_posix()] = item
    return sources, rejected


def _expected_mask(path: Path) -> np.ndarray[Any, Any]:
    """What rasterio says of validity, joined over the bands that are channels."""
    with rasterio.open(path) as dataset:
        stored = dataset.read()
        roles = [role.name for role in dataset.colorinterp]
        used = [number for number, role in enumerate(roles, start=1) if role != "alpha"]
        valid = (dataset.read_masks(used) != 0).all(axis=0)
        return valid & (np.isfinite(stored).all(axis=0) if stored.dtype.kind == "f" else True)


def test_all_edge_files_are_read_right_or_have_a_code() -> None:
    root = SHARED / "geotiff_edge"
    expected = {item["file"]: item for item in json.loads((root / "manifest.json").read_text())}
    sources, rejected = _assemble(root, sorted(item for item in root.rglob("*") if item.is_file()))
    counted = {name: item for name, item in rejected.items() if not item.junk}
    assert {name: item.code for name, item in counted.items()} == {"files/rasterio__corrupt.tif": "TRUNCATED"}
    assert {*sources, *counted} == set(expected)
    assert len(expected) == 29
    for name, source in sources.items():
        facts = expected[name]
        with Geotiff().open(source) as raster:
            pixels, valid = raster.read(Window(0, 0, 0, source.grid.height, source.grid.width))
        with rasterio.open(root / name) as dataset:
            stored = dataset.read()
            transform, crs = dataset.transform, dataset.crs
        # The digest of the manifest says that this rasterio reads what was meant to be read.
        assert hashlib.sha256(np.ascontiguousarray(stored).tobytes()).hexdigest().startswith(facts["sha256"]), name
        assert [1, source.grid.height, source.grid.width] == [1, *facts["shape"][1:]]
        channels = stored[[number for number, role in enumerate(facts["colorinterp"]) if role != "alpha"]]
        assert np.array_equal(valid, _expected_mask(root / name)), name
        assert np.array_equal(pixels, np.where(valid, channels, 0)), name
        assert source.dtype == facts["dtypes"][0]
        if facts["crs"] is None:
            assert "NO_CRS" in source.notes
        else:
            assert source.grid.crs is not None
            assert CRS.from_user_input(source.grid.crs) == crs, name
            assert source.group_id.startswith("ground-"), name
        if source.grid.transform is not None:
            assert source.grid.transform == tuple(transform)[:6]
    assert "COLORMAP" in sources["files/stars__lc.tif"].notes
    assert "ROTATED" in sources["files/stars__geomatrix.tif"].notes
    assert "ROTATED" in sources["files/rasterio__rotated.tif"].notes
    assert "ALPHA" in sources["files/rasterio__alpha.tif"].notes


def test_overlapping_scenes_share_their_ground() -> None:
    """The same ground in two files, one of them with a CRS that names no authority, falls into the same blocks."""
    root = SHARED / "geotiff_edge"
    paths = [root / "files" / f"rasterio__{name}.tif" for name in ("RGB.byte", "rgb2")]
    sources, _ = _assemble(root, paths)
    whole, part = (sources[path.relative_to(root).as_posix()] for path in paths)
    assert whole.grid.transform is not None
    assert part.grid.transform is not None
    shift = round((part.grid.transform[2] - whole.grid.transform[2]) / whole.grid.transform[0])
    windows = [Window(0, row, col, 8, 8) for row in range(0, 392, 8) for col in range(0, 384, 8)]
    moved = [window._replace(col=window.col + shift) for window in windows]
    with Geotiff().open(whole) as first, Geotiff().open(part) as second:
        left, right = first.groups(moved), second.groups(windows)
    # The two transforms differ by a sixth of a pixel: blocks may differ only where a border runs through it.
    assert np.mean(np.array(left) == np.array(right)) > 0.99


def test_eurosat_tiles_and_scenes() -> None:
    root = SHARED / "eurosat_geo"
    chips = sorted((root / "chips").rglob("*.tif"))[::10]
    sources, rejected = _assemble(root, [*chips, *sorted((root / "scenes").glob("*"))])
    junk = {name for name, item in rejected.items() if item.junk}
    assert junk == set(rejected)
    assert {Path(name).suffix for name in junk} == {".geojson", ".csv"}
    assert len(sources) == len(chips) + 4
    for name, source in sources.items():
        assert (source.channels, source.dtype) == (("b1", "b2", "b3"), "uint8")
        assert source.attributes["gsd_m"] == pytest.approx(10, abs=0.05)
        with Geotiff().open(source) as raster, rasterio.open(root / name) as dataset:
            whole, valid = raster.read(Window(0, 0, 0, source.grid.height, source.grid.width))
            stored = dataset.read()
            assert np.array_equal(valid, (stored != 0).all(axis=0) if "scenes/" in name else np.ones_like(valid))
            assert np.array_equal(whole, stored * valid)
            if "scenes/" in name:
                names = raster.groups([Window(0, row, col, 64, 64) for row in (0, 1900) for col in (0, 1900)])
                assert len(set(names)) == 4
    # Blocks of 10 km hold several of the tiles, so they cannot straddle splits.
    assert 4 < len({source.group_id for source in sources.values()}) <= len(sources)


def test_landsat_stack_by_any_name() -> None:
    root = SHARED / "pixel_scene"
    sources, rejected = _assemble(root, sorted(item for item in root.iterdir() if item.is_file()))
    assert all(item.junk for item in rejected.values())
    source = sources["LE70220491999322EDC01_stack.gtif"]
    with Geotiff().open(source) as raster, rasterio.open(source.files[0]) as dataset:
        pixels, valid = raster.read(Window(0, 10, 20, 64, 64))
        stored = dataset.read(window=rasterio.windows.Window(20, 10, 64, 64))
        assert np.array_equal(pixels, np.where(valid, stored, 0))
        assert valid.any()
