"""Grey levels for pictures, and the scale of ultrasound regions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_cases import instance, read, save, scan, stored
from pydicom.dataset import Dataset
from pydicom.pixels import apply_voi, apply_windowing

from vitpipe.domains.dicom.files import read_file
from vitpipe.domains.dicom.pixelformat import read_format
from vitpipe.domains.dicom.voi import display, read_presentation
from vitpipe.errors import UnreadableSource

PLAIN: dict[str, Any] = {"RescaleIntercept": 0, "Modality": "CR"}


def shown(tmp_path: Path, dataset: Dataset, choice: int = 0) -> np.ndarray:
    path = save(dataset, tmp_path / "file")
    item = read_file(path)
    presentation = read_presentation(item.dataset, read_format(item), path=str(path), choice=choice)
    (source,) = scan(tmp_path)[0]
    return display(read(source)[0][0], presentation)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("signed", [0, 1])
def test_windows_are_those_of_the_standard(tmp_path: Path, function: str, signed: int) -> None:
    """pydicom gives the range of the stored values where we give grey levels."""
    window = {"WindowCenter": 47.25, "WindowWidth": 60, "VOILUTFunction": function}
    dataset = instance(0, PixelRepresentation=signed, **PLAIN, **window)
    wanted = apply_windowing(stored(0), dataset)
    lowest, highest = (-2048, 2047) if signed else (0, 4095)
    wanted = (wanted - lowest) / (highest - lowest) * 255
    assert np.abs(shown(tmp_path, dataset) - wanted).max() <= 0.5 + 1e-9


def test_a_linear_window_of_one_is_a_threshold(tmp_path: Path) -> None:
    dataset = instance(0, WindowCenter=50, WindowWidth=1, **PLAIN)
    np.testing.assert_array_equal(shown(tmp_path, dataset), np.where(stored(0) > 49.5, 255, 0))
    with pytest.raises(UnreadableSource, match="no width"):
        shown(tmp_path, instance(0, WindowCenter=50, WindowWidth=0.5, **PLAIN))


def test_several_windows_are_chosen_from_and_none_shows_the_whole_range(tmp_path: Path) -> None:
    dataset = instance(0, WindowCenter=[20, 50], WindowWidth=[10, 2], **PLAIN)
    assert np.count_nonzero(shown(tmp_path, dataset, choice=1) == 0) == 50
    whole = shown(tmp_path, instance(0, **PLAIN))
    np.testing.assert_array_equal(whole, np.rint(stored(0) / 4095 * 255))


def test_a_table_replaces_the_window(tmp_path: Path) -> None:
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [64, 16, 12], [(entry * 60) for entry in range(64)]
    table["LUTDescriptor"].VR, table["LUTData"].VR = "US", "US"
    dataset = instance(0, WindowCenter=20, WindowWidth=10, VOILUTSequence=[table], **PLAIN)
    wanted = apply_voi(stored(0), dataset) / 4095 * 255
    assert np.abs(shown(tmp_path, dataset) - wanted).max() <= 0.5 + 1e-9


def test_monochrome1_is_dark_where_values_are_high(tmp_path: Path) -> None:
    """Its values are inverted by the stored range when they are read; the window is of those before."""
    window = {"WindowCenter": 40, "WindowWidth": 30}
    usual = shown(tmp_path / "a", instance(0, **PLAIN, **window))
    inverse = shown(tmp_path / "b", instance(0, PhotometricInterpretation="MONOCHROME1", **PLAIN, **window))
    assert np.abs(inverse.astype(int) - (255 - usual.astype(int))).max() <= 1
    hounsfield = instance(0, PhotometricInterpretation="MONOCHROME1", WindowCenter=40 - 1024, WindowWidth=30)
    np.testing.assert_array_equal(shown(tmp_path / "c", hounsfield), inverse)


def region(**values: object) -> Dataset:
    found = Dataset()
    found.RegionSpatialFormat, found.RegionDataType = 1, 1
    found.PhysicalUnitsXDirection, found.PhysicalUnitsYDirection = 3, 3
    found.PhysicalDeltaX, found.PhysicalDeltaY = 0.05, -0.02
    for keyword, value in values.items():
        setattr(found, keyword, value)
    return found


@pytest.mark.parametrize(
    ("regions", "spacing", "note"),
    [
        ([region()], (0.0, 0.2, 0.5), "REGION_SPACING"),
        ([region(), region()], None, "SEVERAL_REGIONS"),
        ([region(RegionSpatialFormat=2)], None, "SEVERAL_REGIONS"),
        ([region(PhysicalUnitsYDirection=4)], None, "SEVERAL_REGIONS"),
        ([region(PhysicalDeltaY=0.0)], None, "SEVERAL_REGIONS"),
        ([], None, None),
    ],
)
def test_one_ultrasound_region_in_centimetres_gives_the_spacing(
    tmp_path: Path, regions: list[Dataset], spacing: tuple[float, ...] | None, note: str | None
) -> None:
    gone = dict.fromkeys(("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"))
    save(instance(0, Modality="US", SequenceOfUltrasoundRegions=regions, **gone), tmp_path / "file")
    (source,) = scan(tmp_path)[0]
    assert (source.grid.spacing_mm is None) == (spacing is None)
    if spacing:
        assert source.grid.spacing_mm == pytest.approx(spacing)
    assert {"REGION_SPACING", "SEVERAL_REGIONS"}.intersection(source.notes) == ({note} if note else set())
