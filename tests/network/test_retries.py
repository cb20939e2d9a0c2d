"""Waits between tries: what a server asks for holds, is told, and has a bound."""

from __future__ import annotations

import threading

import pytest

from vitpipe.errors import TransientError
from vitpipe.web.retries import Backoff, BusyError, with_retries


class _Stop(threading.Event):
    """Keeps how long was waited for it, and waits no time."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout or 0.0)
        return False


def _asking(*seconds: float | None) -> tuple[list[float], str]:
    """Give the waits where a server asks for these in turn, and then answers; and the error if it is one."""
    left, stop = list(seconds), _Stop()

    def action() -> str:
        if left:
            raise BusyError("https://a.org answers HTTP 429", left.pop(0), 429)
        return "done"

    try:
        assert with_retries(action, Backoff(), stop) == "done"
    except TransientError as error:
        return stop.waits, str(error)
    return stop.waits, ""


def test_what_a_server_asks_for_is_waited_for_and_told(caplog: pytest.LogCaptureFixture) -> None:
    waits, error = _asking(300.0, 2.0, None)
    assert (waits[0], error) == (300.0, "")
    assert waits[1] >= 2.0
    assert waits[2] <= 4.0
    assert [record.getMessage() for record in caplog.records] == [
        "https://a.org answers HTTP 429, and asks to wait: going on in 300 s"
    ]


def test_a_wait_without_bound_ends_the_try_at_once() -> None:
    waits, error = _asking(86_400.0)
    assert waits == []
    assert "asks to wait 86400 s, longer than 900 s: run again later" in error
