"""The command line. It loads nothing heavy until a verb needs it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flows.command import AsJson, ConfigPath, Home, WorkspaceOption, lines_of_progress, print_json, reporting
from vitpipe import __version__
from vitpipe.errors import DataError

if TYPE_CHECKING:
    from vitpipe.config import PipelineConfig

app = typer.Typer(
    name="vitpipe",
    help="DICOM studies or GeoTIFF scenes in, an honestly judged and registered Vision Transformer out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _load(path: Path) -> PipelineConfig:
    """Read the configuration and set the environment before anything imports prefect or mlflow."""
    from vitpipe.loading import load_config

    return load_config(path)


def _embed(workspace: Path) -> None:
    from flows.settings import apply_environment

    apply_environment(workspace)


def _find_registry(workspace: Path | None) -> Path | None:
    """Give the workspace whose registry to use: the one that is named, else ``./workspace`` where no server is set."""
    from vitpipe.stages import require_registry

    if workspace is None and not os.environ.get("MLFLOW_TRACKING_URI"):
        workspace = Path("workspace")
    require_registry(str(workspace) if workspace else None)
    if workspace is not None:
        _embed(workspace)
    return workspace


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(f"vitpipe {__version__}")
        raise typer.Exit


@app.command()
def init(
    data: Annotated[Path, typer.Argument(help="Folder that holds the data.")],
    out: Annotated[Path, typer.Option("--out", help="Where to write the file.")] = Path("pipeline.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Look at a folder and write a starter pipeline.yaml."""
    from vitpipe.starter import write_starter

    with reporting(as_json=as_json):
        findings = write_starter(data, out, overwrite=force)
    if as_json:
        print_json(findings.to_json())
        return
    for line in findings.lines:
        typer.echo(line)
    typer.echo(f"\nwrote {out}; next: vitpipe check {out}, then vitpipe run {out}")


@app.command()
def check(config: ConfigPath = Path("pipeline.yaml"), as_json: AsJson = False) -> None:
    """Say what would be rejected and why, and what a run would take, before anything is trained."""
    from vitpipe.check import check_pipeline

    with reporting(as_json=as_json):
        findings = check_pipeline(_load(config))
    if as_json:
        print_json(findings.to_json())
    else:
        for line in findings.lines:
            typer.echo(line)
    if "stops" in findings.values:
        raise typer.Exit(DataError.exit_code)


@app.command()
def run(config: ConfigPath = Path("pipeline.yaml"), as_json: AsJson = False) -> None:
    """Ingest, tile, fine-tune, evaluate and register."""
    from flows.terminal import print_result, run_flow

    with reporting(as_json=as_json):
        loaded = _load(config)
        _embed(Path(loaded.workspace))
        from flows.pipeline import pipeline

        result = run_flow(pipeline, loaded)
        print_result(result, as_json=as_json)


def _run_stage(name: str, config: Path, *, as_json: bool) -> None:
    from flows.terminal import print_stage, run_flow

    with reporting(as_json=as_json):
        loaded = _load(config)
        _embed(Path(loaded.workspace))
        from flows import stages

        print_stage(run_flow(getattr(stages, name), loaded), as_json=as_json)


@app.command()
def ingest(config: ConfigPath = Path("pipeline.yaml"), as_json: AsJson = False) -> None:
    """Bring the catalog of sources up to date."""
    _run_stage("ingest", config, as_json=as_json)


@app.command()
def tile(config: ConfigPath = Path("pipeline.yaml"), as_json: AsJson = False) -> None:
    """Cut tiles from the sources that have none."""
    _run_stage("tile", config, as_json=as_json)


@app.command()
def train(config: ConfigPath = Path("pipeline.yaml"), as_json: AsJson = False) -> None:
    """Join tiles, labels and splits, and fine-tune."""
    _run_stage("train", config, as_json=as_json)


@app.command()
def evaluate(config: ConfigPath = Path("pipeline.yaml"), as_json: AsJson = False) -> None:
    """Judge the trained model on the locked test split."""
    _run_stage("evaluate", config, as_json=as_json)


@app.command()
def register(config: ConfigPath = Path("pipeline.yaml"), as_json: AsJson = False) -> None:
    """Register the evaluated model."""
    _run_stage("register", config, as_json=as_json)


@app.command()
def predict(  # noqa: PLR0913 - a parameter an option
    *,
    model_uri: Annotated[str, typer.Argument(help="Such as models:/ct-contrast@champion.")],
    source: Annotated[
        str,
        typer.Argument(
            help="File or folder of DICOM files, GeoTIFF scenes or photographs; https:// or s3:// address of a scene; "
            "folder of S3; of STAC a YAML file with `source: {kind: stac, ...}`, a JSON file, or the address of a "
            "collection or item."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for the predictions.")] = Path("predictions"),
    dicom: Annotated[
        Literal["sr", "seg"] | None,
        typer.Option("--dicom", help="Write a DICOM structured report or segmentation of each source too."),
    ] = None,
    overlap: Annotated[
        float,
        typer.Option("--overlap", min=0, max=0.9, help="Maps and masks: share of a tile that the next one covers too."),
    ] = 0.25,
    tta: Annotated[
        Literal["none", "d4"],
        typer.Option("--tta", help="Maps and masks: average over all eight turns and flips of each tile (d4)."),
    ] = "none",
    grid: Annotated[
        bool, typer.Option("--map", help="Models of tiles: write a raster of one pixel a tile for each scene.")
    ] = False,
    vectors: Annotated[bool, typer.Option("--vectors", help="Maps: write polygons of the classes too.")] = False,
    min_area: Annotated[
        int, typer.Option("--min-area", min=1, help="Vectors: leave out polygons of fewer pixels.")
    ] = 1,
    workspace: WorkspaceOption = None,
    as_json: AsJson = False,
) -> None:
    """Run a registered model on files."""
    from flows.terminal import print_stage
    from vitpipe import results
    from vitpipe.config import MapRecipe

    with reporting(as_json=as_json):
        workspace = _find_registry(workspace)
        place = str(workspace) if workspace else None
        maps = MapRecipe(overlap=overlap, tta=tta, vectors=vectors, min_area_px=min_area, grid=grid)
        with lines_of_progress():
            summary = results.predict(model_uri, source, str(out), place, dicom=dicom, maps=maps)
        print_stage(summary, as_json=as_json)


@app.command()
def accuracy(  # noqa: PLR0913 - a parameter an option
    *,
    class_map: Annotated[Path, typer.Argument(metavar="MAP", help="GeoTIFF whose first band holds classes 0..255.")],
    reference: Annotated[
        Path,
        typer.Argument(help="Points or polygons (CSV, GeoJSON, GPKG, Shapefile), or a class GeoTIFF."),
    ],
    column: Annotated[str, typer.Option("--column", help="Holds the reference class.")] = "label",
    strata: Annotated[
        Path | None,
        typer.Option("--strata", help="Class GeoTIFF the sample was drawn by, if not by the map's classes."),
    ] = None,
    cluster: Annotated[
        str | None, typer.Option("--cluster", help="Column: units drawn together share a value.")
    ] = None,
    block_m: Annotated[
        float | None,
        typer.Option("--block-m", min=0, help="Else: units in one block so many metres wide are a cluster."),
    ] = None,
    classes: Annotated[str | None, typer.Option("--classes", help="Names of values: 1=forest,2=water.")] = None,
    reference_classes: Annotated[
        str | None, typer.Option("--reference-classes", help="The same for numbers in the reference, if they differ.")
    ] = None,
    pool: Annotated[bool, typer.Option("--pool-small", help="Merge strata with fewer than two units.")] = False,
    confidence: Annotated[float, typer.Option("--confidence", min=0.5, max=0.999)] = 0.95,
    out: Annotated[Path, typer.Option("--out", help="Folder for accuracy.json and accuracy.html.")] = Path("accuracy"),
    as_json: AsJson = False,
) -> None:
    """Say how accurate a class map is and how much ground each class covers, from reference labels."""
    from vitpipe.evaluate.map_assess import AccuracyRequest, assess_map

    with reporting(as_json=as_json):
        request = AccuracyRequest(
            class_map, reference, column, strata, cluster, block_m, classes, reference_classes, pool, confidence
        )
        findings = assess_map(request, out)
    if as_json:
        print_json(findings.to_json())
        return
    for line in findings.lines:
        typer.echo(line)


@app.command()
def whence(
    file: Annotated[Path, typer.Argument(help="A structured report or segmentation of predict --dicom.")],
    workspace: WorkspaceOption = None,
    as_json: AsJson = False,
) -> None:
    """Say which registered model, run and data a DICOM result is from."""
    from flows.settings import apply_environment
    from vitpipe import results

    with reporting(as_json=as_json):
        if workspace is None and not os.environ.get("MLFLOW_TRACKING_URI"):
            workspace = Path("workspace")
        if workspace is not None and workspace.is_dir():
            apply_environment(workspace)
        findings = results.whence(str(file), str(workspace) if workspace else None)
    if as_json:
        print_json(findings.to_json())
        return
    for line in findings.lines:
        typer.echo(line)


@app.command()
def deidentify(
    source: Annotated[Path, typer.Argument(help="Folder of DICOM files; it is only read.")],
    target: Annotated[Path, typer.Argument(help="Folder for the de-identified files.")],
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            help="Option of the confidentiality profile (PS3.15 E.3), may be given several times: retain-dates (moved),"
            " retain-full-dates, retain-device, retain-institution, retain-characteristics, retain-uids,"
            " retain-safe-private, clean-descriptors.",
        ),
    ] = None,
    key_file: Annotated[
        Path | None, typer.Option("--key-file", help="File with the key, made if there is none; else VITPIPE_KEY.")
    ] = None,
    ocr: Annotated[
        str,
        typer.Option("--ocr", help="Text in the pixels: none (the header decides), or mask or reject what OCR finds."),
    ] = "none",
    as_json: AsJson = False,
) -> None:
    """Take the patients' identities out of DICOM files (PS3.15 Basic Application Level Confidentiality Profile)."""
    from flows.deidentify import deidentify as run_tree
    from flows.terminal import print_stage

    with reporting(as_json=as_json):
        print_stage(run_tree(source, target, option or [], key_file, ocr), as_json=as_json)


@app.command()
def receive(  # noqa: PLR0913 - a parameter an option
    *,
    to: Annotated[Path, typer.Option("--to", help="Folder that studies go to.")],
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any free one.")] = 11112,
    host: Annotated[str, typer.Option("--host", help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    aet: Annotated[str, typer.Option("--aet", help="Our AE title.")] = "VITPIPE",
    quiet_seconds: Annotated[
        float, typer.Option("--quiet-seconds", min=0.1, help="A study of which nothing came for so long is complete.")
    ] = 60.0,
    allow: Annotated[list[str] | None, typer.Option("--allow", help="AE title that may send; all if none.")] = None,
    config: Annotated[Path | None, typer.Option("--run", help="Pipeline that ingests complete studies.")] = None,
    as_json: AsJson = False,
) -> None:
    """Receive studies by C-STORE until interrupted, and ingest them when they are complete."""
    from flows.receive import receive as listen
    from flows.terminal import print_stage
    from vitpipe.receive import ReceiverOptions

    with reporting(as_json=as_json):
        options = ReceiverOptions(to.resolve(), host, port, aet, quiet_seconds, tuple(allow or ()))
        print_stage(listen(options, config, lambda line: typer.echo(line, err=True)), as_json=as_json)


@app.command()
def promote(
    name: Annotated[str, typer.Argument(help="Registered name.")],
    version: Annotated[int | None, typer.Argument(help="Version; the challenger if not given.")] = None,
    workspace: WorkspaceOption = None,
    as_json: AsJson = False,
) -> None:
    """Make a version the champion, whatever the gate said."""
    from flows.terminal import print_version
    from vitpipe import stages

    with reporting(as_json=as_json):
        workspace = _find_registry(workspace)
        print_version(stages.promote(name, version, str(workspace) if workspace else None), as_json=as_json)


@app.command()
def rollback(
    name: Annotated[str, typer.Argument(help="Registered name.")],
    workspace: WorkspaceOption = None,
    as_json: AsJson = False,
) -> None:
    """Give the champion's place back to the version before."""
    from flows.terminal import print_version
    from vitpipe import stages

    with reporting(as_json=as_json):
        workspace = _find_registry(workspace)
        print_version(stages.rollback(name, str(workspace) if workspace else None), as_json=as_json)


@app.command()
def up(
    config: Annotated[
        Path | None, typer.Option("--config", help="Pipeline that the deployments run by default.")
    ] = None,
    home: Home = None,
    prefect_port: Annotated[int, typer.Option("--prefect-port", min=1, max=65535)] = 4200,
    mlflow_port: Annotated[int, typer.Option("--mlflow-port", min=1, max=65535)] = 5000,
    timezone: Annotated[str, typer.Option("--timezone", help="Time zone of the nightly schedule.")] = "UTC",
    as_json: AsJson = False,
) -> None:
    """Start the Prefect server, the MLflow server and a worker on loopback."""
    from flows.servers import ServerOptions
    from flows.servers import up as start
    from flows.settings import default_home
    from flows.terminal import print_servers

    with reporting(as_json=as_json):
        options = ServerOptions(
            home=home or default_home(),
            config=_load(config) if config else None,
            prefect_port=prefect_port,
            mlflow_port=mlflow_port,
            timezone=timezone,
        )
        print_servers(start(options, lambda line: typer.echo(line, err=True)), as_json=as_json)


@app.command()
def down(home: Home = None, as_json: AsJson = False) -> None:
    """Stop what `up` started."""
    from flows.servers import down as stop
    from flows.settings import default_home
    from flows.terminal import print_servers

    with reporting(as_json=as_json):
        print_servers(stop(home or default_home(), lambda line: typer.echo(line, err=True)), as_json=as_json)


@app.command()
def status(home: Home = None, as_json: AsJson = False) -> None:
    """Say what of `up` is running, and where."""
    from flows.servers import status as look
    from flows.settings import default_home
    from flows.terminal import print_servers

    with reporting(as_json=as_json):
        print_servers(look(home or default_home()), as_json=as_json)


def main() -> None:
    """Run the command line; an error of ours ends with its exit code."""
    app(prog_name="vitpipe")


if __name__ == "__main__":
    main()
