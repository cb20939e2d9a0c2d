"""A segmentation of a source: the probability of each class, painted where the tiles lie, or the mask of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from vitpipe.infer.dicom_results.findings import MaskFindings, SourceFindings
from vitpipe.infer.dicom_results.identity import (
    MANUFACTURER,
    concept,
    contributing_equipment,
    equipment,
    facts_of,
    result_uid,
    short,
)
from vitpipe.infer.dicom_results.originals import Originals
from vitpipe.infer.versions import ModelIdentity
from vitpipe.records import Grid

SERIES_NUMBER: Final = 9902


def build_segmentation(
    grid: Grid, findings: SourceFindings, originals: Originals, identity: ModelIdentity, uid_seed: str
) -> Any:  # noqa: ANN401 - highdicom has no types
    """Make the segmentation of a source: FRACTIONAL, of probabilities in steps of 1/255, a segment a class.

    Args:
        grid: of the source.
        findings: what the model says of its tiles; where tiles overlap their mean is painted, elsewhere nothing.
        originals: its instances.
        identity: the model.
        uid_seed: what all UIDs of the object are derived from.

    Returns:
        A `highdicom.seg.Segmentation` on the pixels of the source.
    """
    from highdicom import seg

    used = {frame for box, _ in findings.tiles for frame in range(box.frame, box.frame + box.frames)}
    sources, probabilities = _on_files(grid, paint(grid, findings), originals, used)
    return _signed(
        (sources, probabilities, originals),
        tuple(findings.source.probabilities),
        (identity, uid_seed),
        {
            "segmentation_type": seg.SegmentationTypeValues.FRACTIONAL,
            "fractional_type": seg.SegmentationFractionalTypeValues.PROBABILITY,
            "series_description": short(f"{identity.title} probabilities"),
            "content_description": "Class probabilities of tiles",
            "content_label": "PROBABILITIES",
        },
    )


def build_mask(grid: Grid, findings: MaskFindings, originals: Originals, identity: ModelIdentity, uid_seed: str) -> Any:  # noqa: ANN401
    """Make the segmentation of each pixel of a source: BINARY, a segment a class.

    highdicom takes the labels as they are, a byte a pixel, and holds the bits of all segments until the file is
    written.

    Args:
        grid: of the source.
        findings: what the model says of its pixels.
        originals: its instances.
        identity: the model.
        uid_seed: what all UIDs of the object are derived from.

    Returns:
        A `highdicom.seg.Segmentation` on the pixels of the source.
    """
    from highdicom import seg

    sources, labels = _on_files(grid, findings.labels, originals, set(range(grid.frames)))
    return _signed(
        (sources, labels, originals),
        findings.classes,
        (identity, uid_seed),
        {
            "segmentation_type": seg.SegmentationTypeValues.BINARY,
            "series_description": short(f"{identity.title} segmentation"),
            "content_description": "Class of every pixel",
            "content_label": "SEGMENTATION",
        },
    )


def _on_files(
    grid: Grid, values: NDArray[Any], originals: Originals, used: set[int]
) -> tuple[tuple[Dataset, ...], NDArray[Any]]:
    """Give the headers, and values (frames, height, width, ...) in the order that highdicom wants for them."""
    sources = originals.headers
    step_mm = grid.spacing_mm[0] if grid.spacing_mm and grid.spacing_mm[0] > 0 else None
    for header in sources:
        if not header.get("SliceThickness"):
            # It needs the extent of its planes (PS3.3 C.7.6.16.2.1): the measured step, where there is one.
            header.SliceThickness = step_mm
    in_one_file = int(sources[0].get("NumberOfFrames") or 1)
    if len(sources) == 1 and in_one_file > 1:
        # highdicom takes the frames of a multi-frame image in the order of the file.
        # The source may be one of several stacks of the file.
        in_file = np.zeros((in_one_file, *values.shape[1:]), values.dtype)
        for place, frame in enumerate(originals.frames):
            in_file[frame.number] = values[place]
        return sources, in_file
    if len(used) < len(sources):
        kept = sorted(used)
        return tuple(sources[frame] for frame in kept), values[kept]
    return sources, values


def _signed(
    images: tuple[tuple[Dataset, ...], NDArray[Any], Originals],
    classes: tuple[str, ...],
    model: tuple[ModelIdentity, str],
    what: Mapping[str, Any],
) -> Any:  # noqa: ANN401
    """Make the object; `what` are the arguments that say what its values are."""
    from highdicom import seg

    (sources, values, originals), (identity, uid_seed) = images, model
    built = seg.Segmentation(
        source_images=list(sources),
        pixel_array=values,
        segment_descriptions=_segments(classes, identity, uid_seed),
        series_instance_uid=result_uid(identity, uid_seed, "series"),
        series_number=SERIES_NUMBER,
        sop_instance_uid=result_uid(identity, uid_seed, "instance"),
        instance_number=1,
        contributing_equipment=[contributing_equipment(identity)],
        **what,
        **equipment(identity),
    )
    if originals.frames[0].position is None and "PatientOrientation" not in built:
        # Type 2C (PS3.3 C.7.6.1): needed, if empty, where no position says how the image lies.
        built.PatientOrientation = originals.headers[0].get("PatientOrientation")
    return built


def _segments(classes: tuple[str, ...], identity: ModelIdentity, uid_seed: str) -> list[Any]:
    """Describe a segment a class, and the model that drew it."""
    from highdicom import AlgorithmIdentificationSequence, seg
    from pydicom.sr.codedict import codes

    algorithm = AlgorithmIdentificationSequence(
        name=short(identity.name),
        family=codes.cid7162.ArtificialIntelligence,
        version=short(identity.version),
        source=MANUFACTURER,
        parameters=facts_of(identity),
    )
    return [
        seg.SegmentDescription(
            segment_number=number,
            segment_label=short(name),
            # What a class means is the user's: no code of a public scheme is claimed for it.
            segmented_property_category=concept("class", "Class of a trained model"),
            segmented_property_type=concept(name),
            algorithm_type=seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            tracking_uid=result_uid(identity, uid_seed, "segment", name),
            tracking_id=short(name),
        )
        for number, name in enumerate(classes, start=1)
    ]


def paint(grid: Grid, findings: SourceFindings) -> NDArray[np.float32]:
    """Paint probabilities (frames, height, width, classes); the mean where tiles overlap, zero where there is none."""
    classes = tuple(findings.source.probabilities)
    sums = np.zeros((grid.frames, grid.height, grid.width, len(classes)), np.float32)
    counts = np.zeros((grid.frames, grid.height, grid.width, 1), np.uint16)
    for box, verdict in findings.tiles:
        rows = slice(round(box.top), max(round(box.bottom), round(box.top) + 1))
        cols = slice(round(box.left), max(round(box.right), round(box.left) + 1))
        frames = slice(box.frame, box.frame + box.frames)
        sums[frames, rows, cols] += np.array([verdict.probabilities[name] for name in classes], np.float32)
        counts[frames, rows, cols] += 1
    sums /= np.maximum(counts, 1)
    return sums
