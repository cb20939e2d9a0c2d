"""Headers of a tree of DICOM files to the records of the index, against pydicom; and a second look at a tree.

Anchors and goals: at least 20 times faster than plain pydicom on explicit VR little endian, to the very same records;
a second look at an unchanged tree at least 100 times faster than pydicom's first one.
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import pydicom.data
from pydicom import FileDataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from benchmarks.frame import Case, Table
from vitpipe.config import DicomSource, PipelineConfig
from vitpipe.digest import digest_file
from vitpipe.domains.base import ScanContext, render
from vitpipe.domains.dicom import Dicom
from vitpipe.domains.dicom.files import read_file
from vitpipe.domains.dicom.header import FIXED, MOVING, PIXELS
from vitpipe.domains.dicom.instance import read_instance
from vitpipe.fileindex import plan_batches
from vitpipe.ingest import index_files
from vitpipe.pseudonym import Pseudonymiser
from vitpipe.workspace import Workspace

_HEAD_BYTES = 8 << 10
_SLICES = 200
_ROOT = "1.2.826.0.1.3680043.8.498.1000"
_EDGE = 512
# pandas imports the last one when it first reads a table.
_PARQUET = ("pyarrow.dataset", "pyarrow.parquet", "pandas.core.arrays.arrow.extension_types")


def tables(folder: Path, *, large: bool) -> list[Table]:
    """Give a table for each encoding, and one of second looks."""
    count = 4000 if large else 400
    made = []
    for name, syntax in (("explicit", ExplicitVRLittleEndian), ("implicit", ImplicitVRLittleEndian)):
        root = folder / name
        write_tree(root, count, syntax, edge=_EDGE)
        elements = len(dcmread(next(root.rglob("*.dcm")), stop_before_pixels=True))
        cases = (
            Case("vitpipe index", ours, (str(root),)),
            Case("limit: open, read 8 KiB, close", heads, (str(root),), result_may_differ=True),
            Case("pydicom stop_before_pixels, same record", pydicom_record, (str(root),)),
            Case(
                "pydicom stop_before_pixels, values of the same elements",
                pydicom_values,
                (str(root),),
                result_may_differ=True,
            ),
            Case("vitpipe index and digest of the whole file", ours_digested, (str(root),)),
            Case("pydicom, same record and digest of the whole file", pydicom_digested, (str(root),)),
        )
        title = f"DICOM headers to records: {count} files of {_EDGE}^2 x uint16, {elements} elements, {name} VR"
        made.append(Table(title, cases, count, "files"))
    count = 100_000 if large else 4000
    root, workspace = folder / "tree", folder / "workspace"
    write_tree(root, count, ExplicitVRLittleEndian, edge=4)
    first_look(str(root), str(workspace))
    cases = (
        Case("vitpipe, second look at an unchanged tree", second_look, (str(root), str(workspace)), _PARQUET),
        Case("limit: walk the folders, stat every file", walk, (str(root),), result_may_differ=True),
        Case(
            "vitpipe, first look (records and digests)", first_look, (str(root), ""), _PARQUET, result_may_differ=True
        ),
        Case("pydicom, first look (same records, no digests)", pydicom_record, (str(root),), result_may_differ=True),
    )
    made.append(Table(f"A tree of {count} small DICOM files", cases, count, "files"))
    return made


def write_tree(root: Path, count: int, syntax: str, *, edge: int) -> None:
    """Write series of 200 slices with the header of a real CT; the pixels are a hole in the file."""
    dataset = dcmread(Path(pydicom.data.__file__).parent / "test_files" / "CT_small.dcm")
    # The pixels are appended below; nothing may stand behind them.
    del dataset.PixelData, dataset.DataSetTrailingPadding
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.Rows = dataset.Columns = edge
    root.mkdir(parents=True)
    heads_of_one = [_head(dataset, place, syntax) for place in range(min(count, _SLICES))]
    size = 2 * edge * edge
    for number in range(count):
        series, place = divmod(number, _SLICES)
        folder = root / f"{series:04d}"
        folder.mkdir(exist_ok=True)
        # Another patient, study and series: the names are of one length.
        head = heads_of_one[place].replace(_ROOT.encode(), f"{_ROOT[:-4]}{series + 1000}".encode())
        with (folder / f"{place:04d}.dcm").open("wb") as stream:
            stream.write(head + size.to_bytes(4, "little"))
            stream.truncate(stream.tell() + size)


def _head(dataset: FileDataset, place: int, syntax: str) -> bytes:
    """Write a slice up to the length of its pixels."""
    dataset.PatientID, dataset.StudyInstanceUID, dataset.SeriesInstanceUID = _ROOT, f"{_ROOT}.1", f"{_ROOT}.2"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"{_ROOT}.3.{place + 1}"
    dataset.InstanceNumber, dataset.SliceLocation = place + 1, round(1.25 * place - 80, 2)
    dataset.ImagePositionPatient = [-158.135803, -179.035797, round(1.25 * place - 80, 2)]
    dataset.ContentTime = f"12{place // 60:02d}{place % 60:02d}.{place:06d}"
    target, implicit = io.BytesIO(), syntax == ImplicitVRLittleEndian
    dataset.save_as(target, implicit_vr=implicit, little_endian=True)
    return target.getvalue() + (b"\xe0\x7f\x10\x00" if implicit else b"\xe0\x7f\x10\x00OW\0\0")


def _files(root: str) -> list[Path]:
    return sorted(Path(root).rglob("*.dcm"))


def _sum(root: str, text_of: Callable[[Path], str]) -> float:
    return float(sum(zlib.crc32(text_of(path).encode()) for path in _files(root)))


def _context(root: str) -> ScanContext:
    return ScanContext(Path(root), Pseudonymiser(b"bench"), DicomSource(path=root))


def ours(root: str) -> float:
    """Index every file; the sum of the checksums of all records."""
    domain, context = Dicom(), _context(root)
    return _sum(root, lambda path: render(domain.index(path, context)))  # type: ignore[arg-type]


def ours_digested(root: str) -> float:
    """Index every file and digest its bytes, as ingest does."""
    domain, context = Dicom(), _context(root)

    def text_of(path: Path) -> str:
        digest_file(path)
        return render(domain.index(path, context))  # type: ignore[arg-type]

    return _sum(root, text_of)


def pydicom_record(root: str) -> float:
    """Make the same records by pydicom alone."""
    pseudonym = _context(root).pseudonym
    return _sum(root, lambda path: render(read_instance(read_file(path), pseudonym).to_json()))


def pydicom_digested(root: str) -> float:
    """Make the same records by pydicom alone, and digest the bytes."""
    pseudonym = _context(root).pseudonym

    def text_of(path: Path) -> str:
        digest_file(path)
        return render(read_instance(read_file(path), pseudonym).to_json())

    return _sum(root, text_of)


def pydicom_values(root: str) -> float:
    """Take the values of the same elements, and make nothing of them: no check, no pseudonym, no record."""
    keywords = sorted({*FIXED, *MOVING, *PIXELS})
    found = 0
    for path in _files(root):
        dataset = dcmread(path, stop_before_pixels=True)
        found += sum(dataset.get(keyword) is not None for keyword in keywords)
    return float(found)


def heads(root: str) -> float:
    """Read the head of every file."""
    read = 0
    for path in _files(root):
        handle = os.open(path, os.O_RDONLY)
        read += len(os.read(handle, _HEAD_BYTES))
        os.close(handle)
    return float(read)


def walk(root: str) -> float:
    """Stat every file, as any second look must."""
    size, pending = 0, [root]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir():
                    pending.append(entry.path)
                else:
                    size += entry.stat().st_size
    return float(size)


def _configured(root: str, workspace: str) -> tuple[PipelineConfig, Workspace]:
    return PipelineConfig(name="bench", source=DicomSource(path=root), workspace=workspace), Workspace(Path(workspace))


def first_look(root: str, workspace: str) -> float:
    """Index a tree in an empty workspace."""
    config, place = _configured(root, workspace or f"{root}-{os.getpid()}")
    place.prepare()
    looked = sum(index_files(config, place, batch).done for batch in plan_batches(config, place))
    # Takes the pieces into the table, as the catalog does.
    return float(looked + len(plan_batches(config, place)))


def second_look(root: str, workspace: str) -> float:
    """Look whether anything in a tree has changed; the number of batches that are to be read."""
    return float(len(plan_batches(*_configured(root, workspace))))
