"""De-identify files in several processes: a result depends on nothing but the file, the options and the key."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

from vitpipe.digest import digest_file
from vitpipe.domains.dicom.deidentify.single import Deidentifier
from vitpipe.errors import DataError, UnreadableSource

Result = TypeVar("Result")
_WORTH_IT_FILES: Final = 400
"""A process takes about a second to start, a file about a hundredth."""
_MOST_PROCESSES: Final = 8


@dataclass(frozen=True, slots=True)
class Found:
    """What a look at one file gave."""

    output: str
    """Where its result goes, below the target folder."""
    digest: str
    """Of its bytes."""


class Workers:
    """Looks at files and writes their results, here or in processes of its own; use it as a context manager.

    Args:
        make: makes the de-identifier, once for each share of files.
        target: folder below which the results are written.
        processes: how many.
    """

    def __init__(self, make: Callable[[], Deidentifier], target: Path, processes: int) -> None:
        self._make = make
        self._target = target
        self._processes = processes
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        """Start the processes, where there is more than one."""
        if self._processes > 1:
            # Not by fork: a lock that another thread holds would never be freed in the child.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._processes, context, _leave_interrupts)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End them."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def examine(self, paths: Sequence[Path]) -> list[Found | UnreadableSource]:
        """Look at files, in order: what cannot be de-identified is an error in the list."""
        return self._share(functools.partial(_examine_share, self._make), paths)

    def write(self, paths: Sequence[Path]) -> list[str | UnreadableSource]:
        """Write the results of files, in order; what is not written is an error in the list."""
        return self._share(functools.partial(_write_share, self._make, self._target), paths)

    def _share(self, work: Callable[[Sequence[Path]], list[Result]], paths: Sequence[Path]) -> list[Result]:
        if self._pool is None:
            return work(paths)
        size = max(1, -(-len(paths) // self._processes))
        shares = [paths[first : first + size] for first in range(0, len(paths), size)]
        try:
            return [item for share in self._pool.map(work, shares) for item in share]
        except BrokenProcessPool as error:
            raise DataError(
                f"a process that de-identified one of {len(paths)} files was ended by the system (memory, or a broken"
                " decoder); the same command goes on where it was, with fewer files at a time"
            ) from error


def processes_for(files: int) -> int:
    """Choose how many processes are worth it."""
    return 1 if files < _WORTH_IT_FILES else min(_MOST_PROCESSES, os.cpu_count() or 1)


def _leave_interrupts() -> None:
    """Leave Ctrl-C to the parent, which ends its processes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _examine_share(make: Callable[[], Deidentifier], paths: Sequence[Path]) -> list[Found | UnreadableSource]:
    deidentifier = make()
    return [_caught(functools.partial(_examine, deidentifier, path)) for path in paths]


def _examine(deidentifier: Deidentifier, path: Path) -> Found:
    output = deidentifier.examine(path).output
    try:
        return Found(output, digest_file(path))
    except OSError as error:
        reason = f"it cannot be read any more: {os.strerror(error.errno or 0)}"
        raise UnreadableSource("UNREADABLE_FILE", reason, str(path)) from None


def _write_share(make: Callable[[], Deidentifier], target: Path, paths: Sequence[Path]) -> list[str | UnreadableSource]:
    deidentifier = make()
    return [_caught(functools.partial(_write, deidentifier, path, target)) for path in paths]


def _write(deidentifier: Deidentifier, path: Path, target: Path) -> str:
    return deidentifier.write(path, target).output


def _caught(work: Callable[[], Result]) -> Result | UnreadableSource:
    try:
        return work()
    except UnreadableSource as error:
        return error
