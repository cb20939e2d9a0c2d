"""Who asks, and for whom: credentials and identifying keys come from the environment, never from a pipeline file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vitpipe.config import IDENTIFYING_KEYS
from vitpipe.errors import ConfigError

TOKEN_VARIABLE: Final = "VITPIPE_DICOMWEB_TOKEN"  # noqa: S105 - a name
USER_VARIABLE: Final = "VITPIPE_DICOMWEB_USER"
PASSWORD_VARIABLE: Final = "VITPIPE_DICOMWEB_PASSWORD"  # noqa: S105 - a name
CA_VARIABLE: Final = "VITPIPE_DICOMWEB_CA"
QUERY_VARIABLE: Final = "VITPIPE_DICOMWEB_QUERY"


@dataclass(frozen=True, slots=True)
class Access:
    """What the server asks for before it answers."""

    token: str | None = None
    user: str | None = None
    password: str | None = None
    ca_file: str | None = None
    """Certificates (PEM) that the server's is checked against; None: those of the system. The check is never off."""

    def __repr__(self) -> str:
        """Never show a credential."""
        return "Access(***)"


def read_access(environ: Mapping[str, str] | None = None) -> Access:
    """Read token, or user and password, and the CA file; ``os.environ`` if None.

    Raises:
        ConfigError: they do not fit together, or there is no such CA file.
    """
    given = os.environ if environ is None else environ
    token, user, password, ca_file = (
        given.get(name, "").strip() or None for name in (TOKEN_VARIABLE, USER_VARIABLE, PASSWORD_VARIABLE, CA_VARIABLE)
    )
    if token and (user or password):
        raise ConfigError(f"both {TOKEN_VARIABLE} and {USER_VARIABLE}/{PASSWORD_VARIABLE} are set; unset one of them")
    if bool(user) != bool(password):
        raise ConfigError(f"{USER_VARIABLE} and {PASSWORD_VARIABLE} belong together, and one of them is not set")
    if ca_file and not Path(ca_file).is_file():
        raise ConfigError(f"no certificate file {ca_file}; correct {CA_VARIABLE}")
    return Access(token, user, password, ca_file)


def read_persons(environ: Mapping[str, str] | None = None) -> list[dict[str, str]]:
    """Read the identifying part of the query: a JSON object of keyword to a value or a list of values.

    Returns:
        A filter a value; studies that any of them finds are wanted. One empty filter where no file is named.

    Raises:
        ConfigError: the file is missing or is not of this form. Its values are never repeated.
    """
    name = (os.environ if environ is None else environ).get(QUERY_VARIABLE, "").strip()
    if not name:
        return [{}]
    form = f'expected {{"PatientID": ["...", "..."]}} with keys of {", ".join(IDENTIFYING_KEYS)}'
    try:
        values = json.loads(Path(name).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{name} cannot be read ({error.strerror}); correct {QUERY_VARIABLE}") from None
    except ValueError:
        raise ConfigError(f"{name}, named by {QUERY_VARIABLE}, is not JSON; {form}") from None
    if not isinstance(values, dict) or not values or not set(values) <= set(IDENTIFYING_KEYS):
        raise ConfigError(f"{name}, named by {QUERY_VARIABLE}, does not fit; {form}")
    filters: list[dict[str, str]] = []
    for key, listed in values.items():
        texts = listed if isinstance(listed, list) else [listed]
        # A wildcard or a list in one text would ask for more than was meant.
        if not texts or not all(
            isinstance(text, str) and text.strip() and not set(text) & set("*?\\,") for text in texts
        ):
            raise ConfigError(f"{name}, named by {QUERY_VARIABLE}: the values of {key} must be plain texts; {form}")
        filters += [{key: text.strip()} for text in texts]
    return filters
