"""Keep pydicom silent: its warnings and log records quote values of the file, of patients too."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator


def _drop(record: logging.LogRecord) -> bool:
    return record.levelno > logging.ERROR


def _silence() -> None:
    """Silence pydicom for the process: a root handler, such as an orchestrator's, would print its records."""
    logging.getLogger("pydicom").addFilter(_drop)
    warnings.filterwarnings("ignore", module=r"pydicom\b")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings in a block, also where the process turned them on, or into errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


_silence()
