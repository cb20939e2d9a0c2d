"""A structured report of a source: TID 1500 (PS3.16) with a group for the source and one a tile, or one a class.

The algorithm is identified in the group of the source alone: repeated a tile it would double size and time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from vitpipe.infer.dicom_results.findings import MaskFindings, SourceFindings, Verdict
from vitpipe.infer.dicom_results.identity import (
    MANUFACTURER,
    coding_scheme,
    concept,
    contributing_equipment,
    equipment,
    facts_of,
    result_uid,
    short,
)
from vitpipe.infer.dicom_results.originals import Originals
from vitpipe.infer.versions import ModelIdentity
from vitpipe.tile_places import Box

SERIES_NUMBER: Final = 9901


def build_report(findings: SourceFindings, originals: Originals, identity: ModelIdentity, uid_seed: str) -> Any:  # noqa: ANN401
    """Make the report of a source.

    Args:
        findings: what the model says of it and of its tiles.
        originals: its instances; patient and study are copied from the first.
        identity: the model.
        uid_seed: what all UIDs of the report are derived from.

    Returns:
        A `highdicom.sr.ComprehensiveSR`.
    """
    algorithm = _algorithm(identity)
    groups: list[Any] = [_source_group(findings, originals, algorithm, result_uid(identity, uid_seed, "source"))]
    for number, (place, verdict) in enumerate(findings.tiles):
        # By its number: several tiles of a resampled stack may lie on one frame, in one box.
        tracking = result_uid(identity, uid_seed, "tile", str(number))
        groups.append(_tile_group(place, verdict, originals, tracking))
    return _signed(groups, originals, (identity, uid_seed), f"{identity.title} predictions")


def build_volume_report(findings: MaskFindings, originals: Originals, identity: ModelIdentity, uid_seed: str) -> Any:  # noqa: ANN401
    """Make the report of a segmented source: a group a class with its volume in millilitres.

    Args:
        findings: what the model says of its pixels; its volumes are known.
        originals: its instances; patient and study are copied from the first.
        identity: the model.
        uid_seed: what all UIDs of the report are derived from.

    Returns:
        A `highdicom.sr.ComprehensiveSR`.
    """
    from highdicom import sr
    from pydicom.sr.codedict import codes

    # A code of UCUM that pydicom's dictionary lacks.
    millilitres = sr.CodedConcept("mL", "UCUM", "milliliter")
    groups = [
        sr.MeasurementsAndQualitativeEvaluations(
            tracking_identifier=sr.TrackingIdentifier(
                uid=result_uid(identity, uid_seed, "volume", name), identifier=short(name)
            ),
            # Once: repeated it would say nothing more.
            algorithm_id=_algorithm(identity) if number == 0 else None,
            finding_type=concept(name),
            measurements=[sr.Measurement(name=codes.SCT.Volume, value=volume, unit=millilitres)],
            source_images=_images(originals),
        )
        for number, (name, volume) in enumerate(findings.volumes_ml.items())
    ]
    return _signed(groups, originals, (identity, uid_seed), f"{identity.title} volumes")


def _algorithm(identity: ModelIdentity) -> Any:  # noqa: ANN401
    from highdicom import sr
    from pydicom.sr.codedict import codes

    return sr.AlgorithmIdentification(
        name=identity.name,
        version=identity.version,
        family=codes.cid7162.ArtificialIntelligence,
        manufacturer=MANUFACTURER,
        parameters=[f"{name}={value}" for name, value in facts_of(identity).items()],
    )


def _signed(groups: list[Any], originals: Originals, model: tuple[ModelIdentity, str], description: str) -> Any:  # noqa: ANN401
    from highdicom import sr
    from pydicom.sr.codedict import codes

    identity, uid_seed = model
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=result_uid(identity, "device"),
        name=identity.name,
        manufacturer_name=MANUFACTURER,
        model_name=identity.title,
    )
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=sr.ObserverContext(codes.DCM.Device, device)),
        procedure_reported=codes.SCT.ImagingProcedure,
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    named = equipment(identity)
    return sr.ComprehensiveSR(
        evidence=list(originals.headers),
        content=content,
        series_instance_uid=result_uid(identity, uid_seed, "series"),
        series_number=SERIES_NUMBER,
        sop_instance_uid=result_uid(identity, uid_seed, "instance"),
        instance_number=1,
        manufacturer=named["manufacturer"],
        manufacturer_model_name=named["manufacturer_model_name"],
        software_versions=named["software_versions"],
        device_serial_number=named["device_serial_number"],
        series_description=short(description),
        is_complete=True,
        coding_schemes=[coding_scheme()],
        contributing_equipment=[contributing_equipment(identity)],
    )


def _source_group(findings: SourceFindings, originals: Originals, algorithm: Any, tracking: str) -> Any:  # noqa: ANN401
    from highdicom import sr

    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=tracking, identifier="source"),
        algorithm_id=algorithm,
        measurements=_measurements(findings.source.probabilities),
        qualitative_evaluations=_evaluations(findings.source),
        source_images=_images(originals),
    )


def _images(originals: Originals) -> list[Any]:
    from highdicom import sr

    return [
        sr.SourceImageForMeasurementGroup(str(header.SOPClassUID), str(header.SOPInstanceUID))
        for header in originals.headers
    ]


def _tile_group(box: Box, verdict: Verdict, originals: Originals, tracking: str) -> Any:  # noqa: ANN401
    """Make the group of a tile: a region on its frame, or for a volume one on each of its frames (TID 1410, 1411)."""
    from highdicom import sr

    _, _, top, left, bottom, right = box
    # PS3.3 C.18.6.1.2: column, then row; (0, 0) is the outer corner of the first pixel.
    corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom], [left, top]])
    regions = [
        sr.ImageRegion("POLYLINE", corners, sr.SourceImageForRegion(*originals.reference(frame)))
        for frame in range(box.frame, box.frame + box.frames)
    ]
    identifier = f"tile frame {box.frame} row {top:g} column {left:g}"
    shared: dict[str, Any] = {
        "tracking_identifier": sr.TrackingIdentifier(uid=tracking, identifier=identifier),
        "measurements": _measurements(verdict.probabilities),
        "qualitative_evaluations": _evaluations(verdict),
    }
    if box.frames == 1:
        return sr.PlanarROIMeasurementsAndQualitativeEvaluations(referenced_region=regions[0], **shared)
    return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(referenced_regions=regions, **shared)


def _measurements(probabilities: Mapping[str, float]) -> list[Any]:
    from highdicom import sr
    from pydicom.sr.codedict import codes

    return [
        sr.Measurement(
            name=concept(f"probability/{name}", f"Probability of {name}"),
            value=value,
            unit=codes.UCUM.NoUnits,
        )
        for name, value in probabilities.items()
    ]


def _evaluations(verdict: Verdict) -> list[Any]:
    from highdicom import sr
    from pydicom.sr.codedict import codes

    predicted = concept("predicted-class", "Predicted class")
    # Several labels at once, or none: an evaluation each.
    found = [sr.QualitativeEvaluation(predicted, concept(name)) for name in verdict.predicted]
    if not found:
        found.append(sr.QualitativeEvaluation(predicted, concept("none", "None of the classes")))
    if verdict.abstains is not None:
        answer = codes.SCT.Yes if verdict.abstains else codes.SCT.No
        found.append(sr.QualitativeEvaluation(concept("abstains", "The model abstains"), answer))
    return found
