"""Small synthetic DICOM series. No value here is a person's: names and numbers are canaries that must not come out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    generate_uid,
)

from vitpipe.config import DicomSource
from vitpipe.digest import digest_file
from vitpipe.domains.base import ScanContext
from vitpipe.domains.dicom import Dicom
from vitpipe.pseudonym import Pseudonymiser
from vitpipe.records import FileRecord, Rejected, Source, Window

STUDY, SERIES, FRAME = "1.2.3.777.1", "1.2.3.777.2", "1.2.3.777.3"
CANARIES = ("CANARY-ID", "Canary^Name", "19370405", "20190607", "123456.789", STUDY, SERIES, FRAME)
ROWS, COLS = 12, 8


def instance(number: int, **values: object) -> Dataset:
    """One CT slice at z = 2.5 * number whose stored values are number * 100 + index, changed by `values`."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, f"1.2.3.777.4.{number}"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = STUDY, SERIES, FRAME
    dataset.PatientID, dataset.PatientName, dataset.PatientBirthDate = "CANARY-ID", "Canary^Name", "19370405"
    dataset.StudyDate, dataset.ContentTime, dataset.PatientSex = "20190607", "123456.789", "F"
    dataset.Modality, dataset.Manufacturer, dataset.InstanceNumber = "CT", "Maker", number
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, 2.5 * number], [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing, dataset.SliceThickness, dataset.KVP = [0.5, 0.8], 9.0, 120
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = ROWS, COLS, 1
    dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelData = stored(number).tobytes()
    for keyword, value in values.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    return dataset


def enhanced(order: list[int]) -> Dataset:
    """A multi-frame CT whose frames lie in `order`, with a rescale of their own."""
    gone = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept")
    dataset = instance(0, **dict.fromkeys(gone), SOPClassUID=EnhancedCTImageStorage)
    measures, plane, shared = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, plane.ImageOrientationPatient = [0.5, 0.8], [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Items([measures]), Items([plane])
    frames = []
    for number in order:
        place, rescale, group = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [0, 0, 2.5 * number]
        rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = 1 + number, -1024, "HU"
        group.PlanePositionSequence = Items([place])
        group.PixelValueTransformationSequence = Items([rescale])
        frames.append(group)
    dataset.SharedFunctionalGroupsSequence = Items([shared])
    dataset.PerFrameFunctionalGroupsSequence = Items(frames)
    dataset.NumberOfFrames = len(order)
    dataset.PixelData = np.stack([stored(number) for number in order]).tobytes()
    return dataset


def stored(number: int) -> NDArray[np.uint16]:
    return (np.arange(ROWS * COLS, dtype=np.uint16) + 100 * number).reshape(ROWS, COLS)


def save(dataset: Dataset, path: Path, syntax: str = ExplicitVRLittleEndian, *, preamble: bool = True) -> Path:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID", CTImageStorage)
    meta.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID", generate_uid())
    path.parent.mkdir(parents=True, exist_ok=True)
    written = FileDataset(str(path), dataset, file_meta=meta, preamble=b"\0" * 128)
    written.set_original_encoding(syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian)
    dcmwrite(path, written, enforce_file_format=True)
    if not preamble:
        # Such files have no meta group either: the data set begins with the first element of group 0008.
        whole = path.read_bytes()
        path.write_bytes(whole[132 + 12 + int.from_bytes(whole[140:144], "little") :])
    return path


def series(folder: Path, numbers: Iterable[int] = range(6), **values: object) -> list[Path]:
    return [save(instance(number, **values), folder / f"{number:02d}") for number in numbers]


def context(root: Path, modality: str | None = None, geometry: Literal["strict", "repair"] = "strict") -> ScanContext:
    recipe = DicomSource(path=str(root), modality=modality, geometry=geometry)
    return ScanContext(root, Pseudonymiser(b"test key"), recipe)


def scan(
    root: Path,
    modality: str | None = None,
    reverse: bool = False,
    geometry: Literal["strict", "repair"] = "strict",
) -> tuple[list[Source], list[Rejected]]:
    """Index and assemble a folder, through the JSON in which the index is kept."""
    domain, where = Dicom(), context(root, modality, geometry)
    records, found = [], []
    for path in sorted((item for item in root.rglob("*") if item.is_file()), reverse=reverse):
        header = domain.index(path, where)
        if isinstance(header, Rejected):
            found.append(header)
        else:
            kept = json.loads(json.dumps(header, allow_nan=False))
            records.append(FileRecord(str(path), path.stat().st_size, 0, digest_file(path), kept))
    sources = []
    for item in domain.assemble(records, where):
        (sources if isinstance(item, Source) else found).append(item)  # type: ignore[arg-type]
    return sources, found


def read(source: Source, frame: int = 0) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
    with Dicom().open(source) as raster:
        return raster.read(Window(frame, 0, 0, source.grid.height, source.grid.width))


def codes(found: Sequence[Rejected]) -> list[str]:
    return sorted(item.code for item in found)
