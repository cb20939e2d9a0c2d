"""The pipeline as a user of the servers runs it: from the form, killed in the middle, run again."""

from __future__ import annotations

import copy
import html
import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from server_cases import SCENES, Running

from flows.processes import descendants, is_alive

pytestmark = pytest.mark.slow

TASKS = {
    "index batch 0",
    "build catalog",
    "plan shards",
    "tile shard",
    "check tiles",
    "label and split",
    "fine-tune",
    "evaluate",
    "register",
}


def form_values(running: Running, **changes: dict[str, Any]) -> dict[str, Any]:
    """Give what the form sends: the deployment's pipeline with some fields changed."""
    config = copy.deepcopy(running.ask("/deployments/name/pipeline/pipeline")["parameters"]["config"])
    for section, values in changes.items():
        config[section] |= values
    return {"config": config}


def artifacts_of(running: Running, run_id: str) -> dict[str, dict[str, Any]]:
    found = running.ask("/artifacts/filter", {"flow_runs": {"id": {"any_": [run_id]}}})
    return {artifact["key"]: artifact for artifact in found}


def mlflow_runs(running: Running, run_id: str) -> list[dict[str, Any]]:
    """Give the MLflow runs of one run of ours."""
    experiment = running.ask_mlflow("/experiments/get-by-name?experiment_name=stripes")["experiment"]
    question = {"experiment_ids": [experiment["experiment_id"]], "filter": f"tags.`vitpipe.run_id` = '{run_id}'"}
    return list(running.ask_mlflow("/runs/search", question).get("runs", []))


def events(folder: Path) -> list[dict[str, Any]]:
    path = folder / "progress.jsonl"
    # A line that is being written is not one yet.
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


def test_a_run_of_the_form_with_changed_fields_registers_on_the_server(session_servers: Running) -> None:
    running = session_servers
    parameters = form_values(running, register={"model": "renamed"}, train={"epochs": 3})
    run_id = running.start_run("pipeline/pipeline", parameters)
    run = running.wait(run_id, "Completed", seconds=150)
    assert run["name"] == "pipeline stripes"

    # The model is in the server's registry under the changed name, not under the deployment's.
    champion = running.ask_mlflow("/registered-models/alias?name=renamed&alias=champion")["model_version"]
    assert champion["version"] == "1"
    names = [model["name"] for model in running.ask_mlflow("/registered-models/search")["registered_models"]]
    assert names == ["renamed"]
    (mlflow_run,) = mlflow_runs(running, {tag["key"]: tag["value"] for tag in champion["tags"]}["vitpipe.run_digest"])
    assert mlflow_run["info"]["status"] == "FINISHED"
    params = {row["key"]: row["value"] for row in mlflow_run["data"]["params"]}
    assert params["train.epochs"] == "3"

    # Task runs count stages and shards, not tiles: 24 scenes of nine tiles.
    tasks = running.task_runs(run_id, len(TASKS))
    assert {re.sub(r" [0-9a-f]{16}$", "", task["name"]) for task in tasks} == TASKS
    assert len(tasks) < SCENES

    artifacts = artifacts_of(running, run_id)
    stages = ("ingest", "tile", "split", "train", "evaluate", "register")
    tables = {stage: json.loads(artifacts[f"stripes-{stage}-summary"]["data"]) for stage in stages}
    assert tables["ingest"][0] == {"what": "done", "count": SCENES, "detail": ""}
    assert "balanced_accuracy" in artifacts["stripes-evaluation"]["data"]
    link = f"http://127.0.0.1:{running.options.mlflow_port}/#/models/renamed/versions/1"
    assert link in artifacts["stripes-registered-model"]["data"]
    assert artifacts["fine-tune-stripes"]["type"] == "progress"
    assert float(artifacts["fine-tune-stripes"]["data"]) == 100.0
    assert "done after 3 epoch" in artifacts["fine-tune-stripes"]["description"]


def test_a_run_that_is_killed_is_crashed_and_a_retry_goes_on_where_it_was(session_servers: Running) -> None:
    running = session_servers
    parameters = form_values(running, train={"epochs": 60})
    runs = Path(parameters["config"]["workspace"]) / "runs"
    before = set(runs.iterdir()) if runs.is_dir() else set()
    run_id = running.start_run("pipeline/pipeline", parameters)

    def epochs() -> int:
        new = [path for path in runs.glob("*") if path not in before and path.is_dir()]
        return sum(event["event"] == "epoch" for path in new for event in events(path))

    deadline = time.monotonic() + 120
    while epochs() < 3:
        assert time.monotonic() < deadline, running.ask(f"/flow_runs/{run_id}")["state"]
        time.sleep(0.05)
    family = descendants(running.wait_for_process())
    os.kill(family[0].pid, signal.SIGKILL)
    crashed = running.wait(run_id, "Crashed", seconds=30)
    assert "-9" in crashed["state"]["message"]
    (folder,) = set(runs.iterdir()) - before
    assert not (folder / "model" / "model.safetensors").exists()
    # The training belongs to the run: it does not outlive it.
    deadline = time.monotonic() + 70
    while any(is_alive(member) for member in family):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    (cut_off,) = mlflow_runs(running, folder.name)
    assert cut_off["info"]["status"] == "RUNNING"

    # The worker tells twice how a process ended, and the second time would end a retry that is faster than any person.
    time.sleep(5)
    # What the interface's Retry asks for.
    state = {"type": "SCHEDULED", "name": "AwaitingRetry", "message": "Retry from the UI"}
    answer = running.ask(f"/flow_runs/{run_id}/set_state", {"state": state})
    assert answer["status"] == "ACCEPT", answer
    running.wait(run_id, "Running", "Completed", seconds=60)
    running.wait(run_id, "Completed", seconds=150)

    started = [event for event in events(folder) if event["event"] == "started"]
    assert len(started) >= 2
    done = json.loads((folder / "train.json").read_text())
    assert done["resumed_from"] is not None
    assert done["resumed_from"] > 0
    notes = [row["detail"] for row in json.loads(artifacts_of(running, run_id)["stripes-train-summary"]["data"])]
    assert f"went on at step {done['resumed_from']}" in notes
    # No second MLflow run, and none left running.
    (ended,) = mlflow_runs(running, folder.name)
    assert ended["info"]["run_id"] == cut_off["info"]["run_id"]
    assert ended["info"]["status"] == "FINISHED"
    aliases = running.ask_mlflow("/registered-models/get?name=stripes")["registered_model"]["aliases"]
    assert {alias["alias"] for alias in aliases} >= {"challenger"}


def test_the_form_shows_every_section_of_the_pipeline_and_the_source_kinds_as_tabs(
    session_servers: Running, tmp_path: Path
) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on the PATH")
    deployment = session_servers.ask("/deployments/name/pipeline/pipeline")["id"]
    url = f"{session_servers.state.urls[0]}/v2/deployments/deployment/{deployment}/run"
    command = [
        *(chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-proxy-server"),
        *(f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=20000", "--dump-dom", url),
    ]
    page = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    tabs = re.findall(r'<button[^>]*role="tab"[^>]*aria-selected="(true|false)"[^>]*>([^<]+)<', page)
    labels = [html.unescape(text) for _, text in tabs]
    assert labels[:5] == ["DICOM", "DICOMweb", "GeoTIFF", "STAC", "Images"]
    # The deployment's own kind is chosen.
    assert tabs[2] == ("true", "GeoTIFF")
    assert labels[labels.index("Folder names") - 1] == "Table"
    for weights in ("Random", "timm", "File", "MLflow"):
        assert weights in labels
    words = {html.unescape(text).strip().removesuffix(" (Optional)") for text in re.findall(r">([^<]+)<", page)}
    sections = ("Name", "Source", "Labels", "Tiles", "Split", "Preprocessing", "Model", "Training", "Evaluation")
    fields = ("Path", "Bands", "Ground block (m)", "Tile size (px)", "Test share", "Architecture", "Patch size (px)")
    more = ("Epochs", "Learning rate", "Augmentation", "Register", "Registered name", "Gate", "Workspace")
    assert set(sections + fields + more) <= words
    # The values of the deployment stand in it.
    assert parameters_of(session_servers)["source"]["path"] in words
    assert "``" not in page


def parameters_of(running: Running) -> dict[str, Any]:
    return dict(running.ask("/deployments/name/pipeline/pipeline")["parameters"]["config"])
