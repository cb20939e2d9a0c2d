"""What `init` proposes and `check` says where labels are drawn on DICOM images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.domains.dicom_cases import save
from tests.labels.dicom_label_cases import make_series, random_masks, rtstruct, write_seg
from vitpipe.check import check_pipeline
from vitpipe.loading import load_config
from vitpipe.starter import write_starter


@pytest.mark.parametrize("kind", ["dicom_seg", "dicom_rtstruct"])
def test_init_proposes_the_objects_drawn_on_the_images(tmp_path: Path, kind: str) -> None:
    headers, _ = make_series(tmp_path / "data" / "ct")
    if kind == "dicom_seg":
        pytest.importorskip("highdicom", reason="needs the extra dicom-results")
        write_seg(tmp_path / "data" / "drawn" / "a.dcm", headers, random_masks(2).astype(np.uint8))
    else:
        square = np.array([[10.0, 10, 0], [20, 10, 0], [20, 20, 0], [10, 20, 0]])
        save(rtstruct({"liver": [square]}), tmp_path / "data" / "drawn" / "a.dcm")
    out = tmp_path / "pipeline.yaml"
    findings = write_starter(tmp_path / "data", out, overwrite=False)
    assert yaml.safe_load(out.read_text())["labels"] == {"kind": kind, "path": "data/drawn/a.dcm"}
    assert any("by their position in the patient" in line for line in findings.lines)
    load_config(out)


def test_check_counts_each_class_that_is_drawn_not_their_combinations(tmp_path: Path) -> None:
    pytest.importorskip("highdicom", reason="needs the extra dicom-results")
    headers, _ = make_series(tmp_path / "data" / "ct")
    masks = np.zeros((len(headers), *random_masks(1).shape[1:3], 2), np.uint8)
    masks[:, :4, :, 0] = 1
    masks[0, 6:, :, 1] = 1
    write_seg(tmp_path / "data" / "drawn" / "a.dcm", headers, masks)
    out = tmp_path / "pipeline.yaml"
    write_starter(tmp_path / "data", out, overwrite=False)
    values = check_pipeline(load_config(out)).values
    assert values["classes"] == {"part 1": len(headers), "part 2": 1}


def test_check_says_that_tiles_are_deeper_than_every_stack(tmp_path: Path) -> None:
    headers, _ = make_series(tmp_path / "ct")
    (tmp_path / "pipeline.yaml").write_text(
        yaml.safe_dump(
            {
                "name": "deep",
                "source": {"kind": "dicom", "path": "ct"},
                "tiles": {"size": 8, "depth": len(headers) + 1},
            }
        )
    )
    lines = check_pipeline(load_config(tmp_path)).lines
    expected = f"WARNING: tiles.depth {len(headers) + 1} is deeper than every stack (the deepest has {len(headers)}"
    assert [line for line in lines if line.startswith(expected)]
