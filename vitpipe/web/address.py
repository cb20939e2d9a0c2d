"""Addresses: where a reference leads, whether it may be followed, and how it is told without its secret."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote, urlencode, urljoin, urlsplit, urlunsplit

from vitpipe.config.address import is_this_machine
from vitpipe.errors import ConfigError

_QUERY: Final = re.compile(r"\?[^/]*=.*", re.DOTALL)
_EMBEDDING: Final = tuple(map(ipaddress.IPv6Network, ("64:ff9b::/96", "::ffff:0:0:0/96", "::/96")))
"""Numbers of IPv6 whose last four bytes are one of IPv4: of NAT64 (RFC 6052), SIIT (RFC 7915), and the first form."""


def is_remote(address: str) -> bool:
    """Say whether an address is one of the network, not a path."""
    return "://" in address


def shown(address: str) -> str:
    """Give an address without query, fragment and credentials: a signed one holds a secret in them."""
    if not is_remote(address):
        # A catalog in a file may be the copy of one whose relative references are signed.
        return _QUERY.sub("", address)
    try:
        parts = urlsplit(address)
    except ValueError:
        return "an address that cannot be read"
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def resolve(base: str, href: str) -> str:
    """Follow a reference from a document.

    Args:
        base: address or absolute path of the document.
        href: relative or absolute reference.

    Returns:
        An address, or an absolute path.
    """
    if href.startswith("s3://"):
        return href
    if href.startswith("file://"):
        return unquote(urlsplit(href).path)
    if is_remote(href) or is_remote(base):
        return urljoin(base, href)
    path = os.path.normpath(Path(base).parent / href)
    return path if os.path.lexists(path) else os.path.normpath(Path(base).parent / unquote(href))


def s3_address(uri: str) -> str:
    """Give the HTTP address of an object; path style at ``AWS_ENDPOINT_URL`` or ``AWS_S3_ENDPOINT`` where one is set.

    A query right behind the bucket, which no object has, is one about the bucket, such as that of `listing`.

    Raises:
        ConfigError: the URI names no bucket and key.
    """
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    bucket, _, question = bucket.partition("?")
    if not bucket or not (key or question):
        raise ConfigError(f"{uri} names no object; expected s3://bucket/key")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if host := os.environ.get("AWS_S3_ENDPOINT"):
        secure = os.environ.get("AWS_HTTPS", "YES").upper() in ("YES", "TRUE", "ON", "1")
        endpoint = host if is_remote(host) else f"{'https' if secure else 'http'}://{host}"
    place = f"{bucket}/{quote(key)}" if key else f"{bucket}?{question}"
    if endpoint:
        return f"{endpoint.rstrip('/')}/{place}"
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return f"https://s3.{f'{region}.' if region else ''}amazonaws.com/{place}"


def listing(bucket: str, prefix: str, token: str = "") -> str:
    """Give the address of a page of a bucket's list of keys (S3, ListObjectsV2).

    Args:
        bucket: its name.
        prefix: what the keys begin with.
        token: of the page, from the page before; empty: the first.
    """
    asked = {"list-type": "2", "encoding-type": "url", "prefix": prefix, "continuation-token": token}
    question = urlencode({name: value for name, value in asked.items() if value}, quote_via=quote, safe="")
    return f"s3://{bucket}?{question}"


@dataclass(frozen=True, slots=True)
class Rules:
    """Which addresses a catalog may send us to.

    A catalog is written by others: one on the network must lead neither to files of this machine nor to services that
    only this machine can reach.
    """

    root: str
    """Address or path of the catalog that the user named."""
    plain_http: bool = False
    signing: str = ""
    """Address of the service that signs for files, as the user named it."""

    def refusal(self, address: str) -> str:
        """Say in a clause why an address is not followed; empty where it may be."""
        if not is_remote(address):
            return "a catalog on the network names a file of this machine" if is_remote(self.root) else ""
        try:
            parts = urlsplit(address)
            host, _ = parts.hostname or "", parts.port
        except ValueError:
            return "it is no address"
        own = is_remote(self.root) and urlsplit(self.root).netloc == parts.netloc
        # Who named https did not name http.
        weaker = parts.scheme == "http" and not self.root.startswith("http://")
        checks = (
            (parts.scheme == "s3" and host and (parts.path.strip("/") or own), ""),
            (parts.scheme not in ("http", "https") or not host, "only https, http and s3 addresses are fetched"),
            ("@" in parts.netloc, "it holds credentials"),
            # What the user named, in the pipeline file or in the environment, is theirs to name.
            ((own and not weaker) or self._is_endpoint(address) or self._is_signing(address), ""),
            (self._comes_from_elsewhere(host), "a catalog on the network names a service of this machine"),
            (_is_link_local(host), "it names a service of the local network alone"),
            (
                parts.scheme == "http" and not self.plain_http and not is_this_machine(host),
                "it is plain http to another machine; set `source.plain_http: true` where the network is trusted",
            ),
        )
        return next((reason for applies, reason in checks if applies), "")

    def _comes_from_elsewhere(self, host: str) -> bool:
        root = urlsplit(self.root).hostname or "" if is_remote(self.root) else "localhost"
        return _is_local(host) and not _is_local(root)

    def _is_signing(self, address: str) -> bool:
        named = self.signing.rstrip("/")
        return bool(named) and address.startswith((f"{named}/", f"{named}?"))

    def _is_endpoint(self, address: str) -> bool:
        """Say whether it is the S3 service that the user's own environment names."""
        return urlsplit(address).netloc in _endpoints()


def _endpoints() -> set[str]:
    named = [os.environ.get(name) for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_S3_ENDPOINT")]
    return {name.rpartition("://")[2].rstrip("/") for name in named if name}


def endpoint_hosts() -> set[str]:
    """Give the hosts of the S3 services that the user's own environment names."""
    return {urlsplit(f"//{place}").hostname or "" for place in _endpoints()}


def _is_local(host: str) -> bool:
    """Say whether a connection to a host, however its name or number is written, would reach this machine."""
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    number = number_of(name)
    # 0.0.0.0 and :: are taken for this machine where they are connected to.
    return number is not None and (number.is_loopback or number.is_unspecified)


def _is_link_local(host: str) -> bool:
    number = number_of(host.rstrip("."))
    return number is not None and (number.is_link_local or number in CLOUD_METADATA)


CLOUD_METADATA: Final = frozenset({ipaddress.ip_address("fd00:ec2::254"), ipaddress.ip_address("100.100.100.200")})
"""Services that give credentials to whoever asks from inside a cloud, besides those of link-local numbers."""


def number_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Read the number of a host as a connection does: ``127.1``, ``2130706433`` and ``0x7f000001`` are 127.0.0.1."""
    try:
        number = ipaddress.ip_address(host)
    except ValueError:
        try:
            return ipaddress.IPv4Address(socket.inet_aton(host))
        except OSError:
            return None
    if isinstance(number, ipaddress.IPv4Address):
        return number
    if int(number) > 1 and any(number in network for network in _EMBEDDING):
        return ipaddress.IPv4Address(int(number) & 0xFFFFFFFF)
    return number.ipv4_mapped or number.sixtofour or number
