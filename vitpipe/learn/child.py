"""The child process: one per device, ``python -m vitpipe.learn.child <run folder>``; torchrun starts several."""

from __future__ import annotations

import contextlib
import math
import shutil
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

import numpy as np
import pandas as pd
import torch
from torch import distributed

from vitpipe.atomic import file_lock, write_json, write_parquet
from vitpipe.errors import TrainingFailed, VitpipeError
from vitpipe.learn.architecture import ProbeModel
from vitpipe.learn.fit import Fit
from vitpipe.learn.lesson import Learnt, Lesson, Stopped, Surroundings
from vitpipe.learn.model import load_model, save_model
from vitpipe.learn.pixel_tables import write_pixel_tables
from vitpipe.learn.place import take_place
from vitpipe.learn.prepare import prepare
from vitpipe.learn.progress import DONE, STARTED, Progress, ProgressWriter
from vitpipe.learn.task import RunFolder, read_task
from vitpipe.learn.unet_baseline import unet_beside
from vitpipe.learn.watch import watch_supervisor
from vitpipe.manifest import Manifest, read_manifest
from vitpipe.records import Split
from vitpipe.store import TileStore

EXIT_STOPPED = 75
"""SIGTERM was met and the state is on disk (EX_TEMPFAIL of sysexits.h)."""
EXIT_FAILED = 70
"""A typed error: its sentence is in ``failure.json`` (EX_SOFTWARE of sysexits.h)."""
_BLOCK_BYTES = 64 << 20
_JUDGED = (Split.VAL.value, Split.CALIBRATION.value, Split.TEST.value)


def run(folder: RunFolder, stop: threading.Event) -> None:
    """Learn, export and give logits; a finished run returns at once.

    Args:
        folder: with the task and the manifest.
        stop: set it to checkpoint and end at the next step.

    Raises:
        Stopped: `stop` was met.
        VitpipeError: with a sentence for the user.
    """
    task = read_task(folder)
    place = take_place(task)
    around = Surroundings(folder, place, ProgressWriter(folder.progress, place.rank), stop)
    try:
        # The child of a killed parent may still write for half a second.
        with file_lock(folder.child_lock, wait=True) if place.leads else contextlib.nullcontext():
            if folder.done.exists():
                return
            around.progress.write(Progress(STARTED, epochs=task.train.epochs))
            manifest = read_manifest(folder.root)
            store = TileStore(manifest.tiles_folder)
            lesson = prepare(task, manifest, store, around)
            beside = unet_beside(lesson)
            learnt = _learn(lesson)
            unet = beside.learn() if beside is not None else None
            if not place.leads:
                return
            save_model(folder.model, learnt.state, lesson.record)
            if lesson.record.per_pixel:
                _judge_pixels(lesson, manifest, store)
            else:
                write_parquet(folder.logits, judge(folder, manifest, store, task.device))
            if beside is not None and unet is not None:
                model, root = beside.save(unet), beside.lesson.around.folder.root
                write_pixel_tables(root, manifest, store, model.logits, model.record.batch_size)
            _finish(lesson, learnt)
            if beside is not None:
                beside.clean()
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def _learn(lesson: Lesson) -> Learnt:
    if not isinstance(lesson.model, ProbeModel):
        return Fit(lesson).run()
    # scikit-learn takes a second to import, and the recipe `full` has no use for it.
    from vitpipe.learn.probe import fit_probe

    return fit_probe(lesson)


def _judge_pixels(lesson: Lesson, manifest: Manifest, store: TileStore) -> None:
    """Write the tables of the model as it was written, and of the trivial baselines."""
    # scikit-learn takes a second to import, and a task of tiles has no use for it here.
    from vitpipe.learn.pixel_baselines import pixel_baselines

    folder = lesson.around.folder
    model = load_model(folder.model, lesson.task.device)
    write_pixel_tables(folder.root, manifest, store, model.logits, model.record.batch_size)
    for name, predict in pixel_baselines(lesson).items():
        write_pixel_tables(folder.baselines / name, manifest, store, predict)


def _finish(lesson: Lesson, learnt: Learnt) -> None:
    """Write the mark that the run is complete, and remove its checkpoints."""
    folder, progress = lesson.around.folder, lesson.around.progress
    write_json(
        folder.done,
        {
            "run_id": lesson.task.run_id,
            "epochs": learnt.epochs,
            "best_epoch": learnt.best_epoch,
            "val_loss": learnt.val_loss,
            "seconds": round(learnt.seconds, 3),
            "resumed_from": learnt.resumed_from,
        },
    )
    shutil.rmtree(folder.checkpoint, ignore_errors=True)
    progress.write(Progress(DONE, epoch=learnt.epochs, seconds=learnt.seconds, val_loss=learnt.val_loss))


def judge(folder: RunFolder, manifest: Manifest, store: TileStore, device: str) -> pd.DataFrame:
    """Give the logits of the val, calibration and test tiles, in the manifest's order, by the saved model.

    Returns:
        tile_id, split, logit_0 ... logit_<K-1> (float32).
    """
    model = load_model(folder.model, device)
    table = manifest.table[manifest.table["split"].isin(_JUDGED)].reset_index(drop=True)
    tile_bytes = 4 * math.prod(manifest.tile_shape)
    batch = model.record.batch_size
    # Whole batches: the last alone is padded.
    block = batch * max(1, _BLOCK_BYTES // (tile_bytes * batch))
    logits = np.empty((len(table), len(model.classes)), np.float32)
    for start in range(0, len(table), block):
        tiles, valid = store.gather(table.iloc[start : start + block])
        logits[start : start + block] = model.logits(tiles, valid)
    columns = {f"logit_{number}": logits[:, number] for number in range(logits.shape[1])}
    return pd.DataFrame({"tile_id": table["tile_id"], "split": table["split"], **columns})


def _memory_sentence(error: BaseException) -> TrainingFailed | None:
    """Give the sentence for an error that says that memory is out; None for another error."""
    text = str(error)
    if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "can't allocate memory" not in text:
        return None
    return TrainingFailed(
        f"memory is out ({' '.join(text.split())[:160]}): lower train.batch_size, model.img_size, or choose a smaller "
        "architecture or a larger model.patch_size"
    )


def _compile_sentence(error: BaseException) -> TrainingFailed | None:
    if not type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
        return None
    return TrainingFailed(
        f"torch.compile failed ({' '.join(str(error).split())[:200]}): set `train: {{compile: false}}`, "
        "or install a C++ compiler"
    )


def main(arguments: list[str]) -> int:
    """Run as a process; gives the exit code."""
    watch_supervisor()
    folder, stop = RunFolder(Path(arguments[0])), threading.Event()

    def on_sigterm(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, on_sigterm)
    try:
        run(folder, stop)
    except Stopped:
        return EXIT_STOPPED
    except VitpipeError as error:
        return _fail(folder, error)
    except (RuntimeError, MemoryError) as error:
        known = _memory_sentence(error) or _compile_sentence(error)
        if known is None:
            raise
        return _fail(folder, known)
    return 0


def _fail(folder: RunFolder, error: VitpipeError) -> int:
    sys.stderr.write(f"{type(error).__name__}: {error}\n")
    write_json(folder.failure, {"type": type(error).__name__, "text": str(error)})
    return EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
