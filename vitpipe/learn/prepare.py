"""From a task and its manifest to a lesson: model, starting weights, preprocessing, targets."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from vitpipe.atomic import write_json
from vitpipe.errors import ConfigError, ContractError, DataError
from vitpipe.learn.architecture import ProbeModel, build, overrides_of
from vitpipe.learn.counted import JudgedTiles
from vitpipe.learn.lesson import Lesson, Surroundings
from vitpipe.learn.loader import SplitTiles
from vitpipe.learn.losses import Criterion, class_priors, make_criterion
from vitpipe.learn.model import ModelRecord, batch_size_for, versions
from vitpipe.learn.pixel_losses import ClassCriterion, ValueCriterion, loss_of
from vitpipe.learn.pixel_model import PIXELS, WHOLE_NETWORKS, DecoderPlan, PixelModel, build_pixel_model
from vitpipe.learn.pixel_statistics import measure_targets
from vitpipe.learn.place import Place, resolve_precision
from vitpipe.learn.preprocessing import ImageSize, Preprocessing, fit_preprocessing
from vitpipe.learn.progress import ProgressWriter
from vitpipe.learn.task import LearnTask, seed_of
from vitpipe.learn.weights import StartingWeights, load_into, read_weights, statistics_for
from vitpipe.manifest import Manifest
from vitpipe.records import Json, Split, Task
from vitpipe.store import TileStore

PROBE = "probe"


def prepare(task: LearnTask, manifest: Manifest, store: TileStore, around: Surroundings) -> Lesson:
    """Make the lesson; what is wrong with the configuration is found before a pixel is read.

    Raises:
        ConfigError: architecture, weights or recipe do not fit the data.
        ContractError: manifest or weights are not what they should be.
        DataError: the train split is empty.
        TransientError: the weights cannot be downloaded.
    """
    if manifest.digest != task.manifest_digest:
        raise ContractError(
            f"the manifest in {around.folder.root} is not its task's; remove the folder and train again"
        )
    train, val = SplitTiles(manifest, store, Split.TRAIN.value), JudgedTiles(manifest, store, Split.VAL.value)
    if not len(train):
        raise DataError("the train split has no tile; label more groups, or give smaller shares to the other splits")
    _say_what_is_not_used(task, manifest, val, around.progress)
    _check_task(task, manifest)
    built = _build(task, manifest)
    weights, provenance = _start(task, manifest, built.module, around)
    criterion, priors, target = _objective(task, manifest, train)
    img_size = _image_size(built.image_size(manifest))
    preprocessing = _preprocessing(task, manifest, store, around, (weights, img_size))
    record = ModelRecord(
        architecture=task.model.name if built.overrides else built.kind,
        overrides=built.overrides,
        head=built.head,
        preprocessing=preprocessing,
        classes=tuple(manifest.classes),
        multi_label=manifest.multi_label,
        priors=tuple(priors.tolist()),
        logit_adjustment=task.train.logit_adjustment,
        batch_size=batch_size_for(built.module, img_size),
        tile_size=manifest.tile_size,
        tiles=task.tiles.model_dump(mode="json"),
        source=task.source,
        weights=provenance,
        training=_training(task, around.place, built),
        digests={"manifest": manifest.digest, "config": task.config_digest, "run": task.run_id},
        versions=versions() | {"vitpipe": task.code_version},
        task=manifest.task,
        decoder=built.plan.to_json() if built.plan is not None else {},
        target=target,
    )
    if not isinstance(criterion, ValueCriterion):
        criterion = dataclasses.replace(criterion, adjustment=criterion.adjustment.to(around.place.device))
    return Lesson(task, around, built.module, record, train, val, criterion, priors)


@dataclass(frozen=True, slots=True)
class _Built:
    module: nn.Module
    overrides: dict[str, Json]
    plan: DecoderPlan | None = None
    """Of a model of pixels."""

    @property
    def head(self) -> str:
        if self.plan is not None:
            return PIXELS
        return PROBE if isinstance(self.module, ProbeModel) else "timm"

    @property
    def kind(self) -> str:
        return self.plan.kind if self.plan is not None else ""

    def image_size(self, manifest: Manifest) -> Json:
        """Give what the preprocessing resizes to, as the overrides of an architecture hold it."""
        if self.plan is None:
            return self.overrides.get("img_size", manifest.tile_size)
        return self.plan.image_px[0] if len(self.plan.image_px) == 2 else list(self.plan.image_px)


def _check_task(task: LearnTask, manifest: Manifest) -> None:
    """Refuse keys of another task.

    Raises:
        ConfigError: a decoder or a loss of pixels where a tile has one label, or a loss of another task.
    """
    loss_of(task.train, manifest.task)
    if manifest.task is Task.CLASSIFICATION and task.model.decoder is not None:
        raise ConfigError(
            f"model.decoder is `{task.model.decoder}`, but the labels give a class for a whole tile; remove the key, "
            "or give labels of every pixel"
        )


def _objective(
    task: LearnTask, manifest: Manifest, train: SplitTiles
) -> tuple[Criterion | ClassCriterion | ValueCriterion, torch.Tensor, dict[str, Json]]:
    """Give what is minimised, the shares of the classes, and the statistics of values."""
    recipe = task.train
    if manifest.task is Task.CLASSIFICATION:
        priors = class_priors(train.targets, len(manifest.classes), multi_label=manifest.multi_label)
        criterion = make_criterion(
            priors,
            multi_label=manifest.multi_label,
            label_smoothing=recipe.label_smoothing,
            logit_adjustment=recipe.logit_adjustment,
        )
        return criterion, priors, {}
    loss = loss_of(recipe, manifest.task)
    measured = measure_targets(train, manifest.task, len(manifest.classes))
    if manifest.task is Task.REGRESSION:
        target: dict[str, Json] = {"mean": measured.mean, "std": measured.std, "units": task.label_units}
        return ValueCriterion(measured.mean, measured.std, loss == "mse"), torch.ones(0, dtype=torch.float64), target
    priors = measured.priors()
    adjustment = (recipe.logit_adjustment * priors.log()).float()
    named: dict[str, Json] = {}
    if task.label_background in manifest.classes:
        named["background"] = task.label_background
    return ClassCriterion(recipe.label_smoothing, adjustment, loss == "dice_cross_entropy"), priors, named


def _image_size(value: Json) -> ImageSize:
    """Read a size as the overrides of an architecture hold it."""
    if isinstance(value, list):
        depth, height, width = (int(str(size)) for size in value)
        return depth, height, width
    return int(str(value))


def _training(task: LearnTask, place: Place, built: _Built) -> dict[str, Json]:
    volumes = built.plan is not None and len(built.plan.tile_px) > 2
    precision = (
        "fp32"
        if isinstance(built.module, ProbeModel)
        else resolve_precision(task.train.precision, place.device, maps_of_volumes=volumes)
    )
    return {
        "recipe": task.train.model_dump(mode="json", exclude={"checkpoint_seconds"}),
        "device": task.device,
        "processes": task.processes,
        "threads": task.threads,
        "precision": precision,
    }


def _say_what_is_not_used(task: LearnTask, manifest: Manifest, val: SplitTiles, progress: ProgressWriter) -> None:
    if not len(val):
        progress.note("the val split has no tile: the last weights are kept, and train.patience has no effect")
    of_tiles = manifest.task is Task.CLASSIFICATION
    if of_tiles and task.train.recipe == PROBE and any(task.train.augment.model_dump().values()):
        progress.note("train.augment has no effect on the recipe `probe`: features are computed once")
    if task.model.decoder in WHOLE_NETWORKS:
        progress.note(f"model.name has no effect: `{task.model.decoder}` is a whole network")


def _build(task: LearnTask, manifest: Manifest) -> _Built:
    """Build with fresh weights: a function of the seed."""
    torch.manual_seed(seed_of("init", task.train.seed))
    probe, channels = task.train.recipe == PROBE, len(manifest.channels)
    if manifest.task is not Task.CLASSIFICATION:
        outputs = 1 if manifest.task is Task.REGRESSION else len(manifest.classes)
        module, used, plan = build_pixel_model(task.model, channels, outputs, manifest.tile_shape[1:], probe=probe)
        return _Built(module, used, plan)
    overrides = overrides_of(task.model, channels, len(manifest.classes), manifest.tile_size, manifest.depth)
    if not probe:
        return _Built(*build(task.model, overrides))
    still = {key: value for key, value in overrides.items() if key != "drop_path_rate"}
    backbone, used = build(task.model, still | {"num_classes": 0})
    return _Built(ProbeModel(backbone, len(manifest.classes)), used | {"num_classes": len(manifest.classes)})


def _start(
    task: LearnTask, manifest: Manifest, model: nn.Module, around: Surroundings
) -> tuple[StartingWeights | None, dict[str, Json]]:
    """Load the starting weights; gives them and their provenance. The first process downloads, the others find."""
    folder = Path(task.weights_folder) if task.weights_folder is not None else None
    if not around.place.leads:
        around.place.wait()
    weights = read_weights(task.model, folder)
    if around.place.leads:
        around.place.wait()
    if weights is None:
        return None, {"source": "random", "id": "random", "sha256": "", "licence": "none: trained from scratch"}
    target = model.backbone if isinstance(model, ProbeModel | PixelModel) else model
    adapted = load_into(target, weights, manifest.channels, task.model.name)
    for sentence in adapted:
        around.progress.note(f"weights {weights.provenance['id']}: {sentence}")
    return weights, weights.provenance | {"adapted": list(adapted)}


def _preprocessing(
    task: LearnTask,
    manifest: Manifest,
    store: TileStore,
    around: Surroundings,
    model: tuple[StartingWeights | None, ImageSize],
) -> Preprocessing:
    """Fit it once a run; the first process measures, the others read what it wrote."""
    path, place = around.folder.preprocessing, around.place
    if place.leads and not path.is_file():
        weights, img_size = model
        fitted, notes = fit_preprocessing(
            task.preprocess,
            manifest,
            store,
            img_size=img_size,
            weights_statistics=statistics_for(weights, manifest.channels),
        )
        for note in notes:
            around.progress.note(note)
        write_json(path, fitted.to_json())
    place.wait()
    return Preprocessing.from_json(json.loads(path.read_text(encoding="utf-8")))
