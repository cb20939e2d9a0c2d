"""The C-STORE receiver: what Orthanc and others send lies on the disk, whole studies are handed on, nothing else is."""

from __future__ import annotations

import errno
import json
import logging
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.uid import CTImageStorage, DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian

from flows.receive import Ingester
from tests.domains.dicom_cases import save
from tests.empty_stores import give_stores
from tests.end_to_end.pipeline_cases import environment
from tests.network.network_cases import CANARIES, PATIENTS, SERIES, SLICES, texts_below, write_instance, write_studies
from tests.network.orthanc import Orthanc, free_port
from vitpipe.config import PipelineConfig
from vitpipe.errors import ConfigError
from vitpipe.ingest import ingest, read_catalog, read_quarantine
from vitpipe.pseudonym import Pseudonymiser
from vitpipe.receive import CANNOT_UNDERSTAND, OUT_OF_RESOURCES, STORED, Inbox, Receiver, ReceiverOptions
from vitpipe.studies import StudyCommit, committed, read_commit
from vitpipe.workspace import Workspace

pynetdicom = pytest.importorskip("pynetdicom", reason="needs pynetdicom, of the extra `network`")

ALL = PATIENTS * SERIES * SLICES
QUIET_SECONDS = 0.6
ROOT = Path(__file__).resolve().parents[2]
KEY = Pseudonymiser(b"a key for the tests")


class Listening:
    """A receiver in this process, and the studies that it handed on."""

    def __init__(self, folder: Path, **changes: object) -> None:
        self.folder = folder
        self.commits: list[StudyCommit] = []
        values = {"port": 0, "quiet_seconds": QUIET_SECONDS, **changes}
        self.receiver = Receiver(ReceiverOptions(folder, **values), KEY, self.commits.append)  # type: ignore[arg-type]

    def wait(self, count: int) -> list[StudyCommit]:
        wait_for(lambda: len(self.commits) >= count)
        return self.commits


def wait_for(happened: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[Listening]:
    found = Listening(tmp_path / "received")
    with found.receiver:
        yield found


def send(port: int, paths: list[Path], called: str = "VITPIPE", calling: str = "SENDER") -> list[int]:
    """Send files over one association; gives the statuses."""
    entity = pynetdicom.AE(ae_title=calling)
    for syntax in sorted({dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID for path in paths}):
        entity.add_requested_context(CTImageStorage, syntax)
    association = entity.associate("127.0.0.1", port, ae_title=called)
    if not association.is_established:
        return []
    statuses = [int(association.send_c_store(path).Status) for path in paths]
    association.release()
    return statuses


def content(path: Path) -> bytes:
    """Give a file's data set, without its meta group: a sender writes its own."""
    whole = path.read_bytes()
    return whole[132 + 12 + int.from_bytes(whole[140:144], "little") :]


def received(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.dcm") if path.is_file())


def test_parallel_associations_store_every_data_set_as_it_was_sent(
    listening: Listening, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    paths = write_studies(tmp_path / "made")
    with ThreadPoolExecutor(4) as pool:
        statuses = list(pool.map(lambda start: send(listening.receiver.port, paths[start::4]), range(4)))
    assert [status for found in statuses for status in found] == [STORED] * ALL
    # Nothing is in sight before a study is quiet.
    if not listening.commits:
        assert not list(committed(listening.folder))
    commits = listening.wait(PATIENTS)
    assert sorted(len(commit.files) for commit in commits) == [SERIES * SLICES] * PATIENTS
    assert sorted(map(content, received(listening.folder))) == sorted(map(content, paths))
    for name in committed(listening.folder):
        commit = read_commit(listening.folder / name)
        assert commit is not None
        assert commit in commits
    assert not list(listening.folder.rglob(".partial-*"))
    ours = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("vitpipe"))
    assert "is complete" in ours
    told = [*texts_below(listening.folder), caplog.text]
    assert not [canary for canary in CANARIES for text in told if canary in text]


def test_what_orthanc_sends_is_what_ingest_reads(orthanc: Orthanc, listening: Listening, tmp_path: Path) -> None:
    made = tmp_path / "made"
    names = orthanc.add(*write_studies(made))
    peer = json.dumps({"AET": "VITPIPE", "Host": "127.0.0.1", "Port": listening.receiver.port}).encode()
    orthanc.ask("/modalities/vitpipe", peer, "PUT")
    assert orthanc.ask("/modalities/vitpipe/echo", b"{}") == {}
    sent = orthanc.ask("/modalities/vitpipe/store", json.dumps(names).encode())
    assert sent["FailedInstancesCount"] == 0
    listening.wait(PATIENTS)
    catalogs = []
    for folder, name in ((made, "a"), (listening.folder, "b")):
        workspace = Workspace(tmp_path / name)
        values = {"name": "t", "source": {"kind": "dicom", "path": str(folder)}, "workspace": str(workspace.root)}
        ingest(PipelineConfig.model_validate(values), workspace)
        catalogs.append(read_catalog(workspace))
        assert read_quarantine(workspace).empty
    made_sources, received_sources = (
        sorted(((source.group_id, source.keys["instance_uid"], source.grid) for source in catalog), key=str)
        for catalog in catalogs
    )
    assert received_sources == made_sources
    assert len(made_sources) == PATIENTS * SERIES


def test_copies_are_ignored_and_conflicts_kept_in_sight_of_ingest(listening: Listening, tmp_path: Path) -> None:
    made = tmp_path / "made"
    first = [write_instance(made, 0, 0, number) for number in range(3)]
    assert send(listening.receiver.port, [*first, first[0]]) == [STORED] * 4
    listening.wait(1)
    assert len(received(listening.folder)) == 3
    # A copy for a complete study wakes nobody.
    assert send(listening.receiver.port, first) == [STORED] * 3
    other = write_instance(made / "other", 0, 0, 1, Manufacturer="Another")
    late = write_instance(made, 0, 0, 5)
    assert send(listening.receiver.port, [other, late, other]) == [STORED] * 3
    (_, second) = listening.wait(2)
    assert len(second.files) == 5
    assert [code for code, _ in second.rejected.values()] == ["CONFLICTING_SOP"]
    (study,) = committed(listening.folder)
    assert read_commit(listening.folder / study) == second
    assert not (listening.folder / f".{study}").exists()
    workspace = Workspace(tmp_path / "w")
    source = {"kind": "dicom", "path": str(listening.folder), "max_reject_share": 1}
    ingest(PipelineConfig.model_validate({"name": "t", "source": source, "workspace": str(workspace.root)}), workspace)
    assert read_quarantine(workspace)["code"].tolist() == ["CONFLICTING_SOP"] * 2
    time.sleep(2 * QUIET_SECONDS)
    assert len(listening.commits) == 2


def test_any_encoding_is_taken_undecoded(listening: Listening, tmp_path: Path) -> None:
    paths = []
    for number, syntax in enumerate((ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian)):
        dataset = dcmread(write_instance(tmp_path / "made", 0, 0, number))
        paths.append(save(dataset, tmp_path / f"{number}", syntax))
    assert send(listening.receiver.port, paths) == [STORED] * 2
    listening.wait(1)
    assert sorted(map(content, received(listening.folder))) == sorted(map(content, paths))


def test_only_those_who_are_allowed_may_send(tmp_path: Path) -> None:
    found = Listening(tmp_path / "received", allowed=("SCANNER",))
    paths = [write_instance(tmp_path / "made", 0, 0, 0)]
    with found.receiver:
        assert send(found.receiver.port, paths, calling="STRANGER") == []
        assert send(found.receiver.port, paths, calling="SCANNER") == [STORED]
        with (
            pytest.raises(ConfigError, match="choose another `--port`"),
            Listening(tmp_path / "other", port=found.receiver.port).receiver,
        ):
            pass
        told = r"another `vitpipe receive` writes to .* `--to`"
        with pytest.raises(ConfigError, match=told), Listening(tmp_path / "received").receiver:
            pass


def test_an_open_association_may_end_before_the_receiver_does(tmp_path: Path) -> None:
    found = Listening(tmp_path / "received")
    paths = [write_instance(tmp_path / "made", 0, 0, number) for number in range(2)]
    entity = pynetdicom.AE()
    entity.add_requested_context(CTImageStorage)
    with found.receiver:
        association = entity.associate("127.0.0.1", found.receiver.port)
        assert association.send_c_store(paths[0]).Status == STORED
        ending = threading.Timer(0.5, lambda: (association.send_c_store(paths[1]), association.release()))
        ending.start()
    ending.join()
    # Both are there, and no thread of the receiver is left.
    assert len(received(found.folder)) == 2
    assert not [thread for thread in threading.enumerate() if thread.name == "quiet studies"]


def test_a_terminal_that_is_closed_ends_no_watch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    told: list[str] = []

    def tell(commit: StudyCommit) -> None:
        told.append(commit.study)
        if len(told) == 1:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    folder = tmp_path / "received"
    with Receiver(ReceiverOptions(folder, port=0, quiet_seconds=QUIET_SECONDS), KEY, tell) as receiver:
        for patient in range(2):
            assert send(receiver.port, [write_instance(tmp_path / "made", patient, 0, 0)]) == [STORED]
            wait_for(lambda wanted=patient + 1: len(told) == wanted)  # type: ignore[misc]
    assert sorted(committed(folder)) == sorted(told)
    assert f"study {told[0]} is complete, but that could not be told: Broken pipe" in caplog.text


def test_a_data_set_without_uids_is_refused(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path / "received", KEY)
    assert inbox.take(b"\0" * 128 + b"DICM" + b"no data set") == CANNOT_UNDERSTAND
    whole = write_instance(tmp_path / "made", 0, 0, 0, StudyInstanceUID=None).read_bytes()
    assert inbox.take(whole) == CANNOT_UNDERSTAND
    assert not received(tmp_path)


def test_a_full_disk_is_told_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    whole = write_instance(tmp_path / "made", 0, 0, 0).read_bytes()
    inbox = Inbox(tmp_path / "received", KEY)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # No write may go past 100 bytes: the system says so as it says that a disk is full.
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        assert inbox.take(whole) == OUT_OF_RESOURCES
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path for path in (tmp_path / "received").rglob("*") if path.is_file()] == []
    assert inbox.take(whole) == STORED


def test_what_a_killed_receiver_had_is_committed_by_the_next(tmp_path: Path) -> None:
    folder = tmp_path / "received"
    paths = [write_instance(tmp_path / "made", 0, 0, number) for number in range(3)]
    inbox = Inbox(folder, KEY)
    assert [inbox.take(path.read_bytes()) for path in paths[:2]] == [STORED] * 2
    (folder / ".receiver" / ".partial-left").write_bytes(b"half")
    found = Listening(folder)
    with found.receiver:
        assert len(found.wait(1)[0].files) == 2
        assert send(found.receiver.port, paths) == [STORED] * 3
        assert len(found.wait(2)[1].files) == 3
    # Killed between moving the files of a late instance and writing the commit file.
    study = found.commits[0].study
    (folder / f".{study}" / "series").mkdir(parents=True)
    (folder / study / "late.dcm").write_bytes(b"")
    (series,) = (path for path in (folder / study).iterdir() if path.is_dir())
    (folder / study / "late.dcm").rename(series / "late.dcm")
    again = Listening(folder)
    with again.receiver:
        assert len(again.wait(1)[0].files) == 4
    assert not list(folder.rglob(".partial-*"))


@contextmanager
def command(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[bytes], Path, int]]:
    """Run ``vitpipe receive``; gives the process, the file of what it tells, and its port."""
    told = folder / "told"
    line = [sys.executable, "-m", "flows.cli", "receive", "--to", str(folder / "received"), "--port", "0", "--json"]
    with told.open("w") as stderr, (folder / "json").open("w") as stdout:
        # Not the environment of this process: other tests set addresses of servers.
        child = environment(folder / "home")
        process = subprocess.Popen([*line, *options], cwd=ROOT, env=child, stdout=stdout, stderr=stderr)
    try:
        wait_for(lambda: "listens on" in told.read_text(), 60)
        yield process, told, int(re.findall(r":(\d+),", told.read_text())[0])
    finally:
        process.terminate()
        process.wait(30)


def test_the_command_tells_no_name_and_ends_cleanly(tmp_path: Path) -> None:
    # A UID that does not follow the standard, as there are many: no library may quote it.
    paths = [write_instance(tmp_path / "made", 0, 0, 0, SOPInstanceUID="1.2.3.777.00.9")]
    paths += [write_instance(tmp_path / "made", 0, 0, number) for number in range(1, 3)]
    with command(tmp_path, "--quiet-seconds", "0.5") as (process, told, port):
        assert send(port, paths) == [STORED] * 3
        wait_for(lambda: "is complete: 1 series, 3 instances" in told.read_text())
    assert process.returncode == 0
    assert told.read_text().endswith("ending\n")
    summary = json.loads((tmp_path / "json").read_text())
    assert (summary["stage"], summary["done"], summary["rejected"]) == ("receive", 1, {})
    assert not [canary for canary in CANARIES if canary in told.read_text()], told.read_text()


@pytest.mark.slow
def test_a_complete_study_is_ingested_in_a_child(tmp_path: Path, empty_stores: Path) -> None:
    give_stores(empty_stores, tmp_path / "workspace")
    config = tmp_path / "pipeline.yaml"
    config.write_text(json.dumps({"name": "t", "source": {"kind": "dicom", "path": "received"}}))
    with command(tmp_path, "--quiet-seconds", "0.5", "--run", str(config)) as (process, told, port):
        assert send(port, [write_instance(tmp_path / "made", 0, 0, number) for number in range(4)]) == [STORED] * 4
        wait_for(lambda: "ingested\n" in told.read_text(), 120)
    assert process.returncode == 0
    (source,) = read_catalog(Workspace(tmp_path / "workspace"))
    assert source.grid.frames == 4
    # The folders have the names that the catalog holds.
    assert source.keys["series_uid"] == (Path(source.files[0]).parent.name,)


def test_a_pipeline_of_another_folder_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "pipeline.yaml"
    config.write_text(json.dumps({"name": "t", "source": {"kind": "dicom", "path": "elsewhere"}}))
    options = ["--to", str(tmp_path / "received"), "--port", str(free_port()), "--run", str(config)]
    line = [sys.executable, "-m", "flows.cli", "receive", *options]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "or receive into its folder" in done.stderr


def test_an_ingest_that_fails_is_tried_again_and_one_under_way_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.receive._RETRY_SECONDS", 0.05)
    said: list[str] = []
    runs = tmp_path / "runs"
    code = (
        "import sys, time; from pathlib import Path; p = Path(sys.argv[1]); n = p.stat().st_size if p.exists() else 0\n"
        "p.open('a').write('x')\n"
        "time.sleep(60 if n == 2 else 0); sys.exit(0 if n else 2)\n"
    )
    started = time.monotonic()
    with Ingester(runs, said.append, (sys.executable, "-c", code)) as ingester:
        ingester.wake()
        wait_for(lambda: len(said) == 2)
        assert ["exit code 2" in said[0], said[1]] == [True, "ingested"]
        ingester.wake()
        wait_for(lambda: runs.stat().st_size == 3)
    assert time.monotonic() - started < 30
    assert len(said) == 2
