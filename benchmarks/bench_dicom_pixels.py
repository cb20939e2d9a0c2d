"""DICOM pixels to float32 volumes: an uncompressed series, the compressed syntaxes, and two threads against one.

Ours reads by the plan of the catalog. Peers read as their users do: pydicom decodes by the first plugin that it finds,
so a table says where pylibjpeg, the plugin of most installations, is missing.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian

from benchmarks.frame import Case, Table
from vitpipe.config import DicomSource
from vitpipe.domains.base import ScanContext
from vitpipe.domains.dicom import Dicom
from vitpipe.domains.dicom.raster import DicomRaster
from vitpipe.pseudonym import Pseudonymiser
from vitpipe.records import FileRecord, Grid, Source

_EDGE = 512
_SYNTAXES = {
    "JPEG baseline": "1.2.840.10008.1.2.4.50",
    "JPEG lossless": "1.2.840.10008.1.2.4.70",
    "JPEG-LS": "1.2.840.10008.1.2.4.80",
    "JPEG 2000 lossless": "1.2.840.10008.1.2.4.90",
    "HTJ2K lossless": "1.2.840.10008.1.2.4.201",
    "RLE": "1.2.840.10008.1.2.5",
}
_PLUGINS = ("pylibjpeg", "jpeg_ls")
# Without them pydicom has no decoder at all, so there is no peer.
_NEEDED = {
    "JPEG lossless": ("pylibjpeg", "libjpeg"),
    "JPEG-LS": ("jpeg_ls",),
    "HTJ2K lossless": ("pylibjpeg", "openjpeg"),
}
_CODECS = tuple(f"imagecodecs._{name}" for name in ("jpeg8", "jpegls", "jpeg2k", "htj2k", "imcd"))


def tables(folder: Path, *, large: bool) -> list[Table]:
    """Give the table of the uncompressed series, one a compressed syntax, and those of threads."""
    frames = 200 if large else 60
    plain = str(write_series(folder / "plain", frames, ExplicitVRLittleEndian))
    at = (plain,)
    cases = (
        Case("vitpipe, float32 volume", ours, at),
        Case("vitpipe, float32 volume, two threads", ours_two, at),
        Case("vitpipe, the source's int16", ours_whole, at, result_may_differ=True),
        Case("limit: bytes read into float32, nothing checked", raw, (plain, frames), result_may_differ=True),
        Case("pydicom: dcmread, pixel_array, rescale, stack", by_pydicom, at, ("pydicom.pixels",)),
    )
    volumes = (
        Case("vitpipe, float32 volume", ours, at),
        Case("SimpleITK ImageSeriesReader, to float32", by_simpleitk, at, ("SimpleITK",)),
        Case("MONAI LoadImage (PydicomReader)", by_monai, at, ("monai.transforms", "pydicom.pixels")),
    )
    title = f"DICOM series: {frames} x {_EDGE}^2, uncompressed"
    # Two tables: on a virtual machine whoever runs after a case that gave back gigabytes pays for touching them anew.
    note = "The limit checks and converts nothing: a CPU second of ours cannot go below it, the column `wall s` can."
    made = [Table(title, cases, frames, "slices", (note,)), Table(f"{title}, other readers", volumes, frames, "slices")]
    missing = [name for name in _PLUGINS if importlib.util.find_spec(name) is None]
    notes = (
        (f"pydicom's plugins {', '.join(missing)} are not installed: it takes another, or none.",) if missing else ()
    )
    for name, syntax in _SYNTAXES.items():
        few = frames // 2
        place = str(write_series(folder / name.replace(" ", "-"), few, syntax))
        lossy = name == "JPEG baseline"
        cases = (
            Case("vitpipe", ours, (place,), _CODECS),
            Case(
                "pydicom's default",
                by_pydicom,
                (place,),
                ("pydicom.pixels", *_NEEDED.get(name, ())),
                result_may_differ=lossy,
            ),
        )
        made.append(Table(f"DICOM series: {few} x {_EDGE}^2, {name}", cases, few, "slices", notes))
    for name in ("JPEG lossless", "JPEG 2000 lossless"):
        place = str(folder / name.replace(" ", "-"))
        cases = (Case("vitpipe, two threads", ours_threads, (place, 2)), Case("one thread", ours_threads, (place, 1)))
        note = "Threads spare wall time, not CPU time: compare the column `wall s` on an idle machine."
        made.append(Table(f"DICOM threads: {name}", cases, few * _REPEATS, "slices", (note,)))
    return made


def picture(number: int) -> NDArray[np.uint16]:
    """A slice of a body in air, with tissue, bone and the noise of a scanner: 12 bits, stored as HU + 1024."""
    rng = np.random.default_rng(number)
    row, col = np.mgrid[-1 : 1 : _EDGE * 1j, -1 : 1 : _EDGE * 1j]
    radius = np.hypot(row / 0.8, col / 0.95)
    values = np.where(radius < 0.9, 1064.0, 24.0)
    values += 60 * np.sin(7 * row + number / 9) * np.cos(5 * col) * (radius < 0.85)
    values[np.hypot(row - 0.45, col) < 0.12] = 1700
    values[np.hypot(row, col - 0.4) < 0.25] = 250
    values += rng.normal(0, 8, values.shape)
    return values.clip(0, 4095).astype(np.uint16)


def _encoded(values: NDArray[np.uint16], syntax: str) -> bytes:
    import imagecodecs

    encoders: dict[str, Callable[[NDArray[Any]], bytes]] = {
        _SYNTAXES["JPEG baseline"]: lambda frame: bytes(imagecodecs.jpeg8_encode(frame, level=90)),
        _SYNTAXES["JPEG lossless"]: lambda frame: bytes(
            imagecodecs.jpeg8_encode(frame, lossless=True, predictor=1, bitspersample=12)
        ),
        _SYNTAXES["JPEG-LS"]: lambda frame: bytes(imagecodecs.jpegls_encode(frame)),
        _SYNTAXES["JPEG 2000 lossless"]: lambda frame: bytes(
            imagecodecs.jpeg2k_encode(frame, codecformat="j2k", reversible=True, bitspersample=12)
        ),
        _SYNTAXES["HTJ2K lossless"]: lambda frame: bytes(imagecodecs.htj2k_encode(frame, reversible=True)),
        _SYNTAXES["RLE"]: _runs,
    }
    return encoders[syntax](values)


def _runs(frame: NDArray[np.uint16]) -> bytes:
    """Encode by runs: a byte plane a segment, the most significant byte first."""
    import imagecodecs

    planes = [np.ascontiguousarray(frame >> 8).astype(np.uint8), (frame & 255).astype(np.uint8)]
    segments = [bytes(imagecodecs.packbits_encode(plane)) for plane in planes]
    segments = [segment + b"\0" * (len(segment) % 2) for segment in segments]
    return np.array([2, 64, 64 + len(segments[0]), *[0] * 13], "<u4").tobytes() + b"".join(segments)


def write_series(folder: Path, frames: int, syntax: str) -> Path:
    """Write a CT series in a transfer syntax, and its catalog entry beside it."""
    files = folder / "files"
    files.mkdir(parents=True)
    eight = syntax == _SYNTAXES["JPEG baseline"]
    for number in range(frames):
        values = picture(number)
        if eight:
            values = (values >> 4).astype(np.uint8)
        _write(files / f"{number:04d}.dcm", number, values, syntax)
    (folder / "source.json").write_text(json.dumps(_as_json(_index(files))), encoding="utf-8")
    return folder


def _write(path: Path, number: int, values: NDArray[Any], syntax: str) -> None:
    """Write a slice with the header of a real scanner, some 260 elements: the one of pydicom's CT_small.dcm."""
    item = dcmread(str(get_testdata_file("CT_small.dcm")))
    item.file_meta.TransferSyntaxUID = syntax
    item.SOPInstanceUID = item.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.9.{number}"
    item.InstanceNumber = number + 1
    item.ImagePositionPatient, item.ImageOrientationPatient = [0, 0, float(number)], [1, 0, 0, 0, 1, 0]
    item.PixelSpacing, item.RescaleSlope, item.RescaleIntercept = [0.8, 0.8], 1, -1024
    item.Rows, item.Columns = values.shape
    item.SamplesPerPixel, item.PhotometricInterpretation, item.PixelRepresentation = 1, "MONOCHROME2", 0
    bits = 8 * values.dtype.itemsize
    item.BitsAllocated, item.BitsStored = bits, min(bits, 12)
    item.HighBit = item.BitsStored - 1
    for keyword in ("PixelPaddingValue", "SmallestImagePixelValue", "LargestImagePixelValue", "DataSetTrailingPadding"):
        if keyword in item:
            delattr(item, keyword)
    if syntax == ExplicitVRLittleEndian:
        item.PixelData = values.tobytes()
    else:
        item.PixelData = encapsulate([_encoded(values, syntax)])
        item["PixelData"].is_undefined_length = True
    item["PixelData"].VR = "OW"
    item.save_as(path, enforce_file_format=True)


def _index(files: Path) -> Source:
    context, domain = ScanContext(files, Pseudonymiser(b"bench"), DicomSource(path=str(files))), Dicom()
    records = []
    for path in sorted(files.iterdir()):
        header = domain.index(path, context)
        if not isinstance(header, dict):
            raise TypeError(f"a file was rejected: {header}")
        records.append(FileRecord(str(path), path.stat().st_size, 0, f"{len(records):032x}", header))
    (source,) = domain.assemble(records, context)
    if not isinstance(source, Source):
        raise TypeError(f"the series was rejected: {source}")
    return source


def _as_json(source: Source) -> dict[str, Any]:
    fields = ("source_id", "group_id", "uri", "files", "channels", "units", "dtype", "reader")
    return {name: getattr(source, name) for name in fields} | {"grid": source.grid.to_json()}


def _source(folder: str) -> Source:
    """Read the entry as a stage reads the catalog."""
    entry = json.loads((Path(folder) / "source.json").read_text(encoding="utf-8"))
    entry |= {"grid": Grid.from_json(entry["grid"]), "files": tuple(entry["files"])}
    return Source(domain="dicom", **(entry | {"channels": tuple(entry["channels"])}))


def _sum(volume: NDArray[np.generic]) -> float:
    return float(volume[..., ::16, ::16].sum(dtype=np.float64))


def ours(folder: str) -> float:
    """Read the volume in float32 by the plan."""
    return _sum(DicomRaster(_source(folder)).read_frames(0, len(_source(folder).files), dtype=np.float32)[0])


def ours_two(folder: str) -> float:
    """Read the volume in float32 by the plan, with two threads."""
    source = _source(folder)
    return _sum(DicomRaster(source).read_frames(0, len(source.files), dtype=np.float32, threads=2)[0])


def ours_whole(folder: str) -> float:
    """Read the volume in the dtype that holds its HU."""
    source = _source(folder)
    return _sum(DicomRaster(source).read_frames(0, len(source.files))[0])


_REPEATS = 3


def ours_threads(folder: str, threads: int) -> float:
    """Read the volume some times over with so many threads."""
    source = _source(folder)
    raster, total = DicomRaster(source), 0.0
    for _ in range(_REPEATS):
        total += _sum(raster.read_frames(0, len(source.files), dtype=np.float32, threads=threads)[0])
    return total


def _paths(folder: str) -> list[Path]:
    return sorted((Path(folder) / "files").iterdir())


def raw(folder: str, frames: int) -> float:
    """Read the last bytes of every file and convert them."""
    volume = np.empty((frames, _EDGE, _EDGE), np.float32)
    for place, path in enumerate(_paths(folder)):
        with path.open("rb") as stream:
            stream.seek(-2 * _EDGE * _EDGE, 2)
            volume[place] = np.fromfile(stream, np.uint16).reshape(_EDGE, _EDGE)
    return _sum(volume)


def by_pydicom(folder: str) -> float:
    """Read, decode, rescale and stack as in pydicom's own examples."""
    from pydicom import dcmread
    from pydicom.pixels import apply_rescale

    slices = []
    for path in _paths(folder):
        item = dcmread(path)
        slices.append(apply_rescale(item.pixel_array, item).astype(np.float32))
    return _sum(np.stack(slices))


def by_monai(folder: str) -> float:
    """Load the folder as MONAI's users do."""
    from monai.transforms import LoadImage

    volume = np.asarray(
        LoadImage(reader="PydicomReader", image_only=True, dtype=np.float32)(str(Path(folder) / "files"))
    )
    # MONAI's axes are column, row, slice.
    return _sum(volume.transpose(2, 1, 0))


def by_simpleitk(folder: str) -> float:
    """Load the series as SimpleITK's users do."""
    import SimpleITK

    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(Path(folder) / "files")))
    return _sum(SimpleITK.GetArrayFromImage(reader.Execute()).astype(np.float32))
