"""A model of pixels on DICOM: masks and volumes of whole series, filed with them, a bad series told and passed over."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import pydicom
import pytest
from numpy.typing import NDArray

from tests.domains.dicom_cases import COLS, ROWS, enhanced, instance, save, scan, stored
from tests.infer.infer_cases import make_package
from tests.infer.pixel_cases import hold
from tests.labels.dicom_label_cases import codes, drawn, read_seg
from vitpipe import results
from vitpipe.config import MapRecipe, TileRecipe
from vitpipe.errors import ConfigError
from vitpipe.evaluate.calibration import load_calibration
from vitpipe.infer.contract import ModelContract
from vitpipe.infer.dicom_results.whence import read_identity
from vitpipe.infer.package import open_package
from vitpipe.infer.predictor import Predictor
from vitpipe.ingest import read_quarantine
from vitpipe.learn.model import LoadedModel, load_model
from vitpipe.records import Task
from vitpipe.workspace import Workspace

URI = "models:/land@champion"
CLASSES = ("background", "bright", "dark")
FRAMES = 6
PIXEL_ML = 2.5 * 0.5 * 0.8 / 1000
LEVELS_HU = (-1000.0, -600.0)


class LevelModel:
    """Says `dark` below one level and `bright` above another, pixel by pixel."""

    def __init__(self, record: object) -> None:
        self.record = record
        self.tiles = 0

    def logits(self, tiles: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Give logits (N, 3, [D,] H, W)."""
        assert not tiles[np.broadcast_to(~valid[:, None], tiles.shape)].any()
        self.tiles += len(tiles)
        values = tiles[:, tiles.shape[1] // 2]
        dark, bright = values < LEVELS_HU[0], values > LEVELS_HU[1]
        return np.stack([~dark & ~bright, bright, dark], axis=1).astype(np.float32) * 20


def predictor_of(folder: Path, task: Task = Task.SEGMENTATION, **tiles: object) -> Predictor:
    """Make a predictor of pixels of CT."""
    recipe = TileRecipe.model_validate({"size": 8, **tiles})
    channels = ("intensity-1", "intensity", "intensity+1") if recipe.neighbours else ("intensity",)
    package = make_package(folder, classes=CLASSES, channels=channels, units="HU", source={"kind": "dicom"})
    contract = ModelContract.read(open_package(package).description)
    contract = dataclasses.replace(contract, task=task, background="background", tiles=recipe)
    model = LevelModel(load_model(package).record)
    return Predictor(cast("LoadedModel", model), load_calibration(package), contract)


def truth() -> dict[str, NDArray[np.bool_]]:
    values = np.stack([stored(number).astype(float) - 1024 for number in range(FRAMES)])
    return {"dark": values < LEVELS_HU[0], "bright": values > LEVELS_HU[1]}


def write_series(folder: Path, **values: object) -> Path:
    for number in range(FRAMES):
        save(instance(number, **values), folder / f"{(number * 5) % FRAMES}")
    return folder


def run(folder: Path, out: Path, dicom: results.ResultKind | None = None) -> results.StageSummary:
    return results.predict(URI, str(folder), str(out), None, dicom=dicom, maps=MapRecipe(overlap=0.5))


def errors_of(path: Path) -> list[str]:
    if shutil.which("dciodvfy") is None:
        return []
    told = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
    lines = (told.stdout + told.stderr).splitlines()
    assert any(line.startswith(("ComprehensiveSR", "Segmentation")) for line in lines), lines
    return [line for line in lines if line.startswith("Error")]


@pytest.mark.parametrize(
    "tiles",
    [
        {},
        {"neighbours": 1},
        {"depth": 4},
        {"depth": 4, "orientation": "RAS"},
        {"depth": 8, "orientation": "ILP", "size": 16},
        {"depth": 3, "slice_spacing_mm": 1.25},
    ],
    ids=["2-D", "2.5-D", "3-D", "turned", "sideways", "finer"],
)
def test_a_series_gets_a_mask_on_its_own_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiles: dict[str, object]
) -> None:
    pytest.importorskip("highdicom", reason="needs the extra dicom-results")
    predictor = predictor_of(tmp_path / "model", **tiles)
    hold(monkeypatch, predictor)
    data = write_series(tmp_path / "series")
    summary = run(data, tmp_path / "out", "seg")
    assert (summary.done, summary.skipped, dict(summary.rejected)) == (1, 0, {})
    (file,) = (tmp_path / "out" / "dicom_seg").iterdir()
    assert errors_of(file) == []
    written = pydicom.dcmread(file)
    assert written.SegmentationType == "BINARY"
    assert [item.SegmentLabel for item in written.SegmentSequence] == ["bright", "dark"]
    assert read_identity(file).title == "land/3"
    (source,) = scan(data)[0]
    labels = read_seg(tmp_path / "out" / "dicom_seg", [source], per="pixel")
    assert codes(labels) == []
    for name, mask in truth().items():
        np.testing.assert_array_equal(drawn(labels, source, name), mask)
    row = pd.read_parquet(tmp_path / "out" / "sources.parquet").iloc[0]
    assert row["valid_px"] == FRAMES * ROWS * COLS
    for name, mask in truth().items():
        assert row[f"px_{name}"] == mask.sum()
        assert row[f"volume_ml_{name}"] == pytest.approx(mask.sum() * PIXEL_ML)
    before = cast("LevelModel", predictor._model).tiles
    again = run(data, tmp_path / "out", "seg")
    assert (again.done, again.skipped) == (0, 1)
    assert cast("LevelModel", predictor._model).tiles == before


def test_without_dicom_the_volumes_are_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hold(monkeypatch, predictor_of(tmp_path / "model", depth=4))
    write_series(tmp_path / "in" / "a")
    # A single slice is no stack, and the model's tiles are volumes.
    save(instance(0, SeriesInstanceUID="9.9", SOPInstanceUID="9.8"), tmp_path / "in" / "b" / "x")
    (tmp_path / "in" / "note.txt").write_text("a note")
    summary = run(tmp_path / "in", tmp_path / "out")
    assert (summary.done, dict(summary.rejected)) == (1, {"NO_REGULAR_STACK": 1})
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "predictions.json",
        "sources.parquet",
        "volumes",
    ]
    table = pd.read_parquet(tmp_path / "out" / "sources.parquet")
    assert table["path"].tolist() == ["a"]
    assert table["volume_ml_bright"].tolist() == [pytest.approx(truth()["bright"].sum() * PIXEL_ML)]
    said = json.loads((tmp_path / "out" / "predictions.json").read_text(encoding="utf-8"))
    assert (said["sources"], said["dicom_objects"]) == (1, 0)
    assert said["rejected"] == {"NOT_DICOM": 1, "NO_REGULAR_STACK": 1}
    quarantine = read_quarantine(Workspace(tmp_path / "out" / "volumes"))
    assert quarantine.loc[~quarantine["junk"], "code"].tolist() == ["NO_REGULAR_STACK"]
    assert not list((tmp_path / "out" / "volumes").glob("*refused*"))


def test_padding_is_of_no_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hold(monkeypatch, predictor_of(tmp_path / "model"))
    # Values below 40 of the first frame are dark; 20 of them are padding.
    data = write_series(tmp_path / "series", PixelPaddingValue=0, PixelPaddingRangeLimit=19)
    run(data, tmp_path / "out")
    row = pd.read_parquet(tmp_path / "out" / "sources.parquet").iloc[0]
    assert row["valid_px"] == FRAMES * ROWS * COLS - 20
    assert row["px_dark"] == truth()["dark"].sum() - 20


def test_a_report_holds_the_volumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    highdicom = pytest.importorskip("highdicom", reason="needs the extra dicom-results")
    hold(monkeypatch, predictor_of(tmp_path / "model", depth=2))
    run(write_series(tmp_path / "series"), tmp_path / "out", "sr")
    (file,) = (tmp_path / "out" / "dicom_sr").iterdir()
    assert errors_of(file) == []
    content = highdicom.sr.srread(file).content
    groups = highdicom.sr.MeasurementReport.from_sequence(content, is_root=True).get_image_measurement_groups()
    found = {}
    for group in groups:
        (measured,) = group.get_measurements()
        assert (measured.name.meaning, measured.unit.value) == ("Volume", "mL")
        found[group.finding_type.meaning] = measured.value
    assert found == {name: pytest.approx(mask.sum() * PIXEL_ML) for name, mask in truth().items()}
    assert read_identity(file).title == "land/3"


def test_a_multi_frame_file_has_its_mask_in_the_order_of_its_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("highdicom", reason="needs the extra dicom-results")
    hold(monkeypatch, predictor_of(tmp_path / "model"))
    whole = enhanced([2, 0, 1])
    for group in whole.PerFrameFunctionalGroupsSequence:
        group.PixelValueTransformationSequence[0].RescaleSlope = 1
    save(whole, tmp_path / "in" / "a")
    run(tmp_path / "in", tmp_path / "out", "seg")
    (source,) = scan(tmp_path / "in")[0]
    labels = read_seg(tmp_path / "out" / "dicom_seg", [source], per="pixel")
    np.testing.assert_array_equal(drawn(labels, source, "dark"), truth()["dark"][:3])


def test_a_series_that_no_object_can_refer_to_keeps_its_volumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("highdicom", reason="needs the extra dicom-results")
    hold(monkeypatch, predictor_of(tmp_path / "model"))
    write_series(tmp_path / "in" / "good")
    save(instance(0, StudyInstanceUID=None, SeriesInstanceUID="9.9", SOPInstanceUID="9.8"), tmp_path / "in" / "bad")
    for done, skipped in ((2, 0), (0, 2)):
        summary = run(tmp_path / "in", tmp_path / "out", "seg")
        assert (summary.done, summary.skipped, dict(summary.rejected)) == (done, skipped, {"NO_DICOM_RESULT": 1})
    table = pd.read_parquet(tmp_path / "out" / "sources.parquet").set_index("path")
    assert len(table) == 2
    # A single frame has an area, and no volume.
    assert np.isnan(table.loc["bad", "volume_ml_dark"])
    assert table.loc["bad", "px_dark"] == truth()["dark"][0].sum()
    quarantine = read_quarantine(Workspace(tmp_path / "out" / "volumes"))
    assert quarantine["code"].tolist() == ["NO_DICOM_RESULT"]


def test_a_single_frame_has_no_volume_to_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("highdicom", reason="needs the extra dicom-results")
    hold(monkeypatch, predictor_of(tmp_path / "model"))
    save(instance(0), tmp_path / "in" / "a")
    summary = run(tmp_path / "in", tmp_path / "out", "sr")
    assert dict(summary.rejected) == {"NO_DICOM_RESULT": 1}
    said = json.loads((tmp_path / "out" / "predictions.json").read_text(encoding="utf-8"))
    assert "no regular step" in said["reasons"][0]


def test_what_makes_no_sense_is_said_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    hold(monkeypatch, predictor_of(tmp_path / "values", Task.REGRESSION))
    with pytest.raises(ConfigError, match="a value of every pixel"):
        run(tmp_path / "in", tmp_path / "out", "seg")
    predictor = predictor_of(tmp_path / "model")
    hold(monkeypatch, predictor)
    with pytest.raises(ConfigError, match="maps of the ground"):
        results.predict(URI, str(tmp_path / "in"), str(tmp_path / "out"), None, maps=MapRecipe(vectors=True))
    predictor.contract = dataclasses.replace(predictor.contract, classes=("background",))
    with pytest.raises(ConfigError, match="its background"):
        run(tmp_path / "in", tmp_path / "out", "seg")
