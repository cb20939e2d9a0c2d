"""What registered models are used for: predictions on files, as tables and as DICOM objects, and the way back."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vitpipe.atomic import make_folder
from vitpipe.errors import ConfigError, ContractError, TransientError
from vitpipe.records import Findings, Json, Rejected, StageSummary, count_codes
from vitpipe.stages import require_registry

if TYPE_CHECKING:
    from vitpipe.infer.versions import ModelIdentity

ResultKind = Literal["sr", "seg"]


def predict(
    model_uri: str, source: str, out: str, workspace: str | None, *, dicom: ResultKind | None = None
) -> StageSummary:
    """Run a registered model on files and write the predictions into a folder.

    Args:
        model_uri: ``models:/name@champion`` or ``models:/name/3``.
        source: file or folder.
        out: folder.
        workspace: where the registry lies when there is no MLflow server.
        dicom: write a structured report or a segmentation of each source too.

    Raises:
        ConfigError: no such model or path, or `dicom` is asked of a model that reads no DICOM.
        ContractError: the files are not what the model was made for.
        DataError: nothing could be read.
    """
    from vitpipe.infer.dicom_results import require_dicom_results, write_dicom_results
    from vitpipe.infer.output import write_predictions
    from vitpipe.infer.reading import local_path
    from vitpipe.registry import open_registry

    started = time.perf_counter()
    require_registry(workspace)
    # What is missing is said before the model is loaded, and before hours of work that could not be written.
    local_path(source)
    make_folder(Path(out))
    registry = open_registry(Path(workspace) if workspace else None)
    # An alias may move between two looks: the version that predicts is the one that signs.
    uri = registry.resolve(model_uri)
    predictor = registry.load_predictor(uri)
    if dicom is not None:
        require_dicom_results(predictor.contract)
    result = predictor.predict_path(source, with_paths=True)
    written = write_predictions(result, Path(out))
    notes = [*result.notes, f"written: {written.parent}"]
    rejected: list[Rejected] = [item for item in result.rejected if not item.junk]
    if dicom is not None:
        objects, refused = write_dicom_results(dicom, result, predictor.contract, registry.identify(uri), Path(out))
        notes.append(f"{len(objects)} DICOM {dicom.upper()} object(s) written")
        rejected += refused
    return StageSummary(
        "predict",
        done=len(result.sources),
        rejected=count_codes(rejected),
        seconds=time.perf_counter() - started,
        notes=tuple(notes),
    )


def whence(file: str, workspace: str | None) -> Findings:
    """Say which registered model, run and data a DICOM result of ours is from.

    Args:
        file: a structured report or a segmentation that :func:`predict` wrote.
        workspace: where the registry lies when there is no MLflow server; it is asked where there is one.

    Raises:
        DataError: the file is none of ours.
    """
    from vitpipe.infer.dicom_results.whence import read_identity

    identity = read_identity(Path(file))
    values: dict[str, Json] = {"model": identity.name, "version": identity.version, "sha256": identity.sha256}
    values |= identity.facts
    values["registry"] = ask_registry(identity, workspace)
    lines = [f"{name.replace('_', ' ')}: {value}" for name, value in values.items()]
    return Findings(tuple(lines), values)


def ask_registry(identity: ModelIdentity, workspace: str | None) -> str:
    """Say in a sentence whether the registry holds that model."""
    from vitpipe.infer.tracking import tracking_store
    from vitpipe.registry import open_registry

    try:
        if tracking_store(Path(workspace) if workspace else None).missing is not None:
            return "not asked: there is none here; pass `--workspace FOLDER` or set MLFLOW_TRACKING_URI"
        known = open_registry(Path(workspace) if workspace else None).identify(f"models:/{identity.title}")
    except (ConfigError, ContractError, TransientError) as error:
        return f"it does not know this version: {error}"
    if known.sha256 != identity.sha256:
        return f"holds other weights as {identity.title} (SHA-256 {known.sha256}): another registry, do not compare"
    return f"holds this very model as {identity.title}"
