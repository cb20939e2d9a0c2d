"""A small store of S3: GET by ranges and lists of keys; each signature (Version 4) is computed anew."""

from __future__ import annotations

import hashlib
import hmac
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, quote, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest

KEY, SECRET, REGION = "AKIACANARY", "canary-secret", "eu-north-1"


@dataclass
class Store:
    """What it holds: ``bucket/key`` to content."""

    objects: dict[str, bytes] = field(default_factory=dict)
    page: int = 2
    """Keys in a page of a list."""
    refused: list[str] = field(default_factory=list)
    """Why requests were refused."""
    asked: list[str] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Set the environment to this store."""
        for name, value in (
            ("AWS_ENDPOINT_URL", self.url),
            ("AWS_ACCESS_KEY_ID", KEY),
            ("AWS_SECRET_ACCESS_KEY", SECRET),
            ("AWS_REGION", REGION),
        ):
            monkeypatch.setenv(name, value)
        for name in ("AWS_SESSION_TOKEN", "AWS_NO_SIGN_REQUEST", "AWS_S3_ENDPOINT", "AWS_ENDPOINT_URL_S3"):
            monkeypatch.delenv(name, raising=False)


def _encoded(text: str) -> str:
    return quote(text, safe="-_.~")


def _misfit(method: str, target: str, headers: Mapping[str, str]) -> str:
    """Say why a signature does not hold; see AWS, "Create a signed AWS API request"."""
    given = headers.get("authorization", "")
    if not given.startswith("AWS4-HMAC-SHA256 "):
        return "no signature"
    fields = dict(part.strip().split("=", 1) for part in given.removeprefix("AWS4-HMAC-SHA256 ").split(","))
    key, day, region, service, end = fields["Credential"].split("/")
    moment = headers["x-amz-date"]
    age = datetime.now(UTC) - datetime.strptime(moment, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    if (key, region, service, end) != (KEY, REGION, "s3", "aws4_request") or abs(age.total_seconds()) > 900:
        return "other credentials, region or time"
    names = fields["SignedHeaders"].split(";")
    if "host" not in names or not {name for name in headers if name.startswith("x-amz-")} <= set(names):
        return "headers that are not signed"
    path, _, query = target.partition("?")
    asked = sorted((_encoded(name), _encoded(value)) for name, value in parse_qsl(query, keep_blank_values=True))
    canonical = "\n".join(
        (
            method, path, "&".join(f"{name}={value}" for name, value in asked),
            *(f"{name}:{' '.join(headers[name].split())}" for name in names), "", fields["SignedHeaders"],
            headers["x-amz-content-sha256"],
        )
    )  # fmt: skip
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    text = f"AWS4-HMAC-SHA256\n{moment}\n{day}/{region}/s3/aws4_request\n{digest}"
    signing = f"AWS4{SECRET}".encode()
    for part in (day, region, "s3", "aws4_request"):
        signing = hmac.new(signing, part.encode(), hashlib.sha256).digest()
    wanted = hmac.new(signing, text.encode(), hashlib.sha256).hexdigest()
    return "" if hmac.compare_digest(wanted, fields["Signature"]) else "another signature"


class _Handler(BaseHTTPRequestHandler):
    store: Store
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.store.asked.append(self.path)
        misfit = _misfit("GET", self.path, {name.lower(): value for name, value in self.headers.items()})
        url = urlsplit(self.path)
        name, query = unquote(url.path).strip("/"), dict(parse_qsl(url.query))
        if misfit:
            self.store.refused.append(misfit)
            self._send(403, b"<Error><Code>SignatureDoesNotMatch</Code></Error>", {})
        elif query.get("list-type") == "2":
            self._send(200, self._list(name, query).encode(), {"Content-Type": "application/xml"})
        elif name in self.store.objects:
            self._object(self.store.objects[name])
        else:
            self._send(404, b"<Error><Code>NoSuchKey</Code></Error>", {})

    def _list(self, bucket: str, query: Mapping[str, str]) -> str:
        found = sorted(name.removeprefix(f"{bucket}/") for name in self.store.objects if name.startswith(f"{bucket}/"))
        keys = [key for key in found if key.startswith(query.get("prefix", ""))]
        # The token of a page may hold whatever a query must encode.
        start = int(query.get("continuation-token", "0+/=").partition("+")[0])
        more = start + self.store.page < len(keys)
        token = f"<NextContinuationToken>{start + self.store.page}+/=</NextContinuationToken>" if more else ""
        listed = "".join(
            f"<Contents><Key>{escape(quote(key, safe='/'))}</Key><Size>1</Size></Contents>"
            for key in keys[start : start + self.store.page]
        )
        return (
            '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>{bucket}</Name><IsTruncated>{str(more).lower()}</IsTruncated>{listed}{token}</ListBucketResult>"
        )

    def _object(self, content: bytes) -> None:
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()[:16]}"'}
        first, _, last = self.headers.get("Range", "").removeprefix("bytes=").partition("-")
        if not first:
            self._send(200, content, headers)
            return
        start, end = int(first), min(int(last or len(content) - 1), len(content) - 1)
        self._send(206, content[start : end + 1], headers | {"Content-Range": f"bytes {start}-{end}/{len(content)}"})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def storing(store: Store) -> Iterator[Store]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"store": store}))
    server.daemon_threads = True
    server.block_on_close = False
    store.port = int(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield store
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
