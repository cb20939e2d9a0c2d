"""Studies that came over the network, on the disk: ``<study>/<series>/<instance>.dcm``, every name a keyed pseudonym.

Which are in use, `vitpipe.arrivals` says.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

from vitpipe import arrivals
from vitpipe.atomic import PARTIAL_PREFIX, make_folder, workspace_errors, write_json
from vitpipe.digest import DIGEST_BYTES, digest_file
from vitpipe.errors import UnreadableSource
from vitpipe.pseudonym import Pseudonymiser

COMMIT_NAME: Final = ".study.json"
SUFFIX: Final = ".dcm"
_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of a study."""

    digest: str
    """32 hexadecimal characters of its bytes, as `vitpipe.digest.digest_file` gives."""
    bytes: int


@dataclass(frozen=True, slots=True)
class StudyCommit:
    """What a study was complete with; no identifier in clear."""

    study: str
    files: Mapping[str, StoredFile]
    """By name below the study's folder, such as ``<series>/<instance>.dcm``."""
    rejected: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Name to (code, reason) of what is not there, or is there twice."""
    selection: str = ""
    """Digest of what was asked for of the study, where it was asked for."""
    offered: int | None = None
    """Instances that the server counted in the whole study."""

    @property
    def series(self) -> int:
        """How many series there are."""
        return len({Path(name).parent for name in self.files})


@dataclass(frozen=True, slots=True)
class Uids:
    """The names of an instance and of what it belongs to, in clear: they never leave the process."""

    study: str
    series: str
    instance: str

    def __repr__(self) -> str:
        """Never show a UID."""
        return "Uids(***)"

    def study_name(self, pseudonym: Pseudonymiser) -> str:
        """Give the name of the study's folder."""
        return pseudonym("study_uid", self.study)

    def file_name(self, pseudonym: Pseudonymiser) -> str:
        """Give the file's name below the study's folder."""
        return file_name(pseudonym, self.series, self.instance)


def file_name(pseudonym: Pseudonymiser, series_uid: str, instance_uid: str) -> str:
    """Give an instance's name below its study's folder: the pseudonyms that the catalog holds, too."""
    return f"{pseudonym('series_uid', series_uid)}/{pseudonym('instance_uid', instance_uid)}{SUFFIX}"


def read_uids(stream: BinaryIO, uri: str) -> Uids:
    """Read the three UIDs of a data set, no more of it.

    Args:
        stream: a DICOM file, from its preamble.
        uri: how a rejection names it.

    Raises:
        UnreadableSource: ``MALFORMED_HEADER``: it is no data set, or lacks one of them.
    """
    from pydicom import dcmread

    from vitpipe.domains.dicom.files import PARSE_ERRORS
    from vitpipe.domains.dicom.quiet import quiet

    keywords = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    try:
        with quiet():
            dataset = dcmread(stream, stop_before_pixels=True, specific_tags=list(keywords), force=True)
            values = [str(dataset.get(keyword) or "").strip(" \x00") for keyword in keywords]
    except PARSE_ERRORS:
        values = []
    if not all(values) or not values:
        raise UnreadableSource("MALFORMED_HEADER", "it states no study, series and instance UID", uri) from None
    return Uids(*values)


# -------------------------------------------------------------------------------------------------------------- folders


def committed(root: Path) -> Iterator[str]:
    """Name the studies in use; see `vitpipe.arrivals`."""
    return arrivals.committed(root, COMMIT_NAME)


def read_commit(folder: Path) -> StudyCommit | None:
    """Read a study's commit file; None where there is none that this release understands."""
    values = arrivals.read_values(folder / COMMIT_NAME, _VERSION)
    if values is None:
        return None
    return StudyCommit(
        study=values["study"],
        files={name: StoredFile(**item) for name, item in values["files"].items()},
        rejected={name: (code, reason) for name, (code, reason) in values["rejected"].items()},
        selection=values["selection"],
        offered=values["offered"],
    )


def write_commit(folder: Path, commit: StudyCommit) -> None:
    """Write a study's commit file, last of all its files."""
    write_json(
        folder / COMMIT_NAME,
        {
            "version": _VERSION,
            "study": commit.study,
            "series": commit.series,
            "instances": len(commit.files),
            "files": {
                name: {"digest": item.digest, "bytes": item.bytes} for name, item in sorted(commit.files.items())
            },
            "rejected": {name: list(item) for name, item in sorted(commit.rejected.items())},
            "selection": commit.selection,
            "offered": commit.offered,
        },
    )


def is_whole(folder: Path, commit: StudyCommit) -> bool:
    """Say whether every file of a commit is there with its size."""
    return all(arrivals.size_of(folder / name) == item.bytes for name, item in commit.files.items())


def stored_files(folder: Path, known: StudyCommit | None) -> dict[str, StoredFile]:
    """Look at the instances that lie in a study's folder, but for those whose size is not what a commit says."""
    found = {}
    for path in sorted(folder.glob(f"*/*{SUFFIX}")):
        name = path.relative_to(folder).as_posix()
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        size = path.stat().st_size
        before = known.files.get(name) if known else None
        if before is None:
            found[name] = StoredFile(digest_file(path), size)
        elif before.bytes == size:
            found[name] = before
    return found


def sweep(folder: Path) -> None:
    """Remove what a killed writer left in a study's folder. Call it where there is no other writer."""
    for path in sorted(folder.glob(f"{PARTIAL_PREFIX}*")):
        path.unlink()


# ---------------------------------------------------------------------------------------------------------------- files


def write_partial(folder: Path, chunks: Iterable[bytes]) -> tuple[Path, StoredFile]:
    """Write a stream beside its place, synced; removed again if the stream breaks.

    Raises:
        WorkspaceError: the folder cannot be written or is full.
    """
    with workspace_errors(folder):
        make_folder(folder)
        partial = folder / f"{PARTIAL_PREFIX}{uuid.uuid4().hex}"
        state = hashlib.blake2b(digest_size=2 * DIGEST_BYTES)
        size = 0
        try:
            with partial.open("wb") as stream:
                for chunk in chunks:
                    stream.write(chunk)
                    state.update(chunk)
                    size += len(chunk)
                stream.flush()
                os.fsync(stream.fileno())
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    return partial, StoredFile(state.hexdigest(), size)


def remove_empty(folder: Path) -> None:
    """Remove a study's folder from which all instances were moved away; one that still holds some raises an OSError."""
    (folder / COMMIT_NAME).unlink(missing_ok=True)
    for series in sorted(folder.iterdir()):
        series.rmdir()
    folder.rmdir()


def move_into(source: Path, target: Path) -> None:
    """Give a whole file its name; a folder is made for it.

    Raises:
        WorkspaceError: the folder cannot be written or is full.
    """
    with workspace_errors(target):
        make_folder(target.parent)
        source.replace(target)
