"""What all clients of a server share: which failures may pass, how long to wait, and sentences that hold no secret.

No sentence of this module quotes a request's address or the text of a library's error: both may hold a secret.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, TypeVar

from vitpipe.errors import ConfigError, TransientError

BUSY: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Status codes of a server that may answer later."""

_TOLD_SECONDS: Final = 10.0
"""A longer wait is told: nothing else would say why nothing happens."""
_LOGGER = logging.getLogger(__name__)

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Backoff:
    """How often, and after how long, what may pass is tried again."""

    tries: int = 5
    first_seconds: float = 1.0
    longest_seconds: float = 60.0
    """Of a wait that no server asked for."""
    longest_asked_seconds: float = 900.0
    """Of one that a server asked for: who is asked to wait longer gives up, and does not come back too early."""

    def seconds(self, attempt: int, asked: float | None) -> float:
        """Give the wait after a failed try: doubled each time, with jitter, at least what the server asked for."""
        doubled = min(self.longest_seconds, self.first_seconds * 2.0**attempt)
        waited = doubled * random.SystemRandom().uniform(0.5, 1.0)
        return max(waited, min(asked or 0.0, self.longest_asked_seconds))


class BusyError(TransientError):
    """A failed try that may be repeated."""

    def __init__(self, sentence: str, retry_after_seconds: float | None = None, status: int = 0) -> None:
        super().__init__(sentence)
        self.retry_after_seconds = retry_after_seconds
        self.status = status
        """What the server answered; 0: nothing."""


def with_retries(action: Callable[[], Result], backoff: Backoff, stop: threading.Event) -> Result:
    """Call `action` until it succeeds, at most `backoff.tries` times.

    Args:
        action: raises a `TransientError` where another try may help.
        backoff: how long to wait between tries.
        stop: ends a wait early, when another thread has failed.

    Raises:
        TransientError: the last try failed, `stop` is set, or the server asks to wait longer than `backoff` allows.
    """
    attempt = 0
    while True:
        try:
            return action()
        except TransientError as error:
            attempt += 1
            if attempt >= backoff.tries:
                # The plain kind: no caller sees how often it was tried.
                raise TransientError(str(error)) from None
            asked = error.retry_after_seconds if isinstance(error, BusyError) else None
            if asked is not None and asked > backoff.longest_asked_seconds:
                longest = backoff.longest_asked_seconds
                raise TransientError(
                    f"{error}, and asks to wait {asked:.0f} s, longer than {longest:.0f} s: run again later"
                ) from None
            if asked is not None and asked > _TOLD_SECONDS:
                _LOGGER.warning("%s, and asks to wait: going on in %.0f s", error, asked)
            if stop.wait(backoff.seconds(attempt - 1, asked)):
                raise TransientError("stopped, since another part of the fetch has failed") from None


@contextmanager
def translated(server: str, ca_variable: str) -> Iterator[None]:
    """Turn what `requests` raises into errors of ours.

    Args:
        server: how sentences name the server; no secret.
        ca_variable: the environment's variable that names the certificates.

    Raises:
        ConfigError: unknown host, refused certificate, wrong address.
        BusyError: what may pass.
    """
    import requests
    from urllib3.exceptions import LocationValueError

    try:
        yield
    except requests.exceptions.SSLError as error:
        if not _is_untrusted(error):
            raise BusyError(f"{server} breaks off the encrypted connection") from None
        raise ConfigError(
            f"the certificate of {server} cannot be trusted; name the file of its authority in {ca_variable}"
        ) from None
    except requests.exceptions.ConnectionError as error:
        if _is_unknown_host(error):
            raise ConfigError(f"no host of that name: {server}; correct `source.url`") from None
        raise BusyError(f"{server} cannot be reached or cuts the connection") from None
    except requests.exceptions.Timeout:
        raise BusyError(f"{server} does not answer in time") from None
    except (requests.exceptions.ChunkedEncodingError, requests.exceptions.ContentDecodingError):
        raise BusyError(f"{server} breaks off in the middle of an answer") from None
    except LocationValueError:
        # Told neither by requests nor as an error of its kind: a label of the name is empty or too long.
        raise ConfigError(f"{server} is no name that a host can have; correct the address") from None
    except requests.exceptions.RequestException as error:
        raise ConfigError(f"{server} cannot be asked ({type(error).__name__}); check `source.url`") from None


def retry_after_seconds(text: str | None) -> float | None:
    """Read ``Retry-After``: seconds, or a date (RFC 9110, 10.2.3); None where it is neither."""
    if text is None:
        return None
    if text.isascii() and text.strip().isdigit():
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def _is_untrusted(error: Exception) -> bool:
    import ssl

    # What requests raises holds what urllib3 raises, which holds the reason.
    reason = getattr(error.args[0] if error.args else None, "reason", None)
    cause = reason.args[0] if isinstance(reason, Exception) and reason.args else None
    return isinstance(cause, ssl.SSLCertVerificationError)


def _is_unknown_host(error: Exception) -> bool:
    from urllib3.exceptions import NameResolutionError

    cause = error.args[0] if error.args else None
    return isinstance(getattr(cause, "reason", cause), NameResolutionError)
