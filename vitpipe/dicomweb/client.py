"""Ask a DICOMweb server: search page by page (QIDO-RS), retrieve as a stream (WADO-RS), try again what may pass.

No sentence of this module quotes a request's address or the text of a library's error: both may hold an identifier.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import quote

from vitpipe.arrivals import FETCH_FAILED
from vitpipe.config import DicomwebSource
from vitpipe.dicomweb.access import CA_VARIABLE, PASSWORD_VARIABLE, TOKEN_VARIABLE, USER_VARIABLE, Access
from vitpipe.dicomweb.multipart import boundary_of, parts
from vitpipe.errors import ConfigError, TransientError, UnreadableSource
from vitpipe.web.retries import (
    BUSY,
    Backoff,
    BusyError,
    Result,
    keep_addresses_from_logs,
    retry_after_seconds,
    translated,
    with_retries,
)

if TYPE_CHECKING:
    import requests

STUDY_UID, SERIES_UID, INSTANCE_UID = "0020000D", "0020000E", "00080018"
INSTANCE_COUNT: Final = "00201208"

_TIMEOUTS_SECONDS: Final = (10.0, 60.0)
"""To connect, and between two bytes."""
_CHUNK_BYTES: Final = 1 << 18
# As it is stored: a server would otherwise decode, and another encoding is another file.
_AS_STORED: Final = 'multipart/related; type="application/dicom"; transfer-syntax=*'
_HOPELESS: Final = 5
"""Instances in a row that all tries did not get: the next ones would take as long each."""
_LOGIN: Final = (
    f"set {TOKEN_VARIABLE}, or {USER_VARIABLE} and {PASSWORD_VARIABLE}, to an account that may search and retrieve"
)

Entry = Mapping[str, Any]


class Server:
    """One server and one connection to it; every thread has its own.

    Args:
        source: names the server.
        access: credentials and certificates.
        backoff: of the retries.
        stop: ends a wait early, when another thread has failed.
    """

    def __init__(
        self,
        source: DicomwebSource,
        access: Access,
        backoff: Backoff | None = None,
        stop: threading.Event | None = None,
    ) -> None:
        self._root = source.url.rstrip("/")
        self._page_size = source.page_size
        self._backoff = backoff or Backoff()
        self._stop = stop or threading.Event()
        self._session = _session(access)
        # Stated with each request: else REQUESTS_CA_BUNDLE would win over it.
        self._verify = access.ca_file
        self._in_vain = 0

    def __enter__(self) -> Self:
        """Give the server."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the connection."""
        self._session.close()

    # ------------------------------------------------------------------------------------------------------- search

    def search(self, place: tuple[str, ...], filters: Mapping[str, str], uid: str) -> Iterator[Entry]:
        """Ask for all entries, page after page until one is empty: a server may give fewer than it was asked for.

        Args:
            place: path segments below the root, such as ``("studies", uid, "series")``.
            filters: keyword to value.
            uid: the tag that tells two entries apart.

        Raises:
            ConfigError: unknown host, wrong address, refused certificate or credentials, or the server does not page.
            TransientError: the server does not answer, after all retries.
        """
        seen: set[str] = set()
        offset = 0
        while True:
            wanted = {**filters, "limit": str(self._page_size), "offset": str(offset)}
            page = self._with_retries(lambda wanted=wanted: self._page(place, wanted))  # type: ignore[misc]
            fresh = []
            for entry in page:
                name = value_of(entry, uid)
                if name is None:
                    raise ConfigError(f"{self._root} answers with an entry that has no {uid}; it is no DICOMweb server")
                if name not in seen:
                    seen.add(name)
                    fresh.append(entry)
            yield from fresh
            if page and not fresh and len(page) == self._page_size:
                raise ConfigError(
                    f"{self._root} gives the same {len(page)} entries again: it does not page (`offset`), so some may"
                    " be missing; raise `source.page_size`"
                )
            if not fresh:
                return
            offset += len(page)

    def _page(self, place: tuple[str, ...], filters: Mapping[str, str]) -> list[Entry]:
        with self._get(place, filters, "application/dicom+json") as response:
            if response.status_code == 204:
                return []
            if response.status_code == 404 and len(place) > 1:
                # It was listed a moment ago, and is gone.
                return []
            self._require_ok(response)
            try:
                page = response.json()
            except ValueError:
                page = None
        if not isinstance(page, list) or not all(isinstance(entry, dict) for entry in page):
            raise ConfigError(
                f"{self._root} does not answer a search with JSON; `source.url` must be the root of the DICOMweb"
                " service, such as https://pacs.example.org/dicom-web"
            )
        return page

    # ----------------------------------------------------------------------------------------------------- retrieve

    def retrieve_series(self, place: tuple[str, ...], take: Callable[[Iterator[bytes]], None]) -> bool:
        """Give every instance of a series to `take`, as iterators of bytes; one try.

        Returns:
            Whether all that the server meant to send has arrived.

        Raises:
            ConfigError: see :meth:`search`.
        """
        try:
            self._stream(place, take)
        except (UnreadableSource, TransientError):
            # Whoever asks sees what is missing, and asks for it by instance; there it is tried again, or named.
            return False
        return True

    def retrieve_instance(self, place: tuple[str, ...], take: Callable[[Iterator[bytes]], None], uri: str) -> None:
        """Give one instance to `take`, as an iterator of bytes; tried again from its start.

        Args:
            place: path segments.
            take: writes the bytes; called once a try.
            uri: where the instance is meant to lie, for the rejection.

        Raises:
            UnreadableSource: ``FETCH_FAILED``: the server answers, but does not give this one.
            TransientError: the server does not answer any more.
            ConfigError: see :meth:`search`.
        """
        try:
            self._with_retries(lambda: self._stream(place, take))
            self._in_vain = 0
        except UnreadableSource as error:
            raise UnreadableSource(FETCH_FAILED, error.reason, uri) from None
        except TransientError as error:
            self._in_vain += 1
            if self._in_vain >= _HOPELESS:
                raise
            try:
                self._page(("studies",), {"limit": "1"})
            except TransientError:
                raise error from None
            reason = f"{error} in {self._backoff.tries} tries, while other questions are answered; look at the server"
            raise UnreadableSource(FETCH_FAILED, reason, uri) from None

    def _stream(self, place: tuple[str, ...], take: Callable[[Iterator[bytes]], None]) -> None:
        with self._get(place, {}, _AS_STORED) as response:
            if 400 <= response.status_code < 500 and response.status_code not in BUSY | {401}:
                reason = f"the server refuses it (HTTP {response.status_code}); look at the server"
                raise UnreadableSource(FETCH_FAILED, reason, "")
            self._require_ok(response)
            chunks = self._chunks(response)
            boundary = boundary_of(response.headers.get("Content-Type", ""))
            if boundary is None:
                take(chunks)
                return
            for part in parts(chunks, boundary):
                take(part)

    def _chunks(self, response: requests.Response) -> Iterator[bytes]:
        with self._translated():
            yield from response.iter_content(_CHUNK_BYTES)

    # ------------------------------------------------------------------------------------------------------ requests

    @contextmanager
    def _get(self, place: tuple[str, ...], filters: Mapping[str, str], accept: str) -> Iterator[requests.Response]:
        url = "/".join((self._root, *(quote(segment, safe="") for segment in place)))
        with self._translated():
            # A redirect would carry credentials and images to a place that nobody named.
            response = self._session.get(
                url, params=dict(filters), headers={"Accept": accept}, stream=True, allow_redirects=False,
                timeout=_TIMEOUTS_SECONDS, verify=self._verify,
            )  # fmt: skip
        with response:
            with self._translated():
                if accept != _AS_STORED:
                    response.content  # noqa: B018 - read here, where its errors are translated
            yield response

    def _require_ok(self, response: requests.Response) -> None:
        status = response.status_code
        if status in BUSY or status > 500:
            wait = retry_after_seconds(response.headers.get("Retry-After"))
            raise BusyError(f"{self._root} answers HTTP {status}", wait)
        if status in (401, 403):
            raise ConfigError(f"{self._root} refuses the credentials (HTTP {status}); {_LOGIN}")
        if 300 <= status < 400:
            raise ConfigError(f"{self._root} sends elsewhere (HTTP {status}); write the final address, or {_LOGIN}")
        if status == 404:
            raise ConfigError(f"{self._root} has no DICOMweb service (HTTP 404); correct `source.url`")
        if status not in (200, 206):
            raise ConfigError(
                f"{self._root} refuses the question (HTTP {status}); check `source.url` and `source.query`"
            )

    def _translated(self) -> AbstractContextManager[None]:
        return translated(self._root, CA_VARIABLE)

    def _with_retries(self, action: Callable[[], Result]) -> Result:
        return with_retries(action, self._backoff, self._stop)


def value_of(entry: Entry, tag: str) -> str | None:
    """Give the first value of a tag in DICOM JSON (PS3.18 F.2) as text; None where there is none."""
    element = entry.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return str(values[0]).strip() or None if isinstance(values, list) and values and values[0] is not None else None


def _session(access: Access) -> requests.Session:
    import requests
    from requests.auth import AuthBase, HTTPBasicAuth

    class Token(AuthBase):
        """Sets the token, and keeps requests from looking for credentials in a ``.netrc``."""

        def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
            if access.token:
                request.headers["Authorization"] = f"Bearer {access.token}"
            return request

    keep_addresses_from_logs()
    session = requests.Session()
    session.auth = HTTPBasicAuth(access.user, access.password) if access.user and access.password else Token()
    return session
