"""De-identify a tree of files into another tree, whose names say nothing.

What lies in the target::

    <patient>/<study>/<series>/<instance>.dcm   pseudonyms all
    quarantine.csv    a row a file that was not written: its place in the sorted walk of the source, code, reason
    recipe.json       the release, the options, and a check of the key that does not give it away
    ledger.jsonl      a line a file that was dealt with: its keyed name, its keyed content, what became of it

A run that was stopped goes on where it was: a file whose path, size and time are in the ledger, and whose result is
there, is not read again. Files that were rejected are tried again: a decoder may have come in the meantime.
"""

from __future__ import annotations

import csv
import functools
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, TextIO

from vitpipe import __version__
from vitpipe.atomic import file_lock, make_folder, sweep_partials, workspace_errors, write_file, write_json
from vitpipe.domains.dicom.deidentify.judge import PixelJudge
from vitpipe.domains.dicom.deidentify.options import Option
from vitpipe.domains.dicom.deidentify.single import Deidentifier
from vitpipe.domains.dicom.deidentify.workers import Found, Workers, processes_for
from vitpipe.domains.dicom.files import JUNK_CODES
from vitpipe.errors import ConfigError, DataError, UnreadableSource
from vitpipe.pseudonym import Pseudonymiser
from vitpipe.records import Rejected, StageSummary, count_codes

STAGE: Final = "deidentify"
_BATCH_FILES: Final = 64
_QUARANTINE_COLUMNS: Final = ("position", "source", "code", "reason")


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a tree is de-identified."""

    options: frozenset[Option]
    pseudonym: Pseudonymiser
    judge: PixelJudge
    judge_name: str
    """What the judge is called in recipe.json, such as ``stated``."""


@dataclass(frozen=True, slots=True)
class _Line:
    """One line of the ledger."""

    source: str
    """Keyed: path below the source folder."""
    state: str
    """Keyed: size and time."""
    content: str
    """Keyed: the bytes of the file."""
    output: str


@dataclass(frozen=True, slots=True)
class _Task:
    """One file that is to be dealt with."""

    position: int
    path: Path
    source: str
    state: str


def deidentify_tree(
    source: Path,
    target: Path,
    recipe: Recipe,
    on_progress: Callable[[int, int], None] | None = None,
    processes: int | None = None,
) -> StageSummary:
    """De-identify every DICOM file below a folder.

    Args:
        source: folder; it is only read.
        target: folder, made where there is none; neither may lie in the other.
        recipe: options, key and judge.
        on_progress: called with how many files are dealt with, and of how many.
        processes: how many work at once; None: by the number of files and processors. The result is the same.

    Returns:
        `done` files were written, `skipped` were there already, `rejected` were not written, by code.

    Raises:
        ConfigError: the folders lie in each other, or the target was made by another release, with other options
            or another key.
        DataError: there is no file, or every one of them was rejected.
        TransientError: the store does not answer; the same call goes on later.
        WorkspaceError: the target cannot be written, or another run writes it.
    """
    started = time.monotonic()
    _check_folders(source, target)
    make_folder(target)
    with file_lock(target / "lock", wait=False):
        _sweep(target)
        _check_recipe(target, recipe)
        found = list(_walk(source))
        if not found:
            raise DataError(f"there is no file below {source}; name the folder that holds the DICOM files")
        make = functools.partial(Deidentifier, recipe.options, recipe.pseudonym, recipe.judge)
        with (
            workspace_errors(target),
            (target / "ledger.jsonl").open("a", encoding="ascii") as ledger,
            Workers(make, target, processes or processes_for(len(found))) as workers,
        ):
            run = _Run(source, target, recipe.pseudonym, workers, ledger)
            for first in range(0, len(found), _BATCH_FILES):
                run.take(first, found[first : first + _BATCH_FILES])
                if on_progress is not None:
                    on_progress(min(first + _BATCH_FILES, len(found)), len(found))
        run.rejected.sort(key=lambda item: item[0])
        _write_quarantine(target / "quarantine.csv", run.rejected)
    rejected = [item for _, item in run.rejected]
    if rejected and run.done + run.skipped == 0:
        raise DataError(f"none of {len(found)} files could be de-identified; {target / 'quarantine.csv'} says why")
    # Names no path: a summary goes to logs and servers.
    said = "quarantine.csv in the target says why (`position` counts the files of the source, sorted by path, from 0)"
    notes = (f"{len(rejected)} files were not written; {said}",) if rejected else ()
    return StageSummary(STAGE, run.done, run.skipped, count_codes(rejected), time.monotonic() - started, notes)


class _Run:
    """What a run knows while it goes from batch to batch."""

    def __init__(self, source: Path, target: Path, pseudonym: Pseudonymiser, workers: Workers, ledger: TextIO) -> None:
        self.done = 0
        self.skipped = 0
        self.rejected: list[tuple[int, Rejected]] = []
        self._source = source
        self._target = target
        self._pseudonym = pseudonym
        self._workers = workers
        self._ledger = ledger
        lines = list(_read_ledger(target / "ledger.jsonl"))
        self._by_source = {line.source: line for line in lines}
        self._by_output = {line.output: line for line in lines}
        # The line before may be cut off: a run was killed while it wrote.
        ledger.write("\n")

    def take(self, first: int, batch: Sequence[Path | Rejected]) -> None:
        """Deal with some files, the first of which has a position in the whole walk."""
        tasks = []
        for position, item in enumerate(batch, first):
            if isinstance(item, Rejected):
                self.rejected.append((position, item))
                continue
            source = self._pseudonym("source", item.relative_to(self._source).as_posix())
            task = _Task(position, item, source, self._state(item))
            if self._is_done(task):
                self.skipped += 1
            else:
                tasks.append(task)
        examined = self._workers.examine([task.path for task in tasks])
        waiting = []
        for task, found in zip(tasks, examined, strict=True):
            if isinstance(found, UnreadableSource):
                self._reject(task, found.code, found.reason)
            else:
                waiting.append((task, found))
        while waiting:
            waiting = self._write_free(waiting)

    def _write_free(self, waiting: list[tuple[_Task, Found]]) -> list[tuple[_Task, Found]]:
        """Write the first file of each place that is free; give the others, whose place may be taken now."""
        now: dict[str, tuple[_Task, Found]] = {}
        later = []
        for task, found in waiting:
            if self._is_free(task, found):
                if found.output in now:
                    later.append((task, found))
                else:
                    now[found.output] = task, found
        self._write(list(now.values()))
        return later

    def _is_done(self, task: _Task) -> bool:
        known = self._by_source.get(task.source)
        if known is None:
            return False
        if known.state == task.state and (self._target / known.output).is_file():
            return True
        # It has changed since: its result may go elsewhere now, or not be written at all.
        if self._by_output.get(known.output) == known:
            (self._target / known.output).unlink(missing_ok=True)
            del self._by_output[known.output]
        return False

    def _is_free(self, task: _Task, found: Found) -> bool:
        """Tell whether a file's place is free; it is rejected where it is not."""
        other = self._by_output.get(found.output)
        if other is None or other.source == task.source or not (self._target / found.output).is_file():
            return True
        if other.content == self._pseudonym("content", found.digest):
            self._reject(task, "DUPLICATE", "the same file was written already")
        else:
            reason = "another file has the same SOPInstanceUID and other bytes; the first of them was written"
            self._reject(task, "CONFLICTING_SOP", reason)
        return False

    def _write(self, chosen: Sequence[tuple[_Task, Found]]) -> None:
        results = self._workers.write([task.path for task, _ in chosen])
        for (task, found), result in zip(chosen, results, strict=True):
            if isinstance(result, UnreadableSource):
                self._reject(task, result.code, result.reason)
                continue
            line = _Line(task.source, task.state, self._pseudonym("content", found.digest), result)
            self._by_source[line.source] = self._by_output[line.output] = line
            self._ledger.write(json.dumps(asdict(line)) + "\n")
            self.done += 1
        self._ledger.flush()

    def _reject(self, task: _Task, code: str, reason: str) -> None:
        self.rejected.append((task.position, Rejected(task.source, code, reason, junk=code in JUNK_CODES)))

    def _state(self, path: Path) -> str:
        try:
            found = path.stat()
        except OSError:
            # Gone since it was listed: the look at it says so.
            return ""
        return self._pseudonym("state", f"{found.st_size}\x1f{found.st_mtime_ns}")


def _check_folders(source: Path, target: Path) -> None:
    if not source.is_dir():
        raise ConfigError(f"{source} is no folder; name the folder that holds the DICOM files")
    inside, outside = target.resolve(), source.resolve()
    if inside == outside or outside in inside.parents or inside in outside.parents:
        raise ConfigError(
            f"{target} and {source} lie in each other: original and de-identified files would mix; name another folder"
        )


def _check_recipe(target: Path, recipe: Recipe) -> None:
    """Refuse to mix files of two releases, two keys or two sets of options in one tree."""
    stated = {
        "release": __version__,
        "options": sorted(recipe.options),
        "pixels": recipe.judge_name,
        "key_check": recipe.pseudonym("key check", STAGE),
    }
    path = target / "recipe.json"
    if not path.exists():
        write_json(path, stated)
    elif json.loads(path.read_text(encoding="utf-8")) != stated:
        raise ConfigError(
            f"{target} was made by another release, or with other options or another key, see {path}; name another"
            " folder"
        )


def _sweep(target: Path) -> None:
    """Remove what a killed run left: half-written files lie beside their places."""
    for folder, _, _ in os.walk(target):
        sweep_partials(Path(folder))


def _walk(source: Path) -> Iterator[Path | Rejected]:
    """Iterate over the files of a tree in the order of their names; what is no file is said."""
    unreadable: list[OSError] = []
    for folder, names, files in os.walk(source, onerror=unreadable.append):
        names.sort()
        for name in sorted(files):
            path = Path(folder) / name
            if path.is_file():
                yield path
            else:
                yield Rejected("", "NOT_A_FILE", "a link that leads nowhere, a pipe or a device", junk=True)
        for name in names:
            if (Path(folder) / name).is_symlink():
                yield Rejected("", "LINKED_FOLDER", "a link to a folder is not followed; name that folder", junk=True)
    for error in unreadable:
        yield Rejected("", "UNREADABLE_FOLDER", f"it cannot be listed: {os.strerror(error.errno or 0)}")


def _read_ledger(path: Path) -> Iterator[_Line]:
    if not path.exists():
        return
    for line in path.read_text(encoding="ascii", errors="replace").splitlines():
        try:
            yield _Line(**json.loads(line))
        except (ValueError, TypeError):
            # The last line of a run that was killed: its file is written again.
            continue


def _write_quarantine(path: Path, rejected: list[tuple[int, Rejected]]) -> None:
    with write_file(path) as partial, partial.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(_QUARANTINE_COLUMNS)
        writer.writerows((position, item.uri, item.code, item.reason) for position, item in rejected)
