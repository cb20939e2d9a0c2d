"""Models predict on the scenes of a STAC catalog: chosen as a run chooses them, read as the model's own were."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import rasterio

from tests.infer.infer_cases import BANDS, make_package, write_scene
from tests.infer.pixel_cases import hold, pixel_predictor
from tests.network.network_cases import QUICK
from tests.network.range_server import Ranges, serving
from tests.network.stac_cases import SIGNATURE, answer_with, item
from vitpipe import results
from vitpipe.atomic import file_lock
from vitpipe.config import PipelineConfig, StacQuery, StacSource
from vitpipe.errors import ConfigError, ContractError, DataError, WorkspaceError
from vitpipe.fetch import fetch
from vitpipe.infer.catalogs import reading_options
from vitpipe.infer.predictor import Predictor
from vitpipe.records import StageSummary
from vitpipe.web import client
from vitpipe.workspace import Workspace

URI = "models:/land@champion"
NAMED = [{"name": name} for name in BANDS]


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ranges]:
    monkeypatch.setattr(client, "Backoff", lambda: QUICK)
    with serving(Ranges()) as server:
        yield server


def put_scenes(held: Ranges, folder: Path, count: int) -> list[dict[str, Any]]:
    """Put scenes of three bands a file, which are signed for, and their items; copies lie in a folder."""
    items = []
    for number in range(count):
        write_scene(folder / f"{number}.tif", seed=number)
        content = (folder / f"{number}.tif").read_bytes()
        held.add(f"/data/{number}.tif", content)
        items.append(item(number, f"{held.url}/data/{number}.tif?{SIGNATURE}", content, **{"eo:bands": NAMED}))
        place = f"/v1/collections/small/items/scene-{number}"
        items[-1]["links"].append({"rel": "self", "href": f"{held.url}{place}?{SIGNATURE}"})
        held.add(place, items[-1])
    answer_with(held, *items)
    return items


def maps_in(out: Path) -> list[bytes]:
    found = []
    for path in (out / "maps").glob("*/classes.tif"):
        with rasterio.open(path) as file:
            found.append(file.read().tobytes())
    return sorted(found)


def write_yaml(folder: Path, **source: Any) -> str:
    (folder / "scenes.yaml").write_text(json.dumps({"name": "a whole pipeline will do", "source": source}))
    return str(folder / "scenes.yaml")


def test_maps_of_a_catalog_are_those_of_copies(held: Ranges, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hold(monkeypatch, pixel_predictor(tmp_path / "model"))
    items = put_scenes(held, tmp_path / "copies", 3)
    del held.files["/data/1.tif"]
    (tmp_path / "copies" / "1.tif").unlink()
    wanted = write_yaml(
        tmp_path, kind="stac", url=f"{held.url}/v1", query={"properties": {"eo:cloud_cover": {"lt": 25}}}
    )
    out = tmp_path / "out"
    summary = results.predict(URI, wanted, str(out), None)
    assert summary.notes[0] == "3 item(s), 0 of them were there"
    assert (summary.done, dict(summary.rejected)) == (2, {"FETCH_FAILED": 1})
    results.predict(URI, str(tmp_path / "copies"), str(tmp_path / "local"), None)
    assert maps_in(out) == maps_in(tmp_path / "local") != []
    # What is there is neither fetched nor mapped again.
    held.asked.clear()
    answer_with(held, items[0], items[2])
    again = results.predict(URI, wanted, str(out), None)
    assert (again.done, again.skipped, held.paths(".tif")) == (0, 2, [])
    # Each map names the item that it is of.
    found = [json.loads(path.read_text(encoding="utf-8")) for path in (out / "maps").glob("*/item.json")]
    links = {link["href"] for made in found for link in made["links"] if link["rel"] == "derived_from"}
    assert links == {f"{held.url}/v1/collections/small/items/scene-{number}" for number in (0, 2)}
    told = [path for path in out.rglob("*") if path.is_file() and b"canary" in path.read_bytes()]
    assert told == []


def test_a_model_of_tiles_takes_a_catalog(held: Ranges, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hold(monkeypatch, Predictor.load(make_package(tmp_path / "model")))
    put_scenes(held, tmp_path / "copies", 2)
    del held.files["/data/1.tif"]
    source = StacSource(url=f"{held.url}/v1", path=str(tmp_path / "kept"))
    summary = results.predict(URI, source, str(tmp_path / "out"), None)
    assert (summary.done, dict(summary.rejected)) == (1, {"FETCH_FAILED": 1})
    assert [path.name for path in (tmp_path / "kept").glob("*/*.tif")] == ["scene-0_red.tif"]
    with (
        file_lock(tmp_path / "kept" / ".lock", wait=False),
        pytest.raises(WorkspaceError, match="kept is in use by another run"),
    ):
        results.predict(URI, source, str(tmp_path / "other"), None)
    said = (tmp_path / "out" / "predictions.json").read_text(encoding="utf-8")
    assert "FETCH_FAILED" in said


def test_what_a_catalog_states_of_its_files_holds() -> None:
    stated = StacSource(url="catalog.json", path="kept", units="reflectance", verify=True)
    assert reading_options(stated) == {"scenes": None, "units": "reflectance", "verify": True}
    assert reading_options(StacSource(url="catalog.json", path="kept")) == {"scenes": None}


def test_the_scenes_of_a_pipeline_are_not_left_out_by_a_prediction(
    held: Ranges, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(monkeypatch, Predictor.load(make_package(tmp_path / "model")))
    put_scenes(held, tmp_path / "copies", 2)
    source = StacSource(url=f"{held.url}/v1", path=str(tmp_path / "kept"))
    # Whatever its name is.
    config = PipelineConfig(name="predict", source=source, workspace=str(tmp_path / "workspace"))
    assert fetch(config, Workspace(tmp_path / "workspace"), QUICK).done == 2
    other = source.model_copy(update={"query": StacQuery(ids=("scene-1",))})
    with pytest.raises(ConfigError, match="another pipeline fetched"):
        results.predict(URI, other, str(tmp_path / "out"), None)
    assert sorted(path.name for path in (tmp_path / "kept").glob("scene-*")) == ["scene-0", "scene-1"]


@pytest.mark.parametrize("by_flow", [False, True])
@pytest.mark.parametrize("per_pixel", [False, True])
def test_scenes_stay_in_use_while_they_are_predicted_on(
    by_flow: bool, per_pixel: bool, held: Ranges, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "model"
    hold(monkeypatch, pixel_predictor(package) if per_pixel else Predictor.load(make_package(package)))
    put_scenes(held, tmp_path / "copies", 2)
    folder = str(tmp_path / "kept")
    one, other = (StacSource(url=f"{held.url}/v1", path=folder, query={"ids": [f"scene-{n}"]}) for n in range(2))  # type: ignore[arg-type]
    plain = results.finish_maps if per_pixel else results.predict_tiles
    refused: list[str] = []

    def predicting(job: Any, *rest: Any) -> Any:
        # Others begin with another query, which would put the scene out of use.
        if not refused:
            refused.append("")
            with pytest.raises(WorkspaceError) as caught:
                results.predict(URI, other, str(tmp_path / "other"), None)
            refused[0] = str(caught.value)
        return plain(job, *rest)

    monkeypatch.setattr(results, plain.__name__, predicting)
    predict_by = run_flow(monkeypatch) if by_flow else results.predict
    assert predict_by(URI, one, str(tmp_path / "out"), None).done == 1
    assert "kept is in use by another run" in refused[0]
    assert results.predict(URI, other, str(tmp_path / "other"), None).done == 1


def run_flow(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Give the flow with its tasks as plain functions: what Prefect adds is tested elsewhere."""
    from flows import predict, tasks

    names = ("plan_prediction", "bring_scenes", "predict_tiles", "plan_maps", "finish_maps")
    plain = {name: getattr(tasks, name).fn for name in names}

    def mapped(job: Any, batches: Any, numbers: Any) -> Any:
        found = [tasks.map_scenes.fn(job.value, batch, number) for batch, number in zip(batches, numbers, strict=True)]
        return SimpleNamespace(result=lambda: found)

    monkeypatch.setattr(predict, "tasks", SimpleNamespace(**plain, map_scenes=SimpleNamespace(map=mapped)))
    monkeypatch.setattr(predict, "publish_summary", lambda *_: None)
    return predict.predict.fn


def test_a_document_is_taken_by_its_address_or_file(
    held: Ranges, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(monkeypatch, pixel_predictor(tmp_path / "model"))
    items = put_scenes(held, tmp_path / "copies", 2)
    held.add("/static/item.json", items[1])
    (tmp_path / "item.json").write_text(json.dumps(items[0]))
    places = [
        f"{held.url}/v1/collections/small/items/scene-0", f"{held.url}/static/item.json", str(tmp_path / "item.json"),
    ]  # fmt: skip
    for number, place in enumerate(places):
        assert results.predict(URI, place, str(tmp_path / f"out{number}"), None).done == 1
    with pytest.raises(ConfigError, match="plain http to another machine"):
        results.predict(URI, "http://example.org/catalog.json", str(tmp_path / "out"), None)


def test_a_model_of_a_band_a_file_says_which_assets_it_needs(
    held: Ranges, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It has learnt from files of other names.
    trained = {"kind": "geotiff", "bands": list(BANDS), "units": "dn", "scenes": {"pattern": "{scene}-{band}.tif"}}
    hold(monkeypatch, Predictor.load(make_package(tmp_path / "model", source=trained)))
    pixels = write_scene(tmp_path / "whole" / "a.tif")
    assets = {}
    for band, name in enumerate((*BANDS, "B11")):
        with rasterio.open(tmp_path / "whole" / "a.tif") as file:
            profile = {**file.profile, "count": 1}
        with rasterio.open(tmp_path / f"{name}.tif", "w", **profile) as file:
            file.write(pixels[band % 3], 1)
        held.add(f"/data/{name}.tif", (tmp_path / f"{name}.tif").read_bytes())
        made = item(0, f"{held.url}/data/{name}.tif", **{"eo:bands": [{"name": name}]})
        assets[f"asset-{name}"] = made["assets"]["red"]
    answer_with(held, {**made, "assets": assets})
    results.predict(URI, StacSource(url=f"{held.url}/v1"), str(tmp_path / "out"), None)
    assert not held.paths("B11.tif")
    whole = Predictor.load(make_package(tmp_path / "whole model")).predict_path(tmp_path / "whole").tiles
    found = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    np.testing.assert_array_equal(found["p_water"], whole["p_water"])


@pytest.mark.parametrize(
    ("source", "word"),
    [
        ({"kind": "geotiff", "path": "a.tif"}, "give the folder, file or address itself"),
        ({"kind": "stac", "url": "catalog.json", "bands": ["B08"]}, "states `bands`"),
        ({"kind": "stac", "url": "catalog.json", "colour": 1}, "unknown key"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_fetched(
    source: dict[str, Any], word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(monkeypatch, pixel_predictor(tmp_path / "model"))
    with pytest.raises(ConfigError, match=word):
        results.predict(URI, write_yaml(tmp_path, **source), str(tmp_path / "out"), None)


def test_where_a_model_drops_clouds_their_masks_are_fetched(
    held: Ranges, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = {"kind": "geotiff", "bands": list(BANDS), "units": "dn", "clouds": "drop"}
    hold(monkeypatch, Predictor.load(make_package(tmp_path / "model", source=trained)))
    (made,) = put_scenes(held, tmp_path / "copies", 1)
    with rasterio.open(tmp_path / "copies" / "0.tif") as scene:
        profile = {**scene.profile, "count": 1, "dtype": "uint8"}
    codes = np.full((70, 100), 4, np.uint8)
    codes[:, 32:] = 9
    with rasterio.open(tmp_path / "scl.tif", "w", **profile) as mask:
        mask.write(codes, 1)
    held.add("/data/scl.tif", (tmp_path / "scl.tif").read_bytes())
    made["assets"]["scl"] = {"href": f"{held.url}/data/scl.tif", "type": "image/tiff", "roles": ["data"]}
    results.predict(URI, StacSource(url=f"{held.url}/v1"), str(tmp_path / "out"), None)
    tiles = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    assert sorted(tiles["col"].unique()) == [0]


def test_a_model_of_other_sources_takes_no_catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = {"kind": "images"}
    hold(monkeypatch, Predictor.load(make_package(tmp_path / "model", source=trained)))
    with pytest.raises(ContractError, match="a STAC catalog holds scenes"):
        results.predict(URI, StacSource(url=str(tmp_path / "catalog.json")), str(tmp_path / "out"), None)


def test_a_catalog_of_which_nothing_comes_is_said(
    held: Ranges, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(monkeypatch, pixel_predictor(tmp_path / "model"))
    put_scenes(held, tmp_path / "copies", 1)
    held.files.pop("/data/0.tif")
    with pytest.raises(DataError, match=r"FETCH_FAILED \(1\)"):
        results.predict(URI, StacSource(url=f"{held.url}/v1"), str(tmp_path / "out"), None)


def test_the_flow_takes_a_catalog_as_its_form_gives_it(
    held: Ranges, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import predict, tasks

    hold(monkeypatch, Predictor.load(make_package(tmp_path / "model")))
    put_scenes(held, tmp_path / "copies", 3)
    # Its tasks as plain functions: what Prefect adds is tested elsewhere.
    names = ("plan_prediction", "bring_scenes", "predict_tiles")
    monkeypatch.setattr(predict, "tasks", SimpleNamespace(**{name: getattr(tasks, name).fn for name in names}))
    published: list[StageSummary] = []
    monkeypatch.setattr(predict, "publish_summary", lambda _, summary: published.append(summary))
    source = {"kind": "stac", "url": f"{held.url}/v1", "max_items": 2}
    given = {"model_uri": URI, "source": source, "out": str(tmp_path / "out"), "workspace": None}
    summary = predict.predict.fn(**predict.predict.validate_parameters(given))
    assert summary.done == 2
    assert "`source.max_items` (2) is reached: there may be more" in summary.notes
    assert published == [summary]
    # Whatever waits for a server is tried again.
    assert tasks.bring_scenes.retries == tasks.plan_maps.retries > 0
