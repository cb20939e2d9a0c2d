"""The recipe `full`: all weights learn. Every draw is a function of (seed, epoch, step), so a resume repeats it."""

from __future__ import annotations

import dataclasses
import math
import time

import numpy as np
import torch
from timm.optim._optim_factory import create_optimizer_v2
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.utils.model_ema import ModelEmaV3
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vitpipe.errors import TrainingFailed
from vitpipe.learn.augment import change_values, draw, move_pixels, move_targets
from vitpipe.learn.checkpoint import (
    Checkpoint,
    Tensors,
    TrainState,
    flatten_optimiser,
    read_checkpoint,
    restore_optimiser,
    write_checkpoint,
)
from vitpipe.learn.lesson import Learnt, Lesson, Stopped
from vitpipe.learn.loader import Batch, Prefetcher, epoch_order, epoch_parts, steps_per_epoch
from vitpipe.learn.losses import StepLoss
from vitpipe.learn.place import resolve_precision
from vitpipe.learn.progress import EPOCH, STEP, STOPPED, Progress
from vitpipe.learn.task import CUDA, LearnTask, seed_of
from vitpipe.records import Task

_SAY_SECONDS = 1.0
_WARMUP_START = 0.01
_CUDA_CHECK_STEPS = 16


def make_scheduler(optimiser: torch.optim.Optimizer, steps: int, warmup_share: float, rate: float) -> CosineLRScheduler:
    """Make a per-step linear warm-up and cosine. timm's scheduler, as torch's own ignore `lr_scale` of layer decay."""
    warmup = min(round(warmup_share * steps), steps - 1)
    return CosineLRScheduler(
        optimiser,
        t_initial=max(1, steps - warmup),
        warmup_t=warmup,
        warmup_lr_init=rate * _WARMUP_START,
        warmup_prefix=True,
        t_in_epochs=False,
    )


def make_optimiser(model: nn.Module, task: LearnTask) -> torch.optim.Optimizer:
    """Make timm's AdamW: no decay of biases and norms, layer-wise rates where asked."""
    optimiser: torch.optim.Optimizer = create_optimizer_v2(
        model,
        opt="adamw",
        lr=task.train.learning_rate,
        weight_decay=task.train.weight_decay,
        layer_decay=task.train.layer_decay,
        fused=True,
    )
    return optimiser


class Fit:
    """One attempt at the recipe, from the last checkpoint on.

    Args:
        lesson: what is learnt.
    """

    def __init__(self, lesson: Lesson) -> None:
        self._lesson = lesson
        recipe, place = lesson.task.train, lesson.around.place
        self._steps = steps_per_epoch(len(lesson.train), recipe.batch_size, place.processes)
        volumes = lesson.record.per_pixel and len(lesson.train.tile_shape) > 3
        self._precision = resolve_precision(recipe.precision, place.device, maps_of_volumes=volumes)
        self._model = lesson.model.to(place.device)
        self._optimiser = make_optimiser(self._model, lesson.task)
        self._scheduler = make_scheduler(
            self._optimiser, self._steps * recipe.epochs, recipe.warmup_share, recipe.learning_rate
        )
        self._ema = (
            ModelEmaV3(self._model, decay=recipe.ema_decay, use_warmup=True) if recipe.ema_decay is not None else None
        )
        self._best: Tensors | None = None
        self._state = TrainState(identity=lesson.task.identity())
        self._resumed_from: int | None = None
        self._restore()
        network: nn.Module = self._model
        if place.processes > 1:
            devices = [place.device] if place.device.type == CUDA else None
            # DDP waits for the gradient of every weight, and MONAI's blocks have a norm that is never called.
            for name, weight in self._model.named_parameters():
                weight.requires_grad_(weight.requires_grad and "norm_cross_attn" not in name)
            network = DistributedDataParallel(network, device_ids=devices)
        self._network: nn.Module = torch.compile(network) if recipe.compile else network  # type: ignore[assignment]
        self._started = time.monotonic() - self._state.seconds
        self._written = self._said = time.monotonic()
        self._tiles_this_attempt, self._attempt_start = 0, time.monotonic()

    def run(self) -> Learnt:
        """Learn to the end.

        Raises:
            TrainingFailed: the loss is no longer finite.
            Stopped: SIGTERM; the state is on disk.
        """
        while not self._state.finished:
            self._epoch()
        state = self._best if self._best is not None else self._weights()
        return Learnt(
            state=state,
            epochs=self._state.epoch,
            best_epoch=self._state.best_epoch,
            seconds=self._state.seconds,
            resumed_from=self._resumed_from,
            val_loss=self._state.best_loss,
        )

    def _restore(self) -> None:
        found, notes = read_checkpoint(self._lesson.around.folder.checkpoint, self._state.identity)
        for note in notes:
            self._lesson.around.progress.note(note)
        if found is None:
            return
        self._model.load_state_dict(found.tensors["model"])
        if self._ema is not None:
            self._ema.module.load_state_dict(found.tensors["ema"])
        restore_optimiser(self._optimiser, found.tensors["optimiser"])
        self._best = dict(found.tensors["best"]) if "best" in found.tensors else None
        self._state, self._resumed_from = found.state, found.state.global_step
        self._lesson.around.progress.note(f"resumed after step {found.state.global_step}, epoch {found.state.epoch}")

    def _epoch(self) -> None:
        lesson, epoch = self._lesson, self._state.epoch
        place = lesson.around.place
        order = epoch_order(len(lesson.train), lesson.task.train.seed, epoch)
        parts = epoch_parts(order, self._steps, place.rank, place.processes, self._state.step)
        self._network.train()
        with Prefetcher(lesson.train, parts, pin_memory=place.device.type == CUDA) as batches:
            for batch in batches:
                self._stop_if_asked()
                self._take_step(batch)
                last = self._state.step == self._steps
                due = time.monotonic() - self._written >= lesson.task.train.checkpoint_seconds
                if due and not last:
                    self._checkpoint()
        self._end_epoch()

    def _take_step(self, batch: Batch) -> None:
        lesson, recipe, place = self._lesson, self._lesson.task.train, self._lesson.around.place
        epoch = self._state.epoch
        self._scheduler.step_update(self._state.global_step)
        torch.manual_seed(seed_of("step", recipe.seed, epoch, batch.step, place.rank))
        draws = draw(recipe.augment, batch.total, recipe.seed, epoch, batch.step)
        draws = draws.part(batch.start, batch.stop, place.device)
        images, mask = lesson.preprocessing.normalise(batch.tiles.to(place.device), batch.valid.to(place.device))
        images = move_pixels(lesson.preprocessing.resize(change_values(images, mask, draws)), draws)
        with torch.autocast(place.device.type, dtype=torch.bfloat16, enabled=self._precision == "bf16"):
            logits = self._network(images)
        targets = batch.targets.to(place.device)
        if lesson.record.task is not Task.CLASSIFICATION:
            targets = move_targets(targets, draws)
        found = lesson.criterion.step(logits, targets, batch.total, place)
        found.loss.backward()  # type: ignore[no-untyped-call]
        if recipe.clip_grad is not None:
            nn.utils.clip_grad_norm_(self._model.parameters(), recipe.clip_grad)
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        if self._ema is not None:
            self._ema.update(self._model, step=self._state.global_step + 1)
        self._count(batch, found)

    def _count(self, batch: Batch, found: StepLoss) -> None:
        state, place = self._state, self._lesson.around.place
        # On CUDA the sum is looked at now and then: each look waits for the device. A NaN stays in the weights.
        look = place.device.type != CUDA or state.global_step % _CUDA_CHECK_STEPS == 0 or batch.step == self._steps - 1
        value = float(found.summed) if look else 0.0
        if not math.isfinite(value):
            recipe = self._lesson.task.train
            raise TrainingFailed(
                f"the loss is {value} at step {state.global_step + 1} of {self._steps * recipe.epochs} (epoch "
                f"{state.epoch + 1}): lower train.learning_rate (now {recipe.learning_rate:g}), lengthen "
                "train.warmup_share, set train.clip_grad to 1, or set preprocess.clip if the tiles hold outliers"
            )
        self._state = dataclasses.replace(
            state,
            step=batch.step + 1,
            global_step=state.global_step + 1,
            loss_sum=state.loss_sum + value,
            tiles_seen=state.tiles_seen + (int(found.count) if look else 0),
            seconds=time.monotonic() - self._started,
        )
        self._tiles_this_attempt += batch.total
        if time.monotonic() - self._said >= _SAY_SECONDS:
            self._say(STEP)

    def _say(self, event: str, val_loss: float | None = None, score: float | None = None) -> None:
        self._said = time.monotonic()
        state, recipe = self._state, self._lesson.task.train
        scores = {self._lesson.criterion.score_name: score}
        self._lesson.around.progress.write(
            Progress(
                event,
                epoch=state.epoch,
                epochs=recipe.epochs,
                step=state.global_step,
                steps=self._steps * recipe.epochs,
                train_loss=state.loss_sum / state.tiles_seen if state.tiles_seen else None,
                val_loss=val_loss,
                val_balanced_accuracy=scores.get("val_balanced_accuracy"),
                val_mean_iou=scores.get("val_mean_iou"),
                val_r2=scores.get("val_r2"),
                learning_rate=max(group["lr"] for group in self._optimiser.param_groups),
                seconds=state.seconds,
                images_per_second=self._tiles_this_attempt / max(1e-9, self._said - self._attempt_start),
            )
        )

    def _end_epoch(self) -> None:
        recipe = self._lesson.task.train
        val_loss, score = self._validate()
        self._say(EPOCH, val_loss, score)
        state = self._state
        better = val_loss is None or state.best_loss is None or val_loss < state.best_loss
        if better:
            self._best = {name: value.detach().clone() for name, value in self._weights().items()}
        stale = 0 if better else state.stale_epochs + 1
        ended = state.epoch + 1 == recipe.epochs or (recipe.patience is not None and stale >= recipe.patience)
        self._state = dataclasses.replace(
            state,
            epoch=state.epoch + 1,
            step=0,
            loss_sum=0.0,
            tiles_seen=0,
            best_epoch=state.epoch if better else state.best_epoch,
            best_loss=val_loss if better else state.best_loss,
            stale_epochs=stale,
            finished=ended,
            seconds=time.monotonic() - self._started,
        )
        if ended or time.monotonic() - self._written >= recipe.checkpoint_seconds:
            self._checkpoint()

    def _validate(self) -> tuple[float | None, float | None]:
        lesson, place = self._lesson, self._lesson.around.place
        if not len(lesson.val):
            return None, None
        network = self._ema.module if self._ema is not None else self._model
        network.eval()
        sums = torch.zeros(lesson.criterion.val_length, dtype=torch.float64)
        steps = -(-len(lesson.val) // lesson.task.train.batch_size)
        parts = epoch_parts(np.arange(len(lesson.val)), steps, place.rank, place.processes)
        with torch.inference_mode(), Prefetcher(lesson.val, parts, pin_memory=False) as batches:
            for batch in batches:
                if batch.start == batch.stop:
                    continue
                images = lesson.preprocessing.apply(batch.tiles.to(place.device), batch.valid.to(place.device))
                with torch.autocast(place.device.type, dtype=torch.bfloat16, enabled=self._precision == "bf16"):
                    logits = network(images).float()
                targets = batch.targets.to(place.device)
                sums += lesson.criterion.val_sums(logits, targets).cpu()
        value, score = lesson.criterion.val_result(place.total(sums).cpu())
        if value is None:
            return None, None
        if not math.isfinite(value):
            raise TrainingFailed(
                f"the validation loss is {value} after epoch {self._state.epoch + 1}; lower train.learning_rate, or "
                "set preprocess.clip if the tiles hold outliers"
            )
        return value, score

    def _weights(self) -> Tensors:
        module = self._ema.module if self._ema is not None else self._model
        state: Tensors = module.state_dict()
        return state

    def _stop_if_asked(self) -> None:
        lesson = self._lesson
        if not lesson.around.place.agree(flag=lesson.around.stop.is_set()):
            return
        self._checkpoint()
        lesson.around.place.wait()
        lesson.around.progress.write(
            Progress(STOPPED, epoch=self._state.epoch, step=self._state.global_step, message="stopped by SIGTERM")
        )
        raise Stopped

    def _checkpoint(self) -> None:
        self._written = time.monotonic()
        if not self._lesson.around.place.leads:
            return
        tensors = {"model": self._model.state_dict(), "optimiser": flatten_optimiser(self._optimiser)}
        if self._ema is not None:
            tensors["ema"] = self._ema.module.state_dict()
        if self._best is not None:
            tensors["best"] = self._best
        write_checkpoint(self._lesson.around.folder.checkpoint, Checkpoint(self._state, tensors))
