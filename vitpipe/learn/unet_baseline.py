"""The U-Net beside a model of pixels: the same tiles, as many steps, and about as many multiply-adds a tile.

A U-Net computes at full resolution with few weights, a ViT on a coarse grid with many: of two networks of as many
parameters, the U-Net would take some ten times the time. So the budget is the multiply-adds of a forward pass, and the
parameters of both are written beside the result.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import shutil
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vitpipe.atomic import write_json
from vitpipe.learn.fit import Fit
from vitpipe.learn.lesson import Learnt, Lesson
from vitpipe.learn.model import LoadedModel, batch_size_for, load_model, save_model
from vitpipe.learn.pixel_model import PIXELS, UNET, DecoderPlan, rebuild_pixel_model, unet_plan
from vitpipe.learn.progress import EPOCH, NOTE, STOPPED, Progress, ProgressWriter
from vitpipe.learn.task import RunFolder, seed_of
from vitpipe.records import Json

_LEAST_WIDTH, _WIDTH_STEP, _LARGEST_WIDTH = 8, 4, 256
BASELINE_FILE = "baseline.json"
_WHO = "U-Net beside it"


@dataclasses.dataclass(frozen=True, slots=True)
class Cost:
    """What a network takes."""

    parameters: int
    multiply_adds: int
    """Of the forward pass of one tile."""

    def to_json(self) -> dict[str, Json]:
        """Give both."""
        return dataclasses.asdict(self)


class BaselineProgress(ProgressWriter):
    """Writes the events of a baseline to its own file; its epochs are notes in the file of the run.

    Args:
        path: its own file.
        rank: of this process.
        run: the writer of the run.
    """

    def __init__(self, path: Path, rank: int, run: ProgressWriter) -> None:
        super().__init__(path, rank)
        self._run = run

    def write(self, progress: Progress) -> None:
        """Append one event."""
        super().write(progress)
        if progress.event == STOPPED:
            self._run.write(progress)
        elif progress.event == NOTE:
            self._run.note(f"{_WHO}: {progress.message}")
        elif progress.event == EPOCH:
            # A note with numbers: it is said as the model's own epochs are, and is no part of their curve.
            self._run.write(dataclasses.replace(progress, event=NOTE, step=None, steps=None, message=_WHO))


def cost_of(module: nn.Module, plan: DecoderPlan) -> Cost:
    """Count parameters and multiply-adds, on a copy without memory: the same on every machine."""
    there = copy.deepcopy(module).to("meta").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        there(torch.zeros((1, plan.channels, *plan.image_px), device="meta"))
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return Cost(parameters, counter.get_total_flops() // 2)


def plan_of_equal_cost(plan: DecoderPlan, multiply_adds: int) -> tuple[DecoderPlan, Cost]:
    """Choose the width of the U-Net whose multiply-adds are nearest, by their ratio.

    Args:
        plan: of the model beside which it stands.
        multiply_adds: of that model.
    """
    best: tuple[float, DecoderPlan, Cost] | None = None
    for width in range(_LEAST_WIDTH, _LARGEST_WIDTH + 1, _WIDTH_STEP):
        candidate = unet_plan(plan, width)
        with torch.device("meta"):
            cost = cost_of(rebuild_pixel_model(candidate, None), candidate)
        distance = abs(math.log(cost.multiply_adds / multiply_adds))
        if best is not None and distance >= best[0]:
            break
        best = distance, candidate, cost
    assert best is not None
    return best[1], best[2]


@dataclasses.dataclass(frozen=True, slots=True)
class UnetBaseline:
    """The lesson of the U-Net, and what both networks cost."""

    lesson: Lesson
    own: Cost
    of_model: Cost

    def learn(self) -> Learnt:
        """Learn, or go on from the last checkpoint: a finished one returns at once.

        Raises:
            TrainingFailed: the loss is no longer finite.
            Stopped: SIGTERM; the state is on disk.
        """
        return Fit(self.lesson).run()

    def save(self, learnt: Learnt) -> LoadedModel:
        """Write model and budget; gives the model as it was written."""
        folder = self.lesson.around.folder
        save_model(folder.model, learnt.state, self.lesson.record)
        write_json(
            folder.root / BASELINE_FILE,
            {
                "name": UNET,
                "budget": "as many multiply-adds a tile, the same tiles, as many steps",
                "own": self.own.to_json(),
                "of_model": self.of_model.to_json(),
                "epochs": learnt.epochs,
                "best_epoch": learnt.best_epoch,
                "val_loss": learnt.val_loss,
                "seconds": round(learnt.seconds, 3),
            },
        )
        return load_model(folder.model, self.lesson.task.device)

    def clean(self) -> None:
        """Remove the checkpoints, once the run is complete."""
        shutil.rmtree(self.lesson.around.folder.checkpoint, ignore_errors=True)


def unet_beside(lesson: Lesson) -> UnetBaseline | None:
    """Plan the U-Net of a lesson; None where none is asked for, or the model is one itself."""
    record, around = lesson.record, lesson.around
    if not record.per_pixel or lesson.task.train.baseline != UNET:
        return None
    plan = DecoderPlan.from_json(record.decoder)
    if plan.kind == UNET:
        around.progress.note("the model is a U-Net: no other one learns beside it")
        return None
    of_model = cost_of(lesson.model, plan)
    plan, own = plan_of_equal_cost(plan, of_model.multiply_adds)
    torch.manual_seed(seed_of("init", UNET, lesson.task.train.seed))
    module = rebuild_pixel_model(plan, None)
    # Layers of a ViT have rates of their own; a U-Net learns at one.
    recipe = lesson.task.train.model_copy(update={"recipe": "full", "layer_decay": None})
    record = dataclasses.replace(
        record,
        architecture=UNET,
        overrides={},
        head=PIXELS,
        decoder=plan.to_json(),
        batch_size=batch_size_for(module, record.preprocessing.img_size),
        weights={"source": "random", "id": "random", "sha256": "", "licence": "none: trained from scratch"},
        training=dict(record.training) | {"recipe": recipe.model_dump(mode="json", exclude={"checkpoint_seconds"})},
    )
    folder = RunFolder(around.folder.baselines / UNET)
    folder.root.mkdir(parents=True, exist_ok=True)
    progress = BaselineProgress(folder.progress, around.place.rank, around.progress)
    around.progress.note(
        f"U-Net beside the model: {own.parameters / 1e6:.2f} M parameters, {own.multiply_adds / 1e9:.3g} G "
        f"multiply-adds a tile; the model: {of_model.parameters / 1e6:.2f} M, {of_model.multiply_adds / 1e9:.3g} G"
    )
    beside = dataclasses.replace(
        lesson,
        task=lesson.task.model_copy(update={"train": recipe}),
        around=dataclasses.replace(around, folder=folder, progress=progress),
        model=module,
        record=record,
    )
    return UnetBaseline(beside, own, of_model)
