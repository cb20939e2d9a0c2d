"""From series and segmentations to a model of their pixels, and to a segmentation of a new series."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
from numpy.typing import NDArray

from tests.domains.dicom_cases import instance, save, scan
from tests.empty_stores import give_stores
from tests.end_to_end.pipeline_cases import CHAIN, run_script, write_pipeline
from tests.labels.dicom_label_cases import codes, drawn, read_seg, write_seg

pytest.importorskip("highdicom", reason="needs the extra dicom-results")

SIZE, FRAMES = 24, 6
SCRIPT = f"""{CHAIN}
from vitpipe import results
done = chain(sys.argv[1])
summary = results.predict(done["model_uri"], sys.argv[2], sys.argv[3], done["workspace"], dicom="seg")
print(json.dumps({{"done": summary.done, "notes": list(summary.notes), "rejected": dict(summary.rejected)}}))
"""


def write_patient(folder: Path, number: int) -> tuple[list[pydicom.Dataset], NDArray[np.bool_]]:
    """Write a series with a bright ball in it; gives its headers by position, and the ball (frames, rows, columns)."""
    rng = np.random.default_rng(number)
    # In pixels of one size: frames lie 2.5 mm apart, rows 0.5, columns 0.8 mm.
    centre, radius = rng.uniform(0.3, 0.7, 3) * (FRAMES, SIZE, SIZE), rng.uniform(0.2, 0.3)
    places = np.stack(np.meshgrid(np.arange(FRAMES), np.arange(SIZE), np.arange(SIZE), indexing="ij"), -1)
    ball = (((places + 0.5 - centre) / (FRAMES, SIZE, SIZE)) ** 2).sum(-1) < radius**2
    stored = (rng.normal(900, 40, ball.shape) + 250 * ball).clip(0, 4095).astype("<u2")
    headers = []
    for frame in range(FRAMES):
        header = instance(
            frame, StudyInstanceUID=f"1.2.3.778.{number}.1", SeriesInstanceUID=f"1.2.3.778.{number}.2",
            SOPInstanceUID=f"1.2.3.778.{number}.4.{frame}", FrameOfReferenceUID=f"1.2.3.778.{number}.3",
            PatientID=f"canary-{number}", Rows=SIZE, Columns=SIZE, PixelData=stored[frame].tobytes(),
        )  # fmt: skip
        for keyword in ("StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"):
            setattr(header, keyword, "")
        save(header, folder / f"{number}" / f"{(frame * 5) % FRAMES}")
        headers.append(header)
    return headers, ball


@pytest.mark.slow
def test_a_model_of_volumes_draws_what_segmentations_taught_it(tmp_path: Path, empty_stores: Path) -> None:
    for number in range(20):
        headers, ball = write_patient(tmp_path / "dicom", number)
        write_seg(tmp_path / "segs" / f"{number}.dcm", headers, ball[..., None].astype(np.uint8))
    pipeline = write_pipeline(
        tmp_path,
        {
            "name": "balls",
            "source": {"kind": "dicom", "path": "dicom"},
            "labels": {"kind": "dicom_seg", "path": "segs", "per": "pixel", "segments": {"part 1": "ball"}},
            # Turned against the files, so that the way back is taken too.
            "tiles": {"size": 16, "depth": 4, "orientation": "RAS", "edge": "shift"},
            "model": {"name": "unet", "weights": {"source": "random"}, "decoder": "unet", "embed_dim": 8},
            "train": {"epochs": 12, "batch_size": 8, "learning_rate": 0.01, "ema_decay": None, "baseline": "none"},
        },
    )
    _, ball = write_patient(tmp_path / "new", 99)
    out = tmp_path / "out"
    give_stores(empty_stores, tmp_path / "workspace")
    done = run_script(SCRIPT, str(pipeline), str(tmp_path / "new"), str(out), home=tmp_path / "home")
    assert (done["done"], done["rejected"]) == (1, {})
    (source,) = scan(tmp_path / "new")[0]
    labels = read_seg(out / "dicom_seg", [source], per="pixel")
    assert codes(labels) == []
    assert labels.classes == ("background", "ball")
    (written,) = (out / "dicom_seg").iterdir()
    # What nothing was drawn on is no segment.
    assert [item.SegmentLabel for item in pydicom.dcmread(written, stop_before_pixels=True).SegmentSequence] == ["ball"]
    found = drawn(labels, source, "ball")
    assert 2 * (found & ball).sum() / (found.sum() + ball.sum()) > 0.9
    row = pd.read_parquet(out / "sources.parquet").iloc[0]
    assert row["volume_ml_ball"] == pytest.approx(found.sum() * 2.5 * 0.5 * 0.8 / 1000)
    assert "canary" not in json.dumps(done)
