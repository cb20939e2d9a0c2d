"""Labels from DICOM segmentations: binary, fractional or label maps, their frames in any order, by position."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from vitpipe.config import DicomSegLabels
from vitpipe.errors import LabelError, UnreadableSource
from vitpipe.labels import objects
from vitpipe.labels.base import LabelSet, PlanesOf
from vitpipe.labels.objects import Candidates, Gathered, LabelObject, floats, image_reference, items, quiet
from vitpipe.labels.placing import Placing, region_label_set
from vitpipe.labels.planes import LabelPlane, Reference
from vitpipe.labels.segmask import SegMask, SegReader
from vitpipe.pseudonym import Pseudonymiser
from vitpipe.records import Source

SOP_CLASSES: Final = {
    "1.2.840.10008.5.1.4.1.1.66.4": "DICOM segmentation (SEG)",
    "1.2.840.10008.5.1.4.1.1.66.7": "DICOM segmentation (SEG)",
}


def read_seg_labels(
    recipe: DicomSegLabels, sources: Sequence[Source], pseudonym: Pseudonymiser, planes_of: PlanesOf
) -> LabelSet:
    """Read all segmentations of a folder and map them onto the sources.

    Args:
        recipe: names the folder, which segments are classes, and how much of a tile one must cover.
        sources: the catalog.
        pseudonym: maps identifiers as the domain does.
        planes_of: reads where a source's frames lie.

    Raises:
        ConfigError: there is no segmentation.
        LabelError: none of them can be used; names the codes.
    """
    gathered, reader = Gathered(), SegReader()
    candidates = Candidates(sources, pseudonym, planes_of)
    for item in objects.find_objects(Path(recipe.path), SOP_CLASSES, gathered):
        try:
            with quiet():
                _take((item, reader), recipe, candidates, gathered)
        except LabelError as error:
            gathered.reject(item.path, objects.UNREADABLE, str(error))
        except UnreadableSource as error:
            gathered.reject(item.path, objects.NO_SOURCE, f"where its images lie cannot be read: {error}")
        except objects.PARSE_ERRORS as error:
            reason = f"the header does not make sense ({type(error).__name__}); export it again"
            gathered.reject(item.path, objects.UNREADABLE, reason)
    return region_label_set(recipe, sources, gathered)


def _take(
    source: tuple[LabelObject, SegReader], recipe: DicomSegLabels, candidates: Candidates, gathered: Gathered
) -> None:
    item, reader = source
    dataset = item.dataset
    kind = str(dataset.get("SegmentationType", "")).upper()
    wanted = _wanted(dataset, recipe)
    if not wanted:
        names = ", ".join(sorted({_name(segment, recipe) for segment in items(dataset, "SegmentSequence")}))
        gathered.reject(
            item.path, objects.EMPTY, f"none of its segments ({names or 'it has none'}) is in `labels.segments`"
        )
        return
    placing = Placing.of(item, _references(dataset), candidates, gathered)
    frame_uid = dataset.get("FrameOfReferenceUID")
    stated = [candidates.named("frame_of_reference", frame_uid)] if frame_uid else []
    if placing is None or not placing.keep_frame_of_reference(stated):
        return
    threshold = recipe.threshold * float(dataset.get("MaximumFractionalValue") or 255) if kind == "FRACTIONAL" else 1
    drawn: dict[tuple[str, int], list[tuple[str, SegMask]]] = {}
    for frame, (plane, number) in enumerate(_planes(dataset, candidates)):
        stored = reader.read(str(item.path), frame)
        here = [value for value in _segments_in(stored, kind, number, threshold) if value in wanted]
        if not here:
            continue
        for hit in placing.locate(plane):
            for value in here:
                only = value if kind == "LABELMAP" else None
                mask = SegMask(reader, str(item.path), frame, only, threshold, (hit.row, hit.col))
                drawn.setdefault((hit.source_id, hit.frame), []).append((wanted[value], mask))
    placing.finish(drawn)


def _wanted(dataset: Dataset, recipe: DicomSegLabels) -> dict[int, str]:
    """Give segment number to class."""
    wanted = {}
    for segment in items(dataset, "SegmentSequence"):
        number, name = int(segment.SegmentNumber), _name(segment, recipe)
        if number == 0:
            # In a label map what belongs to no segment (PS3.3 C.8.20.2).
            continue
        if recipe.segments is None:
            wanted[number] = name
        elif name in recipe.segments:
            wanted[number] = recipe.segments[name]
    return wanted


def _name(segment: Dataset, recipe: DicomSegLabels) -> str:
    if recipe.name == "code":
        for code in items(segment, "SegmentedPropertyTypeCodeSequence"):
            return str(code.get("CodeMeaning", "")).strip()
    return str(segment.get("SegmentLabel", "")).strip()


def _references(dataset: Dataset) -> dict[str, list[str]]:
    """Give what the object says it was drawn on; UIDs in clear."""
    series: list[str] = []
    instances: list[str] = []
    for item in items(dataset, "ReferencedSeriesSequence"):
        series.append(str(item.get("SeriesInstanceUID", "")))
        instances += [str(one.ReferencedSOPInstanceUID) for one in items(item, "ReferencedInstanceSequence")]
    return {"instance_uid": instances, "series_uid": series, "study_uid": [str(dataset.get("StudyInstanceUID", ""))]}


def _planes(dataset: Dataset, candidates: Candidates) -> Iterator[tuple[LabelPlane, int | None]]:
    """Give each frame's plane and the number of its segment (None: a label map)."""
    shape = int(dataset.Rows), int(dataset.Columns)
    shared = (items(dataset, "SharedFunctionalGroupsSequence") or [Dataset()])[0]
    for group in items(dataset, "PerFrameFunctionalGroupsSequence"):
        plane = LabelPlane(
            position=_of(group, shared, "PlanePositionSequence", ("ImagePositionPatient", 3)),
            orientation=_of(group, shared, "PlaneOrientationSequence", ("ImageOrientationPatient", 6)),
            spacing_mm=_of(group, shared, "PixelMeasuresSequence", ("PixelSpacing", 2)),
            shape=shape,
            references=tuple(_sources_of(group, candidates)) or tuple(_sources_of(shared, candidates)),
        )
        number = None
        for holder in (group, shared):
            for item in items(holder, "SegmentIdentificationSequence"):
                number = int(item.ReferencedSegmentNumber)
        yield plane, number


def _of(group: Dataset, shared: Dataset, sequence: str, what: tuple[str, int]) -> tuple[float, ...] | None:
    for holder in (group, shared):
        for item in items(holder, sequence):
            return floats(item, *what)
    return None


def _sources_of(group: Dataset, candidates: Candidates) -> Iterator[Reference]:
    for derivation in items(group, "DerivationImageSequence"):
        for image in items(derivation, "SourceImageSequence"):
            yield image_reference(image, candidates)


def _segments_in(stored: NDArray[Any], kind: str, number: int | None, threshold: float) -> Sequence[int]:
    """Give the segments that hold any pixel of a frame."""
    if kind == "LABELMAP":
        return [int(value) for value in np.unique(stored)]
    return [number] if number is not None and bool((stored >= threshold).any()) else []
