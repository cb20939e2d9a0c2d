"""A folder of scenes: what is in it stays known however a fetch ends, and one fetch at a time works there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.network.network_cases import QUICK
from tests.network.range_server import Ranges, serving
from tests.network.stac_cases import answer_with, item, pipeline, put_api, tiff
from vitpipe.atomic import file_lock
from vitpipe.errors import TransientError, WorkspaceError
from vitpipe.fetch import fetch


@pytest.fixture
def held() -> Iterator[Ranges]:
    with serving(Ranges()) as server:
        yield server


def test_files_that_are_there_stay_known_where_another_one_does_not_come(held: Ranges, tmp_path: Path) -> None:
    document = item(0, "")
    (plain,) = document["assets"].values()
    for number, name in enumerate("abc"):
        held.add(f"/{name}.tif", tiff(number))
        document["assets"][name] = {**plain, "href": f"/{name}.tif"}
    lacking = held.files.pop("/b.tif")
    answer_with(held, document)
    config, workspace = pipeline(tmp_path, f"{held.url}/v1", assets=["a", "b", "c"], connections=1, max_reject_share=1)
    assert fetch(config, workspace, QUICK).done == 2
    # No server answers there, which ends the fetch before the turn of the third file.
    document["assets"]["b"]["href"] = "http://127.0.0.1:1/b.tif"
    with pytest.raises(TransientError):
        fetch(config, workspace, QUICK)
    document["assets"]["b"]["href"] = "/b.tif"
    held.add("/b.tif", lacking)
    held.asked.clear()
    assert fetch(config, workspace, QUICK).done == 1
    assert held.paths(".tif") == ["/b.tif"]


def test_one_fetch_at_a_time_works_in_a_folder(held: Ranges, tmp_path: Path) -> None:
    put_api(held, 1)
    config, workspace = pipeline(tmp_path, f"{held.url}/v1", path=str(tmp_path / "shared"))
    with (
        file_lock(tmp_path / "shared" / ".lock", wait=False),
        pytest.raises(WorkspaceError, match="shared is in use by another run"),
    ):
        fetch(config, workspace, QUICK)
    assert held.asked == []
    assert fetch(config, workspace, QUICK).done == 1
