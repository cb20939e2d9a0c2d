"""One start of the servers for the whole session: it takes as long as all the tests that use it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# The pipelines of the end-to-end tests are run on servers, too.
sys.path.append(str(Path(__file__).resolve().parents[1] / "end_to_end"))

from pipeline_cases import make_scenes
from server_cases import FLOWS, SCENES, TEST_DEPLOYMENTS, Running, options_for

from flows import servers
from flows.deployments import DEPLOYMENTS
from tests.empty_stores import give_stores_to_servers
from vitpipe.loading import load_config


@pytest.fixture(scope="session")
def session_servers(tmp_path_factory: pytest.TempPathFactory, empty_stores: Path) -> Iterator[Running]:
    """Servers whose deployments run a small pipeline of scenes."""
    module = tmp_path_factory.mktemp("modules")
    (module / "vitpipe_test_flows.py").write_text(FLOWS)
    home = tmp_path_factory.mktemp("home")
    give_stores_to_servers(empty_stores, home)
    config = load_config(make_scenes(tmp_path_factory.mktemp("scenes"), SCENES))
    options = options_for(home, config=config, timezone="Europe/Berlin", deployments=(*DEPLOYMENTS, *TEST_DEPLOYMENTS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(module), os.environ.get("PYTHONPATH", "")]))
        patch.setenv("VITPIPE_KEY", "servers")
        # None of these may lead a part elsewhere.
        patch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
        patch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
        try:
            yield Running(options)
        finally:
            servers.down(home)
