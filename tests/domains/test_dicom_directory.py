"""A DICOMDIR as the source: the files that it names are the data; one that is missing has a code."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pydicom.data
import pytest
from dicom_cases import instance, save, series
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MediaStorageDirectoryStorage, generate_uid

from vitpipe.config import DicomSource, PipelineConfig
from vitpipe.domains.dicom import Dicom
from vitpipe.domains.dicom.directory import read_directory
from vitpipe.domains.dicom.quiet import quiet
from vitpipe.errors import DataError
from vitpipe.ingest import ingest, read_catalog, read_quarantine
from vitpipe.loading import load_config
from vitpipe.starter import write_starter
from vitpipe.workspace import Workspace

BUNDLED = Path(pydicom.data.__file__).parent / "test_files" / "dicomdirtests"


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """The writer warns of names that the standard does not allow; here they are wanted."""
    with quiet():
        yield


def directory(path: Path, names: list[list[str] | str], **changes: object) -> Path:
    """Write a DICOMDIR of image records, below one record of a patient."""
    dataset = FileDataset(str(path), Dataset(), file_meta=FileMetaDataset(), preamble=b"\0" * 128)
    dataset.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    patient = Dataset()
    patient.DirectoryRecordType, patient.PatientID = "PATIENT", "CANARY-ID"
    records = [patient]
    for name in names:
        record = Dataset()
        record.DirectoryRecordType, record.RecordInUseFlag, record.ReferencedFileID = "IMAGE", 0xFFFF, name
        for keyword, value in changes.items():
            setattr(record, keyword, value)
        records.append(record)
    dataset.FileSetID, dataset.DirectoryRecordSequence = "TEST", records
    dataset.save_as(path, enforce_file_format=True)
    return path


def configured(path: Path, workspace: Path, max_reject_share: float = 0.5) -> PipelineConfig:
    source = DicomSource(path=str(path), max_reject_share=max_reject_share)
    return PipelineConfig(name="t", source=source, workspace=str(workspace))


@pytest.mark.parametrize("name", ["DICOMDIR", "DICOMDIR-implicit", "DICOMDIR-bigEnd", "DICOMDIR-nooffset"])
def test_every_referenced_file_of_a_real_one_is_listed(name: str) -> None:
    listed = read_directory(BUNDLED / name)
    assert listed is not None
    assert len(listed) == 31
    assert all(path.is_file() for path in listed)


def test_the_named_files_are_the_data_and_a_missing_one_has_a_code(tmp_path: Path) -> None:
    root = tmp_path / "medium"
    series(root / "SER1", range(4))
    save(instance(9, SeriesInstanceUID="1.2.3.777.5"), root / "SER1" / "unlisted")
    names: list[list[str] | str] = [["SER1", f"{number:02d}"] for number in range(4)]
    path = directory(root / "DICOMDIR", [*names, ["SER1", "GONE"], ["GONE", "05"]])
    workspace = Workspace(tmp_path / "workspace")
    summary = ingest(configured(path, workspace.root), workspace)
    (source,) = read_catalog(workspace)
    assert source.keys["path"] == ("SER1/00", "SER1/01", "SER1/02", "SER1/03")
    assert summary.rejected == {"MISSING_FILE": 2}
    quarantine = read_quarantine(workspace)
    assert quarantine["uri"].tolist() == [str(root / "GONE" / "05"), str(root / "SER1" / "GONE")]
    assert "CANARY" not in str(quarantine.to_dict())
    # The file that was missing comes: it is looked at, and nothing else is.
    shutil.copy(root / "SER1" / "unlisted", root / "SER1" / "GONE")
    assert ingest(configured(path, workspace.root), workspace).rejected == {"MISSING_FILE": 1}
    assert len(read_catalog(workspace)) == 2


def test_names_in_small_letters_are_found_and_records_out_of_use_are_not_listed(tmp_path: Path) -> None:
    paths = series(tmp_path / "data" / "ser", range(2))
    path = directory(tmp_path / "data" / "dicomdir", [["SER", "00"], ["DATA", "SER", "01"], ["SER", "01"]])
    assert read_directory(path) == [paths[0], tmp_path / "data" / "DATA" / "SER" / "01", paths[1]]
    unused = directory(tmp_path / "data" / "unused", [["SER", "00"]], RecordInUseFlag=0)
    assert read_directory(unused) == []


@pytest.mark.parametrize("name", [["..", "SECRET"], ["SER", "..", "..", "X"], ["/ETC", "HOSTS"], "SER/../../X", ["."]])
def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path: Path, name: list[str] | str) -> None:
    path = directory(tmp_path / "DICOMDIR", [["SER", "00"], name])
    with pytest.raises(DataError, match=r"outside of its folder.*point `source.path` at the folder"):
        read_directory(path)


def test_a_damaged_one_is_an_error_in_words_never_a_shorter_list(tmp_path: Path) -> None:
    path = directory(tmp_path / "DICOMDIR", [["SER", "00"], ["SER", "01"]])
    whole = path.read_bytes()
    start = whole.index(b"\xfe\xff\x00\xe0")
    for end in range(start - 12, len(whole), 7):
        path.write_bytes(whole[:end])
        with pytest.raises(DataError, match=r"the records of .* cannot be read"):
            read_directory(path)
    path.write_bytes(whole[: start - 4] + b"\xf0\xff\xff\x7f" + whole[start:])
    with pytest.raises(DataError, match="they are cut"):
        read_directory(path)


def test_data_is_no_directory(tmp_path: Path) -> None:
    assert read_directory(save(instance(1), tmp_path / "data")) is None
    (tmp_path / "text").write_text("no DICOM")
    assert Dicom().listed_in(tmp_path / "text") is None


def test_init_takes_one(tmp_path: Path) -> None:
    out = tmp_path / "pipeline.yaml"
    findings = write_starter(BUNDLED / "DICOMDIR", out, overwrite=False)
    assert "22 dicom sources" in findings.lines[0]
    assert load_config(out).source.path == str(BUNDLED / "DICOMDIR")
