"""What a configuration says of a STAC source, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from vitpipe.config import StacSource
from vitpipe.errors import ConfigError
from vitpipe.loading import load_config
from vitpipe.web.access import read_access


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"url": "http://stac.example.org"}, "plain http"),
        ({"url": "https://u:canary@a.org"}, "holds credentials"),
        ({"url": "https://a.org/v1?key=canary"}, "must end with its path"),
        ({"url": "ftp://a.org"}, "must be an address"),
        ({"url": "x.json", "query": {"bbox": [0, 50, 10, 40]}}, "south below north"),
        ({"url": "x.json", "query": {"datetime": "June"}}, "`datetime` must be"),
        ({"url": "x.json", "query": {"datetime": "2024-01-01/2023-01-01"}}, "before its end"),
        ({"url": "x.json", "query": {"properties": {"gsd": {"about": 3}}}}, "test by one of"),
    ],
)
def test_a_wrong_source_is_refused_without_a_secret(values: dict[str, Any], word: str, tmp_path: Path) -> None:
    path = tmp_path / "pipeline.yaml"
    path.write_text(json.dumps({"name": "t", "source": {"kind": "stac", **values}}))
    with pytest.raises(ConfigError, match=word) as caught:
        load_config(path)
    assert "canary" not in str(caught.value)
    with pytest.raises(ValidationError):
        StacSource(**values)


def test_paths_are_relative_to_the_pipeline_file(tmp_path: Path) -> None:
    path = tmp_path / "pipeline.yaml"
    path.write_text(json.dumps({"name": "t", "source": {"kind": "stac", "url": "cat/catalog.json"}}))
    config = load_config(path)
    assert isinstance(config.source, StacSource)
    assert config.source.url == str(tmp_path / "cat" / "catalog.json")
    assert config.on_disk().source.path == str(tmp_path / "workspace" / "scenes")
    assert config.on_disk().source.kind == "geotiff"
    # Where things lie is no part of what was asked for.
    assert "cat" not in json.dumps(config.without_places())


@pytest.mark.parametrize("text", ["{", "[]", '{"X-Key": 1}', '{"Range": "bytes=0-"}', '{"X": "a\\nb"}'])
def test_headers_come_from_a_private_file(text: str, tmp_path: Path) -> None:
    path = tmp_path / "headers.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="VITPIPE_STAC_HEADERS"):
        read_access({"VITPIPE_STAC_HEADERS": str(path)})
    path.write_text('{"X-Api-Key": "canary"}')
    access = read_access({"VITPIPE_STAC_HEADERS": str(path), "VITPIPE_STAC_TOKEN": "t"})
    assert access.headers == {"X-Api-Key": "canary", "Authorization": "Bearer t"}
    assert "canary" not in repr(access)
