"""The whole way from a STAC catalog, as the command line goes it: init, check, run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.empty_stores import give_stores
from tests.end_to_end.pipeline_cases import environment
from tests.network.range_server import Ranges, serving
from tests.network.stac_cases import item, put_api, tiff
from vitpipe.errors import DataError
from vitpipe.loading import load_config
from vitpipe.starter import write_starter

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def held() -> Iterator[Ranges]:
    with serving(Ranges()) as server:
        yield server


@pytest.mark.slow
def test_a_run_fetches_ingests_and_tiles_and_tells_no_secret(held: Ranges, tmp_path: Path, empty_stores: Path) -> None:
    put_api(held, 3)
    config = tmp_path / "pipeline.yaml"
    source = {
        "kind": "stac",
        "url": f"{held.url}/v1",
        "page_size": 2,
        "query": {"datetime": "2023-06-01/.."},
    }
    config.write_text(json.dumps({"name": "t", "source": source, "tiles": {"size": 32, "stride": 32}}))
    child = environment(tmp_path / "home") | {"VITPIPE_STAC_TOKEN": "canary-token"}
    give_stores(empty_stores, tmp_path / "workspace")
    command = [sys.executable, "-m", "flows.cli", "run", str(config), "--json"]
    done = subprocess.run(command, cwd=ROOT, env=child, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "canary" not in done.stdout + done.stderr
    stages: dict[str, Any] = {row["stage"]: row for row in json.loads(done.stdout)["stages"]}
    assert [stages[name]["done"] for name in ("fetch", "ingest", "tile")] == [3, 3, 3]
    texts = (path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert not [text for text in texts if b"canary" in text]


def _init(folder: Path, document: Any) -> Any:
    (folder / "stac.json").write_text(json.dumps(document))
    found = write_starter(folder / "stac.json", folder / "pipeline.yaml", overwrite=True)
    assert load_config(folder / "pipeline.yaml").source.kind == "stac"
    return found


def test_init_takes_an_item_a_collection_and_a_catalog(tmp_path: Path) -> None:
    (tmp_path / "red.tif").write_bytes(tiff(0))
    document = item(0, "red.tif")
    config = _init(tmp_path, document).values["config"]
    assert config["source"] == {"kind": "stac", "url": "stac.json"}
    assert config["name"] == "scene-0"
    document["assets"]["nir"] = document["assets"]["red"]
    document["assets"]["thumb"] = {"href": "t.tif", "type": "image/tiff", "roles": ["thumbnail"]}
    assert _init(tmp_path, document).values["config"]["source"]["assets"] == ["red", "nir"]
    page = {"type": "FeatureCollection", "features": [document]}
    assert _init(tmp_path, page).values["config"]["source"]["assets"] == ["red", "nir"]
    kept = {key: {**asset, "href": None} for key, asset in document["assets"].items()}
    for asset in kept.values():
        del asset["href"]
    collection = {"type": "Collection", "stac_version": "1.1.0", "id": "small", "links": [], "item_assets": kept}
    assert _init(tmp_path, collection).values["config"]["source"]["assets"] == ["red", "nir"]
    catalog = {"type": "Catalog", "stac_version": "1.1.0", "id": "all", "links": []}
    assert "source.assets" in " ".join(_init(tmp_path, catalog).lines)


@pytest.mark.parametrize("document", [{"type": "Feature", "geometry": None}, [1], {"type": "FeatureCollection"}])
def test_init_takes_no_other_json_for_stac(document: Any, tmp_path: Path) -> None:
    (tmp_path / "stac.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match="none of 1 files"):
        write_starter(tmp_path / "stac.json", tmp_path / "pipeline.yaml", overwrite=True)
