"""A trained model as it is kept and used: safetensors and JSON, and one function that gives logits.

The evaluation, the registered model and the predictor all call :meth:`LoadedModel.logits`. A batch always has the same
size and is computed by one thread, so on one kind of CPU a tile's logits do not depend on the other tiles, on their
order, or on the number of cores: they are equal bit for bit.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from vitpipe.atomic import write_folder, write_json
from vitpipe.config import TileRecipe
from vitpipe.errors import ContractError
from vitpipe.learn.architecture import rebuild
from vitpipe.learn.pixel_model import PIXELS, DecoderPlan, rebuild_pixel_model
from vitpipe.learn.preprocessing import ImageSize, Preprocessing
from vitpipe.learn.tensors import write_tensors
from vitpipe.learn.weights import MODEL_FILE, RECORD_FILE
from vitpipe.records import Json, Task

FORMAT = 1
_TOKENS_PER_BATCH = 2048
_LARGEST_BATCH = 64


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """``model.json``: everything but the weights. A model folder is these two files."""

    architecture: str
    """timm's name."""
    overrides: Mapping[str, Json]
    """Keyword arguments of `timm.create_model`."""
    head: str
    """``timm``: the architecture's classifier; ``probe``: one linear layer on class token and mean token; ``pixels``:
    as `decoder` says."""
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    multi_label: bool
    priors: tuple[float, ...]
    """Share of each class among the train tiles, or among their labelled pixels."""
    logit_adjustment: float
    """tau: above 0 the logits are those of balanced classes; add tau * log(prior) for those of the train split."""
    batch_size: int
    """Tiles of every forward pass; part of the numbers' identity."""
    tile_size: int
    """Edge of a stored tile in pixels."""
    tiles: Mapping[str, Json]
    """The tiling recipe."""
    source: Mapping[str, Json]
    """Kind of the source and the options that matter for reading it again."""
    weights: Mapping[str, Json]
    """Where the model started: source, id, sha256, licence, and what was adapted."""
    training: Mapping[str, Json]
    """Recipe, device, precision, threads, seed."""
    digests: Mapping[str, Json]
    """Of the manifest, the configuration and the run."""
    versions: Mapping[str, Json]
    task: Task = Task.CLASSIFICATION
    """What the logits are of; records from before it was written are of tiles."""
    decoder: Mapping[str, Json] = field(default_factory=dict)
    """`DecoderPlan` of a model of pixels."""
    target: Mapping[str, Json] = field(default_factory=dict)
    """Of values: `mean` and `std` of the train split's labelled pixels, `units`. Of classes: `background`, the one of
    pixels on which nothing was drawn, where there is one."""

    @property
    def per_pixel(self) -> bool:
        """Whether the model says something of every pixel."""
        return self.task is not Task.CLASSIFICATION

    @property
    def outputs(self) -> int:
        """Classes, or the one value."""
        return 1 if self.task is Task.REGRESSION else len(self.classes)

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels, in order."""
        return self.preprocessing.channels

    @property
    def units(self) -> str:
        """Physical unit of the tiles."""
        return self.preprocessing.units

    @property
    def tile_recipe(self) -> TileRecipe:
        """How sources are cut."""
        return TileRecipe.model_validate(self.tiles)

    def to_json(self) -> dict[str, Json]:
        """Give a JSON form that :meth:`from_json` reads back exactly."""
        values: dict[str, Json] = {
            name: dict(value) if isinstance(value := getattr(self, name), Mapping) else value
            for name in self.__dataclass_fields__
        }
        if not self.per_pixel:
            # What came with models of pixels is not written for others: their files stay what they were.
            values = {name: value for name, value in values.items() if name in _required()}
        return values | {
            "format": FORMAT,
            "preprocessing": self.preprocessing.to_json(),
            "classes": list(self.classes),
            "priors": list(self.priors),
            "channels": list(self.channels),
            "units": self.units,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> ModelRecord:
        """Read what :meth:`to_json` wrote.

        Raises:
            ContractError: another format, or a key is missing.
        """
        if value.get("format") != FORMAT:
            raise ContractError(
                f"the model is in format {value.get('format')}, this vitpipe reads format {FORMAT}; use the vitpipe "
                f"that wrote it ({value.get('versions')})"
            )
        missing = sorted(_required() - set(value))
        if missing:
            raise ContractError(f"the model's {RECORD_FILE} lacks {', '.join(missing)}; fetch the model again")
        values: dict[str, object] = {name: value[name] for name in cls.__dataclass_fields__ if name in value}
        values["task"] = Task(str(value.get("task", Task.CLASSIFICATION)))
        values["preprocessing"] = Preprocessing.from_json(value["preprocessing"])  # type: ignore[arg-type]
        values["classes"] = tuple(value["classes"])  # type: ignore[arg-type]
        values["priors"] = tuple(value["priors"])  # type: ignore[arg-type]
        return cls(**values)  # type: ignore[arg-type]


def _required() -> set[str]:
    return {each.name for each in fields(ModelRecord) if each.default is MISSING and each.default_factory is MISSING}


class LoadedModel:
    """A model that is ready to use.

    Args:
        module: the network, weights loaded.
        record: its record.
        device: where it computes.
    """

    def __init__(self, module: nn.Module, record: ModelRecord, device: torch.device) -> None:
        self.module = module.eval().requires_grad_(requires_grad=False).to(device)
        self.record = record
        self.device = device

    @property
    def preprocessing(self) -> Preprocessing:
        """From physical units to what the network sees."""
        return self.record.preprocessing

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the logits."""
        return self.record.classes

    @property
    def multi_label(self) -> bool:
        """Whether a tile may have several classes."""
        return self.record.multi_label

    def logits(self, tiles: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Give logits of tiles.

        Args:
            tiles: (N, C, H, W), or volumes (N, C, D, H, W), in physical units (`record.units`), channels as in
                `record.channels`.
            valid: as the tiles, without the channel axis.

        Returns:
            float32 (N, K). Of every pixel (N, K, H, W), volumes (N, K, D, H, W), at the tiles' size; values
            (N, 1, H, W) in the label's units.

        Raises:
            ContractError: the shapes or the number of channels do not fit.
        """
        record = self.record
        tile_px = tuple(DecoderPlan.from_json(record.decoder).tile_px) if record.per_pixel else ()
        if record.per_pixel and tiles.shape[2:] != tile_px:
            raise ContractError(
                f"tiles of shape {tuple(tiles.shape)} do not fit: the model gives maps of "
                f"{' x '.join(map(str, tile_px))} pixels; cut tiles of this size"
            )
        if not len(tiles):
            return np.empty((0, record.outputs, *tile_px), np.float32)
        found = forward_fixed(self.module, self, tiles, valid)
        if record.task is Task.REGRESSION:
            found *= np.float32(float(str(record.target["std"])))
            found += np.float32(float(str(record.target["mean"])))
        return found


def forward_fixed(
    module: nn.Module, model: LoadedModel, tiles: NDArray[np.float32], valid: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Run a module over tiles in batches of the fixed size (the last one padded), one CPU thread a batch.

    Args:
        module: what is run: the model's module or a part of it.
        model: gives preprocessing, batch size and device.
        tiles: (N, C, H, W) or (N, C, D, H, W) in physical units.
        valid: as the tiles, without the channel axis.

    Returns:
        float32 (N, F), or whatever else the module gives of each tile.
    """
    size = model.record.batch_size

    def run(start: int) -> torch.Tensor:
        part = np.zeros((size, *tiles.shape[1:]), np.float32)
        mask = np.zeros((size, *valid.shape[1:]), np.bool_)
        count = len(tiles[start : start + size])
        part[:count], mask[:count] = tiles[start : start + size], valid[start : start + size]
        with torch.inference_mode():
            images = model.preprocessing.apply(
                torch.from_numpy(part).to(model.device), torch.from_numpy(mask).to(model.device)
            )
            result: torch.Tensor = module(images)
        return result.float()[:count].cpu()

    starts = range(0, len(tiles), size)
    if model.device.type != "cpu":
        return np.concatenate([run(start).numpy() for start in starts])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(min(len(starts), os.cpu_count() or 1)) as pool:
            return np.concatenate([part.numpy() for part in pool.map(run, starts)])
    finally:
        torch.set_num_threads(threads)


def batch_size_for(module: nn.Module, img_size: ImageSize) -> int:
    """Choose the fixed batch size: about 2048 tokens, so that one tile alone is not padded to a great deal of work."""
    backbone = getattr(module, "backbone", module)
    patches = getattr(getattr(backbone, "patch_embed", backbone), "num_patches", None)
    if patches is None:
        patches = math.prod(max(1, size // 16) for size in ((img_size,) * 2 if isinstance(img_size, int) else img_size))
    batch = 1
    while batch < _LARGEST_BATCH and 2 * batch * patches <= _TOKENS_PER_BATCH:
        batch *= 2
    return batch


def versions() -> dict[str, Json]:
    """Give the versions of what computes."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "numpy": np.__version__,
    }


def save_model(folder: Path, state: Mapping[str, torch.Tensor], record: ModelRecord) -> None:
    """Write a model folder, whole or not at all.

    Args:
        folder: where; a folder that stands there is kept as it is.
        state: the module's tensors.
        record: everything else.
    """
    with write_folder(folder) as partial:
        write_tensors(partial / MODEL_FILE, state)
        write_json(partial / RECORD_FILE, record.to_json())


def load_model(folder: Path, device: str = "cpu") -> LoadedModel:
    """Load a model folder: safetensors and JSON, nothing else; strict.

    Args:
        folder: as :func:`save_model` wrote it.
        device: ``cpu`` or ``cuda``.

    Raises:
        ContractError: a file is missing or broken, or the weights do not fit the record.
    """
    record_path, weights_path = folder / RECORD_FILE, folder / MODEL_FILE
    try:
        record = ModelRecord.from_json(json.loads(record_path.read_text(encoding="utf-8")))
        state = load_file(weights_path)
    except FileNotFoundError as error:
        raise ContractError(f"{folder} is no model folder: no {Path(str(error.filename)).name}") from error
    except (ValueError, SafetensorError) as error:
        raise ContractError(f"{folder}: the model cannot be read ({error}); fetch it again") from error
    module = _rebuild(record)
    try:
        module.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ContractError(
            f"{weights_path} does not fit {RECORD_FILE}, or the installed timm {timm.__version__} builds "
            f"`{record.architecture}` otherwise than {record.versions.get('timm')}: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error
    return LoadedModel(module, record, torch.device(device))


def _rebuild(record: ModelRecord) -> nn.Module:
    """Build the module that a record describes, weights still fresh."""
    if record.head != PIXELS:
        return rebuild(record.architecture, record.overrides, record.head)
    plan = DecoderPlan.from_json(record.decoder)
    backbone = rebuild(record.architecture, record.overrides, "timm") if record.overrides else None
    return rebuild_pixel_model(plan, backbone)
