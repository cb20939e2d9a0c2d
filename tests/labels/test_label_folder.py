"""Folder names as classes."""

from __future__ import annotations

import pytest

from vitpipe.config import FolderLabels
from vitpipe.errors import LabelError
from vitpipe.labels import LabelSet, read_labels
from vitpipe.pseudonym import Pseudonymiser
from vitpipe.records import Grid, Source


def make_source(*paths: str, frames: int = 1) -> Source:
    return Source(
        source_id=f"id_{paths[0]}",
        group_id="g",
        domain="images",
        uri=f"/data/{paths[0]}",
        files=tuple(f"/data/{path}" for path in paths),
        grid=Grid(frames=frames, height=8, width=8),
        channels=("r",),
        units="dn",
        dtype="uint8",
        keys={"path": paths},
    )


def read(sources: list[Source], level: int = 1) -> LabelSet:
    return read_labels(FolderLabels(level=level), sources, Pseudonymiser(b"k"))


def test_the_folder_that_holds_the_file() -> None:
    found = read([make_source("cat/1.png"), make_source("x/dog/2.png"), make_source("3.png")])
    assert found.rows[["source_id", "label"]].to_numpy().tolist() == [
        ["id_cat/1.png", "cat"],
        ["id_x/dog/2.png", "dog"],
    ]
    assert found.classes == ("cat", "dog")
    assert found.notes == ("1 of 3 source(s) have no label: kept for prediction, not trained on",)
    assert found.rows["frame"].tolist() == [-1, -1]
    assert found.rows["group_id"].tolist() == ["", ""]


def test_the_folder_above() -> None:
    found = read([make_source("cat/p1/1.png"), make_source("dog/p2/2.png"), make_source("cow/3.png")], level=2)
    assert dict(zip(found.rows["source_id"], found.rows["label"], strict=True)) == {
        "id_cat/p1/1.png": "cat",
        "id_dog/p2/2.png": "dog",
    }


def test_the_files_of_one_source_agree_or_label_its_frames() -> None:
    others = [make_source("dog/9.png")]
    found = read([make_source("cat/1.dcm", "cat/2.dcm"), *others])
    assert found.rows["label"].tolist() == ["cat", "dog"]
    framed = read([make_source("cat/1.dcm", "dog/2.dcm", frames=2), *others])
    assert framed.rows["frame"].tolist() == [0, 1, -1]
    with pytest.raises(LabelError, match="the folder names give 1 source"):
        read([make_source("cat/1.dcm", "dog/2.dcm"), *others])


def test_no_folders_and_one_class_are_errors() -> None:
    with pytest.raises(LabelError, match=r"no file lies 1 folder\(s\) below.*such as `1.png`"):
        read([make_source("1.png")])
    with pytest.raises(LabelError, match="no file lies 1"):
        read([])
    with pytest.raises(LabelError, match="one class only"):
        read([make_source("cat/1.png"), make_source("cat/2.png")])
