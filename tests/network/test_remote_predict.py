"""Models predict on scenes where they lie: the same map as of a copy, and its place is the address."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import rasterio

from tests.infer.infer_cases import write_scene
from tests.infer.pixel_cases import hold, pixel_predictor
from tests.network.network_cases import QUICK
from tests.network.range_server import Ranges, serving
from vitpipe import results
from vitpipe.errors import ConfigError
from vitpipe.web import client


def test_a_map_of_an_address_is_that_of_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "Backoff", lambda: QUICK)
    hold(monkeypatch, pixel_predictor(tmp_path / "model"))
    write_scene(tmp_path / "copies" / "a.tif")
    write_scene(tmp_path / "copies" / "b.tif", seed=1)
    with serving(Ranges()) as held:
        for name in ("a.tif", "b.tif"):
            held.add(f"/scenes/{name}", (tmp_path / "copies" / name).read_bytes())
        address = f"{held.url}/scenes/a.tif"
        assert results.predict("models:/land@champion", address, str(tmp_path / "one"), None).done == 1
        listed = tmp_path / "scenes.txt"
        listed.write_text(f"{address}\n{held.url}/scenes/b.tif\n{held.url}/scenes/gone.tif\n", encoding="utf-8")
        summary = results.predict("models:/land@champion", str(listed), str(tmp_path / "all"), None)
        assert (summary.done, dict(summary.rejected)) == (2, {"FETCH_FAILED": 1})
    results.predict("models:/land@champion", str(tmp_path / "copies"), str(tmp_path / "local"), None)
    found = [[_pixels(path) for path in (tmp_path / out / "maps").glob("*/classes.tif")] for out in ("all", "local")]
    assert len(found[0]) == 2
    assert sorted(found[0]) == sorted(found[1])
    (one,) = (tmp_path / "one" / "maps").glob("*/item.json")
    links = {link["rel"]: link["href"] for link in json.loads(one.read_text(encoding="utf-8"))["links"]}
    assert links["derived_from"] == address
    for path in (tmp_path / "all" / "maps").rglob("*"):
        assert path.is_dir() or b"vitpipe-remote-" not in path.read_bytes()


def test_what_is_no_address_of_a_file_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hold(monkeypatch, pixel_predictor(tmp_path / "model"))
    for address, said in (
        ("https://me:secret@example.org/a.tif", "it holds credentials"),
        ("http://example.org/a.tif", "it is plain http"),
        ("https://example.org/a.tif?signature=secret", "it holds a query"),
        ("ftp://example.org/a.tif", "ftp:// cannot be read"),
    ):
        with pytest.raises(ConfigError, match=said) as error:
            results.predict("models:/land@champion", address, str(tmp_path / "out"), None)
        assert "secret" not in str(error.value)


def _pixels(path: Path) -> tuple[bytes, str]:
    with rasterio.open(path) as file:
        return file.read().tobytes(), str(file.transform)
