"""The scanner of plain headers: never another record than pydicom gives, and faster where it counts."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pydicom.data
import pytest
from dicom_cases import context, instance, save
from header_cases import EXPLICIT, IMPLICIT, UNDEFINED, Element, damage, element, even, join, part10
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.charset import convert_encodings, decode_bytes, python_encoding
from pydicom.multival import MultiValue
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32

from vitpipe.domains import dicom
from vitpipe.domains.base import ScanContext, render
from vitpipe.domains.dicom import Dicom, scan
from vitpipe.domains.dicom.files import read_file
from vitpipe.domains.dicom.header import FIXED, MOVING, PIXELS, VR_OF
from vitpipe.domains.dicom.indexing import HeaderIndex
from vitpipe.domains.dicom.instance import Instance, read_instance
from vitpipe.domains.dicom.quiet import quiet
from vitpipe.errors import UnreadableSource
from vitpipe.pseudonym import Pseudonymiser
from vitpipe.records import Json, Rejected

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
CONTEXT = context(Path("/"))


def by_pydicom(path: Path) -> str:
    """The text of the record, or the code and reason of the rejection, as pydicom's way gives it."""
    try:
        with quiet():
            return render(read_instance(read_file(path), CONTEXT.pseudonym).to_json())
    except UnreadableSource as error:
        return f"{error.code}: {error.reason}"


def by_index(domain: Dicom, path: Path) -> str:
    found = domain.index(path, CONTEXT)
    if isinstance(found, Rejected):
        return f"{found.code}: {found.reason}"
    assert render(dict(found)) == render(found)
    return render(found)


@pytest.mark.shared
@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data folder is not beside this checkout")
def test_real_files_give_the_record_that_pydicom_gives() -> None:
    paths = [path for folder in ("dicom_edge", "mr_series3d", "ct_contrast") for path in (DATA / folder).rglob("*")]
    files = sorted(path for path in paths if path.is_file())
    assert len(files) > 200
    domain = Dicom()
    # Twice: what was learned from one file must not leak into the record of another.
    for path in (*files, *reversed(files)):
        assert by_index(domain, path) == by_pydicom(path), path.name


# --------------------------------------------------------------------------------------------------- made up headers


def base(number: int = 1) -> dict[int, Element]:
    """The elements of a plain CT slice, as a writer would order them."""
    slice_ = instance(number)
    found = {}
    for item in slice_:
        if item.tag < 0x7FE00010:
            value = item.value
            if item.VR == "US":
                raw = struct.pack("<H", value)
            else:
                several = value if isinstance(value, MultiValue) else [value]
                raw = even("\\".join(map(str, several)).encode(), b"\0" if item.VR == "UI" else b" ")
            found[int(item.tag)] = (int(item.tag), item.VR.encode(), raw)
    return found


def ordered(elements: dict[int, Element]) -> list[Element]:
    return [elements[tag] for tag in sorted(elements)]


LETTERS = st.text(alphabet="019.-+eE \\\0ACNO^~_=/\x1bäß", max_size=24).map(lambda text: text.encode("latin-1"))
DECIMALS = st.lists(st.floats(-1e6, 1e6) | st.integers(-5, 300), min_size=1, max_size=6).map(
    lambda items: "\\".join(f"{item:.10g}" for item in items).encode()
)
VALUES = {
    "US": st.binary(max_size=4) | st.integers(0, 65535).map(lambda item: struct.pack("<H", item)),
    "FD": st.lists(st.floats(width=64), max_size=3).map(lambda items: struct.pack(f"<{len(items)}d", *items)),
    "DS": DECIMALS | LETTERS,
    "IS": st.integers(-(2**33), 2**33).map(lambda item: str(item).encode()) | DECIMALS | LETTERS,
    "UI": st.from_regex(rb"\A[0-9]{1,3}(\.[0-9]{1,6}){1,5}[ \0]?\Z") | LETTERS,
}
CHARACTER_SETS = (
    b"ISO_IR 100", b"ISO_IR 192", b"GB18030", b"ISO_IR 13", b"\\ISO 2022 IR 87 ", b"ISO 2022 IR 6\\ISO 2022 IR 149",
    b"ISO_IR 144\\ISO 2022 IR 87", b"latin1", b"ISO-IR 100", b"", b"NONSENSE",
)  # fmt: skip


@st.composite
def changes(draw: st.DrawFn) -> tuple[bytes, list[list[tuple[int, bytes | None]]]]:
    """A transfer syntax, and what differs from the plain slice in each of a few files."""
    files = []
    for _ in range(draw(st.integers(1, 4))):
        tags = draw(st.lists(st.sampled_from(sorted(VR_OF)), max_size=4, unique=True))
        files.append([(tag, draw(st.none() | VALUES.get(VR_OF[tag], LETTERS).map(even))) for tag in tags])
        if draw(st.integers(0, 3)) == 0:
            files[-1].append((0x00080005, draw(st.sampled_from(CHARACTER_SETS)).ljust(10)))
    return draw(st.sampled_from((EXPLICIT, IMPLICIT))), files


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes())
def test_any_value_of_any_element_gives_the_record_that_pydicom_gives(
    tmp_path: Path, case: tuple[bytes, list[list[tuple[int, bytes | None]]]]
) -> None:
    syntax, files = case
    domain, path = Dicom(), tmp_path / "file.dcm"
    for number, changed in enumerate([[], *files, []]):
        elements = base(number)
        for tag, value in changed:
            if value is None:
                elements.pop(tag, None)
            else:
                elements[tag] = (tag, VR_OF[tag].encode() if tag in VR_OF else b"CS", value)
        path.write_bytes(part10(ordered(elements), syntax=syntax))
        assert by_index(domain, path) == by_pydicom(path)


REFERENCE = element(0x00081150, b"UI", b"1.2.840.10008.5.1.4.1.1.2\0") + element(0x00081155, b"UI", b"1.2.3.4\0")
LONGER = element(0x00081150, b"UI", b"1.2.840.10008.5.1.4.1.1.2\0") + element(0x00081155, b"UI", b"1.2.3.456789")
NAMED = element(0x00080005, b"CS", b"ISO_IR 192") + element(0x00104000, b"LT", "Grüße".encode())
ITEM_OF_LENGTH = b"\xfe\xff\x00\xe0" + struct.pack("<I", len(REFERENCE)) + REFERENCE
SEQUENCES = (
    (b"", None),
    (ITEM_OF_LENGTH, None),
    (ITEM_OF_LENGTH * 3, None),
    (join([]), UNDEFINED),
    (join([REFERENCE]), UNDEFINED),
    (join([LONGER, REFERENCE]), UNDEFINED),
    (join([REFERENCE, LONGER]), UNDEFINED),
    (join([b""]), UNDEFINED),
    (join([NAMED]), UNDEFINED),
    (ITEM_OF_LENGTH + join([]), UNDEFINED),
    (join([element(0x00081140, b"SQ", join([REFERENCE]), length=UNDEFINED) + NAMED]), UNDEFINED),
    # None of these follow the standard.
    (join([REFERENCE])[:-8], UNDEFINED),
    (ITEM_OF_LENGTH, len(ITEM_OF_LENGTH) - 4),
    (join([REFERENCE[:-3]]), UNDEFINED),
    (REFERENCE, UNDEFINED),
    (join([REFERENCE.replace(b"UI", b"\0\0")]), UNDEFINED),
)


def test_sequences_of_every_kind_are_skipped_or_left_to_pydicom(tmp_path: Path) -> None:
    domain, path = Dicom(), tmp_path / "file.dcm"
    for tag in (0x00081140, 0x00281999, 0x00283000, 0x00091010):
        for number, (value, length) in enumerate((*SEQUENCES, *reversed(SEQUENCES))):
            before = {key: item for key, item in base(number).items() if key < tag}
            whole = part10(ordered(before), pixels=b"")[: -len(element(0x7FE00010, b"OW", b""))]
            after = [item for item in ordered(base(number)) if item[0] > tag]
            tail = b"".join(element(*item) for item in after) + element(0x7FE00010, b"OW", b"\0" * 192)
            path.write_bytes(whole + element(tag, b"SQ", value, length=length) + tail)
            assert by_index(domain, path) == by_pydicom(path), (hex(tag), number)


def test_damaged_headers_give_the_record_or_code_that_pydicom_gives(tmp_path: Path) -> None:
    bundled = Path(pydicom.data.__file__).parent / "test_files"
    plain = [save(instance(number), tmp_path / "plain" / str(number)) for number in range(3)]
    plain += [
        save(instance(number), tmp_path / "implicit" / str(number), ImplicitVRLittleEndian) for number in range(3)
    ]
    names = ("CT_small", "MR_small", "MR_small_implicit", "JPEG2000", "examples_rgb_color", "rtdose", "SC_rgb_rle")
    wholes = [path.read_bytes() for path in (*plain, *(bundled / f"{name}.dcm" for name in names))]
    chance, domain, path = random.Random(20), Dicom(), tmp_path / "file.dcm"
    for _ in range(60):
        whole = chance.choice(wholes)
        # Seen undamaged first: what is kept of it must not hide the damage.
        path.write_bytes(whole)
        assert by_index(domain, path) == by_pydicom(path)
        for _ in range(20):
            damaged = damage(whole, max(700, whole.find(b"\xe0\x7f\x10\x00")), chance)
            path.write_bytes(damaged)
            assert by_index(domain, path) == by_pydicom(path), damaged[:2000]


# ----------------------------------------------------------------------------------------------- what goes which way


@pytest.fixture
def left_to_pydicom(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    asked: list[Path] = []
    monkeypatch.setattr(dicom, "read_file", lambda path: asked.append(path) or read_file(path))
    return asked


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_a_plain_series_never_reaches_pydicom(tmp_path: Path, left_to_pydicom: list[Path], syntax: str) -> None:
    paths = [
        save(
            instance(number, SOPInstanceUID=f"1.2.{10**number}", InstanceNumber=10**number),
            tmp_path / str(number),
            syntax,
        )
        for number in range(12)
    ]
    domain = Dicom()
    texts = {by_index(domain, path) for path in paths}
    assert left_to_pydicom == []
    assert len(texts) == 12


@pytest.mark.shared
@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data folder is not beside this checkout")
def test_real_series_never_reach_pydicom(left_to_pydicom: list[Path]) -> None:
    # An element that a record begins to read must be named in `header`, or every file that has it takes the slow way.
    files = [path for folder in ("mr_series3d", "ct_contrast") for path in (DATA / folder).rglob("*") if path.is_file()]
    plain = [path for path in files if path.read_bytes()[128:132] == b"DICM"]
    domain = Dicom()
    for path in plain:
        domain.index(path, CONTEXT)
    assert len(plain) == 78
    assert left_to_pydicom == []


def test_records_that_share_parts_are_read_back_alike(tmp_path: Path) -> None:
    records = [
        read_instance(read_file(save(instance(number), tmp_path / str(number))), CONTEXT.pseudonym)
        for number in range(3)
    ]
    values = [record.to_json() for record in records]
    for value in values[1:]:
        value["pixels"], value["attributes"] = values[0]["pixels"], values[0]["attributes"]
    known: dict[int, tuple[Json, object]] = {}
    read = [Instance.from_json(value, known) for value in values]
    assert read == records
    assert read[0].pixels is read[2].pixels
    assert read[0].attributes == records[0].attributes


def test_a_header_longer_than_the_first_read_is_plain(tmp_path: Path, left_to_pydicom: list[Path]) -> None:
    domain = Dicom()
    for number, size in enumerate((20_000, 200_000, 20_000, 9_000)):
        elements = base(number) | {0x00091001: (0x00091001, b"OB", bytes(size))}
        (tmp_path / "file").write_bytes(part10(ordered(elements)))
        assert by_index(domain, tmp_path / "file") == by_pydicom(tmp_path / "file")
    assert left_to_pydicom == []
    (tmp_path / "file").write_bytes(part10(ordered(base() | {0x00091001: (0x00091001, b"OB", bytes(2 << 20))})))
    assert by_index(domain, tmp_path / "file") == by_pydicom(tmp_path / "file")
    assert len(left_to_pydicom) == 1


def test_what_is_kept_is_bounded(tmp_path: Path) -> None:
    headers = HeaderIndex(CONTEXT.pseudonym)
    for number in range(200):
        elements = base(number) | {0x00090010 + number: (0x00090010 + number, b"LO", b"x")}
        elements[0x00281052] = (0x00281052, b"DS", even(str(number).encode()))
        (tmp_path / "file").write_bytes(part10(ordered(elements)))
        headers.index(tmp_path / "file")
    assert len(headers._layouts) <= 64
    for number in range(300):
        elements = base(0) | {0x00281052: (0x00281052, b"DS", f"{number:04d}".encode())}
        elements[0x00100020] = (0x00100020, b"LO", f"{number:04d}".encode())
        (tmp_path / "file").write_bytes(part10(ordered(elements)))
        headers.index(tmp_path / "file")
    kept = [(len(layout.formats), len(layout.shared)) for layout in headers._layouts.values()]
    assert max(map(max, kept)) <= 128


def test_another_key_gives_other_pseudonyms(tmp_path: Path) -> None:
    domain, path = Dicom(), save(instance(1), tmp_path / "file")
    first = by_index(domain, path)
    other = ScanContext(tmp_path, Pseudonymiser(b"another key"), CONTEXT.recipe)
    found = domain.index(path, other)
    assert not isinstance(found, Rejected)
    for name in ("patient", "study_uid", "series_uid", "instance_uid", "frame_of_reference"):
        assert str(found[name]) not in first
    assert by_index(domain, path) == first


def test_the_views_hold_all_that_the_parts_read_and_nothing_twice() -> None:
    assert not set(MOVING) & {*FIXED, *PIXELS}
    assert {vr for vr, size in scan._VR_LENGTHS.items() if size == 4} == {
        str(vr).encode() for vr in EXPLICIT_VR_LENGTH_32
    }
    ascii_text = bytes(range(0x20, 0x7F))
    for name in python_encoding:
        assert decode_bytes(ascii_text, convert_encodings([name]), set()) == ascii_text.decode("ascii"), name
