"""The geometry report, the stacks of multi-frame files, and the check that is made once more at a read."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from dicom_cases import ROWS, SERIES, STUDY, codes, context, enhanced, instance, read, save, scan, series, stored
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag

from vitpipe.config import PipelineConfig
from vitpipe.domains.dicom import Dicom
from vitpipe.domains.dicom.frames import read_frames
from vitpipe.domains.dicom.geometry import arrange
from vitpipe.domains.dicom.report import MOST_LISTED
from vitpipe.errors import UnreadableSource
from vitpipe.ingest import ingest, read_catalog, write_catalog
from vitpipe.records import FileRecord, Rejected, Source
from vitpipe.workspace import Workspace

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def only(root: Path) -> Source:
    sources, found = scan(root)
    assert not found
    (source,) = sources
    return source


def name_of(root: Path, number: int) -> str:
    return context(root).pseudonym("instance_uid", f"1.2.3.777.4.{number}")


# --------------------------------------------------------------------------------------------------------- the report


def test_a_regular_series_is_measured(tmp_path: Path) -> None:
    series(tmp_path)
    report = only(tmp_path).geometry
    # What is zero or empty is not kept: a catalog has a report a row.
    assert report == {"codes": [], "step_mm": 2.5, "usual_step_mm": 2.5}


def test_gaps_are_listed_with_places_and_neighbours(tmp_path: Path) -> None:
    series(tmp_path, [0, 1, 4, 5, 7])
    report = only(tmp_path).geometry
    assert report["codes"] == ["GAP"]
    assert "step_mm" not in report
    assert (report["usual_step_mm"], report["missing_frames"]) == (2.5, 3)
    assert report["gaps"] == [
        {
            "after": name_of(tmp_path, after),
            "before": name_of(tmp_path, before),
            "from_mm": 2.5 * after,
            "to_mm": 2.5 * before,
            "missing": before - after - 1,
        }
        for after, before in ((1, 4), (5, 7))
    ]
    assert report["worst"]["GAP"][0] == 3
    assert "2 of them between 2.50 and 10.00 mm" in report["worst"]["GAP"][1]


def test_irregular_steps_are_listed(tmp_path: Path) -> None:
    for place, number in enumerate([0, 1, 2.4, 3.4]):
        save(instance(place, ImagePositionPatient=[0, 0, 2.5 * number]), tmp_path / str(place))
    report = only(tmp_path).geometry
    assert report["codes"] == ["IRREGULAR"]
    assert [(step["after"], step["to_mm"]) for step in report["irregular"]] == [(name_of(tmp_path, 1), 6.0)]
    assert report["max_error_mm"] == pytest.approx(1 / 3, abs=1e-3)


def test_duplicates_are_listed(tmp_path: Path) -> None:
    series(tmp_path)
    save(instance(7, ImagePositionPatient=[0, 0, 5.0]), tmp_path / "again")
    report = only(tmp_path).geometry
    assert report["duplicate_frames"] == 1
    ((duplicate),) = report["duplicates"]
    assert duplicate["at_mm"] == 5.0
    assert set(duplicate["instances"]) == {name_of(tmp_path, 2), name_of(tmp_path, 7)}


@pytest.mark.parametrize("degrees", [20.0, -20.0, 18.5])
def test_tilt_is_signed(tmp_path: Path, degrees: float) -> None:
    for number in range(5):
        shift = -2.5 * number * math.tan(math.radians(degrees))
        save(instance(number, ImagePositionPatient=[0, round(shift, 6), 2.5 * number]), tmp_path / str(number))
    report = only(tmp_path).geometry
    assert report["codes"] == ["TILT"]
    assert report["tilt_degrees"] == pytest.approx(degrees, abs=1e-4)
    assert report.get("max_error_mm", 0.0) < 1e-5


def test_lists_are_bounded() -> None:
    places = [(0.0, 0.0, float(place * 2 + (place > 0))) for place in range(3)]
    places += [(0.0, 0.0, 10.0 + step * 3.0 + (step % 2)) for step in range(100)]
    report = arrange(places, [AXIAL], (1.0, 1.0), [f"{place:04d}" for place in range(103)]).report
    assert len(report.gaps) + len(report.irregular) <= 2 * MOST_LISTED
    assert report.missing_frames + report.irregular_steps > MOST_LISTED


def test_the_report_is_kept_and_its_worst_case_is_said(tmp_path: Path) -> None:
    data = tmp_path / "data"
    series(data / "a", [0, 1, 3])
    for number in (0, 1, 6, 7):
        values = {"SeriesInstanceUID": "1.2.9", "SOPInstanceUID": f"1.2.8.{number}"}
        save(instance(number, **values), data / "b" / str(number))
    workspace = Workspace(tmp_path / "work")
    config = PipelineConfig.model_validate(
        {"name": "t", "source": {"kind": "dicom", "path": str(data)}, "workspace": str(workspace.root)}
    )
    summary = ingest(config, workspace)
    catalog = read_catalog(workspace)
    worst = next(source for source in catalog if source.geometry["missing_frames"] == 4)
    told = [note for note in summary.notes if "GAP" in note]
    assert told == [
        f"2 source(s) are marked GAP, the worst of them {worst.source_id}: 4 frame(s) missing, 4 of them between 2.50 "
        "and 15.00 mm along the normal"
    ]
    shown = json.dumps([dict(source.geometry) for source in catalog])
    assert not any(canary in shown for canary in ("1.2.8", "1.2.3.777", SERIES, STUDY, "CANARY"))


def test_a_catalog_of_before_still_reads(tmp_path: Path) -> None:
    import pandas as pd

    series(tmp_path / "data", [0, 1, 3])
    workspace = Workspace(tmp_path / "work")
    workspace.prepare()
    write_catalog(workspace, [only(tmp_path / "data")])
    table = pd.read_parquet(workspace.catalog)
    table.drop(columns="geometry").to_parquet(workspace.catalog)
    (source,) = read_catalog(workspace)
    assert source.geometry == {}
    assert source.notes == ("GAP",)


# ------------------------------------------------------------------------------------------------- what is no volume


def test_planes_that_cross_are_a_localizer(tmp_path: Path) -> None:
    planes = ([1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, -1], [1, 0, 0, 0, 0, -1])
    for number in range(9):
        values = {"ImageOrientationPatient": planes[number % 3], "ImagePositionPatient": [number, number, number]}
        save(instance(number, **values), tmp_path / str(number))
    sources, _ = scan(tmp_path)
    assert [source.grid.frames for source in sources] == [3, 3, 3]
    assert all({"LOCALIZER", "MIXED_ORIENTATION"} <= set(source.notes) for source in sources)


def test_scouts_at_one_place_are_a_localizer(tmp_path: Path) -> None:
    for number in range(2):
        save(instance(number, ImagePositionPatient=[0, 0, 5]), tmp_path / str(number))
    source = only(tmp_path)
    assert set(source.notes) == {"LOCALIZER", "DUPLICATE_POSITION"}
    assert source.grid.affine is None


def test_a_picture_of_a_screen_is_no_image(tmp_path: Path) -> None:
    save(instance(0, ImageType=["DERIVED", "SECONDARY", "SCREEN SAVE"]), tmp_path / "screen")
    sources, found = scan(tmp_path)
    assert (sources, codes(found), found[0].junk) == ([], ["NOT_AN_IMAGE"], True)


def test_projections_are_never_stacked(tmp_path: Path) -> None:
    # Some makers write a position into radiographs.
    for number in range(2):
        save(instance(number, Modality="DX", ImagePositionPatient=[0, 0, 0]), tmp_path / str(number))
    sources, _ = scan(tmp_path)
    assert [source.grid.frames for source in sources] == [1, 1]
    assert all("NO_GEOMETRY" in source.notes for source in sources)


@pytest.mark.parametrize(
    ("values", "note"),
    [
        ({"PixelSpacing": [0.2, 0.2]}, "DETECTOR_SPACING"),
        ({"PixelSpacing": [0.15, 0.15]}, "CALIBRATED_SPACING"),
        ({"PixelSpacing": [0.2, 0.2], "PixelSpacingCalibrationType": "GEOMETRY"}, "CALIBRATED_SPACING"),
    ],
)
def test_the_spacing_of_a_radiograph_is_named(tmp_path: Path, values: dict[str, Any], note: str) -> None:
    gone = {"ImagePositionPatient": None, "ImageOrientationPatient": None}
    save(instance(0, **gone, **values, Modality="DX", ImagerPixelSpacing=[0.2, 0.2]), tmp_path / "dx")
    assert set(only(tmp_path).notes) == {"NO_GEOMETRY", note}


def test_decimal_strings_of_one_value_are_one_value(tmp_path: Path) -> None:
    for number in range(4):
        save(instance(number, EchoTime="4.60" if number % 2 else "4.6"), tmp_path / str(number))
    assert only(tmp_path).grid.frames == 4


# ------------------------------------------------------------------------------------------------- multi-frame files


def stacks(kind: str, order: list[tuple[int, int]]) -> Dataset:
    """A multi-frame file; each frame is (number of its stack, number along the normal)."""
    dataset = enhanced([number for _, number in order])
    for group, (stack, number) in zip(dataset.PerFrameFunctionalGroupsSequence, order, strict=True):
        content, item = Dataset(), Dataset()
        content.DimensionIndexValues = [stack + 1, number + 1]
        if kind == "stack":
            content.StackID = str(stack + 1)
        elif kind == "time":
            content.TemporalPositionIndex = stack + 1
        elif kind == "b_value":
            item.DiffusionBValue = 500.0 * stack
            group.MRDiffusionSequence = Sequence([item])
        elif kind == "echo":
            item.EffectiveEchoTime = 4.6 * (stack + 1)
            group.MREchoSequence = Sequence([item])
        elif kind == "orientation":
            item.ImageOrientationPatient = [1, 0, 0, 0, 1, 0] if stack == 0 else [0, 1, 0, 0, 0, -1]
            group.PlaneOrientationSequence = Sequence([item])
        elif kind == "spacing":
            item.PixelSpacing = [0.5, 0.8 + 0.1 * stack]
            group.PixelMeasuresSequence = Sequence([item])
        group.FrameContentSequence = Sequence([content])
    pointers = []
    for keyword in ("TemporalPositionIndex" if kind == "time" else "StackID", "InStackPositionNumber"):
        pointer = Dataset()
        pointer.DimensionIndexPointer = Tag(keyword)
        pointers.append(pointer)
    dataset.DimensionIndexSequence = Sequence(pointers)
    if kind in ("orientation", "spacing"):
        shared = dataset.SharedFunctionalGroupsSequence[0]
        delattr(shared, "PlaneOrientationSequence" if kind == "orientation" else "PixelMeasuresSequence")
    return dataset


ORDER = [(1, 2), (0, 0), (1, 0), (0, 2), (0, 1), (1, 1)]


@pytest.mark.parametrize(
    ("kind", "note"),
    [
        ("stack", "MIXED_STACK"),
        ("b_value", "MIXED_STACK"),
        ("echo", "MIXED_STACK"),
        ("time", "TEMPORAL_STACK"),
        ("index", "TEMPORAL_STACK"),
        ("spacing", "MIXED_SPACING"),
    ],
)
def test_the_stacks_of_one_file_become_sources(tmp_path: Path, kind: str, note: str) -> None:
    save(stacks(kind, ORDER), tmp_path / "enhanced")
    sources, found = scan(tmp_path)
    assert not found
    assert len({source.source_id for source in sources}) == 2
    for source in sources:
        frames = source.reader["frames"]
        assert isinstance(frames, list)
        assert [ORDER[frame][1] for frame in frames] == [0, 1, 2]
        assert len({ORDER[frame][0] for frame in frames}) == 1
        assert note in source.notes
        assert source.grid.spacing_mm[0] == 2.5
        assert {frame.spacing_mm for frame in read_frames(source)} == {source.grid.spacing_mm[1:]}
        for number in range(3):
            wanted = stored(number).astype(int) * (1 + number) - 1024
            np.testing.assert_array_equal(read(source, number)[0][0], wanted)


def test_orientations_of_one_file_become_sources(tmp_path: Path) -> None:
    save(stacks("orientation", ORDER), tmp_path / "enhanced")
    sources, _ = scan(tmp_path)
    assert [source.grid.frames for source in sources] == [3, 3]
    assert all("MIXED_ORIENTATION" in source.notes for source in sources)
    # Frames of the sagittal stack lie above each other in its plane: they are at one place along its normal.
    assert sum(source.grid.affine is not None for source in sources) == 1


def test_the_order_of_indices_holds_where_positions_do_not_say(tmp_path: Path) -> None:
    dataset = stacks("time", [(2, 0), (0, 0), (1, 0)])
    save(dataset, tmp_path / "film")
    source = only(tmp_path)
    assert source.reader["frames"] == [1, 2, 0]
    assert set(source.notes) == {"DUPLICATE_POSITION", "TEMPORAL_STACK"}


def test_a_time_a_frame_splits_no_stack(tmp_path: Path) -> None:
    save(stacks("time", [(place, place) for place in range(4)]), tmp_path / "enhanced")
    source = only(tmp_path)
    assert source.notes == ()
    assert source.grid.frames == 4


def test_a_stack_without_spacing_says_so(tmp_path: Path) -> None:
    series(tmp_path, PixelSpacing=None)
    source = only(tmp_path)
    assert source.notes == ("NO_SPACING",)
    assert (source.grid.affine, source.grid.spacing_mm, source.geometry["step_mm"]) == (None, None, 2.5)


def test_names_of_frames_name_their_frame(tmp_path: Path) -> None:
    save(enhanced([0, 1, 4]), tmp_path / "enhanced")
    (gap,) = only(tmp_path).geometry["gaps"]
    assert (gap["after"], gap["before"]) == (f"{name_of(tmp_path, 0)}#1", f"{name_of(tmp_path, 0)}#2")


# ------------------------------------------------------------------------------------------------ once more at a read


def test_a_frame_that_moved_is_noticed_when_it_is_read(tmp_path: Path) -> None:
    paths = series(tmp_path)
    source = only(tmp_path)
    save(instance(3, ImagePositionPatient=[0, 0.02, 7.5]), paths[3])
    read(source, 2)
    with pytest.raises(UnreadableSource, match="CHANGED"):
        read(source, 3)
    # Without a plan the header is read again, and the place itself is compared.
    source = dataclasses.replace(source, reader={})
    with pytest.raises(UnreadableSource, match=r"frame 3 lies 0.020 mm") as caught:
        read(source, 3)
    assert caught.value.code == "CHANGED"


def test_frames_of_one_file_that_moved_are_noticed(tmp_path: Path) -> None:
    path = save(enhanced([2, 0, 1]), tmp_path / "enhanced")
    source = only(tmp_path)
    read(source)
    save(enhanced([0, 1, 2]), path)
    with pytest.raises(UnreadableSource, match="ingest again"):
        read(source)


# ------------------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("value", [1e300, -1e308, 1e-300, 1e12])
@pytest.mark.parametrize("keyword", ["ImagePositionPatient", "PixelSpacing"])
@pytest.mark.parametrize("geometry", ["strict", "repair"])
def test_absurd_numbers_end_in_codes(
    tmp_path: Path, keyword: str, value: float, geometry: Literal["strict", "repair"]
) -> None:
    for number in range(5):
        dataset = instance(number, ImagePositionPatient=[0, 0.9 * number, 2.5 * number])
        if keyword == "PixelSpacing":
            dataset.PixelSpacing = [value, 0.8]
        elif number == 2:
            dataset.ImagePositionPatient = [0, 0, value]
        save(dataset, tmp_path / str(number))
    sources, found = scan(tmp_path, geometry=geometry)
    assert sum(len(source.files) for source in sources) + len(found) == 5
    for source in sources:
        json.dumps([source.grid.to_json(), dict(source.geometry), dict(source.reader)], allow_nan=False)
        assert source.notes or source.grid.affine is not None
        assert source.grid.height <= 4 * ROWS
        for frame in range(source.grid.frames):
            read(source, frame)


def test_damaged_groups_end_in_codes(tmp_path: Path) -> None:
    """Whatever bytes of the functional groups are damaged: sources or codes, and numbers that JSON can carry."""
    whole = save(stacks("time", ORDER), tmp_path / "whole").read_bytes()
    generator = np.random.default_rng(0)
    digits = [found.start() for found in re.finditer(rb"[0-9]\.[0-9]|\\[0-9]", whole)]
    domain, path = Dicom(), tmp_path / "damaged"
    outcomes = set()
    for turn in range(80):
        damaged = bytearray(whole)
        damaged[int(generator.choice(digits))] = int(generator.choice(list(b"0123456789eE-+.")))
        damaged[int(generator.integers(132, len(whole) - 1200))] = int(generator.integers(0, 256))
        path.write_bytes(damaged)
        where = context(tmp_path, geometry="repair" if turn % 2 else "strict")
        header = domain.index(path, where)
        if isinstance(header, Rejected):
            outcomes.add(header.code)
            continue
        kept = json.loads(json.dumps(header, allow_nan=False))
        for source in domain.assemble([FileRecord(str(path), len(damaged), 0, "0" * 32, kept)], where):
            assert isinstance(source, Source)
            outcomes.update(source.notes)
            json.dumps([source.grid.to_json(), dict(source.geometry), dict(source.reader)], allow_nan=False)
            with contextlib.suppress(UnreadableSource):
                read(source)
    assert {"NO_GEOMETRY", "TEMPORAL_STACK"} < outcomes
