"""Small real pipelines for the end-to-end tests: GeoTIFF scenes, DICOM series and photographs that hold a pattern."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
MODEL = {
    "name": "vit_tiny_patch16_224",
    "weights": {"source": "random"},
    "patch_size": 8,
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 2,
}
TRAIN = {"recipe": "full", "epochs": 6, "batch_size": 32, "checkpoint_seconds": 0.0, "learning_rate": 0.003}


def pattern(rng: np.random.Generator, kind: int, shape: tuple[int, int, int]) -> NDArray[np.float64]:
    """Noise with bright rows (0) or bright columns (1): nothing that a mean would tell."""
    values = rng.normal(90, 12, shape)
    stripes = np.arange(shape[1 if kind == 0 else 2]) % 8 < 4
    return values + 50 * (stripes[:, None] if kind == 0 else stripes[None, :])


def make_scenes(folder: Path, count: int, *, size: int = 48) -> Path:
    """Write scenes 20 km apart, each on a ground block of its own, and a table of labels; returns the pipeline file."""
    import rasterio
    from rasterio.transform import from_origin

    rng = np.random.default_rng(7)
    (folder / "scenes").mkdir(parents=True)
    rows = []
    for number in range(count):
        kind = number % 2
        name = f"s{number:03d}.tif"
        transform = from_origin(300_000 + 20_000 * (number % 10), 5_000_000 + 20_000 * (number // 10), 10, 10)
        profile = {
            "driver": "GTiff",
            "count": 3,
            "height": size,
            "width": size,
            "dtype": "uint8",
            "crs": "EPSG:32632",
            "transform": transform,
            "compress": "deflate",
        }
        with rasterio.open(folder / "scenes" / name, "w", **profile) as raster:
            raster.write(pattern(rng, kind, (3, size, size)).clip(1, 255).astype("uint8"))
        rows.append({"path": name, "label": ("rows", "columns")[kind], "season": ("dry", "wet")[number % 3 % 2]})
    pd.DataFrame(rows).to_csv(folder / "labels.csv", index=False)
    return write_pipeline(
        folder,
        {
            "name": "stripes",
            "source": {"kind": "geotiff", "path": "scenes"},
            "labels": {"kind": "table", "path": "labels.csv", "column": "label", "attributes": ["season"]},
            "tiles": {"cut": "grid", "size": 16, "shard_mib": 1},
        },
    )


def make_photographs(folder: Path, count: int) -> Path:
    """Write PNG files in a folder a class; returns the pipeline file."""
    from PIL import Image

    rng = np.random.default_rng(8)
    for number in range(count):
        kind = number % 2
        place = folder / "photographs" / ("rows", "columns")[kind]
        place.mkdir(parents=True, exist_ok=True)
        pixels = pattern(rng, kind, (3, 40, 40)).clip(0, 255).astype("uint8").transpose(1, 2, 0)
        Image.fromarray(pixels).save(place / f"p{number:03d}.png")
    return write_pipeline(
        folder,
        {
            "name": "photographs",
            "source": {"kind": "images", "path": "photographs"},
            "labels": {"kind": "folder"},
            "tiles": {"cut": "whole", "size": 32},
            "train": TRAIN | {"epochs": 20},
        },
    )


def make_series(folder: Path, count: int) -> Path:
    """Write a CT series of three slices a patient; returns the pipeline file. Every text in it is made up."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    rng = np.random.default_rng(9)
    rows = []
    for number in range(count):
        kind = number % 2
        pixels = pattern(rng, kind, (3, 32, 32))
        series_uid = f"1.2.826.0.1.3680043.10.999.{number}"
        for position in range(3):
            meta = FileMetaDataset()
            meta.MediaStorageSOPClassUID = CTImageStorage
            meta.MediaStorageSOPInstanceUID = f"{series_uid}.{position}"
            meta.TransferSyntaxUID = ExplicitVRLittleEndian
            data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
            values: dict[str, Any] = {
                "SOPClassUID": CTImageStorage,
                "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
                "StudyInstanceUID": f"1.2.826.0.1.3680043.10.998.{number}",
                "SeriesInstanceUID": series_uid,
                "FrameOfReferenceUID": f"1.2.826.0.1.3680043.10.997.{number}",
                "PatientID": f"canary-patient-{number:03d}",
                "PatientName": "Canary^Patient",
                "PatientSex": ("F", "M")[number % 3 % 2],
                "Modality": "CT",
                "Manufacturer": "Maker",
                "InstanceNumber": 3 - position,
                "ImagePositionPatient": [0, 0, 2.5 * position],
                "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
                "PixelSpacing": [0.8, 0.8],
                "Rows": 32,
                "Columns": 32,
                "SamplesPerPixel": 1,
                "PhotometricInterpretation": "MONOCHROME2",
                "BitsAllocated": 16,
                "BitsStored": 12,
                "HighBit": 11,
                "PixelRepresentation": 0,
                "RescaleSlope": 1,
                "RescaleIntercept": -1024,
                "RescaleType": "HU",
                "PixelData": (pixels[position] + 1024).clip(0, 4095).astype("<u2").tobytes(),
            }
            for name, value in values.items():
                setattr(data, name, value)
            place = folder / "dicom" / f"f{number % 4}"
            place.mkdir(parents=True, exist_ok=True)
            data.save_as(place / f"{number}-{(position * 2) % 3}", enforce_file_format=True)
        rows.append({"series_uid": series_uid, "label": ("rows", "columns")[kind]})
    pd.DataFrame(rows).to_csv(folder / "labels.csv", index=False)
    return write_pipeline(
        folder,
        {
            "name": "series",
            "source": {"kind": "dicom", "path": "dicom"},
            "labels": {"kind": "table", "path": "labels.csv", "key": "series_uid", "column": "label"},
            "tiles": {"cut": "whole", "size": 32},
            "preprocess": {"clip": [-100, 300]},
            "evaluate": {"subgroups": ["sex"], "bootstrap": 200},
        },
    )


def make_volumes(folder: Path, count: int) -> Path:
    """Write the series of :func:`make_series`, each cut into one 3-D tile; returns the pipeline file."""
    path = make_series(folder, count)
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    return write_pipeline(
        folder,
        values
        | {
            "name": "volumes",
            "tiles": {"cut": "whole", "size": 32, "depth": 3, "orientation": "LPS"},
            "model": {**MODEL, "name": "monai_vit", "patch_size": [3, 8, 8], "depth": 1},
            "train": TRAIN | {"epochs": 40, "batch_size": 8},
            "register": {"model": "volumes"},
        },
    )


def write_pipeline(folder: Path, values: dict[str, Any]) -> Path:
    """Complete a configuration by what all the small pipelines share, and write it."""
    whole = {
        "model": MODEL,
        "split": {"val": 0.2, "calibration": 0.2, "test": 0.25},
        "train": TRAIN,
        "evaluate": {"bootstrap": 200},
        "register": {"model": values["name"]},
    } | values
    path = folder / "pipeline.yaml"
    path.write_text(yaml.safe_dump(whole, sort_keys=False), encoding="utf-8")
    return path


CHAIN = """
import json, sys
from pathlib import Path
from vitpipe import stages
from vitpipe.loading import load_config

def chain(path):
    # The same stages, without Prefect around them.
    config = load_config(Path(path))
    for batch in stages.plan_batches(config):
        stages.index_batch(config, batch)
    stages.build_catalog(config)
    shards = stages.plan_shards(config)
    for shard in shards:
        stages.tile_shard(config, shard)
    stages.check_tiles(config, shards)
    run_id = stages.prepare_run(config).run_id
    stages.train(config, run_id, lambda event: None)
    stages.evaluate(config, run_id)
    registered = stages.register(config, run_id)
    return {"name": config.name, "workspace": config.workspace, "run_id": run_id, "source": config.source.path,
            "aliases": list(registered.aliases), "model_uri": registered.uri}
"""
"""Start of a script: ``chain(pipeline)`` makes a registered model."""


def environment(home: Path) -> dict[str, str]:
    """The environment of a new user: a fresh home, no server, one thread a process, a fixed key."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
    return kept | {"HOME": str(home), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "VITPIPE_KEY": "end-to-end"}


def vitpipe(
    *arguments: str, home: Path, cwd: Path | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user would."""
    home.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", *arguments],
        env=environment(home),
        cwd=cwd or home,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    if check and done.returncode:
        raise AssertionError(
            f"vitpipe {' '.join(arguments)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
    return done


def result_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Read what ``--json`` printed."""
    value = json.loads(done.stdout)
    assert isinstance(value, dict)
    return value


def run_script(script: str, *arguments: str, home: Path) -> Any:
    """Run a Python script in a fresh process; gives the JSON of its last line."""
    home.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=environment(home) | {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    if done.returncode:
        raise AssertionError(f"the script ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])
