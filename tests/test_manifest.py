"""The manifest: labels and groups meet tiles, splits are locked, and the digest is of content alone."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from vitpipe import manifest as room
from vitpipe.config import PipelineConfig, TileRecipe
from vitpipe.errors import ContractError, DataError, LabelError, LeakageError, SplitError
from vitpipe.ingest import ingest, read_catalog, write_catalog
from vitpipe.labels import LabelSet, read_labels
from vitpipe.labels.base import make_label_set
from vitpipe.manifest import build_manifest, read_manifest, write_manifest
from vitpipe.pseudonym import load_pseudonymiser
from vitpipe.records import Grid, Source, Window, box_mm
from vitpipe.splits import read_splits
from vitpipe.workspace import Workspace

GROUPS = 24


class FakeStore:
    tiles = pd.DataFrame()
    channels = ("r", "g")
    units = "dn"
    tile_size = 8
    depth = None

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def table(self) -> pd.DataFrame:
        return FakeStore.tiles.sort_values("tile_id", ignore_index=True)


def make_tiles(sources: list[Source], *, per_frame: int = 2) -> pd.DataFrame:
    rows = [
        {
            "tile_id": f"{source.source_id}:{frame}:0:{col}",
            "source_id": source.source_id,
            "group_id": source.group_id,
            "frame": frame,
            "row": 0,
            "col": col,
            "height": 8,
            "width": 8,
            "box_mm": None,
            "depth": 1,
            "valid_fraction": 1.0,
            "pixel_digest": f"{source.source_id}{frame}{col}",
        }
        for source in sources
        for frame in range(source.grid.frames)
        for col in range(per_frame)
    ]
    table = pd.DataFrame(rows)
    return table.assign(shard_id="s0", shard_row=np.arange(len(table)))


def make_source(number: int, *, frames: int = 1, **attributes: str | float | None) -> Source:
    name = f"src{number:04d}"
    return Source(
        name, f"pat{number:04d}", "images", name, (name,), Grid(frames, 8, 8), ("r", "g"), "dn", "uint8",
        attributes=attributes,
    )  # fmt: skip


def label_set(sources: list[Source], rows: list[tuple[object, ...]], *more: str, multi_label: bool = False) -> LabelSet:
    table = pd.DataFrame(rows, columns=["source_id", "frame", "label", "group_id", *more])
    names = {name for label in table["label"] for name in str(label).split("|") if name}
    return make_label_set(table, sorted(names), sources, (), multi_label=multi_label)


class Place:
    def __init__(self, root: Path) -> None:
        self.workspace = Workspace(root)
        self.config = PipelineConfig.model_validate(
            {"name": "t", "source": {"kind": "images", "path": "/nowhere"}, "workspace": str(root)}
        )

    def build(self, sources: list[Source], labels: LabelSet, tiles: pd.DataFrame | None = None) -> room.Manifest:
        write_catalog(self.workspace, sources)
        FakeStore.tiles = make_tiles(sources) if tiles is None else tiles
        return build_manifest(self.config, self.workspace, labels)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(room, "TileStore", FakeStore)
    monkeypatch.setattr(room, "tile_digest", lambda _config: "recipe0")
    return Place(tmp_path / "ws")


SOURCES = [make_source(number) for number in range(GROUPS)]
ROWS: list[tuple[object, ...]] = [
    (source.source_id, -1, "cat" if number % 3 else "dog", "") for number, source in enumerate(SOURCES)
]


def test_tiles_labels_and_splits_are_joined(place: Place) -> None:
    found = place.build(SOURCES, label_set(SOURCES, ROWS))
    table = found.table
    assert table.columns.tolist() == list(room._COLUMNS)
    assert table["tile_id"].is_monotonic_increasing
    assert len(table) == 2 * GROUPS
    labels = dict(zip(table["source_id"], table["label"], strict=True))
    assert labels == {row[0]: row[2] for row in ROWS}
    assert (table.groupby("group_id")["split"].nunique() == 1).all()
    assert table.drop_duplicates("group_id")["split"].value_counts().to_dict() == {
        "train": 12,
        "test": 5,
        "val": 4,
        "calibration": 3,
    }
    assert (found.channels, found.units, found.tile_size) == (("r", "g"), "dn", 8)
    assert found.tiles_folder == place.workspace.tiles("recipe0")
    assert found.unlabelled == 0
    assert any(
        note.startswith("train: 24 tile(s) of 12 source(s) in 12 group(s); groups by class: cat 8, dog 4")
        for note in found.notes
    )
    assert pd.read_parquet(place.workspace.labels(label_set(SOURCES, ROWS).digest)).shape == (GROUPS, 4)


def test_the_same_input_gives_the_same_manifest_and_growth_moves_nothing(place: Place) -> None:
    first = place.build(SOURCES, label_set(SOURCES, ROWS))
    again = place.build(SOURCES, label_set(SOURCES, ROWS[::-1]))
    assert again.digest == first.digest
    pd.testing.assert_frame_equal(again.table, first.table)
    more = SOURCES + [make_source(number) for number in range(GROUPS, 2 * GROUPS)]
    rows = [*ROWS, *((source.source_id, -1, "cat", "") for source in more[GROUPS:])]
    grown = place.build(more, label_set(more, rows))
    assert grown.digest != first.digest
    before = first.table.set_index("tile_id")["split"]
    assert grown.table.set_index("tile_id")["split"].loc[before.index].equals(before)


def test_the_digest_changes_with_labels_and_groups_but_not_with_the_names_of_groups(
    place: Place, tmp_path: Path
) -> None:
    first = place.build(SOURCES, label_set(SOURCES, ROWS))
    swapped = [(row[0], -1, "dog" if number == 1 else row[2], "") for number, row in enumerate(ROWS)]
    assert place.build(SOURCES, label_set(SOURCES, swapped)).digest != first.digest

    def under_key(name: str, groups: list[str]) -> room.Manifest:
        rows = [(*row[:3], group) for row, group in zip(ROWS, groups, strict=True)]
        return Place(tmp_path / name).build(SOURCES, label_set(SOURCES, rows))

    one = under_key("k1", [f"a{number:02d}" for number in range(GROUPS)])
    # Another key: other names, in another order, and the same splits.
    other = under_key("k2", [f"b{99 - number:02d}" for number in range(GROUPS)])
    assert one.table["split"].tolist() == other.table["split"].tolist()
    assert one.digest == other.digest
    merged = under_key("k3", [f"a{number // 2:02d}" for number in range(GROUPS)])
    assert merged.digest != one.digest


def test_the_label_of_a_frame_comes_before_that_of_its_source(place: Place) -> None:
    sources = [*SOURCES, make_source(100, frames=3)]
    rows = [*ROWS, ("src0100", -1, "cat", "g"), ("src0100", 1, "dog", "g")]
    table = place.build(sources, label_set(sources, rows)).table
    part = table[table["source_id"] == "src0100"].drop_duplicates("frame")
    assert part["label"].tolist() == ["cat", "dog", "cat"]
    assert part["group_id"].unique().tolist() == ["g"]
    assert table.loc[table["source_id"] == "src0000", "group_id"].unique().tolist() == ["pat0000"]


@pytest.mark.parametrize("tiles", [{"depth": 2}, {"slice_spacing_mm": 2.5}, {"orientation": "LPS"}])
def test_labels_of_frames_are_refused_where_slices_are_no_frames_of_the_file(place: Place, tiles: dict) -> None:
    sources = [make_source(number, frames=2) for number in range(8)]
    whole = [(source.source_id, -1, "ab"[number % 2], "") for number, source in enumerate(sources)]
    single = [(source.source_id, 1, "ba"[number % 2], "") for number, source in enumerate(sources)]
    place.config = place.config.model_copy(update={"tiles": TileRecipe.model_validate(tiles)})
    assert len(place.build(sources, label_set(sources, whole)).table)
    with pytest.raises(LabelError, match=rf"8 label row.*`tiles\.{next(iter(tiles))}`.*series_uid"):
        place.build(sources, label_set(sources, whole + single))


def test_boxes_that_stored_tiles_lack_are_worked_out(place: Place) -> None:
    affine = (0.5, 0, 0, -10, 0, 0.8, 0, 20, 0, 0, 3, 40, 0, 0, 0, 1)
    sources = [make_source(number, frames=2) for number in range(8)]
    sources = [
        dataclasses.replace(source, grid=Grid(2, 8, 8, (3, 0.8, 0.5), affine if number else None))
        for number, source in enumerate(sources)
    ]
    rows = [(source.source_id, -1, "ab"[number % 2], "") for number, source in enumerate(sources)]
    table = place.build(sources, label_set(sources, rows)).table
    assert table.loc[table["source_id"] == "src0000", "box_mm"].isna().all()
    others = table[table["source_id"] != "src0000"]
    for frame, row, col, box in zip(others["frame"], others["row"], others["col"], others["box_mm"], strict=True):
        assert box == box_mm(Grid(2, 8, 8, (3, 0.8, 0.5), affine), Window(frame, row, col, 8, 8))


def test_frames_without_a_label_are_left_out_and_counted(place: Place) -> None:
    sources = [*SOURCES, make_source(100, frames=3), make_source(101)]
    found = place.build(sources, label_set(sources, [*ROWS, ("src0100", 2, "dog", "")]))
    assert found.unlabelled == 6
    assert found.table.loc[found.table["source_id"] == "src0100", "frame"].tolist() == [2, 2]
    assert "6 tile(s) have no label and are not used" in found.notes
    assert "1 of 26 source(s) have no label: kept for prediction, not trained on" in found.notes


def test_tiles_of_sources_that_left_the_catalog_are_dropped(place: Place) -> None:
    found = place.build(SOURCES[1:], label_set(SOURCES, ROWS), make_tiles(SOURCES))
    assert "src0000" not in set(found.table["source_id"])
    assert "1 labelled source(s) gave no tile (too few valid pixels, or not tiled)" in found.notes


def test_blocks_of_ground_keep_the_group_of_the_tile(place: Place) -> None:
    tiles = make_tiles(SOURCES, per_frame=2)
    tiles["group_id"] = "block" + tiles["col"].astype(str) + tiles["source_id"]
    found = place.build(SOURCES, label_set(SOURCES, ROWS), tiles)
    assert found.table["group_id"].nunique() == 2 * GROUPS
    assert found.table.groupby("source_id")["split"].nunique().max() == 2


def test_a_patient_whose_pseudonym_changed_with_the_key_has_one_group(place: Place) -> None:
    sources = [make_source(number) for number in range(GROUPS)]
    labels = label_set(sources, [(s.source_id, -1, "ab"[n % 2], "") for n, s in enumerate(sources)])
    stale = make_tiles(sources).assign(group_id=lambda table: "old-" + table["group_id"])
    table = place.build(sources, labels, stale).table
    assert set(table["group_id"]) == {source.group_id for source in sources}


def test_the_group_column_may_join_and_its_tearing_is_said(place: Place) -> None:
    frames = [make_source(100 + number, frames=2) for number in range(12)]
    rows = [(s.source_id, f, "cat" if n % 2 else "dog", f"g{n}{f}") for n, s in enumerate(frames) for f in (0, 1)]
    found = place.build(frames, label_set(frames, rows))
    assert any("the group column divides 12 group(s)" in note for note in found.notes)
    joined = [(*row[:3], f"g{number // 2}") for number, row in enumerate(ROWS)]
    again = place.build(SOURCES, label_set(SOURCES, joined))
    assert again.table["group_id"].nunique() == GROUPS // 2
    assert not any("divides" in note for note in again.notes)


def test_attributes_of_the_table_come_before_those_of_the_source(place: Place) -> None:
    sources = [
        make_source(number, sex="F" if number % 2 else "M", age=float(number), site=None) for number in range(24)
    ]
    rows = [(*row, "X" if number == 3 else None, 7.0) for number, row in enumerate(ROWS)]
    table = place.build(sources, label_set(sources, rows, "attr_sex", "attr_dose")).table
    assert [name for name in table.columns if name.startswith("attr_")] == [
        "attr_age",
        "attr_dose",
        "attr_sex",
        "attr_site",
    ]
    by_source = table.drop_duplicates("source_id").set_index("source_id")
    assert by_source.loc["src0003", "attr_sex"] == "X"
    assert by_source.loc["src0005", "attr_sex"] == "F"
    assert by_source["attr_age"].dtype == np.float64
    assert by_source.loc["src0007", "attr_age"] == 7.0
    assert by_source["attr_site"].isna().all()
    mixed = [make_source(number, grade="high" if number else 2.0) for number in range(24)]
    table = place.build(mixed, label_set(mixed, ROWS)).table
    assert set(table["attr_grade"]) == {"high", "2"}


def test_multi_label_strata_and_counts(place: Place) -> None:
    rows = [(s.source_id, -1, ("a|b", "a", "", "b")[n % 4], "") for n, s in enumerate(SOURCES)]
    found = place.build(SOURCES, label_set(SOURCES, rows, multi_label=True))
    assert found.multi_label
    assert set(found.table["label"]) == {"a|b", "a", "", "b"}
    assert any("groups by class: a " in note for note in found.notes)


def test_a_split_without_a_class_is_said(place: Place) -> None:
    rows = [(row[0], -1, "rare" if number == 0 else row[2], "") for number, row in enumerate(ROWS)]
    notes = place.build(SOURCES, label_set(SOURCES, rows)).notes
    assert sum("has no group of" in note and "rare" in note for note in notes) == 3


def test_what_cannot_be_learned_is_an_error(place: Place, tmp_path: Path) -> None:
    labels = label_set(SOURCES, ROWS)
    with pytest.raises(DataError, match="run `vitpipe tile` first"):
        place.build(SOURCES, labels, make_tiles(SOURCES).iloc[:0])
    with pytest.raises(LabelError, match="none of the 2 tile"):
        place.build(SOURCES[:1], label_set(SOURCES, ROWS[1:]))
    with pytest.raises(SplitError, match=r"3 labelled group\(s\) cannot fill 4 splits"):
        place.build(SOURCES[:3], labels)
    lonely = [(row[0], -1, "cat", f"g{number}") for number, row in enumerate(ROWS[:-1])]
    for number in range(9):
        other = Place(tmp_path / f"w{number}")
        rows = [*lonely, (SOURCES[-1].source_id, -1, "dog", f"lone{number}")]
        found = other.build(SOURCES, label_set(SOURCES, rows))
        # Its only group may be what the model learns the class from: never is it put to the test alone.
        assert found.table.loc[found.table["label"] == "dog", "split"].unique().tolist() == ["train"]


def test_one_class_in_the_train_split_is_an_error(place: Place) -> None:
    place.build(SOURCES, label_set(SOURCES, ROWS))
    splits = read_splits(place.workspace).set_index("group_id")["split"]
    rows = [(s.source_id, -1, "cat" if splits[s.group_id] == "train" else "dog", "") for s in SOURCES]
    with pytest.raises(SplitError, match=r"one class only \(`cat`, 12 group\(s\)\) of 2"):
        place.build(SOURCES, label_set(SOURCES, rows))


def test_the_same_pixels_in_two_splits_are_an_error(place: Place) -> None:
    tiles = make_tiles(SOURCES)
    tiles["pixel_digest"] = np.where(tiles["col"] == 0, "same", tiles["pixel_digest"])
    with pytest.raises(LeakageError, match=r"1 tile\(s\) have the same pixels"):
        place.build(SOURCES, label_set(SOURCES, ROWS), tiles)


def test_a_manifest_reads_back_after_the_workspace_moved(place: Place, tmp_path: Path) -> None:
    sources = [make_source(number, sex="F", age=None if number else 3.0) for number in range(24)]
    found = place.build(sources, label_set(sources, ROWS))
    found.tiles_folder.mkdir(parents=True)
    folder = place.workspace.run("run1")
    write_manifest(found, folder)
    back = read_manifest(folder)
    pd.testing.assert_frame_equal(back.table, found.table)
    for name in (
        "classes",
        "multi_label",
        "channels",
        "units",
        "tile_size",
        "tiles_folder",
        "digest",
        "notes",
        "unlabelled",
        "audit",
    ):
        assert getattr(back, name) == getattr(found, name)
    shutil.move(place.workspace.root, tmp_path / "moved")
    moved = read_manifest(tmp_path / "moved" / "runs" / "run1")
    assert moved.tiles_folder == tmp_path / "moved" / "tiles" / "recipe0"
    assert str(tmp_path) not in (tmp_path / "moved" / "runs" / "run1" / "manifest.json").read_text()
    (tmp_path / "moved" / "runs" / "run1" / "manifest.json").unlink()
    with pytest.raises(ContractError, match="holds no whole manifest"):
        read_manifest(tmp_path / "moved" / "runs" / "run1")


def test_the_way_from_files_to_a_manifest(tmp_path: Path) -> None:
    from vitpipe import tiling

    rng = np.random.default_rng(0)
    for number in range(20):
        folder = tmp_path / "data" / ("cat" if number % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    config = PipelineConfig.model_validate(
        {
            "name": "t",
            "source": {"kind": "images", "path": str(tmp_path / "data")},
            "labels": {"kind": "folder"},
            "model": {"weights": {"source": "random"}},
            "tiles": {"size": 16, "min_valid_fraction": 0.2},
            "workspace": str(tmp_path / "ws"),
        }
    )
    workspace = Workspace(tmp_path / "ws")
    assert ingest(config, workspace).done == 20
    sources = read_catalog(workspace)
    tiling.tile(config, workspace, sources)
    assert config.labels is not None
    labels = read_labels(config.labels, sources, load_pseudonymiser(workspace.root))
    found = build_manifest(config, workspace, labels)
    assert found.table["source_id"].nunique() == 20
    assert found.classes == ("cat", "dog")
    assert set(found.table["split"]) == {"train", "val", "calibration", "test"}
    write_manifest(found, workspace.run("r"))
    assert read_manifest(workspace.run("r")).digest == found.digest
