"""Targets of every pixel: one array a shard of tiles, beside the label tables and never in the tile store.

``labels/<digest>/<shard_id>.npy`` holds (N, H, W), of volumes (N, D, H, W), for all N tiles of the shard, in its order:
class indices as uint8 with `IGNORE` where a pixel has no label, or float32 with NaN there (regression). New labels
write new arrays; no pixel of a tile is touched.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vitpipe.atomic import write_file
from vitpipe.errors import ContractError
from vitpipe.records import Task

IGNORE: Final = 255
"""In an array of class indices: not labelled, not valid, or of the ignored value. So 255 classes at most."""
MOST_CLASSES: Final = 255
_OPEN_SHARDS: Final = 64
_DTYPES: Final[dict[Task, np.dtype[Any]]] = {Task.SEGMENTATION: np.dtype("u1"), Task.REGRESSION: np.dtype("<f4")}


def targets_path(folder: Path, shard_id: str) -> Path:
    """Name the array of a shard; its existence is the commit."""
    return folder / f"{shard_id}.npy"


def write_targets(folder: Path, shard_id: str, targets: NDArray[Any]) -> Path:
    """Write the targets of all tiles of a shard, whole or not at all.

    Args:
        folder: of one label set and one tile store.
        shard_id: the shard.
        targets: uint8 class indices with `IGNORE`, or float32 with NaN; in the order of the shard's tiles.

    Raises:
        ContractError: another dtype.
        WorkspaceError: it cannot be written.
    """
    if targets.dtype not in _DTYPES.values():
        raise ContractError(f"targets are uint8 class indices or float32 values, got {targets.dtype}")
    path = targets_path(folder, shard_id)
    with write_file(path) as partial, partial.open("wb") as stream:
        np.save(stream, np.ascontiguousarray(targets), allow_pickle=False)
    return path


class PixelTargets:
    """Reads the targets of tiles; the arrays are mapped into memory.

    Args:
        folder: where :func:`write_targets` wrote.
        task: segmentation or regression.
        tile_shape: of one tile's targets: (H, W), of volumes (D, H, W).
    """

    def __init__(self, folder: Path, task: Task, tile_shape: tuple[int, ...]) -> None:
        self.folder = folder
        self.task = task
        self.tile_shape = tile_shape
        self._dtype = _DTYPES[task]
        self._maps: OrderedDict[str, NDArray[Any]] = OrderedDict()

    def gather(self, rows: pd.DataFrame) -> NDArray[Any]:
        """Read the targets of tiles.

        Args:
            rows: `shard_id` and `shard_row`, as in the manifest.

        Returns:
            (N, H, W) or (N, D, H, W): uint8 with `IGNORE`, or float32 with NaN.

        Raises:
            ContractError: an array is missing, or is not what these tiles need.
        """
        out = np.empty((len(rows), *self.tile_shape), self._dtype)
        codes, names = pd.factorize(rows["shard_id"])
        shard_rows = rows["shard_row"].to_numpy(np.int64)
        for code, name in enumerate(names):
            stored, places = self._map(str(name)), np.flatnonzero(codes == code)
            wanted = shard_rows[places]
            if int(wanted.min()) < 0 or int(wanted.max()) >= len(stored):
                raise ContractError(
                    f"{targets_path(self.folder, str(name))} holds the targets of {len(stored)} tiles, row "
                    f"{int(wanted.max())} was asked for: {_remedy(self.folder)}"
                )
            order = np.argsort(wanted, kind="stable")
            out[places[order]] = stored[wanted[order]]
        return out

    def _map(self, shard_id: str) -> NDArray[Any]:
        if shard_id in self._maps:
            self._maps.move_to_end(shard_id)
            return self._maps[shard_id]
        path = targets_path(self.folder, shard_id)
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ContractError(f"{path} cannot be mapped: {error}; {_remedy(self.folder)}") from error
        if array.dtype != self._dtype or array.shape[1:] != self.tile_shape:
            raise ContractError(
                f"{path} holds {array.dtype} {array.shape[1:]}, a {self.task} of these tiles needs {self._dtype} "
                f"{self.tile_shape}: {_remedy(self.folder)}"
            )
        plain: NDArray[Any] = array.view(np.ndarray)
        self._maps[shard_id] = plain
        while len(self._maps) > _OPEN_SHARDS:
            self._maps.popitem(last=False)
        return plain


def _remedy(folder: Path) -> str:
    return f"delete the folder {folder} and run the same command again, which makes it anew"
