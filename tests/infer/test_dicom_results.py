"""Predictions as DICOM: filed with the images, readable by others, signed by the model, the same when made again."""

from __future__ import annotations

import logging
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest

from tests.domains.dicom_cases import COLS, FRAME, ROWS, SERIES, STUDY, enhanced, instance, save
from tests.infer.infer_cases import make_package
from tests.infer.result_cases import CLASSES, IDENTITY, Written, make_predictor, predict_and_write, write_series
from vitpipe.errors import ConfigError, DataError
from vitpipe.infer.dicom_results import identity, require_dicom_results
from vitpipe.infer.dicom_results.findings import SourceFindings, Verdict
from vitpipe.infer.dicom_results.originals import read_originals
from vitpipe.infer.dicom_results.report import build_report
from vitpipe.infer.dicom_results.segmentation import paint
from vitpipe.infer.dicom_results.whence import read_identity
from vitpipe.infer.dicom_results.write import ResultKind
from vitpipe.infer.predictor import Predictor
from vitpipe.infer.versions import ModelIdentity
from vitpipe.results import whence
from vitpipe.tile_places import Box

highdicom = pytest.importorskip("highdicom", reason="needs the extra dicom-results")

FLAT = {
    "SOPClassUID": "1.2.840.10008.5.1.4.1.1.1", "Modality": "CR", "ImagePositionPatient": None,
    "ImageOrientationPatient": None, "FrameOfReferenceUID": None, "PixelSpacing": None, "RescaleType": "HU",
}  # fmt: skip


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return make_predictor(tmp_path_factory.mktemp("model") / "package")


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_series(tmp_path_factory.mktemp("series"))


@pytest.fixture(scope="module")
def report(predictor: Predictor, series: Path, tmp_path_factory: pytest.TempPathFactory) -> Written:
    return predict_and_write(predictor, series, tmp_path_factory.mktemp("sr"), "sr")


@pytest.fixture(scope="module")
def segmentation(predictor: Predictor, series: Path, tmp_path_factory: pytest.TempPathFactory) -> Written:
    return predict_and_write(predictor, series, tmp_path_factory.mktemp("seg"), "seg")


def test_a_report_holds_what_the_tables_hold(report: Written) -> None:
    written = highdicom.sr.srread(report.files[0])
    assert written.SOPClassUID == pydicom.uid.ComprehensiveSRStorage
    groups = highdicom.sr.MeasurementReport.from_sequence(written.content, is_root=True)
    tiles = groups.get_planar_roi_measurement_groups()
    assert len(tiles) == len(report.result.tiles) == 3 * 2
    for group, row in zip(tiles, report.result.tiles.to_dict("records"), strict=True):
        corners = group.roi.value
        # Tiles of 8 px on frames of 12 x 8: the lower one is cut off at the edge.
        assert corners.min(axis=0).tolist() == [row["col"], row["row"]]
        assert corners.max(axis=0).tolist() == [COLS, min(row["row"] + 8, ROWS)]
        found = {item.name.value: item.value for item in group.get_measurements()}
        assert found == {f"probability/{name}": pytest.approx(row[f"p_{name}"], abs=1e-6) for name in CLASSES}
        assert [item.value.value for item in group.get_qualitative_evaluations() if "class" in item.name.value] == [
            row["predicted"]
        ]
    source = groups.get_image_measurement_groups()[0]
    found = {item.name.value: item.value for item in source.get_measurements()}
    assert found["probability/lesion"] == pytest.approx(report.result.sources["p_lesion"].iloc[0], abs=1e-6)


def test_a_box_names_the_instance_of_its_frame(report: Written) -> None:
    groups = highdicom.sr.MeasurementReport.from_sequence(highdicom.sr.srread(report.files[0]).content, is_root=True)
    named = [
        str(group.roi.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
        for group in groups.get_planar_roi_measurement_groups()
    ]
    # Written as 2, 0, 1; frames are ordered by position.
    assert named == [f"1.2.3.777.4.{number}" for number in (0, 0, 1, 1, 2, 2)]


@pytest.mark.parametrize("kind", ["report", "segmentation"])
def test_a_pacs_can_file_a_result_with_its_study(kind: str, request: pytest.FixtureRequest) -> None:
    written = pydicom.dcmread(request.getfixturevalue(kind).files[0])
    original = instance(0)
    for keyword in ("StudyInstanceUID", "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyDate"):
        assert written[keyword].value == original[keyword].value
    assert written.SeriesInstanceUID != SERIES
    assert written.StudyInstanceUID == STUDY


@pytest.mark.parametrize("kind", ["report", "segmentation"])
def test_a_result_is_signed_by_the_registered_version(kind: str, request: pytest.FixtureRequest) -> None:
    written = pydicom.dcmread(request.getfixturevalue(kind).files[0])
    assert written.SoftwareVersions[0] == "ct-contrast/3"
    (item,) = [item for item in written.ContributingEquipmentSequence if item.Manufacturer == "vitpipe"]
    assert item.PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
    assert item.SoftwareVersions[0] == "ct-contrast/3"
    assert f"manifest_digest={'ef' * 8}" in item.ContributionDescription
    other = ModelIdentity("ct-contrast", "4", IDENTITY.sha256, {})
    assert item.DeviceUID == identity.result_uid(IDENTITY, "device") != identity.result_uid(other, "device")


def test_a_second_prediction_gives_the_same_object(
    predictor: Predictor, series: Path, report: Written, tmp_path: Path
) -> None:
    again = predict_and_write(predictor, series, tmp_path, "sr")
    assert [path.name for path in again.files] == [path.name for path in report.files]
    before = again.files[0].read_bytes()
    predict_and_write(predictor, series, tmp_path, "sr")
    assert again.files[0].read_bytes() == before


def test_other_predictions_get_other_uids(series: Path, report: Written, tmp_path: Path) -> None:
    make_package(tmp_path / "m", classes=CLASSES, channels=("intensity",), units="HU", source={"kind": "dicom"}, seed=9)
    other = predict_and_write(Predictor.load(tmp_path / "m"), series, tmp_path, "sr")
    assert other.files[0].name != report.files[0].name


def test_a_segmentation_paints_probabilities_where_the_tiles_lie(segmentation: Written) -> None:
    written = highdicom.seg.segread(segmentation.files[0])
    assert [item.SegmentLabel for item in written.SegmentSequence] == list(CLASSES)
    uids = [f"1.2.3.777.4.{number}" for number in range(3)]
    painted = written.get_pixels_by_source_instance(uids, ignore_spatial_locations=True)
    expected = np.zeros((3, ROWS, COLS, 2))
    for row in segmentation.result.tiles.to_dict("records"):
        place = slice(row["row"], row["row"] + 8), slice(row["col"], row["col"] + 8)
        expected[row["frame"]][place] = [row["p_lesion"], row["p_none"]]
    assert np.abs(painted - expected).max() <= 0.5 / 255 + 1e-6


def test_overlaps_are_painted_as_their_mean(series: Path, tmp_path: Path) -> None:
    written = predict_and_write(make_predictor(tmp_path / "m", stride=4), series, tmp_path, "seg")
    table = written.result.tiles
    first = table[table["frame"] == 0].set_index("row")["p_lesion"]
    painted = highdicom.seg.segread(written.files[0]).get_pixels_by_source_instance(
        ["1.2.3.777.4.0"], ignore_spatial_locations=True
    )
    assert painted[0, 5, 3, 0] == pytest.approx((first[0] + first[4]) / 2, abs=1 / 255)


@pytest.mark.parametrize("kind", ["sr", "seg"])
def test_dciodvfy_finds_no_error(predictor: Predictor, series: Path, tmp_path: Path, kind: str) -> None:
    if shutil.which("dciodvfy") is None:
        pytest.skip("needs the program dciodvfy (Debian: dicom3tools)")
    flat = save(instance(1, **FLAT), tmp_path / "flat" / "a").parent
    thin = write_series(tmp_path / "thin", SliceThickness=None)
    lone = write_series(tmp_path / "lone", (1,), SliceThickness=None)
    unplaced = save(instance(1, **FLAT | {"FrameOfReferenceUID": FRAME}), tmp_path / "unplaced" / "a").parent
    for data in (series, flat, thin, lone, unplaced):
        (path,) = predict_and_write(predictor, data, tmp_path / "out", kind).files  # type: ignore[arg-type]
        told = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
        lines = (told.stdout + told.stderr).splitlines()
        assert any(line.startswith(("ComprehensiveSR", "Segmentation")) for line in lines), lines
        errors = [line for line in lines if line.startswith("Error")]
        if (kind, data) == ("seg", lone):
            # Nothing says how thick a single frame is that does not say it itself: no thickness is made up.
            assert all("<SliceThickness>" in line for line in errors)
        else:
            assert errors == []


def test_empty_codes_of_the_images_are_not_handed_on(predictor: Predictor, tmp_path: Path) -> None:
    empty, whole = pydicom.Dataset(), pydicom.Dataset()
    empty.CodeValue, empty.CodeMeaning = "1", ""
    whole.CodeValue, whole.CodingSchemeDesignator, whole.CodeMeaning = "2", "99X", "chest"
    whole.CodingSchemeVersion = ""
    data = write_series(tmp_path / "d", ProcedureCodeSequence=[empty, whole])
    found = pydicom.dcmread(predict_and_write(predictor, data, tmp_path, "seg").files[0])
    (code,) = found.ProcedureCodeSequence
    assert code.CodeValue == "2"
    assert "CodingSchemeVersion" not in code


def test_class_names_beyond_the_character_set_make_the_object_utf8(series: Path, tmp_path: Path) -> None:
    named = write_series(tmp_path / "s", PatientName="Buc^Jérôme", SpecificCharacterSet="ISO_IR 100")
    make_package(
        tmp_path / "m", classes=("καρδιά", "other"), channels=("intensity",), units="HU", source={"kind": "dicom"}
    )
    written = predict_and_write(Predictor.load(tmp_path / "m"), named, tmp_path, "seg")
    found = pydicom.dcmread(written.files[0])
    assert found.SpecificCharacterSet == "ISO_IR 192"
    assert str(found.PatientName) == "Buc^Jérôme"
    assert found.SegmentSequence[0].SegmentLabel == "καρδιά"


def test_what_cannot_be_written_is_a_code_and_no_end(predictor: Predictor, tmp_path: Path) -> None:
    write_series(tmp_path / "d" / "good")
    save(instance(0, StudyInstanceUID=None, SeriesInstanceUID="9.9", SOPInstanceUID="9.8"), tmp_path / "d" / "bad")
    written = predict_and_write(predictor, tmp_path / "d", tmp_path, "sr")
    assert len(written.files) == 1
    assert [item.code for item in written.rejected] == ["NO_DICOM_RESULT"]
    assert "StudyInstanceUID" in written.rejected[0].reason


@pytest.mark.parametrize("kind", ["sr", "seg"])
@pytest.mark.parametrize(
    ("whole", "cut"),
    [
        # SingleCollimationWidth, a double of four bytes.
        (b"\x18\x00\x06\x93FD\x08\x00CANARY42", b"\x18\x00\x06\x93FD\x04\x00CANA"),
        # SmallestImagePixelValue, a short of one byte.
        (b"\x28\x00\x06\x01US\x02\x00CA", b"\x28\x00\x06\x01US\x01\x00C"),
    ],
    ids=["FD", "US"],
)
def test_one_malformed_value_costs_one_source_its_result(
    predictor: Predictor, tmp_path: Path, kind: ResultKind, whole: bytes, cut: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    write_series(tmp_path / "d" / "good")
    value = whole[8:]
    odd = {
        "SingleCollimationWidth": struct.unpack("<d", value)[0] if len(value) == 8 else 1.0,
        "SmallestImagePixelValue": struct.unpack("<H", value)[0] if len(value) == 2 else 1,
    }
    bad = save(instance(0, SeriesInstanceUID="9.9", SOPInstanceUID="9.8", **odd), tmp_path / "d" / "bad")
    data = bad.read_bytes()
    assert data.count(whole) == 1
    bad.write_bytes(data.replace(whole, cut))
    with caplog.at_level(logging.DEBUG):
        written = predict_and_write(predictor, tmp_path / "d", tmp_path, kind)
    assert len(written.result.sources) == 2
    assert len(written.files) == 1
    assert [item.code for item in written.rejected] == ["NO_DICOM_RESULT"]
    told = caplog.text + written.rejected[0].reason
    assert "CANA" not in told
    assert "b'C" not in told


def test_tiles_finer_than_the_slices_are_tracked_one_by_one(series: Path, tmp_path: Path) -> None:
    fine = make_predictor(tmp_path / "m", slice_spacing_mm=0.5)
    written = predict_and_write(fine, series, tmp_path, "sr")
    found = highdicom.sr.MeasurementReport.from_sequence(highdicom.sr.srread(written.files[0]).content, is_root=True)
    uids = [group.tracking_uid for group in found.get_planar_roi_measurement_groups()]
    assert len(uids) == len(written.result.tiles) > 3 * 2
    assert len(set(uids)) == len(uids)


def test_two_stacks_of_one_file_get_a_report_each(predictor: Predictor, tmp_path: Path) -> None:
    both = enhanced([0, 1, 2, 0, 1, 2])
    for number, group in enumerate(both.PerFrameFunctionalGroupsSequence):
        content, stack = pydicom.Dataset(), 1 + number // 3
        content.StackID, content.InStackPositionNumber = str(stack), 1 + number % 3
        content.TemporalPositionIndex, content.DimensionIndexValues = stack, [stack, 1 + number % 3]
        group.FrameContentSequence = [content]
        # The same pixels and the same scale: the predictions do not tell the two apart.
        group.PixelValueTransformationSequence[0].RescaleSlope = 1
    save(both, tmp_path / "d" / "a")
    written = predict_and_write(predictor, tmp_path / "d", tmp_path, "sr")
    assert written.rejected == []
    assert len(set(written.files)) == len(written.result.sources) == 2
    named: set[int] = set()
    for path in written.files:
        content = highdicom.sr.srread(path).content
        found = highdicom.sr.MeasurementReport.from_sequence(content, is_root=True)
        for group in found.get_planar_roi_measurement_groups():
            named.add(int(group.roi.ContentSequence[0].ReferencedSOPSequence[0].ReferencedFrameNumber))
    assert named == {1, 2, 3, 4, 5, 6}


def test_the_log_names_no_one(
    predictor: Predictor, series: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        predict_and_write(predictor, series, tmp_path, "sr")
    assert "1.2.3.777" not in caplog.text
    assert "CANARY" not in caplog.text


def test_a_model_of_another_domain_is_refused_before_any_work(tmp_path: Path) -> None:
    model = Predictor.load(make_package(tmp_path / "m"))
    with pytest.raises(ConfigError, match="reads `geotiff`"):
        require_dicom_results(model.contract)


def test_a_missing_extra_is_named(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=r"vitpipe\[dicom-results\]"):
        require_dicom_results(predictor.contract)


@pytest.mark.parametrize("kind", ["report", "segmentation"])
def test_a_result_says_whence_it_is(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    file = request.getfixturevalue(kind).files[0]
    assert read_identity(file) == IDENTITY
    findings = whence(str(file), str(tmp_path))
    assert findings.values["manifest_digest"] == "ef" * 8
    assert "version: 3" in findings.lines
    assert str(findings.values["registry"]).startswith("not asked")
    assert "CANARY" not in str(findings)


def test_what_is_not_ours_or_was_changed_is_refused(report: Written, series: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="was not written by vitpipe"):
        read_identity(next(series.iterdir()))
    with pytest.raises(DataError, match="cannot be read as DICOM"):
        read_identity(Path(__file__))
    with pytest.raises(DataError, match="is a folder; name one file in it"):
        read_identity(tmp_path)
    with pytest.raises(DataError, match="No such file"):
        read_identity(tmp_path / "none")
    changed = pydicom.dcmread(report.files[0])
    for item in changed.ContributingEquipmentSequence:
        if item.Manufacturer == "vitpipe":
            item.ContributionDescription = item.ContributionDescription.replace("version=3", "version=4")
    changed.save_as(tmp_path / "changed.dcm")
    with pytest.raises(DataError, match="names two models"):
        read_identity(tmp_path / "changed.dcm")


def test_a_volume_is_a_region_on_each_of_its_frames(report: Written, tmp_path: Path) -> None:
    (source,) = report.result.used
    verdict = Verdict(("lesion",), {"lesion": 0.75, "none": 0.25}, abstains=False)
    findings = SourceFindings(verdict, ((Box(1, 2, 0, 0, 8, 6.5), verdict),), "digest")
    originals = read_originals(source, CLASSES)
    built = build_report(findings, originals, IDENTITY, "seed")
    built.save_as(tmp_path / "sr.dcm", enforce_file_format=True)
    content = highdicom.sr.srread(tmp_path / "sr.dcm").content
    (group,) = highdicom.sr.MeasurementReport.from_sequence(
        content, is_root=True
    ).get_volumetric_roi_measurement_groups()
    assert [region.value.max(axis=0).tolist() for region in group.roi] == [[6.5, 8], [6.5, 8]]
    painted = paint(source.grid, findings)
    assert painted[..., 0].sum(axis=(1, 2)).tolist() == [0, 0.75 * 8 * 6, 0.75 * 8 * 6]
