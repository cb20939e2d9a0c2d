"""One seamless map of a scene: what reading, cutting, blending and writing add to the model.

Goals: at most 2.5 ms of one core a tile, a third of MONAI's sliding window at most, a tenth of its memory, 97 % of the
bare model's throughput, and memory that the height of the scene does not change.
"""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.windows import Window as RasterioWindow

from benchmarks.frame import Case, Table
from vitpipe.config import GeotiffSource
from vitpipe.domains.base import ScanContext
from vitpipe.domains.geotiff import Geotiff
from vitpipe.infer.mapping import ClassLayers, Layers, MapPlan, MapTask, PixelModel, make_map, stitch
from vitpipe.infer.mapping.cover import Blend, Cover
from vitpipe.pseudonym import Pseudonymiser
from vitpipe.records import FileRecord, Source

_BANDS = 4
_SIZE = 224
_OVERLAP = 0.25
_BATCH = 16
_STEP = 16
"""Every 16th pixel counts in the checksum."""


def tables(folder: Path, *, large: bool) -> list[Table]:
    """Give the tables: the stitching alone, a ViT, and with `large` the memory of tall scenes."""
    edge = 8192 if large else 4096
    path = folder / "scene.tif"
    write_scene(path, edge)
    tiles = len(Cover.of(edge, _SIZE, overlap=_OVERLAP, blend=Blend.HANN).starts) ** 2
    at = (str(path),)
    made = [
        Table(
            f"Stitching: {_BANDS} x uint16 x {edge}^2 to as many floats, tiles {_SIZE}, overlap 25 %, a model that "
            "gives its input back",
            (
                Case("vitpipe stitch", stitched, at, ("torch",)),
                Case(
                    "vitpipe, written as COGs (4 classes)",
                    written,
                    (*at, "classes"),
                    ("torch",),
                    result_may_differ=True,
                ),
                Case("vitpipe stitch, d4", stitched_d4, at, ("torch",), result_may_differ=True),
                Case("monai sliding_window_inference, gaussian", monai_window, at, ("monai.inferers",)),
            ),
            tiles,
            "tiles",
        )
    ]
    made.append(_vit_table(folder, 4096 if large else 2048))
    if large:
        heights = (4_000, 40_000)
        for height in heights:
            write_plain(folder / f"{height}.tif", height, 40_000)
        made.append(
            Table(
                "Memory: 40,000 columns of one uint8 band to a map of two classes, written as COGs",
                tuple(
                    Case(
                        f"vitpipe, {height:,} rows",
                        written,
                        (str(folder / f"{height}.tif"), "two"),
                        ("torch",),
                        result_may_differ=True,
                    )
                    for height in heights
                ),
                1,
                "scene",
            )
        )
    return made


def _vit_table(folder: Path, edge: int) -> Table:
    """Give the table of a small ViT: what a map costs beside its model, and whether the model is kept busy."""
    path = folder / f"vit-{edge}.tif"
    write_scene(path, edge)
    at, needs = (str(path),), ("torch", "timm")
    count = len(Cover.of(edge, _SIZE, overlap=_OVERLAP, blend=Blend.HANN).starts) ** 2
    return Table(
        f"A map by vit_tiny_patch16_224 ({_BANDS} bands, 4 classes): {edge}^2, tiles {_SIZE}, overlap 25 %",
        (
            Case("vitpipe, written as COGs", vit_map, at, needs, result_may_differ=True),
            Case("vitpipe stitch", vit_stitch, at, needs, result_may_differ=True),
            Case("limit: the bare model on as many tiles", vit_bare, (count,), needs, result_may_differ=True),
            Case(
                "monai sliding_window_inference, gaussian",
                vit_monai,
                at,
                ("monai.inferers", "timm"),
                result_may_differ=True,
            ),
        ),
        count,
        "tiles",
        (
            'The throughput of the bare model that a map reaches is the limit\'s "wall x ours": reading, blending and',
            'writing go on beside the model. "x ours" is its share of all CPU time.',
        ),
    )


def write_scene(path: Path, edge: int) -> None:
    """Write a scene that costs next to nothing to decode: uncompressed blocks."""
    rng = np.random.default_rng(0)
    profile = {
        "driver": "GTiff", "dtype": "uint16", "count": _BANDS, "height": edge, "width": edge, "tiled": True,
        "blockxsize": 512, "blockysize": 512, "interleave": "band", "crs": "EPSG:32632",
        "transform": rasterio.Affine(10, 0, 500_000, 0, -10, 4_000_000),
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as target:
        for row in range(0, edge, 512):
            block = np.kron(rng.integers(1, 1000, (_BANDS, 32, edge // 16)), np.ones((16, 16)))
            target.write(block.astype("uint16"), window=RasterioWindow(0, row, edge, 512))


def write_plain(path: Path, height: int, width: int) -> None:
    """Write a wide scene of one band."""
    profile = {
        "driver": "GTiff", "dtype": "uint8", "count": 1, "height": height, "width": width, "tiled": True,
        "blockxsize": 512, "blockysize": 512, "compress": "zstd", "zstd_level": 1, "crs": "EPSG:32632",
        "transform": rasterio.Affine(10, 0, 500_000, 0, -10, 4_000_000),
    }  # fmt: skip
    wave = 127 + 100 * np.sin(np.arange(width) / 700)
    with rasterio.open(path, "w", **profile) as target:
        for row in range(0, height, 512):
            rows = min(512, height - row)
            block = np.broadcast_to(np.roll(wave, row).astype("uint8"), (1, rows, width))
            target.write(block, window=RasterioWindow(0, row, width, rows))


def source_of(path: Path) -> Source:
    """Index a scene as ingest does."""
    context = ScanContext(path.parent, Pseudonymiser(b"bench"), GeotiffSource(path=str(path.parent)))
    domain = Geotiff()
    header = domain.index(path, context)
    if not isinstance(header, dict):
        raise TypeError(f"the scene was rejected: {header}")
    stat = path.stat()
    (source,) = domain.assemble([FileRecord(str(path), stat.st_size, stat.st_mtime_ns, "0" * 32, header)], context)
    if not isinstance(source, Source):
        raise TypeError(f"the scene was rejected: {source}")
    return source


def same(tiles: NDArray[np.float32], _valid: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Give the tiles back."""
    return tiles


def shares(tiles: NDArray[np.float32], _valid: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Give bands as shares of 1000: four of them stand for probabilities."""
    return tiles * np.float32(0.001)


def two(tiles: NDArray[np.float32], _valid: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Give two classes of one band."""
    share = tiles / np.float32(255)
    return np.concatenate([share, 1 - share], axis=1)


def stitched(path: str) -> float:
    """Stitch, and look at some of the pixels."""
    return _stitched(path)


def stitched_d4(path: str) -> float:
    """Stitch the mean of eight turns and flips."""
    return _stitched(path, d4=True)


def _stitched(path: str, *, d4: bool = False) -> float:
    total = 0.0
    with Geotiff().open(source_of(Path(path))) as raster:
        for rows in stitch(raster, same, MapPlan(_SIZE, _BANDS, _OVERLAP, d4=d4, batch=_BATCH)):
            start = -rows.row % _STEP
            total += float(rows.values[:, start::_STEP, ::_STEP].sum(dtype=np.float64))
    return _checksum(total)


def _checksum(total: float) -> float:
    """Round: a blend that divides by its weights is not exact."""
    return round(total, -2)


def written(path: str, what: str) -> float:
    """Write the files of a map."""
    model: PixelModel = two if what == "two" else shares
    layers: Layers = ClassLayers(("low", "high") if what == "two" else tuple("abcd"))
    return _written(path, model, layers)


def _written(path: str, model: PixelModel, layers: Layers) -> float:
    with tempfile.TemporaryDirectory(dir=Path(path).parent) as folder, Geotiff().open(source_of(Path(path))) as raster:
        plan = MapPlan(_SIZE, layers.outputs, _OVERLAP, batch=_BATCH)
        made = make_map(raster, model, MapTask(Path(folder) / "map", {}, plan, layers))
        return float(sum((made.folder / name).stat().st_size for name in made.files))


def monai_window(path: str) -> float:
    """Map as MONAI does: the scene and the map as whole arrays."""
    found = _monai(path, lambda tiles: tiles)
    return _checksum(float(found[:, ::_STEP, ::_STEP].double().sum()))


def _monai(path: str, predictor: Any) -> Any:  # noqa: ANN401 - tensors
    import torch
    from monai.inferers import sliding_window_inference

    with rasterio.open(path) as file:
        image = torch.from_numpy(file.read().astype("float32"))[None]
    with torch.inference_mode():
        return sliding_window_inference(image, _SIZE, _BATCH, predictor, overlap=_OVERLAP, mode="gaussian")[0]


@cache
def _vit() -> Any:  # noqa: ANN401 - a module
    import timm
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)
    vit = timm.create_model("vit_tiny_patch16_224", in_chans=_BANDS, num_classes=0).eval()
    head = torch.nn.Linear(vit.embed_dim, 4)

    def network(images: Any) -> Any:  # noqa: ANN401 - tensors
        tokens = head(vit.forward_features(images / 1000)[:, 1:])
        grid = tokens.transpose(1, 2).reshape(len(images), 4, _SIZE // 16, _SIZE // 16)
        return torch.nn.functional.interpolate(grid, size=(_SIZE, _SIZE), mode="bilinear").softmax(1)

    return network


def vit_stitch(path: str) -> float:
    """Map with a ViT, and write nothing."""
    total = 0.0
    with Geotiff().open(source_of(Path(path))) as raster:
        for rows in stitch(raster, _vit_model(), MapPlan(_SIZE, 4, _OVERLAP, batch=_BATCH)):
            total += float(rows.values[0, 0, 0])
    return total


def vit_map(path: str) -> float:
    """Map with a ViT, and write the files."""
    return _written(path, _vit_model(), ClassLayers(tuple("abcd")))


def _vit_model() -> PixelModel:
    import torch

    network = _vit()

    def model(tiles: NDArray[np.float32], _valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return np.asarray(network(torch.from_numpy(tiles)).numpy())

    return model


def vit_bare(count: int) -> float:
    """Run the model alone."""
    import torch

    network, tiles = _vit(), torch.rand(_BATCH, _BANDS, _SIZE, _SIZE) * 1000
    total = 0.0
    with torch.inference_mode():
        for start in range(0, count, _BATCH):
            total += float(network(tiles[: min(_BATCH, count - start)])[0, 0, 0, 0])
    return total


def vit_monai(path: str) -> float:
    """Map with a ViT as MONAI does; nothing is written."""
    return float(_monai(path, _vit()).argmax(0).sum())
