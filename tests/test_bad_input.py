"""Bad input through the whole chain up to the split: a typed error, a sentence that helps, nothing half-written."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from flows import cli, servers
from tests.end_to_end.pipeline_cases import ROOT, make_photographs, make_scenes, make_series
from vitpipe import stages
from vitpipe.check import check_pipeline
from vitpipe.errors import (
    ConfigError,
    DataError,
    LabelError,
    SplitError,
    TooManyRejected,
    VitpipeError,
    WorkspaceError,
)
from vitpipe.infer.tracking import TrackingStore
from vitpipe.learn.tensors import write_tensors
from vitpipe.loading import load_config
from vitpipe.records import StageSummary
from vitpipe.tiling import tile_digest
from vitpipe.workspace import Workspace

KINDS = ("dicom", "geotiff", "images")
DATA = {"dicom": "dicom", "geotiff": "scenes", "images": "photographs"}
COUNT = 12
Damage = Callable[[bytes], bytes]


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good pipeline of each kind."""
    folder = tmp_path_factory.mktemp("originals")
    for kind, make in (("dicom", make_series), ("geotiff", make_scenes), ("images", make_photographs)):
        (folder / kind).mkdir()
        make(folder / kind, COUNT)
    return folder


@pytest.fixture(autouse=True)
def _fixed_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITPIPE_KEY", "bad-input")


@pytest.fixture
def place(originals: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Copies the pipeline of a kind and gives its file."""

    def copy(kind: str) -> Path:
        shutil.copytree(originals / kind, tmp_path / kind)
        return tmp_path / kind / "pipeline.yaml"

    return copy


def change(pipeline: Path, key: str, value: object) -> None:
    """Set (or, with None, remove) one key of the pipeline file, such as ``labels.column``."""
    values = yaml.safe_load(pipeline.read_text())
    *above, last = key.split(".")
    inner = values
    for name in above:
        inner = inner[name]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    pipeline.write_text(yaml.safe_dump(values, sort_keys=False))


def relabel(pipeline: Path, edit: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    """Rewrite the label table."""
    table = pipeline.parent / "labels.csv"
    edit(pd.read_csv(table)).to_csv(table, index=False)


def files_of(pipeline: Path) -> list[Path]:
    """The data files, sorted."""
    kind = yaml.safe_load(pipeline.read_text())["source"]["kind"]
    return sorted(path for path in (pipeline.parent / DATA[kind]).rglob("*") if path.is_file())


def chain(pipeline: Path) -> list[StageSummary]:
    """Run ingest, tiling, labels and splits as the flow does."""
    config = load_config(pipeline)
    for batch in stages.plan_batches(config):
        stages.index_batch(config, batch)
    summaries = [stages.build_catalog(config)]
    shards = stages.plan_shards(config)
    summaries += [stages.tile_shard(config, shard) for shard in shards]
    summaries.append(stages.check_tiles(config, shards))
    return [*summaries, stages.prepare_run(config).summary]


def refusal(pipeline: Path, kind: type[VitpipeError], exit_code: int) -> str:
    """Run the chain, which must end with this error; gives its sentence."""
    with pytest.raises(kind) as caught:
        chain(pipeline)
    assert caught.value.exit_code == exit_code
    return str(caught.value)


def quarantine(pipeline: Path) -> dict[str, tuple[str, str]]:
    """File name to code and reason."""
    table = pd.read_parquet(pipeline.parent / "workspace" / "quarantine.parquet")
    return {
        Path(uri).name: (code, reason)
        for uri, code, reason in zip(table["uri"], table["code"], table["reason"], strict=True)
    }


def contents(workspace: Path) -> dict[str, str]:
    """Every file below the workspace, and a digest of its bytes."""
    return {
        path.relative_to(workspace).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(workspace.rglob("*"))
        if path.is_file()
    }


# ------------------------------------------------------------------------------------------------- the pipeline file


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_path_is_named_with_its_key(place: Callable[[str], Path], kind: str) -> None:
    pipeline = place(kind)
    change(pipeline, "source.path", "nowhere")
    said = refusal(pipeline, ConfigError, 2)
    assert str(pipeline.parent / "nowhere") in said
    assert "check `source.path`" in said


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("source.pth", "x", "source.pth: unknown key; did you mean `path`?"),
        ("sorce", {}, "sorce: unknown key; did you mean `source`?"),
        ("model.weights.sha", 1, "model.weights.sha: unknown key; known keys here: source"),
        ("source.kind", "geotif", "source.kind: unknown 'geotif'; did you mean `geotiff`?"),
        ("source.kind", "zarr", "source.kind: unknown 'zarr'; known: dicom, dicomweb, geotiff, images"),
        ("source.kind", None, "source.kind: missing; write one of: dicom, dicomweb, geotiff, images"),
        ("source", None, "source: missing; it must be given"),
        ("model.weights", "random", "model.weights: expected keys below it, found 'random'; its kinds are: file,"),
        ("tiles.size", "big", "tiles.size: must be a valid integer (found 'big')"),
    ],
)
def test_a_wrong_key_is_named_as_it_stands_in_the_file(
    place: Callable[[str], Path], key: str, value: object, said: str
) -> None:
    pipeline = place("geotiff")
    change(pipeline, key, value)
    sentence = refusal(pipeline, ConfigError, 2)
    assert said in sentence
    assert str(pipeline) in sentence


# ------------------------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize("kind", ["dicom", "geotiff"])
@pytest.mark.parametrize(
    ("column", "guess"), [("lable", "`lable`; did you mean `label`? It has: "), ("zzz", "`zzz`. It has: ")]
)
def test_an_absent_label_column_lists_the_columns(
    place: Callable[[str], Path], kind: str, column: str, guess: str
) -> None:
    pipeline = place(kind)
    change(pipeline, "labels.column", column)
    columns = ", ".join(pd.read_csv(pipeline.parent / "labels.csv").columns)
    expected = f"{pipeline.parent / 'labels.csv'} has no column {guess}{columns}. Set `labels.column` to one of them"
    assert refusal(pipeline, LabelError, 3) == expected
    # `check` says the same before anything is tiled, as what stops the run.
    assert check_pipeline(load_config(pipeline)).values["stops"] == expected


def test_an_absent_label_table_is_a_matter_of_the_configuration(place: Callable[[str], Path]) -> None:
    pipeline = place("geotiff")
    change(pipeline, "labels.path", "gone.csv")
    with pytest.raises(ConfigError, match=r"no label table at .*gone\.csv; check `labels.path`"):
        check_pipeline(load_config(pipeline))
    assert "gone.csv" in refusal(pipeline, ConfigError, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_one_class_only_is_refused(place: Callable[[str], Path], kind: str) -> None:
    pipeline = place(kind)
    if kind == "images":
        shutil.rmtree(pipeline.parent / "photographs" / "columns")
        where = "the names of the folders"
    else:
        relabel(pipeline, lambda table: table.assign(label="rows"))
        where = f"{pipeline.parent / 'labels.csv'}, column `label`"
    said = refusal(pipeline, LabelError, 3)
    assert said.startswith(where)
    assert "one class only ('rows'" in said
    assert "at least two are needed: check" in said


@pytest.mark.parametrize("kind", ["dicom", "geotiff"])
def test_fewer_groups_than_splits_says_what_to_set(place: Callable[[str], Path], kind: str) -> None:
    pipeline = place(kind)
    relabel(pipeline, lambda table: table.head(3))
    said = refusal(pipeline, SplitError, 3)
    assert said.startswith("3 labelled group(s) cannot fill 4 splits")
    assert "label more groups" in said
    assert "`split.val`" in said
    findings = check_pipeline(load_config(pipeline))
    assert findings.values["labelled_groups"] == 3
    assert any(line.startswith("WARNING: 3 labelled group(s) for 4 splits") for line in findings.lines)
    # A split that must not be used again after the labels are mended: none was written.
    assert not (pipeline.parent / "workspace" / "splits.parquet").exists()


# ---------------------------------------------------------------------------------------------------------- bad files


def cut_off(content: bytes) -> bytes:
    return content[: len(content) * 2 // 3]


def no_bytes(content: bytes) -> bytes:
    return content[:0]


def plain_text(content: bytes) -> bytes:
    return b"not an image, but words\n" * 40


def noise(content: bytes) -> bytes:
    return np.random.default_rng(3).bytes(len(content))


@pytest.mark.parametrize(
    ("kind", "damage", "code", "remedy"),
    [
        ("dicom", cut_off, "TRUNCATED", "copy the file again"),
        ("dicom", no_bytes, "ZERO_BYTES", "copy it again"),
        ("dicom", plain_text, "NOT_DICOM", "it holds text"),
        ("dicom", noise, "NOT_DICOM", "neither the prefix DICM"),
        ("geotiff", cut_off, "TRUNCATED", "fetch it again"),
        ("geotiff", no_bytes, "ZERO_BYTES", "fetch it again"),
        ("geotiff", plain_text, "NOT_GEOTIFF", "gdal_translate"),
        ("images", cut_off, "TRUNCATED", "fetch the file again"),
        ("images", no_bytes, "ZERO_BYTES", "fetch it again"),
        ("images", plain_text, "NOT_IMAGE", "convert it"),
    ],
)
def test_a_bad_file_is_kept_apart_and_the_good_ones_go_on(
    place: Callable[[str], Path], kind: str, damage: Damage, code: str, remedy: str
) -> None:
    pipeline = place(kind)
    bad = files_of(pipeline)[0]
    bad.write_bytes(damage(bad.read_bytes()))
    summaries = chain(pipeline)
    assert set(quarantine(pipeline)) == {bad.name}
    assert quarantine(pipeline)[bad.name][0] == code
    assert remedy in quarantine(pipeline)[bad.name][1]
    # A series lives on without one of its slices; a scene or photograph is lost.
    tiled = sum(summary.done for summary in summaries if summary.stage == "tile")
    assert tiled == (COUNT if kind == "dicom" else COUNT - 1)
    # The same on the next run, which looks at nothing again.
    again = chain(pipeline)
    assert sum(summary.done for summary in again if summary.stage in ("ingest", "tile")) == 0
    assert set(quarantine(pipeline)) == {bad.name}


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_file_named_dcm_is_said_and_left_out(place: Callable[[str], Path], kind: str) -> None:
    pipeline = place(kind)
    text = files_of(pipeline)[0].parent / "notes.dcm"
    text.write_text("these are notes\n" * 20)
    ingest = chain(pipeline)[0]
    assert ingest.done == COUNT
    assert any("1 file(s) are of another kind and are left out" in note for note in ingest.notes)
    assert not any("notes.dcm" in note for note in ingest.notes)
    assert set(quarantine(pipeline)) == {"notes.dcm"}
    if kind == "dicom":
        assert quarantine(pipeline)["notes.dcm"][1] == "not a DICOM file: it holds text, although its name ends in .dcm"


@pytest.mark.parametrize("kind", KINDS)
def test_too_many_rejects_stop_the_run_with_counts(place: Callable[[str], Path], kind: str) -> None:
    pipeline = place(kind)
    # Half of them, of both classes.
    bad = [path for number, path in enumerate(files_of(pipeline)) if number % 4 < 2]
    for path in bad:
        path.write_bytes(cut_off(path.read_bytes()))
    said = refusal(pipeline, TooManyRejected, 3)
    lost = len(bad)
    assert f"{lost} of {len(files_of(pipeline))} " in said
    assert "TRUNCATED" in said
    assert "source.max_reject_share" in said
    assert any(str(path) in said for path in bad)
    assert {name for name, (code, _) in quarantine(pipeline).items() if code == "TRUNCATED"} == {
        path.name for path in bad
    }
    # The one remedy that needs no new files.
    change(pipeline, "source.max_reject_share", 1)
    chain(pipeline)


def test_mixed_channels_name_the_sources_and_what_to_set(place: Callable[[str], Path]) -> None:
    import rasterio

    pipeline = place("geotiff")
    odd = files_of(pipeline)[4]
    with rasterio.open(odd) as raster:
        profile, pixels = dict(raster.profile), raster.read()
    with rasterio.open(odd, "w", **(profile | {"count": 2})) as raster:
        raster.write(pixels[:2])
    said = refusal(pipeline, DataError, 3)
    assert f"2 channel(s) (b1, b2) in dn: 1 source(s): {odd}" in said
    assert "3 channel(s) (b1, b2, b3) in dn: 11 source(s)" in said
    assert "set `source.bands`" in said
    change(pipeline, "source.bands", ["b1", "b2"])
    assert chain(pipeline)[0].done == COUNT


def test_mixed_photographs_and_series_name_files_that_tell_them_apart(place: Callable[[str], Path]) -> None:
    import pydicom

    pipeline = place("images")
    odd = files_of(pipeline)[0]
    with Image.open(odd) as photograph:
        photograph.convert("L").save(odd)
    assert f"1 channel(s) (intensity) in dn: 1 source(s): {odd}" in refusal(pipeline, DataError, 3)

    pipeline = place("dicom")
    for path in pipeline.parent.glob("dicom/*/0-*"):
        dataset = pydicom.dcmread(path)
        dataset.RescaleType = "US"
        dataset.Modality = "MR"
        dataset.save_as(path)
    said = refusal(pipeline, DataError, 3)
    # Three series lie in the folder f0: it would not say which one is meant.
    assert f"1 source(s): {pipeline.parent / 'dicom' / 'f0' / '0-'}" in said
    assert "set `source.modality`" in said


def test_nan_pixels_count_for_nothing(place: Callable[[str], Path]) -> None:
    import rasterio

    pipeline = place("geotiff")
    for number, path in enumerate(files_of(pipeline)):
        with rasterio.open(path) as raster:
            profile, pixels = dict(raster.profile), raster.read().astype("float32")
        if number == 0:
            pixels[:] = np.nan
        if number == 1:
            pixels[0, :20, :20] = np.inf
            pixels[1, :20, :20] = np.nan
        with rasterio.open(path, "w", **(profile | {"dtype": "float32"})) as raster:
            raster.write(pixels)
    notes = [note for summary in chain(pipeline) for note in summary.notes]
    # 9 windows of the first scene; in the second the one that is wholly NaN.
    assert any(
        note.startswith("10 of 108 windows were dropped: fewer than `tiles.min_valid_fraction`") for note in notes
    )
    assert any(note.startswith("1 sources gave no tile at all, such as source_id ") for note in notes)
    (shard,) = Workspace(pipeline.parent / "workspace").tiles(tile_digest(load_config(pipeline))).glob("*/tiles.npy")
    assert np.isfinite(np.load(shard)).all()


def test_data_of_another_kind_are_said(place: Callable[[str], Path]) -> None:
    pipeline = place("geotiff")
    change(pipeline, "labels", {"kind": "folder"})
    change(pipeline, "source.kind", "dicom")
    said = refusal(pipeline, DataError, 3)
    assert "NOT_DICOM 12" in said
    assert "check `source.kind`, `source.path`" in said
    # Photographs may be TIFF: what is missing then is a folder a class.
    change(pipeline, "source.kind", "images")
    assert "set `labels.level`" in refusal(pipeline, LabelError, 3)


# ------------------------------------------------------------------------------------------------------ the workspace


def read_only_places(folder: Path) -> Iterator[tuple[Path, str]]:
    """Places where nobody, root included, can make a folder."""
    (folder / "file").write_text("x")
    yield folder / "file", f"{folder / 'file'} is a file"
    yield folder / "file" / "deeper" / "still", f"{folder / 'file'} is a file"
    if Path("/proc/self").exists():
        yield Path("/proc/vitpipe"), "the system has no such place"
    if Path("/sys/kernel").exists():
        # EPERM in most kernels, EROFS in most containers, EACCES for plain users.
        yield Path("/sys/vitpipe"), "name a folder that this user can write"


def test_a_workspace_that_cannot_be_written_is_said(place: Callable[[str], Path], tmp_path: Path) -> None:
    pipeline = place("images")
    for workspace, said in read_only_places(tmp_path):
        change(pipeline, "workspace", str(workspace))
        with pytest.raises(WorkspaceError) as caught:
            check_pipeline(load_config(pipeline))
        assert caught.value.exit_code == 2
        assert str(caught.value).startswith(("cannot make the folder", "cannot write"))
        assert str(workspace) in str(caught.value)
        assert said in str(caught.value)
        assert "`workspace` in the pipeline file" in str(caught.value)
        assert refusal(pipeline, WorkspaceError, 2) == str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_limit_on_file_sizes_leaves_nothing_half_written(place: Callable[[str], Path], kind: str) -> None:
    pipeline = place(kind)
    workspace = pipeline.parent / "workspace"
    chain(pipeline)
    unbroken = contents(workspace)
    shutil.rmtree(workspace)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    said = []
    # Python ignores SIGXFSZ: the write that goes past the limit fails with EFBIG, in the middle of a file.
    for limit in (1_000, 6_000, 9_000, 12_000, 30_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            chain(pipeline)
        except WorkspaceError as error:
            said.append(str(error))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert not list(workspace.rglob(".partial-*"))
    assert all("raise the limit (`ulimit -f`)" in sentence for sentence in said)
    assert len({sentence.split()[2] for sentence in said}) >= 2, "the limits met the same file only"
    chain(pipeline)
    assert contents(workspace) == unbroken


FULL_DISK = """
import json, subprocess, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.test_bad_input import chain, contents
from vitpipe.errors import WorkspaceError

pipeline = Path(sys.argv[1])
workspace = pipeline.parent / "workspace"
workspace.mkdir()

def mount(options):
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(workspace)], check=True)

mount("size=16k")
said = []
for kibibytes in range(16, 400, 12):
    subprocess.run(["mount", "-o", f"remount,size={kibibytes}k", str(workspace)], check=True)
    try:
        chain(pipeline)
        break
    except WorkspaceError as error:
        said.append(str(error))
whole = contents(workspace)
subprocess.run(["mount", "-o", "remount,ro", str(workspace)], check=True)
try:
    chain(pipeline)
    read_only = None
except WorkspaceError as error:
    read_only = str(error)
print(json.dumps({"said": said, "whole": whole, "read_only": read_only}))
"""


def can_mount() -> bool:
    """Whether this user may mount in a namespace of its own."""
    if shutil.which("unshare") is None or shutil.which("mount") is None:
        return False
    probe = ["unshare", "-Umr", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="needs a user namespace in which a file system can be mounted")
def test_a_disk_that_is_full_then_larger_then_read_only(place: Callable[[str], Path]) -> None:
    pipeline = place("geotiff")
    chain(pipeline)
    workspace = pipeline.parent / "workspace"
    unbroken = contents(workspace)
    shutil.rmtree(workspace)
    child = subprocess.run(
        ["unshare", "-Umr", sys.executable, "-c", FULL_DISK, str(pipeline), str(ROOT)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=120,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    result = json.loads(child.stdout)
    assert len(result["said"]) >= 5
    assert all("the disk is full; free some space" in sentence for sentence in result["said"])
    stopped_at = {Path(sentence.split()[2].rstrip(":")).name for sentence in result["said"]}
    assert len(stopped_at) >= 3, stopped_at
    assert result["whole"] == unbroken
    assert "the file system is read-only; name a folder that this user can write" in result["read_only"]


def test_a_full_disk_is_known_behind_the_texts_of_libraries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch

    with pytest.raises(OSError, match="os error") as caught:
        write_tensors(tmp_path / "gone" / "model.safetensors", {"weight": torch.zeros(1)})
    assert caught.value.errno == errno.ENOENT
    store = TrackingStore(f"sqlite:///{tmp_path}/mlflow.db", None)
    full = store.error("log progress", 503, "(sqlite3.OperationalError) database or disk is full")
    assert isinstance(full, WorkspaceError)
    assert "is full; free some space" in str(full)


# ------------------------------------------------------------------------------------------- init, servers, registry


def invoke(*arguments: str) -> tuple[int, str, str]:
    """Call the command line in this process: exit code, standard output, standard error."""
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result.exit_code, result.stdout, result.stderr


def test_init_says_what_it_cannot_use(place: Callable[[str], Path], tmp_path: Path) -> None:
    empty, junk = tmp_path / "empty", tmp_path / "junk"
    empty.mkdir()
    junk.mkdir()
    (junk / "readme.txt").write_text("words")
    out = tmp_path / "pipeline.yaml"
    for folder, code, sentence in (
        (tmp_path / "nowhere", 2, "no folder or file at {}; give the folder that holds the data"),
        (empty, 3, "{} holds no file; give the folder that holds the data"),
        (junk, 3, "none of 1 files looked at below {} is a DICOM file, a GeoTIFF or a photograph; give the folder"),
    ):
        exit_code, _, said = invoke("init", str(folder), "--out", str(out))
        assert exit_code == code
        assert sentence.format(folder) in said
        assert said.count("\n") == 1
        assert not out.exists()


def test_init_keeps_what_was_written_by_hand(originals: Path, tmp_path: Path) -> None:
    out = tmp_path / "pipeline.yaml"
    out.write_text("mine")
    data = str(originals / "images" / "photographs")
    exit_code, _, said = invoke("init", data, "--out", str(out))
    assert (exit_code, out.read_text()) == (2, "mine")
    assert "pass --force to overwrite it, or --out to write elsewhere" in said
    exit_code, _, said = invoke("init", data, "--out", str(tmp_path), "--force")
    assert exit_code == 2
    assert f"{tmp_path} is a folder; name the file to write" in said
    assert invoke("init", data, "--out", str(out), "--force", "--json")[0] == 0
    assert load_config(out).source.kind == "images"


def test_errors_are_json_for_machines(place: Callable[[str], Path]) -> None:
    pipeline = place("geotiff")
    change(pipeline, "labels.column", "zzz")
    exit_code, out, _ = invoke("check", str(pipeline), "--json")
    assert exit_code == 3
    assert json.loads(out)["stops"].startswith(str(pipeline.parent / "labels.csv"))
    change(pipeline, "sorce", {})
    exit_code, out, said = invoke("check", str(pipeline), "--json")
    assert exit_code == 2
    assert json.loads(out)["error"]["kind"] == "ConfigError"
    assert "did you mean `source`?" in said


@pytest.mark.parametrize(
    "call", [("promote", "name"), ("rollback", "name"), ("predict", "models:/name@champion", "data")]
)
def test_asking_a_registry_that_is_not_there_makes_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, call: tuple[str, ...]
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    for more in ((), ("--workspace", str(tmp_path / "other"))):
        exit_code, _, said = invoke(*call, *more)
        assert exit_code == 2
        assert said.startswith(f"ConfigError: no registry at {tmp_path / (more[1] if more else 'workspace')}")
        assert "pass `--workspace FOLDER`" in said
    assert list(tmp_path.iterdir()) == []


def test_a_port_in_use_is_said(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} of 127\.0\.0\.1 is in use.*--prefect-port") as caught:
            servers.up(servers.ServerOptions(home=tmp_path, config=None, prefect_port=port, mlflow_port=port))
    assert caught.value.exit_code == 2


def test_weights_that_are_not_there_are_said_before_anything_is_tiled(place: Callable[[str], Path]) -> None:
    pipeline = place("geotiff")
    change(pipeline, "model.weights", {"source": "file", "path": "gone.safetensors"})
    with pytest.raises(ConfigError, match=r"model\.weights: no file .*gone\.safetensors; correct `model.weights.path`"):
        check_pipeline(load_config(pipeline))
