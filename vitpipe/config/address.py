"""Addresses that a configuration may name: which are allowed, and what is wrong with others."""

from __future__ import annotations

import ipaddress
from typing import Final
from urllib.parse import urlsplit

from pydantic import JsonValue

_LISTS: Final = (".txt", ".csv")
_SECRETIVE: Final = r"^(?![A-Za-z][A-Za-z0-9+.\-]*://([^/?#]*@|[^?#]*[?#]))"
WITHOUT_SECRET: Final[dict[str, JsonValue]] = {"pattern": _SECRETIVE}
"""For the form of a key (JSON Schema): no address that holds credentials, a query or a fragment.

Prefect's server keeps, and logs, whatever values a run is given before any model looks at them; what does not fit the
form it does not take.
"""


def is_this_machine(host: str) -> bool:
    """Say whether a host's name or number is that of this machine itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_address(text: str) -> bool:
    """Say whether a text is the address of a file, not a path."""
    return text.startswith(("https://", "http://", "s3://"))


def names_addresses(path: str) -> bool:
    """Say whether a path is an address, or that of a list of addresses: a text or a CSV file."""
    return is_address(path) or path.lower().endswith(_LISTS)


def address_problem(text: str, *, plain_http: bool) -> str:
    """Say in a clause what is wrong with the address of a file; empty if nothing is. It is never repeated."""
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "it is no address"
    # A bucket is a folder, where a slash ends it.
    if not host or not (parts.path.strip("/") or (parts.scheme == "s3" and parts.path)):
        return "it names no file of a host"
    if "@" in parts.netloc:
        return "it holds credentials; set VITPIPE_STAC_TOKEN or VITPIPE_STAC_HEADERS instead"
    if parts.query or parts.fragment:
        return "it holds a query, such as a signature: it would be kept, and runs out; name the plain address"
    if parts.scheme == "http" and not plain_http and not is_this_machine(host):
        return "it is plain http to another machine; use https, or set `plain_http: true` where the network is trusted"
    return ""


def service_problem(url: str, *, plain_http: bool, example: str, secrets: str) -> str:
    """Say in a clause what is wrong with the address of a service; empty if nothing is. It is never repeated.

    Args:
        url: where the service begins.
        plain_http: whether http to another machine is allowed.
        example: an address as it may be.
        secrets: the environment's variables that credentials belong into.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return f"is no address; write one such as {example}"
    checks = (
        ("@" in parts.netloc, f"holds credentials; take them out and set {secrets}"),
        (parts.scheme not in ("http", "https") or not host, f"must be an address such as {example}"),
        (
            parts.query or parts.fragment,
            f"must end with its path: what to ask for stands in `source.query`, credentials in {secrets}",
        ),
        (
            parts.scheme == "http" and not plain_http and not is_this_machine(host or ""),
            "is plain http to another machine, so data and credentials could be read on the way; use https, or set "
            "`plain_http: true` where the network is trusted",
        ),
    )
    return next((problem for applies, problem in checks if applies), "")
