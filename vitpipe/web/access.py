"""Who asks: credentials come from the environment, never from a pipeline file, and go to the hosts they are for."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from vitpipe.errors import ConfigError

TOKEN_VARIABLE: Final = "VITPIPE_STAC_TOKEN"  # noqa: S105 - a name
HEADERS_VARIABLE: Final = "VITPIPE_STAC_HEADERS"
HOSTS_VARIABLE: Final = "VITPIPE_STAC_HOSTS"
CA_VARIABLE: Final = "VITPIPE_STAC_CA"
_OURS: Final = frozenset({"host", "range", "if-range", "if-none-match", "content-length", "accept-encoding"})


@dataclass(frozen=True, slots=True)
class Access:
    """What the catalog asks for before it answers."""

    headers: Mapping[str, str] = field(default_factory=dict)
    hosts: frozenset[str] = frozenset()
    """Hosts besides the catalog's own that get the headers; ``host`` or ``host:port``, lower case."""
    ca_file: str | None = None
    """Certificates (PEM) that the server's is checked against; None: those of the system. The check is never off."""

    def __repr__(self) -> str:
        """Never show a credential."""
        return "Access(***)"


def read_access(environ: Mapping[str, str] | None = None) -> Access:
    """Read the token, the file of headers, the hosts that get them and the CA file; ``os.environ`` if None.

    Raises:
        ConfigError: a file is missing or not of its form. Values are never repeated.
    """
    given = os.environ if environ is None else environ
    token, named, hosts, ca_file = (
        given.get(name, "").strip() for name in (TOKEN_VARIABLE, HEADERS_VARIABLE, HOSTS_VARIABLE, CA_VARIABLE)
    )
    headers = _read_headers(Path(named)) if named else {}
    if token:
        if any(name.lower() == "authorization" for name in headers):
            raise ConfigError(f"both {TOKEN_VARIABLE} and {HEADERS_VARIABLE} give an Authorization; unset one of them")
        headers["Authorization"] = f"Bearer {token}"
    if ca_file and not Path(ca_file).is_file():
        raise ConfigError(f"no certificate file {ca_file}; correct {CA_VARIABLE}")
    names = frozenset(host.strip().lower() for host in hosts.split(",") if host.strip())
    return Access(headers, names, ca_file or None)


def _read_headers(path: Path) -> dict[str, str]:
    form = 'expected a JSON object of texts, such as {"X-Api-Key": "..."}'
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); correct {HEADERS_VARIABLE}") from None
    except ValueError:
        raise ConfigError(f"{path}, named by {HEADERS_VARIABLE}, is not JSON; {form}") from None
    if not isinstance(values, dict) or not all(
        isinstance(value, str) and value.isprintable() and name.isprintable() and name.lower() not in _OURS
        for name, value in values.items()
    ):
        raise ConfigError(f"{path}, named by {HEADERS_VARIABLE}, does not fit; {form}")
    return values
