"""Landsat Collection 2 band files as one source in reflectance; metadata of products that is broken in any way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from scene_cases import (
    GRANULE_METADATA,
    LANDSAT_NAME,
    landsat_metadata,
    look,
    one,
    read,
    refused,
    refused_codes,
    sentinel2_metadata,
    write_band,
    write_landsat,
)

from vitpipe.config import GeotiffSource
from vitpipe.domains.base import ScanContext
from vitpipe.domains.geotiff import Geotiff
from vitpipe.pseudonym import Pseudonymiser
from vitpipe.records import Rejected

_RNG = np.random.default_rng(7)


def _dn(size: int, low: int = 1001) -> np.ndarray[Any, Any]:
    return _RNG.integers(low, 9000, (size, size), dtype=np.uint16)


@pytest.mark.parametrize("mtl", [("json",), ("txt",), ("json", "txt"), ()])
def test_landsat_band_files_are_one_source(tmp_path: Path, mtl: tuple[str, ...]) -> None:
    red, nir, qa = _dn(50, 7273), _dn(50, 7273), np.full((50, 50), 21824, np.uint16)
    red[:3] = 0
    for row, bit in enumerate((0, 1, 2, 3, 4, 5, 6, 7)):
        qa[10 + row] = 1 << bit
    write_landsat(tmp_path, {"SR_B4": red, "SR_B5": nir, "QA_PIXEL": qa, "ST_B10": _dn(50), "QA_RADSAT": qa}, mtl=mtl)
    sources, rejected = look(tmp_path)
    junk = {Path(item.uri).name.removeprefix(LANDSAT_NAME): item.code for item in rejected}
    assert junk.pop("_QA_PIXEL.TIF") == "BAND_NOT_USED"
    assert set(junk.values()) == {"PRODUCT_FILE"}
    assert len(junk) == 2 + (len(mtl) == 2)
    (source,) = sources
    assert (source.channels, source.units, source.dtype) == (("B4", "B5"), "reflectance", "float32")
    assert source.keys == {"path": (LANDSAT_NAME,), "scene": (LANDSAT_NAME,)}
    assert source.attributes["platform"] == "landsat-8"
    assert source.notes == (() if mtl else ("NO_METADATA",))
    assert source.acquired_at == ("2021-07-08T09:52:36" if mtl else "2021-07-08T00:00:00")
    assert source.attributes.get("cloud_cover") == (2.79 if mtl else None)
    pixels, valid = read(source)
    assert np.array_equal(valid, red != 0)
    assert np.allclose(pixels[0][valid], red[valid] * 0.0000275 - 0.2, atol=1e-6)
    assert one(tmp_path, bands=("nir08", "655nm")).channels == ("nir08", "655nm")
    _, clear = read(one(tmp_path, clouds="drop"))
    assert np.array_equal(clear, (red != 0) & ((qa & 0b11111) == 0))


def test_landsat_level_1_is_reflectance_at_the_top(tmp_path: Path) -> None:
    name = LANDSAT_NAME.replace("L2SP", "L1TP")
    red, pan = _dn(50), _dn(99)
    write_landsat(tmp_path, {"B4": red}, name=name)
    # Of a real scene the pan grid begins half of its pixel from that of the others.
    shifted = rasterio.transform.from_origin(600_007.5, 5_000_032.5, 15, 15)
    write_band(tmp_path / f"{name}_B8.TIF", pan, 15, transform=shifted)
    source = one(tmp_path)
    assert (source.channels, source.units) == (("B4",), "toa_reflectance")
    # The sun stands at 30 degrees, half of its height in the zenith.
    assert np.allclose(read(source)[0][0], (red * 2e-5 - 0.1) / 0.5, atol=1e-6)
    assert np.allclose(read(one(tmp_path, bands=("pan",)))[0][0], (pan * 2e-5 - 0.1) / 0.5, atol=1e-6)
    assert refused(tmp_path, bands=("B4", "B8")).code == "GRIDS_DIFFER"
    for path in tmp_path.glob("*MTL*"):
        path.unlink()
    rejection = refused(tmp_path)
    assert rejection.code == "NO_METADATA"
    assert "MTL" in rejection.reason


def test_two_landsat_scenes_in_one_folder_are_two_sources(tmp_path: Path) -> None:
    other = LANDSAT_NAME.replace("_20210708_", "_20210724_")
    write_landsat(tmp_path, {"SR_B4": _dn(50)})
    write_landsat(tmp_path, {"SR_B4": _dn(50)}, name=other)
    sources, _ = look(tmp_path)
    assert [source.keys["scene"][0] for source in sources] == [LANDSAT_NAME, other]
    assert len({source.uri for source in sources}) == 2
    assert sources[0].group_id == sources[1].group_id


def test_a_night_scene_has_no_reflectance(tmp_path: Path) -> None:
    name = LANDSAT_NAME.replace("L2SP", "L1TP")
    write_landsat(tmp_path, {"B4": _dn(50)}, name=name, mtl=())
    groups = landsat_metadata(name, sun_elevation=-12.0)
    (tmp_path / f"{name}_MTL.json").write_text(json.dumps({"LANDSAT_METADATA_FILE": groups}))
    codes = refused_codes(tmp_path)
    assert codes == {"BAD_METADATA", "NO_METADATA"}


def test_broken_metadata_never_escapes_as_another_error(tmp_path: Path) -> None:
    """Change, drop and repeat pieces of metadata: each ends as facts that JSON can hold, or with a code."""
    name = LANDSAT_NAME.replace("L2SP", "L1TP")
    write_landsat(tmp_path, {}, name=name)
    whole = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    whole |= {"MTD_MSIL2A.xml": sentinel2_metadata().encode(), "MTD_TL.xml": GRANULE_METADATA.encode()}
    outcomes: dict[str, set[str]] = {}
    for trial in range(600):
        rng = np.random.default_rng(trial)
        file = sorted(whole)[trial % len(whole)]
        content = bytearray(whole[file])
        at, length = int(rng.integers(len(content))), int(rng.integers(1, 40))
        piece = bytes(rng.choice(list(b'0123456789.-"{}[]<>/= aN'), length).tolist())
        content[at : at + int(rng.integers(40))] = (b"", piece, content[at : at + length] * 3)[trial % 3]
        (tmp_path / file).write_bytes(content)
        found = Geotiff().index(tmp_path / file, ScanContext(tmp_path, Pseudonymiser(b"key"), GeotiffSource(path="x")))
        if isinstance(found, Rejected):
            outcomes.setdefault(file, set()).add(found.code)
        else:
            json.dumps(found, allow_nan=False)
            outcomes.setdefault(file, set()).add("read")
    assert all(codes == {"read", "BAD_METADATA"} for codes in outcomes.values()), outcomes
    for text in ("[]", "3", '{"LANDSAT_METADATA_FILE": 3}', '{"LANDSAT_METADATA_FILE": {"PRODUCT_CONTENTS": []}}', "{"):
        (tmp_path / f"{name}_MTL.json").write_text(text)
        assert {item.code for item in look(tmp_path)[1]} >= {"BAD_METADATA"}
    (tmp_path / "MTD_MSIL2A.xml").write_text(sentinel2_metadata().replace('band_id="12"', 'band_id="13"'))
    assert "of a band that there is not" in next(item.reason for item in look(tmp_path)[1] if "MSIL2A" in item.uri)
