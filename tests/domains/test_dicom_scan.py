"""The scanner of plain headers: never another record than pydicom gives, and faster where it counts."""

from __future__ import annotations

from pathlib import Path

import pytest
from dicom_cases import context

from vitpipe.domains.base import render
from vitpipe.domains.dicom import Dicom
from vitpipe.domains.dicom.files import read_file
from vitpipe.domains.dicom.instance import read_instance
from vitpipe.domains.dicom.quiet import quiet
from vitpipe.errors import UnreadableSource
from vitpipe.records import Rejected

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
