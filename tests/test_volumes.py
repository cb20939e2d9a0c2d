"""Tiles along a stack hold the values of the place that they state, at every pixel; what is no stack is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import vitpipe.tiling as room
from tests.tiling_cases import MemoryDomain, config_of, source_of
from tests.volume_cases import affine_of, centres_of_box, field, field_raster
from vitpipe.config import PipelineConfig, TileRecipe
from vitpipe.cutting import cut, planned_windows
from vitpipe.errors import UnreadableSource
from vitpipe.records import Grid, Window, box_mm
from vitpipe.resample import tile_channels
from vitpipe.store import TABLE_FILE, TileStore, committed_shards
from vitpipe.tiling import tile, tile_digest
from vitpipe.workspace import Workspace

SLANTED = affine_of(angles=(0.3, -0.2), tilt_mm=1.1)


def blocks_of(raster: object, recipe: TileRecipe) -> list[tuple[np.ndarray, np.ndarray, Window, list[float] | None]]:
    """Cut, and give a row a tile: pixels, mask, window, box."""
    return [
        row
        for block in cut(raster, recipe, source_id="a")  # type: ignore[arg-type]
        for row in zip(block.tiles, block.valid, block.windows, block.boxes_mm, strict=True)
    ]


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


@pytest.mark.parametrize("changes", [{"neighbours": 1}])
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


# -------------------------------------------------------------------------------------------------------------- tables


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
