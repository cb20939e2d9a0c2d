"""A model that takes what users have: files, folders, arrays; and says what it will not take, and why."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from vitpipe.domains.base import Domain
from vitpipe.domains.known import domain_of
from vitpipe.errors import ContractError, DataError, UnreadableSource
from vitpipe.evaluate.calibration import Calibration, load_calibration
from vitpipe.evaluate.predictions import joined_names
from vitpipe.evaluate.units import probability_columns
from vitpipe.infer.batches import SharedBatches
from vitpipe.infer.contract import MISFITS, ModelContract, RangeWatch
from vitpipe.infer.package import open_package
from vitpipe.infer.reading import place_of, read_sources
from vitpipe.learn.model import LoadedModel, ModelRecord, load_model
from vitpipe.records import BOX_COLUMN, Json, Rejected, Source, Task, Window, count_codes
from vitpipe.tiling import Block, cut

PLACE_COLUMNS = ("source_id", *Window._fields, BOX_COLUMN, "valid_fraction")

_WAITING_BYTES: Final = 64 << 20
"""Tiles that may wait for the model, where more than one batch does."""


@dataclass(frozen=True, slots=True)
class PredictionResult:
    """What a model says of some sources or tiles."""

    tiles: pd.DataFrame
    """A row a tile: its place (see `PLACE_COLUMNS`, for files), predicted, p_<class>, conformal_set, abstain."""
    sources: pd.DataFrame
    """A row a source: tiles pooled by the mean of their probabilities; empty for arrays."""
    rejected: tuple[Rejected, ...]
    """Files and sources that were not used, and why."""
    notes: tuple[str, ...]
    """Sentences for the user."""
    used: tuple[Source, ...] = ()
    """The sources that the tiles are of; none for arrays."""


class Predictor:
    """One model with everything that it needs.

    Args:
        model: weights and preprocessing.
        calibration: from logits to probabilities, sets and abstentions.
        contract: what the model was made for.
    """

    def __init__(self, model: LoadedModel, calibration: Calibration, contract: ModelContract) -> None:
        self._model = model
        self.calibration = calibration
        self.contract = contract

    @classmethod
    def load(cls, folder: Path, *, sha256: str | None = None) -> Predictor:
        """Load a package folder: safetensors and JSON, no code in it is run.

        Args:
            folder: see `vitpipe.infer.package`.
            sha256: of model.safetensors, where it is known.

        Raises:
            ContractError: the package is not whole, or not the one that is meant.
        """
        package = open_package(folder, sha256=sha256)
        return cls(load_model(folder), load_calibration(folder), ModelContract.read(package.description))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the outputs."""
        return self.contract.classes

    @property
    def record(self) -> ModelRecord:
        """What ``model.json`` says: architecture, starting weights, training."""
        return self._model.record

    @property
    def batch_size(self) -> int:
        """Tiles that the model runs over at once."""
        return self._model.record.batch_size

    def logits(self, tiles: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[Any]:
        """Give logits (N, K) of tiles (N, C, H, W) or (N, C, D, H, W) in physical units, and their masks."""
        return np.asarray(self._model.logits(tiles, valid))

    def pixels(self, tiles: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Give what a model of pixels says: calibrated probabilities (N, K, H, W), or values (N, 1, H, W).

        It is a `vitpipe.infer.mapping.PixelModel`; of volumes there is a depth before the rows.
        """
        logits = self._model.logits(tiles, valid)
        return logits if self.contract.task is Task.REGRESSION else pixel_probabilities(self.calibration, logits)

    def columns(self, logits: NDArray[Any]) -> pd.DataFrame:
        """Turn logits (N, K) into the columns predicted, p_<class>, conformal_set and abstain."""
        probabilities = self.calibration.probabilities(logits)
        return self._columns_of(probabilities).assign(
            conformal_set=joined_names(self.calibration.prediction_sets(probabilities), self.classes),
            abstain=self.calibration.abstain(probabilities),
        )

    def predict_tiles(self, tiles: ArrayLike, valid: NDArray[np.bool_] | None = None) -> PredictionResult:
        """Predict on an array.

        Args:
            tiles: (N, C, H, W), or (C, H, W) for one, in the physical units and the channel order of the model; with
                an axis D after the channels where the model takes volumes.
            valid: the shape without channels, False where a pixel counts for nothing.

        Raises:
            ContractError: the array does not fit the model, or the model is one of pixels.
        """
        self._require_tiles("`Predictor.pixels` gives them for an array")
        values, mask = self.contract.check_tiles(np.asarray(tiles), valid)
        watch = RangeWatch(self.contract)
        watch.add(values, mask)
        return PredictionResult(
            tiles=self.columns(self.logits(values, mask)),
            sources=pd.DataFrame(),
            rejected=(),
            notes=tuple(watch.notes()),
        )

    def predict_path(self, place: str | Path, *, with_paths: bool = False) -> PredictionResult:
        """Predict on a file, or on all files below a folder: a DICOM series, a GeoTIFF scene, photographs.

        The tiles are cut as those of training were: same resampling, same grid, same pixels.

        Args:
            place: a path, a ``file://`` URI, or the address of a scene (``https://``, ``s3://``).
            with_paths: add the column ``path`` (relative to `place`). File names may hold the names of patients.

        Raises:
            ConfigError: there is nothing at `place`.
            ContractError: what is there can be read, but is not what the model was made for; or the model is one of
                pixels.
            DataError: nothing there can be read; names the codes.
        """
        self._require_tiles("`vitpipe predict` writes maps of scenes and masks of series")
        path = place_of(place)
        domain = self.domain
        rejected: list[Rejected] = []
        tables: list[pd.DataFrame] = []
        watch = RangeWatch(self.contract)
        batches = SharedBatches(self.logits, self.tiles_at_once)
        used: dict[str, Source] = {}
        for item in self.sources(path):
            refusal = item if isinstance(item, Rejected) else self._cut_source(item, domain, watch, (batches, tables))
            if refusal is not None:
                rejected.append(refusal)
            else:
                assert isinstance(item, Source)
                used[item.source_id] = item
        if not used:
            raise nothing_usable(path, rejected)
        tiles = self._joined(tables, batches.finish(), used)
        if with_paths:
            tiles["path"] = tiles["source_id"].map({name: relative_name(item, path) for name, item in used.items()})
        return PredictionResult(tiles, self._pool(tiles), tuple(rejected), tuple(watch.notes()), tuple(used.values()))

    def reading(self, options: Mapping[str, Json]) -> Predictor:
        """Give the same model with other reading options: how files are named, in which units their values are."""
        contract = dataclasses.replace(self.contract, source={**self.contract.source, **options})
        return Predictor(self._model, self.calibration, contract)

    @property
    def domain(self) -> Domain:
        """The kind of data that the model reads."""
        return domain_of(str(self.contract.source["kind"]))

    def sources(self, path: Path | str) -> Iterator[Source | Rejected]:
        """Give the sources of a place that fit the model, each content once, and what does not, and why."""
        seen: set[str] = set()
        for item in read_sources(path, self.domain, self.contract.source_recipe(str(path))):
            refusal = item if isinstance(item, Rejected) else self._refuse(item, seen)
            if isinstance(item, Source) and refusal is None:
                seen.add(item.source_id)
            yield refusal or item

    @property
    def tiles_at_once(self) -> int:
        """Give the tiles of a batch for each core, as far as they are small."""
        batch = self._model.record.batch_size
        batch_bytes = 4 * batch * math.prod(self.contract.tile_shape)
        return batch * max(1, min(os.cpu_count() or 1, _WAITING_BYTES // batch_bytes))

    def _require_tiles(self, remedy: str) -> None:
        if self.contract.per_pixel:
            raise ContractError(f"the model is one of pixels ({self.contract.task}) and gives no table; {remedy}")

    def _joined(self, tables: list[pd.DataFrame], logits: NDArray[Any], used: Mapping[str, Source]) -> pd.DataFrame:
        """Put places and logits of the used sources side by side: one that broke half-way leaves nothing."""
        places = pd.concat(tables, ignore_index=True)
        kept = places["source_id"].isin(list(used)).to_numpy()
        return pd.concat([places[kept].reset_index(drop=True), self.columns(logits[kept])], axis=1)

    def _refuse(self, source: Source, seen: set[str]) -> Rejected | None:
        if source.source_id in seen:
            return Rejected(source.uri, "DUPLICATE", "the same content was given twice; it was predicted on once")
        misfit = self.contract.misfit(source)
        return Rejected(source.uri, *misfit) if misfit else None

    def _cut_source(
        self, source: Source, domain: Domain, watch: RangeWatch, into: tuple[SharedBatches, list[pd.DataFrame]]
    ) -> Rejected | None:
        """Cut a source; its tiles go into the batches and their places into the tables."""
        batches, tables = into
        before = len(tables)
        try:
            with domain.open(source) as raster:
                for block in cut(raster, self.contract.tiles, source_id=source.source_id):
                    watch.add(block.tiles, block.valid)
                    batches.add(block.tiles, block.valid)
                    tables.append(_places(source, block))
        except UnreadableSource as error:
            return Rejected(source.uri, error.code, error.reason)
        if len(tables) == before:
            share = self.contract.tiles.min_valid_fraction
            return Rejected(source.uri, "NO_TILES", f"no tile of it has {share:.0%} valid pixels, as the model asks")
        return None

    def _pool(self, tiles: pd.DataFrame) -> pd.DataFrame:
        """Pool tiles to sources by their mean probability."""
        names = probability_columns(self.classes)
        by_source = tiles.groupby("source_id", sort=False)
        probabilities = by_source[names].mean()
        table = self._columns_of(probabilities.to_numpy(dtype=np.float64))
        table.insert(0, "source_id", probabilities.index.to_numpy())
        table["tiles"] = by_source.size().to_numpy()
        table["abstain_share"] = by_source["abstain"].mean().to_numpy()
        if "path" in tiles:
            table["path"] = by_source["path"].first().to_numpy()
        return table

    def _columns_of(self, probabilities: NDArray[np.float64]) -> pd.DataFrame:
        table = pd.DataFrame({"predicted": joined_names(self.calibration.decide(probabilities), self.classes)})
        for number, name in enumerate(probability_columns(self.classes)):
            table[name] = probabilities[:, number]
        return table


def _places(source: Source, block: Block) -> pd.DataFrame:
    """Give the places of a block's tiles: `PLACE_COLUMNS`."""
    places = pd.DataFrame(np.asarray(block.windows), columns=list(Window._fields))
    places.insert(0, "source_id", source.source_id)
    places[BOX_COLUMN] = pd.Series(block.boxes_mm, dtype="object")
    places["valid_fraction"] = np.asarray(block.valid_fraction)
    return places


def relative_name(source: Source, path: Path | str) -> str:
    """Name a source by its place below what was predicted on; one that lies at an address by that."""
    file = Path(source.uri)
    if isinstance(path, str) or "://" in source.uri:
        return source.uri
    return file.relative_to(path).as_posix() if path.is_dir() and file != path else file.name


def pixel_probabilities(calibration: Calibration, logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Turn logits (N, K, H, W) into probabilities: ``softmax(logits / T + log_prior)`` over the classes, in float32."""
    import torch

    prior = torch.tensor(calibration.log_prior, dtype=torch.float32).reshape(-1, *[1] * (logits.ndim - 2))
    scaled = torch.from_numpy(np.ascontiguousarray(logits)) / calibration.temperature + prior
    return np.asarray(torch.softmax(scaled, dim=1).numpy())


def nothing_usable(path: Path | str, rejected: list[Rejected]) -> ContractError | DataError:
    """Say why nothing of a path could be used."""
    told = [item for item in rejected if not item.junk] or rejected
    if not told:
        return DataError(f"{path} holds no file")
    codes = ", ".join(f"{code} ({number})" for code, number in count_codes(told).items())
    misfits = [item for item in told if item.code in MISFITS]
    if len(misfits) == len(told):
        return ContractError(f"{path} does not fit the model: {misfits[0].reason}")
    counts = count_codes(told)
    shown = max(told, key=lambda item: counts[item.code])
    return DataError(f"nothing in {path} can be used: {codes}. {shown.code}: {shown.reason}")
