"""A small HTTP server of files by ranges and of a STAC API, which fails as it is told to."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

ENDLESS_BYTES = 64 << 20
"""So much of an answer without end is sent at most: a test that fails must not fill the disk."""


@dataclass
class Asked:
    """One request."""

    method: str
    path: str
    query: dict[str, str]
    headers: Mapping[str, str]
    body: Any = None


@dataclass
class Ranges:
    """What the server holds, and how it fails.

    `faults` maps a path to what happens to its next requests: a status, ``(status, headers)``, ``(status, headers,
    "endless")`` (bytes without end), ``"endless"`` (the same, said to be the range or file), ``"none"`` (its length is
    said, but no byte of it comes), ``"cut"`` (half of what
    was asked for arrives), ``"slow"``, ``"trickle"`` (16 KiB, then a wait), ``"no_range"`` (the whole file, whatever is
    asked for), ``"blind"`` (the range, whatever ``If-Range`` says), ``"shifted"`` (another range than was asked for).
    `always` says the same of all its requests.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    answers: dict[str, Callable[[Asked], tuple[int, Any]]] = field(default_factory=dict)
    """Path to what computes a JSON answer."""
    faults: dict[str, deque[Any]] = field(default_factory=lambda: defaultdict(deque))
    always: dict[str, Any] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    etags: bool = True
    dates: bool = False
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    """Path to more headers of a file."""
    sent: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """Bytes of answers without end, by path."""
    guard: Callable[[Asked], bool] | None = None
    """Says whether a request is let in; else it gets a 403."""
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def add(self, path: str, value: Any) -> None:
        """Put a file, or a document as JSON."""
        self.files[path] = value if isinstance(value, bytes) else json.dumps(value).encode()

    def paths(self, ending: str = "") -> list[str]:
        return [asked.path for asked in self.asked if asked.path.endswith(ending)]

    def etag(self, path: str) -> str:
        return f'"{hashlib.sha256(self.files[path]).hexdigest()[:16]}"'


class _Handler(BaseHTTPRequestHandler):
    held: Ranges
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        url = urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        asked = Asked(self.command, url.path, dict(parse_qsl(url.query)), dict(self.headers), body)
        self.held.asked.append(asked)
        waiting = self.held.faults[url.path]
        fault = waiting.popleft() if waiting else self.held.always.get(url.path)
        if fault == "slow":
            time.sleep(0.5)
        if fault is None and self.held.guard is not None and not self.held.guard(asked):
            fault = 403
        if isinstance(fault, int | tuple):
            status, headers, *rest = fault if isinstance(fault, tuple) else (fault, {})
            self._send(status, b"", headers, *rest)
        elif url.path in self.held.answers:
            status, value = self.held.answers[url.path](asked)
            self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})
        elif url.path in self.held.files:
            self._file(url.path, str(fault or ""))
        else:
            self._send(404, b"", {})

    def _file(self, path: str, fault: str) -> None:
        content, headers = self.held.files[path], {"Accept-Ranges": "bytes"}
        headers |= self.held.headers.get(path, {})
        if self.held.etags:
            headers["ETag"] = self.held.etag(path)
        if self.held.dates:
            headers["Last-Modified"] = "Wed, 07 Jun 2023 10:00:00 GMT"
        if self.headers.get("If-None-Match") == headers.get("ETag", "none"):
            self._send(304, b"", headers)
            return
        if self.headers.get("If-Match", headers.get("ETag")) != headers.get("ETag") and fault != "blind":
            self._send(412, b"", headers)
            return
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        condition = self.headers.get("If-Range")
        same = condition in (None, headers.get("ETag"), headers.get("Last-Modified"))
        if found is None or fault == "no_range" or not (same or fault == "blind"):
            self._send(200, content, headers, fault)
            return
        start = int(found[1]) + (1 if fault == "shifted" else 0)
        end = min(int(found[2] or len(content) - 1), len(content) - 1)
        if start >= len(content):
            self._send(416, b"", {**headers, "Content-Range": f"bytes */{len(content)}"})
            return
        headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        self._send(206, content[start : end + 1], headers, fault)

    def _send(self, status: int, body: bytes, headers: Mapping[str, str], fault: str = "") -> None:
        self.send_response(status)
        if fault == "endless":
            self._without_end(headers)
            return
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault == "trickle":
            self.wfile.write(body[: 1 << 14])
            self.wfile.flush()
            time.sleep(30)
        elif fault == "none":
            self.close_connection = True
        elif fault == "cut":
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
        else:
            self.wfile.write(body)

    def _without_end(self, headers: Mapping[str, str]) -> None:
        for name, value in {**headers, "Transfer-Encoding": "chunked"}.items():
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = True
        try:
            while self.held.sent[self.path] < ENDLESS_BYTES:
                self.wfile.write(b"10000\r\n" + bytes(1 << 16) + b"\r\n")
                self.held.sent[self.path] += 1 << 16
        except (BrokenPipeError, ConnectionResetError):
            pass


@contextmanager
def serving(held: Ranges) -> Iterator[Ranges]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"held": held}))
    server.daemon_threads = True
    server.block_on_close = False
    held.port = int(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield held
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
