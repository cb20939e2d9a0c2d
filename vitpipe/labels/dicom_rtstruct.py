"""Labels from DICOM structure sets: closed contours in patient millimetres, drawn on the frames where they lie."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from vitpipe.config import DicomRtstructLabels
from vitpipe.errors import LabelError, UnreadableSource
from vitpipe.labels import objects
from vitpipe.labels.base import LabelSet, PlanesOf
from vitpipe.labels.contours import ContourMask
from vitpipe.labels.objects import Candidates, Gathered, LabelObject, image_reference, items, quiet
from vitpipe.labels.placing import Placing, region_label_set
from vitpipe.labels.planes import Miss, Reference
from vitpipe.pseudonym import Pseudonymiser
from vitpipe.records import Source

SOP_CLASSES: Final = {"1.2.840.10008.5.1.4.1.1.481.3": "DICOM structure set (RTSTRUCT)"}
_SAME_PLANE_MM: Final = 0.05
_CLOSED: Final = frozenset({"CLOSED_PLANAR", "CLOSEDPLANAR_XOR"})


def read_rtstruct_labels(
    recipe: DicomRtstructLabels, sources: Sequence[Source], pseudonym: Pseudonymiser, planes_of: PlanesOf
) -> LabelSet:
    """Read all structure sets of a folder and map them onto the sources.

    Args:
        recipe: names the folder, which regions are classes, and how much of a tile one must cover.
        sources: the catalog.
        pseudonym: maps identifiers as the domain does.
        planes_of: reads where a source's frames lie.

    Raises:
        ConfigError: there is no structure set.
        LabelError: none of them can be used; names the codes.
    """
    gathered = Gathered()
    candidates = Candidates(sources, pseudonym, planes_of)
    for item in objects.find_objects(Path(recipe.path), SOP_CLASSES, gathered):
        try:
            with quiet():
                _take(item, recipe, candidates, gathered)
        except LabelError as error:
            gathered.reject(item.path, objects.UNREADABLE, str(error))
        except UnreadableSource as error:
            gathered.reject(item.path, objects.NO_SOURCE, f"where its images lie cannot be read: {error}")
        except objects.PARSE_ERRORS as error:
            reason = f"the structure set does not make sense ({type(error).__name__}); export it again"
            gathered.reject(item.path, objects.UNREADABLE, reason)
    return region_label_set(recipe, sources, gathered)


def _take(item: LabelObject, recipe: DicomRtstructLabels, candidates: Candidates, gathered: Gathered) -> None:
    dataset = item.dataset
    wanted = _wanted(dataset, recipe)
    if not wanted:
        names = ", ".join(sorted(_names(dataset).values()))
        gathered.reject(item.path, objects.EMPTY, f"none of its ROIs ({names or 'it has none'}) is in `labels.rois`")
        return
    placing = Placing.of(item, _references(dataset), candidates, gathered)
    stated = [candidates.named("frame_of_reference", uid) for uid in _frames_of_reference(dataset, wanted)]
    if placing is None or not placing.keep_frame_of_reference(stated):
        return
    drawn: dict[tuple[str, int], list[tuple[str, ContourMask]]] = {}
    others: set[str] = set()
    for roi in items(dataset, "ROIContourSequence"):
        number = int(roi.ReferencedROINumber)
        if number not in wanted:
            continue
        found: dict[tuple[str, int], list[tuple[float, NDArray[np.float64]]]] = {}
        for points, references in _contours(roi, others, candidates):
            for frame, height_mm, pixels in _located(points, references, placing):
                found.setdefault(frame, []).append((height_mm, pixels))
        for frame, contours in found.items():
            drawn.setdefault(frame, []).append((wanted[number], ContourMask(_of_nearest_plane(contours))))
    if others:
        reason = f"it has contours of the kinds {', '.join(sorted(others))}, which enclose nothing; they are not used"
        gathered.reject(item.path, objects.UNSUPPORTED, reason)
    placing.finish(drawn)


def _names(dataset: Dataset) -> dict[int, str]:
    return {
        int(roi.ROINumber): str(roi.get("ROIName", "")).strip() for roi in items(dataset, "StructureSetROISequence")
    }


def _wanted(dataset: Dataset, recipe: DicomRtstructLabels) -> dict[int, str]:
    """Give ROI number to class; upper and lower case do not matter in names that people typed."""
    if recipe.rois is None:
        return {number: name for number, name in _names(dataset).items() if name}
    rois: Mapping[str, str] = {name.casefold(): target for name, target in recipe.rois.items()}
    return {number: rois[name.casefold()] for number, name in _names(dataset).items() if name.casefold() in rois}


def _frames_of_reference(dataset: Dataset, wanted: Mapping[int, str]) -> list[str]:
    """Give those of the wanted ROIs, in clear."""
    stated = [
        str(roi.get("ReferencedFrameOfReferenceUID", "") or "")
        for roi in items(dataset, "StructureSetROISequence")
        if int(roi.ROINumber) in wanted
    ]
    return sorted({uid for uid in stated if uid})


def _references(dataset: Dataset) -> dict[str, list[str]]:
    """Give what the object says it was drawn on; UIDs in clear."""
    series: list[str] = []
    instances: list[str] = []
    for frame in items(dataset, "ReferencedFrameOfReferenceSequence"):
        for study in items(frame, "RTReferencedStudySequence"):
            for one in items(study, "RTReferencedSeriesSequence"):
                series.append(str(one.get("SeriesInstanceUID", "")))
                instances += [str(image.ReferencedSOPInstanceUID) for image in items(one, "ContourImageSequence")]
    return {"instance_uid": instances, "series_uid": series, "study_uid": [str(dataset.get("StudyInstanceUID", ""))]}


def _contours(
    roi: Dataset, others: set[str], candidates: Candidates
) -> Iterator[tuple[NDArray[np.float64], list[Reference]]]:
    """Give the closed contours of a ROI (N, 3) in millimetres, and the images of each; names the kinds of others."""
    for contour in items(roi, "ContourSequence"):
        kind = str(contour.get("ContourGeometricType", "")).upper()
        if kind not in _CLOSED:
            others.add(kind or "unnamed")
            continue
        points = _numbers(contour)
        if points.size % 3 or not np.isfinite(points).all():
            raise ValueError("contour data are no triplets of numbers")
        if points.size >= 9:
            images = items(contour, "ContourImageSequence")
            yield points.reshape(-1, 3), [image_reference(image, candidates) for image in images]


def _numbers(contour: Dataset) -> NDArray[np.float64]:
    """Give the contour data; the text is parsed at once, ten times faster than as pydicom's decimal strings."""
    element = contour.get_item("ContourData")
    if element is None or not element.value:
        return np.empty(0)
    value: Any = element.value
    if isinstance(value, bytes):
        value = value.rstrip(b" \0").split(b"\\")
    return np.asarray(value, np.float64)


def _of_nearest_plane(contours: Sequence[tuple[float, NDArray[np.float64]]]) -> tuple[NDArray[np.float64], ...]:
    """Keep the contours of the one plane nearest to a frame: by the even-odd rule two planes would erase each other."""
    nearest = min((height for height, _ in contours), key=abs)
    return tuple(points for height, points in contours if abs(height - nearest) <= _SAME_PLANE_MM)


def _located(
    points: NDArray[np.float64], references: Sequence[Reference], placing: Placing
) -> Iterator[tuple[tuple[str, int], float, NDArray[np.float64]]]:
    """Give the frame of each source on which a contour lies, its height over it, and the contour in its pixels."""
    found = [(stack, stack.locate_contour(points, references)) for stack in placing.stacks]
    if not any(isinstance(item, tuple) for _, item in found):
        placing.count([item for _, item in found if isinstance(item, Miss)])
    for stack, item in found:
        if isinstance(item, tuple):
            yield (stack.source.source_id, item[0]), *item[1:]
