"""Segmentations and structure sets on the small CT series of the reader's tests, with masks that say what is right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread

from tests.domains.dicom_cases import COLS, FRAME, ROWS, SERIES, STUDY, instance, save, scan, stored
from vitpipe.config import DicomRtstructLabels, DicomSegLabels
from vitpipe.domains.known import planes_of
from vitpipe.labels import LabelSet, read_labels
from vitpipe.pseudonym import Pseudonymiser
from vitpipe.records import Source

PSEUDONYM = Pseudonymiser(b"test key")
FRAMES = 6


def make_series(folder: Path, frames: int = FRAMES, **values: object) -> tuple[list[Dataset], list[Source]]:
    """Write a series; give its headers in the order of position, and its sources."""
    headers = [instance(number, **values) for number in range(frames)]
    for number, header in enumerate(headers):
        for keyword in ("StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"):
            setattr(header, keyword, "")
        save(header, folder / f"{(number * 5) % frames}-{number}")
    return headers, scan(folder)[0]


def make_twins(folder: Path) -> tuple[list[Dataset], list[Source]]:
    """Write a series whose first two frames lie in one place, as those of a film; give both headers, and its sources.

    The order of names is not that of the frames.
    """
    headers, _ = make_series(folder, 4)
    header = instance(0, SOPInstanceUID="1.2.3.777.4.99", InstanceNumber=99)
    header.PixelData = (stored(0) + 3).astype(np.uint16).tobytes()
    for keyword in ("StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"):
        setattr(header, keyword, "")
    save(header, folder / "0")
    return [headers[0], header], scan(folder)[0]


def frame_of(source: Source, header: Dataset) -> int:
    uid = PSEUDONYM("instance_uid", header.SOPInstanceUID)
    (frame,) = [frame for frame, plane in enumerate(planes_of(source, PSEUDONYM)) if plane.instance_uid == uid]
    return frame


def random_masks(classes: int, frames: int = FRAMES, seed: int = 0) -> NDArray[np.bool_]:
    """Masks (frames, rows, cols, classes) that overlap; the last frame is empty."""
    rng = np.random.default_rng(seed)
    masks = rng.random((frames, ROWS, COLS, classes)) < 0.4
    masks[-1] = False
    return masks


def write_seg(
    path: Path, headers: Sequence[Dataset], pixels: NDArray[np.generic], kind: str = "BINARY", **values: object
) -> Path:
    """Write a segmentation by highdicom, segment names `part 1`, `part 2`, ...; `values` are set afterwards."""
    from highdicom import seg
    from pydicom.sr.codedict import codes

    count = int(pixels.max()) if pixels.ndim == 3 else pixels.shape[-1]
    segments = [
        seg.SegmentDescription(
            number, f"part {number}", codes.SCT.Organ, (codes.SCT.Liver, codes.SCT.Spleen, codes.SCT.Heart)[number - 1],
            seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        for number in range(1, count + 1)
    ]  # fmt: skip
    written = seg.Segmentation(
        list(headers), pixels, kind, segments, "1.2.3.888.1", 1, f"1.2.3.888.{abs(hash(path.name)) % 10**8}", 1,
        "maker", "model", "1", "serial",
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    written.save_as(path)
    # Read again: highdicom shares elements with the headers.
    changed = dcmread(path)
    for keyword, value in values.items():
        setattr(changed, keyword, value)
    changed.save_as(path)
    return path


def rtstruct(
    rois: dict[str, Sequence[NDArray[np.float64]]], kind: str = "CLOSED_PLANAR", frame: str = FRAME
) -> Dataset:
    """Make a structure set: name of a ROI to contours (N, 3) in mm."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.481.3", "1.2.3.889.1"
    dataset.Modality, dataset.PatientID, dataset.PatientName = "RTSTRUCT", "CANARY-ID", "Canary^Name"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = STUDY, "1.2.3.889.2"
    series, study, reference = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID, study.RTReferencedSeriesSequence = SERIES, [series]
    reference.FrameOfReferenceUID, reference.RTReferencedStudySequence = frame, [study]
    dataset.ReferencedFrameOfReferenceSequence = [reference]
    dataset.StructureSetROISequence, dataset.ROIContourSequence = [], []
    for number, (name, contours) in enumerate(rois.items(), start=1):
        roi, drawn = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = number, name, frame
        drawn.ReferencedROINumber, drawn.ContourSequence = number, []
        for points in contours:
            contour = Dataset()
            contour.ContourGeometricType, contour.NumberOfContourPoints = kind, len(points)
            contour.ContourData = [f"{value:.6g}" for value in np.asarray(points).ravel()]
            drawn.ContourSequence.append(contour)
        dataset.StructureSetROISequence.append(roi)
        dataset.ROIContourSequence.append(drawn)
    return dataset


def read_seg(path: Path, sources: Sequence[Source], **values: object) -> LabelSet:
    return read_labels(DicomSegLabels.model_validate({"path": str(path), **values}), sources, PSEUDONYM, planes_of)


def read_rtstruct(path: Path, sources: Sequence[Source], **values: object) -> LabelSet:
    return read_labels(DicomRtstructLabels.model_validate({"path": str(path), **values}), sources, PSEUDONYM, planes_of)


def drawn(labels: LabelSet, source: Source, name: str) -> NDArray[np.bool_]:
    """Give what a class covers (frames, rows, cols)."""
    assert labels.regions is not None
    grid = source.grid
    masks = np.zeros((grid.frames, grid.height, grid.width), bool)
    for frame in range(grid.frames):
        found = labels.regions.masks(source.source_id, frame, grid.height, grid.width)
        if name in found:
            masks[frame] = found[name]
    return masks


def codes(labels: LabelSet) -> list[str]:
    return [item.code for item in labels.rejected]
