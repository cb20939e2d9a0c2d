"""Segmentations fall on the frames where they lie, whatever their encoding, order, extent or number of frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest

from tests.conftest import SHARED
from tests.domains.dicom_cases import COLS, ROWS, enhanced, instance, save, scan
from tests.labels.dicom_label_cases import (
    FRAMES,
    PSEUDONYM,
    codes,
    drawn,
    frame_of,
    make_series,
    make_twins,
    random_masks,
    read_rtstruct,
    read_seg,
    rtstruct,
    write_seg,
)
from vitpipe.domains.known import planes_of
from vitpipe.errors import ConfigError, LabelError
from vitpipe.labels.segmask import SegReader
from vitpipe.records import Grid, Source

pytest.importorskip("highdicom", reason="needs the extra dicom-results")

EDGE = SHARED / "dicom_edge" / "files"


def test_frames_in_any_order_fall_where_they_lie(tmp_path: Path) -> None:
    headers, (source,) = make_series(tmp_path / "ct")
    masks = random_masks(2)
    path = write_seg(tmp_path / "seg" / "a.dcm", headers, masks.astype(np.uint8))
    # Shuffled by hand: highdicom writes them sorted. 12 x 8 pixels are whole bytes, so frames may change places.
    written = pydicom.dcmread(path)
    order = np.random.default_rng(1).permutation(int(written.NumberOfFrames))
    data = np.frombuffer(written.PixelData, np.uint8)[: 12 * len(order)].reshape(len(order), 12)
    written.PixelData = data[order].tobytes()
    groups = written.PerFrameFunctionalGroupsSequence
    written.PerFrameFunctionalGroupsSequence = [groups[int(place)] for place in order]
    written.save_as(path)
    labels = read_seg(tmp_path / "seg", [source])
    for number in (1, 2):
        assert np.array_equal(drawn(labels, source, f"part {number}"), masks[..., number - 1])
    assert codes(labels) == []
    assert labels.classes == ("background", "part 1", "part 2")


def test_frames_need_not_begin_at_a_byte(tmp_path: Path) -> None:
    # 5 x 3 pixels: fifteen bits a frame.
    shape = {"Rows": 5, "Columns": 3, "PixelData": np.arange(15, dtype=np.uint16).tobytes()}
    headers, (source,) = make_series(tmp_path / "ct", **shape)
    masks = random_masks(1)[:, :5, :3]
    write_seg(tmp_path / "seg" / "a.dcm", headers, masks.astype(np.uint8))
    labels = read_seg(tmp_path / "seg", [source])
    assert np.array_equal(drawn(labels, source, "part 1"), masks[..., 0])


def test_a_fractional_segmentation_is_cut_at_the_threshold(tmp_path: Path) -> None:
    headers, (source,) = make_series(tmp_path / "ct")
    values = np.random.default_rng(2).random((FRAMES, ROWS, COLS, 1)).astype(np.float32)
    write_seg(tmp_path / "seg" / "a.dcm", headers, values, "FRACTIONAL")
    for threshold in (0.25, 0.75):
        found = drawn(read_seg(tmp_path / "seg", [source], threshold=threshold), source, "part 1")
        stored = np.round(values[..., 0] * 255)
        assert np.array_equal(found, stored >= threshold * 255)


def test_a_label_map_is_one_class_a_value(tmp_path: Path) -> None:
    headers, (source,) = make_series(tmp_path / "ct")
    values = np.random.default_rng(3).integers(0, 4, (FRAMES, ROWS, COLS)).astype(np.uint8)
    write_seg(tmp_path / "seg" / "a.dcm", headers, values, "LABELMAP")
    labels = read_seg(tmp_path / "seg", [source], segments={"part 1": "one", "part 3": "three"})
    assert np.array_equal(drawn(labels, source, "one"), values == 1)
    assert np.array_equal(drawn(labels, source, "three"), values == 3)
    assert labels.classes == ("background", "one", "three")


def test_segments_may_be_named_by_their_codes(tmp_path: Path) -> None:
    headers, (source,) = make_series(tmp_path / "ct")
    write_seg(tmp_path / "seg" / "a.dcm", headers, random_masks(2).astype(np.uint8))
    assert read_seg(tmp_path / "seg", [source], name="code", background=None).classes == ("Liver", "Spleen")


def test_the_frames_of_a_multi_frame_image_are_found_by_position(tmp_path: Path) -> None:
    """A segmentation of some slices, on an image that lost others."""
    headers, _ = make_series(tmp_path / "ct")
    masks = random_masks(1)
    write_seg(tmp_path / "seg" / "a.dcm", headers[1:5], masks[1:5].astype(np.uint8))
    for name in (tmp_path / "ct").iterdir():
        if name.name.endswith("-2"):
            name.unlink()
    (source,) = scan(tmp_path / "ct")[0]
    labels = read_seg(tmp_path / "seg", [source])
    expected = np.zeros((5, ROWS, COLS), bool)
    expected[1], expected[2], expected[3] = masks[1, ..., 0], masks[3, ..., 0], masks[4, ..., 0]
    assert np.array_equal(drawn(labels, source, "part 1"), expected)
    assert codes(labels) == ["LABEL_NO_FRAME"]
    assert "2.50 mm" in labels.rejected[0].reason


def _moved(path: Path, by_mm: tuple[float, float, float]) -> None:
    written = pydicom.dcmread(path)
    for group in written.PerFrameFunctionalGroupsSequence:
        place = group.PlanePositionSequence[0]
        place.ImagePositionPatient = [
            value + step for value, step in zip(place.ImagePositionPatient, by_mm, strict=True)
        ]
    written.save_as(path)


def test_a_shift_by_whole_pixels_is_a_crop_and_by_parts_is_refused(tmp_path: Path) -> None:
    headers, (source,) = make_series(tmp_path / "ct")
    masks = random_masks(1)
    path = write_seg(tmp_path / "seg" / "a.dcm", headers, masks.astype(np.uint8))
    _moved(path, (0.8 * 2, 0.5, 0))
    found = drawn(read_seg(tmp_path / "seg", [source]), source, "part 1")
    assert np.array_equal(found[:, 1:, 2:], masks[:, :-1, :-2, 0])
    assert not found[:, 0].any()
    assert not found[..., :2].any()
    _moved(path, (0.3, 0, 0))
    with pytest.raises(LabelError, match=r"LABEL_OFF_GRID.* by 0\.30 mm"):
        read_seg(tmp_path / "seg", [source])


def test_a_shift_along_the_normal_is_refused_in_mm(tmp_path: Path) -> None:
    headers, (source,) = make_series(tmp_path / "ct")
    _moved(write_seg(tmp_path / "a.dcm", headers, random_masks(1).astype(np.uint8)), (0, 0, 1.0))
    with pytest.raises(LabelError, match=r"by 1\.00 mm: it lies between two frames"):
        read_seg(tmp_path / "a.dcm", [source])


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"FrameOfReferenceUID": "1.2.3.4"}, "LABEL_OTHER_FRAME"),
        ({"StudyInstanceUID": "1.2.3.4", "ReferencedSeriesSequence": []}, "LABEL_NO_SOURCE"),
        ({"PixelData": bytes(200)}, "LABEL_EMPTY"),
        ({"PixelData": b"\1\0"}, "LABEL_UNREADABLE"),
        ({"Rows": None}, "LABEL_UNREADABLE"),
    ],
)
def test_what_does_not_fit_is_a_code(tmp_path: Path, change: dict[str, object], code: str) -> None:
    headers, (source,) = make_series(tmp_path / "ct")
    write_seg(tmp_path / "seg" / "a.dcm", headers, random_masks(1).astype(np.uint8), **change)
    with pytest.raises(LabelError, match=code) as told:
        read_seg(tmp_path / "seg", [source])
    assert "1.2.3" not in str(told.value)
    # Beside a good one it is a row, and the run goes on.
    write_seg(tmp_path / "seg" / "b.dcm", headers, random_masks(1, seed=5).astype(np.uint8))
    labels = read_seg(tmp_path / "seg", [source])
    assert codes(labels) == [code]
    assert np.array_equal(drawn(labels, source, "part 1"), random_masks(1, seed=5)[..., 0])
    assert "CANARY" not in str(labels.rejected)


def test_a_picture_without_geometry_is_found_by_its_instance(tmp_path: Path) -> None:
    flat = {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.1", "Modality": "CR", "ImagePositionPatient": None,
        "ImageOrientationPatient": None, "FrameOfReferenceUID": None, "PixelSpacing": None,
    }  # fmt: skip
    headers, sources = make_series(tmp_path / "cr", 2, **flat)
    masks = random_masks(1)[:1]
    write_seg(tmp_path / "seg" / "a.dcm", headers[1:], masks.astype(np.uint8))
    labels = read_seg(tmp_path / "seg", sources)
    (source_id,) = {source for source, _ in labels.regions.drawings}  # type: ignore[union-attr]
    (source,) = [item for item in sources if item.source_id == source_id]
    assert source.files[0].endswith("-1")
    assert np.array_equal(drawn(labels, source, "part 1"), masks[..., 0])


def test_of_frames_in_one_place_the_one_that_a_segment_names_is_drawn_on(tmp_path: Path) -> None:
    headers, (source,) = make_twins(tmp_path / "ct")
    for number, header in enumerate(headers):
        path = write_seg(tmp_path / "seg" / f"{number}.dcm", [header], np.ones((1, ROWS, COLS, 1), np.uint8))
        labels = read_seg(path, [source])
        found = drawn(labels, source, "part 1").any(axis=(1, 2))
        assert np.flatnonzero(found).tolist() == [frame_of(source, header)]
        assert codes(labels) == []


def test_a_film_in_one_file_is_told_apart_by_the_number_of_the_frame(tmp_path: Path) -> None:
    film = enhanced([0, 0, 0])
    for keyword in ("StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"):
        setattr(film, keyword, "")
    save(film, tmp_path / "ct" / "a")
    (source,) = scan(tmp_path / "ct")[0]
    image = instance(0, SOPInstanceUID=film.SOPInstanceUID)
    for keyword in ("StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"):
        setattr(image, keyword, "")
    path = write_seg(tmp_path / "seg" / "a.dcm", [image], np.ones((1, ROWS, COLS, 1), np.uint8))
    for number in (1, 2, 3):
        written = pydicom.dcmread(path)
        (group,) = written.PerFrameFunctionalGroupsSequence
        group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber = number
        written.save_as(path)
        found = drawn(read_seg(path, [source]), source, "part 1").any(axis=(1, 2))
        named = [plane.number for plane in planes_of(source, PSEUDONYM)].index(number - 1)
        assert np.flatnonzero(found).tolist() == [named]


def test_images_that_are_gone_are_a_code(tmp_path: Path) -> None:
    headers, (source,) = make_series(tmp_path / "ct")
    write_seg(tmp_path / "seg" / "a.dcm", headers, random_masks(1).astype(np.uint8))
    for path in source.files:
        Path(path).unlink()
    with pytest.raises(LabelError, match=r"LABEL_NO_SOURCE.*cannot be read"):
        read_seg(tmp_path / "seg", [source])


def test_the_digest_is_of_content(tmp_path: Path) -> None:
    headers, (source,) = make_series(tmp_path / "ct")
    path = write_seg(tmp_path / "seg" / "a.dcm", headers, random_masks(1).astype(np.uint8))
    first = read_seg(tmp_path / "seg", [source])
    moved = path.rename(tmp_path / "elsewhere.dcm")
    assert read_seg(moved, [source]).digest == first.digest
    assert read_seg(moved, [source], min_share=0.3).digest != first.digest
    _moved(moved, (0.8, 0, 0))
    assert read_seg(moved, [source]).digest != first.digest


def test_a_file_that_cannot_be_told_is_a_code_and_another_kind_is_passed_over(tmp_path: Path) -> None:
    headers, (source,) = make_series(tmp_path / "ct")
    path = write_seg(tmp_path / "seg" / "a.dcm", headers, random_masks(1).astype(np.uint8))
    (path.parent / "notes.txt").write_text("a text")
    meta = b"\x02\0\x10\0UI\x14\x001.2.840.10008.1.2.1\0"
    cut = b"\x08\0\x05\0SQ\0\0\xff\xff\xff\xff" + bytes(range(1, 9))
    (path.parent / "b.dcm").write_bytes(bytes(128) + b"DICM" + meta + cut)
    labels = read_seg(path.parent, [source])
    assert codes(labels) == ["LABEL_UNREADABLE"]
    assert drawn(labels, source, "part 1").any()


def test_no_segmentation_and_no_dicom_are_said(tmp_path: Path) -> None:
    _, sources = make_series(tmp_path / "ct")
    with pytest.raises(ConfigError, match="holds no DICOM segmentation"):
        read_seg(tmp_path / "ct", sources)
    with pytest.raises(ConfigError, match="no file or folder"):
        read_seg(tmp_path / "none", sources)
    photo = Source("s", "g", "images", "p", ("p",), Grid(1, 8, 8), ("r",), "dn", "uint8")
    with pytest.raises(ConfigError, match="drawn on DICOM images"):
        read_seg(tmp_path / "ct", [photo])


@pytest.mark.shared
@pytest.mark.parametrize("name", ["deflate", "expb", "j2k", "rle"])
def test_one_liver_in_every_encoding(name: str) -> None:
    """The same segmentation; what is uncompressed is the reference."""
    path = EDGE / f"pydicom-data__liver_{name}.dcm"
    if not path.exists():
        pytest.skip(f"needs {path.name}")
    reference = pydicom.dcmread(EDGE / "pydicom-data__liver_expb.dcm").pixel_array
    assert reference.any()
    for frame in range(3):
        assert np.array_equal(SegReader().read(str(path), frame), reference[frame])


@pytest.mark.shared
@pytest.mark.parametrize("name", ["cr_binary", "ct_binary", "ct_binary_fractional", "sm_control_labelmap"])
def test_files_of_others_read_as_pydicom_reads_them(name: str) -> None:
    path = EDGE / f"highdicom__seg_image_{name}.dcm"
    if not path.exists():
        pytest.skip(f"needs {path.name}")
    dataset = pydicom.dcmread(path)
    expected = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)
    for frame, values in enumerate(expected):
        assert np.array_equal(SegReader().read(str(path), frame), values)
    # None of their images is in this catalog.
    source = Source(
        "s", "g", "dicom", "p", ("p",), Grid(1, 8, 8), ("i",), "HU", "int16", keys={"series_uid": ("0" * 16,)}
    )
    with pytest.raises(LabelError, match="LABEL_NO_SOURCE"):
        read_seg(path, [source])


@pytest.mark.parametrize("kind", ["seg", "rtstruct"])
def test_damaged_objects_are_codes_and_never_a_crash(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    headers, (source,) = make_series(tmp_path / "ct")
    path = tmp_path / "object"
    if kind == "seg":
        write_seg(path, headers, random_masks(2).astype(np.uint8))
    else:
        square = np.array([[0, 0, 2.5], [4, 0, 2.5], [4, 4, 2.5], [0, 4, 2.5]])
        save(rtstruct({"A": [square, square / 2]}), path)
    recwarn.clear()
    whole, rng = path.read_bytes(), np.random.default_rng(4)
    outcomes: set[str] = set()
    told: list[str] = []
    for _ in range(120):
        data = bytearray(whole)
        for place in rng.integers(132, len(data), int(rng.integers(1, 12))):
            data[place] = int(rng.integers(0, 256))
        if rng.random() < 0.3:
            del data[int(rng.integers(200, len(data))) :]
        path.write_bytes(data)
        try:
            labels = (read_seg if kind == "seg" else read_rtstruct)(path, [source])
            for name in labels.classes:
                drawn(labels, source, name)
            outcomes.add("read")
        except (LabelError, ConfigError) as error:
            outcomes.add(type(error).__name__)
            told.append(str(error))
    assert {"read", "LabelError"} <= outcomes
    assert not list(recwarn)
    assert "anary" not in caplog.text + "".join(told)
