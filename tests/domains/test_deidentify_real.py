"""Real files: dciodvfy finds no new error, the pixels and what the reader makes of them are the same, identities go."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from deidentify_cases import KEY, marks, write
from dicom_cases import scan
from pydicom import Dataset, dcmread
from pydicom.uid import PYDICOM_IMPLEMENTATION_UID

from tests.conftest import SHARED
from vitpipe.domains.dicom.deidentify.judge import StatedJudge
from vitpipe.domains.dicom.deidentify.options import Option
from vitpipe.domains.dicom.deidentify.single import Deidentifier
from vitpipe.domains.dicom.deidentify.tree import Recipe, deidentify_tree
from vitpipe.domains.dicom.pixels import stored_values
from vitpipe.errors import UnreadableSource

OPTIONS = (
    frozenset[Option](),
    frozenset({Option.RETAIN_DATES, Option.RETAIN_DEVICE, Option.RETAIN_CHARACTERISTICS, Option.CLEAN_DESCRIPTORS}),
)
# What a person or a machine may have written of a person; every one is checked to be gone or replaced.
_IDENTIFYING = {"PN", "DA", "DT", "UI"}


def edge_files() -> list[Path]:
    return sorted((SHARED / "dicom_edge").rglob("*.dcm")) if SHARED.is_dir() else []


def errors(path: Path) -> set[str]:
    """Give dciodvfy's errors, UIDs aside: they differ, but the sentence is the same."""
    run = subprocess.run(["dciodvfy", path], capture_output=True, check=False)
    lines = (run.stdout + run.stderr).decode("latin-1").splitlines()
    return {re.sub(r"<[\d.]{10,}>", "<uid>", line) for line in lines if line.startswith("Error")}


@pytest.mark.shared
@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="needs the program dciodvfy (Debian package dicom3tools)")
@pytest.mark.parametrize("options", OPTIONS, ids=["basic", "four options"])
def test_a_validator_finds_no_new_error(tmp_path: Path, options: frozenset[Option]) -> None:
    deidentifier, done = Deidentifier(options, KEY, StatedJudge()), 0
    for path in edge_files():
        try:
            written = deidentifier.write(path, tmp_path)
        except UnreadableSource:
            continue
        done += 1
        assert errors(tmp_path / written.output) - errors(path) == set(), path.name
    assert done > 80


@pytest.mark.shared
def test_real_identities_go_and_pixels_stay(tmp_path: Path) -> None:
    deidentifier, done = Deidentifier(frozenset(), KEY, StatedJudge()), 0
    changed = 0
    for path in edge_files():
        try:
            written = deidentifier.write(path, tmp_path)
        except UnreadableSource:
            continue
        done += 1
        data = (tmp_path / written.output).read_bytes()
        before, after = dcmread(path, force=True), dcmread(tmp_path / written.output)
        # A writer pads a value of odd length. Comments within a stream are blanked, and what lies behind the last frame
        # goes: what decodes is the same, to the bit.
        if not after.get("PixelData", b"").startswith(before.get("PixelData", b"")):
            np.testing.assert_array_equal(stored_values(tmp_path / written.output), stored_values(path), path.name)
            changed += 1
        for text in identifying(before):
            assert text.encode("latin-1", "ignore") not in data, (path.name, text)
    assert done > 80
    assert 0 < changed < done / 2


def identifying(dataset: Dataset) -> set[str]:
    """Give the values of a file that must not be found in its result, those long enough to tell."""
    found = set()
    for element in dataset.iterall():
        if element.VR in _IDENTIFYING or element.keyword in ("PatientID", "AccessionNumber", "InstitutionName"):
            values = element.value if element.VM > 1 else [element.value]
            found |= {str(value).strip(" \0") for value in values}
    # A maker's name may stand at the institution's place; the writer's own UID begins like some made-up ones.
    kept = f"{dataset.get('Manufacturer')} {dataset.get('ManufacturerModelName')} {PYDICOM_IMPLEMENTATION_UID}"
    known = ("1.2.840.10008.", "19000101")
    return {text for text in found if len(text) > 6 and not text.startswith(known) and text not in kept}


@pytest.mark.shared
def test_a_real_series_is_the_same_to_the_reader(tmp_path: Path) -> None:
    source = SHARED / "mr_series3d" / "dicom"
    summary = deidentify_tree(source, tmp_path / "out", Recipe(frozenset(), KEY, StatedJudge(), "none"))
    files = [path for path in source.rglob("*") if path.is_file()]
    assert (summary.done, summary.rejected) == (len(files), {})
    before, after = scan(source)[0], scan(tmp_path / "out")[0]
    assert len(before) == len(after)
    by_size = [sorted(sources, key=lambda item: item.bytes) for sources in (before, after)]
    for one, two in zip(*by_size, strict=True):
        assert two.grid == one.grid
        assert (two.channels, two.units, two.dtype) == (one.channels, one.units, one.dtype)
        assert len(two.files) == len(one.files)
    assert not [path for path in (tmp_path / "out").rglob("*.dcm") if marks(path.read_bytes())]


def test_the_sample_comes_through(tmp_path: Path, samples: Path) -> None:
    files = sorted((samples / "ct-contrast" / "dicom").glob("*.dcm"))[:5]
    for path in files:
        before, after = dcmread(path), write(path, tmp_path / "out")
        assert after.PixelData == before.PixelData
        assert after.PatientID == KEY("patient", before.PatientID)
        for keyword in ("Rows", "PixelSpacing", "ImagePositionPatient", "RescaleSlope", "Modality"):
            assert after.get(keyword) == before.get(keyword)
