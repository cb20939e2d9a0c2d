"""Tiles take the label of what is drawn on their pixels: of the largest cover, at any spacing, without padding."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from tests.domains.dicom_cases import COLS, ROWS, instance, save
from tests.labels.dicom_label_cases import make_series, read_rtstruct, rtstruct, write_seg
from vitpipe import stages
from vitpipe.atomic import write_parquet
from vitpipe.check import check_pipeline
from vitpipe.config import PipelineConfig, TileRecipe
from vitpipe.cutting import windows
from vitpipe.digest import digest
from vitpipe.domains.known import planes_of
from vitpipe.ingest import ingest, read_catalog, read_quarantine
from vitpipe.labels import LabelSet, read_labels
from vitpipe.labels.regions import TileRule
from vitpipe.manifest import read_manifest
from vitpipe.pseudonym import load_pseudonymiser
from vitpipe.records import Grid, Window
from vitpipe.resample import prepared_grid
from vitpipe.store import TileStore
from vitpipe.tile_labels import label_tiles
from vitpipe.tile_places import TilePlaces
from vitpipe.tiling import plan_shards, tile_digest, tile_shard
from vitpipe.workspace import Workspace

pytest.importorskip("highdicom", reason="needs the extra dicom-results")

PATIENTS, FRAMES = 12, 3


def make_config(root: Path, tiles: dict[str, object], **labels: object) -> PipelineConfig:
    return PipelineConfig.model_validate(
        {
            "name": "regions",
            "source": {"kind": "dicom", "path": str(root / "ct")},
            "labels": {"kind": "dicom_seg", "path": str(root / "seg"), **labels},
            "tiles": {"size": 8, "min_valid_fraction": 0.1, **tiles},
            "model": {"weights": {"source": "random"}, "patch_size": 8},
            "workspace": str(root / "work"),
        }
    )


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, NDArray[np.bool_]]:
    """Twelve patients with a segmentation each; gives their masks (patient, frame, row, col, class)."""
    root = tmp_path_factory.mktemp("cohort")
    rng = np.random.default_rng(0)
    masks = np.zeros((PATIENTS, FRAMES, ROWS, COLS, 2), bool)
    for patient in range(PATIENTS):
        headers = []
        for number in (2, 0, 1):
            noise = rng.integers(0, 4000, (ROWS, COLS)).astype(np.uint16)
            header = instance(
                number, PatientID=f"P{patient}", StudyInstanceUID=f"1.2.3.6.{patient}",
                SeriesInstanceUID=f"1.2.3.7.{patient}", SOPInstanceUID=f"1.2.3.8.{patient}.{number}",
                FrameOfReferenceUID=f"1.2.3.9.{patient}", PixelData=noise.tobytes(),
                PixelPaddingValue=4095,
            )  # fmt: skip
            for keyword in ("StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"):
                setattr(header, keyword, "")
            headers.append(header)
            save(header, root / "ct" / f"{patient}" / f"{number}")
        headers.sort(key=lambda header: header.ImagePositionPatient[2])
        for frame in range(FRAMES):
            for number in range(2):
                top, left = rng.integers(0, ROWS - 4), rng.integers(0, COLS - 4)
                height, width = rng.integers(3, ROWS), rng.integers(3, COLS)
                masks[patient, frame, top : top + height, left : left + width, number] = rng.random() < 0.7
        write_seg(root / "seg" / f"{patient}.dcm", headers, masks[patient].astype(np.uint8))
    return root, masks


def made(config: PipelineConfig) -> tuple[Workspace, LabelSet, pd.DataFrame]:
    """Ingest, tile and read the labels; gives the tiles with the label of each."""
    workspace = Workspace(Path(config.workspace))
    workspace.prepare()
    ingest(config, workspace)
    sources = read_catalog(workspace)
    for shard in plan_shards(config, workspace, sources):
        tile_shard(config, workspace, sources, shard)
    assert config.labels is not None
    labels = read_labels(config.labels, sources, load_pseudonymiser(workspace.root), planes_of)
    digest = tile_digest(config)
    tiles = TileStore(workspace.tiles(digest)).table()
    tiles["label"] = label_tiles(tiles, sources, labels, config.tiles, (workspace, digest))
    order = {source.source_id: int(Path(source.uri).name) for source in sources}
    return workspace, labels, tiles.assign(patient=tiles["source_id"].map(order))


def test_a_tile_has_the_class_that_covers_most_of_it(cohort: tuple[Path, NDArray[np.bool_]], tmp_path: Path) -> None:
    root, masks = cohort
    config = make_config(root, {"stride": 4}, min_share=0.4).model_copy(update={"workspace": str(tmp_path / "w")})
    _, labels, tiles = made(config)
    assert len(tiles) == PATIENTS * FRAMES * 2
    for row in tiles.to_dict("records"):
        part = masks[row["patient"], row["frame"], row["row"] : row["row"] + 8, row["col"] : row["col"] + 8]
        shares = part.mean(axis=(0, 1))
        best = int(shares.argmax())
        assert row["label"] == (f"part {best + 1}" if shares[best] >= 0.4 else "background")
    assert set(tiles["label"]) == set(labels.classes)


def test_tiles_at_another_spacing_ask_the_pixels_they_cover(
    cohort: tuple[Path, NDArray[np.bool_]], tmp_path: Path
) -> None:
    root, masks = cohort
    for tiles_recipe in ({"spacing_mm": 0.4, "size": 8}, {"cut": "whole", "size": 24}):
        config = make_config(root, tiles_recipe, multi_label=True, min_share=0.3)
        config = config.model_copy(update={"workspace": str(tmp_path / str(len(tiles_recipe)) / "w")})
        _, _, tiles = made(config)
        scale = (0.4 / 0.5, 0.4 / 0.8) if "spacing_mm" in tiles_recipe else None
        for row in tiles.to_dict("records"):
            shares = np.zeros(2)
            # Counted pixel by pixel, at the centres of the tile's pixels.
            points = []
            for down in range(8 if scale else 24):
                for right in range(8 if scale else 16):
                    if scale:
                        at = (row["row"] + down + 0.5) * scale[0], (row["col"] + right + 0.5) * scale[1]
                    else:
                        at = (down + 0.5) * ROWS / 24, (right + 0.5) * COLS / 16
                    if at[0] < ROWS and at[1] < COLS:
                        points.append((int(at[0]), int(at[1])))
            for point in points:
                shares += masks[row["patient"], row["frame"], point[0], point[1]]
            wanted = [f"part {number + 1}" for number in range(2) if shares[number] / len(points) >= 0.3]
            assert row["label"] == "|".join(wanted)


def test_padding_counts_for_nothing(cohort: tuple[Path, NDArray[np.bool_]], tmp_path: Path) -> None:
    """Half of the frame is padding: a mask over the other half covers the whole tile."""
    pixels = np.full((8, 8), 100, np.uint16)
    pixels[:, 4:] = 4000
    shape = {"Rows": 8, "Columns": 8, "PixelData": pixels.tobytes(), "PixelPaddingValue": 4000}
    headers = [instance(number, **shape) for number in range(2)]
    for header in headers:
        for keyword in ("StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"):
            setattr(header, keyword, "")
        header["PixelPaddingValue"].VR = "US"
        save(header, tmp_path / "ct" / "0" / str(header.InstanceNumber))
    mask = np.zeros((2, 8, 8), np.uint8)
    mask[0, :, :4] = 1
    write_seg(tmp_path / "seg" / "a.dcm", headers, mask[..., None])
    _, _, tiles = made(make_config(tmp_path, {}, min_share=0.95))
    assert tiles.sort_values("frame")["label"].tolist() == ["part 1", "background"]


def test_a_run_takes_the_labels_of_its_tiles_and_lists_what_does_not_fit(
    cohort: tuple[Path, NDArray[np.bool_]], tmp_path: Path
) -> None:
    root, _ = cohort
    (tmp_path / "seg").mkdir()
    for path in (root / "seg").iterdir():
        (tmp_path / "seg" / path.name).write_bytes(path.read_bytes())
    save(rtstruct({}), tmp_path / "seg" / "no_segmentation")
    stranger = instance(0, StudyInstanceUID="1.2.3.1", SeriesInstanceUID="1.2.3.2", SOPInstanceUID="1.2.3.3")
    for keyword in ("StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"):
        setattr(stranger, keyword, "")
    write_seg(tmp_path / "seg" / "stranger.dcm", [stranger], np.ones((1, ROWS, COLS, 1), np.uint8))
    config = make_config(root, {}, path=str(tmp_path / "seg"), background=None, min_share=0.2)
    config = config.model_copy(update={"workspace": str(tmp_path / "w")})
    workspace, _, tiles = made(config)
    findings = check_pipeline(config)
    assert set(findings.values["classes"]) == {"part 1", "part 2"}  # type: ignore[arg-type]
    assert any("1 LABEL_NO_SOURCE" in line for line in findings.lines)
    prepared = stages.prepare_run(config)
    table = read_manifest(workspace.run(prepared.run_id)).table
    labelled = tiles[tiles["label"].notna()].set_index("tile_id")["label"]
    assert table.set_index("tile_id")["label"].to_dict() == labelled.to_dict()
    assert 0 < len(labelled) < len(tiles)
    assert read_quarantine(workspace)["code"].tolist() == ["LABEL_NO_SOURCE"]
    assert any("1 LABEL_NO_SOURCE" in note for note in prepared.summary.notes)


def test_relabelling_asks_again_and_cuts_nothing(cohort: tuple[Path, NDArray[np.bool_]], tmp_path: Path) -> None:
    root, _ = cohort
    config = make_config(root, {}).model_copy(update={"workspace": str(tmp_path / "w")})
    workspace, labels, tiles = made(config)
    kept = sorted((workspace.root / "labels").iterdir())
    stored = {path: path.stat().st_mtime_ns for path in (workspace.root / "tiles").rglob("*")}
    _, again, same = made(config)
    assert again.digest == labels.digest
    assert same["label"].tolist() == tiles["label"].tolist()
    assert sorted((workspace.root / "labels").iterdir()) == kept
    other = make_config(root, {}, min_share=0.9).model_copy(update={"workspace": str(tmp_path / "w")})
    _, changed, fewer = made(other)
    assert changed.digest != labels.digest
    assert (fewer["label"] == "background").sum() > (tiles["label"] == "background").sum()
    assert {path: path.stat().st_mtime_ns for path in (workspace.root / "tiles").rglob("*")} == stored


def test_the_largest_share_wins_and_a_tie_goes_by_name() -> None:
    rule = TileRule(0.3, "none", multi_label=False)
    assert rule.label({"b": 0.4, "a": 0.4, "c": 0.2}) == "a"
    assert rule.label({"b": 0.2}) == "none"
    assert TileRule(0.3, None, multi_label=False).label({"b": 0.2}) is None
    several = TileRule(0.3, "none", multi_label=True)
    assert several.label({"b": 0.4, "a": 0.3, "c": 0.2}) == "a|b"
    assert several.label({}) == ""
    assert TileRule(0.3, None, multi_label=True).label({}) is None


def test_a_window_past_the_edge_is_cut_off() -> None:
    places = TilePlaces.of(Grid(1, 12, 8, spacing_mm=(0, 0.5, 0.8)), TileRecipe(size=8), uri="u")
    assert places.box(Window(0, 8, 0, 8, 8)) == (0, 1, 8, 0, 12, 8)
    _, rows, cols = places.voxels(Window(0, 8, 0, 8, 8)).of_source()
    assert rows.tolist() == [8, 9, 10, 11]
    assert cols.tolist() == list(range(8))


STACK = (0.8, 0.0, 0.0, 5.0, 0.0, 0.5, 0.0, -3.0, 0.0, 0.0, 2.5, 1.0, 0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize(
    "recipe",
    [
        {"size": 8, "orientation": "RAI"},
        {"size": 8, "orientation": "LSA"},
        {"size": 8, "depth": 4, "orientation": "SPL", "stride": 5},
        {"size": 8, "depth": 2, "slice_spacing_mm": 1.5, "spacing_mm": 0.7},
        {"size": 24, "depth": 8, "cut": "whole", "orientation": "RSP"},
        {"size": 20, "cut": "whole", "slice_spacing_mm": 4.0},
    ],
)
def test_turned_and_resampled_tiles_know_where_they_lie(recipe: dict[str, object]) -> None:
    """The places of a tile's pixels in millimetres, by the affine of its own grid, are those of the pixels it asks."""
    tiles = TileRecipe.model_validate(recipe)
    grid = Grid(7, 12, 10, (2.5, 0.5, 0.8), STACK)
    prepared = prepared_grid(grid, tiles, uri="u")
    assert prepared.affine is not None
    places = TilePlaces.of(grid, tiles, uri="u")
    to_mm, of_source = np.array(prepared.affine).reshape(4, 4), np.array(STACK).reshape(4, 4)
    sizes = np.abs(np.diag(of_source)[:3])
    for window in windows(prepared, tiles):
        voxels = places.voxels(window)
        depth, height, width = (len(along) for along in voxels.tile)
        shown = (window.depth, window.height, window.width)
        # For a whole frame the tile's own pixels are larger or smaller than those of its grid.
        scale = [length / count for length, count in zip(shown, (depth, height, width), strict=True)]
        scale = scale if tiles.cut == "whole" else [1.0] * 3
        at = np.stack(np.meshgrid(*(np.arange(count) for count in (depth, height, width)), indexing="ij"), -1)
        index = (at + 0.5) * scale - 0.5 + (window.frame, window.row, window.col)
        mm = index[..., ::-1] @ to_mm[:3, :3].T + to_mm[:3, 3]
        frames, rows, cols = voxels.of_source()
        asked = np.stack(np.meshgrid(frames, rows, cols, indexing="ij"), -1).transpose((*voxels.axes, 3))
        found = asked[..., ::-1] @ of_source[:3, :3].T + of_source[:3, 3]
        assert found.shape == mm.shape
        assert (np.abs(found - mm) <= sizes / 2 + 1e-6).all()
        box = places.box(window)
        assert (box.frame, box.frame + box.frames - 1) == (frames.min(), frames.max())
        assert box.top <= rows.min() + 0.5 <= rows.max() + 0.5 <= box.bottom
        assert box.left <= cols.min() + 0.5 <= cols.max() + 0.5 <= box.right


def test_a_volume_asks_all_its_frames(cohort: tuple[Path, NDArray[np.bool_]], tmp_path: Path) -> None:
    root, masks = cohort
    config = make_config(root, {"depth": 2, "stride_depth": 1}, min_share=0.3)
    _, _, tiles = made(config.model_copy(update={"workspace": str(tmp_path / "w")}))
    assert len(tiles) == PATIENTS * 2 * 2
    for row in tiles.to_dict("records"):
        frames = slice(row["frame"], row["frame"] + 2)
        shares = masks[row["patient"], frames, row["row"] : row["row"] + 8].mean(axis=(0, 1, 2))
        best = int(shares.argmax())
        assert row["label"] == (f"part {best + 1}" if shares[best] >= 0.3 else "background")


@pytest.mark.parametrize("tiles", [{"depth": 2}, {"orientation": "PIR"}, {"slice_spacing_mm": 1.25}])
def test_a_run_of_volumes_turned_and_resampled_tiles_takes_their_labels(
    cohort: tuple[Path, NDArray[np.bool_]], tmp_path: Path, tiles: dict[str, object]
) -> None:
    """The frames of such tiles are not those that labels are drawn on, which is no error of the labels."""
    config = make_config(cohort[0], tiles, min_share=0.3).model_copy(update={"workspace": str(tmp_path / "w")})
    workspace, _, expected = made(config)
    prepared = stages.prepare_run(config)
    table = read_manifest(workspace.run(prepared.run_id)).table
    labels = expected.set_index("tile_id")["label"].to_dict()
    assert table.set_index("tile_id")["label"].to_dict() == labels
    assert len(set(labels.values())) > 1


def test_kept_labels_are_used_only_where_the_labels_are_still_drawn(tmp_path: Path) -> None:
    """The same objects go to another source once the catalog holds the series that they name."""
    _, sources = make_series(tmp_path / "ct")
    path = save(rtstruct({"A": [np.array([[0, 0, 0], [7, 0, 0], [7, 7, 0], [0, 7, 0]])]}), tmp_path / "rs" / "a")
    labels = read_rtstruct(path, sources)
    assert labels.regions is not None
    gone = sources[0].source_id
    tiles = pd.DataFrame({"tile_id": [f"{gone}:0:0:0"], "source_id": [gone], "shard_id": ["s"], "shard_row": [0]})
    workspace = Workspace(tmp_path / "work")
    workspace.prepare()
    kept = pd.DataFrame({"tile_id": tiles["tile_id"], "label": ["A"]})
    write_parquet(workspace.labels(digest([labels.digest, "tiles"])), kept)
    recipe, store = TileRecipe(size=8), (workspace, "tiles")
    assert label_tiles(tiles, sources, labels, recipe, store).tolist() == ["A"]
    elsewhere = dataclasses.replace(labels.regions, sources=frozenset({"another"}))
    moved = dataclasses.replace(labels, regions=elsewhere)
    assert label_tiles(tiles, sources, moved, recipe, store).tolist() == [None]
