"""Short-lived signatures of a service: asked for when a file is, kept in memory until they run out, told to no one.

The service is that of Microsoft's Planetary Computer, or one of its form: ``<service>/<account>/<container>`` gives a
shared access signature for all files of an Azure container, as ``{"token": ..., "msft:expiry": ...}``; one whose
address ends with ``/sign`` is asked by ``?href=`` for each address, and gives ``{"href": ..., "msft:expiry": ...}``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import quote, urlsplit

from vitpipe.errors import ConfigError

_AZURE: Final = ".blob.core.windows.net"
_RENEWED_BEFORE: Final = timedelta(seconds=60)
"""A signature that runs out while a request is on its way would be refused."""


@dataclass(slots=True)
class _Kept:
    query: str = field(repr=False)
    until: datetime | None
    """None: it does not run out, since there is nothing to sign."""
    accepted: bool = False
    """A server has taken it."""


class Signatures:
    """Signatures that one service gives; shared by all threads of a fetch.

    Args:
        service: its address, as the user names it.
        ask: reads a JSON document of it; one try.
    """

    def __init__(self, service: str, ask: Callable[[str], Mapping[str, Any]]) -> None:
        self._service = service.rstrip("/")
        self._ask = ask
        self._lock = threading.Lock()
        self._kept: dict[str, _Kept] = {}

    def signed(self, address: str) -> str:
        """Give an address with its signature; as it is where it holds a query already, or no service signs it.

        Raises:
            ConfigError: the service gives no signature, or one for another address.
            TransientError: it may answer later.
        """
        place = self._place(address)
        if place is None:
            return address
        # One request for all threads that want the same signature.
        with self._lock:
            kept = self._kept.get(place)
            if kept is None or (kept.until is not None and kept.until - datetime.now(UTC) < _RENEWED_BEFORE):
                kept = self._kept[place] = self._ask_for(place, address)
        return f"{address}?{kept.query}" if kept.query else address

    def taken(self, address: str) -> None:
        """Note that a server has taken the signature of an address."""
        with self._lock:
            kept = self._kept.get(self._place(address) or "")
            if kept is not None:
                kept.accepted = True

    def forget(self, address: str, signed: str) -> bool:
        """Drop a signature that a server refuses.

        Args:
            address: what was asked for.
            signed: how it was asked for.

        Returns:
            Whether another one may help: this one was taken before, or there is a newer one already.
        """
        place = self._place(address)
        if place is None:
            return False
        with self._lock:
            kept = self._kept.get(place)
            if kept is None or signed != (f"{address}?{kept.query}" if kept.query else address):
                return True
            del self._kept[place]
            return kept.accepted

    def _place(self, address: str) -> str | None:
        """Give the address of the service that signs an address; None where none does."""
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or parts.query:
            return None
        if self._service.endswith("/sign"):
            return f"{self._service}?href={quote(address, safe='')}"
        container = _container_of(parts.hostname or "", parts.path, urlsplit(self._service).hostname or "")
        return None if container is None else f"{self._service}/{container}"

    def _ask_for(self, place: str, address: str) -> _Kept:
        answer = self._ask(place)
        if self._service.endswith("/sign"):
            href = answer.get("href")
            if href == address:
                return _Kept("", None)
            plain, _, query = href.partition("?") if isinstance(href, str) else ("", "", "")
            if plain != address or not query:
                raise ConfigError(
                    f"{self._service} signs another address than it was asked for; look at the service of `source.sign`"
                )
        else:
            token = answer.get("token")
            query = token.removeprefix("?") if isinstance(token, str) else ""
        until = _moment(answer.get("msft:expiry"))
        if not query or until is None:
            raise ConfigError(
                f"{self._service} gives no signature: expected `token` or `href`, and `msft:expiry`; correct "
                "`source.sign`, such as https://planetarycomputer.microsoft.com/api/sas/v1/token"
            )
        return _Kept(query, until)


def _container_of(host: str, path: str, service_host: str) -> str | None:
    """Give ``<account>/<container>`` of a file in Azure; on the host of the service the account stands in the path.

    No other host gets a signature: a catalog could name its own, to be sent the signature of another's files.
    """
    names = [name for name in path.split("/") if name]
    if host.lower().endswith(_AZURE):
        names.insert(0, host.lower().removesuffix(_AZURE))
    elif host != service_host:
        return None
    return "/".join(names[:2]) if len(names) > 2 else None


def _moment(text: object) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return moment if moment is None or moment.tzinfo else moment.replace(tzinfo=UTC)
