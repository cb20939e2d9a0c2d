"""`vitpipe receive`: listen until told to end, and ingest what has come, in a process of its own."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from vitpipe.config import DicomSource, PipelineConfig
from vitpipe.errors import ConfigError
from vitpipe.loading import load_config
from vitpipe.pseudonym import Pseudonymiser, load_pseudonymiser
from vitpipe.receive import CONFLICTING_SOP, Receiver, ReceiverOptions, receiver_key
from vitpipe.records import StageSummary
from vitpipe.studies import StudyCommit

_RETRY_SECONDS = 60.0
_TRIES = 5
_END_SECONDS = 20.0


def receive(options: ReceiverOptions, config_path: Path | None, say: Callable[[str], None]) -> StageSummary:
    """Receive until SIGTERM or SIGINT.

    Args:
        options: where to listen.
        config_path: a pipeline that is ingested whenever studies are complete; None: they are kept alone.
        say: told what happens, a sentence each; none names a patient.

    Returns:
        Stage ``receive``: `done` studies that became complete, `rejected` conflicts in them.

    Raises:
        ConfigError: the address is taken, or the pipeline reads another folder.
    """
    # Our own lines alone: those of the libraries may hold what a file holds.
    lines = logging.StreamHandler()
    lines.setLevel(logging.WARNING)
    logging.getLogger("vitpipe").addHandler(lines)
    started = time.perf_counter()
    complete_studies: dict[str, int] = {}
    stop = threading.Event()
    with _ending(stop), Ingester(config_path, say) as ingester:
        pseudonym = _pseudonym(options, config_path)

        def complete(commit: StudyCommit) -> None:
            conflicts = f", {len(commit.rejected)} of them {CONFLICTING_SOP}" if commit.rejected else ""
            count = f"{commit.series} series, {len(commit.files)} instances{conflicts}"
            complete_studies[commit.study] = len(commit.rejected)
            ingester.wake()
            say(f"study {commit.study} is complete: {count}")

        with Receiver(options, pseudonym, complete) as receiver:
            say(f"{options.ae_title} listens on {options.host}:{receiver.port}, studies go to {options.folder}")
            stop.wait()
            say("ending")
    conflicting = sum(complete_studies.values())
    return StageSummary(
        "receive",
        done=len(complete_studies),
        rejected={CONFLICTING_SOP: conflicting} if conflicting else {},
        seconds=time.perf_counter() - started,
    )


def _pseudonym(options: ReceiverOptions, config_path: Path | None) -> Pseudonymiser:
    """Give the key of the pipeline's workspace, so that files have the names that its catalog holds."""
    if config_path is None:
        return receiver_key(options.folder)
    config = load_config(config_path)
    _require_folder(config, options.folder)
    return load_pseudonymiser(Path(config.workspace))


def _require_folder(config: PipelineConfig, folder: Path) -> None:
    source = config.source
    place = Path(source.path).resolve()
    if not isinstance(source, DicomSource) or config.on_disk() is not config or place not in (
        folder.resolve(), *folder.resolve().parents,
    ):  # fmt: skip
        raise ConfigError(
            f"{config.name} reads {source.kind} from {source.path or 'a server'}, and studies are received into"
            f" {folder}; write `source: {{kind: dicom, path: {folder}}}`, or receive into its folder (`--to`)"
        )


@contextmanager
def _ending(stop: threading.Event) -> Iterator[None]:
    """Set `stop` at SIGTERM and SIGINT."""

    def end(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _send(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to a child, and to what it has started: it leads a process group of its own."""
    if child.poll() is None:
        os.killpg(child.pid, number)


class Ingester:
    """Runs ``vitpipe ingest`` when studies are complete: one at a time, in a child, never in a thread that receives.

    Args:
        config_path: the pipeline; None: nothing is run.
        say: told how each run ended.
        command: what is run; the path is added.
    """

    def __init__(
        self,
        config_path: Path | None,
        say: Callable[[str], None],
        command: tuple[str, ...] = (sys.executable, "-m", "flows.cli", "ingest"),
    ) -> None:
        self._config_path = config_path
        self._say = say
        self._command = command
        self._changed = threading.Condition()
        self._waiting = False
        self._stopped = False
        self._child: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run, name="ingest")

    def __enter__(self) -> Ingester:
        """Start waiting."""
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        """End a run that is under way: the next one goes on where it was."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
            child = self._child
        if child is not None:
            # As from a keyboard: the run then ends what it has started, too.
            _send(child, signal.SIGINT)
            self._thread.join(_END_SECONDS)
            _send(child, signal.SIGKILL)
        self._thread.join()

    def wake(self) -> None:
        """Say that there is something new; several studies before the next run are one run."""
        with self._changed:
            self._waiting = True
            self._changed.notify_all()

    def _is_stopped(self) -> bool:
        return self._stopped

    def _run(self) -> None:
        tries = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stopped)
                if self._stopped:
                    return
                self._waiting = False
                if self._config_path is None:
                    continue
                self._child = subprocess.Popen(
                    [*self._command, str(self._config_path)], stdout=subprocess.DEVNULL, start_new_session=True
                )
            code = self._child.wait()
            with self._changed:
                self._child = None
                if self._is_stopped():
                    return
                tries = 0 if code == 0 else tries + 1
                self._say("ingested" if code == 0 else f"ingest ended with exit code {code}; its sentence stands above")
                if 0 < tries < _TRIES:
                    # Another run may hold the workspace.
                    self._changed.wait_for(lambda: self._stopped, _RETRY_SECONDS)
                    self._waiting = True
                tries %= _TRIES
