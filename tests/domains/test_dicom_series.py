"""Files to sources: order, geometry, splitting, rejections; nothing that names a person comes out."""

from __future__ import annotations

import json
import warnings
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_cases import (
    CANARIES,
    COLS,
    FRAME,
    ROWS,
    codes,
    context,
    enhanced,
    instance,
    read,
    save,
    scan,
    series,
    stored,
)
from pydicom.uid import (
    MPEG2MPML,
    BasicTextSRStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    SegmentationStorage,
)

from vitpipe.domains.dicom import Dicom
from vitpipe.domains.dicom.geometry import arrange
from vitpipe.records import Rejected, Source


def only(tmp_path: Path) -> Source:
    sources, found = scan(tmp_path)
    assert not found
    (source,) = sources
    return source


def z_of(source: Source) -> list[int]:
    """The slice number that the pixels of each frame show."""
    return [(int(read(source, frame)[0][0, 0, 0]) + 1024) // 100 for frame in range(source.grid.frames)]


def test_a_series_is_ordered_by_position(tmp_path: Path) -> None:
    series(tmp_path)
    source = only(tmp_path)
    assert source.grid.frames == 6
    assert z_of(source) == [0, 1, 2, 3, 4, 5]
    assert source.grid.spacing_mm == (2.5, 0.5, 0.8)
    # A column is 0.8 mm along x: the second PixelSpacing.
    assert source.grid.affine == (0.8, 0, 0, 0, 0, 0.5, 0, 0, 0, 0, 2.5, 0, 0, 0, 0, 1)
    assert (source.channels, source.units, source.dtype, source.acquired_at) == (("intensity",), "HU", "int16", "2019")
    assert source.notes == ()
    assert len(source.keys["instance_uid"]) == 6
    assert source.keys["path"] == tuple(f"{number:02d}" for number in range(6))


@pytest.mark.parametrize("numbers", [[5, 2, 0, 3, 1, 4], [1] * 6, [None] * 6], ids=["shuffled", "equal", "absent"])
def test_instance_number_and_names_do_not_matter(tmp_path: Path, numbers: list[Any]) -> None:
    for place, (name, number) in enumerate(zip("fbdace", numbers, strict=True)):
        save(instance(place, InstanceNumber=number), tmp_path / name)
    source = only(tmp_path)
    assert z_of(source) == [0, 1, 2, 3, 4, 5]
    assert source.grid.spacing_mm == (2.5, 0.5, 0.8)


def test_the_order_of_the_records_does_not_matter(tmp_path: Path) -> None:
    series(tmp_path)
    series(tmp_path / "other", range(3), SeriesInstanceUID="1.2.9", SOPInstanceUID=None)
    forward, backward = scan(tmp_path), scan(tmp_path, reverse=True)
    assert forward[0] == backward[0]
    assert len(forward[0]) == 2


def test_normal_follows_the_orientation(tmp_path: Path) -> None:
    for number in range(4):
        # Sagittal: rows along +y, columns along -z, thus the normal is along -x.
        values = {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1], "ImagePositionPatient": [3.0 * number, 0, 0]}
        save(instance(number, **values), tmp_path / str(number))
    source = only(tmp_path)
    assert z_of(source) == [3, 2, 1, 0]
    assert source.grid.spacing_mm[0] == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("numbers", "note"),
    [([0, 1, 4, 5], "GAP"), ([0, 1, 2.4, 3.4, 5], "IRREGULAR"), ([0, 1, 2, 3.01, 4], "IRREGULAR")],
)
def test_no_step_is_invented(tmp_path: Path, numbers: list[Any], note: str) -> None:
    for place, number in enumerate(numbers):
        save(instance(place, ImagePositionPatient=[0, 0, 2.5 * number]), tmp_path / str(place))
    source = only(tmp_path)
    assert source.notes == (note,)
    assert source.grid.affine is None
    assert source.grid.spacing_mm == (0.0, 0.5, 0.8)
    assert z_of(source) == list(range(len(numbers)))


def test_a_repeated_position_is_said(tmp_path: Path) -> None:
    series(tmp_path)
    save(instance(7, ImagePositionPatient=[0, 0, 5.0]), tmp_path / "again")
    source = only(tmp_path)
    assert source.notes == ("DUPLICATE_POSITION",)
    assert source.grid.frames == 7
    assert source.grid.affine is None


def test_phases_become_sources(tmp_path: Path) -> None:
    series(tmp_path / "a")
    for number in range(6):
        later = instance(number, SOPInstanceUID=f"1.2.8.{number}", AcquisitionNumber=2)
        save(later, tmp_path / "b" / str(number))
    sources, found = scan(tmp_path)
    assert not found
    assert [source.grid.frames for source in sources] == [6, 6]
    assert all("TEMPORAL_STACK" in source.notes for source in sources)
    assert sources[0].source_id != sources[1].source_id
    assert sources[0].group_id == sources[1].group_id


@pytest.mark.parametrize("several", [True, False])
def test_acquisitions_that_share_no_step_become_sources(tmp_path: Path, several: bool) -> None:
    for place, height in enumerate([0, 2.5, 5, 7.5, 11.1, 13.6, 16.1]):
        acquisition = 1 + (several and place > 3)
        save(instance(place, ImagePositionPatient=[0, 0, height], AcquisitionNumber=acquisition), tmp_path / str(place))
    sources, _ = scan(tmp_path)
    if several:
        assert sorted(source.grid.frames for source in sources) == [3, 4]
        assert all(source.notes == ("TEMPORAL_STACK",) for source in sources)
        assert all(source.grid.spacing_mm[0] == pytest.approx(2.5) for source in sources)
    else:
        assert [source.notes for source in sources] == [("IRREGULAR",)]


def test_tilt_keeps_its_shear(tmp_path: Path) -> None:
    for number in range(5):
        save(instance(number, ImagePositionPatient=[0, 0.9 * number, 2.5 * number]), tmp_path / str(number))
    source = only(tmp_path)
    assert source.notes == ("TILT",)
    affine = np.reshape(source.grid.affine, (4, 4))
    np.testing.assert_allclose(affine @ (0, 0, 4, 1), (0, 3.6, 10, 1), atol=1e-9)
    assert source.grid.spacing_mm[0] == pytest.approx(2.5)


def test_jitter_of_the_cosines_splits_nothing(tmp_path: Path) -> None:
    for number in range(6):
        save(instance(number, ImageOrientationPatient=[1, 1e-6 * number, 0, 0, 1, 0]), tmp_path / str(number))
    assert only(tmp_path).grid.frames == 6


@pytest.mark.parametrize(
    ("values", "note"),
    [
        ({"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, "MIXED_ORIENTATION"),
        ({"PixelSpacing": [0.6, 0.8]}, "MIXED_SPACING"),
        ({"FrameOfReferenceUID": "1.2.9"}, "MIXED_KIND"),
        ({"PatientID": "another"}, "MIXED_KIND"),
        ({"EchoTime": 7}, "MIXED_STACK"),
        ({"ImageType": ["DERIVED", "SECONDARY", "REFORMATTED"]}, "MIXED_STACK"),
        ({"Rows": 6, "PixelData": stored(0)[:6].tobytes()}, "MIXED_SHAPE"),
    ],
)
def test_a_mixed_series_is_split(tmp_path: Path, values: dict[str, Any], note: str) -> None:
    series(tmp_path / "a")
    for number in range(10, 13):
        save(instance(number, **values), tmp_path / "b" / str(number))
    sources, found = scan(tmp_path)
    assert not found
    assert sorted(source.grid.frames for source in sources) == [3, 6]
    assert all(note in source.notes for source in sources)


def test_two_series_in_a_folder(tmp_path: Path) -> None:
    series(tmp_path)
    for number in range(6):
        other = instance(number, SOPInstanceUID=f"1.2.8.{number}", SeriesInstanceUID="1.2.9")
        save(other, tmp_path / f"other{number}")
    sources, _ = scan(tmp_path)
    assert [source.grid.spacing_mm[0] for source in sources] == [2.5, 2.5]


def test_three_slices_and_one(tmp_path: Path) -> None:
    series(tmp_path / "three", range(3))
    assert only(tmp_path / "three").grid.spacing_mm[0] == 2.5
    series(tmp_path / "one", [4])
    alone = only(tmp_path / "one")
    assert alone.notes == ("SINGLE_FRAME",)
    assert alone.grid.spacing_mm == (0.0, 0.5, 0.8)


def test_instances_without_geometry_stand_alone(tmp_path: Path) -> None:
    series(tmp_path, range(3), ImagePositionPatient=None, ImageOrientationPatient=None)
    sources, found = scan(tmp_path)
    assert not found
    assert len({source.source_id for source in sources}) == 3
    assert all(source.notes == ("NO_GEOMETRY",) and source.grid.frames == 1 for source in sources)


def test_detector_spacing_is_said(tmp_path: Path) -> None:
    values = {"ImagePositionPatient": None, "ImageOrientationPatient": None, "PixelSpacing": None}
    save(instance(0, **values, ImagerPixelSpacing=[0.1, 0.2]), tmp_path / "dx")
    source = only(tmp_path)
    assert source.grid.spacing_mm == (0.0, 0.1, 0.2)
    assert "DETECTOR_SPACING" in source.notes


def test_an_affine_only_where_it_meets_every_position() -> None:
    # The steps along the normal are equal, but one slice is shifted in its plane.
    positions = [(0.0, 0.0, 0.0), (0.0, 0.05, 1.0), (0.0, 0.0, 2.0)]
    stack = arrange(positions, [(1.0, 0, 0, 0, 1, 0)], (1.0, 1.0), "abc")
    assert (stack.affine, stack.notes) == (None, ("IRREGULAR",))


def test_conflicts_and_copies(tmp_path: Path) -> None:
    series(tmp_path / "a")
    save(instance(0), tmp_path / "copy")
    changed = instance(3, PixelData=stored(9).tobytes())
    save(changed, tmp_path / "changed")
    sources, found = scan(tmp_path)
    assert codes(found) == ["CONFLICTING_SOP", "CONFLICTING_SOP", "DUPLICATE"]
    assert sources[0].grid.frames == 5


def test_a_multi_frame_file_is_ordered_and_rescaled_frame_by_frame(tmp_path: Path) -> None:
    save(enhanced([2, 0, 3, 1]), tmp_path / "enhanced")
    source = only(tmp_path)
    assert source.grid.frames == 4
    assert source.grid.spacing_mm == (2.5, 0.5, 0.8)
    assert source.units == "HU"
    for number in range(4):
        np.testing.assert_array_equal(read(source, number)[0][0], stored(number).astype(int) * (1 + number) - 1024)


def test_a_cine_keeps_the_order_of_its_file(tmp_path: Path) -> None:
    save(enhanced([1, 1, 0, 0]), tmp_path / "phases")
    source = only(tmp_path)
    assert source.notes == ("DUPLICATE_POSITION",)
    np.testing.assert_array_equal(read(source, 0)[0][0], stored(1).astype(int) * 2 - 1024)


# ------------------------------------------------------------------------------------------------- files and privacy


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_every_encoding_reads_alike(tmp_path: Path, syntax: str) -> None:
    dataset = instance(2)
    if syntax == ExplicitVRBigEndian:
        dataset.PixelData = stored(2).astype(">u2").tobytes()
    save(dataset, tmp_path / "file", syntax)
    np.testing.assert_array_equal(read(only(tmp_path))[0][0], stored(2).astype(int) - 1024)


def test_a_file_without_preamble_reads_alike(tmp_path: Path) -> None:
    save(instance(2), tmp_path / "bare", preamble=False)
    assert not (tmp_path / "bare").read_bytes().startswith(b"\0\0")
    np.testing.assert_array_equal(read(only(tmp_path))[0][0], stored(2).astype(int) - 1024)


def test_junk_and_broken_files_have_codes(tmp_path: Path) -> None:
    whole = save(instance(0), tmp_path / "whole").read_bytes()
    (tmp_path / "empty.dcm").write_bytes(b"")
    (tmp_path / "notes.dcm").write_text("patient notes are no image")
    (tmp_path / "random").write_bytes(bytes(range(256)) * 4)
    (tmp_path / "cut").write_bytes(whole[:-20])
    save(instance(20, SOPClassUID=BasicTextSRStorage, PixelData=None, Rows=None), tmp_path / "report")
    save(instance(21, PixelData=None, Rows=None), tmp_path / "stripped")
    save(instance(22, PixelData=None), tmp_path / "cut before pixels")
    save(instance(23, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), tmp_path / "scout")
    save(instance(24, SOPClassUID=SegmentationStorage), tmp_path / "segmentation")
    save(instance(25, BitsAllocated=12), tmp_path / "12 bits")
    save(instance(26, Rows=60000, Columns=60000), tmp_path / "absurd")
    save(instance(27, Rows=0), tmp_path / "flat")
    video = instance(28)
    video["PixelData"].is_undefined_length = True
    video.PixelData = b"\xfe\xff\x00\xe0\0\0\0\0\xfe\xff\x00\xe0\x02\0\0\0ab"
    save(video, tmp_path / "video", MPEG2MPML)
    sources, found = scan(tmp_path)
    assert len(sources) == 1
    by_name = {Path(item.uri).name: item for item in found}
    assert {name: (item.code, item.junk) for name, item in by_name.items()} == {
        "empty.dcm": ("ZERO_BYTES", False),
        "notes.dcm": ("NOT_DICOM", True),
        "random": ("NOT_DICOM", True),
        "cut": ("TRUNCATED", False),
        "report": ("NO_PIXELS", True),
        "stripped": ("PIXELS_MISSING", False),
        "cut before pixels": ("TRUNCATED", False),
        "scout": ("LOCALIZER", True),
        "segmentation": ("NOT_AN_IMAGE", True),
        "12 bits": ("UNSUPPORTED", False),
        "absurd": ("UNSUPPORTED", False),
        "flat": ("MALFORMED_HEADER", False),
        "video": ("UNDECODABLE", False),
    }
    assert "it holds text, although its name ends in .dcm" in by_name["notes.dcm"].reason
    assert "1.2.840.10008.1.2.4.100 (MPEG2" in by_name["video"].reason
    assert "172 of 192 bytes" in by_name["cut"].reason


def test_any_cut_and_any_flipped_byte_gives_a_code(tmp_path: Path) -> None:
    """Nothing but a code comes of a damaged file, whatever the damage."""
    whole = save(instance(0), tmp_path / "whole").read_bytes()
    generator = np.random.default_rng(0)
    domain, where, path = Dicom(), context(tmp_path), tmp_path / "damaged"
    outcomes = set()
    for _ in range(300):
        damaged = np.frombuffer(whole, np.uint8)[: generator.integers(1, len(whole) + 1)].copy()
        damaged[generator.integers(0, len(damaged), 4)] = generator.integers(0, 256, 4)
        path.write_bytes(damaged.tobytes())
        header = domain.index(path, where)
        outcomes.add(header.code if isinstance(header, Rejected) else "indexed")
    assert {"TRUNCATED", "NOT_DICOM", "PIXELS_MISSING"} <= outcomes


def test_the_modality_filter_is_junk(tmp_path: Path) -> None:
    series(tmp_path, range(3))
    save(instance(9, Modality="MR", SeriesInstanceUID="1.2.9"), tmp_path / "mr")
    sources, found = scan(tmp_path, modality="CT")
    assert [source.attributes["modality"] for source in sources] == ["CT"]
    assert [(item.code, item.junk) for item in found] == [("OTHER_MODALITY", True)]


def test_no_identifier_comes_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    warnings.simplefilter("always")
    root = tmp_path / "tree"
    series(root, PatientAge="095Y")
    save(instance(7, PatientID=None, SeriesInstanceUID="1.2.9"), root / "nobody")
    save(instance(8, SOPInstanceUID="1.2.3.777.4.7"), root / "conflict")
    save(instance(9, Rows=None), root / "broken")
    sources, found = scan(root)
    domain, where = Dicom(), context(root)
    # A value that does not fit its VR makes pydicom quote it, in a warning and in its log.
    odd = save(instance(10), root / "odd")
    odd.write_bytes(odd.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.CANARY-ID.1\0"))
    headers = [domain.index(path, where) for path in sorted(root.iterdir())]
    told = [caplog.text, *(str(item.message) for item in recwarn)]
    said = repr([[asdict(item) for item in (*sources, *found)], headers, told]).replace(str(root), "")
    for canary in (*CANARIES, "1.2.3.777.4"):
        assert canary not in said
    assert sources[0].attributes["age_years"] == 90.0 or sources[1].attributes["age_years"] == 90.0
    assert {item.group_id for item in sources if "NO_PATIENT_ID" not in item.notes} == {
        where.pseudonym("patient", "CANARY-ID")
    }
    series_uids = {uid for item in sources for uid in item.keys["series_uid"]}
    assert where.pseudonym("series_uid", "1.2.3.777.2") in series_uids


def test_without_a_patient_the_study_is_the_group(tmp_path: Path) -> None:
    series(tmp_path, PatientID="")
    source = only(tmp_path)
    assert source.notes == ("NO_PATIENT_ID",)
    assert source.group_id == context(tmp_path).pseudonym("study_uid", "1.2.3.777.1")


def test_a_header_survives_json(tmp_path: Path) -> None:
    path = save(enhanced([1, 0]), tmp_path / "file")
    header = Dicom().index(path, context(tmp_path))
    assert json.loads(json.dumps(header)) == header
    assert FRAME not in json.dumps(header)
    assert (header["pixels"]["rows"], header["pixels"]["cols"]) == (ROWS, COLS)


def test_a_deflated_file_is_really_deflated(tmp_path: Path) -> None:
    path = save(instance(0), tmp_path / "file", DeflatedExplicitVRLittleEndian)
    with pytest.raises(zlib.error):
        zlib.decompress(path.read_bytes()[:10], -zlib.MAX_WBITS)
    assert stored(0).tobytes() not in path.read_bytes()
