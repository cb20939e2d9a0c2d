"""What training says while it runs: the bar's words, the share that is done, how often the server is asked."""

from __future__ import annotations

import logging
import uuid
from typing import Any

import pytest

from flows import progress
from flows.artifacts import artifact_key, registered_markdown, summary_rows
from flows.progress import ProgressReporter, describe, share_done
from vitpipe.learn.progress import DONE, EPOCH, NOTE, STARTED, STEP, Progress
from vitpipe.records import StageSummary
from vitpipe.stages import RegisteredRun


class Artifacts:
    """Stands for the server: keeps what was asked of it."""

    def __init__(self) -> None:
        self.made: list[tuple[str, str]] = []
        self.updates: list[tuple[float, str]] = []
        self.id = uuid.uuid4()

    def create(self, share: float, *, key: str, description: str) -> uuid.UUID:
        assert share == 0.0
        self.made.append((key, description))
        return self.id

    def update(self, artifact: uuid.UUID, *, progress: float, description: str) -> None:
        assert artifact == self.id
        self.updates.append((progress, description))


class InTask:
    @staticmethod
    def get() -> object:
        return object()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Artifacts:
    artifacts = Artifacts()
    monkeypatch.setattr(progress, "create_progress_artifact", artifacts.create)
    monkeypatch.setattr(progress, "update_progress_artifact", artifacts.update)
    monkeypatch.setattr(progress, "TaskRunContext", InTask)
    return artifacts


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def step(number: int, of: int = 100) -> Progress:
    return Progress(STEP, epoch=0, epochs=4, step=number, steps=of, train_loss=0.5)


@pytest.mark.parametrize(
    ("event", "sentence"),
    [
        (Progress(STARTED), "started"),
        (Progress(STEP, epoch=0, epochs=20, train_loss=0.6931), "epoch 1/20, train loss 0.693"),
        (
            Progress(EPOCH, epoch=19, epochs=20, val_loss=0.25, val_balanced_accuracy=0.9, images_per_second=99.6),
            "epoch 20/20, validation loss 0.250, balanced accuracy 0.900, 100 tiles/s",
        ),
        (Progress(EPOCH, epoch=2), "epoch 3"),
        (Progress(NOTE, message="the device is full"), "the device is full"),
        # What learns beside the model is told as the model is.
        (
            Progress(NOTE, epoch=0, epochs=3, train_loss=1.5, val_mean_iou=0.25, message="U-Net beside it"),
            "U-Net beside it: epoch 1/3, train loss 1.500, mean IoU 0.250",
        ),
        # The epoch of the last event is a count, not a place: "epoch 5" of 4 would be wrong.
        (Progress(DONE, epoch=4, val_loss=0.25), "done after 4 epoch(s), validation loss 0.250"),
        (Progress(DONE), "done"),
    ],
)
def test_an_event_is_put_into_words(event: Progress, sentence: str) -> None:
    assert describe(event) == sentence


def test_the_share_is_of_all_steps_and_is_unknown_where_the_event_does_not_say() -> None:
    assert share_done(step(25)) == 0.25
    assert share_done(step(150)) == 1.0
    assert share_done(Progress(DONE)) == 1.0
    assert share_done(Progress(STARTED)) is None
    assert share_done(Progress(EPOCH, step=3, steps=0)) is None


def test_the_server_is_asked_every_five_seconds_and_at_the_end(server: Artifacts, clock: list[float]) -> None:
    with ProgressReporter("fine-tune CT_contrast.2") as reporter:
        for number in range(1, 59):
            reporter(step(number))
            clock[0] += 0.25
        reporter(Progress(NOTE, message="a sentence"))
        reporter(Progress(DONE, epoch=1))
    assert server.made == [("fine-tune-ct-contrast-2", "fine-tune CT_contrast.2")]
    # 58 steps in 14.5 seconds: three updates; the end comes although five seconds have not passed.
    assert [share for share, _ in server.updates] == [1.0, 21.0, 41.0, 100.0]
    assert server.updates[-1][1] == "fine-tune CT_contrast.2: done after 1 epoch(s)"


def test_the_log_has_a_line_an_epoch_and_a_sentence_not_a_line_a_step(
    server: Artifacts, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="vitpipe.progress"), ProgressReporter("fine-tune x") as reporter:
        reporter(step(1))
        reporter(Progress(EPOCH, epoch=0, epochs=4, step=25, steps=100, val_loss=0.5))
        reporter(Progress(NOTE, message="goes on at step 12"))
    assert [record.message for record in caplog.records] == [
        "fine-tune x: epoch 1/4, validation loss 0.500",
        "fine-tune x: goes on at step 12",
    ]
    assert len(server.made) == 1


def test_without_a_run_there_is_no_artifact_and_on_a_terminal_there_is_a_bar(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("no server is there")

    monkeypatch.setattr(progress, "create_progress_artifact", refuse)
    monkeypatch.setattr(progress, "update_progress_artifact", refuse)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    with ProgressReporter("fine-tune quietly") as reporter:
        reporter(step(50))
    assert "fine-tune quietly" not in capfd.readouterr().err
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    with ProgressReporter("fine-tune aloud") as reporter:
        reporter(step(50))
    shown = capfd.readouterr().err
    assert "fine-tune aloud" in shown
    assert "50 %" in shown
    assert "train loss 0.500" in shown


# ------------------------------------------------------------------------------------------------- what a run leaves


def test_a_key_of_an_artifact_is_one_that_prefect_takes_and_names_the_pipeline() -> None:
    assert artifact_key("CT_contrast.v2", "tile", "summary") == "ct-contrast-v2-tile-summary"


def test_the_table_of_a_stage_has_a_name_for_every_column() -> None:
    rows = summary_rows(StageSummary("tile", done=3, skipped=2, rejected={"empty": 4}, notes=("a sentence",)))
    assert [(row["what"], row["count"], row["detail"]) for row in rows] == [
        ("done", 3, ""),
        ("already there", 2, ""),
        ("rejected", 4, "empty"),
        ("note", "", "a sentence"),
    ]


def test_a_registered_version_is_linked_to_a_server_alone() -> None:
    run = RegisteredRun("r", "models:/ct/3", ("challenger",), StageSummary("register", notes=("It was not better.",)))
    linked = registered_markdown(run, "http://127.0.0.1:5000/")
    assert "[models:/ct/3](http://127.0.0.1:5000/#/models/ct/versions/3)" in linked
    assert "`challenger`" in linked
    assert "It was not better." in linked
    for place in ("sqlite:////w/mlflow.db", "", "https://user:word@server"):
        assert "](" not in registered_markdown(run, place)
        assert "word" not in registered_markdown(run, place)
