"""What the command line prints: for a person, and as JSON for a machine."""

from __future__ import annotations

import dataclasses
import json
import logging

import pytest

from flows import terminal
from flows.servers import Part, ServerState
from vitpipe.config import PipelineConfig
from vitpipe.errors import ConfigError
from vitpipe.infer.versions import RegisteredVersion
from vitpipe.records import StageSummary
from vitpipe.stages import EvaluatedRun, PipelineResult, RegisteredRun

TILED = StageSummary("tile", done=3, skipped=2, rejected={"empty": 4}, seconds=1.25, notes=("a sentence",))
CONFIG = PipelineConfig.model_validate({"name": "x", "source": {"kind": "images", "path": "/x"}})


def test_a_stage_is_one_line_with_its_notes_below(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.print_stage(TILED, as_json=False)
    assert capsys.readouterr().out == "tile      3 done, 2 already there, 4 x empty  (1.2 s)\n  a sentence\n"
    terminal.print_stage(RegisteredRun("r", None, (), StageSummary("register")), as_json=False)
    assert capsys.readouterr().out == "register  0 done  (0.0 s)\n"


def test_a_stage_is_one_json_object_whatever_it_gives(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.print_stage(TILED, as_json=True)
    assert json.loads(capsys.readouterr().out)["rejected"] == {"empty": 4}
    judged = EvaluatedRun("r", "/w/report.html", StageSummary("evaluate"), (("model", "auroc", "0.9"),), "It is good.")
    terminal.print_stage(judged, as_json=True)
    value = json.loads(capsys.readouterr().out)
    assert value["headline"] == [["model", "auroc", "0.9"]]
    assert value["summary"]["stage"] == "evaluate"


def test_a_result_says_each_note_once_and_how_the_model_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    again = StageSummary("train", notes=("a sentence", "another"))
    result = PipelineResult(
        name="ct",
        workspace="/w",
        summaries=(TILED, again),
        run_id="r",
        report="/w/report.html",
        verdict="It is good.",
        headline=(("model", "auroc", "0.9"), ("majority", "auroc", "0.5")),
        model_uri="models:/ct/2",
        aliases=("challenger",),
        source="/data",
    )
    terminal.print_result(result, as_json=False)
    shown = capsys.readouterr().out
    assert shown.count("a sentence") == 1
    assert shown.count("another") == 1
    assert "  model     auroc  0.9\n  majority  auroc  0.5\n" in shown
    assert "vitpipe predict models:/ct@challenger /data --workspace /w" in shown
    assert "--map" not in shown
    terminal.print_result(dataclasses.replace(result, tiles_make_maps=True), as_json=False)
    command = "vitpipe predict models:/ct@challenger /data --workspace /w"
    both = f"  use it      {command} --out predictions\n  as a map    {command} --map --out predictions\n"
    assert both in capsys.readouterr().out
    terminal.print_result(dataclasses.replace(result, source="/my data/Rhön"), as_json=False)
    assert "models:/ct@challenger '/my data/Rhön' --workspace /w --out predictions\n" in capsys.readouterr().out
    terminal.print_result(result, as_json=True)
    assert json.loads(capsys.readouterr().out)["model_uri"] == "models:/ct/2"


def test_a_pipeline_without_labels_ends_with_its_stages(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.print_result(PipelineResult("ct", "/w", (TILED,)), as_json=False)
    assert "registered" not in capsys.readouterr().out


def test_a_version_and_the_servers_are_printed_for_both(capsys: pytest.CaptureFixture[str]) -> None:
    version = RegisteredVersion("ct", "3", ("champion",), "promoted", "why")
    terminal.print_version(version, as_json=False)
    assert capsys.readouterr().out == "models:/ct/3: champion\n"
    terminal.print_version(version, as_json=True)
    assert json.loads(capsys.readouterr().out)["uri"] == "models:/ct/3"
    state = ServerState("/h", (Part("prefect", "up", 7, "http://127.0.0.1:4200", "/h/log"),), notes=("A note.",))
    terminal.print_servers(state, as_json=False)
    assert capsys.readouterr().out == "prefect  up       http://127.0.0.1:4200\nA note.\n"
    terminal.print_servers(state, as_json=True)
    assert json.loads(capsys.readouterr().out)["is_up"] is True


def test_the_flow_is_drained_when_it_fails_and_its_traceback_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    drained: list[bool] = []
    monkeypatch.setattr(terminal, "drain", lambda: drained.append(True))
    logger = logging.getLogger("prefect.flow_runs")
    monkeypatch.setattr(logger, "filters", [])
    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setattr(logging.getLogger("prefect"), "propagate", True)

    def fail(_: PipelineConfig) -> None:
        for error in (ConfigError("a sentence"), RuntimeError("a bug")):
            try:
                raise error
            except Exception:
                logger.exception("with traceback: %s", error)
        raise ConfigError("a sentence")

    with pytest.raises(ConfigError, match="a sentence"):
        terminal.run_flow(fail, CONFIG)
    assert drained == [True]
    # What is ours explains itself; a bug keeps its traceback.
    assert [record.message for record in caplog.records] == ["with traceback: a bug"]
