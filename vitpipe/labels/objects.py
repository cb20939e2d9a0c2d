"""DICOM label objects: find them, read them leniently, and say which sources they speak of.

Identifiers are turned into pseudonyms as they are read; no note, error or table holds one in clear.
"""

from __future__ import annotations

import contextlib
import logging
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pydicom
from pydicom import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError

from vitpipe.digest import digest_file
from vitpipe.errors import ConfigError
from vitpipe.labels.base import PlanesOf
from vitpipe.labels.planes import Reference, Stack
from vitpipe.pseudonym import Pseudonymiser
from vitpipe.records import Rejected, Source

# Codes of label objects that are not used, or not wholly.
OFF_GRID: Final = "LABEL_OFF_GRID"
OTHER_FRAME: Final = "LABEL_OTHER_FRAME"
NO_SOURCE: Final = "LABEL_NO_SOURCE"
NO_FRAME: Final = "LABEL_NO_FRAME"
EMPTY: Final = "LABEL_EMPTY"
UNREADABLE: Final = "LABEL_UNREADABLE"
UNSUPPORTED: Final = "LABEL_UNSUPPORTED"

PARSE_ERRORS: Final = (
    InvalidDicomError,
    BytesLengthException,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    EOFError,
    NotImplementedError,
    ArithmeticError,
    RecursionError,
    RuntimeError,
    OSError,
    struct.error,
    zlib.error,
)
"""What reading bytes that do not make sense raises."""


@dataclass(frozen=True, slots=True)
class LabelObject:
    """One file of a label kind."""

    path: Path
    dataset: Dataset
    """Without pixels."""
    digest: str
    """Of the file's bytes."""


@dataclass
class Gathered:
    """What the label objects gave so far."""

    drawings: dict[tuple[str, int], list[tuple[str, Any]]] = field(default_factory=dict)
    sources: set[str] = field(default_factory=set)
    rejected: list[Rejected] = field(default_factory=list)
    used: list[str] = field(default_factory=list)
    """Digests of the objects."""

    def reject(self, path: Path, code: str, reason: str) -> None:
        """Keep why an object, or a part of it, is not used."""
        self.rejected.append(Rejected(str(path), code, reason))

    def take(self, item: LabelObject, drawn: Mapping[tuple[str, int], Sequence[tuple[str, Any]]]) -> None:
        """Take what an object draws; it counts as one that was used."""
        for frame, parts in drawn.items():
            self.drawings.setdefault(frame, []).extend(parts)
        self.used.append(item.digest)


def find_objects(path: Path, sop_classes: Mapping[str, str], gathered: Gathered) -> Iterator[LabelObject]:
    """Read all label objects below a folder, or the one file, in the order of their content.

    Files of other kinds may lie among them and are passed over; one that cannot be opened, or is DICOM and does not say
    what it is, is rejected: it may be one of these.

    Raises:
        ConfigError: there is nothing at `path`, or no object of these classes.
    """
    if not path.exists():
        raise ConfigError(f"no file or folder at {path}; set `labels.path` to where the label objects are")
    files = [path] if path.is_file() else sorted(item for item in path.rglob("*") if item.is_file())
    found = []
    for file in files:
        try:
            if _sop_class(file) in sop_classes:
                found.append(file)
        except PARSE_ERRORS as error:
            if _may_be_dicom(file):
                gathered.reject(file, UNREADABLE, f"it cannot be read ({type(error).__name__}); export it again")
    if not found:
        kinds = ", ".join(sorted(set(sop_classes.values())))
        raise ConfigError(
            f"{path} holds no {kinds} among its {len(files)} file(s); set `labels.path` to where they are"
        )
    for digest, file in sorted((digest_file(file), file) for file in found):
        try:
            with quiet():
                dataset = pydicom.dcmread(file, stop_before_pixels=True, force=True)
        except PARSE_ERRORS as error:
            gathered.reject(file, UNREADABLE, f"the header cannot be read ({type(error).__name__}); export it again")
            continue
        yield LabelObject(file, dataset, digest)


def _sop_class(path: Path) -> str:
    with quiet():
        head = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SOPClassUID"], force=True)
        # Within: values are converted, and warned about, when they are asked for.
        return str(head.get("SOPClassUID", ""))


def _may_be_dicom(path: Path) -> bool:
    """Tell whether a file has the prefix of PS3.10, or cannot even be opened to look for it."""
    try:
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return True


# Its records quote values too, and a root handler, such as an orchestrator's, would print them.
logging.getLogger("pydicom").setLevel(logging.CRITICAL)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence pydicom in a block: its warnings quote values of the file, of patients too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Candidates:
    """Finds the sources that a label object speaks of.

    Args:
        sources: the catalog.
        pseudonym: maps identifiers as the domain does.
        planes_of: reads where a source's frames lie.
    """

    def __init__(self, sources: Sequence[Source], pseudonym: Pseudonymiser, planes_of: PlanesOf) -> None:
        self._pseudonym, self._planes_of = pseudonym, planes_of
        self._sources = {source.source_id: source for source in sources}
        self._by_key: dict[tuple[str, str], list[str]] = {}
        for source in sources:
            for kind in ("instance_uid", "series_uid", "study_uid"):
                for value in set(source.keys.get(kind, ())):
                    self._by_key.setdefault((kind, value), []).append(source.source_id)
        self._stacks: dict[str, Stack] = {}

    def named(self, kind: str, value: object) -> str:
        """Give the pseudonym of an identifier."""
        return self._pseudonym(kind, str(value))

    def stacks(self, references: Mapping[str, Sequence[str]]) -> list[Stack]:
        """Give the sources that an object refers to.

        Args:
            references: UIDs in clear of kind ``instance_uid``, ``series_uid`` and ``study_uid``; the narrowest kind
                that names any source decides.
        """
        for kind in ("instance_uid", "series_uid", "study_uid"):
            found: set[str] = set()
            for value in references.get(kind, ()):
                found.update(self._by_key.get((kind, self.named(kind, value)), ()))
            if found:
                return [self._stack(source_id) for source_id in sorted(found)]
        return []

    def _stack(self, source_id: str) -> Stack:
        if source_id not in self._stacks:
            source = self._sources[source_id]
            self._stacks[source_id] = Stack(source, self._planes_of(source, self._pseudonym))
        return self._stacks[source_id]


def in_frame_of_reference(stacks: Sequence[Stack], stated: Sequence[str]) -> list[Stack]:
    """Keep the sources whose frame of reference is one of those stated; who states none fits all."""
    if not stated:
        return list(stacks)
    return [stack for stack in stacks if not stack.frames_of_reference or stack.frames_of_reference & {*stated}]


def items(dataset: Dataset, keyword: str) -> list[Dataset]:
    """Give the items of a sequence; none where it is absent."""
    value = dataset.get(keyword)
    return list(value) if value is not None else []


def floats(dataset: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    """Give exactly `count` numbers, or None."""
    value = dataset.get(keyword)
    if value is None or isinstance(value, str | float | int) or len(value) != count:
        return None
    return tuple(float(item) for item in value)


def image_reference(image: Dataset, candidates: Candidates) -> Reference:
    """Give the instance, as a pseudonym, and the frame that an item of a sequence of images names."""
    numbers = image.get("ReferencedFrameNumber")
    number = None
    if numbers is not None:
        number = int(numbers if isinstance(numbers, int | str) else numbers[0]) - 1
    return candidates.named("instance_uid", image.get("ReferencedSOPInstanceUID", "")), number
