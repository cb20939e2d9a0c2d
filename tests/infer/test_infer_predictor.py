"""A predictor takes files and arrays, gives the same numbers for both, and refuses what does not fit in a sentence."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import vitpipe.infer.batches as batches_room
import vitpipe.infer.predictor as predictor_room
from tests.infer.infer_cases import BANDS, CLASSES, MEAN, SIZE, make_package, write_scene
from vitpipe.config import TileRecipe
from vitpipe.cutting import Block
from vitpipe.errors import ConfigError, ContractError, DataError, UnreadableSource
from vitpipe.infer.contract import RangeWatch
from vitpipe.infer.output import write_predictions
from vitpipe.infer.predictor import Predictor


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_package(tmp_path_factory.mktemp("package") / "model")


@pytest.fixture(scope="module")
def predictor(package: Path) -> Predictor:
    return Predictor.load(package)


def _tiles(count: int = 5, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(MEAN, 300, (count, len(BANDS), SIZE, SIZE)).astype(np.float32)


def test_a_file_gives_the_numbers_of_its_tiles(predictor: Predictor, tmp_path: Path) -> None:
    pixels = write_scene(tmp_path / "scene.tif")
    result = predictor.predict_path(tmp_path / "scene.tif")
    assert list(result.tiles.columns) == [
        "source_id", "frame", "row", "col", "height", "width", "depth", "box_mm", "valid_fraction",
        "predicted", "p_forest", "p_water", "conformal_set", "abstain",
    ]  # fmt: skip
    # 70 x 100 px: rows 0, 32 (the rest of 6 px is padded: too little is valid), columns 0, 32, 64; 96 is too narrow.
    assert result.tiles[["row", "col"]].to_numpy().tolist() == [[r, c] for r in (0, 32) for c in (0, 32, 64)]
    cut = np.stack([pixels[:, r : r + SIZE, c : c + SIZE] for r in (0, 32) for c in (0, 32, 64)])
    from_array = predictor.predict_tiles(cut).tiles
    pd.testing.assert_frame_equal(result.tiles[from_array.columns], from_array, check_exact=True)
    assert np.allclose(from_array[["p_forest", "p_water"]].sum(axis=1), 1)
    assert from_array["p_forest"].nunique() == 6


def test_a_source_is_the_mean_of_its_tiles(predictor: Predictor, tmp_path: Path) -> None:
    write_scene(tmp_path / "a.tif", seed=1)
    write_scene(tmp_path / "b.tif", seed=2)
    result = predictor.predict_path(tmp_path)
    assert result.sources["tiles"].tolist() == [6, 6]
    for row in result.sources.itertuples():
        mean = result.tiles.loc[result.tiles["source_id"] == row.source_id, "p_water"].mean()
        assert row.p_water == pytest.approx(mean, abs=1e-15)
        assert row.predicted == CLASSES[int(mean > 0.5)]


def test_paths_are_given_on_request_alone(predictor: Predictor, tmp_path: Path) -> None:
    write_scene(tmp_path / "deep" / "Doe_John.tif")
    assert "Doe" not in predictor.predict_path(tmp_path).tiles.to_csv()
    assert set(predictor.predict_path(tmp_path, with_paths=True).tiles["path"]) == {"deep/Doe_John.tif"}


def test_a_tile_does_not_depend_on_its_neighbours(predictor: Predictor) -> None:
    tiles = _tiles(11)
    whole = predictor.predict_tiles(tiles).tiles
    for number in (0, 10):
        one = predictor.predict_tiles(tiles[number]).tiles
        pd.testing.assert_frame_equal(one, whole.iloc[[number]].reset_index(drop=True), check_exact=True)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((2, 2, SIZE, SIZE), np.float32), ["2 channels", "3: B03, B04, B08"]),
        (np.zeros((2, 3, SIZE, 16), np.float32), ["32 x 16 px", "32 x 32 px", "predict_path"]),
        (np.zeros((SIZE, SIZE), np.float32), ["(32, 32)", "(N, 3, 32, 32)"]),
        (np.zeros((1, 3, SIZE, SIZE), "U3"), ["<U3", "numbers in `dn`"]),
        (np.full((1, 3, SIZE, SIZE), np.nan), ["NaN", "`valid` mask"]),
    ],
)
def test_an_array_that_does_not_fit_is_refused(predictor: Predictor, array: np.ndarray, words: list[str]) -> None:
    with pytest.raises(ContractError) as caught:
        predictor.predict_tiles(array)
    for word in words:
        assert word in str(caught.value)


def test_invalid_pixels_count_for_nothing(predictor: Predictor) -> None:
    tiles, valid = _tiles(2), np.ones((2, SIZE, SIZE), bool)
    valid[:, :10] = False
    tiles[:, :, :10] = np.nan
    other = tiles.copy()
    other[:, :, :10] = 5
    first, second = (predictor.predict_tiles(values, valid).tiles for values in (tiles, other))
    pd.testing.assert_frame_equal(first, second, check_exact=True)
    assert first["p_water"].notna().all()


def test_values_far_from_training_are_said(predictor: Predictor) -> None:
    assert predictor.predict_tiles(_tiles()).notes == ()
    notes = predictor.predict_tiles(_tiles() / 10_000).notes
    assert len(notes) == len(BANDS)
    assert "B03" in notes[0]
    assert "`dn`" in notes[0]


def test_a_channel_of_one_value_is_not_said_to_be_far_where_it_has_that_value(predictor: Predictor) -> None:
    tiles = _tiles()
    known = predictor.contract.preprocessing
    # What training writes for a channel of nothing but 7: no deviation, and 1 in its place.
    one = dataclasses.replace(known, mean=(7.0, *known.mean[1:]), std=(1.0, *known.std[1:]))
    watch = RangeWatch(dataclasses.replace(predictor.contract, preprocessing=one))
    tiles[:, 0] = 7
    valid = np.ones((len(tiles), *tiles.shape[2:]), bool)
    watch.add(tiles.astype(np.float32), valid)
    assert watch.notes() == []
    other = RangeWatch(dataclasses.replace(predictor.contract, preprocessing=one))
    tiles[:, 0] = 9
    other.add(tiles.astype(np.float32), valid)
    assert "in training they had 7 and 1" in other.notes()[0]


def test_other_bands_are_refused_with_both_lists(predictor: Predictor, tmp_path: Path) -> None:
    package = make_package(tmp_path / "model", source={"kind": "geotiff", "units": "dn"})
    write_scene(tmp_path / "scene.tif", bands=("B02", "B03"))
    with pytest.raises(ContractError, match=r"2 channels \(B02, B03\), the model takes 3 \(B03, B04, B08\)"):
        Predictor.load(package).predict_path(tmp_path / "scene.tif")


def test_other_units_are_refused(tmp_path: Path) -> None:
    package = make_package(tmp_path / "model", units="reflectance", source={"kind": "geotiff", "units": "dn"})
    write_scene(tmp_path / "scene.tif")
    with pytest.raises(ContractError, match="`dn`, the model takes `reflectance`"):
        Predictor.load(package).predict_path(tmp_path / "scene.tif")


def test_what_cannot_be_read_is_listed_and_the_rest_goes_on(predictor: Predictor, tmp_path: Path) -> None:
    write_scene(tmp_path / "good.tif")
    write_scene(tmp_path / "same.tif")
    (tmp_path / "broken.tif").write_bytes((tmp_path / "good.tif").read_bytes()[:300])
    (tmp_path / "empty.tif").write_bytes(b"")
    result = predictor.predict_path(tmp_path)
    assert len(result.sources) == 1
    assert sorted(Path(item.uri).name for item in result.rejected) == ["broken.tif", "empty.tif", "same.tif"]
    assert "DUPLICATE" in {item.code for item in result.rejected}


def test_nothing_readable_is_an_error_with_codes(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "empty.tif").write_bytes(b"")
    with pytest.raises(DataError, match="nothing in"):
        predictor.predict_path(tmp_path)
    with pytest.raises(ConfigError, match="no file or folder"):
        predictor.predict_path(tmp_path / "missing")
    with pytest.raises(ConfigError, match="s3:// cannot be read"):
        predictor.predict_path("s3://bucket/scene.tif")


def test_a_package_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    package = make_package(tmp_path / "model")
    with pytest.raises(ContractError, match="SHA-256"):
        Predictor.load(package, sha256="0" * 64)
    (package / "calibration.json").unlink()
    with pytest.raises(ContractError, match=r"calibration\.json not found"):
        Predictor.load(package)


def test_several_labels(tmp_path: Path) -> None:
    predictor = Predictor.load(make_package(tmp_path / "model", multi_label=True, head_scale=8.0))
    table = predictor.predict_tiles(_tiles(40)).tiles
    expected = [
        "|".join(name for name, p in zip(CLASSES, row, strict=True) if p >= 0.5)
        for row in table[["p_forest", "p_water"]].to_numpy()
    ]
    assert table["predicted"].tolist() == expected
    assert not table["abstain"].any()


def test_predictions_are_written(predictor: Predictor, tmp_path: Path) -> None:
    write_scene(tmp_path / "in" / "Doe_John.tif")
    (tmp_path / "in" / "Doe_Jane.tif").write_bytes(b"")
    result = predictor.predict_path(tmp_path / "in")
    summary = write_predictions(result, tmp_path / "out")
    stored = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    assert stored["p_water"].tolist() == result.tiles["p_water"].tolist()
    told = json.loads(summary.read_text())
    assert told["tiles"] == 6
    assert sum(told["predicted"].values()) == 1
    assert sum(told["rejected"].values()) == 1
    assert "Doe" not in summary.read_text()


def test_sources_share_the_batches_of_the_model(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty sources of one tile are three batches of eight, not twenty; and every bit is that of the tile alone."""
    for number in range(20):
        write_scene(tmp_path / "in" / f"{number:02d}.tif", height=SIZE, width=SIZE, seed=number)
    sizes: list[int] = []
    plain = Predictor.logits

    def counted(self: Predictor, tiles: np.ndarray, valid: np.ndarray) -> np.ndarray:
        sizes.append(len(tiles))
        return plain(self, tiles, valid)

    monkeypatch.setattr(Predictor, "logits", counted)
    together = predictor.predict_path(tmp_path / "in")
    batch = 8 * (os.cpu_count() or 1)
    assert sizes == [batch] * (20 // batch) + ([20 % batch] if 20 % batch else [])
    assert together.sources["tiles"].tolist() == [1] * 20
    alone = pd.concat(
        [predictor.predict_path(tmp_path / "in" / f"{number:02d}.tif").tiles for number in range(20)]
    ).set_index("source_id")
    pd.testing.assert_frame_equal(
        together.tiles.set_index("source_id").sort_index(), alone.sort_index(), check_exact=True
    )


def test_a_source_that_breaks_half_way_leaves_nothing_and_disturbs_no_other(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        write_scene(tmp_path / f"{number}.tif", seed=number)
    whole = predictor.predict_path(tmp_path)
    plain, order = predictor_room.cut, []

    def breaking(raster: object, recipe: TileRecipe, *, source_id: str) -> Iterator[Block]:
        order.append(source_id)
        for number, block in enumerate(plain(raster, recipe, source_id=source_id)):
            if len(order) == 2 and number == 1:
                raise UnreadableSource("UNREADABLE", "the second row of tiles is gone", source_id)
            yield block

    monkeypatch.setattr(predictor_room, "cut", breaking)
    result = predictor.predict_path(tmp_path)
    assert [item.code for item in result.rejected] == ["UNREADABLE"]
    expected = whole.tiles[whole.tiles["source_id"] != order[1]].reset_index(drop=True)
    pd.testing.assert_frame_equal(result.tiles, expected, check_exact=True)


def test_the_memory_of_waiting_tiles_is_bounded_by_the_batches() -> None:
    seen: list[int] = []

    def logits(tiles: np.ndarray, valid: np.ndarray) -> np.ndarray:
        seen.append(len(tiles))
        return tiles[:, 0, 0, :2] + valid[:, 0, :2]

    batches = batches_room.SharedBatches(logits, 4)
    blocks = [np.full((count, 1, 3, 3), count, np.int16) for count in (1, 11, 2, 5)]
    for block in blocks:
        batches.add(block, np.ones((len(block), 3, 3), bool))
        waiting = [tiles for tiles, _ in batches._waiting]
        assert sum(map(len, waiting)) < 4
        assert not any(np.shares_memory(tiles, block) for tiles in waiting)
    result = batches.finish()
    assert seen == [4, 4, 4, 4, 3]
    assert result[:, 0].tolist() == [len(block) + 1 for block in blocks for _ in block]
