"""From images and segmentations to a model, to a report in the study, and from the report back to the model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pydicom
import pytest
import yaml

from tests.empty_stores import give_stores
from tests.end_to_end.pipeline_cases import CHAIN, make_series, run_script, vitpipe
from tests.labels.dicom_label_cases import write_seg

pytest.importorskip("highdicom", reason="needs the extra dicom-results")

SCRIPT = f"""{CHAIN}
from vitpipe import results
done = chain(sys.argv[1])
folder = next(Path(done["source"]).iterdir())
summary = results.predict(done["model_uri"], str(folder), sys.argv[2], done["workspace"], dicom="sr")
print(json.dumps(done | {{"notes": list(summary.notes)}}))
"""


@pytest.mark.slow
def test_segmentations_train_a_model_that_signs_its_reports(tmp_path: Path, empty_stores: Path) -> None:
    home = tmp_path / "home"
    pipeline = make_series(tmp_path, 24)
    values = yaml.safe_load(pipeline.read_text())
    data = tmp_path / values["source"]["path"]
    by_series: dict[str, list[pydicom.Dataset]] = {}
    for path in sorted(item for item in data.rglob("*") if item.is_file()):
        header = pydicom.dcmread(path, stop_before_pixels=True)
        for keyword in ("StudyTime", "StudyID", "StudyDate", "AccessionNumber", "PatientBirthDate"):
            setattr(header, keyword, "")
        header.SliceThickness = 2.5
        by_series.setdefault(header.SeriesInstanceUID, []).append(header)
    for series_uid, headers in by_series.items():
        headers.sort(key=lambda header: header.ImagePositionPatient[2])
        number = int(series_uid.rpartition(".")[2])
        masks = np.zeros((len(headers), 32, 32, 2), np.uint8)
        masks[..., number % 2] = 1
        write_seg(tmp_path / "segs" / f"{number}.dcm", headers, masks)
    values["labels"] = {"kind": "dicom_seg", "path": "segs", "background": None}
    pipeline.write_text(yaml.safe_dump(values))
    give_stores(empty_stores, tmp_path / "workspace")
    done = run_script(SCRIPT, str(pipeline), str(tmp_path / "out"), home=home)
    assert done["model_uri"] == "models:/series/1"
    assert done["notes"][-1] == "6 DICOM SR object(s) written"
    report = sorted((tmp_path / "out" / "dicom_sr").iterdir())[0]
    workspace = str(tmp_path / "workspace")
    found = json.loads(vitpipe("whence", str(report), "--workspace", workspace, "--json", home=home).stdout)
    assert found["run_id"] == done["run_id"]
    assert f"models:/{found['model']}/{found['version']}" == done["model_uri"]
    assert found["registry"] == f"holds this very model as {found['model']}/{found['version']}"
    assert "anary" not in json.dumps([found, done])
