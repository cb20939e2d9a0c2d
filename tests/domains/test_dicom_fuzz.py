"""Absurd headers in a process of their own: each ends as a record or a rejection, in bounded memory and time."""

from __future__ import annotations

import json
import random
import struct
import subprocess
import sys
from pathlib import Path

import pydicom.data
import pytest
from dicom_cases import context, instance, save
from header_cases import EXPLICIT, IMPLICIT, UNDEFINED, damage, element, join, part10
from pydicom.uid import ImplicitVRLittleEndian

from vitpipe.domains.dicom import Dicom
from vitpipe.domains.dicom.quiet import quiet
from vitpipe.records import Rejected

MOST_MIB = 300
"""Above what the imports take; a damaged length states up to 4 GiB."""
MOST_SECONDS = 50

INDEX_ALL = """
import json, sys
from pathlib import Path
from vitpipe.config import DicomSource
from vitpipe.domains.base import ScanContext, render
from vitpipe.domains.dicom import Dicom
from vitpipe.pseudonym import Pseudonymiser
from vitpipe.records import Rejected

def peak_mib():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024

root = Path(sys.argv[1])
context = ScanContext(root, Pseudonymiser(b"key"), DicomSource(path=str(root)))
domain, before, codes = Dicom(), peak_mib(), {}
for path in sorted(root.iterdir()):
    try:
        listed = domain.listed_in(path)
    except Exception as error:
        listed = type(error).__name__
    found = domain.index(path, context)
    if not isinstance(found, Rejected):
        assert json.loads(render(found)) == found
    codes[path.name] = found.code if isinstance(found, Rejected) else "READ"
    assert listed is None or isinstance(listed, list) or listed == "DataError", listed
print(json.dumps({"codes": codes, "extra_mib": peak_mib() - before}))
"""


def index_all(folder: Path) -> tuple[dict[str, str], float]:
    """Index every file of a folder in a child process; gives the code of each and the peak above the imports."""
    command = [sys.executable, "-c", INDEX_ALL, str(folder)]
    child = subprocess.run(command, capture_output=True, text=True, timeout=MOST_SECONDS, check=False)
    assert child.returncode == 0, child.stderr[-2000:]
    assert child.stderr == ""
    result = json.loads(child.stdout)
    return result["codes"], result["extra_mib"]


def with_value(whole: bytes, tag: int, value: bytes) -> bytes:
    """Change the value of an element of an explicit file to another one of the same length."""
    place = whole.index(struct.pack("<HH", tag >> 16, tag & 0xFFFF))
    return whole[: place + 8] + value + whole[place + 8 + len(value) :]


def nested(depth: int, *, implicit: bool) -> bytes:
    """A sequence in a sequence in a sequence, all of undefined length."""
    head = element(0x00081140, b"SQ", b"", implicit=implicit, length=UNDEFINED) + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    return head * depth + (b"\xfe\xff\x0d\xe0\0\0\0\0" + b"\xfe\xff\xdd\xe0\0\0\0\0") * depth


def absurd(folder: Path) -> dict[str, bytes]:
    whole = save(instance(1), folder / "whole").read_bytes()
    start = whole.index(struct.pack("<HH", 0x0008, 0x0008))
    pixels = whole.index(b"\xe0\x7f\x10\x00")
    cases = {
        "rows": with_value(whole, 0x00280010, b"\xff\xff"),
        "cols": with_value(with_value(whole, 0x00280011, b"\xff\xff"), 0x00280010, b"\xff\xff"),
        "bits": with_value(whole, 0x00280100, b"\xff\xff"),
        "samples": with_value(whole, 0x00280002, b"\xff\xff"),
        "pixel length": whole[: pixels + 8] + b"\xfe\xff\xff\x7f" + whole[pixels + 12 :],
        "ends at once": whole[:132],
        "no elements": whole[:start],
    }
    # An element of gigabytes before all others.
    for name, vr in (("bytes", b"OB"), ("unknown", b"UN"), ("text", b"UT"), ("sequence", b"SQ")):
        for length in (0xFFFFFFFE, 0x7FFFFFFF, 0x10000000):
            private = element(0x00090000, vr, b"", length=length)
            cases[f"{name} {length:x}"] = whole[:start] + private + whole[start:]
    for frames in (b"2147483647", b"99999999999999999999", b"-5", b"1e308", b"0 "):
        cases[f"frames {frames.decode()}"] = part10(
            [*plain_elements(), (0x00280008, b"IS", frames)], pixels=b"\0" * 192
        )
        cases[f"groups {frames.decode()}"] = part10(
            [*plain_elements(), (0x00280008, b"IS", frames), (0x52009230, b"SQ", join([b""] * 3))]
        )
    for depth in (20, 1_000, 10_000):
        for syntax in (EXPLICIT, IMPLICIT):
            deep = nested(depth, implicit=syntax == IMPLICIT)
            head = part10([], syntax=syntax, pixels=b"")
            tail = len(element(0x7FE00010, b"OW", b"", implicit=syntax == IMPLICIT))
            cases[f"nested {depth} {syntax.decode()}"] = head[:-tail] + deep + head[-tail:]
    return cases


def plain_elements() -> list[tuple[int, bytes, bytes]]:
    return [
        (0x00080016, b"UI", b"1.2.840.10008.5.1.4.1.1.2\0"),
        (0x00280002, b"US", b"\x01\0"),
        (0x00280010, b"US", b"\x0c\0"),
        (0x00280011, b"US", b"\x08\0"),
        (0x00280100, b"US", b"\x10\0"),
        (0x00280101, b"US", b"\x0c\0"),
    ]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_absurd_headers_end_as_codes_in_bounded_memory(tmp_path: Path) -> None:
    folder = tmp_path / "absurd"
    folder.mkdir()
    for name, whole in absurd(tmp_path).items():
        (folder / name.replace("/", "_")).write_bytes(whole)
    codes, extra_mib = index_all(folder)
    assert len(codes) > 30
    assert extra_mib < MOST_MIB
    assert "NO_PIXELS" not in codes.values()
    assert {codes[name] for name in ("rows", "bytes fffffffe", "ends at once")} == {"TRUNCATED"}
    assert codes["frames 2147483647"] == "UNSUPPORTED"
    assert codes["cols"] == "UNSUPPORTED"
    assert {code for name, code in codes.items() if name.startswith("nested 10000")} <= {
        "MALFORMED_HEADER",
        "TRUNCATED",
    }


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_headers_damaged_and_cut_anywhere_end_as_records_or_codes(tmp_path: Path) -> None:
    bundled = Path(pydicom.data.__file__).parent / "test_files"
    names = (
        "CT_small",
        "emri_small",
        "eCT_Supplemental",
        "examples_palette",
        "mlut_18",
        "image_dfl",
        "dicomdirtests/DICOMDIR",
    )
    paths = [bundled / f"{name}.dcm" for name in names] + [bundled / "dicomdirtests" / "DICOMDIR"]
    paths += [save(instance(1), tmp_path / "implicit", ImplicitVRLittleEndian)]
    wholes = [path.read_bytes() for path in paths if path.is_file()]
    assert len(wholes) >= 5
    folder, chance = tmp_path / "damaged", random.Random(7)
    folder.mkdir()
    for number in range(500):
        whole = chance.choice(wholes)
        head = max(400, whole.find(b"\xe0\x7f\x10\x00") + 24)
        damaged = whole[: chance.randrange(head)] if number % 5 == 0 else damage(whole, head, chance)
        (folder / f"{number:04d}").write_bytes(damaged)
    codes, extra_mib = index_all(folder)
    assert len(codes) == 500
    assert extra_mib < MOST_MIB
    assert len(set(codes.values())) > 4


def test_digits_of_another_character_set_are_no_number(tmp_path: Path) -> None:
    with quiet():
        odd = instance(1, StudyDate="²011²²²²", PatientAge="²²Y", PatientBirthDate="³³³³³³³³", ContentDate="²011²²²²")
        odd.SpecificCharacterSet = "ISO_IR 100"
        found = Dicom().index(save(odd, tmp_path / "file"), context(tmp_path))
    assert not isinstance(found, Rejected)
    assert found["acquired_at"] is None
