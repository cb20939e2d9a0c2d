"""What registered models are used for: predictions on files, as tables and as DICOM objects, and the way back."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from vitpipe.atomic import make_folder, write_json
from vitpipe.config import MapRecipe, StacSource
from vitpipe.errors import ConfigError, ContractError, TransientError, UnreadableSource
from vitpipe.ingest import read_catalog, read_quarantine, write_catalog, write_quarantine
from vitpipe.records import Findings, Json, Rejected, Source, StageSummary, count_codes
from vitpipe.stages import require_registry
from vitpipe.workspace import Workspace

if TYPE_CHECKING:
    from vitpipe.infer.predictor import PredictionResult, Predictor
    from vitpipe.infer.versions import ModelIdentity
    from vitpipe.registry import Registry

ResultKind = Literal["sr", "seg"]

MAPS_FOLDER: Final = "maps"
VOLUMES_FOLDER: Final = "volumes"
_REFUSED: Final = ".refused.json"


@dataclass(frozen=True, slots=True)
class PredictJob:
    """What is predicted on, and where it goes; small, so that a task can take it."""

    model_uri: str
    """``models:/name/3``: an alias may move while a job runs."""
    source: str
    """Of a catalog the folder that its scenes are brought to."""
    out: str
    workspace: str | None
    dicom: ResultKind | None
    maps: MapRecipe
    per_pixel: bool
    stacks: bool = False
    """Of pixels of DICOM: sources get a mask and volumes, and no map."""
    catalog: StacSource | None = None

    @property
    def map_room(self) -> Workspace:
        """Where maps go: a folder each, a catalog of the scenes, and a quarantine of those that gave none.

        Of stacks there is a record each.
        """
        return Workspace(Path(self.out) / (VOLUMES_FOLDER if self.stacks else MAPS_FOLDER))

    def record(self, source_id: str) -> Path:
        """Name the file that says what was made of a stack."""
        return self.map_room.root / f"{source_id}.json"


def plan_job(
    model_uri: str, source: str | StacSource, out: str, workspace: str | None, dicom: ResultKind | None, maps: MapRecipe
) -> PredictJob:
    """Check what can be checked before any work, and settle which version predicts.

    Raises:
        ConfigError: no such model or path; `dicom` is asked of a model that reads no DICOM, or gives values of pixels.
        ContractError: the model is not whole, or cannot read what lies there.
    """
    from vitpipe.infer.catalogs import as_trained, catalog_of
    from vitpipe.infer.dicom_results import require_dicom_results
    from vitpipe.infer.reading import place_of
    from vitpipe.registry import open_registry

    require_registry(workspace)
    # What is missing is said before the model is loaded, and before hours of work that could not be written.
    catalog = catalog_of(source)
    if catalog is None:
        place_of(str(source))
    make_folder(Path(out))
    registry = open_registry(Path(workspace) if workspace else None)
    # An alias may move between two looks: the version that predicts is the one that signs.
    uri = registry.resolve(model_uri)
    contract = registry.load_predictor(uri).contract
    if dicom is not None:
        require_dicom_results(contract)
    if maps.grid and contract.per_pixel:
        raise ConfigError("a grid of tiles is of models of tiles, and this is one of pixels: leave it away")
    if maps.vectors and not (maps.grid or contract.per_pixel):
        raise ConfigError(
            "vectors are of maps, and this model is one of tiles: ask for the grid of tiles too (`--map`)"
        )
    if maps.vectors and contract.masks_stacks:
        raise ConfigError("vectors are of maps of the ground, and this model reads DICOM: leave them away")
    if catalog is not None:
        catalog = as_trained(catalog, contract, out)
    place = str(source) if catalog is None else catalog.path
    return PredictJob(uri, place, out, workspace, dicom, maps, contract.per_pixel, contract.masks_stacks, catalog)


def predict(
    model_uri: str,
    source: str | StacSource,
    out: str,
    workspace: str | None,
    *,
    dicom: ResultKind | None = None,
    maps: MapRecipe | None = None,
) -> StageSummary:
    """Run a registered model on files and write the predictions into a folder.

    Args:
        model_uri: ``models:/name@champion`` or ``models:/name/3``.
        source: file, folder, or the address of a scene; or a STAC catalog, see `vitpipe.infer.catalogs.catalog_of`.
        out: folder.
        workspace: where the registry lies when there is no MLflow server.
        dicom: write a structured report or a segmentation of each source too. Of a model of pixels the segmentation is
            the mask of the whole source, and the report holds the volumes of the classes.
        maps: how maps and masks are made; the default recipe if None.

    Raises:
        ConfigError: no such model or path, or `dicom` is asked of a model that reads no DICOM.
        ContractError: the files are not what the model was made for.
        DataError: nothing could be read.
        TransientError: a server or a disk does not answer.
    """
    job = plan_job(model_uri, source, out, workspace, dicom, maps or MapRecipe())
    fetched = bring_scenes(job)
    if job.per_pixel:
        mapped = (map_scenes(job, batch) for batch in plan_maps(job))
        summary = finish_maps(job, sum(mapped, start=StageSummary("predict")))
    else:
        summary = predict_tiles(job)
    return after_fetch(summary, fetched)


def after_fetch(summary: StageSummary, fetched: StageSummary) -> StageSummary:
    """Give the summary of a prediction with what the fetch of its scenes has to say, such as that there may be more."""
    return dataclasses.replace(summary, notes=(*fetched.notes, *summary.notes))


def bring_scenes(job: PredictJob) -> StageSummary:
    """Fetch the scenes of a job's catalog; what is there is not asked for again. Other jobs need none.

    Raises:
        DataError: the catalog has no scene that fits, or none could be fetched.
        TransientError: a server does not answer; what has arrived is kept.
    """
    from vitpipe.infer.catalogs import bring

    return StageSummary("fetch") if job.catalog is None else bring(job.catalog, job.out)


def _load(job: PredictJob, registry: Registry) -> Predictor:
    from vitpipe.infer.catalogs import reading_options

    predictor = registry.load_predictor(job.model_uri)
    return predictor if job.catalog is None else predictor.reading(reading_options(job.catalog))


def _not_brought(job: PredictJob) -> list[Rejected]:
    from vitpipe.infer.catalogs import not_brought

    return [] if job.catalog is None else not_brought(job.catalog, job.out)


def predict_tiles(job: PredictJob) -> StageSummary:
    """Run a model of tiles.

    Raises:
        ContractError: the files are not what the model was made for.
        DataError: nothing could be read.
    """
    from vitpipe.infer.dicom_results import write_dicom_results
    from vitpipe.infer.output import left_out, write_predictions
    from vitpipe.registry import open_registry

    started = time.perf_counter()
    registry = open_registry(Path(job.workspace) if job.workspace else None)
    predictor = _load(job, registry)
    result = predictor.predict_path(job.source, with_paths=True)
    result = dataclasses.replace(result, rejected=(*_not_brought(job), *result.rejected))
    written = write_predictions(result, Path(job.out))
    rejected: list[Rejected] = [item for item in result.rejected if not item.junk]
    notes = [*result.notes, *left_out(rejected, Path(job.out)), f"written: {written.parent}"]
    if job.dicom is not None:
        identity = registry.identify(job.model_uri)
        objects, refused = write_dicom_results(job.dicom, result, predictor.contract, identity, Path(job.out))
        notes.append(f"{len(objects)} DICOM {job.dicom.upper()} object(s) written")
        rejected += refused
    if job.maps.grid:
        maps, refused = _write_grids(job, predictor, result, registry.identify(job.model_uri))
        notes.append(f"{maps} grid(s) of tiles written: {job.map_room.root}")
        rejected += refused
    return StageSummary(
        "predict",
        done=len(result.sources),
        rejected=count_codes(rejected),
        seconds=time.perf_counter() - started,
        notes=tuple(notes),
    )


def _write_grids(
    job: PredictJob, predictor: Predictor, result: PredictionResult, identity: ModelIdentity
) -> tuple[int, list[Rejected]]:
    """Write a raster of one pixel a tile for each source; gives how many, and those of which none could be made."""
    from vitpipe.infer.mapping.stac import write_catalog_of_maps
    from vitpipe.infer.maps import map_tiles

    room = job.map_room
    make_folder(room.root)
    by_source = dict(iter(result.tiles.groupby("source_id", sort=False)))
    rejected: list[Rejected] = []
    for source in result.used:
        folder = room.root / source.source_id
        try:
            map_tiles(predictor, source, by_source[source.source_id], folder, (job.maps, identity))
        except UnreadableSource as error:
            rejected.append(Rejected(source.uri, error.code, error.reason))
    write_catalog(room, result.used)
    write_quarantine(room, [*result.rejected, *rejected])
    write_catalog_of_maps(room.root)
    return len(result.used) - len(rejected), rejected


def plan_maps(job: PredictJob) -> list[list[str]]:
    """Look at all files once, and say which sources each task maps, by their ids.

    Raises:
        ContractError: what is there is not what the model was made for.
        DataError: nothing there can be used.
    """
    from vitpipe.infer.maps import batches_of
    from vitpipe.infer.predictor import nothing_usable
    from vitpipe.infer.reading import place_of
    from vitpipe.registry import open_registry

    predictor = _load(job, open_registry(Path(job.workspace) if job.workspace else None))
    path = place_of(job.source)
    found = list(predictor.sources(path))
    sources = [item for item in found if isinstance(item, Source)]
    rejected = [*_not_brought(job), *(item for item in found if isinstance(item, Rejected))]
    if not sources:
        raise nothing_usable(path, rejected)
    room = job.map_room
    make_folder(room.root)
    write_catalog(room, sources)
    write_quarantine(room, rejected)
    for stale in room.root.glob(f"*{_REFUSED}"):
        stale.unlink()
    return batches_of(read_catalog(room))


def map_scenes(job: PredictJob, source_ids: Sequence[str]) -> StageSummary:
    """Map some of the planned sources; one that cannot be mapped is a row of the quarantine, and the others go on.

    Raises:
        TransientError: the store does not answer: what is finished is found when the task runs again.
        WorkspaceError: the disk is full or read-only.
    """
    from vitpipe.registry import open_registry

    started = time.perf_counter()
    registry = open_registry(Path(job.workspace) if job.workspace else None)
    predictor, identity = _load(job, registry), registry.identify(job.model_uri)
    room = job.map_room
    rejected: list[Rejected] = []
    notes: list[str] = []
    fresh = made = 0
    for source in read_catalog(room, source_ids):
        refused: Rejected | None = None
        try:
            found = (_mask if job.stacks else _map)(job, predictor, source, identity)
        except UnreadableSource as error:
            refused = Rejected(source.uri, error.code, error.reason)
        else:
            made, fresh, refused = made + 1, fresh + found.fresh, found.refused
            notes += found.notes
        if refused is not None:
            rejected.append(refused)
            # Tasks run side by side: each leaves a file of its own, which the end gathers.
            write_json(room.root / f"{source.source_id}{_REFUSED}", dataclasses.asdict(refused))
    return StageSummary(
        "predict",
        done=fresh,
        skipped=made - fresh,
        rejected=count_codes(rejected),
        seconds=time.perf_counter() - started,
        notes=tuple(dict.fromkeys(notes)),
    )


@dataclass(frozen=True, slots=True)
class _Made:
    fresh: bool
    notes: tuple[str, ...]
    refused: Rejected | None = None
    """Something of it could not be made."""


def _map(job: PredictJob, predictor: Predictor, source: Source, identity: ModelIdentity) -> _Made:
    from vitpipe.infer.maps import map_source

    found = map_source(predictor, source, job.map_room.root / source.source_id, job.maps, identity)
    return _Made(found.made.fresh, found.notes, found.refused)


def _mask(job: PredictJob, predictor: Predictor, source: Source, identity: ModelIdentity) -> _Made:
    from vitpipe.infer.volumes import make_stack

    options = job.maps, job.dicom, Path(job.out)
    found = make_stack(predictor, source, job.record(source.source_id), options, identity)
    return _Made(found.fresh, found.notes, found.refused)


def finish_maps(job: PredictJob, mapped: StageSummary) -> StageSummary:
    """Gather what the tasks did: the quarantine, and the summary for people.

    Args:
        job: what was done.
        mapped: the sum of what the tasks gave.

    Raises:
        DataError: no source could be mapped.
    """
    from vitpipe.infer.mapping.stac import write_catalog_of_maps
    from vitpipe.infer.output import left_out, write_map_summary
    from vitpipe.infer.predictor import nothing_usable
    from vitpipe.infer.reading import place_of
    from vitpipe.infer.volumes import write_volumes

    room = job.map_room
    table = read_quarantine(room)
    rejected = [Rejected(*row) for row in table[list(Rejected.__slots__)].itertuples(index=False, name=None)]
    left = sorted(room.root.glob(f"*{_REFUSED}"))
    rejected += [Rejected(**json.loads(path.read_text(encoding="utf-8"))) for path in left]
    write_quarantine(room, rejected)
    for path in left:
        path.unlink()
    count = mapped.done + mapped.skipped
    if not count:
        raise nothing_usable(place_of(job.source), rejected)
    written = f"written: {room.root}"
    if job.stacks:
        written = f"written: {write_volumes(room, job.source, Path(job.out), rejected, mapped.notes)}"
    else:
        write_catalog_of_maps(room.root)
        write_map_summary(Path(job.out), count, rejected, mapped.notes)
    refused = [item for item in rejected if not item.junk]
    notes = (*mapped.notes, *left_out(refused, Path(job.out)), written)
    return dataclasses.replace(mapped, rejected=count_codes(refused), notes=notes)


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
