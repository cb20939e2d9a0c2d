"""Run a registered model on files."""

from __future__ import annotations

from prefect import flow

from flows import tasks
from flows.artifacts import publish_summary
from vitpipe.records import StageSummary
from vitpipe.results import ResultKind


@flow(name="predict", flow_run_name="predict {model_uri}")
def predict(
    model_uri: str, source: str, out: str, workspace: str | None = None, dicom: ResultKind | None = None
) -> StageSummary:
    """Predict files with a registered model.

    Args:
        model_uri: Such as models:/ct-contrast@champion.
        source: File or folder of DICOM files, GeoTIFF scenes or photographs.
        out: Folder for predictions.parquet and predictions.json.
        workspace: Where the registry lies when there is no MLflow server.
        dicom: Write a DICOM structured report (sr) or segmentation (seg) of each source too.
    """
    summary = tasks.predict(model_uri, source, out, workspace, dicom)
    publish_summary(model_uri.removeprefix("models:/"), summary)
    return summary
