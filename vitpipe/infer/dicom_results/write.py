"""Write a prediction as DICOM objects, one a source."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Literal

from vitpipe import __version__
from vitpipe.atomic import write_file
from vitpipe.digest import digest_bytes
from vitpipe.domains.dicom.files import PARSE_ERRORS
from vitpipe.domains.dicom.quiet import quiet
from vitpipe.errors import ConfigError, UnreadableSource
from vitpipe.infer.contract import ModelContract
from vitpipe.infer.dicom_results.findings import SourceFindings, findings_of
from vitpipe.infer.dicom_results.originals import NO_RESULT, Originals, read_originals
from vitpipe.infer.predictor import PredictionResult
from vitpipe.infer.versions import ModelIdentity
from vitpipe.records import Rejected, Source

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
    if not kind.startswith("dicom"):
        raise ConfigError(
            f"`--dicom` writes results beside DICOM images, but this model reads `{kind}`; leave the option away"
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
            written.append(_write_one(kind, source, findings, (identity, texts), folder / _FOLDERS[kind]))
        except UnreadableSource as error:
            rejected.append(Rejected(source.uri, error.code, error.reason))
    return written, rejected


def _write_one(
    kind: ResultKind, source: Source, findings: SourceFindings, model: tuple[ModelIdentity, Iterable[str]], folder: Path
) -> Path:
    identity, texts = model
    with quiet():
        try:
            originals = read_originals(source, tuple(texts))
            instances = digest_bytes("\x1f".join(originals.instance_uids).encode("utf-8"))
            # The source too: a multi-frame file may hold several.
            seed = "\x1f".join((kind, __version__, source.source_id, instances, findings.digest))
            built = _build(kind, source, findings, originals, (identity, seed))
        except _REFUSALS as error:
            reason = (
                f"its header does not hold what a DICOM {kind.upper()} needs ({type(error).__name__} in highdicom); "
                "the prediction itself is in the tables"
            )
            raise UnreadableSource(NO_RESULT, reason, source.uri) from error
        path = folder / f"{built.SOPInstanceUID}.dcm"
        if not path.exists():
            with write_file(path) as partial:
                built.save_as(partial, enforce_file_format=True)
    return path


def _build(
    kind: ResultKind, source: Source, findings: SourceFindings, originals: Originals, model: tuple[ModelIdentity, str]
) -> Any:  # noqa: ANN401 - highdicom has no types
    if kind == "sr":
        from vitpipe.infer.dicom_results.report import build_report

        return build_report(findings, originals, *model)
    from vitpipe.infer.dicom_results.segmentation import build_segmentation

    return build_segmentation(source.grid, findings, originals, *model)
