"""Content and recipe fingerprints: short, stable, the same on every machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

DIGEST_BYTES = 8
_READ_BYTES = 1 << 20


def digest(value: object) -> str:
    """Digest a JSON-able value in its canonical form (sorted keys, no spaces).

    Returns:
        16 hexadecimal characters (64 bits of BLAKE2b).

    Raises:
        TypeError: the value holds something that JSON cannot carry.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return digest_bytes(text.encode("ascii"))


def digest_bytes(*parts: bytes | memoryview) -> str:
    """Digest the concatenation of byte strings; 16 hexadecimal characters."""
    state = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        state.update(part)
    return state.hexdigest()


def digest_file(path: Path) -> str:
    """Digest a file's bytes in blocks of 1 MiB; 32 hexadecimal characters (128 bits).

    Longer than a recipe's digest: millions of files are compared by it.
    """
    state = hashlib.blake2b(digest_size=2 * DIGEST_BYTES)
    with path.open("rb", buffering=0) as stream:
        while block := stream.read(_READ_BYTES):
            state.update(block)
    return state.hexdigest()


def digest_of_digests(parts: Iterable[str]) -> str:
    """Digest a sequence of digests, in the order given; 16 hexadecimal characters."""
    return digest_bytes("\n".join(parts).encode("ascii"))
