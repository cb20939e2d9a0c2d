"""What ingest lists and batches, and the tables that it writes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.ingest_cases import make_config, write
from vitpipe.errors import ConfigError, DataError
from vitpipe.ingest import (
    batches,
    list_files,
    read_catalog,
    read_quarantine,
    write_catalog,
)
from vitpipe.records import Grid, Source
from vitpipe.workspace import Workspace

# ------------------------------------------------------------------------------------------------------------- listing


def test_listing_is_sorted_and_leaves_out_what_is_hidden_and_the_workspace(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for name in ("b.src", "a/2.src", "a/1.src", ".git/x", ".hidden", "ws/catalog.parquet", "c/.partial-1/x"):
        write(root, name)
    os.mkfifo(root / "pipe")
    config = make_config(root, root / "ws")
    assert [path.relative_to(root).as_posix() for path in list_files(config)] == ["a/1.src", "a/2.src", "b.src"]


def test_links_are_followed_once_and_loops_end(tmp_path: Path) -> None:
    root = tmp_path / "data"
    write(root, "z/real.src")
    write(tmp_path, "outside/far.src")
    (root / "a_link_to_z").symlink_to(root / "z")
    (root / "z" / "up").symlink_to(root)
    (root / "far").symlink_to(tmp_path / "outside")
    (root / "broken.src").symlink_to(tmp_path / "nowhere")
    names = [path.relative_to(root).as_posix() for path in list_files(make_config(root, tmp_path / "ws"))]
    assert names == ["broken.src", "far/far.src", "z/real.src"]


def test_a_single_file_and_a_missing_path(tmp_path: Path) -> None:
    path = write(tmp_path, "one.src")
    assert list_files(make_config(path, tmp_path / "ws")) == [path]
    with pytest.raises(ConfigError, match=r"no such file or folder: .*gone; check `source\.path`"):
        list_files(make_config(tmp_path / "gone", tmp_path / "ws"))
    with pytest.raises(ConfigError, match="same folder"):
        list_files(make_config(tmp_path, tmp_path))


def test_batches_are_seconds_of_work_and_few(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}" for number in range(10_000)]
    cut = batches(paths)
    assert [path for batch in cut for path in batch] == paths
    assert 2 <= len(cut) <= 5
    assert len(batches(paths, 2)) == 2
    assert batches([]) == []
    assert len(batches([Path(f"/nowhere/{number}") for number in range(100_000)])) <= 300


def test_large_files_make_batches_of_their_own(tmp_path: Path) -> None:
    paths = []
    for number in range(4):
        path = tmp_path / f"{number}.tif"
        with path.open("wb") as stream:
            stream.truncate(3_000_000_000)
        paths.append(path)
    assert batches(paths) == [[path] for path in paths]


# -------------------------------------------------------------------------------------------------------------- tables


def test_the_catalog_reads_back_as_it_was_written(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    full = Source(
        source_id="b",
        group_id="g",
        domain="dicom",
        uri="/d/ä",
        files=("/d/ä/1", "/d/ä/2"),
        grid=Grid(2, 3, 4, spacing_mm=(1 / 3, 0.1, 0.2), affine=tuple(float(n) / 7 for n in range(16)), crs="EPSG:1"),
        channels=("B04", "B|08"),
        units="HU",
        dtype="int16",
        acquired_at="2020",
        attributes={"age": 61.0, "sex": "F", "note": None, "tiny": 1e-300},
        keys={"path": ("1", "2"), "patient": ("abc",)},
        bytes=2**40,
        notes=("NO_GEOMETRY",),
        reader={"bands": [1, 2], "nested": {"x": None}},
    )
    bare = Source("a", "h", "images", "u", ("f",), Grid(1, 1, 1), ("r",), "dn", "uint8")
    write_catalog(workspace, [full, bare])
    assert read_catalog(workspace) == [bare, full]
    assert read_catalog(workspace, ["b", "z"]) == [full]
    assert read_catalog(workspace, []) == []
    with pytest.raises(DataError, match="no catalog in"):
        read_catalog(Workspace(tmp_path / "other"))
    assert read_quarantine(Workspace(tmp_path / "other")).columns.tolist() == ["uri", "code", "reason", "junk"]
