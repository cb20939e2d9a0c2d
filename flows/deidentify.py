"""The verb `deidentify`: a tree of DICOM files in, a tree without identities out."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

from vitpipe.domains.dicom.burnedin import Ocr, make_judge
from vitpipe.domains.dicom.deidentify.judge import PixelJudge
from vitpipe.domains.dicom.deidentify.options import options_from
from vitpipe.domains.dicom.deidentify.tree import Recipe, deidentify_tree
from vitpipe.errors import ConfigError
from vitpipe.pseudonym import KEY_VARIABLE, Pseudonymiser, load_key_file
from vitpipe.records import StageSummary


def deidentify(source: Path, target: Path, options: list[str], key_file: Path | None, judge: str) -> StageSummary:
    """De-identify a tree of DICOM files.

    Args:
        source: Folder that is read.
        target: Folder that is written.
        options: Names of options of the profile.
        key_file: File with the key, made where there is none; None: ``VITPIPE_KEY``.
        judge: Who decides on the pixels.

    Raises:
        ConfigError: there is no key, or an option, the judge or a folder is wrong.
        DataError: there is no file, or every one was rejected.
    """
    recipe = Recipe(options_from(options), _key(key_file, target), _judge(judge), judge)
    with _progress() as on_progress:
        return deidentify_tree(source, target, recipe, on_progress)


def _key(key_file: Path | None, target: Path) -> Pseudonymiser:
    if key_file is not None:
        if target.resolve() in key_file.resolve().parents:
            raise ConfigError(
                f"{key_file} lies in {target}: who has both can find the patients again; keep the key elsewhere"
            )
        return load_key_file(key_file)
    if os.environ.get(KEY_VARIABLE):
        return Pseudonymiser(os.environ[KEY_VARIABLE].encode("utf-8"))
    raise ConfigError(
        f"no key: set {KEY_VARIABLE}, or name a file with --key-file (it is made where there is none). The same key"
        " gives the same pseudonyms, in `vitpipe ingest` too"
    )


def _judge(name: str) -> PixelJudge:
    for known in get_args(Ocr):
        if name == known:
            return make_judge(known)
    raise ConfigError(f"--ocr {name} is not known; known are {', '.join(get_args(Ocr))}")


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[int, int], None] | None]:
    """Show a bar where someone can see it."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("de-identify", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
