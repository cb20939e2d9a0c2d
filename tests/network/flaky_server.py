"""A small DICOMweb server of one study, which fails as it is told to."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

STUDY, SERIES = "1.2.3.777.0.1", "1.2.3.777.0.2.0"
BOUNDARY = "a-boundary"


class Flaky:
    """What the server holds, and how it fails.

    `faults` maps what is asked for (``studies``, ``series``, ``instances``, ``all`` of a series, or the last number of
    an instance) to what happens to the next requests: a status, ``(status, headers)``, ``"cut"``, ``"slow"``, or
    ``"short"``: the first half of a list. `always` says the same of all requests.
    """

    def __init__(self, paths: list[Path]) -> None:
        self.instances = {f"1.2.3.777.0.4.0.{number}": path.read_bytes() for number, path in enumerate(paths)}
        self.faults: dict[str, deque[object]] = defaultdict(deque)
        self.always: dict[str, object] = {}
        self.asked: list[str] = []
        self.pages = True
        self.counts_series = True
        self.authorization = ""
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/dicom-web"


@contextmanager
def running(flaky: Flaky, certificate: Path | None = None) -> Iterator[Flaky]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            place = [part for part in url.path.split("/") if part][1:]
            kind = place[-1] if len(place) % 2 else ("all" if len(place) == 4 else place[-1].rsplit(".", 1)[-1])
            flaky.asked.append(kind)
            flaky.authorization = self.headers.get("Authorization", "")
            waiting = flaky.faults[kind]
            fault = waiting.popleft() if waiting else flaky.always.get(kind)
            if fault == "slow":
                time.sleep(0.5)
            if isinstance(fault, int | tuple):
                status, headers = fault if isinstance(fault, tuple) else (fault, {})
                self._send(status, b"", headers)
            elif len(place) % 2:
                self._search(kind, parse_qs(url.query), short=fault == "short")
            else:
                names = list(flaky.instances) if kind == "all" else [place[-1]]
                self._images([flaky.instances[name] for name in names], cut=fault == "cut")

        def _search(self, kind: str, query: dict[str, list[str]], *, short: bool) -> None:
            # No filter is known here: all is given, whatever was asked for.
            study = {
                "0020000D": STUDY,
                "00201208": len(flaky.instances),
                "00100020": "CANARY-0",
                "00080020": "20190607",
            }
            counted = {"00201209": len(flaky.instances)} if flaky.counts_series else {}
            listed: dict[str, list[dict[str, object]]] = {
                "studies": [study],
                "series": [{"0020000E": SERIES, "00080060": "CT", **counted}],
                "instances": [{"00080018": name} for name in flaky.instances],
            }
            offset = int(query.get("offset", ["0"])[0]) if flaky.pages else 0
            whole = listed[kind][: len(listed[kind]) // 2] if short else listed[kind]
            page = whole[offset : offset + int(query["limit"][0])]
            entries = [{tag: {"vr": "UI", "Value": [value]} for tag, value in entry.items()} for entry in page]
            self._send(200, json.dumps(entries).encode(), {"Content-Type": "application/dicom+json"})

        def _images(self, images: list[bytes], *, cut: bool) -> None:
            body = b"".join(
                f"\r\n--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode() + image for image in images
            )
            body += f"\r\n--{BOUNDARY}--".encode()
            self.send_response(200)
            self.send_header("Content-Type", f'multipart/related; type="application/dicom"; boundary={BOUNDARY}')
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if cut else body)
            if cut:
                self.close_connection = True

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    flaky.port = int(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield flaky
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
