"""A real Orthanc files our results beside the images that they speak of."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.infer.result_cases import make_predictor, predict_and_write, write_series
from tests.network.orthanc import Orthanc, needs_orthanc

pytest.importorskip("highdicom", reason="needs the extra dicom-results")


@needs_orthanc
def test_orthanc_stores_results_in_the_study_of_their_images(orthanc: Orthanc, tmp_path: Path) -> None:
    data = write_series(tmp_path / "ct")
    predictor = make_predictor(tmp_path / "model")
    orthanc.add(*sorted(data.iterdir()))
    for kind in ("sr", "seg"):
        orthanc.add(*predict_and_write(predictor, data, tmp_path, kind).files)  # type: ignore[arg-type]
    (patient,) = orthanc.ask("/patients")
    (study,) = orthanc.ask("/studies")
    assert orthanc.ask(f"/studies/{study}/patient")["ID"] == patient
    found = {
        item["MainDicomTags"]["Modality"]: len(item["Instances"]) for item in orthanc.ask(f"/studies/{study}/series")
    }
    assert found == {"CT": 3, "SR": 1, "SEG": 1}
    # The same objects again: nothing is added.
    for kind in ("sr", "seg"):
        orthanc.add(*predict_and_write(predictor, data, tmp_path / "again", kind).files)  # type: ignore[arg-type]
    assert len(orthanc.ask("/instances")) == 5
