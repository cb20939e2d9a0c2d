"""Contours in millimetres become masks by the centres of pixels; holes, keyholes, and planes a little off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.path import Path as Polygon
from numpy.typing import NDArray
from pydicom import Dataset

from tests.conftest import SHARED
from tests.domains.dicom_cases import COLS, ROWS, save
from tests.labels.dicom_label_cases import codes, drawn, frame_of, make_series, make_twins, read_rtstruct, rtstruct
from vitpipe.errors import LabelError
from vitpipe.labels.contours import fill
from vitpipe.records import Grid, Source


def in_mm(corners: list[tuple[float, float]], z_mm: float) -> NDArray[np.float64]:
    """Give (col, row) corners of the test series (0.5 mm rows, 0.8 mm columns) as points (N, 3)."""
    return np.array([(col * 0.8, row * 0.5, z_mm) for col, row in corners])


def box(left: float, top: float, right: float, bottom: float, z_mm: float) -> NDArray[np.float64]:
    return in_mm([(left, top), (right, top), (right, bottom), (left, bottom)], z_mm)


def test_pixels_whose_centre_lies_inside_are_filled() -> None:
    rng = np.random.default_rng(0)
    rows, cols = np.mgrid[0:40, 0:50]
    centres = np.column_stack([rows.ravel(), cols.ravel()])
    for _ in range(50):
        corners = rng.uniform(-5, 55, (int(rng.integers(3, 9)), 2))
        # A star around its middle does not cross itself: there even-odd and winding agree.
        middle = corners.mean(axis=0)
        corners = corners[np.argsort(np.arctan2(*(corners - middle).T))]
        expected = Polygon(np.vstack([corners, corners[:1]]), closed=True).contains_points(centres).reshape(40, 50)
        assert np.array_equal(fill((corners,), 40, 50), expected)


def test_corners_on_pixel_centres_count_no_pixel_twice() -> None:
    left = np.array([[0.0, 0], [0, 4], [4, 4], [4, 0]])
    right = left + np.array([0, 4])
    assert (fill((left,), 8, 8).astype(int) + fill((right,), 8, 8)).max() == 1
    assert fill((left, right), 8, 8).sum() == 4 * 8


def test_contours_fall_on_their_frames(tmp_path: Path) -> None:
    _, (source,) = make_series(tmp_path / "ct")
    save(rtstruct({"Tumour": [box(0.5, 1.5, 4.5, 6.5, 2.5), box(1.5, 1.5, 3.5, 3.5, 7.5)]}), tmp_path / "rs" / "a")
    labels = read_rtstruct(tmp_path / "rs", [source])
    expected = np.zeros((6, ROWS, COLS), bool)
    expected[1, 2:7, 1:5] = True
    expected[3, 2:4, 2:4] = True
    assert np.array_equal(drawn(labels, source, "Tumour"), expected)
    assert labels.classes == ("Tumour", "background")


def test_a_contour_within_a_contour_and_a_keyhole_are_holes(tmp_path: Path) -> None:
    _, (source,) = make_series(tmp_path / "ct")
    outer, inner = (0.5, 0.5, 6.5, 8.5), (2.5, 2.5, 4.5, 5.5)
    keyhole = in_mm(
        [(0.5, 0.5), (6.5, 0.5), (6.5, 8.5), (0.5, 8.5), (0.5, 2.5),
         (2.5, 2.5), (2.5, 5.5), (4.5, 5.5), (4.5, 2.5), (2.5, 2.5), (0.5, 2.5)], 0,
    )  # fmt: skip
    expected = np.zeros((ROWS, COLS), bool)
    expected[1:9, 1:7] = True
    expected[3:6, 3:5] = False
    for name, contours in {"xor": [box(*outer, 0), box(*inner, 0)], "keyhole": [keyhole]}.items():
        save(rtstruct({"Ring": contours}), tmp_path / name / "a")
        assert np.array_equal(drawn(read_rtstruct(tmp_path / name, [source]), source, "Ring")[0], expected)


def test_a_contour_off_its_plane_by_half_a_step_goes_to_the_nearest(tmp_path: Path) -> None:
    _, (source,) = make_series(tmp_path / "ct")
    save(rtstruct({"A": [box(0.5, 0.5, 3.5, 3.5, 2.5 + 1.1), box(0.5, 0.5, 3.5, 3.5, 20.0)]}), tmp_path / "rs" / "a")
    labels = read_rtstruct(tmp_path / "rs", [source])
    assert drawn(labels, source, "A").any(axis=(1, 2)).tolist() == [False, True, False, False, False, False]
    assert codes(labels) == ["LABEL_NO_FRAME"]
    assert "7.50 mm" in labels.rejected[0].reason


def test_a_contour_across_the_planes_is_refused(tmp_path: Path) -> None:
    _, (source,) = make_series(tmp_path / "ct")
    tilted = box(0.5, 0.5, 3.5, 3.5, 2.5)
    tilted[2:, 2] += 2.0
    save(rtstruct({"A": [tilted]}), tmp_path / "rs" / "a")
    with pytest.raises(LabelError, match=r"LABEL_OFF_GRID.*2\.00 mm"):
        read_rtstruct(tmp_path / "rs", [source])


def test_rois_are_chosen_by_name_whatever_their_case(tmp_path: Path) -> None:
    _, (source,) = make_series(tmp_path / "ct")
    save(rtstruct({"GTV-1": [box(0, 0, 3, 3, 0)], "Body": [box(0, 0, 7, 11, 0)]}), tmp_path / "rs" / "a")
    labels = read_rtstruct(tmp_path / "rs", [source], rois={"gtv-1": "tumour"}, background=None)
    assert labels.classes == ("tumour",)
    with pytest.raises(LabelError, match=r"LABEL_EMPTY.*none of its ROIs"):
        read_rtstruct(tmp_path / "rs", [source], rois={"liver": "liver"})


def test_other_frames_points_and_nonsense_are_codes(tmp_path: Path) -> None:
    _, (source,) = make_series(tmp_path / "ct")
    good = rtstruct({"A": [box(0, 0, 3, 3, 0)]})
    save(good, tmp_path / "rs" / "good")
    save(rtstruct({"A": [box(0, 0, 3, 3, 0)]}, frame="1.2.3.4"), tmp_path / "rs" / "other")
    save(rtstruct({"A": [box(0, 0, 3, 3, 0)]}, kind="POINT"), tmp_path / "rs" / "points")
    broken = rtstruct({"A": [box(0, 0, 3, 3, 0)]})
    broken.ROIContourSequence[0].ContourSequence[0].ContourData = ["1", "2", "3", "4"]
    save(broken, tmp_path / "rs" / "broken")
    labels = read_rtstruct(tmp_path / "rs", [source])
    assert sorted(codes(labels)) == ["LABEL_EMPTY", "LABEL_OTHER_FRAME", "LABEL_UNREADABLE", "LABEL_UNSUPPORTED"]
    assert drawn(labels, source, "A")[0].sum() == 9
    assert "1.2.3" not in str(labels.rejected)
    assert "CANARY" not in str(labels.rejected)


def test_contours_of_a_finer_series_do_not_erase_each_other(tmp_path: Path) -> None:
    """Frames are 2.5 mm apart, contours 1.25 mm: those between two frames are on neither."""
    _, (source,) = make_series(tmp_path / "ct")
    finer = np.arange(0, 12.6, 1.25)
    # Those between the frames are smaller: only the nearest plane's size is right.
    contours = [box(0.5, 0.5, 6.5, 8.5 if number % 2 == 0 else 4.5, z_mm) for number, z_mm in enumerate(finer)]
    save(rtstruct({"A": contours}), tmp_path / "rs" / "a")
    found = drawn(read_rtstruct(tmp_path / "rs", [source]), source, "A")
    assert found.sum(axis=(1, 2)).tolist() == [6 * 8] * 6


def test_of_frames_in_one_place_the_one_that_a_contour_names_is_drawn_on(tmp_path: Path) -> None:
    headers, (source,) = make_twins(tmp_path / "ct")
    for number, header in enumerate(headers):
        image = Dataset()
        image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
        dataset = rtstruct({"A": [box(0.5, 0.5, 3.5, 3.5, 0)]})
        dataset.ROIContourSequence[0].ContourSequence[0].ContourImageSequence = [image]
        save(dataset, tmp_path / "rs" / f"{number}")
        found = drawn(read_rtstruct(tmp_path / "rs" / f"{number}", [source]), source, "A")
        assert np.flatnonzero(found.any(axis=(1, 2))).tolist() == [frame_of(source, header)]


def test_notes_hold_no_path(tmp_path: Path) -> None:
    _, (source,) = make_series(tmp_path / "ct")
    save(rtstruct({"A": [box(0, 0, 3, 3, 0)]}), tmp_path / "rs" / "good")
    save(rtstruct({"A": [box(0, 0, 3, 3, 0)]}, frame="1.2.3.4"), tmp_path / "rs" / "Canary^John")
    labels = read_rtstruct(tmp_path / "rs", [source])
    assert any("1 LABEL_OTHER_FRAME" in note for note in labels.notes)
    assert "Canary" not in " ".join(labels.notes)
    assert str(tmp_path) not in " ".join(labels.notes)


@pytest.mark.shared
def test_a_real_structure_set_is_read_or_says_why() -> None:
    path = SHARED / "dicom_edge" / "files" / "pydicom__rtstruct.dcm"
    if not path.exists():
        pytest.skip(f"needs {path.name}")
    source = Source("s", "g", "dicom", "p", ("p",), Grid(1, 8, 8), ("i",), "HU", "i2", keys={"series_uid": ("0" * 16,)})
    with pytest.raises(LabelError, match="LABEL_NO_SOURCE"):
        read_rtstruct(path, [source])
