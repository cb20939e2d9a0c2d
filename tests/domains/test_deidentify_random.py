"""Random data sets and damaged files: nothing planted comes out, and nothing but our own error is raised."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from deidentify_cases import CANARY, KEY, marks, save_poisoned
from dicom_cases import instance, save
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import Dataset, dcmread
from pydicom.datadict import DicomDictionary
from pydicom.dataelem import DataElement
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from vitpipe.domains.dicom.deidentify.judge import StatedJudge
from vitpipe.domains.dicom.deidentify.options import Option
from vitpipe.domains.dicom.deidentify.single import Deidentifier
from vitpipe.errors import UnreadableSource

_SHOWN = {
    **dict.fromkeys(("LO", "SH", "ST", "LT", "UT", "UC", "PN"), (CANARY, f"{CANARY}^Mrs", f"chest of {CANARY}", "")),
    "UR": (f"http://{CANARY.lower()}.example",),
    "AE": ("ZYXQUORTH",),
    "DA": ("19370405", "19370406"),
    "DT": ("19370405101112", "19370405"),
    "TM": ("101112",),
    "UI": ("1.2.3.777.1", "1.2.3.777.2", "1.2.840.10008.1.2"),
    "CS": ("ORIGINAL", ""),
    "AS": ("095Y",),
    "OB": (CANARY.encode() + b"\0",),
}
# What a machine writes is kept (tables/kept.txt); pixels and their description are the test's own.
_OWN = {"Manufacturer", "ManufacturerModelName", "SpecificCharacterSet"}


def _tags(vr: str) -> list[int]:
    from vitpipe.domains.dicom.deidentify.profile import load_words

    kept = load_words("kept.txt") | _OWN
    return [
        tag
        for tag, (found, _, _, _, keyword) in DicomDictionary.items()
        if found == vr and tag >> 16 not in (0x0000, 0x0002, 0x0004, 0x0028, 0x7FE0) and keyword not in kept
    ]


_TAGS = {vr: _tags(vr) for vr in (*_SHOWN, "SQ")}
_TAKEN = {int(element.tag) for element in instance(0)}


@st.composite
def elements(draw: st.DrawFn) -> DataElement:
    vr = draw(st.sampled_from(sorted(_SHOWN)))
    tag = draw(
        st.one_of(st.sampled_from(_TAGS[vr]), st.integers(0x0009, 0x6FFF).map(lambda group: group << 16 | 0x1077))
    )
    return DataElement(Tag(tag), vr, draw(st.sampled_from(_SHOWN[vr])))


@st.composite
def datasets(draw: st.DrawFn, depth: int = 3) -> Dataset:
    dataset = Dataset()
    for element in draw(st.lists(elements(), max_size=6)):
        if int(element.tag) not in _TAKEN:
            dataset.add(element)
    if depth:
        for tag in draw(st.lists(st.sampled_from(_TAGS["SQ"]), max_size=2)):
            items = draw(st.lists(datasets(depth - 1), max_size=2))
            dataset.add(DataElement(Tag(tag), "SQ", items))
    return dataset


_OPTIONS = [Option.RETAIN_DATES, Option.RETAIN_CHARACTERISTICS, Option.CLEAN_DESCRIPTORS, Option.RETAIN_SAFE_PRIVATE]


@given(
    datasets(), st.sets(st.sampled_from(_OPTIONS)), st.sampled_from([ExplicitVRLittleEndian, ImplicitVRLittleEndian])
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_nothing_planted_in_a_random_data_set_comes_out(dataset: Dataset, options: set[Option], syntax: str) -> None:
    original = instance(0, PatientName=CANARY, PatientID="77123456", StudyDate="19370405")
    dataset.update(original)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = save(dataset, folder / "in.dcm", syntax)
        written = Deidentifier(frozenset(options), KEY, StatedJudge()).write(path, folder / "out")
        data = (folder / "out" / written.output).read_bytes()
        assert marks(data) == []
        found = dcmread(folder / "out" / written.output)
        assert found.PixelData == original.PixelData
        uids = {element.value for element in found.iterall() if element.VR == "UI" and isinstance(element.value, str)}
        assert all(uid.startswith(("2.25.", "1.2.840.10008.")) for uid in uids if uid)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_damaged_file_gives_our_error_or_a_clean_file(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = save_poisoned(folder / "in.dcm")
        whole = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 8))):
            whole[data.draw(st.integers(132, len(whole) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(whole[: data.draw(st.integers(200, len(whole)))])
        result = _write(path, folder / "out")
        assert isinstance(result, str | bytes)
        if isinstance(result, str):
            assert CANARY not in result


def _write(path: Path, target: Path) -> Any:
    try:
        written = Deidentifier(frozenset(), KEY, StatedJudge()).write(path, target)
    except UnreadableSource as error:
        return f"{error.code} {error.reason}"
    return (target / written.output).read_bytes()


def test_sequences_nested_deeper_than_python_goes_end_in_our_error_or_go(tmp_path: Path) -> None:
    path = save(instance(0, PatientComments=CANARY), tmp_path / "in.dcm")
    whole = path.read_bytes()
    # Items of undefined length within each other, in ViewCodeSequence (0054,0220), before the pixels.
    start = whole.index(b"\xe0\x7f\x10\x00OW")
    opening = b"\x54\x00\x20\x02SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    closing = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    for depth in (40, 5000):
        path.write_bytes(whole[:start] + opening * depth + closing * depth + whole[start:])
        result = _write(path, tmp_path / "out")
        assert isinstance(result, bytes) == (depth == 40)
        assert CANARY.encode() not in (result if isinstance(result, bytes) else result.encode())
