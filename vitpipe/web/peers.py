"""Which machine a name leads to: looked at when a connection is made, before anything is sent over it.

The name of a host says little: whoever owns a name may let it lead to 127.0.0.1, or into the network behind a firewall,
and may change that between a look-up and the connection.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Callable
from enum import IntEnum
from functools import cached_property
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from vitpipe.web.address import CLOUD_METADATA, Rules, endpoint_hosts, is_remote, number_of

if TYPE_CHECKING:
    from urllib3.connectionpool import HTTPConnectionPool

_STORES: Final = (".amazonaws.com", ".blob.core.windows.net", ".googleapis.com")
"""Stores whose names their owners alone can lead anywhere: inside a cloud they lead to private numbers."""


class Reach(IntEnum):
    """Who can reach a number, from everyone to this machine alone."""

    EVERYONE = 0
    NETWORK = 1
    LINK = 2
    MACHINE = 3


_WORDS: Final = {
    Reach.NETWORK: "in the local network",
    Reach.LINK: "that only its neighbours reach",
    Reach.MACHINE: "that is this one",
}


class Peers:
    """Says which connections a catalog may lead to.

    Args:
        rules: of the catalog.
    """

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._first: Reach | None = None
        self._lock = threading.Lock()

    def refusal(self, host: str, number: str) -> str:
        """Say in a clause why nothing is sent to a machine; empty where it may be.

        A catalog leads to what as many can reach as can reach itself. One on this machine is the user's own.

        Args:
            host: name as the address has it.
            number: of the machine that is connected.
        """
        name = host.lower().strip("[]").rstrip(".")
        reach = _reach(number)
        if name == self._root_name:
            with self._lock:
                self._first = reach if self._first is None else self._first
        elif name in self._named:
            return ""
        if name == self._root_name and reach <= self._own_reach():
            return ""
        if reach is Reach.NETWORK and name.endswith(_STORES):
            return ""
        if reach is Reach.LINK or reach > self._own_reach():
            return (
                f"its name leads to a machine {_WORDS[reach]}, which a catalog elsewhere has no business to name; "
                "where it is meant to, save the catalog as a file here"
            )
        return ""

    @cached_property
    def _named(self) -> frozenset[str]:
        """Hosts that the user named besides the catalog's: of the service that signs, of the S3 endpoint."""
        signing = _host_of(self._rules.signing)
        return frozenset({signing, *endpoint_hosts()} - {""})

    @cached_property
    def _root_name(self) -> str:
        return _host_of(self._rules.root)

    def _own_reach(self) -> Reach:
        """Say who can reach the catalog: by the machine that it came from, which its name may leave later on.

        Of what the name leads to besides, the local network counts alone: no look-up makes a catalog one of this
        machine.
        """
        if not is_remote(self._rules.root):
            return Reach.MACHINE
        first = _reach(self._root_name) if self._first is None else self._first
        return max(first, self._looked_up)

    @cached_property
    def _looked_up(self) -> Reach:
        found = max(map(_reach, _numbers(self._root_name)), default=Reach.EVERYONE)
        return min(found, Reach.NETWORK)


def _host_of(address: str) -> str:
    return (urlsplit(address).hostname or "").rstrip(".") if is_remote(address) else ""


def _numbers(host: str) -> list[str]:
    """Look up the numbers of a host; none where it has none here, such as behind a proxy."""
    try:
        return [str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError):
        return []


def _reach(text: str) -> Reach:
    number = number_of(text.partition("%")[0])
    if number is None:
        return Reach.EVERYONE
    if number.is_loopback or number.is_unspecified:
        return Reach.MACHINE
    if number.is_link_local or number in CLOUD_METADATA:
        return Reach.LINK
    shared = isinstance(number, ipaddress.IPv4Address) and number in _CARRIER
    return Reach.NETWORK if number.is_private or shared else Reach.EVERYONE


_CARRIER: Final = ipaddress.ip_network("100.64.0.0/10")
"""Shared address space (RFC 6598): not private by its name, but no one outside reaches it."""


def guarded_pools(check: Callable[[str, str], None]) -> dict[str, type[HTTPConnectionPool]]:
    """Make pools of connections that are checked when they are made, by scheme.

    Args:
        check: gets host and number of the machine; raises where nothing may be sent there.
    """
    from urllib3.connection import HTTPConnection, HTTPSConnection
    from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

    def checked(host: str, connected: socket.socket) -> socket.socket:
        try:
            check(host, str(connected.getpeername()[0]))
        except BaseException:
            connected.close()
            raise
        return connected

    class Plain(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            return checked(self.host, super()._new_conn())

    class Encrypted(HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            return checked(self.host, super()._new_conn())

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class EncryptedPool(HTTPSConnectionPool):
        ConnectionCls = Encrypted

    return {"http": PlainPool, "https": EncryptedPool}
