"""Maps on disk: valid COGs that say what they hold, and that a kill does not change."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning
from rio_cogeo import cog_validate

from flows.command import lines_of_progress
from tests.infer.map_cases import TRANSFORM, MemoryRaster, identity, killed_raster, killed_task, slow_softmax
from vitpipe.errors import ContractError, WorkspaceError
from vitpipe.infer.mapping import ClassLayers, MapPlan, MapTask, ValueLayers, make_map

ROOT = Path(__file__).parents[2]
CLASSES = ("bare ground", "forest & scrub", "water")


def scene(height: int = 700, width: int = 530, *, crs: str | None = "EPSG:32633") -> MemoryRaster:
    """Make a scene of probabilities, with a corner of nodata."""
    rng = np.random.default_rng(0)
    pixels = rng.random((3, height, width)).astype(np.float32)
    valid = np.ones((height, width), bool)
    valid[: height // 3, : width // 2] = False
    return MemoryRaster(pixels / pixels.sum(axis=0), valid, crs=crs)


def mapped(raster: MemoryRaster, folder: Path, **changes: object) -> Path:
    """Map a scene of probabilities by the identity."""
    values = {"made_of": {"scene": "s"}, "plan": MapPlan(64, 3), "layers": ClassLayers(CLASSES)} | changes
    return make_map(raster, identity, MapTask(folder, **values)).folder  # type: ignore[arg-type]


def test_the_files_are_valid_cogs_that_say_what_they_hold(tmp_path: Path) -> None:
    raster = scene()
    folder = mapped(raster, tmp_path / "map", tags={"VITPIPE_MODEL": "land/3"})
    names = {path.name for path in folder.iterdir()}
    layers = {"classes", "probabilities", "entropy"}
    beside = {f"{name}.{ending}" for name in layers for ending in ("tif", "qml")}
    assert names == beside | {"classes.tif.aux.xml", "map.json"}
    assert list(tmp_path.iterdir()) == [folder]
    for name in ("classes", "probabilities", "entropy"):
        valid, errors, warnings = cog_validate(folder / f"{name}.tif", strict=True, quiet=True)
        assert (valid, errors, warnings) == (True, [], [])
        with rasterio.open(folder / f"{name}.tif") as file:
            assert tuple(file.transform)[:6] == TRANSFORM
            assert file.crs.to_epsg() == 32633
            assert file.nodata == 255
            assert file.overviews(1) == [2]
            assert file.tags()["VITPIPE_MODEL"] == "land/3"
            assert (file.read_masks(1) != 0).tolist() == raster.valid.tolist()


def test_the_bands_hold_class_probability_and_entropy(tmp_path: Path) -> None:
    raster = scene()
    folder, valid = mapped(raster, tmp_path / "map"), raster.valid
    with rasterio.open(folder / "classes.tif") as file:
        assert (file.read(1)[valid] == raster.pixels.argmax(axis=0)[valid]).all()
        assert [file.tags()[f"CLASS_{number}"] for number in range(3)] == list(CLASSES)
        assert len({file.colormap(1)[number] for number in range(3)}) == 3
    with rasterio.open(folder / "probabilities.tif") as file:
        assert file.descriptions == CLASSES
        assert file.scales == (0.004,) * 3
        np.testing.assert_allclose(file.read()[:, valid] * 0.004, raster.pixels[:, valid], atol=0.0021)
    with rasterio.open(folder / "entropy.tif") as file:
        expected = -(raster.pixels * np.log(raster.pixels)).sum(axis=0) / np.log(3)
        np.testing.assert_allclose(file.read(1)[valid] * 0.004, expected[valid], atol=0.0021)
    style = (folder / "classes.qml").read_text(encoding="utf-8")
    assert 'label="forest &amp; scrub"' in style


def test_overviews_hold_classes_and_no_mixture_with_nodata(tmp_path: Path) -> None:
    raster = scene()
    raster.pixels[:] = np.array([0.05, 0.05, 0.9], np.float32)[:, None, None]
    folder = mapped(raster, tmp_path / "map")
    with rasterio.open(folder / "classes.tif", overview_level=0) as file:
        assert set(np.unique(file.read(1))) == {2, 255}
    with rasterio.open(folder / "probabilities.tif", overview_level=0) as file:
        assert set(np.unique(file.read(3))) == {225, 255}


def test_a_scene_without_a_crs_gives_a_plain_file(tmp_path: Path) -> None:
    folder = mapped(scene(crs=None), tmp_path / "map")
    with pytest.warns(NotGeoreferencedWarning):
        file = rasterio.open(folder / "classes.tif")
    with file:
        assert (file.crs, file.shape) == (None, (700, 530))


def test_values_are_kept_as_they_are(tmp_path: Path) -> None:
    raster = scene()
    raster.pixels = raster.pixels[:1] * 100
    raster.channels = raster.channels[:1]
    plan = MapPlan(64, 1)
    folder = mapped(raster, tmp_path / "map", plan=plan, layers=ValueLayers("biomass", "t/ha"))
    assert cog_validate(folder / "values.tif", strict=True, quiet=True)[0]
    with rasterio.open(folder / "values.tif") as file:
        expected = np.where(raster.valid, raster.pixels[0], np.nan)
        np.testing.assert_array_equal(file.read(1), expected)
        assert (file.dtypes, file.units, file.descriptions) == (("float32",), ("t/ha",), ("biomass",))
        assert np.isnan(file.nodata)


def test_a_map_that_is_there_is_not_made_again(tmp_path: Path) -> None:
    raster, calls = scene(), []

    def counting(tiles: NDArray, valid: NDArray) -> NDArray:
        calls.append(len(valid))
        return tiles

    task = MapTask(tmp_path / "map", {"scene": "s"}, MapPlan(64, 3), ClassLayers(CLASSES))
    assert make_map(raster, counting, task).fresh
    done = len(calls)
    assert not make_map(raster, counting, task).fresh
    assert len(calls) == done
    (task.folder / "entropy.qml").unlink()
    assert make_map(raster, counting, task).fresh
    assert len(calls) == 2 * done
    other = MapTask(task.folder, {"scene": "s", "model": "b"}, task.plan, task.layers)
    assert make_map(raster, counting, other).fresh
    assert len(calls) == 3 * done
    assert [path.name for path in tmp_path.iterdir()] == ["map"]


def test_two_runs_do_not_make_one_map_at_once(tmp_path: Path) -> None:
    raster = scene(100, 100)

    def nested(tiles: NDArray, _valid: NDArray) -> NDArray:
        mapped(raster, tmp_path / "map")
        return tiles

    task = MapTask(tmp_path / "map", {"scene": "s"}, MapPlan(64, 3), ClassLayers(CLASSES))
    with pytest.raises(WorkspaceError, match="in use by another run"):
        make_map(raster, nested, task)


def test_maps_of_two_models_are_not_made_in_one_place_at_once(tmp_path: Path) -> None:
    raster = scene(100, 100)

    def nested(tiles: NDArray, _valid: NDArray) -> NDArray:
        mapped(raster, tmp_path / "map", made_of={"scene": "s", "model": "b"})
        return tiles

    task = MapTask(tmp_path / "map", {"scene": "s"}, MapPlan(64, 3), ClassLayers(CLASSES))
    with pytest.raises(WorkspaceError, match="in use by another run"):
        make_map(raster, nested, task)


def test_what_killed_runs_left_of_a_map_goes_and_of_others_stays(tmp_path: Path) -> None:
    other, longer = tmp_path / f".partial-map-{'0' * 12}", tmp_path / f".partial-map-b-{'0' * 12}"
    for folder in (other, longer):
        (folder / "strips").mkdir(parents=True)
    folder = mapped(scene(100, 100), tmp_path / "map")
    assert sorted(tmp_path.iterdir()) == [longer, folder]


def test_layers_that_the_model_does_not_fill_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="keeps 2 outputs"):
        mapped(scene(), tmp_path / "map", layers=ClassLayers(CLASSES[:2]))
    with pytest.raises(ContractError, match="1 to 255 classes"):
        ClassLayers([str(number) for number in range(256)])


def test_a_long_map_says_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vitpipe.infer.mapping.scene._SAY_SECONDS", 0.0)
    mapped(scene(), tmp_path / "quiet")
    assert capsys.readouterr().err == ""
    with lines_of_progress():
        mapped(scene(), tmp_path / "map")
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("map map: 256 of 700 rows, about ")
    assert said[-1].startswith("map map: 512 of 700 rows, about ")


def test_a_run_that_was_killed_goes_on_in_mid_scene_with_the_same_bytes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    straight = make_map(killed_raster(), slow_softmax(0), killed_task(tmp_path / "straight")).folder
    code = (
        "import sys; from pathlib import Path; from vitpipe.infer.mapping import make_map\n"
        "from tests.infer.map_cases import killed_raster, killed_task, slow_softmax\n"
        "make_map(killed_raster(), slow_softmax(0.02), killed_task(Path(sys.argv[1])))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "map")], env=environment) as child:
        deadline = time.monotonic() + 50
        while len(list(tmp_path.glob(".partial-*/strips/strip-*.blocks"))) < 2:
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
    assert not (tmp_path / "map").exists()
    rows: list[int] = []
    model = slow_softmax(0, seen=rows)
    caplog.set_level(logging.INFO, "vitpipe")
    found = make_map(killed_raster(), model, killed_task(tmp_path / "map"))
    assert "map map: goes on at row " in caplog.text
    assert found.fresh
    # Two strips of 256 rows were there: at most one row of tiles above the next row is computed again.
    assert min(rows) >= 512 - 64
    for name in found.files:
        assert (found.folder / name).read_bytes() == (straight / name).read_bytes()
