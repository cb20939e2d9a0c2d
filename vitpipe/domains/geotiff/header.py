"""One file's header: what it is by its first bytes, and what its tags say. No pixel is decoded here."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

import numpy as np
from affine import Affine
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader

from vitpipe.domains.geotiff.ground import crs_text, fitted_transform, gsd_m, to_equal_area
from vitpipe.domains.geotiff.products.metadata import is_metadata, read_metadata
from vitpipe.domains.geotiff.products.sentinel2 import band_of
from vitpipe.errors import TransientError
from vitpipe.opening import (
    TRANSIENT,
    gdal_environment,
    in_safe,
    is_known_jp2,
    jp2_is_whole,
    missing_bytes,
    open_tiff,
)
from vitpipe.records import Json, Rejected

_MAGIC: Final = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
_JP2: Final = b"\x00\x00\x00\x0cjP  \r\n\x87\n"
HEADER_ERRORS: Final = (CPLE_BaseError, RasterioError, ValueError, OverflowError, MemoryError)
"""What GDAL, or a conversion of what it says, raises on a broken header."""
_TIFF_NAMES: Final = (".tif", ".tiff", ".gtif", ".gtiff", ".geotiff", ".btf", ".tf8", ".cog")
_SIDECARS: Final = (".msk", ".ovr")
_OTHER_FORMATS: Final = (
    (b"<VRTDataset", "a GDAL VRT"),
    (b"\x89HDF", "an HDF5 or netCDF-4 file"),
    (b"CDF", "a netCDF file"),
    (b"\x89PNG", "a PNG"),
    (b"\xff\xd8\xff", "a JPEG"),
    (b"\x00\x00\x00\x0cjP", "a JPEG 2000"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"<", "an XML text"),
)
_NM_PER: Final = {"nanometers": 1, "nm": 1, "micrometers": 1000, "um": 1000, "µm": 1000}
_MOST_ROW_BYTES: Final = 4 << 30
_ALPHA_NAMES: Final = ("", "alpha", "a", "mask")
# Tags that say when the ground was seen come before TIFFTAG_DATETIME, which often says when the file was written.
_DATE_TAGS: Final = (
    "ACQUISITIONDATETIME",
    "ACQUISITION_DATETIME",
    "ACQUISITION_DATE",
    "DATE_ACQUIRED",
    "SENSING_TIME",
    "DATETIME",
    "TIFFTAG_DATETIME",
)
MAP_TAG: Final = "VITPIPE_SOURCE_ID"
"""Metadata of a map: the scene that it was made of."""
_AUX_CHANGES = re.compile(rb"<(SRS|GeoTransform|GCPList|NoDataValue|Scale|Offset|Description)\b")


def read_header(path: Path) -> Mapping[str, Json] | Rejected:
    """Look at one file.

    Returns:
        The header of a scene or of a band of one (``kind`` "scene"), of a mask file beside one ("mask"), of a product's
        metadata ("metadata"), or why it is not used.

    Raises:
        TransientError: the store does not answer.
    """
    uri = str(path)
    try:
        with path.open("rb") as stream:
            start = stream.read(512)
        size = path.stat().st_size
        found = _before_gdal(path, start)
    except OSError as error:
        if error.errno in TRANSIENT:
            raise TransientError(f"{uri} cannot be read now: {error.strerror}") from error
        reason = f"the file cannot be opened ({error.strerror}); check that it may be read"
        return Rejected(uri, "UNREADABLE_FILE", reason)
    if found is not None:
        return found
    try:
        with gdal_environment(), open_tiff(path) as dataset:
            if path.suffix.lower() == ".msk":
                return {"kind": "mask", "width": dataset.width, "height": dataset.height, "count": dataset.count}
            return describe(dataset, size, path)
    except HEADER_ERRORS:
        return bad_header(uri)


def describe(dataset: DatasetReader, size: int, path: Path) -> Mapping[str, Json] | Rejected:
    """Give the header of an opened scene, or why it is not used.

    Args:
        dataset: opened by the GTiff driver.
        size: bytes of the file.
        path: how the catalog names it.
    """
    return _oversized(dataset, size, str(path)) or _own_map(dataset, str(path)) or _scene(dataset, path)


def _own_map(dataset: DatasetReader, uri: str) -> Rejected | None:
    """Know our own maps by their tag: results may lie below the folder of the scenes, and are none themselves."""
    if MAP_TAG not in dataset.tags():
        return None
    reason = (
        f"a map that a model of vitpipe made of a scene, which is no scene; where it is meant as one, copy it without "
        f"its tag ({MAP_TAG})"
    )
    return Rejected(uri, "OWN_MAP", reason, junk=True)


def bad_header(uri: str) -> Rejected:
    """Say that GDAL cannot read a header."""
    reason = (
        "it begins as a TIFF, but its header cannot be read: the file is cut off or damaged; fetch it again, or "
        "check it with `gdalinfo`"
    )
    return Rejected(uri, "BAD_HEADER", reason)


def is_tiff(start: bytes) -> bool:
    """Say whether first bytes are those of a TIFF or BigTIFF."""
    return start[:4] in _MAGIC


def is_jp2(start: bytes) -> bool:
    """Say whether first bytes are those of a JPEG 2000 file."""
    return start.startswith(_JP2)


def _before_gdal(path: Path, start: bytes) -> Mapping[str, Json] | Rejected | None:
    """Tell what GDAL need not, or must not, look at; None where it may."""
    uri = str(path)
    if start and is_metadata(path.name):
        return read_metadata(path)
    if is_jp2(start) and is_known_jp2(path):
        return _unusable_jp2(path)
    if not is_tiff(start):
        return not_tiff(path, start)
    if path.suffix.lower() == ".ovr":
        return Rejected(uri, "SIDECAR", "overviews of another file; they repeat its pixels", junk=True)
    return None


def _unusable_jp2(path: Path) -> Rejected | None:
    if in_safe(path) and band_of(path) is None:
        return Rejected(str(path), "PRODUCT_FILE", "a file of a product that holds no band; it is not read", junk=True)
    if not jp2_is_whole(path):
        return Rejected(str(path), "TRUNCATED", "the file ends before its pixels do: cut off; fetch it again")
    return None


def not_tiff(path: Path, start: bytes) -> Rejected:
    """Say what a file is that does not begin as a TIFF."""
    # macOS leaves ._NAME beside NAME on foreign disks.
    named = path.suffix.lower() in _TIFF_NAMES and not path.name.startswith("._")
    if not start:
        return Rejected(str(path), "ZERO_BYTES", "the file holds no bytes; fetch it again", junk=not named)
    if path.suffix.lower() in _SIDECARS:
        return Rejected(str(path), "SIDECAR", "a sidecar that is no TIFF; it is not read", junk=True)
    found = next((name for magic, name in _OTHER_FORMATS if start.lstrip().startswith(magic)), "no TIFF header")
    if not named:
        return Rejected(str(path), "NOT_GEOTIFF", f"found {found}; only GeoTIFF files are scenes", junk=True)
    reason = (
        f"named {path.suffix}, but holds {found}; only GeoTIFF is read: `gdal_translate -of COG IN OUT.tif` converts it"
    )
    return Rejected(str(path), "NOT_GEOTIFF", reason)


def _oversized(dataset: DatasetReader, size: int, uri: str) -> Rejected | None:
    """Refuse what its header only promises, before anything is allocated by it."""
    if dataset.count < 1:
        return Rejected(uri, "NO_BANDS", "the file holds no bands; check it with `gdalinfo`")
    lacking = missing_bytes(dataset, size)
    if lacking:
        reason = f"the last block ends {lacking} bytes past the end of the file ({size} bytes): cut off; fetch it again"
        return Rejected(uri, "TRUNCATED", reason)
    pixel_bytes = sum(np.dtype(_numpy_name(name)).itemsize for name in dataset.dtypes)
    block_height, block_width = dataset.block_shapes[0]
    row_bytes = max(dataset.width, block_width) * block_height * pixel_bytes
    if row_bytes > _MOST_ROW_BYTES:
        reason = (
            f"one row of its blocks ({dataset.width} x {block_height} pixels, {dataset.count} bands) takes "
            f"{row_bytes / 2**30:.0f} GiB of memory, {_MOST_ROW_BYTES >> 30} at most is read; "
            "`gdal_translate -of COG IN OUT.tif` gives it small blocks"
        )
        return Rejected(uri, "BLOCK_TOO_LARGE", reason)
    return None


def _numpy_name(dtype: str) -> str:
    """Map GDAL's complex integers, which numpy lacks, to a complex dtype of at least their width."""
    return "complex64" if dtype.startswith("complex_int") else dtype


def _scene(dataset: DatasetReader, path: Path) -> Mapping[str, Json] | Rejected:
    dtypes = [str(name) for name in dataset.dtypes]
    odd = sorted({name for name in dtypes if np.dtype(_numpy_name(name)).kind not in "iuf"})
    if odd:
        reason = f"pixels of dtype {', '.join(odd)}; only integers and floats are read: store amplitude, or its parts"
        return Rejected(str(path), "UNSUPPORTED_DTYPE", reason)
    bands, notes = _band_names(dataset.descriptions)
    alpha = _alpha_bands(dataset)
    scaled = [scale != 1 or offset != 0 for scale, offset in zip(dataset.scales, dataset.offsets, strict=True)]
    if not all(math.isfinite(value) for value in (*dataset.scales, *dataset.offsets)) or 0 in dataset.scales:
        return Rejected(
            str(path), "BAD_SCALE", "a scale or offset tag is no finite number, or a scale is zero; correct it"
        )
    if dataset.colorinterp[0] == ColorInterp.palette:
        notes.append("COLORMAP")
    if dataset.subdatasets:
        notes.append("FIRST_PAGE_ONLY")
    units = {unit or "" for unit in dataset.units}
    placed, place_notes = _place(dataset)
    spectra = _spectra(dataset)
    return {
        "kind": "scene",
        "width": dataset.width,
        "height": dataset.height,
        "dtypes": list(dtypes),
        "bands": list(bands),
        "alpha": list(alpha),
        "scaled": list(scaled),
        **(
            {"scales": [list(pair) for pair in zip(dataset.scales, dataset.offsets, strict=True)]}
            if any(scaled)
            else {}
        ),
        "unit": units.pop() if len(units) == 1 else "",
        "acquired_at": _acquired_at(dataset),
        "notes": [*notes, *place_notes, *_ignored_sidecars(path)],
        **placed,
        **({"spectra": spectra} if spectra else {}),
    }


def _spectra(dataset: DatasetReader) -> list[Json]:
    """Give centre, lower and upper wavelength of each band in nm by its tags; nothing where no band has them.

    GDAL keeps them in the domain IMAGERY (CENTRAL_WAVELENGTH_UM, FWHM_UM), ENVI's writers as wavelength and fwhm. A
    band without a width covers no wavelength that we could know.
    """
    found: list[Json] = []
    for number in range(1, dataset.count + 1):
        tags = {name.upper(): value for name, value in dataset.tags(number).items()}
        imagery = dataset.tags(number, ns="IMAGERY")
        factor = _NM_PER.get(tags.get("WAVELENGTH_UNITS", "").lower(), 0)
        values = [(imagery.get("CENTRAL_WAVELENGTH_UM"), imagery.get("FWHM_UM"), 1000)]
        values += [(tags.get("WAVELENGTH"), tags.get("FWHM"), factor)]
        found.append(next((item for item in (_range_nm(*value) for value in values) if item), None))
    return found if any(found) else []


def _range_nm(centre: str | None, width: str | None, factor: float) -> Json:
    try:
        centre_nm, width_nm = float(centre or 0) * factor, float(width or 0) * factor
    except ValueError:
        return None
    if not (0 < centre_nm < math.inf and 0 < width_nm < math.inf):
        return None
    return [round(value, 4) for value in (centre_nm, centre_nm - width_nm / 2, centre_nm + width_nm / 2)]


def _band_names(descriptions: Sequence[str | None]) -> tuple[list[str], list[str]]:
    """Name the bands by their descriptions, else b1..bN; also gives the notes."""
    names = [(text or "").strip() or f"b{number}" for number, text in enumerate(descriptions, start=1)]
    if len(set(names)) < len(names):
        return [f"b{number}" for number in range(1, len(names) + 1)], ["DUPLICATE_BAND_NAMES"]
    return names, []


def _alpha_bands(dataset: DatasetReader) -> list[int]:
    """Find the bands (from 1) that only say which pixels are there.

    GDAL marks the fourth band of four bytes as alpha even where it is near infrared: a band with a name of its own is
    a channel.
    """
    found = [
        number
        for number, (role, text) in enumerate(zip(dataset.colorinterp, dataset.descriptions, strict=True), start=1)
        if role == ColorInterp.alpha and (text or "").strip().lower() in _ALPHA_NAMES
    ]
    return found if len(found) < dataset.count else []


def _place(dataset: DatasetReader) -> tuple[dict[str, Json], list[str]]:
    """Tell where the scene lies, and what is odd about it."""
    transform, crs, notes = dataset.transform, dataset.crs, []
    points = [[float(value) for value in (point.row, point.col, point.x, point.y)] for point in dataset.gcps[0]]
    fitted = None
    if not crs and len(points) >= 3:
        notes.append("GCP_ONLY")
        # Good enough to tell the block of ground, not to place a pixel: the grid stays without a transform.
        fitted = fitted_transform(points, dataset.gcps[1]) if dataset.gcps[1] else None
        if fitted is not None:
            transform, crs = Affine(*fitted), dataset.gcps[1]
    elif not crs:
        notes.append("RPC_ONLY" if dataset.rpcs else "NO_CRS")
    values = [float(value) for value in transform[:6]]
    usable = all(math.isfinite(value) for value in values) and transform.determinant != 0
    if usable and fitted is None and (transform.b or transform.d):
        notes.append("ROTATED")
    placed: dict[str, Json] = {
        "crs": crs_text(crs) if crs and fitted is None else None,
        "transform": list(values) if usable and fitted is None and (crs or not transform.is_identity) else None,
        "ground": None,
        "gsd_m": None,
        "fitted": None,
    }
    if fitted is not None and usable:
        placed["fitted"] = {"crs": crs_text(crs), "transform": list(values), "gcps": [[*point] for point in points]}
    if crs and usable:
        a, b, c, d, e, f = values
        x = a * dataset.width / 2 + b * dataset.height / 2 + c
        y = d * dataset.width / 2 + e * dataset.height / 2 + f
        placed["gsd_m"] = gsd_m(crs, values, dataset.height / 2, dataset.width / 2)
        placed["ground"] = _centre(crs, x, y)
        if placed["ground"] is None:
            notes.append("NO_GROUND")
    return placed, notes


def _centre(crs: CRS, x: float, y: float) -> Json:
    point = to_equal_area(crs, np.array([x]), np.array([y]))[:, 0]
    return [float(value) for value in point] if np.isfinite(point).all() else None


def _acquired_at(dataset: DatasetReader) -> str | None:
    tags = {**dataset.tags(), **dataset.tags(ns="IMAGERY")}
    upper = {str(name).upper(): str(value).strip() for name, value in tags.items()}
    for name in _DATE_TAGS:
        text = upper.get(name, "")
        # TIFF 6.0 writes YYYY:MM:DD HH:MM:SS.
        iso = re.sub(r"^(\d{4}):(\d{2}):(\d{2})", r"\1-\2-\3", text)
        try:
            moment = datetime.fromisoformat(iso)
        except ValueError:
            continue
        return moment.isoformat()
    return None


def _ignored_sidecars(path: Path) -> list[str]:
    """Note files beside the scene that other readers would heed; the content of the scene file alone counts here."""
    notes = []
    aux = path.with_name(path.name + ".aux.xml")
    if aux.is_file() and aux.stat().st_size < 1 << 22 and _AUX_CHANGES.search(aux.read_bytes()):
        notes.append("AUX_XML_IGNORED")
    if any(path.with_suffix(suffix).is_file() for suffix in (".tfw", ".tifw", ".wld", ".TFW")):
        notes.append("WORLD_FILE_IGNORED")
    return notes
