"""Bad files through the whole chain up to the split: kept apart and said, and the good ones go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.bad_input.bad_input_cases import (
    COUNT,
    KINDS,
    Damage,
    chain,
    change,
    files_of,
    quarantine,
    refusal,
)
from vitpipe.errors import DataError, LabelError, TooManyRejected
from vitpipe.loading import load_config
from vitpipe.tiling import tile_digest
from vitpipe.workspace import Workspace


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
