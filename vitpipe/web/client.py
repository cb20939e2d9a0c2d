"""Ask servers for documents and files: redirects checked, retries, credentials to the hosts they are for.

No sentence of this module quotes an address's query or the text of a library's error: both may hold a secret.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import urljoin, urlsplit

from vitpipe.errors import ConfigError, DataError
from vitpipe.web.access import CA_VARIABLE, HEADERS_VARIABLE, HOSTS_VARIABLE, TOKEN_VARIABLE, Access
from vitpipe.web.address import Rules, is_remote, s3_address, shown
from vitpipe.web.peers import Peers, guarded_pools
from vitpipe.web.retries import BUSY, Backoff, BusyError, Result, retry_after_seconds, translated, with_retries
from vitpipe.web.signatures import Signatures
from vitpipe.web.signing import sign

if TYPE_CHECKING:
    import requests

Document = Mapping[str, Any]

_TIMEOUTS_SECONDS: Final = (10.0, 60.0)
"""To connect, and between two bytes."""
_CHUNK_BYTES: Final = 1 << 18
_LONGEST_DOCUMENT: Final = 64 << 20
_MOST_REDIRECTS: Final = 5
_MOVED: Final = frozenset({301, 302, 303, 307, 308})
_RANGE: Final = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", re.ASCII)


class Refused(ConfigError):
    """A server answers, but does not give what is asked for; its status is 0 where it was not asked."""

    def __init__(self, sentence: str, status: int = 0) -> None:
        super().__init__(sentence)
        self.status = status


class Client:
    """Connections to the servers of one catalog, shared by all threads of a fetch.

    Args:
        rules: which addresses may be asked.
        access: credentials and certificates.
        connections: how many are kept open.
        backoff: of the retries.
    """

    def __init__(self, rules: Rules, access: Access, connections: int = 4, backoff: Backoff | None = None) -> None:
        self.rules = rules
        self.stop = threading.Event()
        """Ends every wait: another part of the fetch has failed."""
        self._access = access
        self._backoff = backoff or Backoff()
        self._peers = Peers(rules)
        self._session = _session(connections, self._check_peer)
        self._signatures = (
            Signatures(rules.signing, lambda place: self._document(place, None)) if rules.signing else None
        )

    def __enter__(self) -> Self:
        """Give the client."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the connections."""
        self._session.close()

    # ---------------------------------------------------------------------------------------------------- documents

    def document(self, address: str, body: Document | None = None) -> Document:
        """Read a JSON document.

        Args:
            address: of the network, or a path.
            body: is posted as JSON where it is given.

        Raises:
            ConfigError: there is none, or it may not be read; `Refused` carries the status.
            DataError: it is no JSON object.
            TransientError: the server does not answer, after all retries.
        """
        if refusal := self.rules.refusal(address):
            raise Refused(f"{shown(address)} is not followed: {refusal}")
        if not is_remote(address):
            return _parse(_read_local(Path(address)), address)
        return self.with_retries(lambda: self._document(address, body))

    def _document(self, address: str, body: Document | None) -> Document:
        return _parse(self._content(address, "application/geo+json, application/json", body), address)

    def content(self, address: str, accept: str) -> bytes:
        """Read a document of another kind than JSON.

        Args:
            address: of the network.
            accept: its media type.

        Raises:
            ConfigError, DataError, TransientError: see :meth:`document`.
        """
        return self.with_retries(lambda: self._content(address, accept, None))

    def _content(self, address: str, accept: str, body: Document | None) -> bytes:
        with self.stream(address, {"Accept": accept}, body) as response:
            if response.status_code != 200:
                raise self.refused(address, response.status_code)
            content = bytearray()
            for chunk in self.chunks(response, address):
                content += chunk
                if len(content) > _LONGEST_DOCUMENT:
                    raise DataError(f"{shown(address)} is longer than {_LONGEST_DOCUMENT >> 20} MiB: no STAC document")
        return bytes(content)

    # --------------------------------------------------------------------------------------------------------- bytes

    def with_retries(self, action: Callable[[], Result]) -> Result:
        """Call `action` until it succeeds; see :func:`vitpipe.web.retries.with_retries`."""
        return with_retries(action, self._backoff, self.stop)

    @contextmanager
    def stream(
        self, address: str, headers: Mapping[str, str], body: Document | None = None, *, signed: bool = False
    ) -> Iterator[requests.Response]:
        """Open one answer, after at most five redirects, each of which the rules allow; one try.

        Args:
            address: of the network.
            headers: of this request; bytes are asked for as they are stored.
            body: is posted as JSON where it is given.
            signed: ask with a signature of the service that signs for files, where there is one.

        Raises:
            ConfigError: unknown host, refused certificate, an address that may not be followed.
            BusyError: the server may answer later.
        """
        plain = address
        if signed and self._signatures is not None and not self.rules.refusal(address):
            address = self._signatures.signed(address)
        used = address
        for _ in range(_MOST_REDIRECTS + 1):
            if refusal := self.rules.refusal(address):
                raise Refused(f"{shown(address)} is not followed: {refusal}")
            response = self._ask(address, headers, body)
            if response.status_code not in _MOVED:
                break
            with response:
                place = response.headers.get("Location", "")
                region = response.headers.get("x-amz-bucket-region", "")
            if not place:
                known = f"to the region of its bucket; set AWS_REGION={region}" if region else "but does not say where"
                raise Refused(f"{shown(address)} sends elsewhere, {known}", response.status_code)
            address = self._moved(address, place, response.status_code)
            body = None if response.status_code == 303 else body
        else:
            raise Refused(f"{shown(address)} sends elsewhere more than {_MOST_REDIRECTS} times; look at the server")
        with response:
            if response.status_code in BUSY or response.status_code > 500:
                wait = retry_after_seconds(response.headers.get("Retry-After"))
                raise BusyError(f"{_server(address)} answers HTTP {response.status_code}", wait, response.status_code)
            if signed and self._signatures is not None:
                self._note(plain, used, response.status_code)
            try:
                yield response
            except BusyError as error:
                # Whatever breaks off was answered: it is this one file that does not come, not the server.
                error.status = error.status or response.status_code
                raise

    def _moved(self, address: str, place: str, status: int) -> str:
        """Follow a redirect.

        Raises:
            Refused: it leads to what is no address.
        """
        try:
            return urljoin(s3_address(address) if address.startswith("s3://") else address, place)
        except ValueError:
            raise Refused(f"{shown(address)} sends to what is no address; look at the server", status) from None

    def _note(self, plain: str, used: str, status: int) -> None:
        """Keep a signature that was taken; one that is not taken any more is asked for anew.

        Raises:
            BusyError: it was taken before, so that another one may help.
        """
        assert self._signatures is not None
        if status not in (401, 403):
            self._signatures.taken(plain)
        elif self._signatures.forget(plain, used):
            raise BusyError(f"{_server(plain)} does not take the signature any more", status=status)

    def body(self, response: requests.Response, address: str, most: int) -> bytes:
        """Give a whole answer, of which no more than a chunk beyond `most` bytes is ever held.

        Raises:
            BusyError: the connection breaks, or more bytes come.
        """
        content = bytearray()
        for chunk in self.chunks(response, address):
            content += chunk
            if len(content) > most:
                raise BusyError(f"{_server(address)} sends more bytes than it was asked for")
        return bytes(content)

    def chunks(self, response: requests.Response, address: str) -> Iterator[bytes]:
        """Give the bytes of an answer as they arrive.

        Raises:
            BusyError: the connection breaks.
        """
        with translated(_server(address), CA_VARIABLE):
            yield from response.iter_content(_CHUNK_BYTES)

    def refused(self, address: str, status: int) -> Refused:
        """Make the error of an answer that is none."""
        if status in (401, 403) and address.startswith("s3://"):
            return Refused(
                f"{shown(address)} may not be read (HTTP {status}); set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and "
                "AWS_REGION to an account that may, or AWS_NO_SIGN_REQUEST=YES where it is public",
                status,
            )
        if status in (401, 403):
            return Refused(
                f"{shown(address)} refuses access (HTTP {status}); set {TOKEN_VARIABLE} or {HEADERS_VARIABLE} to an "
                f"account that may read it, and name its host in {HOSTS_VARIABLE} where it is not the catalog's; a "
                "signed address may have expired: run again, or name the service that signs in `source.sign`",
                status,
            )
        if status in (404, 410):
            return Refused(f"{shown(address)} is not there (HTTP {status}); correct the address or the catalog", status)
        return Refused(f"{shown(address)} refuses the question (HTTP {status}); look at the server", status)

    def validator(self, headers: Mapping[str, str]) -> str:
        """Give what tells a file from a later one byte for byte: a weak ETag does not."""
        etag = headers.get("ETag", "").strip()
        return etag if etag.startswith('"') else headers.get("Last-Modified", "").strip()

    def broken(self, address: str) -> BusyError:
        """Make the error of an answer that is shorter than it says."""
        return BusyError(f"{_server(address)} breaks off in the middle of an answer")

    def _ask(self, address: str, headers: Mapping[str, str], body: Document | None) -> requests.Response:
        given = {**headers, **self._credentials(address)}
        if address.startswith("s3://"):
            address = s3_address(address)
            given |= sign(address, headers)
        # Compressed in transit, a range would count other bytes than the file's.
        given["Accept-Encoding"] = "identity"
        with translated(_server(address), CA_VARIABLE):
            # The CA file is stated with each request: else REQUESTS_CA_BUNDLE would win over it.
            return self._session.request(
                "GET" if body is None else "POST", address, json=body, headers=given, stream=True,
                allow_redirects=False, timeout=_TIMEOUTS_SECONDS, verify=self._access.ca_file,
            )  # fmt: skip

    def _check_peer(self, host: str, number: str) -> None:
        """Refuse a machine that the catalog must not lead to; see `vitpipe.web.peers`.

        Raises:
            Refused: nothing has been sent to it.
        """
        if refusal := self._peers.refusal(host, number):
            raise Refused(f"nothing is asked of {host}: {refusal}")

    def _credentials(self, address: str) -> Mapping[str, str]:
        """Give the headers of the user to the catalog's host and to those that the user names, to no other."""
        parts = urlsplit(address)
        own = is_remote(self.rules.root) and (parts.scheme, parts.netloc) == urlsplit(self.rules.root)[:2]
        named = {parts.netloc.lower(), (parts.hostname or "").lower()} & self._access.hosts
        return self._access.headers if own or named else {}


def range_of(headers: Mapping[str, str]) -> tuple[int, int, int | None] | None:
    """Read ``Content-Range``: first and last byte, and the length of the file, None where it is not said.

    None of what cannot be read.
    """
    found = _RANGE.fullmatch(headers.get("Content-Range", "").strip())
    return None if found is None else (int(found[1]), int(found[2]), None if found[3] == "*" else int(found[3]))


def _server(address: str) -> str:
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _read_local(path: Path) -> bytes:
    try:
        if path.stat().st_size > _LONGEST_DOCUMENT:
            raise DataError(f"{shown(str(path))} is longer than {_LONGEST_DOCUMENT >> 20} MiB: no STAC document")
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise Refused(f"no file {shown(str(path))}; correct `source.url`, or the link that leads to it", 404) from None
    except OSError as error:
        raise ConfigError(f"{shown(str(path))} cannot be read ({error.strerror}); give this user access") from error


def _parse(content: bytes, address: str) -> Document:
    try:
        # NaN is no JSON, but Python writes it: it states nothing.
        value = json.loads(content, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise DataError(f"{shown(address)} is no STAC document: expected a JSON object; correct `source.url`")
    return value


def _session(connections: int, check_peer: Callable[[str, str], None]) -> requests.Session:
    import requests
    from requests.adapters import HTTPAdapter
    from requests.auth import AuthBase

    class NoNetrc(AuthBase):
        """Keeps requests from looking for credentials in a ``.netrc``."""

        def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
            return request

    class Session(requests.Session):
        """Leaves redirects alone: to make the next request ready, requests would read the body, however long it is."""

        def get_redirect_target(self, resp: requests.Response) -> None:  # noqa: ARG002 - its name there
            return None

    # At DEBUG it logs every path with its query, and a signed one is a secret.
    logging.getLogger("urllib3").setLevel(max(logging.INFO, logging.getLogger("urllib3").level))
    session = Session()
    session.auth = NoNetrc()
    # Threads share the session: nothing of it may change with an answer.
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    for scheme in ("https://", "http://"):
        adapter = HTTPAdapter(pool_maxsize=connections)
        # A proxy has pools of its own: there, which machine a name leads to is the proxy's matter.
        adapter.poolmanager.pool_classes_by_scheme = guarded_pools(check_peer)
        session.mount(scheme, adapter)
    return session
