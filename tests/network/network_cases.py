"""Small studies with canaries for names, and a pipeline that fetches them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tests.domains.dicom_cases import instance, save
from vitpipe.config import PipelineConfig
from vitpipe.dicomweb import Backoff
from vitpipe.workspace import Workspace

QUICK = Backoff(tries=3, first_seconds=0.01, longest_seconds=0.05)
CANARIES = ("CANARY", "Canary", "1.2.3.777", "19370405", "canary-password", "canary-token")
PATIENTS, SERIES, SLICES = 3, 2, 4


def write_instance(folder: Path, patient: int, series: int, number: int, **values: object) -> Path:
    """Write one slice whose every UID and name is a canary."""
    place = f"1.2.3.777.{patient}"
    uids = {
        "StudyInstanceUID": f"{place}.1",
        "SeriesInstanceUID": f"{place}.2.{series}",
        "FrameOfReferenceUID": f"{place}.3",
        "SOPInstanceUID": f"{place}.4.{series}.{number}",
    }
    dataset = instance(number, **{"PatientID": f"CANARY-{patient}", **uids, **values})
    return save(dataset, folder / f"p{patient}s{series}n{number:02d}")


def write_studies(folder: Path) -> list[Path]:
    """Write three patients of a study each, of two series of four slices each."""
    return [
        write_instance(folder, patient, series, number)
        for patient in range(PATIENTS)
        for series in range(SERIES)
        for number in range(SLICES)
    ]


def pipeline(folder: Path, url: str, **source: object) -> tuple[PipelineConfig, Workspace]:
    workspace = folder / "workspace"
    values = {"name": "t", "source": {"kind": "dicomweb", "url": url, **source}, "workspace": str(workspace)}
    return PipelineConfig.model_validate(values), Workspace(workspace)


def texts_below(folder: Path) -> Iterator[str]:
    """Give every path below a folder, and the content of every file that is no image."""
    for path in sorted(folder.rglob("*")):
        yield str(path.relative_to(folder))
        if path.is_file() and path.suffix != ".dcm":
            yield path.read_bytes().decode("latin-1")
