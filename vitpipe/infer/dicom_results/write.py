"""Write a prediction as DICOM objects, one a source."""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from vitpipe import __version__
from vitpipe.atomic import write_file
from vitpipe.digest import digest_bytes
from vitpipe.domains.dicom.files import PARSE_ERRORS
from vitpipe.domains.dicom.quiet import quiet
from vitpipe.errors import ConfigError, UnreadableSource
from vitpipe.infer.dicom_results.findings import MaskFindings, SourceFindings, findings_of
from vitpipe.infer.dicom_results.originals import NO_RESULT, Originals, read_originals
from vitpipe.infer.versions import ModelIdentity
from vitpipe.records import Rejected, Source, Task

if TYPE_CHECKING:
    # Both import torch, which who reads a result has no use for.
    from vitpipe.infer.contract import ModelContract
    from vitpipe.infer.predictor import PredictionResult

ResultKind = Literal["sr", "seg"]

_FOLDERS: Final[dict[ResultKind, str]] = {"sr": "dicom_sr", "seg": "dicom_seg"}
_REFUSALS: Final = PARSE_ERRORS
"""What highdicom raises where a header does not hold what an object needs."""


def require_dicom_results(contract: ModelContract) -> None:
    """Check, before any work, that results can be written as DICOM.

    Raises:
        ConfigError: the model reads no DICOM, or highdicom is not installed.
    """
    kind = str(contract.source["kind"])
    if not contract.reads_dicom:
        raise ConfigError(
            f"`--dicom` writes results beside DICOM images, but this model reads `{kind}`; leave the option away"
        )
    if contract.task is Task.REGRESSION:
        raise ConfigError(
            "`--dicom` writes classes, but this model gives a value of every pixel; leave the option away"
        )
    if contract.masks_stacks and not contract.segments:
        raise ConfigError(
            f"`--dicom` writes a segment a class, but the one class of this model is `{contract.background}`, its "
            "background; leave the option away"
        )
    if importlib.util.find_spec("highdicom") is None:
        raise ConfigError("`--dicom` needs highdicom: install it with pip install 'vitpipe[dicom-results]'")


def write_dicom_results(
    kind: ResultKind, result: PredictionResult, contract: ModelContract, identity: ModelIdentity, folder: Path
) -> tuple[list[Path], list[Rejected]]:
    """Write one object a source; what is there already (same model, sources and predictions) stays as it is.

    The objects hold patient and study as the images do, so that a PACS files them together.

    Returns:
        The files, and the sources of which none could be made.

    Raises:
        WorkspaceError: the folder cannot be written.
    """
    # Its records name instances.
    logging.getLogger("highdicom").setLevel(logging.ERROR)
    pooled = {row["source_id"]: row for row in result.sources.to_dict("records")}
    by_source = dict(iter(result.tiles.groupby("source_id", sort=False)))
    texts = (*contract.classes, identity.name)
    written: list[Path] = []
    rejected: list[Rejected] = []
    for source in result.used:
        try:
            findings = findings_of(source, by_source[source.source_id], pooled[source.source_id], contract)
            job = _Job(kind, source, identity, texts, findings.digest)
            written.append(_write_one(job, functools.partial(_build, job, findings), folder))
        except UnreadableSource as error:
            rejected.append(Rejected(source.uri, error.code, error.reason))
    return written, rejected


def write_mask_result(
    kind: ResultKind, source: Source, findings: MaskFindings, identity: ModelIdentity, folder: Path
) -> Path:
    """Write the segmentation of each pixel of a source, or a report of the volumes.

    Returns:
        The file; what is there already stays as it is.

    Raises:
        UnreadableSource: none can be made (``NO_DICOM_RESULT``), or the files cannot be read any more.
        WorkspaceError: the folder cannot be written.
    """
    logging.getLogger("highdicom").setLevel(logging.ERROR)
    if kind == "sr" and not findings.volumes_ml:
        reason = (
            "its frames have no regular step between them, so its classes have no volume to report; write "
            "segmentations (`--dicom seg`)"
        )
        raise UnreadableSource(NO_RESULT, reason, source.uri)
    job = _Job(kind, source, identity, (*findings.classes, identity.name), findings.digest)
    return _write_one(job, functools.partial(_build_mask, job, findings), folder)


@dataclass(frozen=True, slots=True)
class _Job:
    kind: ResultKind
    source: Source
    identity: ModelIdentity
    texts: tuple[str, ...]
    """That the object holds."""
    digest: str
    """Of what it says."""


def _write_one(job: _Job, build: Callable[[Originals, str], Any], folder: Path) -> Path:
    kind, source = job.kind, job.source
    with quiet():
        try:
            originals = read_originals(source, job.texts)
            instances = digest_bytes("\x1f".join(originals.instance_uids).encode("utf-8"))
            # The source too: a multi-frame file may hold several.
            seed = "\x1f".join((kind, __version__, source.source_id, instances, job.digest))
            built = build(originals, seed)
        except _REFUSALS as error:
            reason = (
                f"its header does not hold what a DICOM {kind.upper()} needs ({type(error).__name__} in highdicom); "
                "the prediction itself is in the tables"
            )
            raise UnreadableSource(NO_RESULT, reason, source.uri) from error
        path = folder / _FOLDERS[kind] / f"{built.SOPInstanceUID}.dcm"
        if not path.exists():
            with write_file(path) as partial:
                built.save_as(partial, enforce_file_format=True)
    return path


def _build(job: _Job, findings: SourceFindings, originals: Originals, uid_seed: str) -> Any:  # noqa: ANN401 - highdicom has no types
    if job.kind == "sr":
        from vitpipe.infer.dicom_results.report import build_report

        return build_report(findings, originals, job.identity, uid_seed)
    from vitpipe.infer.dicom_results.segmentation import build_segmentation

    return build_segmentation(job.source.grid, findings, originals, job.identity, uid_seed)


def _build_mask(job: _Job, findings: MaskFindings, originals: Originals, uid_seed: str) -> Any:  # noqa: ANN401
    if job.kind == "sr":
        from vitpipe.infer.dicom_results.report import build_volume_report

        return build_volume_report(findings, originals, job.identity, uid_seed)
    from vitpipe.infer.dicom_results.segmentation import build_mask

    return build_mask(job.source.grid, findings, originals, job.identity, uid_seed)
