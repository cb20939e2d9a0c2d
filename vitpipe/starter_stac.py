"""A starter ``pipeline.yaml`` for the file of a STAC catalog, collection or item; nothing of it is fetched."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from vitpipe.records import Json
from vitpipe.stac.items import geotiffs_of_data

_LONGEST: Final = 64 << 20
_KINDS: Final = {"Catalog", "Collection", "Feature", "FeatureCollection"}


def read_stac(path: Path) -> Mapping[str, Any] | None:
    """Read a file of STAC; None where it is none, as where a folder is meant."""
    if path.suffix.lower() not in (".json", ".geojson") or not path.is_file() or path.stat().st_size > _LONGEST:
        return None
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
    known = isinstance(document, dict) and document.get("type") in _KINDS
    return document if known and ("stac_version" in document or _first_item(document)) else None


def stac_configuration(path: Path, document: Mapping[str, Any], shown: str) -> tuple[dict[str, Json], list[str]]:
    """Guess a configuration.

    Args:
        path: of the document.
        document: what it holds.
        shown: the path as the configuration names it.

    Returns:
        The configuration, and what was found and guessed.
    """
    item = _first_item(document)
    lines = [f"a STAC {document['type']}; `vitpipe check` fetches its scenes into the workspace and looks at them"]
    source: dict[str, Json] = {"kind": "stac", "url": shown}
    # A collection states under `item_assets` what each of its items has.
    assets = item["assets"] if item else document.get("item_assets")
    keys = geotiffs_of_data(assets) if isinstance(assets, dict) else []
    if len(keys) > 1:
        source["assets"] = list(keys)
        lines.append(
            f"every GeoTIFF of data is taken: {', '.join(keys)}; leave out of `source.assets` what is not needed"
        )
    elif not keys:
        lines.append("name the assets or bands to fetch in `source.assets`, and choose items by `source.query`")
    lines.append("no labels are known: the run will fetch, ingest and tile, and stop before training")
    name = plain_name(str(document.get("id") or path.stem))
    return {"name": name, "source": source, "tiles": {"cut": "grid", "size": 224}}, lines


def _first_item(document: Mapping[str, Any]) -> Mapping[str, Any] | None:
    features = document.get("features") if document.get("type") == "FeatureCollection" else [document]
    first = features[0] if isinstance(features, list) and features else None
    return (
        first
        if isinstance(first, dict)
        and isinstance(first.get("assets"), dict)
        and "id" in first
        and first.get("type") == "Feature"
        else None
    )


def plain_name(text: str) -> str:
    """Give a name for a pipeline: letters without their accents, digits and ``_.-``; `pipeline` where none is left."""
    letters = unicodedata.normalize("NFKD", text)
    bare = "".join(letter for letter in letters if not unicodedata.combining(letter))
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", bare).strip("-.") or "pipeline"
