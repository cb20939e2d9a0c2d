"""The plane of every frame of a source: where its affine says, and of the instance whose pixels it shows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from dicom_cases import FRAME, context, enhanced, instance, save, scan, series
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items

from vitpipe.domains.dicom import frames
from vitpipe.domains.dicom.frames import planes_of, read_frames
from vitpipe.errors import UnreadableSource
from vitpipe.records import Source

PSEUDONYM = context(Path("/")).pseudonym
TOLERANCE_MM = 0.01


def echoes(order: Sequence[tuple[int, int]]) -> Dataset:
    """A multi-frame file; each frame is (number of its echo, number along the normal)."""
    dataset = enhanced([number for _, number in order])
    for group, (echo, _) in zip(dataset.PerFrameFunctionalGroupsSequence, order, strict=True):
        item = Dataset()
        item.EffectiveEchoTime = 4.6 * (echo + 1)
        group.MREchoSequence = Items([item])
    return dataset


def check(source: Source, instances: Sequence[int], numbers: Sequence[int]) -> None:
    """Compare planes and frames with the affine of the source, and with the instances and frame numbers it shows."""
    assert source.grid.affine is not None
    assert source.grid.spacing_mm is not None
    affine = np.reshape(source.grid.affine, (4, 4))
    planes, found = planes_of(source, PSEUDONYM), read_frames(source)
    assert len(planes) == len(found) == source.grid.frames == len(instances)
    for frame, (plane, item) in enumerate(zip(planes, found, strict=True)):
        uid = f"1.2.3.777.4.{instances[frame]}"
        assert (plane.instance_uid, item.header.SOPInstanceUID) == (PSEUDONYM("instance_uid", uid), uid)
        assert plane.number == item.number == numbers[frame]
        assert plane.frame_of_reference == PSEUDONYM("frame_of_reference", FRAME)
        for one in (plane, item):
            # The centre of the first pixel, then one column and one row on.
            np.testing.assert_allclose(one.position, (affine @ (0, 0, frame, 1))[:3], atol=TOLERANCE_MM)
            cosines = np.reshape(one.orientation, (2, 3))
            np.testing.assert_allclose(np.linalg.norm(cosines, axis=1), 1, atol=1e-6)
            assert one.spacing_mm == pytest.approx(source.grid.spacing_mm[1:])
            rows_mm, cols_mm = source.grid.spacing_mm[1:]
            np.testing.assert_allclose(cosines[0] * cols_mm, affine[:3, 0], atol=1e-6)
            np.testing.assert_allclose(cosines[1] * rows_mm, affine[:3, 1], atol=1e-6)


def test_planes_of_a_stack_of_one_file(tmp_path: Path) -> None:
    order = [(1, 2), (0, 0), (1, 0), (0, 2), (0, 1), (1, 1)]
    save(echoes(order), tmp_path / "file")
    sources, found = scan(tmp_path)
    assert not found
    shown = [source.reader["frames"] for source in sources]
    assert sorted(shown) == [[1, 4, 3], [2, 5, 0]]  # type: ignore[type-var]
    for source, numbers in zip(sources, shown, strict=True):
        check(source, [0] * 3, numbers)  # type: ignore[arg-type]


def test_planes_of_a_whole_file_whose_frames_are_shuffled(tmp_path: Path) -> None:
    save(enhanced([2, 0, 3, 1]), tmp_path / "file")
    (source,), _ = scan(tmp_path)
    check(source, [0] * 4, [1, 3, 0, 2])


def test_planes_of_a_series_take_one_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    series(tmp_path, [4, 0, 3, 1, 2])
    (source,), _ = scan(tmp_path, reverse=True)
    check(source, range(5), [0] * 5)
    read, asked = frames.read_file, []
    monkeypatch.setattr(frames, "read_file", lambda path: asked.append(path) or read(path))
    planes_of(source, PSEUDONYM)
    assert len(asked) == 1


def write(root: Path, positions: Sequence[Sequence[float]]) -> Source:
    for number, position in enumerate(positions):
        save(instance(number, ImagePositionPatient=[round(value, 6) for value in position]), root / str(number))
    (source,), _ = scan(root, geometry="repair")
    assert "repair" in source.reader
    return source


def test_planes_of_a_sheared_source_are_upright(tmp_path: Path) -> None:
    source = write(tmp_path, [(0, 0.9 * number, 2.5 * number) for number in range(5)])
    check(source, range(5), [0] * 5)
    # Not where the files say.
    assert abs(planes_of(source, PSEUDONYM)[4].position[1]) < TOLERANCE_MM  # type: ignore[index]


def test_planes_of_equal_steps_are_of_the_nearest_instances(tmp_path: Path) -> None:
    source = write(tmp_path, [(0, 0, height) for height in (0, 2.5, 5.1, 7.5, 10.0, 12.4, 15.0)])
    check(source, range(7), [0] * 7)


def test_planes_over_a_bridged_gap(tmp_path: Path) -> None:
    source = write(tmp_path, [(0, 0, 2.5 * place) for place in (0, 1, 3, 4, 5)])
    planes = planes_of(source, PSEUDONYM)
    shown = [0, 1, None, 2, 3, 4]
    between = planes[2].instance_uid
    numbered = [number if number is not None else (1 if between == planes[1].instance_uid else 2) for number in shown]
    check(source, numbered, [0] * 6)
    assert source.keys["instance_uid"] == tuple(plane.instance_uid for plane in planes)


def test_planes_of_frames_of_one_file_that_are_repaired(tmp_path: Path) -> None:
    save(enhanced([3, 0, 1, 5, 4]), tmp_path / "file")
    (source,), _ = scan(tmp_path, geometry="repair")
    assert source.reader["frames"] == [1, 2, 0, 4, 3]
    between = planes_of(source, PSEUDONYM)[2].number
    assert between in (2, 0)
    check(source, [0] * 6, [1, 2, between, 0, 4, 3])


def test_a_file_with_fewer_frames_than_it_had_is_noticed(tmp_path: Path) -> None:
    path = save(echoes([(1, 1), (0, 0), (1, 0), (0, 1)]), tmp_path / "file")
    sources, _ = scan(tmp_path)
    save(echoes([(1, 0), (0, 0)]), path)
    for source in sources:
        with pytest.raises(UnreadableSource, match="CHANGED"):
            planes_of(source, PSEUDONYM)
