"""The profile's table and its options, on single files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from deidentify_cases import CANARY, KEY, pixels_of, plant, save_poisoned, write
from dicom_cases import FRAME, SERIES, STUDY, instance, save, stored
from pydicom import Dataset, dcmread
from pydicom.datadict import tag_for_keyword
from pydicom.uid import UID

from vitpipe.domains.dicom.deidentify.identity import read_patient, replace_uid, shift_date
from vitpipe.domains.dicom.deidentify.options import Option, options_from
from vitpipe.domains.dicom.deidentify.profile import TOP, Action, load_profile
from vitpipe.errors import ConfigError, UnreadableSource

CT, ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4.1"


def test_the_table_is_whole() -> None:
    profile = load_profile()
    # 649 rows, of which four are groups of tags.
    assert len(profile.rows) == 645
    counts = {}
    for row in profile.rows.values():
        counts[row["basic"]] = counts.get(row["basic"], 0) + 1
    assert counts == {"X": 405, "D": 93, "U": 55, "Z": 42, "X/D": 23, "X/Z": 11, "X/Z/D": 8, "Z/D": 6, "X/Z/U*": 2}
    assert {row["shifted_dates"] for row in profile.rows.values() if row["full_dates"] == "K"} == {"C"}


@pytest.mark.parametrize(
    ("keyword", "sop_class", "action"),
    [
        # PS3.3: AcquisitionDateTime is type 3 in CT, 1C in Enhanced MR; AcquisitionDate is 3 in both.
        ("AcquisitionDateTime", CT, Action.REMOVE),
        ("AcquisitionDateTime", ENHANCED_MR, Action.DUMMY),
        ("AcquisitionDateTime", "1.2.840.10008.5.1.4.1.1.9999", Action.DUMMY),
        ("AcquisitionDate", CT, Action.REMOVE),
        ("DeviceSerialNumber", CT, Action.REMOVE),
        ("DeviceSerialNumber", ENHANCED_MR, Action.DUMMY),
        ("ContentDate", ENHANCED_MR, Action.DUMMY),
        ("ContrastBolusAgent", CT, Action.EMPTY),
        ("ReferencedImageSequence", CT, Action.REPLACE_UID),
        ("StudyInstanceUID", CT, Action.REPLACE_UID),
        ("StudyDate", CT, Action.EMPTY),
        ("PatientAge", CT, Action.REMOVE),
        ("Rows", CT, None),
    ],
)
def test_a_choice_goes_by_the_type_of_the_attribute(keyword: str, sop_class: str, action: Action | None) -> None:
    assert load_profile().action(tag_for_keyword(keyword) or 0, (TOP, sop_class), frozenset()) == action


def test_curves_and_overlays_are_named_by_their_groups() -> None:
    for tag in (0x50020010, 0x60003000, 0x601E4000):
        assert load_profile().action(tag, (TOP, CT), frozenset()) == Action.REMOVE
    assert load_profile().action(0x60203000, (TOP, CT), frozenset()) is None


def test_pixels_and_geometry_stay_as_they_are(tmp_path: Path) -> None:
    found = write(save(instance(3), tmp_path / "in.dcm"), tmp_path / "out")
    assert found.PixelData == stored(3).tobytes()
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleIntercept", "Modality"):
        assert found[keyword].value == instance(3)[keyword].value
    assert found.ImageType == ["ORIGINAL", "PRIMARY", "AXIAL"]
    assert found.Manufacturer == "Maker"
    assert found.SOPClassUID == found.file_meta.MediaStorageSOPClassUID == CT
    assert found.preamble == b"\0" * 128
    assert set(found.file_meta.keys()) == {
        0x00020000,
        0x00020001,
        0x00020002,
        0x00020003,
        0x00020010,
        0x00020012,
        0x00020013,
    }
    assert str(found.file_meta.ImplementationVersionName).startswith("VITPIPE")


def test_the_file_says_what_was_done(tmp_path: Path) -> None:
    path = save(instance(0, DeidentificationMethod=CANARY, PatientIdentityRemoved="NO"), tmp_path / "in.dcm")
    found = write(path, tmp_path / "basic")
    assert found.PatientIdentityRemoved == "YES"
    assert [item.CodeValue for item in found.DeidentificationMethodCodeSequence] == ["113100"]
    assert found.LongitudinalTemporalInformationModified == "REMOVED"
    every = write(path, tmp_path / "every", *(item for item in Option if item != Option.RETAIN_FULL_DATES))
    codes = [item.CodeValue for item in every.DeidentificationMethodCodeSequence]
    assert codes == ["113100", "113105", "113107", "113108", "113109", "113110", "113111", "113112"]
    assert {item.CodingSchemeDesignator for item in every.DeidentificationMethodCodeSequence} == {"DCM"}
    assert every.LongitudinalTemporalInformationModified == "MODIFIED"
    full = write(path, tmp_path / "full", "retain-full-dates")
    assert [item.CodeValue for item in full.DeidentificationMethodCodeSequence] == ["113100", "113106"]
    assert full.LongitudinalTemporalInformationModified == "UNMODIFIED"


def test_options_that_say_the_opposite_or_are_not_known_are_refused() -> None:
    with pytest.raises(ConfigError, match="give one of them"):
        options_from(["retain-dates", "retain-full-dates"])
    with pytest.raises(ConfigError, match="'retain-date' is not known"):
        options_from(["retain-date"])


def test_references_among_files_hold(tmp_path: Path) -> None:
    first, second = (write(save_poisoned(tmp_path / f"{number}.dcm", number), tmp_path / "out") for number in (0, 1))
    assert first.StudyInstanceUID == second.StudyInstanceUID != STUDY
    assert first.SeriesInstanceUID == second.SeriesInstanceUID != SERIES
    assert first.FrameOfReferenceUID == second.FrameOfReferenceUID != FRAME
    assert first.SOPInstanceUID != second.SOPInstanceUID
    for item in (first, second):
        uids = [reference.ReferencedSOPInstanceUID for reference in item.ReferencedImageSequence]
        assert uids == [first.SOPInstanceUID, second.SOPInstanceUID]
        assert {reference.ReferencedSOPClassUID for reference in item.ReferencedImageSequence} == {CT}
        deep = item.SharedFunctionalGroupsSequence[0].ViewCodeSequence[0]
        assert deep.TargetFrameOfReferenceUID == item.FrameOfReferenceUID
        assert deep.ReferencedSOPInstanceUID == second.SOPInstanceUID
        assert item.file_meta.MediaStorageSOPInstanceUID == item.SOPInstanceUID


def test_retained_uids_are_the_originals(tmp_path: Path) -> None:
    found = write(save(instance(0), tmp_path / "in.dcm"), tmp_path / "out", "retain-uids")
    assert (found.StudyInstanceUID, found.SOPInstanceUID) == (STUDY, "1.2.3.777.4.0")
    assert found.file_meta.MediaStorageSOPInstanceUID == "1.2.3.777.4.0"


def test_the_same_key_gives_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    path = save_poisoned(tmp_path / "in" / "a.dcm")
    write(path, tmp_path / "here", "retain-dates")
    command = [sys.executable, "-m", "flows.cli", "deidentify", str(path.parent), str(tmp_path / "there")]
    command += ["--option", "retain-dates"]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"VITPIPE_KEY": "test key"})
    here, there = (next((tmp_path / name).rglob("*.dcm")) for name in ("here", "there"))
    assert here.relative_to(tmp_path / "here") == there.relative_to(tmp_path / "there")
    assert here.read_bytes() == there.read_bytes()


def test_a_uid_is_valid_and_of_version_8() -> None:
    # Computed once by hand from HMAC-SHA256 under the key `test key`: the rule must not change between versions.
    found = UID(replace_uid("1.2.3.4", KEY))
    assert found.is_valid
    number = int(found.removeprefix("2.25."))
    assert (number >> 76 & 0xF, number >> 62 & 0x3, number >> 128) == (8, 2, 0)
    assert replace_uid("1.2.3.4\0", KEY) == found
    assert replace_uid("1.2.840.10008.1.2.1", KEY) == "1.2.840.10008.1.2.1"
    assert replace_uid("1.2.840.10008.5.1.4.1.1.77.1.5.1", KEY) == "1.2.840.10008.5.1.4.1.1.77.1.5.1"
    # A date or a number under the standard's root is no UID of the standard.
    assert replace_uid("1.2.840.10008.19370405.1", KEY).startswith("2.25.")


def test_moved_dates_keep_intervals_days_of_the_week_and_times(tmp_path: Path) -> None:
    times = {"StudyDate": "20190228", "StudyTime": "235930", "ContentDate": "20190301", "ContentTime": "000030.5"}
    times["AcquisitionDateTime"] = "20190228235959.123456+0100"
    one = write(save(instance(0, **times), tmp_path / "0.dcm"), tmp_path / "out", "retain-dates")
    weeks = read_patient(instance(0), KEY).weeks
    assert 1 <= weeks <= 520
    assert one.StudyDate == shift_date("20190228", weeks)
    assert one.ContentDate == shift_date("20190301", weeks)
    assert one.AcquisitionDateTime == f"{one.StudyDate}235959.123456+0100"
    assert (one.StudyTime, one.ContentTime) == ("235930", "000030.5")
    assert one.PatientBirthDate == ""
    later = instance(1, StudyDate="20200229", StudyInstanceUID="1.2.3.777.99")
    two = write(save(later, tmp_path / "1.dcm"), tmp_path / "out", "retain-dates")
    moved = np.datetime64(f"{two.StudyDate[:4]}-{two.StudyDate[4:6]}-{two.StudyDate[6:]}")
    first = np.datetime64(f"{one.StudyDate[:4]}-{one.StudyDate[4:6]}-{one.StudyDate[6:]}")
    assert moved - first == np.datetime64("2020-02-29") - np.datetime64("2019-02-28")
    assert np.datetime64("2019-02-28") - first == np.timedelta64(7 * weeks, "D")
    someone = instance(2, PatientID="another", StudyDate="20190228")
    other = write(save(someone, tmp_path / "2.dcm"), tmp_path / "out", "retain-dates")
    assert other.StudyDate != one.StudyDate


def test_a_known_date_of_a_code_list_does_not_tell_the_shift(tmp_path: Path) -> None:
    item = Dataset()
    item.ContextGroupVersion, item.CodeValue, item.CodingSchemeDesignator = "20100101", "T-D1100", "SRT"
    item.CodeMeaning = "Head"
    path = save(instance(0, AnatomicRegionSequence=[item]), tmp_path / "in.dcm")
    found = write(path, tmp_path / "out", "retain-dates").AnatomicRegionSequence[0]
    assert (found.CodeValue, found.CodeMeaning, found.ContextGroupVersion) == ("T-D1100", "Head", "19000101000000")


def test_full_dates_stay_but_not_the_date_of_birth(tmp_path: Path) -> None:
    found = write(save(instance(0), tmp_path / "in.dcm"), tmp_path / "out", "retain-full-dates")
    assert (found.StudyDate, found.ContentTime, found.PatientBirthDate) == ("20190607", "123456.789", "")


@pytest.mark.parametrize(
    ("age", "kept"), [("089Y", "089Y"), ("090Y", "090Y"), ("095Y", "090Y"), ("020M", "020M"), ("old", None)]
)
def test_patient_characteristics_stay_and_great_ages_are_capped(tmp_path: Path, age: str, kept: str | None) -> None:
    path = save(instance(0, PatientAge=age, PatientWeight=70, PregnancyStatus=4), tmp_path / "in.dcm")
    found = write(path, tmp_path / "out", "retain-characteristics")
    assert (found.get("PatientAge") or None, found.PatientSex, found.PatientWeight) == (kept, "F", 70)
    basic = write(path, tmp_path / "basic")
    assert basic.PatientSex == ""
    assert not {"PatientAge", "PatientWeight", "PregnancyStatus"} & set(basic.dir())


def test_device_and_institution_stay_where_asked_for(tmp_path: Path) -> None:
    dataset = instance(0, DeviceSerialNumber="S1", StationName="CT 1", InstitutionName="General Hospital")
    path = save(dataset, tmp_path / "in.dcm")
    device = write(path, tmp_path / "device", "retain-device")
    assert (device.DeviceSerialNumber, device.StationName) == ("S1", "CT 1")
    assert "InstitutionName" not in device
    institution = write(path, tmp_path / "institution", "retain-institution")
    assert institution.InstitutionName == "General Hospital"
    assert "StationName" not in institution


def test_descriptions_keep_known_words_alone(tmp_path: Path) -> None:
    texts = {
        "StudyDescription": "CT Thorax/Abdomen Mrs. Miller 12.03.1957 MRN 77123456",
        "SeriesDescription": "t2_tse_sag 3mm",
        "ProtocolName": "Miller special",
        "SegmentLabel": "Liver of Miller",
    }
    path = save(instance(0, **texts), tmp_path / "in.dcm")
    found = write(path, tmp_path / "out", "clean-descriptors")
    assert found.StudyDescription == "CT Thorax Abdomen"
    assert found.SeriesDescription == "t2 tse sag 3mm"
    assert "ProtocolName" not in found
    assert found.SegmentLabel == "Liver of"
    assert "StudyDescription" not in write(path, tmp_path / "basic")


def test_safe_private_numbers_stay_where_asked_for(tmp_path: Path) -> None:
    dataset = instance(0)
    block = dataset.private_block(0x0019, "SIEMENS MR HEADER", create=True)
    block.add_new(0x0C, "IS", "1000")
    block.add_new(0x0D, "CS", "DIRECTIONAL")
    other = dataset.private_block(0x0019, "GEMS_ACQU_01", create=True)
    other.add_new(0x23, "LO", CANARY)
    path = save(dataset, tmp_path / "in.dcm")
    found = write(path, tmp_path / "out", "retain-safe-private")
    assert [(tag.group, tag.element) for tag in found.keys() if tag.is_private] == [(0x19, 0x10), (0x19, 0x100C)]  # noqa: SIM118
    assert found[0x0019, 0x100C].value == 1000
    assert not [tag for tag in write(path, tmp_path / "basic").keys() if tag.is_private]  # noqa: SIM118


def test_a_patient_without_id_is_known_by_the_study(tmp_path: Path) -> None:
    one = write(save(instance(0, PatientID=None), tmp_path / "0.dcm"), tmp_path / "out")
    two = write(save(instance(1, PatientID=" "), tmp_path / "1.dcm"), tmp_path / "out")
    named = write(save(instance(2), tmp_path / "2.dcm"), tmp_path / "out")
    assert one.PatientID == two.PatientID == one.PatientName != named.PatientID
    assert named.PatientID == KEY("patient", "CANARY-ID")


def test_what_is_a_document_is_not_written(tmp_path: Path) -> None:
    kinds = {"88.11": "DOCUMENT", "88.67": "DOCUMENT", "104.1": "DOCUMENT", "11.1": "DOCUMENT", "9.1.1": "DOCUMENT"}
    for number, (kind, code) in enumerate(kinds.items()):
        dataset = plant(instance(number, SOPClassUID=f"1.2.840.10008.5.1.4.1.1.{kind}"))
        with pytest.raises(UnreadableSource) as caught:
            write(save(dataset, tmp_path / f"{number}.dcm"), tmp_path / "out")
        assert caught.value.code == code
    dataset = instance(9, SOPClassUID="1.2.840.10008.5.1.4.1.1.200.1", PixelData=None)
    with pytest.raises(UnreadableSource, match="NOT_AN_IMAGE"):
        write(save(dataset, tmp_path / "plan.dcm"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_structure_set_comes_through(tmp_path: Path) -> None:
    dataset = instance(0, SOPClassUID="1.2.840.10008.5.1.4.1.1.481.3", PixelData=None, Modality="RTSTRUCT")
    region = Dataset()
    region.ROINumber, region.ROIName, region.ReferencedFrameOfReferenceUID = 1, f"{CANARY} liver", FRAME
    dataset.StructureSetROISequence = [region]
    found = write(save(dataset, tmp_path / "in.dcm"), tmp_path / "out")
    assert found.StructureSetROISequence[0].ROIName == ""
    assert found.StructureSetROISequence[0].ReferencedFrameOfReferenceUID == found.FrameOfReferenceUID
    assert "PixelData" not in found


def test_a_name_in_the_place_of_a_term_is_found_by_the_names_of_the_file(tmp_path: Path) -> None:
    names = {"PatientName": "Quorth^Zyx", "OperatorsName": "Smithers^W", "PatientID": "A77123"}
    terms = {
        "BodyPartExamined": "QUORTH",
        "ConvolutionKernel": "B30 Smithers",
        "ImageType": ["ORIGINAL", "PRIMARY", "A77123"],
    }
    dataset = instance(0, ProtocolName="chest", SequenceName="zyxin", Manufacturer="Smithers", **names, **terms)
    item = Dataset()
    item.SequenceName, item.PatientName = "SE Fraulein", "Fraulein^X"
    dataset.SharedFunctionalGroupsSequence = [item]
    path = save(dataset, tmp_path / "in.dcm")
    found = write(path, tmp_path / "out", "retain-device", "clean-descriptors")
    assert (found.BodyPartExamined, found.ConvolutionKernel, found.ImageType) == ("ANON", "ANONYMIZED", "ANON")
    # Other words stay, and so does a maker who shares the name.
    assert (found.ProtocolName, found.SequenceName, found.Manufacturer) == ("chest", "zyxin", "Smithers")
    assert found.SharedFunctionalGroupsSequence[0].SequenceName == "ANONYMIZED"
    anatomy = instance(1, PatientName="Chest^Phantom", BodyPartExamined="CHEST")
    assert write(save(anatomy, tmp_path / "1.dcm"), tmp_path / "out").BodyPartExamined == "CHEST"


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1"])
def test_numbers_whose_vr_depends_on_others_stay(tmp_path: Path, syntax: str) -> None:
    lut = Dataset()
    lut.LUTDescriptor, lut.LUTData, lut.ModalityLUTType = [2, 0, 16], [1, 2], "HU"
    lut["LUTDescriptor"].VR, lut["LUTData"].VR = "US", "US"
    numbers = {"SmallestImagePixelValue": 3, "PixelPaddingValue": 7, "RescaleSlope": None, "RescaleIntercept": None}
    dataset = instance(0, ModalityLUTSequence=[lut], **numbers)
    for keyword in ("SmallestImagePixelValue", "PixelPaddingValue"):
        dataset[keyword].VR = "US"
    found = write(save(dataset, tmp_path / "in.dcm", syntax), tmp_path / "out")
    assert (found.SmallestImagePixelValue, found.PixelPaddingValue) == (3, 7)
    kept = found.ModalityLUTSequence[0]
    assert (kept.LUTDescriptor, kept.ModalityLUTType) == ([2, 0, 16], "HU")
    assert kept.LUTData in ([1, 2], b"\1\0\2\0")


def test_twice_is_as_good_as_once(tmp_path: Path) -> None:
    first = write(save(instance(0), tmp_path / "in.dcm"), tmp_path / "out")
    (path,) = (tmp_path / "out").rglob("*.dcm")
    again = write(path, tmp_path / "again")
    assert pixels_of(again).tolist() == pixels_of(first).tolist()
    assert sorted(again.keys()) == sorted(first.keys())
    assert dcmread(path).PatientIdentityRemoved == "YES"
