"""Tiles along a stack hold the values of the place that they state, at every pixel; what is no stack is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

import vitpipe.tiling as room
from tests.tiling_cases import MemoryDomain, config_of, source_of
from tests.volume_cases import affine_of, blocks_of, centres_of_box, field, field_raster
from vitpipe.config import PipelineConfig, TileRecipe
from vitpipe.cutting import cut, planned_windows, windows
from vitpipe.errors import TransientError, UnreadableSource
from vitpipe.records import Grid, Window, box_mm
from vitpipe.resample import tile_channels
from vitpipe.store import TABLE_FILE, TileStore, committed_shards
from vitpipe.tiling import tile, tile_digest
from vitpipe.workspace import Workspace

SLANTED = affine_of(angles=(0.3, -0.2), tilt_mm=1.1)


# ------------------------------------------------------------------------------------------------------------ digests


@pytest.mark.parametrize(
    ("source", "tiles", "digests"),
    [
        ({"kind": "images"}, {}, ("ad9f4cf099ff1818", "a2197a1eb2178181", "70d8929f495e8110")),
        ({"kind": "dicom"}, {"cut": "whole", "size": 32}, ("16fbca72143cb8c5", "167f9ab2c3524a7f", "00332837d3906a9b")),
        (
            {"kind": "dicom"},
            {"size": 64, "stride": 32, "spacing_mm": 1.0, "edge": "shift"},
            ("c4bb6f0fbef61706", "f5c0ce95f8337e41", "ea434dbaba0c980b"),
        ),
        (
            {"kind": "geotiff"},
            {"gsd_m": 10, "size": 128},
            ("b9d0a51a30825f85", "9953bc6920cb4707", "24fa0d12828272e0"),
        ),
    ],
)
def test_tiles_and_runs_from_before_there_were_volumes_keep_their_digests(
    source: dict, tiles: dict, digests: tuple[str, str, str]
) -> None:
    """The digests were taken from the version before; stored tiles lie under them."""
    config = PipelineConfig.model_validate(
        {
            "name": "case",
            "source": source | {"path": "a"},
            "tiles": tiles,
            "labels": {"kind": "folder"},
            "model": {"name": "vit_tiny_patch16_224", "weights": {"source": "random"}, "patch_size": 8},
        }
    )
    assert config.tiles.digest() == digests[1]
    # Options that a source gets later must not move these either, so all three stand here.
    assert tile_digest(config) == digests[0]
    assert config.content_digest() == digests[2]


def test_a_key_that_is_set_changes_the_digest_and_reads_back() -> None:
    plain, near = TileRecipe(), TileRecipe(neighbours=1)
    assert plain.digest() != near.digest()
    assert "neighbours" not in plain.model_dump()
    assert TileRecipe.model_validate(near.model_dump(mode="json")) == near
    assert TileRecipe.model_validate(plain.model_dump(mode="json")) == plain


# --------------------------------------------------------------------------------------------------------------- boxes


@pytest.mark.parametrize("edge", ["pad", "shift"])
@pytest.mark.parametrize("affine", [affine_of(), SLANTED], ids=["axial", "slanted"])
def test_a_box_is_where_its_pixels_are(affine: np.ndarray, edge: str) -> None:
    recipe = TileRecipe.model_validate({"size": 16, "edge": edge, "min_valid_fraction": 0})
    rows = blocks_of(field_raster(affine=affine), recipe)
    assert len(rows) == 7 * 2 * 3
    for pixels, valid, _, box in rows:
        assert box is not None
        expected = field(centres_of_box(box, (1, 16, 16)))[0]
        np.testing.assert_allclose(pixels[0][valid], expected[valid], atol=1e-4)


def test_a_box_holds_the_corners_of_its_pixels() -> None:
    grid = Grid(3, 10, 10, (4.0, 2.0, 1.0), (1, 0, 0, 100, 0, 2, 0, 200, 0, 0, 4, 300, 0, 0, 0, 1))
    box = box_mm(grid, Window(2, 4, 6, 3, 5))
    assert box == [105.5, 207.0, 306.0, 0, 6, 0, 5, 0, 0, 0, 0, 4]
    assert box_mm(Grid(1, 10, 10), Window(0, 0, 0, 10, 10)) is None


def test_a_resampled_and_a_whole_tile_state_their_box_too() -> None:
    raster, recipe = field_raster(affine=SLANTED), TileRecipe(size=16, spacing_mm=0.4, min_valid_fraction=0)
    rows = blocks_of(raster, recipe)
    assert {(window.row, window.col) for _, _, window, _ in rows} == {
        (r, c) for r in (0, 16, 32) for c in range(0, 50, 16)
    }
    for pixels, valid, window, box in rows:
        assert box is not None
        expected = field(centres_of_box(box, (1, 16, 16)))[0]
        # At the border of the frame the filter sees one side alone.
        row, col = window.row + np.arange(16)[:, None], window.col + np.arange(16)[None]
        sure = valid & (row >= 2) & (row < 46) & (col >= 2) & (col < 48)
        np.testing.assert_allclose(pixels[0][sure], expected[sure], atol=1e-4)
    (_, _, window, box), *_ = blocks_of(field_raster((2, 24, 40)), TileRecipe(size=16, cut="whole"))
    assert window == Window(0, 0, 0, 24, 40)
    assert box is not None
    np.testing.assert_allclose(box[3:], [0, 24 * 0.8, 0, 40 * 0.5, 0, 0, 0, 0, 5.0])


# --------------------------------------------------------------------------------------------------------------- 2.5-D


@pytest.mark.parametrize("neighbours", [1, 2, 9])
@pytest.mark.parametrize("cutting", ["grid", "whole"])
def test_neighbours_are_the_slices_beside_the_centre(neighbours: int, cutting: str) -> None:
    raster = field_raster((7, 20, 24), SLANTED)
    recipe = TileRecipe.model_validate(
        {"size": 24 if cutting == "whole" else 16, "cut": cutting, "neighbours": neighbours, "min_valid_fraction": 0}
    )
    rows = blocks_of(raster, recipe)
    assert len(rows) == planned_windows(raster.grid, recipe, uri="a")
    for pixels, valid, window, box in rows:
        assert box is not None
        assert len(pixels) == 2 * neighbours + 1
        _, down, right, through = np.asarray(box).reshape(4, 3)
        shape = (1, 20, 24) if cutting == "whole" else (1, 16, 16)
        centres = centres_of_box(box, shape)[0]
        inside = slice(0, shape[1]), slice(0, shape[2])
        for channel, distance in enumerate(range(-neighbours, neighbours + 1)):
            # At both ends the edge slice is repeated.
            moved = min(max(window.frame + distance, 0), 6) - window.frame
            expected = field(centres + moved * through)
            np.testing.assert_allclose(
                pixels[channel][inside][valid[inside]], expected[valid[inside]], atol=1e-4, err_msg=str(distance)
            )
        assert not pixels[:, ~valid].any()
        assert np.linalg.norm(down) > 0 < np.linalg.norm(right)


def test_no_frame_is_decoded_twice_for_its_neighbours() -> None:
    raster = field_raster((30, 20, 24))
    list(cut(raster, TileRecipe(size=16, neighbours=2), source_id="a"))
    assert sorted(read.frame for read in raster.reads) == list(range(30))


def test_padding_of_a_neighbour_is_not_taken_for_a_value() -> None:
    valid = np.ones((5, 16, 16), bool)
    valid[1, :, :4] = False
    valid[2, 3, 9] = False
    raster = field_raster((5, 16, 16), valid=valid)
    rows = {
        window.frame: (pixels, mask) for pixels, mask, window, _ in blocks_of(raster, TileRecipe(size=16, neighbours=2))
    }
    pixels, mask = rows[2]
    # The mask is the centre's.
    np.testing.assert_array_equal(mask, valid[2])
    assert pixels[:, 3, 9].tolist() == [0] * 5
    truth = raster.pixels[:, 0]
    np.testing.assert_array_equal(pixels[1, :3, :4], truth[2, :3, :4])
    np.testing.assert_array_equal(pixels[0, :3, :4], truth[0, :3, :4])
    np.testing.assert_array_equal(pixels[1, :, 10:], truth[1, :, 10:])
    assert rows[1][1].sum() == 16 * 12


def test_channels_say_which_slice_they_are() -> None:
    assert tile_channels(TileRecipe(neighbours=1), ("a", "b")) == ("a-1", "b-1", "a", "b", "a+1", "b+1")
    assert tile_channels(TileRecipe(), ("a", "b")) == ("a", "b")


# ----------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "changes", [{"neighbours": 1}, {"depth": 3}, {"slice_spacing_mm": 2.0}, {"orientation": "LPS"}]
)
def test_a_source_that_is_no_regular_stack_is_rejected_by_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict
) -> None:
    rasters = {"a" * 16: field_raster((4, 16, 16)), "b" * 16: field_raster((4, 16, 16), regular=False)}
    sources = [source_of(name, raster) for name, raster in rasters.items()]
    monkeypatch.setattr(room, "domain_of", lambda _kind: MemoryDomain(rasters))
    workspace = Workspace(tmp_path / "workspace")
    config = config_of(tmp_path, **changes)
    summary = tile(config, workspace, sources)
    assert summary.rejected == {"NO_REGULAR_STACK": 1}
    table = room.read_tile_rejections(workspace, tile_digest(config))
    assert table["source_id"].tolist() == ["b" * 16]
    assert f"`tiles.{next(iter(changes))}`" in table["reason"][0]
    # 2-D tiles of the same source are fine; they have no box.
    assert tile(config_of(tmp_path), workspace, sources).rejected == {}
    flat = TileStore(workspace.tiles(tile_digest(config_of(tmp_path)))).table()
    assert flat.groupby("source_id")["box_mm"].count().to_dict() == {"a" * 16: 4, "b" * 16: 0}


def test_one_frame_is_no_stack() -> None:
    with pytest.raises(UnreadableSource, match="NO_REGULAR_STACK"):
        list(cut(field_raster((1, 16, 16)), TileRecipe(size=16, neighbours=1), source_id="a"))


# ----------------------------------------------------------------------------------------------------------------- 3-D


@pytest.mark.parametrize("edge", ["pad", "shift", "drop"])
@pytest.mark.parametrize(("depth", "stride"), [(3, None), (4, 2), (7, None), (3, 1)])
def test_volumes_hold_the_values_of_their_box(edge: str, depth: int, stride: int | None) -> None:
    raster = field_raster((7, 20, 40), SLANTED)
    recipe = TileRecipe.model_validate(
        {"size": 16, "stride": 12, "edge": edge, "depth": depth, "stride_depth": stride, "min_valid_fraction": 0}
    )
    rows = blocks_of(raster, recipe)
    assert [window for *_, window, _ in rows] == windows(raster.grid, recipe)
    assert len(rows) == planned_windows(raster.grid, recipe, uri="a")
    covered = np.zeros((7, 20, 40), bool)
    for pixels, valid, window, box in rows:
        assert box is not None
        assert pixels.shape == (1, depth, 16, 16)
        assert window.depth == depth
        expected = field(centres_of_box(box, (depth, 16, 16)))
        np.testing.assert_allclose(pixels[0][valid], expected[valid], atol=1e-4)
        assert not pixels[0][~valid].any()
        place = np.s_[window.frame : window.frame + depth, window.row : window.row + 16, window.col : window.col + 16]
        covered[place] = True
        assert valid.sum() == covered[place].size
    assert covered.all() or edge == "drop"


def test_no_frame_is_decoded_twice_and_only_those_of_one_tile_are_kept() -> None:
    raster = field_raster((30, 40, 40))
    list(cut(raster, TileRecipe(size=16, depth=6, stride_depth=2), source_id="a"))
    assert sorted(read.frame for read in raster.reads) == list(range(30))


def test_a_volume_counts_the_pixels_that_it_can_have() -> None:
    valid = np.ones((4, 16, 16), bool)
    valid[:2] = False
    recipe = TileRecipe(size=16, depth=8, min_valid_fraction=0.5)
    ((_, mask, _, _),) = blocks_of(field_raster((4, 16, 16), valid=valid), recipe)
    assert mask.sum() == 2 * 256
    valid[2, 0, 0] = False
    assert blocks_of(field_raster((4, 16, 16), valid=valid), recipe) == []


def test_a_volume_smaller_than_a_tile_is_said_where_edges_are_dropped() -> None:
    recipe = TileRecipe(size=16, depth=8, edge="drop")
    with pytest.raises(UnreadableSource, match=r"TOO_SMALL.*4 x 16 x 16 pixels .* tile of 8 x 16 x 16"):
        list(cut(field_raster((4, 16, 16)), recipe, source_id="a"))


@pytest.mark.parametrize("depth", [3, 8, 16])
def test_a_whole_stack_is_one_tile(depth: int) -> None:
    raster = field_raster((8, 32, 64), SLANTED)
    recipe = TileRecipe(size=32, cut="whole", depth=depth)
    ((pixels, valid, window, box),) = blocks_of(raster, recipe)
    assert window == Window(0, 0, 0, 32, 64, 8)
    assert planned_windows(raster.grid, recipe, uri="a") == 1
    assert box is not None
    assert valid[:, :16].all()
    assert not valid[:, 16:].any()
    expected = field(centres_of_box(box, (depth, 16, 32)))
    # Past the middle of the first and last slice that slice is repeated; at the border the filter sees one side alone.
    inner = slice(1, -1) if depth == 16 else slice(None)
    np.testing.assert_allclose(pixels[0, inner, 1:15, 1:31], expected[inner, 1:15, 1:31], atol=1e-4)


# ------------------------------------------------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("tiles", "words"),
    [
        ({"depth": 4, "neighbours": 1}, "not both"),
        ({"stride_depth": 2}, "set depth too"),
        ({"depth": 4, "stride_depth": 5}, "slices between tiles would be lost"),
        ({"orientation": "LPX"}, "one of L or R, one of P or A, one of S or I"),
        ({"orientation": "LLS"}, "three directions"),
        ({"orientation": "LP"}, "three directions"),
    ],
)
def test_what_does_not_hold_together_is_said(tiles: dict, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        TileRecipe.model_validate(tiles)
    assert TileRecipe(orientation="ras").orientation == "RAS"


# -------------------------------------------------------------------------------------------------------------- tables


def test_volumes_are_stored_with_their_masks_and_what_was_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    valid = np.random.default_rng(1).random((9, 20, 37)) < 0.9
    rasters = {"a" * 16: field_raster((9, 20, 37), valid=valid), "b" * 16: field_raster((4, 40, 16))}
    monkeypatch.setattr(room, "domain_of", lambda _kind: MemoryDomain(rasters))
    workspace = Workspace(tmp_path / "workspace")
    config = config_of(tmp_path, size=13, depth=3, slice_spacing_mm=2.5, edge="shift")
    tile(config, workspace, [source_of(name, raster) for name, raster in rasters.items()])
    store = TileStore(workspace.tiles(tile_digest(config)))
    table = store.table()
    assert (store.depth, store.tile_size) == (3, 13)
    assert set(table["depth"]) == {3}
    assert set(table["preparation"]) == {"slices 5 to 2.5 mm"}
    tiles, masks = store.gather(table)
    assert tiles.shape == (len(table), 1, 3, 13, 13)
    expected = {
        f"{name}:{window.frame}:{window.row}:{window.col}": (pixels, mask)
        for name, raster in rasters.items()
        for pixels, mask, window, _ in blocks_of(raster, config.tiles)
    }
    assert set(expected) == set(table["tile_id"])
    for tile_id, pixels, mask in zip(table["tile_id"], tiles, masks, strict=True):
        np.testing.assert_array_equal(pixels, expected[tile_id][0])
        np.testing.assert_array_equal(mask, expected[tile_id][1])
    assert table["pixel_digest"].is_unique
    recipe = json.loads((store.folder / "recipe.json").read_text())["tiles"]
    assert (recipe["depth"], recipe["stride_depth"], recipe["slice_spacing_mm"]) == (3, 3, 2.5)


@pytest.mark.parametrize("changes", [{"neighbours": 2}, {"depth": 4, "stride_depth": 2, "orientation": "SRA"}])
def test_a_run_that_was_stopped_half_way_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict
) -> None:
    rasters = {name * 16: field_raster((9, 60, 50)) for name in "abc"}
    sources = [source_of(name, raster) for name, raster in rasters.items()]
    found = []
    for number, stops in enumerate((False, True)):
        workspace, config = Workspace(tmp_path / f"workspace{number}"), config_of(tmp_path, **changes)
        if stops:
            failing = MemoryDomain(rasters, failures={"b" * 16: TransientError("the store does not answer")})
            monkeypatch.setattr(room, "domain_of", lambda _kind, domain=failing: domain)
            with pytest.raises(TransientError):
                tile(config, workspace, sources)
        monkeypatch.setattr(room, "domain_of", lambda _kind: MemoryDomain(rasters))
        tile(config, workspace, sources)
        folder = workspace.tiles(tile_digest(config))
        assert not [path for path in folder.iterdir() if path.name.startswith(".partial")]
        found.append({path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()})
    assert found[0] == found[1]
    assert len(found[0]) > 3


@pytest.mark.parametrize("shape", [(3, 2, 4, 4), (3, 2, 5, 4, 4)])
def test_flat_tiles_have_no_digest(shape: tuple[int, ...]) -> None:
    tiles = np.random.default_rng(0).integers(0, 9, shape)
    valid = np.ones((3, *shape[2:]), bool)
    tiles[1] = 4
    tiles[2, 0], tiles[2, 1] = 4, 5
    valid[2, ..., 1] = False
    tiles[2, ..., 1] = 0
    digests = room.pixel_digests(tiles, valid)
    assert digests[0] != ""
    assert digests[1:] == ["", ""]


def test_boxes_and_channels_are_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raster = field_raster((4, 16, 16))
    monkeypatch.setattr(room, "domain_of", lambda _kind: MemoryDomain({"a" * 16: raster}))
    workspace, config = Workspace(tmp_path / "workspace"), config_of(tmp_path, neighbours=1)
    tile(config, workspace, [source_of("a" * 16, raster)])
    folder = workspace.tiles(tile_digest(config))
    (shard,) = committed_shards(folder)
    table = pd.read_parquet(shard / TABLE_FILE)
    for (_, _, _, box), stored in zip(blocks_of(raster, config.tiles), table["box_mm"], strict=True):
        assert stored.tolist() == box
    assert TileStore(folder).channels == ("intensity-1", "intensity", "intensity+1")
