"""Fetch from a server that fails: what passes is tried again, what stays is named, and the rest arrives."""

from __future__ import annotations

import json
import shutil
import socket
import socketserver
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import certifi
import pytest

from tests.network.flaky_server import Flaky, running
from tests.network.network_cases import CANARIES, QUICK, pipeline, texts_below, write_instance
from tests.network.orthanc import free_port
from vitpipe import ingest as ingesting
from vitpipe.dicomweb import Backoff, client
from vitpipe.errors import ConfigError, DataError, TooManyRejected, TransientError
from vitpipe.fetch import fetch
from vitpipe.studies import committed, read_commit

SLICES = 6


@pytest.fixture
def flaky(tmp_path: Path) -> Iterator[Flaky]:
    paths = [write_instance(tmp_path / "made", 0, 0, number) for number in range(SLICES)]
    with running(Flaky(paths)) as server:
        yield server


def fetched_bytes(folder: Path) -> list[bytes]:
    return sorted(path.read_bytes() for path in folder.rglob("*.dcm"))


def test_busy_answers_and_cut_connections_are_tried_again(
    flaky: Flaky, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The images of the test are small: in larger chunks all of them would be lost with the connection.
    monkeypatch.setattr(client, "_CHUNK_BYTES", 512)
    config, workspace = pipeline(tmp_path, flaky.url)
    flaky.faults["studies"] = deque([503, 500])
    flaky.faults["series"] = deque([429])
    # The stream of the series breaks in the middle; then one of the instances that are left does, twice.
    flaky.faults["all"] = deque(["cut"])
    flaky.faults["5"] = deque(["cut", 502])
    summary = fetch(config, workspace, QUICK)
    assert (summary.done, summary.rejected) == (SLICES, {})
    assert fetched_bytes(workspace.root) == sorted(flaky.instances.values())
    # What had arrived before the cut was kept.
    assert 3 <= sum(kind.isdigit() for kind in flaky.asked) < 2 * SLICES
    assert "0" not in flaky.asked
    assert not list(workspace.root.rglob(".partial-*"))


def test_an_answer_that_does_not_come_in_time_is_asked_for_again(
    flaky: Flaky, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_TIMEOUTS_SECONDS", (1.0, 0.2))
    config, workspace = pipeline(tmp_path, flaky.url)
    flaky.faults["studies"] = deque(["slow"])
    flaky.faults["all"] = deque(["slow"])
    assert fetch(config, workspace, QUICK).done == SLICES
    assert flaky.asked.count("studies") == 3
    flaky.always = {"studies": "slow"}
    with pytest.raises(TransientError, match="does not answer in time"):
        fetch(config, workspace, QUICK)


def test_the_server_may_ask_for_a_longer_wait(flaky: Flaky, tmp_path: Path) -> None:
    config, workspace = pipeline(tmp_path, flaky.url)
    flaky.faults["studies"] = deque([(503, {"Retry-After": "1"})])
    started = time.monotonic()
    fetch(config, workspace, Backoff(tries=2, first_seconds=0.01, longest_seconds=5))
    assert time.monotonic() - started >= 1


def test_an_instance_that_fails_for_good_is_named_and_the_rest_goes_on(
    flaky: Flaky, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "Backoff", lambda: QUICK)
    config, workspace = pipeline(tmp_path, flaky.url, max_reject_share=0.5)
    flaky.always = {"all": 500, "2": 500, "3": 404}
    summary = ingesting.ingest(config, workspace)
    quarantine = ingesting.read_quarantine(workspace)
    assert quarantine["code"].tolist() == ["FETCH_FAILED", "FETCH_FAILED"]
    assert sorted(quarantine["reason"].str.contains("HTTP 500")) == [False, True]
    assert summary.rejected["FETCH_FAILED"] == 2
    name = next(committed(workspace.root / "studies"))
    commit = read_commit(workspace.root / "studies" / name)
    assert commit is not None
    assert (len(commit.files), len(commit.rejected)) == (SLICES - 2, 2)
    assert not [canary for canary in CANARIES for text in texts_below(workspace.root) if canary in text]
    # It is asked for again, alone, and the table forgets it when it comes.
    flaky.always = {}
    flaky.asked.clear()
    ingesting.ingest(config, workspace)
    assert [kind for kind in flaky.asked if kind.isdigit()] == ["2", "3"]
    assert ingesting.read_quarantine(workspace).empty


def test_too_many_failures_stop_the_run(flaky: Flaky, tmp_path: Path) -> None:
    config, workspace = pipeline(tmp_path, flaky.url)
    flaky.always = {"all": 404, "2": 404, "3": 403}
    with pytest.raises(TooManyRejected, match=r"2 of 6 instances could not be fetched.*max_reject_share"):
        fetch(config, workspace, QUICK)


def test_a_server_that_goes_away_is_transient_and_what_arrived_is_kept(flaky: Flaky, tmp_path: Path) -> None:
    config, workspace = pipeline(tmp_path, flaky.url)
    flaky.always = {"all": 503, "4": 503}
    flaky.faults["studies"] = deque([200])
    flaky.faults["studies"].clear()
    # After the first search the server answers no search any more.
    real_always = flaky.always

    class After(dict[str, object]):
        def get(self, kind: str, default: object = None) -> object:
            return 503 if kind == "studies" and flaky.asked.count("studies") > 2 else real_always.get(kind, default)

    flaky.always = After()
    with pytest.raises(TransientError, match="HTTP 503") as caught:
        fetch(config, workspace, QUICK)
    assert type(caught.value) is TransientError
    assert len(fetched_bytes(workspace.root)) == 4
    assert not list(committed(workspace.root / "studies"))
    flaky.always = {}
    assert fetch(config, workspace, QUICK).done == SLICES - 4


@pytest.mark.parametrize("query", [{}, {"Modality": "CT"}])
@pytest.mark.parametrize(("kind", "fault"), [("series", 404), ("instances", 404), ("series", "short")])
def test_a_list_that_was_gone_for_a_moment_is_asked_for_again(
    kind: str, fault: object, query: dict[str, str], flaky: Flaky, tmp_path: Path
) -> None:
    config, workspace = pipeline(tmp_path, flaky.url, query=query)
    flaky.always = {kind: fault}
    assert fetch(config, workspace, QUICK).done == 0
    flaky.always = {}
    assert fetch(config, workspace, QUICK).done == SLICES
    assert fetched_bytes(workspace.root) == sorted(flaky.instances.values())
    assert fetch(config, workspace, QUICK).skipped == SLICES


@pytest.mark.parametrize(
    ("query", "counts_series"), [({}, True), ({"Modality": "CT"}, True), ({}, False)], ids=["all", "filter", "no count"]
)
def test_a_list_that_was_short_is_completed(
    query: dict[str, str], counts_series: bool, flaky: Flaky, tmp_path: Path
) -> None:
    flaky.counts_series = counts_series
    config, workspace = pipeline(tmp_path, flaky.url, query=query)
    flaky.always = {"instances": "short"}
    assert fetch(config, workspace, QUICK).done == SLICES // 2
    flaky.always = {}
    summary = fetch(config, workspace, QUICK)
    assert (summary.done, summary.skipped) == (SLICES - SLICES // 2, SLICES // 2)
    # Now it is whole: a search of studies is enough.
    flaky.asked.clear()
    assert fetch(config, workspace, QUICK).skipped == SLICES
    assert set(flaky.asked) == {"studies"}


def test_many_instances_in_a_row_in_vain_end_the_fetch(flaky: Flaky, tmp_path: Path) -> None:
    config, workspace = pipeline(tmp_path, flaky.url, max_reject_share=1)
    # Searches are answered: only the images are not.
    flaky.always = {"all": 503, **{str(number): 503 for number in range(SLICES)}}
    with pytest.raises(TransientError, match="HTTP 503"):
        fetch(config, workspace, QUICK)
    assert sum(kind.isdigit() for kind in flaky.asked) == 5 * QUICK.tries
    # As many, but with one between them that comes.
    del flaky.always["3"]
    summary = fetch(config, workspace, QUICK)
    assert (summary.done, summary.rejected) == (1, {"FETCH_FAILED": 5})


def test_nobody_answers(tmp_path: Path) -> None:
    config, workspace = pipeline(tmp_path, f"http://127.0.0.1:{free_port()}/dicom-web")
    with pytest.raises(TransientError, match="cannot be reached"):
        fetch(config, workspace, QUICK)
    unknown, _ = pipeline(tmp_path, "https://no-such-host.invalid/dicom-web")
    with pytest.raises(ConfigError, match="no host of that name"):
        fetch(unknown, workspace, QUICK)


def test_a_redirect_is_not_followed(flaky: Flaky, tmp_path: Path) -> None:
    config, workspace = pipeline(tmp_path, flaky.url)
    flaky.always = {"studies": (302, {"Location": "http://127.0.0.1:1/login"})}
    with pytest.raises(ConfigError, match="sends elsewhere"):
        fetch(config, workspace, QUICK)


@pytest.mark.parametrize(
    ("query", "private", "found"),
    [
        ({"StudyDate": "20190607"}, None, SLICES),
        ({"StudyDate": "20190601-20190630"}, {"PatientID": "canary-0"}, SLICES),
        ({"StudyDate": "-20190607", "Modality": "CT"}, None, SLICES),
        ({"StudyDate": "20190608-"}, None, None),
        ({"StudyDate": "-20190606"}, None, None),
        ({}, {"PatientID": ["CANARY-1"]}, None),
        ({"Modality": "MR"}, None, 0),
    ],
)
def test_a_filter_that_the_server_passes_over_still_holds(
    query: dict[str, str],
    private: object,
    found: int | None,
    flaky: Flaky,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if private:
        (tmp_path / "private.json").write_text(json.dumps(private))
        monkeypatch.setenv("VITPIPE_DICOMWEB_QUERY", str(tmp_path / "private.json"))
    config, workspace = pipeline(tmp_path, flaky.url, query=query)
    if found is None:
        with pytest.raises(DataError, match="no study that fits"):
            fetch(config, workspace, QUICK)
    else:
        assert fetch(config, workspace, QUICK).done == found


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl, to make a certificate")
def test_a_certificate_is_trusted_only_where_its_authority_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(made)]
    subprocess.run(command, check=True, capture_output=True)
    both = tmp_path / "both.pem"
    both.write_bytes(made.read_bytes() + key.read_bytes())
    paths = [write_instance(tmp_path / "made", 0, 0, number) for number in range(2)]
    with running(Flaky(paths), both) as server:
        config, workspace = pipeline(tmp_path, server.url.replace("http:", "https:"))
        with pytest.raises(ConfigError, match="cannot be trusted; name the file of its authority"):
            fetch(config, workspace, QUICK)
        # A bundle for other programs does not win over it.
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", certifi.where())
        monkeypatch.setenv("VITPIPE_DICOMWEB_CA", str(made))
        assert fetch(config, workspace, QUICK).done == 2


def test_a_broken_encrypted_connection_is_tried_again(tmp_path: Path) -> None:
    tries: list[int] = []

    class Alert(socketserver.BaseRequestHandler):
        """Answers a TLS greeting with the alert ``internal_error`` (RFC 8446, 6.2)."""

        def handle(self) -> None:
            tries.append(len(self.request.recv(1 << 16)))
            self.request.sendall(bytes([21, 3, 3, 0, 2, 2, 80]))
            self.request.shutdown(socket.SHUT_WR)
            while self.request.recv(1 << 16):
                pass

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Alert) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}).start()
        config, workspace = pipeline(tmp_path, f"https://127.0.0.1:{server.server_address[1]}/dicom-web")
        try:
            with pytest.raises(TransientError, match="breaks off the encrypted connection"):
                fetch(config, workspace, QUICK)
        finally:
            server.shutdown()
    assert len(tries) == QUICK.tries


def test_the_token_is_sent_and_never_told(flaky: Flaky, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITPIPE_DICOMWEB_TOKEN", "canary-token")
    config, workspace = pipeline(tmp_path, flaky.url)
    fetch(config, workspace, QUICK)
    assert flaky.authorization == "Bearer canary-token"
    flaky.always = {"studies": 401}
    with pytest.raises(ConfigError, match="refuses the credentials") as caught:
        fetch(config, workspace, QUICK)
    assert "canary-token" not in str(caught.value)


def test_a_server_that_does_not_page_is_not_believed(flaky: Flaky, tmp_path: Path) -> None:
    flaky.pages = False
    config, workspace = pipeline(tmp_path, flaky.url, page_size=SLICES)
    with pytest.raises(ConfigError, match=r"does not page.*raise `source\.page_size`"):
        fetch(config, workspace, QUICK)
    # One page that is not full holds all.
    config, workspace = pipeline(tmp_path, flaky.url, page_size=SLICES + 1)
    assert fetch(config, workspace, QUICK).done == SLICES


def test_another_instance_than_was_asked_for_is_not_taken(flaky: Flaky, tmp_path: Path) -> None:
    config, workspace = pipeline(tmp_path, flaky.url)
    names = list(flaky.instances)
    flaky.instances[names[0]] = flaky.instances[names[1]]
    flaky.always = {"all": 500}
    summary = fetch(config, workspace, QUICK)
    assert (summary.done, summary.rejected) == (SLICES - 1, {"FETCH_FAILED": 1})


def test_a_folder_of_another_fetch_is_refused(flaky: Flaky, tmp_path: Path) -> None:
    config, workspace = pipeline(tmp_path, flaky.url, path=str(tmp_path / "shared"))
    assert fetch(config, workspace, QUICK).done == SLICES
    other = config.model_copy(update={"name": "other"})
    with pytest.raises(ConfigError, match=r"give `source\.path` a folder of its own"):
        fetch(other, workspace, QUICK)
    (tmp_path / "shared" / ".fetched-by").unlink()
    with pytest.raises(ConfigError, match="another pipeline"):
        fetch(config, workspace, QUICK)
