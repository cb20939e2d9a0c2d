"""A model of pixels maps whole scenes: files in, a folder of COGs a scene out, bad scenes told and passed over."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from numpy.typing import NDArray

from tests.infer.infer_cases import CLASSES, MEAN, SIZE, write_scene
from tests.infer.pixel_cases import BrightModel, hold, pixel_predictor
from vitpipe import results
from vitpipe.config import MapRecipe
from vitpipe.errors import ConfigError, ContractError, DataError, UnreadableSource
from vitpipe.infer.contract import RangeWatch
from vitpipe.infer.maps import batches_of, pixel_model
from vitpipe.infer.reading import place_of
from vitpipe.ingest import read_catalog, read_quarantine
from vitpipe.records import Grid, Source, Task
from vitpipe.workspace import Workspace

URI = "models:/land@champion"


def run(folder: Path, out: Path, **options: object) -> results.StageSummary:
    """Predict a folder with all defaults but some."""
    return results.predict(URI, str(folder), str(out), None, maps=MapRecipe.model_validate(options))


def test_scenes_give_maps_and_a_bad_one_is_a_row_of_the_quarantine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = pixel_predictor(tmp_path / "model")
    hold(monkeypatch, predictor)
    pixels = write_scene(tmp_path / "in" / "a.tif", seed=1)
    write_scene(tmp_path / "in" / "small.tif", height=9, width=SIZE + 3, seed=2)
    # The header stays whole: only who decodes the pixels sees the damage.
    write_scene(tmp_path / "plain" / "damaged.tif", height=300, seed=3)
    file = tmp_path / "in" / "damaged.tif"
    rasterio.shutil.copy(tmp_path / "plain" / "damaged.tif", file, driver="GTiff", compress="deflate")
    whole = file.read_bytes()
    file.write_bytes(whole[:-60_000] + bytes(30_000) + whole[-30_000:])
    (tmp_path / "in" / "notes.txt").write_text("a note")
    summary = run(tmp_path / "in", tmp_path / "out")
    assert (summary.done, summary.skipped, dict(summary.rejected)) == (2, 0, {"UNDECODABLE": 1})
    assert any(note.startswith("left out, 1 x UNDECODABLE: ") for note in summary.notes)
    assert any(note.endswith("predictions.json has all reasons") for note in summary.notes)
    room = Workspace(tmp_path / "out" / "maps")
    quarantine = read_quarantine(room)
    assert quarantine.loc[~quarantine["junk"], "code"].tolist() == ["UNDECODABLE"]
    sources = {Path(source.uri).stem: source for source in read_catalog(room)}
    folder = room.root / sources["a"].source_id
    with rasterio.open(folder / "classes.tif") as classes, rasterio.open(folder / "probabilities.tif") as shares:
        assert classes.shape == pixels.shape[1:]
        assert (classes.read(1) == (pixels[2] > MEAN)).all()
        expected = 1 / (1 + np.exp(-2 * (pixels[2].astype(float) - MEAN) / 100 / 1.5))
        np.testing.assert_allclose(shares.read(2) * 0.004, expected, atol=0.0021)
        assert shares.descriptions == CLASSES
        tags = classes.tags()
    assert tags["VITPIPE_MODEL"] == "land/3"
    assert tags["VITPIPE_SOURCE_ID"] == sources["a"].source_id
    assert tags["VITPIPE_MLFLOW_RUN_ID"] == "run1"
    said = json.loads((tmp_path / "out" / "predictions.json").read_text(encoding="utf-8"))
    assert (said["maps"], said["rejected"]) == (2, {"NOT_GEOTIFF": 1, "UNDECODABLE": 1})
    assert [reason.split(":")[0] for reason in said["reasons"]] == ["UNDECODABLE", "NOT_GEOTIFF"]
    # Nothing of a run is left but what it is for.
    assert not list(room.root.glob("*refused*"))
    again = run(tmp_path / "in", tmp_path / "out")
    assert (again.done, again.skipped, dict(again.rejected)) == (0, 2, {"UNDECODABLE": 1})


def test_values_have_the_units_of_the_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hold(monkeypatch, pixel_predictor(tmp_path / "model", Task.REGRESSION))
    pixels = write_scene(tmp_path / "a.tif")
    run(tmp_path / "a.tif", tmp_path / "out")
    (file,) = (tmp_path / "out" / "maps").glob("*/values.tif")
    with rasterio.open(file) as values:
        np.testing.assert_allclose(values.read(1), (pixels[2] - MEAN) / 100, atol=1e-5)
        assert values.units == ("t/ha",)


def test_a_map_has_the_grid_of_the_models_resolution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = pixel_predictor(tmp_path / "model")
    tiles = predictor.contract.tiles.model_copy(update={"gsd_m": 20.0})
    object.__setattr__(predictor.contract, "tiles", tiles)
    hold(monkeypatch, predictor)
    write_scene(tmp_path / "a.tif")
    run(tmp_path / "a.tif", tmp_path / "out")
    (file,) = (tmp_path / "out" / "maps").glob("*/classes.tif")
    with rasterio.open(file) as classes:
        assert classes.shape == (35, 50)
        assert tuple(classes.transform)[:6] == (20, 0, 500_000, 0, -20, 5_000_000)


def test_augmentation_and_overlap_cost_what_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = pixel_predictor(tmp_path / "model")
    model: BrightModel = predictor._model  # type: ignore[assignment]
    hold(monkeypatch, predictor)
    write_scene(tmp_path / "a.tif")
    counts = []
    for options in ({"overlap": 0}, {"overlap": 0.5}, {"overlap": 0, "tta": "d4"}):
        model.tiles = 0
        run(tmp_path / "a.tif", tmp_path / "out", **options)
        counts.append(model.tiles)
    # 70 x 100 pixels in tiles of 32: rows from 0, 32, 38, columns from 0, 32, 64, 68.
    assert counts == [12, 4 * 6, 8 * 12]


def test_what_makes_no_map_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = pixel_predictor(tmp_path / "model")
    hold(monkeypatch, predictor)
    write_scene(tmp_path / "other" / "a.tif", bands=("B01",))
    with pytest.raises(DataError, match="MISSING_BAND"):
        run(tmp_path / "other", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no file"):
        run(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(ConfigError, match="one of pixels"):
        run(tmp_path / "other", tmp_path / "out", grid=True)
    with pytest.raises(ContractError, match="gives no table"):
        predictor.predict_path(tmp_path / "other")


def test_a_scene_without_a_valid_pixel_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hold(monkeypatch, pixel_predictor(tmp_path / "model"))
    # One pixel of the first must still be seen in the smallest overview.
    for name, height in (("a", 1100), ("empty", 1100), ("small", 40)):
        write_scene(tmp_path / "in" / f"{name}.tif", height=height, width=600)
        with rasterio.open(tmp_path / "in" / f"{name}.tif", "r+") as file:
            pixels = np.zeros((3, height, 600), np.uint16)
            pixels[:, 777 if name == "a" else 0, 333] = 1000 * (name == "a")
            # Content makes a source: the two empty ones are of other sizes.
            file.write(pixels)
            file.nodata = 0
    for _ in ("made", "found"):
        summary = run(tmp_path / "in", tmp_path / "out")
        assert summary.done + summary.skipped == 3
        assert dict(summary.rejected) == {"NO_VALID_PIXELS": 2}
    room = Workspace(tmp_path / "out" / "maps")
    table = read_quarantine(room)
    assert sorted(Path(uri).stem for uri in table["uri"]) == ["empty", "small"]
    # Their maps are there all the same.
    assert len(list(room.root.glob("*/classes.tif"))) == 3
    said = json.loads((tmp_path / "out" / "predictions.json").read_text(encoding="utf-8"))
    assert any("no valid pixel" in reason for reason in said["reasons"])


def test_maps_below_the_scenes_are_no_scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hold(monkeypatch, pixel_predictor(tmp_path / "model"))
    write_scene(tmp_path / "in" / "a.tif")
    out = tmp_path / "in" / "results"
    first = run(tmp_path / "in", out, vectors=True)
    again = run(tmp_path / "in", out, vectors=True)
    assert (first.done, again.done, again.skipped) == (1, 0, 1)
    # Junk is not told of: nobody meant it as a scene.
    assert not again.rejected
    table = read_quarantine(Workspace(out / "maps"))
    assert sorted(Path(uri).name for uri in table.loc[table["code"] == "OWN_MAP", "uri"]) == [
        "classes.tif", "entropy.tif", "probabilities.tif",
    ]  # fmt: skip
    assert table["junk"].all()


def test_a_scene_for_which_the_model_has_no_number_is_a_row_of_the_quarantine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(monkeypatch, pixel_predictor(tmp_path / "model"))
    write_scene(tmp_path / "in" / "a.tif", seed=1)
    odd = write_scene(tmp_path / "in" / "b.tif", height=90, seed=2)
    inner = BrightModel.logits

    def logits(self: BrightModel, tiles: NDArray, valid: NDArray) -> NDArray:
        found = inner(self, tiles, valid)
        found[:, 1][(tiles == odd[:, 40, 40, None, None]).all(axis=1)] = np.nan
        return found

    monkeypatch.setattr(BrightModel, "logits", logits)
    summary = run(tmp_path / "in", tmp_path / "out")
    assert (summary.done, dict(summary.rejected)) == (1, {"NO_NUMBER": 1})
    (reason,) = read_quarantine(Workspace(tmp_path / "out" / "maps"))["reason"]
    assert "NaN or an infinite value for 1 valid pixels" in reason


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_the_model_says_of_pixels_that_are_not_valid_may_be_anything(tmp_path: Path, value: float) -> None:
    predictor = pixel_predictor(tmp_path / "model", Task.REGRESSION)
    model = pixel_model(predictor, RangeWatch(predictor.contract), uri="a.tif")
    tiles = np.zeros((2, len(predictor.contract.channels), SIZE, SIZE), np.float32)
    valid = np.ones((2, SIZE, SIZE), bool)
    tiles[1, 2, 3, 4], valid[1, 3, 4] = value, False
    assert model(tiles, valid).shape == (2, 1, SIZE, SIZE)
    valid[1, 3, 4] = True
    with pytest.raises(UnreadableSource, match="1 valid pixels of 2 tiles") as caught:
        model(tiles, valid)
    assert (caught.value.code, caught.value.uri) == ("NO_NUMBER", "a.tif")


def test_large_scenes_are_tasks_of_their_own() -> None:
    def source(name: str, edge: int) -> Source:
        return Source(name, "g", "geotiff", name, (name,), Grid(1, edge, edge), ("B1",), "dn", "uint8")

    sources = [source("a", 64), source("b", 20_000), source("c", 64), source("d", 64), source("e", 9000)]
    assert batches_of(sources) == [["a"], ["b"], ["c", "d"], ["e"]]
    assert [len(batch) for batch in batches_of([source(str(n), 64) for n in range(600)])] == [256, 256, 88]


def test_a_place_that_is_given_by_way_of_its_parent_is_named_plainly(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert place_of(tmp_path / "a" / ".." / "b") == tmp_path / "b"
