"""A registered model as a STAC item of the extension MLM: what goes in, how it is scaled, what comes out."""

from __future__ import annotations

import re
from typing import Final

from vitpipe import __version__
from vitpipe.infer.mapping.stac import MULTIHASH_SHA256, STAC_VERSION, class_list, now_utc
from vitpipe.infer.predictor import Predictor
from vitpipe.infer.versions import ModelIdentity
from vitpipe.records import Json, Task

_EXTENSIONS: Final = (
    "https://stac-extensions.github.io/mlm/v1.5.0/schema.json",
    "https://stac-extensions.github.io/file/v2.1.0/schema.json",
    # MLM asks for a list of the bands that inputs name. In an item's properties, where it knows that of STAC 1.1, STAC
    # 1.1 itself forbids it: it stands with the weights, in the older form.
    "https://stac-extensions.github.io/raster/v1.1.0/schema.json",
)
_TASKS: Final = {
    Task.CLASSIFICATION: "classification",
    Task.SEGMENTATION: "semantic-segmentation",
    Task.REGRESSION: "regression",
}
_NAME: Final = re.compile(r"[a-zA-Z][a-zA-Z0-9_.\-\s]+[a-zA-Z0-9]")
"""Of the extension's schema."""
_SEMVER: Final = re.compile(r"\d+\.\d+\.\d+(\+[0-9a-zA-Z.-]+)?")


def model_item(predictor: Predictor, identity: ModelIdentity) -> dict[str, Json]:
    """Describe a model; the item lies nowhere, as what it was trained on stays with its registry.

    Args:
        predictor: the model.
        identity: its name, version, weights and lineage.
    """
    contract, record = predictor.contract, predictor.record
    title = identity.title
    properties: dict[str, Json] = {
        "title": title,
        "description": f"Vision Transformer {record.architecture}, registered as {title}.",
        "datetime": now_utc(),
        "mlm:name": identity.name if _NAME.fullmatch(identity.name) else f"model {identity.name} of vitpipe",
        "mlm:architecture": record.architecture,
        "mlm:tasks": [_TASKS[contract.task]],
        "mlm:framework": "PyTorch",
        "mlm:batch_size_suggestion": record.batch_size,
        "mlm:pretrained": record.weights.get("source") != "random",
        "mlm:input": [_input(predictor)],
        "mlm:output": [_output(predictor)],
        "vitpipe:version": __version__,
        **{f"vitpipe:{name}": value for name, value in identity.facts.items()},
    }
    if not properties["mlm:pretrained"]:
        properties["mlm:pretrained_source"] = None
    if _SEMVER.fullmatch(torch := str(record.versions.get("torch", ""))):
        properties["mlm:framework_version"] = torch
    return {
        "type": "Feature",
        "stac_version": STAC_VERSION,
        "stac_extensions": list(_EXTENSIONS),
        "id": title.replace("/", "-"),
        "geometry": None,
        "properties": properties,
        "links": [],
        "assets": {
            "model": {
                "href": f"models:/{title}",
                "type": "application/octet-stream",
                "title": "Weights in the MLflow registry",
                "roles": ["mlm:model"],
                "mlm:artifact_type": "safetensors.torch.save_file",
                "file:checksum": MULTIHASH_SHA256 + identity.sha256,
                "raster:bands": [{"name": name, "unit": contract.units} for name in contract.channels],
            }
        },
    }


def _input(predictor: Predictor) -> dict[str, Json]:
    contract = predictor.contract
    scaled = zip(contract.preprocessing.mean, contract.preprocessing.std, strict=True)
    through = [] if contract.tiles.depth is None else ["depth"]
    return {
        "name": "tiles",
        "description": f"Tiles in {contract.units}; pixels that are not valid are set to the mean.",
        "bands": list(contract.channels),
        "input": {
            "shape": [-1, *contract.tile_shape],
            "dim_order": ["batch", "bands", *through, "height", "width"],
            "data_type": "float32",
        },
        "value_scaling": [{"type": "z-score", "mean": mean, "stddev": deviation} for mean, deviation in scaled],
        "resize_type": None,
    }


def _output(predictor: Predictor) -> dict[str, Json]:
    contract = predictor.contract
    values = contract.task is Task.REGRESSION
    pixels = list(contract.tile_shape[1:]) if contract.per_pixel else []
    axes = ["depth", "height", "width"][-len(pixels) :] if pixels else []
    described = f"Values in {contract.target_units or contract.units}." if values else "Calibrated probabilities."
    return {
        "name": "values" if values else "probabilities",
        "description": described,
        "tasks": [_TASKS[contract.task]],
        "result": {
            "shape": [-1, contract.outputs, *pixels],
            "dim_order": ["batch", "value" if values else "class", *axes],
            "data_type": "float32",
        },
        "classification:classes": [] if values else class_list(contract.classes),
    }
