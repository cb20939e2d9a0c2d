"""What STAC 1.1.0 and the schemas of its extensions ask of the fields that are used, in our own words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema

NUMBERS = {"type": "array", "items": {"type": "number"}}
MOMENT = {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$"}
CLASS = {
    "required": ["value", "name"],
    "properties": {
        "value": {"type": "integer"},
        "name": {"type": "string", "minLength": 1},
        "description": {"type": "string"},
        "color_hint": {"pattern": "^[0-9A-Fa-f]{6}$"},
    },
}
BAND = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1},
        "data_type": {"enum": ["uint8", "float32"]},
        "nodata": {"oneOf": [{"type": "number"}, {"enum": ["nan", "inf", "-inf"]}]},
        "unit": {"type": "string"},
        "raster:sampling": {"enum": ["area", "point"]},
        "raster:scale": {"type": "number"},
        "raster:offset": {"type": "number"},
    },
    # The raster extension knows no others, and no `raster:bands` any more.
    "patternProperties": {"^(?!raster:)": {}},
    "additionalProperties": False,
}
FILE = {
    "file:size": {"type": "integer", "minimum": 0},
    # A multihash: SHA-256 (12), 32 bytes (20).
    "file:checksum": {"pattern": "^1220[0-9a-f]{64}$"},
}
BASE: dict[str, Any] = {
    "type": "object",
    "required": ["type", "stac_version", "stac_extensions", "id", "geometry", "properties", "links", "assets"],
    "oneOf": [
        {"required": ["bbox"], "properties": {"geometry": {"type": "object"}, "bbox": NUMBERS | {"minItems": 4}}},
        {"not": {"required": ["bbox"]}, "properties": {"geometry": {"type": "null"}}},
    ],
    "properties": {
        "type": {"const": "Feature"},
        "stac_version": {"const": "1.1.0"},
        "stac_extensions": {
            "uniqueItems": True,
            "items": {"pattern": r"^https://stac-extensions\.github\.io/[a-z]+/v\d+\.\d+\.\d+/schema\.json$"},
        },
        "id": {"type": "string", "minLength": 1},
        "links": {"items": {"required": ["rel", "href"], "additionalProperties": {"type": "string"}}},
    },
}
ITEM: dict[str, Any] = {
    "allOf": [BASE],
    "properties": {
        "properties": {
            "required": ["datetime", "processing:lineage", "processing:software", "proj:shape"],
            "properties": {
                "datetime": MOMENT,
                "processing:lineage": {"type": "string"},
                "processing:software": {"additionalProperties": {"type": "string"}},
                "proj:code": {"type": ["string", "null"], "pattern": "^EPSG:[0-9]+$"},
                "proj:shape": {"minItems": 2, "maxItems": 2, "items": {"type": "integer"}},
                "proj:transform": NUMBERS | {"minItems": 6, "maxItems": 9},
                "proj:bbox": NUMBERS | {"minItems": 4, "maxItems": 4},
            },
            "not": {"required": ["proj:epsg"]},
        },
        "assets": {
            "minProperties": 1,
            "additionalProperties": {
                "required": ["href", "type", "roles", "file:size", "file:checksum"],
                "properties": {
                    **FILE,
                    "bands": {"minItems": 1, "items": BAND},
                    "classification:classes": {"minItems": 1, "uniqueItems": True, "items": CLASS},
                },
                "not": {"required": ["raster:bands"]},
            },
        },
    },
}
STRUCTURE = {
    "required": ["shape", "dim_order", "data_type"],
    "properties": {
        "shape": {"minItems": 1, "items": {"type": "integer", "minimum": -1}},
        "dim_order": {"uniqueItems": True, "items": {"pattern": "^[a-z-_]+$"}},
        "data_type": {"const": "float32"},
    },
}
NAMES_BANDS = {"properties": {"dim_order": {"contains": {"const": "bands"}}}}
SCALING = {"required": ["type", "mean", "stddev"], "properties": {"type": {"const": "z-score"}}}
TASKS = {"items": {"enum": ["classification", "semantic-segmentation", "regression"]}}
MODEL: dict[str, Any] = {
    "allOf": [BASE],
    "properties": {
        "properties": {
            "required": ["datetime", "mlm:name", "mlm:architecture", "mlm:tasks", "mlm:input", "mlm:output"],
            "properties": {
                "datetime": MOMENT,
                "mlm:name": {"pattern": r"^[a-zA-Z][a-zA-Z0-9_.\-\s]+[a-zA-Z0-9]$"},
                "mlm:tasks": TASKS,
                "mlm:framework_version": {"pattern": r"^\d+\.\d+\.\d+(\+[0-9a-zA-Z.-]+)?$"},
                "mlm:pretrained": {"type": "boolean"},
                "mlm:input": {
                    "items": {
                        "required": ["name", "input", "bands"],
                        "properties": {
                            "input": {"allOf": [STRUCTURE, NAMES_BANDS]},
                            "value_scaling": {"minItems": 1, "items": SCALING},
                        },
                    }
                },
                "mlm:output": {
                    "items": {
                        "required": ["name", "tasks", "result"],
                        "properties": {
                            "tasks": TASKS,
                            # Outputs name no bands.
                            "result": {"allOf": [STRUCTURE], "not": NAMES_BANDS},
                            "classification:classes": {"items": CLASS},
                        },
                    }
                },
            },
            # Of STAC 1.1.0: bands are an asset's.
            "not": {"required": ["bands"]},
            "if": {"properties": {"mlm:pretrained": {"const": False}}},
            "then": {"required": ["mlm:pretrained_source"], "properties": {"mlm:pretrained_source": {"const": None}}},
        },
        "assets": {
            "required": ["model"],
            "properties": {
                "model": {
                    # Inputs name bands, so there is a list of bands.
                    "required": ["href", "roles", "mlm:artifact_type", "raster:bands"],
                    "properties": {
                        "raster:bands": {"minItems": 1, "items": {"required": ["name"]}},
                        "roles": {"contains": {"const": "mlm:model"}},
                        **FILE,
                    },
                }
            },
        },
    },
}  # fmt: skip


def read_item(folder: Path) -> dict[str, Any]:
    """Read the item of a map, valid and with all its files there, and with a valid item of the model."""
    item: dict[str, Any] = json.loads((folder / "item.json").read_text(encoding="utf-8"))
    jsonschema.Draft7Validator(ITEM).validate(item)
    assert all((folder / asset["href"]).is_file() for asset in item["assets"].values())
    model = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    jsonschema.Draft7Validator(MODEL).validate(model)
    return item
