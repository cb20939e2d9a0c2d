"""Maps of the edge cases of rasterio and stars lie where their scenes do, and hold nodata where these do."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray

from tests.infer.infer_cases import make_package
from tests.infer.pixel_cases import IDENTITY, BrightModel
from vitpipe.config import GeotiffSource, MapRecipe
from vitpipe.domains.geotiff import Geotiff
from vitpipe.evaluate.calibration import load_calibration
from vitpipe.infer.contract import ModelContract
from vitpipe.infer.maps import map_source
from vitpipe.infer.package import open_package
from vitpipe.infer.predictor import Predictor
from vitpipe.infer.reading import read_sources
from vitpipe.learn.model import LoadedModel, load_model
from vitpipe.records import Source, Task, Window

EDGE = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "geotiff_edge" / "files"
pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not EDGE.is_dir(), reason=f"no folder {EDGE}"),
    pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning"),
]


class FirstChannel(BrightModel):
    """Says `water` where the first channel is above the median of its tile."""

    def logits(self, tiles: NDArray, valid: NDArray) -> NDArray:
        """Give logits (N, 2, H, W)."""
        self.tiles += len(valid)
        band = tiles[:, 0] - np.median(tiles[:, 0], axis=(1, 2), keepdims=True)
        return np.stack([-band, band], axis=1).astype(np.float32)


def predictor_for(source: Source, folder: Path) -> Predictor:
    """Make a predictor of pixels that takes the channels of a source."""
    package = make_package(folder, channels=source.channels, units=source.units, source={"kind": "geotiff"})
    contract = dataclasses.replace(ModelContract.read(open_package(package).description), task=Task.SEGMENTATION)
    model = FirstChannel(load_model(package).record, contract.outputs)
    return Predictor(cast("LoadedModel", model), load_calibration(package), contract)


def test_maps_of_all_edge_files_lie_where_their_scenes_do(tmp_path: Path) -> None:
    predictors: dict[tuple[tuple[str, ...], str], Predictor] = {}
    mapped = []
    for source in read_sources(EDGE, Geotiff(), GeotiffSource(path=str(EDGE))):
        if not isinstance(source, Source):
            continue
        kind = source.channels, source.units
        if kind not in predictors:
            predictors[kind] = predictor_for(source, tmp_path / f"model-{len(predictors)}")
        name = Path(source.uri).name
        folder = tmp_path / name
        map_source(predictors[kind], source, folder, MapRecipe(overlap=0), IDENTITY)
        mapped.append(name)
        window = Window(0, 0, 0, source.grid.height, source.grid.width)
        with predictors[kind].domain.open(source) as raster:
            _, valid = raster.read(window)
        item = json.loads((folder / "item.json").read_text(encoding="utf-8"))
        with rasterio.open(source.uri) as scene, rasterio.open(folder / "classes.tif") as found:
            assert found.shape == scene.shape, name
            assert found.transform == scene.transform, name
            assert found.crs == scene.crs, name
            assert ((found.read(1) != found.nodata) == valid).all(), name
            assert (item["geometry"] is not None) == (scene.crs is not None), name
    # The corners of the geostationary disk lie on no ground.
    assert len(mapped) == 28
    assert "rasterio__goes.tif" in mapped
