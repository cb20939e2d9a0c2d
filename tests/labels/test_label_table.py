"""Label tables: every key kind, both bases of a path, frames and whole sources, and what does not fit is said."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from vitpipe.config import TableLabels
from vitpipe.errors import ConfigError, LabelError
from vitpipe.labels import LabelSet, read_labels
from vitpipe.pseudonym import Pseudonymiser
from vitpipe.records import Grid, Source

PSEUDONYM = Pseudonymiser(b"test key")


def make_source(name: str, *, root: Path = Path("/data"), files: int = 1, **keys: tuple[str, ...]) -> Source:
    paths = tuple(name if files == 1 else f"{name}/{number}.dcm" for number in range(files))
    return Source(
        source_id=f"id_{name}",
        group_id=f"group_{name}",
        domain="images",
        uri=str(root / name),
        files=tuple(str(root / path) for path in paths),
        grid=Grid(frames=files, height=8, width=8),
        channels=("r",),
        units="dn",
        dtype="uint8",
        keys={"path": paths, **keys},
    )


def read(tmp_path: Path, text: str, sources: list[Source], **options: object) -> LabelSet:
    path = tmp_path / "labels.csv"
    path.write_text(text, encoding="utf-8")
    values = {"path": str(path), "column": "label", **options}
    return read_labels(TableLabels.model_validate(values), sources, PSEUDONYM)


def labels_of(found: LabelSet) -> dict[tuple[str, int], str]:
    return {(row.source_id, row.frame): row.label for row in found.rows.itertuples()}


AB = [make_source("a.png"), make_source("sub/b.png")]


@pytest.mark.parametrize("prefix", ["", "./", ".\\"])
def test_paths_relative_to_the_data(tmp_path: Path, prefix: str) -> None:
    second = "sub\\b.png" if "\\" in prefix else "sub/b.png"
    found = read(tmp_path, f"path,label\n{prefix}a.png,cat\n{prefix}{second},dog\n", AB)
    assert labels_of(found) == {("id_a.png", -1): "cat", ("id_sub/b.png", -1): "dog"}
    assert found.classes == ("cat", "dog")
    assert found.notes == ()
    assert list(found.rows.columns) == ["source_id", "frame", "label", "group_id"]


def test_paths_relative_to_the_table_and_absolute_ones(tmp_path: Path) -> None:
    root = tmp_path / "images"
    sources = [make_source("a.png", root=root), make_source("b.png", root=root)]
    found = read(tmp_path, f"path,label\nimages/a.png,cat\n{root}/b.png,dog\n", sources)
    assert labels_of(found) == {("id_a.png", -1): "cat", ("id_b.png", -1): "dog"}
    found = read(tmp_path, f"path,label\n../{tmp_path.name}/images/a.png,cat\n.//images//b.png,dog\n", sources)
    assert len(found.rows) == 2


def test_the_digest_is_of_the_content(tmp_path: Path) -> None:
    one = read(tmp_path, "path,label\na.png,cat\nsub/b.png,dog\n", AB)
    other = read(tmp_path, "label;path;more\ndog;./sub/b.png;1\ncat;a.png;2\n", AB)
    changed = read(tmp_path, "path,label\na.png,dog\nsub/b.png,cat\n", AB)
    assert one.digest == other.digest != changed.digest


def test_parquet_and_whole_numbers_as_floats(tmp_path: Path) -> None:
    path = tmp_path / "labels.parquet"
    pd.DataFrame({"path": ["a.png", "sub/b.png", "c.png"], "label": [1.0, 0.0, np.nan]}).to_parquet(path)
    found = read_labels(TableLabels(path=str(path), column="label"), AB, PSEUDONYM)
    assert labels_of(found) == {("id_a.png", -1): "1", ("id_sub/b.png", -1): "0"}
    found = read(tmp_path, "path,label\na.png,1.0\nsub/b.png,0\n", AB)
    assert found.classes == ("0", "1")
    found = read(tmp_path, "path,label\na.png,01\nsub/b.png,02\n", AB)
    assert found.classes == ("01", "02")


def test_scene_keys_and_a_scene_name_that_two_sources_share(tmp_path: Path) -> None:
    sources = [make_source("x/s1.tif", scene=("s1",)), make_source("y/s1.tif", scene=("s1",))]
    sources.append(make_source("y/s2.tif", scene=("s2",)))
    found = read(tmp_path, "scene,label\ns1,cat\ns2,dog\n", sources, key="scene")
    assert set(labels_of(found).values()) == {"cat", "dog"}
    assert "1 more source(s) share a scene name" in found.notes[0]


def test_identifying_keys_match_as_pseudonyms_and_are_never_shown(tmp_path: Path) -> None:
    sources = [
        make_source("s1", patient=(PSEUDONYM("patient", "007"),)),
        make_source("s2", patient=(PSEUDONYM("patient", "007"),)),
        make_source("s3", patient=(PSEUDONYM("patient", "PAT^2"),)),
    ]
    text = "id,label\n 007 ,ill\nPAT^2,well\nSECRET9,ill\n"
    found = read(tmp_path, text, sources, key="patient", key_column="id", group="id")
    assert labels_of(found) == {("id_s1", -1): "ill", ("id_s2", -1): "ill", ("id_s3", -1): "well"}
    assert found.rows["group_id"].tolist()[0] == PSEUDONYM("group", "007")
    assert found.notes == ("1 label(s) name no source (not there, rejected, or a duplicate), such as row 3",)
    shown = found.rows.to_csv() + str(found.notes)
    assert "007" not in shown
    assert "PAT" not in shown
    with pytest.raises(LabelError, match="rows 3 and 4") as error:
        read(tmp_path, text + "SECRET9,well\n", sources, key="patient", key_column="id")
    assert "SECRET9" not in str(error.value)
    with pytest.raises(LabelError, match="none of its 2 labelled") as error:
        read(tmp_path, "patient,label\nSECRET9,ill\nSECRET8,well\n", sources, key="patient")
    assert "SECRET9" not in str(error.value)


def test_as_many_keys_as_frames_label_frames(tmp_path: Path) -> None:
    sources = [make_source("ser", files=3, series_uid=(PSEUDONYM("series_uid", "1.2"),)), make_source("b.png")]
    found = read(tmp_path, "path,label\nser/0.dcm,x\nser/2.dcm,y\nb.png,x\n", sources)
    assert labels_of(found) == {("id_ser", 0): "x", ("id_ser", 2): "y", ("id_b.png", -1): "x"}
    other = make_source("o", series_uid=(PSEUDONYM("series_uid", "1.3"),))
    found = read(tmp_path, "series_uid,label\n1.2,x\n1.3,y\n", [*sources, other], key="series_uid")
    assert labels_of(found) == {("id_ser", -1): "x", ("id_o", -1): "y"}


def test_several_keys_of_one_source_must_agree(tmp_path: Path) -> None:
    pair = make_source("m", files=1, scene=("m1", "m2"))
    sources = [pair, make_source("n", scene=("n",))]
    found = read(tmp_path, "scene,label\nm1,x\nm2,x\nn,y\n", sources, key="scene")
    assert labels_of(found) == {("id_m", -1): "x", ("id_n", -1): "y"}
    with pytest.raises(LabelError, match=r"give 1 source\(s\) two different labels, first source id_m"):
        read(tmp_path, "scene,label\nm1,x\nm2,y\nn,y\n", sources, key="scene")


def test_the_same_key_twice(tmp_path: Path) -> None:
    assert len(read(tmp_path, "path,label\na.png,cat\n./a.png,cat\nsub/b.png,dog\n", AB).rows) == 2
    with pytest.raises(LabelError, match=r"1 key\(s\) have different labels.*rows 1 and 3 \(`a.png`\)"):
        read(tmp_path, "path,label\na.png,cat\nsub/b.png,dog\na.png,dog\n", AB)
    with pytest.raises(LabelError, match=r"1 key\(s\) have different groups"):
        read(tmp_path, "path,label,g\na.png,cat,1\nsub/b.png,dog,1\na.png,cat,2\n", AB, group="g")


def test_multi_label(tmp_path: Path) -> None:
    sources = [make_source(f"{name}.png") for name in "abcd"]
    text = "path,wet,hot,old\na.png,1,0,0\nb.png,1,1.0,0\nc.png,False,0,0\nd.png,,1,0\n"
    found = read(tmp_path, text, sources, column=["wet", "hot", "old"])
    assert labels_of(found) == {("id_a.png", -1): "wet", ("id_b.png", -1): "hot|wet", ("id_c.png", -1): ""}
    assert found.multi_label
    assert found.classes == ("hot", "old", "wet")
    assert "1 row(s) of the label table have no label" in found.notes
    assert "no labelled source is positive for: old" in found.notes
    with pytest.raises(LabelError, match="row 2, column `hot` holds '2'"):
        read(tmp_path, "path,wet,hot\na.png,1,0\nb.png,1,2\n", sources, column=["wet", "hot"])
    with pytest.raises(LabelError, match=r"one column only.*`column: wet`"):
        read(tmp_path, text, sources, column=["wet"])


def test_groups_and_attributes(tmp_path: Path) -> None:
    text = "path,label,block,age,code,sex\na.png,cat,k1,61,007,F\nsub/b.png,dog,,,008,\n"
    found = read(tmp_path, text, AB, group="block", attributes=["age", "code", "sex"])
    first, second = (row._asdict() for row in found.rows.itertuples(index=False))
    assert first["group_id"] == PSEUDONYM("group", "k1")
    assert second["group_id"] == ""
    assert first["attr_age"] == 61.0
    assert np.isnan(second["attr_age"])
    assert (first["attr_code"], first["attr_sex"]) == ("007", "F")
    assert second["attr_sex"] is None or pd.isna(second["attr_sex"])
    assert any("no value in the group column" in note for note in found.notes)


def test_what_is_missing_is_counted(tmp_path: Path) -> None:
    sources = [*AB, make_source("c.png"), make_source("d.png")]
    found = read(tmp_path, "path,label\na.png,cat\nsub/b.png,NA\nc.png,\ngone1.png,cat\n,dog\n", sources)
    assert found.classes == ("NA", "cat")
    assert found.notes == (
        "1 row(s) of the label table have no label",
        "1 row(s) of the label table have no key",
        "taken as classes: NA; leave the cell empty where there is no label",
        "1 label(s) name no source (not there, rejected, or a duplicate), such as row 4",
        "2 of 4 source(s) have no label: kept for prediction, not trained on",
    )


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("file,label\na.png,x\n", {}, "has no column `path`.*It has: file, label.*labels.key_column"),
        ("path,Label\na.png,x\n", {}, "no column `label`; did you mean `Label`?.*path, Label.*labels.column"),
        ("path,label\na.png,x\n", {"group": "patien"}, "no column `patien`.*labels.group"),
        ("path,label\na.png,x\nsub/b.png,x\n", {}, r"one class only \('x', 2 label row"),
        ("path,label\na.png,x\ngone.png,y\n", {}, "one class only"),
        ("path,label\na.png,x|y\nsub/b.png,z\n", {}, r"class name 'x\|y' holds `\|`"),
        ("path,label\nq/a.png,x\nq/b.png,y\n", {}, "has `q/a.png`, the sources have `a.png`; the file names agree"),
        ("path,label\na,x\nb,y\n", {}, "without extension: set `labels.key: scene`"),
        ("path,label\n1,x\n2,y\n", {}, "none of its 2 labelled.*set `labels.key_column`"),
        ("patient,label\n1,x\n", {"key": "patient"}, "no key of kind `patient`; set `labels.key` to one of: path"),
        ("path,label\n", {}, "has no rows"),
        ("", {}, "is empty; it needs a header line"),
        ("path,label\na.png,\n", {}, "no row has both a key"),
        ("path,label\na.png,x\n1,2,3,4\n", {}, "cannot be read as a table"),
        ("path,label,label\na.png,x,y\n", {"attributes": ["nix"]}, "no column `nix`"),
    ],
)
def test_what_does_not_fit_is_said(tmp_path: Path, text: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(LabelError, match=message):
        read(tmp_path, text, AB, **options)


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    recipe = TableLabels(path=str(tmp_path / "gone.csv"), column="label")
    with pytest.raises(ConfigError, match="no label table at"):
        read_labels(recipe, AB, PSEUDONYM)
    (tmp_path / "l.xlsx").write_bytes(b"PK")
    with pytest.raises(LabelError, match=r"not `\.xlsx`"):
        read_labels(recipe.model_copy(update={"path": str(tmp_path / "l.xlsx")}), AB, PSEUDONYM)
    (tmp_path / "l.csv").write_bytes("path,label\nä.png,x\n".encode("latin-1"))
    with pytest.raises(LabelError, match="not UTF-8"):
        read_labels(recipe.model_copy(update={"path": str(tmp_path / "l.csv")}), AB, PSEUDONYM)
    (tmp_path / "l.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(LabelError, match="cannot be read as a table"):
        read_labels(recipe.model_copy(update={"path": str(tmp_path / "l.parquet")}), AB, PSEUDONYM)


def test_a_byte_order_mark_and_blanks_in_the_header_do_not_matter(tmp_path: Path) -> None:
    found = read(tmp_path, "\ufeffpath , label\na.png,cat\nsub/b.png, dog\n", AB)
    assert found.classes == ("cat", "dog")


def test_a_large_table_is_matched_without_row_loops(tmp_path: Path) -> None:
    size = 300_000
    path = tmp_path / "labels.parquet"
    names = [f"f{number}.png" for number in range(size)]
    table = {"path": names, "label": [f"c{number % 10}" for number in range(size)], "g": np.arange(size) // 30}
    pd.DataFrame(table).to_parquet(path)
    sources = [make_source(name) for name in names[:2000]]
    began = time.process_time()
    found = read_labels(TableLabels(path=str(path), column="label", group="g"), sources, PSEUDONYM)
    assert time.process_time() - began < 8
    assert len(found.rows) == 2000
    assert found.notes[0].startswith("298000 label(s) name no source")
