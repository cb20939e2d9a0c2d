"""A bad pipeline file or label table: a typed error and a sentence that helps."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from tests.bad_input.bad_input_cases import KINDS, change, refusal, relabel
from vitpipe.check import check_pipeline
from vitpipe.errors import ConfigError, LabelError, SplitError
from vitpipe.loading import load_config

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
