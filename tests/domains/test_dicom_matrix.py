"""The matrix of ordinary bad input: right or coded here in every cell; beside it what other readers make of it.

A reader is right where every frame's pixels lie, by the reader's own affine, where ImagePositionPatient says.
"""

from __future__ import annotations

import csv
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from dicom_cases import enhanced, instance, read, save, scan, series, stored
from numpy.typing import NDArray

from vitpipe.records import Source

Floats = NDArray[np.float64]
SPACING = (0.5, 0.8)
MR_SERIES = Path(__file__).resolve().parents[3] / "shared" / "data" / "mr_series3d"


@dataclass(frozen=True)
class Volume:
    """Frames x rows x cols, and (col, row, frame, 1) to LPS millimetres."""

    values: Floats
    affine: Floats

    def error_mm(self, truth: Mapping[tuple[float, float, float], Floats], spacing: tuple[float, float]) -> float:
        """Largest distance between a frame's position and where these values lie here; infinite where they do not."""
        if len(self.values) != len(truth):
            return math.inf
        worst = 0.0
        for position, wanted in truth.items():
            same = [
                k for k, frame in enumerate(self.values) if frame.shape == wanted.shape and np.allclose(frame, wanted)
            ]
            if not same:
                return math.inf
            corners = np.array([(0, 0), (wanted.shape[1] - 1, wanted.shape[0] - 1)])
            for i, j in corners:
                place = np.add(position, (i * spacing[1], j * spacing[0], 0))
                worst = max(worst, min(float(np.linalg.norm(self.affine[:3] @ (i, j, k, 1) - place)) for k in same))
        return worst


# ------------------------------------------------------------------------------------------------------- the readers


def ours(source: Source) -> Volume:
    frames = [read(source, frame)[0][0].astype(float) for frame in range(source.grid.frames)]
    return Volume(np.stack(frames), np.reshape(source.grid.affine, (4, 4)))


def monai_reads(folder: Path) -> Volume:
    from monai.data import PydicomReader

    reader = PydicomReader(affine_lps_to_ras=False)
    values, meta = reader.get_data(reader.read(str(folder)))
    return Volume(np.asarray(values, float).transpose(2, 1, 0), np.asarray(meta["affine"], float))


def simpleitk_reads(folder: Path) -> Volume:
    import SimpleITK

    reader = SimpleITK.ImageSeriesReader()
    first = sorted(reader.GetGDCMSeriesIDs(str(folder)))[0]
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder), first))
    image = reader.Execute()
    values = SimpleITK.GetArrayFromImage(image).astype(float)
    affine = np.eye(image.GetDimension() + 1)
    size = image.GetDimension()
    affine[:size, :size] = np.reshape(image.GetDirection(), (size, size)) * image.GetSpacing()
    affine[:size, size] = image.GetOrigin()
    return Volume(values.reshape(-1, *values.shape[-2:]), affine[:4, :4])


def highdicom_reads(folder: Path) -> Volume:
    import highdicom

    paths = sorted(folder.iterdir())
    if len(paths) == 1:
        volume = highdicom.imread(paths[0]).get_volume()
    else:
        volume = highdicom.get_volume_from_series([pydicom.dcmread(path) for path in paths])
    # Its axes are (frame, row, col), frames against the normal of row x column.
    affine = np.asarray(volume.affine)[:, [2, 1, 0, 3]].copy()
    affine[:3, 3] += affine[:3, 2] * (volume.shape[0] - 1)
    affine[:3, 2] *= -1
    return Volume(np.asarray(volume.array, float)[::-1], affine)


# --------------------------------------------------------------------------------------------------------- the matrix


@dataclass(frozen=True)
class Case:
    write: Callable[[Path], Any]
    truth: Mapping[tuple[float, float, float], Floats]
    code: str = ""
    """What we say where there is no volume."""
    monai: bool | None = True
    """Whether it is right; None: it depends on the release."""
    simpleitk: bool | None = True
    highdicom: bool = True
    """Whether it accepts the files: then it is right."""
    spacing: tuple[float, float] = SPACING


def frames(numbers: list[int], change: Callable[[int, Floats], Floats] | None = None, shift: float = 0.0) -> Any:
    """What is true: position to values."""
    convert = change or (lambda _, values: values - 1024)
    return {
        (0.0, round(shift * number, 6), 2.5 * number): convert(number, stored(number).astype(float))
        for number in numbers
    }


SIX = list(range(6))
TILT = -2.5 * math.tan(math.radians(20))
SLOPES = [0.25, 1.5, 40.0]
NO_RESCALE = {"Modality": "MR", "RescaleSlope": None, "RescaleIntercept": None}


def numbered(instance_numbers: list[int]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for place, (name, number) in enumerate(zip("fbdace", instance_numbers, strict=True)):
            save(instance(place, InstanceNumber=number), folder / name)

    return write


def with_copy(folder: Path) -> None:
    series(folder)
    save(instance(2, SOPInstanceUID="1.2.8.1", InstanceNumber=7), folder / "again")


def tilted(folder: Path) -> None:
    for number in SIX:
        save(instance(number, ImagePositionPatient=[0, round(TILT * number, 6), 2.5 * number]), folder / str(number))


def with_jitter(folder: Path) -> None:
    for number in SIX:
        save(instance(number, ImageOrientationPatient=[1, 1e-6 * number, 0, 0, 1, 0]), folder / str(number))


def scaled(folder: Path) -> None:
    for number, slope in enumerate(SLOPES):
        values = {"Modality": "PT", "Units": "BQML", "RescaleSlope": slope, "RescaleIntercept": 0}
        save(instance(number, **values), folder / str(number))


CASES = {
    "normal": Case(series, frames(SIX)),
    "shuffled InstanceNumber": Case(numbered([5, 2, 0, 3, 1, 4]), frames(SIX), monai=False),
    "equal InstanceNumber": Case(numbered([1] * 6), frames(SIX), monai=False),
    "missing slices": Case(
        lambda folder: series(folder, [0, 1, 4, 5]),
        frames([0, 1, 4, 5]),
        code="GAP",
        monai=False,
        simpleitk=False,
        highdicom=False,
    ),
    "duplicate slice": Case(
        with_copy, frames(SIX), code="DUPLICATE_POSITION", monai=False, simpleitk=False, highdicom=False
    ),
    "tilt 20 degrees": Case(tilted, frames(SIX, shift=TILT), simpleitk=False, highdicom=False),
    "jitter of the orientation": Case(with_jitter, frames(SIX), highdicom=False),
    "MONOCHROME1": Case(
        lambda folder: series(folder, PhotometricInterpretation="MONOCHROME1", **NO_RESCALE),
        frames(SIX, lambda _, values: 4095 - values),
        monai=False,
        simpleitk=None,
    ),
    "three slices": Case(lambda folder: series(folder, range(3)), frames([0, 1, 2])),
    "non-square pixels": Case(
        lambda folder: series(folder, PixelSpacing=[2.0, 0.25]), frames(SIX), spacing=(2.0, 0.25)
    ),
    "a slope a slice (PET)": Case(scaled, frames([0, 1, 2], lambda number, values: values * SLOPES[number])),
    "enhanced multi-frame": Case(
        lambda folder: save(enhanced([2, 0, 3, 1]), folder / "enhanced"),
        frames([0, 1, 2, 3], lambda number, values: values * (1 + number) - 1024),
        monai=False,
        simpleitk=False,
    ),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@each_case
def test_ours_is_right_or_has_a_code(tmp_path: Path, case: Case) -> None:
    case.write(tmp_path)
    (source,) = scan(tmp_path)[0]
    if case.code:
        assert source.notes == (case.code,)
        assert source.geometry["codes"] == [case.code]
        assert source.grid.affine is None
        assert source.grid.spacing_mm == (0.0, *case.spacing)
        (source,) = scan(tmp_path, geometry="repair")[0]
        assert source.geometry["repairs"]
        kept = [value for position, value in case.truth.items() if position[2] in (0.0, 2.5)]
        for frame, values in enumerate(kept):
            np.testing.assert_allclose(read(source, frame)[0][0], values)
        assert source.grid.affine is not None
        return
    volume = ours(source)
    assert volume.error_mm(case.truth, case.spacing) < 0.01
    assert source.grid.spacing_mm == pytest.approx((2.5, *case.spacing))


def judged(reader: Callable[[Path], Volume], folder: Path, case: Case) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        error = reader(folder).error_mm(case.truth, case.spacing)
    # Nothing in between: what is wrong is wrong by more than a pixel.
    assert error < 0.01 or error > 0.8
    return error < 0.01


@each_case
def test_what_monai_makes_of_it(tmp_path: Path, case: Case) -> None:
    case.write(tmp_path)
    right = judged(monai_reads, tmp_path, case)
    assert case.monai is None or right == case.monai


@each_case
def test_what_simpleitk_makes_of_it(tmp_path: Path, case: Case) -> None:
    case.write(tmp_path)
    right = judged(simpleitk_reads, tmp_path, case)
    assert case.simpleitk is None or right == case.simpleitk


@each_case
def test_where_highdicom_accepts_we_agree(tmp_path: Path, case: Case) -> None:
    pytest.importorskip("highdicom", reason="the extra `dicom-results` is not installed")
    case.write(tmp_path)
    if not case.highdicom:
        with pytest.raises(ValueError, match=r"regularly-spaced|orientation"):
            highdicom_reads(tmp_path)
        return
    theirs, own = highdicom_reads(tmp_path), ours(scan(tmp_path)[0][0])
    np.testing.assert_allclose(own.affine, theirs.affine, atol=1e-6)
    np.testing.assert_allclose(own.values, theirs.values, rtol=1e-6, atol=1e-6)


def test_two_series_in_one_folder(tmp_path: Path) -> None:
    series(tmp_path)
    far = {"SeriesInstanceUID": "1.2.9"}
    for number in SIX:
        place = {"ImagePositionPatient": [0, 0, 100 + 2.5 * number], "SOPInstanceUID": f"1.2.8.{number}"}
        save(instance(number, **far, **place), tmp_path / f"other{number}")
    near = frames(SIX)
    other = {(x, y, z + 100): values for (x, y, z), values in near.items()}
    sources, found = scan(tmp_path)
    assert not found
    volumes = sorted((ours(source) for source in sources), key=lambda volume: volume.affine[2, 3])
    assert volumes[0].error_mm(near, SPACING) < 0.01
    assert volumes[1].error_mm(other, SPACING) < 0.01
    # MONAI makes one volume of twelve frames of them; SimpleITK leaves the choice of one to its caller.
    merged = monai_reads(tmp_path)
    assert len(merged.values) == 12
    assert not np.isclose(np.linalg.norm(merged.affine[:3, 2]), 2.5)
    assert simpleitk_reads(tmp_path).error_mm(near, SPACING) < 0.01


def test_a_tilt_of_the_whole_head_is_far_off_elsewhere(tmp_path: Path) -> None:
    """54 slices at 18.5 degrees, as in public head CTs: an orthonormal reader puts the last one 42 mm away."""
    shift = 2.371 * math.tan(math.radians(18.5))
    for number in range(54):
        place = [0, round(shift * number, 6), round(2.371 * number, 6)]
        save(instance(number, ImagePositionPatient=place), tmp_path / f"{number:02d}")
    last = np.array([0, shift * 53, 2.371 * 53])
    (source,) = scan(tmp_path)[0]
    assert np.linalg.norm(ours(source).affine[:3] @ (0, 0, 53, 1) - last) < 0.01
    assert source.geometry["tilt_degrees"] == pytest.approx(-18.5, abs=1e-3)
    theirs = np.linalg.norm(simpleitk_reads(tmp_path).affine[:3] @ (0, 0, 53, 1) - last)
    assert 40 < theirs < 45


@pytest.mark.shared
@pytest.mark.skipif(not MR_SERIES.is_dir(), reason="the shared data folder is not beside this checkout")
def test_a_real_series_is_ordered_and_repaired() -> None:
    with (MR_SERIES / "slices.csv").open(encoding="utf-8") as stream:
        rows = {row["path"]: row for row in csv.DictReader(stream)}
    by_position = sorted(rows.values(), key=lambda row: float(row["position"].split("|")[2]))
    (strict,) = scan(MR_SERIES)[0]
    assert list(strict.keys["path"]) == [row["path"] for row in by_position]
    assert strict.geometry["codes"] == ["IRREGULAR"]
    (source,) = scan(MR_SERIES, geometry="repair")[0]
    assert set(source.notes) == {"IRREGULAR", "REPAIRED"}
    assert source.grid.affine is not None
    affine = np.reshape(source.grid.affine, (4, 4))
    first = [float(item) for item in by_position[0]["position"].split("|")]
    np.testing.assert_allclose(affine[:3, 3], first, atol=1.0)
    step, last = source.grid.spacing_mm[0], [float(item) for item in by_position[-1]["position"].split("|")]
    assert 6.9 < step < 7.1
    # The last frame lies no farther than a step from the last slice.
    assert np.linalg.norm(affine[:3] @ (0, 0, source.grid.frames - 1, 1) - last) < step
    # Between frames that are there nothing but a mean of the two is made.
    pixels, _ = read(source, 10)
    neighbours = [read(strict, frame)[0].astype(float) for frame in (9, 10, 11)]
    assert pixels.min() >= min(item.min() for item in neighbours)
    assert pixels.max() <= max(item.max() for item in neighbours)
