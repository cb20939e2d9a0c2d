"""Makes small Sentinel-2 and Landsat products, and looks at folders as the ingest does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.transform import from_origin

from vitpipe.config import GeotiffSource
from vitpipe.digest import digest_file
from vitpipe.domains.base import ScanContext
from vitpipe.domains.geotiff import Geotiff
from vitpipe.pseudonym import Pseudonymiser
from vitpipe.records import FileRecord, Rejected, Source, Window

Pixels = np.ndarray[Any, Any]
ORIGIN = (600_000.0, 5_000_040.0)
LANDSAT_NAME = "LC08_L2SP_190028_20210708_20210713_02_T1"
_CODEC = {"QUALITY": "100", "REVERSIBLE": "YES", "BLOCKXSIZE": "64", "BLOCKYSIZE": "64"}


def write_band(path: Path, pixels: Pixels, gsd_m: float, **profile: Any) -> Path:
    """Write one band, as JPEG 2000 where the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = pixels.shape
    base = {"count": 1, "height": height, "width": width, "dtype": pixels.dtype, "crs": "EPSG:32633"}
    base |= {"transform": from_origin(*ORIGIN, gsd_m, gsd_m)}
    base |= {"driver": "JP2OpenJPEG", **_CODEC} if path.suffix == ".jp2" else {"driver": "GTiff"}
    with rasterio.open(path, "w", **(base | profile)) as dataset:
        dataset.write(pixels, 1)
    for beside in path.parent.glob("*.aux.xml"):
        beside.unlink()
    return path


def sentinel2_metadata(level: str = "L2A", baseline: str = "05.11", offset: int | None = -1000, head: str = "") -> str:
    """Give the text of MTD_MSIL*.xml with what a reader needs."""
    tag, quantification = ("BOA_ADD_OFFSET", "BOA_") if level == "L2A" else ("RADIO_ADD_OFFSET", "")
    offsets = "" if offset is None else "".join(f'<{tag} band_id="{at}">{offset}</{tag}>' for at in range(13))
    return f"""<?xml version="1.0" encoding="UTF-8"?>{head}
<n1:Level-{level[1:]}_User_Product xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/User_Product_Level.xsd">
  <n1:General_Info><Product_Info>
    <PRODUCT_START_TIME>2021-07-08T10:10:31.024Z</PRODUCT_START_TIME>
    <PROCESSING_BASELINE>{baseline}</PROCESSING_BASELINE>
    <Datatake datatakeIdentifier="GS2A"><SPACECRAFT_NAME>Sentinel-2A</SPACECRAFT_NAME></Datatake>
  </Product_Info><Product_Image_Characteristics>
    <{quantification}QUANTIFICATION_VALUE unit="none">10000</{quantification}QUANTIFICATION_VALUE>{offsets}
  </Product_Image_Characteristics></n1:General_Info>
  <n1:Quality_Indicators_Info><Cloud_Coverage_Assessment>12.5</Cloud_Coverage_Assessment></n1:Quality_Indicators_Info>
</n1:Level-{level[1:]}_User_Product>"""


GRANULE_METADATA = """<?xml version="1.0"?><n1:Level-2A_Tile_ID xmlns:n1="https://psd-14.sentinel2.eo.esa.int/">
  <n1:General_Info><TILE_ID>S2A_OPER_MSI_L2A_TL_2APS_20210708T132137_A031562_T33TXM_N05.00</TILE_ID>
  <SENSING_TIME>2021-07-08T10:14:10.5Z</SENSING_TIME></n1:General_Info>
  <n1:Geometric_Info><Tile_Angles><Mean_Sun_Angle><ZENITH_ANGLE unit="deg">25.5</ZENITH_ANGLE></Mean_Sun_Angle>
  <Mean_Viewing_Incidence_Angle bandId="0"><ZENITH_ANGLE unit="deg">3.1</ZENITH_ANGLE></Mean_Viewing_Incidence_Angle>
  </Tile_Angles></n1:Geometric_Info></n1:Level-2A_Tile_ID>"""


def write_safe(
    root: Path,
    bands: Mapping[tuple[str, int], Pixels],
    *,
    level: str = "L2A",
    day: str = "20210708",
    suffix: str = "jp2",
    metadata: str | None = None,
) -> Path:
    """Write a SAFE folder; `bands` by name and resolution in metres. Level 1C has no resolution in its names."""
    safe = root / f"S2A_MSI{level}_{day}T101031_N0511_R022_T33TXM_{day}T132137.SAFE"
    granule = safe / "GRANULE" / f"{level}_T33TXM_A031562_{day}T101410"
    for (name, gsd_m), pixels in bands.items():
        stem = f"T33TXM_{day}T101031_{name}"
        below = f"R{gsd_m}m/{stem}_{gsd_m}m" if level == "L2A" else stem
        write_band(granule / "IMG_DATA" / f"{below}.{suffix}", pixels, gsd_m)
    iso = f"{day[:4]}-{day[4:6]}-{day[6:]}"
    text = (metadata or sentinel2_metadata(level)).replace("2021-07-08", iso)
    (safe / f"MTD_MSI{level}.xml").write_text(text)
    (granule / "MTD_TL.xml").write_text(GRANULE_METADATA.replace("2021-07-08", iso))
    return safe


def landsat_metadata(name: str = LANDSAT_NAME, sun_elevation: float = 30.0) -> dict[str, Any]:
    """Give the groups of an MTL file; of level 2 both levels' factors stand in it, under equal keys."""
    level1 = {f"REFLECTANCE_MULT_BAND_{band}": "2.0000E-05" for band in range(1, 10)}
    level1 |= {f"REFLECTANCE_ADD_BAND_{band}": "-0.100000" for band in range(1, 10)}
    level2 = {f"REFLECTANCE_MULT_BAND_{band}": "2.75e-05" for band in range(1, 8)}
    level2 |= {f"REFLECTANCE_ADD_BAND_{band}": "-0.2" for band in range(1, 8)}
    day = name.split("_")[3]
    image = {"SPACECRAFT_ID": "LANDSAT_8", "DATE_ACQUIRED": f"{day[:4]}-{day[4:6]}-{day[6:]}", "CLOUD_COVER": "2.79"}
    image |= {"SCENE_CENTER_TIME": "09:52:36.9443150Z", "SUN_ELEVATION": str(sun_elevation)}
    groups = {"PRODUCT_CONTENTS": {"PROCESSING_LEVEL": name.split("_")[1]}, "IMAGE_ATTRIBUTES": image}
    if "_L2" in name:
        groups["LEVEL2_SURFACE_REFLECTANCE_PARAMETERS"] = level2
    return groups | {"LEVEL1_RADIOMETRIC_RESCALING": level1}


def write_landsat(
    root: Path, bands: Mapping[str, Pixels], *, name: str = LANDSAT_NAME, mtl: Sequence[str] = ("json", "txt")
) -> Path:
    """Write band files such as ``SR_B4`` and ``QA_PIXEL``, and the metadata in the forms asked for."""
    for band, pixels in bands.items():
        write_band(root / f"{name}_{band}.TIF", pixels, 30)
    groups = landsat_metadata(name)
    if "json" in mtl:
        (root / f"{name}_MTL.json").write_text(json.dumps({"LANDSAT_METADATA_FILE": groups}))
    if "txt" in mtl:
        lines = ["GROUP = LANDSAT_METADATA_FILE"]
        for group, values in groups.items():
            lines += [f"  GROUP = {group}", *(f'    {key} = "{value}"' for key, value in values.items())]
            lines += [f"  END_GROUP = {group}"]
        (root / f"{name}_MTL.txt").write_text("\n".join([*lines, "END_GROUP = LANDSAT_METADATA_FILE", "END"]))
    return root


def look(root: Path, **recipe: Any) -> tuple[list[Source], list[Rejected]]:
    """Index and assemble a folder; checks that no file is lost and that sources name files that are there."""
    domain = Geotiff()
    context = ScanContext(root, Pseudonymiser(b"key"), GeotiffSource(path=str(root), **recipe))
    records: list[FileRecord] = []
    rejected: list[Rejected] = []
    for path in sorted(item for item in root.rglob("*") if item.is_file()):
        header = domain.index(path, context)
        if isinstance(header, Rejected):
            rejected.append(header)
            continue
        kept = json.loads(json.dumps(header, allow_nan=False))
        assert len(json.dumps(kept)) < 8000
        records.append(FileRecord(str(path), path.stat().st_size, 0, digest_file(path), kept))
    found = list(domain.assemble(records, context))
    assert list(domain.assemble(records[::-1], context)) == found
    sources = [item for item in found if isinstance(item, Source)]
    rejected += [item for item in found if isinstance(item, Rejected)]
    used = [name for source in sources for name in source.files]
    # The metadata of a product of several granules is a part of each of them.
    pixels = [name for name in used if not name.endswith(".xml")]
    assert len(pixels) == len(set(pixels))
    named = {item.uri for item in rejected}
    assert not named & set(used)
    for record in records:
        above = {str(parent) for parent in Path(record.path).parents}
        assert record.path in used or record.path in named or above & named, record.path
    return sources, rejected


def one(root: Path, **recipe: Any) -> Source:
    """Give the only source."""
    sources, rejected = look(root, **recipe)
    assert len(sources) == 1, rejected
    return sources[0]


def refused(root: Path, **recipe: Any) -> Rejected:
    """Give the only reason why nothing can be used, leaving junk out."""
    sources, rejected = look(root, **recipe)
    assert sources == []
    reasons = {(item.code, item.reason) for item in rejected if not item.junk}
    assert len(reasons) == 1, reasons
    return next(item for item in rejected if not item.junk)


def refused_codes(root: Path, **recipe: Any) -> set[str]:
    """Give the codes of what is rejected, leaving junk out."""
    return {item.code for item in look(root, **recipe)[1] if not item.junk}


def read(source: Source, window: Window | None = None) -> tuple[Pixels, Pixels]:
    """Read a window, the whole scene if none is given."""
    with Geotiff().open(source) as raster:
        assert (raster.grid, raster.channels, raster.dtype) == (source.grid, source.channels, np.dtype(source.dtype))
        pixels, valid = raster.read(window or Window(0, 0, 0, source.grid.height, source.grid.width))
    assert pixels.dtype == source.dtype
    assert not pixels[:, ~valid].any()
    return pixels, valid
