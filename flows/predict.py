"""Run a registered model on files."""

from __future__ import annotations

from typing import Annotated

from prefect import flow, unmapped
from pydantic import Field

from flows import tasks
from flows.artifacts import publish_summary
from flows.pipeline import runner
from vitpipe.config import MapRecipe, StacSource
from vitpipe.config.address import WITHOUT_SECRET
from vitpipe.records import StageSummary
from vitpipe.results import ResultKind, after_fetch, scenes_in_use

_AS_USUAL = MapRecipe()


@flow(name="predict", flow_run_name="predict {model_uri}", task_runner=runner())
def predict(
    model_uri: str,
    source: Annotated[str, Field(json_schema_extra=WITHOUT_SECRET)] | StacSource,
    out: str,
    workspace: str | None = None,
    dicom: ResultKind | None = None,
    maps: MapRecipe = _AS_USUAL,
) -> StageSummary:
    """Predict files with a registered model.

    Args:
        model_uri: Such as models:/ct-contrast@champion.
        source: File or folder of DICOM files, GeoTIFF scenes or photographs; an address of a scene; or a STAC catalog.
        out: Folder for predictions.parquet and predictions.json, and for maps.
        workspace: Where the registry lies when there is no MLflow server.
        dicom: Write a DICOM structured report (sr) or segmentation (seg) of each source too.
        maps: How maps of whole scenes are made.
    """
    job = tasks.plan_prediction(model_uri, source, out, workspace, dicom, maps)
    with scenes_in_use(job):
        fetched = StageSummary("fetch") if job.catalog is None else tasks.bring_scenes(job)
        if job.per_pixel:
            batches = tasks.plan_maps(job)
            futures = tasks.map_scenes.map(unmapped(job), batches, list(range(len(batches))))
            summary = tasks.finish_maps(job, sum(futures.result(), start=StageSummary("predict")))
        else:
            summary = tasks.predict_tiles(job)
    summary = after_fetch(summary, fetched)
    publish_summary(model_uri.removeprefix("models:/"), summary)
    return summary
