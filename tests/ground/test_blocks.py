"""The range of labels, the size of blocks, and how much a random split flatters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.ground.ground_cases import config_of, parted, scene, tiles_of
from vitpipe.config import GeotiffSource, PipelineConfig, TileRecipe
from vitpipe.errors import ConfigError, ContractError
from vitpipe.ground.blocks import Blocks, choose_blocks, count_blocks, read_block_m
from vitpipe.ground.variogram import FittedRange, Variogram, class_variogram, fit_range
from vitpipe.workspace import Workspace

Values = NDArray[np.float64]
LAGS = np.geomspace(600, 90_000, 20)


def spherical(lags: Values, range_m: float) -> Values:
    share = np.minimum(lags / range_m, 1)
    return 1.5 * share - 0.5 * share**3


@pytest.mark.parametrize("range_m", [3_000.0, 12_345.0, 60_000.0])
@pytest.mark.parametrize("model", ["spherical", "exponential"])
def test_a_model_is_found_again(range_m: float, model: str) -> None:
    shape = spherical(LAGS, range_m) if model == "spherical" else 1 - np.exp(-3 * LAGS / range_m)
    found = fit_range(Variogram(LAGS, 0.1 + 0.6 * shape, np.full(20, 1000.0), 100_000.0))
    assert found is not None
    assert found.model == model
    assert found.range_m == pytest.approx(range_m, rel=0.01)
    assert (found.nugget, found.sill) == (pytest.approx(0.1, abs=0.01), pytest.approx(0.7, abs=0.01))
    assert found.reached


def test_what_still_rises_at_the_end_is_said() -> None:
    found = fit_range(Variogram(LAGS, 0.1 + LAGS / 200_000, np.full(20, 1000.0), 90_000.0))
    assert found is not None
    assert not found.reached


def places(count: int, extent_m: float, seed: int = 0) -> Values:
    """Places around 10 degrees east, 47 north, on EPSG:6933: true distances there need its stretch of 1.27."""
    rng = np.random.default_rng(seed)
    across, down = rng.uniform(-extent_m / 2, extent_m / 2, (2, count))
    stretch = 1.2687
    return np.column_stack([964_862 + across * stretch, 5_355_000 + down / stretch])


def field(centres: Values, range_m: float, seed: int) -> Values:
    """A Gaussian field with a spherical variogram, in true metres."""
    true = (centres - centres.mean(axis=0)) / [1.2687, 1 / 1.2687]
    apart = np.linalg.norm(true[:, None] - true[None], axis=2)
    covariance = 1 - spherical(apart, range_m) + 1e-6 * np.eye(len(centres))
    return np.linalg.cholesky(covariance) @ np.random.default_rng(seed).standard_normal(len(centres))


@pytest.mark.parametrize("range_m", [8_000.0, 20_000.0])
def test_the_range_of_a_field_is_found_in_metres_of_the_ground(range_m: float) -> None:
    centres = places(900, 150_000.0)
    found = []
    for seed in range(6):
        variogram = class_variogram(centres, field(centres, range_m, seed)[:, None], 0)
        assert variogram is not None
        fitted = fit_range(variogram)
        assert fitted is not None
        # A spherical field may be fitted by an exponential model, whose range is where 95 % of the sill are.
        found.append(fitted.range_m)
    assert np.median(found) == pytest.approx(range_m, rel=0.35)


def test_the_variogram_of_classes_is_the_share_of_pairs_that_differ() -> None:
    centres = places(300, 20_000.0)
    labels = np.random.default_rng(1).integers(0, 3, 300)
    variogram = class_variogram(centres, np.eye(3)[labels], 0)
    assert variogram is not None
    # Counted over all pairs, whatever the distance: two of three differ.
    assert np.average(variogram.gamma, weights=variogram.pairs) == pytest.approx(2 / 3, abs=0.02)
    assert fit_range(variogram) is None
    again = class_variogram(centres, np.eye(3)[labels], 0)
    assert again is not None
    assert (again.gamma == variogram.gamma).all()


def test_lags_are_metres_of_the_ground() -> None:
    """A line along the parallel of 60 degrees: EPSG:6933 shows its steps of a kilometre as 1.73 km."""
    centres = np.column_stack([1_000_000 + 1728.6 * np.arange(200), np.full(200, 6_364_000.0)])
    variogram = class_variogram(centres, np.eye(2)[np.arange(200) // 20 % 2], 0)
    assert variogram is not None
    assert variogram.lags_m[0] == pytest.approx(1000, rel=0.01)
    assert variogram.longest_m == pytest.approx(99_500, rel=0.01)


def test_without_pairs_there_is_no_curve() -> None:
    assert class_variogram(places(20, 20_000.0), np.eye(2)[np.arange(20) % 2], 0) is None
    assert class_variogram(places(200, 20_000.0), np.ones((200, 1)), 0) is None
    assert class_variogram(np.repeat(places(1, 1.0), 200, axis=0), np.eye(2)[np.arange(200) % 2], 0) is None


def patches(centres: Values, edge_m: float) -> Values:
    """Classes in squares of an edge: a random one of four each."""
    cells = np.floor(centres / edge_m).astype(int)
    number = (cells[:, 0] * 7919 + cells[:, 1] * 104_729) % 1_000_003
    return np.eye(4)[(number * 2_654_435_761 // 1024) % 4]


def test_auto_takes_the_range_rounded_up_and_more_data_do_not_change_it() -> None:
    sizes = set()
    for count in (1500, 2500, 4000):
        centres = places(count, 200_000.0, seed=count)
        blocks = choose_blocks("auto", centres, patches(centres, 8_000.0), None, 0)
        assert blocks.fitted is not None
        assert blocks.block_m >= blocks.fitted.range_m
        assert blocks.count == count_blocks(centres, blocks.block_m) >= 20
        assert not any("WARNING" in text for text in blocks.sentences())
        sizes.add(blocks.block_m)
    assert sizes == {10_000.0}


def test_auto_keeps_twenty_blocks_and_says_that_they_are_too_small() -> None:
    centres = places(2000, 60_000.0)
    blocks = choose_blocks("auto", centres, patches(centres, 30_000.0), None, 0)
    assert blocks.fitted is not None
    assert blocks.block_m < blocks.fitted.range_m
    assert blocks.count >= 20
    assert any("WARNING" in text and "too few blocks of that size" in text for text in blocks.sentences())


def test_without_a_range_auto_takes_the_default_and_says_so() -> None:
    centres = places(600, 100_000.0)
    blocks = choose_blocks("auto", centres, np.eye(2)[np.random.default_rng(0).integers(0, 2, 600)], None, 0)
    assert (blocks.block_m, blocks.fitted) == (10_000.0, None)
    assert "no range of the labels was found" in blocks.sentences()[1]


@pytest.mark.parametrize(("count", "blocks"), [(60, 20), (12, 12)])
def test_auto_divides_one_small_scene_where_no_range_is_found(count: int, blocks: int) -> None:
    centres = places(count, 7_000.0)
    found = choose_blocks("auto", centres, np.eye(2)[np.random.default_rng(0).integers(0, 2, count)], None, 0)
    assert found.fitted is None
    assert found.count == count_blocks(centres, found.block_m) >= blocks
    assert f"the largest that leaves {blocks} blocks with labels" in found.sentences()[0]


def test_a_given_size_is_kept_and_warned_of() -> None:
    fitted = FittedRange(12_000.0, "spherical", 0.1, 0.7, reached=True)
    small = Blocks(5_000.0, 5_000.0, 12, fitted).sentences()
    assert small[0] == "12 block(s) of ground of 5000 m"
    assert small[1] == "labels resemble each other up to 12,000 m (spherical variogram)"
    assert "WARNING: blocks of 5000 m are smaller than the range of the labels, 12,000 m" in small[2]
    assert "WARNING: 12 blocks of ground are few" in small[3]
    assert len(Blocks(20_000.0, 20_000.0, 20, fitted).sentences()) == 2


def config(root: Path, block_m: float | str) -> PipelineConfig:
    base = config_of(root)
    return base.model_copy(update={"source": GeotiffSource(path="/nowhere", block_m=block_m)})  # type: ignore[arg-type]


def test_the_size_is_chosen_once_for_a_workspace(tmp_path: Path) -> None:
    sources = [
        scene(f"s{number}", 32633, (300_000.0 + 6400.0 * (number % 6), 5_000_000.0 + 6400.0 * (number // 6)))
        for number in range(36)
    ]
    recipe = TileRecipe(size=64)

    def labelled(chosen: list[object], edge_m: float, shift: int) -> object:
        table = tiles_of(sources[: len(chosen)], recipe)
        from tests.ground.ground_cases import footprints_of

        centres = footprints_of(table, sources, recipe).centres
        return table.assign(label=[f"c{value}" for value in (patches(centres, edge_m).argmax(axis=1) + shift) % 4])

    workspace = Workspace(tmp_path)
    first = parted(config(tmp_path, "auto"), workspace, labelled(list(sources[:24]), 1500.0, 0), sources)  # type: ignore[arg-type]
    chosen = read_block_m(workspace.ground_block)
    assert chosen == 2000.0
    written = workspace.ground_block.read_bytes()
    groups = first.table["group_id"]
    cells = np.floor(first.table[["x", "y"]].to_numpy() / chosen).astype(int)
    assert groups.tolist() == [f"ground-{x}-{y}" for x, y in cells]
    # Labels of another range, and more ground: the size stays, and no group moves.
    again = parted(config(tmp_path, "auto"), workspace, labelled(list(sources), 6000.0, 1), sources)  # type: ignore[arg-type]
    assert workspace.ground_block.read_bytes() == written
    before = first.table.set_index("tile_id")["split"]
    after = again.table.set_index("tile_id")["split"]
    both = before.index.intersection(after.index)
    assert len(both) > 0.9 * len(before)
    assert after.loc[both].equals(before.loc[both])
    assert any("the size that this workspace has" in note for note in again.notes)
    with pytest.raises(ConfigError, match=r"block_m: 5000`, but the splits of this workspace were made with .* 2000 m"):
        parted(config(tmp_path, 5000.0), workspace, labelled(list(sources), 6000.0, 1), sources)  # type: ignore[arg-type]
    workspace.ground_block.write_text("{}")
    with pytest.raises(ContractError, match="does not say the size of blocks"):
        parted(config(tmp_path, "auto"), workspace, labelled(list(sources), 6000.0, 1), sources)  # type: ignore[arg-type]
    with pytest.raises(ContractError, match="does not say the size of blocks"):
        read_block_m(workspace.ground_block)


def test_a_kill_between_size_and_splits_leaves_nothing_that_binds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = scene("a", 32633, (500_000.0, 5_000_000.0), size=1280)
    table = tiles_of([source], TileRecipe(size=64))
    table["label"] = [f"c{number % 2}" for number in range(len(table))]
    workspace = Workspace(tmp_path)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("vitpipe.splits.table.write_parquet", killed)
        with pytest.raises(KeyboardInterrupt):
            parted(config(tmp_path, 3000.0), workspace, table, [source])
    assert read_block_m(workspace.ground_block) == 3000.0
    assert not workspace.splits.exists()
    # Whoever comes next may choose again, and what was chosen then stands beside the splits.
    parted(config(tmp_path, 2000.0), workspace, table, [source])
    assert (read_block_m(workspace.ground_block), workspace.splits.is_file()) == (2000.0, True)
    with pytest.raises(ConfigError, match="were made with blocks of 2000 m"):
        parted(config(tmp_path, 3000.0), workspace, table, [source])
