"""Repair: what comes out lies where it says, to a thousandth of a field's unit, and the report says what was done."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_cases import codes, enhanced, instance, read, save, scan, series, stored
from pydicom.uid import JPEGBaseline8Bit

from vitpipe.config import PipelineConfig
from vitpipe.domains.dicom import Dicom
from vitpipe.domains.dicom.repaired import RepairedRaster
from vitpipe.errors import UnreadableSource
from vitpipe.ingest import ingest, read_catalog, read_quarantine
from vitpipe.records import Rejected, Source, Window
from vitpipe.workspace import Workspace

ROWS, COLS = 40, 30
SPACING = (0.5, 0.8)
FIELD = np.array([3.0, -2.0, 1.5])
"""Per millimetre along x, y, z."""
OFFSET = 1000.0
SLOPE = 1 / 1024
OBLIQUE = (0.8, 0.6, 0.0, 0.0, 0.0, -1.0)


def linear(
    place: int, position: Sequence[float], orientation: Sequence[float] = (1, 0, 0, 0, 1, 0), **values: Any
) -> Any:
    """A slice whose values are a linear field of the LPS position, to 1/2048."""
    row, col = np.asarray(orientation[:3]), np.asarray(orientation[3:])
    j, i = np.mgrid[:ROWS, :COLS]
    points = np.asarray(position) + i[..., None] * SPACING[1] * row + j[..., None] * SPACING[0] * col
    whole = np.rint((points @ FIELD + OFFSET) / SLOPE)
    assert whole.min() >= 0
    pixels = {"BitsAllocated": 32, "BitsStored": 32, "HighBit": 31, "PixelData": whole.astype(np.uint32).tobytes()}
    scale = {"RescaleSlope": f"{SLOPE:.10g}", "RescaleIntercept": 0, "Rows": ROWS, "Columns": COLS}
    where = {"ImagePositionPatient": [round(float(item), 6) for item in position]}
    plane = {"ImageOrientationPatient": list(orientation), "PixelSpacing": list(SPACING)}
    return instance(place, **(pixels | scale | where | plane | values))


def write(root: Path, positions: Sequence[Sequence[float]], orientation: Sequence[float] = (1, 0, 0, 0, 1, 0)) -> None:
    for place, position in enumerate(positions):
        save(linear(place, position, orientation), root / f"{place:02d}")


def repaired(root: Path) -> tuple[Source, list[Rejected]]:
    sources, found = scan(root, geometry="repair")
    (source,) = sources
    return source, found


def check_field(source: Source) -> float:
    """Compare all valid pixels of all frames with the field; gives their share."""
    affine = np.reshape(source.grid.affine, (4, 4))
    shares = []
    for frame in range(source.grid.frames):
        pixels, valid = read(source, frame)
        assert pixels.dtype == np.dtype(source.dtype)
        j, i = np.nonzero(valid)
        points = affine @ np.stack([i, j, np.full(len(i), frame), np.ones(len(i))])
        wanted = FIELD @ points[:3] + OFFSET
        np.testing.assert_allclose(pixels[0][valid], wanted, atol=1e-3)
        assert not pixels[0][~valid].any()
        shares.append(valid.mean())
    return float(np.mean(shares))


def assert_orthogonal(source: Source) -> None:
    affine = np.reshape(source.grid.affine, (4, 4))[:3, :3]
    product = affine.T @ affine
    np.testing.assert_allclose(product, np.diag(np.diag(product)), atol=1e-9)
    assert source.grid.spacing_mm == pytest.approx(tuple(np.sqrt(np.diag(product)))[::-1])


# ---------------------------------------------------------------------------------------------------------------- tilt


@pytest.mark.parametrize("degrees", [20.0, -18.5])
@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, 1, 0), OBLIQUE], ids=["axial", "oblique"])
def test_a_tilt_is_sheared_away(tmp_path: Path, degrees: float, orientation: Sequence[float]) -> None:
    normal = np.cross(orientation[:3], orientation[3:])
    way = 2.5 * (normal - math.tan(math.radians(degrees)) * np.asarray(orientation[3:]))
    write(tmp_path, [way * place for place in range(8)], orientation)
    source, found = repaired(tmp_path)
    assert not found
    assert set(source.notes) == {"TILT", "REPAIRED"}
    assert source.grid.frames == 8
    assert source.grid.width == COLS
    assert source.grid.height == ROWS + math.ceil(7 * 2.5 * math.tan(math.radians(abs(degrees))) / SPACING[0] - 1e-6)
    assert source.grid.spacing_mm[0] == pytest.approx(2.5, abs=1e-5)
    assert_orthogonal(source)
    # No pixel is lost but the last row, whose neighbour is not there.
    assert check_field(source) > (ROWS - 1) / source.grid.height - 1e-9
    assert f"a tilt of {degrees:.2f} degrees" in source.geometry["repairs"][0]


def test_strict_keeps_the_shear_and_another_identity(tmp_path: Path) -> None:
    write(tmp_path, [(0, 0.9 * place, 2.5 * place) for place in range(5)])
    (strict,) = scan(tmp_path)[0]
    source, _ = repaired(tmp_path)
    assert strict.source_id != source.source_id
    assert strict.group_id == source.group_id
    assert "repairs" not in strict.geometry
    assert check_field(strict) == 1.0


def test_a_tilted_frame_that_moved_is_noticed_when_it_is_read(tmp_path: Path) -> None:
    write(tmp_path, [(0, 0.9 * place, 2.5 * place) for place in range(5)])
    source, _ = repaired(tmp_path)
    save(linear(3, (0, 2.8, 7.5)), tmp_path / "03")
    read(source, 2)
    with pytest.raises(UnreadableSource, match="CHANGED"):
        read(source, 3)
    # Without a plan the header is read again, and the place itself is compared.
    source = dataclasses.replace(source, reader={"repair": source.reader["repair"]})
    with pytest.raises(UnreadableSource, match=r"frame 3 lies 0.100 mm"):
        read(source, 3)


def test_a_tilted_head_stands_upright_again(tmp_path: Path) -> None:
    """An ellipsoid imaged by a gantry tilted by 18.5 degrees has its centre and its extent where they are."""
    angle = math.radians(18.5)
    radii, centre = np.array([8.0, 11.0, 14.0]), np.array([0.0, 1.0, 20.0])
    col = (0.0, math.cos(angle), math.sin(angle))
    for place in range(28):
        # The table moves along z; the planes of the tilted gantry cut it obliquely.
        position = np.array([-12.0, -14.0, -6.0 + 2.0 * place])
        j, i = np.mgrid[:60, :60]
        points = position + i[..., None] * 0.4 * np.array([1.0, 0, 0]) + j[..., None] * 0.5 * np.asarray(col)
        inside = (((points - centre) / radii) ** 2).sum(-1) < 1
        values = {
            "Rows": 60,
            "Columns": 60,
            "PixelSpacing": [0.5, 0.4],
            "PixelData": (inside * 2000).astype("<u2").tobytes(),
        }
        where = {
            "ImagePositionPatient": list(position),
            "ImageOrientationPatient": [1, 0, 0, *(round(x, 9) for x in col)],
        }
        save(instance(place, **values, **where), tmp_path / str(place))
    source, _ = repaired(tmp_path)
    assert abs(source.geometry["tilt_degrees"]) == pytest.approx(18.5, abs=1e-4)
    assert_orthogonal(source)
    affine = np.reshape(source.grid.affine, (4, 4))
    total, first, second = 0.0, np.zeros(3), np.zeros(3)
    for frame in range(source.grid.frames):
        pixels, valid = read(source, frame)
        share = np.where(valid, (pixels[0] + 1024) / 2000, 0.0)
        j, i = np.nonzero(share)
        points = (affine @ np.stack([i, j, np.full(len(i), frame), np.ones(len(i))]))[:3]
        total += share[j, i].sum()
        first += points @ share[j, i]
        second += points**2 @ share[j, i]
    found = first / total
    np.testing.assert_allclose(found, centre, atol=0.1)
    # The variance of a uniform ellipsoid is a fifth of its squared radius.
    np.testing.assert_allclose(np.sqrt(5 * (second / total - found**2)), radii, rtol=0.02)


# --------------------------------------------------------------------------------------------------- steps and gaps


def test_unequal_steps_are_resampled_to_the_median(tmp_path: Path) -> None:
    heights = [0, 2.5, 5.1, 7.5, 10.0, 12.4, 15.0]
    write(tmp_path, [(1, 2, height) for height in heights])
    source, _ = repaired(tmp_path)
    assert set(source.notes) == {"IRREGULAR", "REPAIRED"}
    assert source.grid.spacing_mm == pytest.approx((2.5, *SPACING))
    assert source.grid.frames == 7
    assert check_field(source) == 1.0
    assert source.dtype == "float32"
    assert [Path(path).name for path in source.keys["path"]] == [f"{place:02d}" for place in range(7)]
    assert source.geometry["repairs"] == [
        "resampled 7 frame(s) with steps of 2.400 to 2.600 mm to 7 at the median step of 2.500 mm"
    ]


def test_a_missing_frame_is_bridged_and_a_longer_gap_is_not(tmp_path: Path) -> None:
    write(tmp_path, [(0, 0, 2.5 * place) for place in (0, 1, 3, 4, 5, 9, 10)])
    source, found = repaired(tmp_path)
    assert source.grid.frames == 6
    assert len(source.files) == 5
    assert check_field(source) == 1.0
    assert codes(found) == ["OUTSIDE_RUN"] * 2
    assert {Path(item.uri).name for item in found} == {"05", "06"}
    assert source.geometry["repairs"][0] == (
        "kept the longest run, 5 frame(s) from 0.00 to 12.50 mm along the normal, and left out 2"
    )
    assert source.geometry["missing_frames"] == 4
    # A label of an instance belongs to the frame nearest to it.
    assert [Path(path).name for path in source.keys["path"]] == ["00", "01", "01", "02", "03", "04"]
    assert len(source.keys["instance_uid"]) == source.grid.frames


def test_the_last_frame_is_kept_where_a_gap_is_a_little_short(tmp_path: Path) -> None:
    write(tmp_path, [(0, 0, height) for height in (0, 2.5, 7.49, 9.99)])
    source, _ = repaired(tmp_path)
    assert source.geometry["codes"] == ["GAP", "REPAIRED"]
    assert source.grid.frames == 5
    assert source.grid.spacing_mm[0] == pytest.approx(9.99 / 4)
    assert check_field(source) == 1.0


@pytest.mark.parametrize("sideways", [0.2, -0.2])
def test_tilt_and_unequal_steps_together(tmp_path: Path, sideways: float) -> None:
    heights = np.array([0, 2.5, 5.3, 7.5, 10.1, 12.5])
    write(tmp_path, [(sideways * height, 0.4 * height, height) for height in heights])
    source, _ = repaired(tmp_path)
    assert set(source.notes) == {"IRREGULAR", "TILT", "REPAIRED"}
    assert_orthogonal(source)
    assert source.grid.width > COLS
    check_field(source)


def test_frames_shifted_in_their_plane_are_aligned(tmp_path: Path) -> None:
    write(tmp_path, [(0, 0.05 if place == 2 else 0, 2.5 * place) for place in range(5)])
    source, _ = repaired(tmp_path)
    assert source.grid.spacing_mm[0] == pytest.approx(2.5)
    check_field(source)
    assert source.geometry["repairs"][0].startswith("aligned frames by up to 0.05 mm")


# -------------------------------------------------------------------------------------------------------------- copies


def test_exact_copies_are_dropped(tmp_path: Path) -> None:
    series(tmp_path)
    save(instance(2, SOPInstanceUID="1.2.8.1"), tmp_path / "again")
    source, found = repaired(tmp_path)
    assert codes(found) == ["DUPLICATE"]
    assert set(source.notes) == {"DUPLICATE_POSITION", "REPAIRED"}
    assert (source.grid.frames, source.grid.spacing_mm[0], source.dtype) == (6, 2.5, "int16")
    assert "repair" not in source.reader
    for number in range(6):
        np.testing.assert_array_equal(read(source, number)[0][0], stored(number).astype(int) - 1024)
    series(tmp_path / "alone")
    assert source.source_id != scan(tmp_path / "alone")[0][0].source_id


@pytest.mark.parametrize(
    "values", [{"PixelData": stored(9).tobytes()}, {"RescaleIntercept": 0}, {"ImagePositionPatient": [0, 1, 5.0]}]
)
def test_frames_that_differ_at_one_place_are_no_copies(tmp_path: Path, values: dict[str, Any]) -> None:
    series(tmp_path, range(9))
    save(instance(2, SOPInstanceUID="1.2.8.1", **values), tmp_path / "other")
    source, found = repaired(tmp_path)
    assert codes(found) == ["OUTSIDE_RUN"] * 4
    assert source.grid.frames == 6
    assert source.grid.affine[11] == 7.5


def test_a_copy_that_cannot_be_read_is_no_copy(tmp_path: Path) -> None:
    series(tmp_path)
    broken = instance(2, SOPInstanceUID="1.2.8.1", BitsAllocated=8, BitsStored=8, HighBit=7)
    broken.PixelData = b"\xfe\xff\x00\xe0\0\0\0\0\xfe\xff\x00\xe0\x04\0\0\0\xff\xd8\xff\xd9"
    broken["PixelData"].is_undefined_length = True
    save(broken, tmp_path / "broken", JPEGBaseline8Bit)
    source, found = repaired(tmp_path)
    assert source.grid.frames == 3
    assert "OUTSIDE_RUN" in codes(found)


def test_what_cannot_be_repaired_says_so(tmp_path: Path) -> None:
    for number in range(4):
        save(instance(number, ImagePositionPatient=[0, 0, 5]), tmp_path / str(number))
    source, found = repaired(tmp_path)
    assert not found
    assert {"DUPLICATE_POSITION", "NOT_REPAIRED"} == set(source.notes)
    assert source.grid.frames == 4
    assert source.source_id == scan(tmp_path)[0][0].source_id


# ------------------------------------------------------------------------------------------------------- the raster


def test_padding_is_never_mixed_into_values(tmp_path: Path) -> None:
    for place in range(6):
        pixels = stored(place).copy()
        pixels[5, 3] = 4000
        values = {"PixelPaddingValue": 4000, "PixelData": pixels.tobytes()}
        save(instance(place, ImagePositionPatient=[0, 0.7 * place, 2.5 * place], **values), tmp_path / str(place))
    source, _ = repaired(tmp_path)
    for frame in range(1, 6):
        pixels, valid = read(source, frame)
        assert not valid[:, 3].all()
        assert pixels[0][valid].max() < 0
        assert not pixels[0][~valid].any()
        # Each padded pixel takes the two that would be mixed of it.
        assert (~valid[:, 3]).sum() - (~valid[:, 4]).sum() in (1, 2)


def test_no_more_than_two_frames_are_held_and_none_is_read_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, [(0, 0, height) for height in (0, 2.5, 5.1, 7.5, 10.0, 12.6)])
    source, _ = repaired(tmp_path)
    asked: list[int] = []
    with Dicom().open(source) as raster:
        assert isinstance(raster, RepairedRaster)
        inner = raster._raster
        original = inner.read
        monkeypatch.setattr(inner, "read", lambda window: asked.append(window.frame) or original(window))
        for frame in range(source.grid.frames):
            for row in (0, 16, 32):
                pixels, valid = raster.read(Window(frame, row, 16, 16, 16))
                assert pixels.shape == (1, 16, 16)
                assert valid.sum() == min(16, ROWS - row) * (COLS - 16)
                assert len(raster._held) <= 2
        assert asked == list(range(6))
        with pytest.raises(ValueError, match="outside"):
            raster.read(Window(source.grid.frames, 0, 0, 1, 1))


def test_frames_of_one_file_are_repaired_too(tmp_path: Path) -> None:
    save(enhanced([3, 0, 1, 5, 4]), tmp_path / "enhanced")
    source, found = repaired(tmp_path)
    assert not found
    assert source.grid.frames == 6
    assert source.reader["frames"] == [1, 2, 0, 4, 3]
    between = read(source, 2)[0][0]
    np.testing.assert_allclose(between, (read(source, 1)[0][0] + read(source, 3)[0][0]) / 2, atol=1e-3)


def test_a_repaired_source_passes_through_the_catalog(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write(data, [(0, 0.9 * place, 2.5 * place) for place in (0, 1, 2, 3, 9)])
    workspace = Workspace(tmp_path / "work")
    source = {"kind": "dicom", "path": str(data), "geometry": "repair", "max_reject_share": 0.3}
    config = PipelineConfig.model_validate({"name": "t", "source": source, "workspace": str(workspace.root)})
    summary = ingest(config, workspace)
    (kept,) = read_catalog(workspace)
    check_field(kept)
    assert summary.rejected == {"OUTSIDE_RUN": 1}
    assert read_quarantine(workspace)["code"].tolist() == ["OUTSIDE_RUN"]
    (note,) = [note for note in summary.notes if "marked REPAIRED" in note]
    assert "deskewed frames by up to 2.70 mm" in note
    json.dumps(dict(kept.geometry), allow_nan=False)


def test_repair_of_a_workspace_that_was_strict_reads_no_header_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, workspace = tmp_path / "data", Workspace(tmp_path / "work")
    series(data, [0, 1, 3])

    def run(geometry: str) -> Source:
        source = {"kind": "dicom", "path": str(data), "geometry": geometry}
        ingest(
            PipelineConfig.model_validate({"name": "t", "source": source, "workspace": str(workspace.root)}), workspace
        )
        return read_catalog(workspace)[0]

    strict = run("strict")
    monkeypatch.setattr(Dicom, "index", None)
    source = run("repair")
    assert (strict.grid.frames, source.grid.frames) == (3, 4)
    assert strict.source_id != source.source_id
    assert run("strict") == strict


def test_repair_leaves_a_regular_series_alone(tmp_path: Path) -> None:
    series(tmp_path)
    assert repaired(tmp_path)[0] == scan(tmp_path)[0][0]
