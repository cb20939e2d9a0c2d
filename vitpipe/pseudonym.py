"""Keyed pseudonyms: the same identifier and key give the same name on any worker, and no table leads back."""

from __future__ import annotations

import hmac
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from vitpipe.atomic import file_lock, write_file
from vitpipe.errors import ConfigError

KEY_VARIABLE = "VITPIPE_KEY"
_KEY_FILE = "key"
_LENGTH = 16
_SHORTEST_KEY = 16


@dataclass(frozen=True, slots=True)
class Pseudonymiser:
    """Maps identifiers to pseudonyms by HMAC-SHA256 (FIPS 198-1) under a secret key."""

    key: bytes

    def __post_init__(self) -> None:
        """Refuse an empty key."""
        if not self.key:
            raise ConfigError(f"the pseudonym key is empty; set {KEY_VARIABLE} to a long random text")

    def __repr__(self) -> str:
        """Never show the key."""
        return "Pseudonymiser(key=***)"

    def __call__(self, kind: str, value: str) -> str:
        """Give the pseudonym of `value`, 16 hexadecimal characters.

        Args:
            kind: what the value is (``patient``, ``series_uid``, ...): equal texts of two kinds differ.
            value: the identifier; surrounding blanks and null padding do not count.
        """
        return self.mac(kind, value).hex()[:_LENGTH]

    def mac(self, kind: str, value: str) -> bytes:
        """Give all 32 bytes of which :meth:`__call__` shows the first: for what is longer, or a number."""
        text = "\x1f".join((kind, value.strip(" \x00")))
        return hmac.digest(self.key, text.encode("utf-8", "surrogateescape"), "sha256")


def load_pseudonymiser(workspace: Path) -> Pseudonymiser:
    """Take the key from ``VITPIPE_KEY``, else from the workspace, where one is made once (mode 0600).

    Raises:
        ConfigError: ``VITPIPE_KEY`` is set but empty.
        WorkspaceError: the key file cannot be written.
    """
    if KEY_VARIABLE in os.environ:
        return Pseudonymiser(os.environ[KEY_VARIABLE].encode("utf-8"))
    return load_key_file(workspace / _KEY_FILE)


def load_key_file(path: Path) -> Pseudonymiser:
    """Take the key from a file, which is made once (mode 0600) where there is none.

    Raises:
        ConfigError: the file is empty, or too short to be a secret.
        WorkspaceError: it cannot be written.
    """
    with file_lock(path.with_name(f"{path.name}.lock"), wait=True):
        if not path.exists():
            with write_file(path) as partial:
                partial.touch(mode=0o600)
                partial.write_text(secrets.token_hex(32), encoding="ascii")
    # An editor ends a file with a newline: it is no part of the key.
    key = path.read_bytes().strip()
    if 0 < len(key) < _SHORTEST_KEY:
        raise ConfigError(
            f"the key in {path} has {len(key)} bytes: too short to be a secret, as pseudonyms could be guessed; give "
            f"{_SHORTEST_KEY} or more, or name a file that does not exist, and a key is made"
        )
    return Pseudonymiser(key)
