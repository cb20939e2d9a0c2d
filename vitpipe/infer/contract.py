"""What a model was made for, read from model.json: the refusals rest on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pydantic
from numpy.typing import NDArray

from vitpipe.config import SourceRecipe, TileRecipe
from vitpipe.errors import ContractError
from vitpipe.learn.preprocessing import Preprocessing
from vitpipe.records import Source, Task
from vitpipe.resample import tile_channels

OTHER_CHANNELS = "OTHER_CHANNELS"
OTHER_UNITS = "OTHER_UNITS"
OTHER_MODALITY = "OTHER_MODALITY"
MISFITS = frozenset({OTHER_CHANNELS, OTHER_UNITS, OTHER_MODALITY})
"""Codes of sources that can be read, but are not what the model was made for."""

_SOURCE = pydantic.TypeAdapter[Any](SourceRecipe)


@dataclass(frozen=True, slots=True)
class ModelContract:
    """What goes in."""

    channels: tuple[str, ...]
    units: str
    classes: tuple[str, ...]
    multi_label: bool
    tiles: TileRecipe
    source: Mapping[str, Any]
    """Kind and reading options of the training sources."""
    modalities: tuple[str, ...]
    """DICOM modalities of the training sources; empty: not known."""
    preprocessing: Preprocessing
    task: Task = Task.CLASSIFICATION
    target_units: str = ""
    """Of the values of a regression."""
    background: str | None = None
    """The class of pixels that are none of the things that a model of pixels looks for."""

    @property
    def per_pixel(self) -> bool:
        """Whether the model says something of each pixel, and not of each tile."""
        return self.task is not Task.CLASSIFICATION

    @property
    def reads_dicom(self) -> bool:
        """Whether its sources are DICOM, whatever they come from."""
        return str(self.source["kind"]).startswith("dicom")

    @property
    def masks_stacks(self) -> bool:
        """Whether it gives a class to each pixel of stacks, which have a mask and no map."""
        return self.task is Task.SEGMENTATION and self.reads_dicom

    @property
    def segments(self) -> tuple[str, ...]:
        """The classes without the background."""
        return tuple(name for name in self.classes if name != self.background)

    @property
    def outputs(self) -> int:
        """Classes, or the one value of a regression."""
        return 1 if self.task is Task.REGRESSION else len(self.classes)

    @property
    def tile_shape(self) -> tuple[int, ...]:
        """Channels, height, width; of volumes: channels, depth, height, width."""
        through = () if self.tiles.depth is None else (self.tiles.depth,)
        return len(self.channels), *through, self.tiles.size, self.tiles.size

    @classmethod
    def read(cls, description: Mapping[str, Any]) -> ModelContract:
        """Read model.json.

        Raises:
            ContractError: a key is missing or does not fit.
        """
        modality = description["source"].get("modality") if "source" in description else None
        try:
            return cls(
                channels=tuple(description["channels"]),
                units=str(description["units"]),
                classes=tuple(description["classes"]),
                multi_label=bool(description["multi_label"]),
                tiles=TileRecipe.model_validate(description["tiles"]),
                source=dict(description["source"]),
                modalities=(modality,) if modality else (),
                preprocessing=Preprocessing.from_json(description["preprocessing"]),
                # Models from before there were others are of tiles.
                task=Task(description.get("task", Task.CLASSIFICATION)),
                target_units=str(description.get("target", {}).get("units") or ""),
                background=description.get("target", {}).get("background"),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ContractError(
                f"model.json does not fit this version of vitpipe ({error!r}); train and register the model again"
            ) from error

    def source_recipe(self, path: str) -> Any:  # noqa: ANN401 - one of the source recipes
        """Give the recipe that reads `path` as the training sources were read."""
        return _SOURCE.validate_python({**self.source, "path": path})

    def misfit(self, source: Source) -> tuple[str, str] | None:
        """Say why a source is not what the model was made for: a code and a sentence; None where it is."""
        channels = tile_channels(self.tiles, source.channels)
        if channels != self.channels:
            return OTHER_CHANNELS, (
                f"it has {len(channels)} channels ({', '.join(channels)}), the model takes "
                f"{len(self.channels)} ({', '.join(self.channels)}); give it sources with these, in this order"
            )
        if source.units != self.units:
            return OTHER_UNITS, (
                f"its values are in `{source.units}`, the model takes `{self.units}`; convert them, or train on them"
            )
        modality = source.attributes.get("modality")
        if self.modalities and modality is not None and str(modality) not in self.modalities:
            return OTHER_MODALITY, (
                f"it is of the modality {modality}, the model was trained on {', '.join(self.modalities)}; "
                "use a model that was trained on this modality"
            )
        return None

    def check_tiles(
        self, tiles: NDArray[Any], valid: NDArray[np.bool_] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Check an array of tiles.

        Args:
            tiles: (N, C, H, W) or (C, H, W), of a model of volumes (N, C, D, H, W) or (C, D, H, W), physical units,
                numbers.
            valid: as the tiles, without the channel axis; None: every pixel is valid.

        Returns:
            Tiles as float32, with a first axis, and masks.

        Raises:
            ContractError: dtype, shape, number of channels or tile size do not fit, or valid pixels are NaN.
        """
        if tiles.dtype.kind not in "fiu":
            raise ContractError(f"the array holds {tiles.dtype}; expected numbers in `{self.units}`, such as float32")
        shape = self.tile_shape
        wanted = f"(N, {', '.join(map(str, shape))})"
        if tiles.ndim == len(shape):
            tiles, valid = tiles[None], valid[None] if valid is not None else None
        if tiles.ndim != 1 + len(shape):
            axes = "tiles, channels, slices, rows, columns" if len(shape) == 4 else "tiles, channels, rows, columns"
            raise ContractError(f"the array has the shape {tiles.shape}; expected {wanted}: {axes}")
        if tiles.shape[1] != len(self.channels):
            raise ContractError(
                f"the array has {tiles.shape[1]} channels (shape {tiles.shape}), the model takes {len(self.channels)}: "
                f"{', '.join(self.channels)}, in this order, as {wanted}"
            )
        if tiles.shape[2:] != shape[1:]:
            found, known = (" x ".join(map(str, each)) for each in (tiles.shape[2:], shape[1:]))
            raise ContractError(
                f"the tiles are {found} px, the model takes {known} px; cut them to this size at "
                "the resolution of the training data, or give the file to predict_path, which does"
            )
        expected = (len(tiles), *shape[1:])
        mask = np.ones(expected, bool) if valid is None else np.asarray(valid)
        if mask.shape != expected or mask.dtype != np.bool_:
            raise ContractError(f"the valid mask is {mask.dtype} of shape {mask.shape}; expected bool {expected}")
        values = np.ascontiguousarray(tiles, dtype=np.float32)
        bad = ~np.isfinite(values).all(axis=1) & mask
        if bad.any():
            count = int(bad.reshape(len(bad), -1).any(axis=1).sum())
            raise ContractError(
                f"{int(bad.sum())} pixels of {count} tiles are NaN or infinite; give a "
                "`valid` mask (the shape without channels) that is False there, and they count for nothing"
            )
        return np.where(mask[:, None], values, np.float32(0)), mask


class RangeWatch:
    """Adds up what the model is given, to say when it lies far from what it was trained on.

    Args:
        contract: mean and deviation of each channel in training, after clipping.
    """

    _FAR = 6.0
    _SPREAD = 20.0

    def __init__(self, contract: ModelContract) -> None:
        self._contract = contract
        channels = len(contract.channels)
        self._count = 0
        self._sum = np.zeros(channels)
        self._squares = np.zeros(channels)

    def add(self, tiles: NDArray[np.float32], valid: NDArray[np.bool_]) -> None:
        """Add tiles (N, C, ...) and their masks (N, ...)."""
        values = np.moveaxis(tiles, 1, -1)[valid].astype(np.float64)
        if self._contract.preprocessing.clip is not None:
            values = values.clip(*self._contract.preprocessing.clip)
        self._count += len(values)
        self._sum += values.sum(axis=0)
        self._squares += np.square(values).sum(axis=0)

    def notes(self) -> list[str]:
        """Give a sentence a channel whose values are far from those of training."""
        if self._count == 0:
            return []
        known = self._contract.preprocessing
        mean = self._sum / self._count
        std = np.sqrt(np.maximum(self._squares / self._count - mean**2, 0))
        return [
            sentence
            for name, found, expected in zip(
                self._contract.channels,
                zip(mean, std, strict=True),
                zip(known.mean, known.std, strict=True),
                strict=True,
            )
            if (sentence := self._say(name, found, expected))
        ]

    def _say(self, name: str, found: Sequence[float], expected: Sequence[float]) -> str:
        far = abs(found[0] - expected[0]) > self._FAR * expected[1]
        narrow = found[1] * self._SPREAD < expected[1] or found[1] > self._SPREAD * expected[1]
        # A channel of one value in training has no deviation, and 1 stands for it; here it has that value again.
        same = found[1] == 0 and bool(np.isclose(found[0], expected[0], rtol=1e-6, atol=1e-6))
        if same or not (far or narrow):
            return ""
        return (
            f"channel {name}: the values have mean {found[0]:.4g} and deviation {found[1]:.4g}, in training they had "
            f"{expected[0]:.4g} and {expected[1]:.4g}; check that they are in `{self._contract.units}`: the "
            "predictions are a guess"
        )
