"""No canary comes out: not in a value of any VR, any sequence, private, overlay, meta group, file name or message."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from deidentify_cases import CANARY, KEY, MARKS, marks, plant, save_poisoned, write
from dicom_cases import instance, save
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

OPTIONS = (
    (),
    ("retain-dates",),
    ("clean-descriptors",),
    ("retain-characteristics", "retain-safe-private"),
    ("retain-dates", "clean-descriptors", "retain-characteristics", "retain-safe-private"),
)
SYNTAXES = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian)


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("options", OPTIONS, ids=lambda item: "+".join(item) or "basic")
def test_no_canary_is_left(tmp_path: Path, options: tuple[str, ...], syntax: str) -> None:
    path = save_poisoned(tmp_path / "in.dcm", syntax=syntax)
    assert set(marks(path.read_bytes())) == set(MARKS)
    found = write(path, tmp_path / "out", *options)
    (output,) = (tmp_path / "out").rglob("*.dcm")
    assert marks(output.read_bytes()) == []
    assert marks(str(output.relative_to(tmp_path)).encode()) == []
    assert found.file_meta.TransferSyntaxUID == syntax
    assert found.pixel_array.shape == (12, 8)


@pytest.mark.parametrize("option", ["retain-device", "retain-institution"])
def test_an_option_keeps_no_name_of_the_file(tmp_path: Path, option: str) -> None:
    found = write(save_poisoned(tmp_path / "in.dcm"), tmp_path / "out", option)
    (output,) = (tmp_path / "out").rglob("*.dcm")
    assert marks(output.read_bytes()) == []
    assert {"retain-device": "StationName", "retain-institution": "InstitutionAddress"}[option] in found


def test_no_canary_leaves_the_command(tmp_path: Path) -> None:
    source, target = tmp_path / "in" / f"{CANARY}", tmp_path / "out"
    for number in range(3):
        save_poisoned(source / f"{CANARY}-{number}.dcm", number)
    # What is rejected: burned-in text, a document, a broken file, a file without UIDs, a duplicate, a conflict, junk.
    save_poisoned(source / "burned.dcm", 10, BurnedInAnnotation="YES")
    save_poisoned(source / "report.dcm", 11, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11")
    save_poisoned(source / "private.dcm", 12, SOPClassUID="1.2.3.777.8")
    save_poisoned(source / "no_uid.dcm", 13, StudyInstanceUID=None)
    save_poisoned(source / "again.dcm", 1, KVP=80)
    cut = save_poisoned(source / "cut.dcm", 14)
    cut.write_bytes(cut.read_bytes()[:-40])
    (source / f"{CANARY}.txt").write_text(f"{CANARY} 77123456")
    (source / "empty").touch()
    command = [sys.executable, "-m", "flows.cli", "deidentify", str(tmp_path / "in"), str(target), "--json"]
    run = subprocess.run(
        command, capture_output=True, check=True, env=os.environ | {"VITPIPE_KEY": "secret", "PYTHONWARNINGS": "always"}
    )
    summary = json.loads(run.stdout)
    assert summary["done"] == 3
    assert summary["rejected"] == {
        "BURNED_IN_ANNOTATION": 1,
        "CONFLICTING_SOP": 1,
        "DOCUMENT": 1,
        "NOT_DICOM": 1,
        "NO_UID": 1,
        "PRIVATE_SOP_CLASS": 1,
        "TRUNCATED": 1,
        "ZERO_BYTES": 1,
    }
    files = [path for path in target.rglob("*") if path.is_file()]
    assert len(files) == 3 + 4
    for path in files:
        assert marks(path.read_bytes()) == [], path
        assert marks(str(path.relative_to(target)).encode()) == []
        assert b"secret" not in path.read_bytes()
    # The folder in the message is the caller's own.
    assert marks(run.stdout + run.stderr) == []


def test_a_canary_in_a_wide_character_set_goes_too(tmp_path: Path) -> None:
    dataset = plant(instance(0, SpecificCharacterSet="ISO_IR 192"))
    dataset.PatientComments, dataset.PatientName = "Ωμέγα-Zyxquorth", "Ωμέγα^Zyxquorth"
    found = write(save(dataset, tmp_path / "in.dcm"), tmp_path / "out")
    (output,) = (tmp_path / "out").rglob("*.dcm")
    assert "Ωμέγα".encode() not in output.read_bytes()
    assert found.PatientName == KEY("patient", "77123456")
