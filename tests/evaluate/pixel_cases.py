"""A made-up run of a model of pixels: the tables that training leaves, on tiles that lie on the ground."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from evaluate_cases import SIZE, Case, make_case

from vitpipe.records import Task

CLASSES = ("crop", "forest", "water")
BLOCK_M = 10_000.0


@dataclass(frozen=True)
class PixelCase:
    """A case with what every pixel is and what the model says, to count by hand."""

    case: Case
    truth: np.ndarray
    """(tiles of the manifest, H, W): class, or 255; values: NaN."""
    said: np.ndarray
    """(tiles, K, H, W) logits, or (tiles, 1, H, W) values."""

    def of_split(self, split: str) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
        rows = (self.case.manifest.table["split"] == split).to_numpy()
        return self.case.manifest.table.loc[rows].reset_index(drop=True), self.truth[rows], self.said[rows]


def make_pixel_case(
    root: Path, *, task: Task = Task.SEGMENTATION, groups: int = 120, seed: int = 0, **evaluate: object
) -> PixelCase:
    """Make 4 tiles a group; about half of their pixels are labelled, in some tiles few."""
    case = make_case(root, classes=CLASSES, groups=groups, per_group=4, seed=seed, **evaluate)
    generator = np.random.default_rng(seed)
    table = case.manifest.table.copy()
    codes, _ = pd.factorize(table["group_id"])
    count = len(table)
    labelled = generator.random((count, SIZE, SIZE)) < generator.beta(1, 1, (count, 1, 1))
    labelled[:, 0, 0] = True
    hard = generator.normal(0, 0.6, codes.max() + 1)[codes][:, None, None]
    if task is Task.SEGMENTATION:
        truth = generator.integers(0, 3, (count, SIZE, SIZE)).astype(np.int64)
        said = generator.normal(0, 1, (count, 3, SIZE, SIZE))
        said += np.moveaxis(np.eye(3)[truth], -1, 1) * (1.3 + hard)[:, None]
        said, truth = (1.8 * said).astype(np.float32), np.where(labelled, truth, 255)
        label = [CLASSES[index] for index in truth[:, 0, 0]]
    else:
        value = generator.gamma(2.0, 3.0, (count, SIZE, SIZE))
        said = (0.7 * value + 1.5 + hard + generator.normal(0, 1.0, value.shape))[:, None].astype(np.float32)
        truth = np.where(labelled, value.astype(np.float32), np.nan)
        label = ["value"] * count
    place = np.column_stack([codes % 12, codes // 12]) * BLOCK_M
    inside = generator.uniform(0, BLOCK_M, (count, 2))
    table = table.assign(
        label=label,
        x=place[:, 0] + inside[:, 0],
        y=place[:, 1] + inside[:, 1],
        distance_to_train_m=np.where(table["split"] == "train", np.nan, generator.gamma(2.0, 4000.0, count)),
        labelled_px=labelled.sum(axis=(1, 2)),
    )
    manifest = replace(
        case.manifest,
        table=table,
        task=task,
        classes=CLASSES if task is Task.SEGMENTATION else (),
        targets_folder=root / "targets",
    )
    made = PixelCase(replace(case, manifest=manifest), truth, said)
    (case.run_folder / "logits.parquet").unlink()
    write_tables(made, case.run_folder, said)
    return made


def write_tables(made: PixelCase, folder: Path, said: np.ndarray) -> None:
    """Write pixels.parquet and pixel_sample.parquet by counting one tile after the other."""
    folder.mkdir(parents=True, exist_ok=True)
    table = made.case.manifest.table
    rows, sample = [], []
    for index in np.flatnonzero((table["split"] != "train").to_numpy()):
        head = {"tile_id": table["tile_id"][index], "split": table["split"][index]}
        truth, own = made.truth[index], said[index]
        if made.case.manifest.task is Task.SEGMENTATION:
            known = truth != 255
            counts = np.zeros((3, 3), np.int64)
            np.add.at(counts, (truth[known], own.argmax(axis=0)[known]), 1)
            rows.append({**head, "n": int(known.sum()), "counts": counts.ravel()})
        else:
            known = np.isfinite(truth)
            y, p = truth[known].astype(np.float64), own[0][known].astype(np.float64)
            sums = {"sum_y": y, "sum_y2": y * y, "sum_p": p, "sum_p2": p * p, "sum_yp": y * p}
            sums |= {"sum_abs_error": np.abs(p - y), "sum_sq_error": (p - y) ** 2}
            rows.append({**head, "n": int(known.sum()), **{name: float(each.sum()) for name, each in sums.items()}})
        places = np.flatnonzero(known.ravel())
        chosen = np.sort(np.random.default_rng(index).choice(places, min(12, len(places)), replace=False))
        values = own.reshape(len(own), -1)[:, chosen]
        named = {f"logit_{k}": values[k] for k in range(3)} if len(own) == 3 else {"predicted": values[0]}
        sample.append(
            pd.DataFrame(
                {
                    **head,
                    "row": chosen // SIZE,
                    "col": chosen % SIZE,
                    "weight": len(places) / len(chosen),
                    "truth": truth.ravel()[chosen],
                    **named,
                }
            )
        )
    pd.DataFrame(rows).to_parquet(folder / "pixels.parquet")
    pd.concat(sample, ignore_index=True).to_parquet(folder / "pixel_sample.parquet")


def add_baseline(made: PixelCase, name: str, said: np.ndarray) -> None:
    write_tables(made, made.case.run_folder / "baselines" / name, said)
