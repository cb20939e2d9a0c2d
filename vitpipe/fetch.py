"""Fetch the studies of a DICOMweb server into a folder of DICOM files, once: what is there is not asked for again.

Search by study, then series, then instance; retrieve what is missing; commit the study. A fetch that was killed goes on
at the next missing instance. Studies that the query does not find any more are left out, by a dot before their name.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from vitpipe import arrivals, studies
from vitpipe.arrivals import FETCH_FAILED
from vitpipe.atomic import make_folder
from vitpipe.config import DicomwebSource, GeotiffSource, PipelineConfig, StacSource
from vitpipe.config.address import names_addresses
from vitpipe.dicomweb.access import Access, read_access, read_persons
from vitpipe.dicomweb.client import (
    INSTANCE_COUNT,
    INSTANCE_UID,
    SERIES_UID,
    STUDY_UID,
    Entry,
    Server,
    value_of,
)
from vitpipe.digest import digest
from vitpipe.errors import DataError, TransientError, UnreadableSource
from vitpipe.fetch_addresses import fetch_addresses
from vitpipe.fetch_scenes import fetch_scenes
from vitpipe.pseudonym import Pseudonymiser, load_pseudonymiser
from vitpipe.records import Rejected, StageSummary
from vitpipe.studies import StoredFile, StudyCommit
from vitpipe.web.retries import Backoff
from vitpipe.workspace import Workspace

_LOGGER = logging.getLogger(__name__)
_TAGS: Final = {
    "PatientID": "00100020",
    "AccessionNumber": "00080050",
    "StudyInstanceUID": STUDY_UID,
    "StudyDate": "00080020",
    "Modality": "00080060",
    "BodyPartExamined": "00180015",
}
"""Of the keys of a query that have one value in an answer."""
_SERIES_COUNT: Final = "00201209"
"""NumberOfSeriesRelatedInstances."""
_SAY_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class _Offer:
    """A study that the server has; its UID never leaves the process."""

    uid: str = field(repr=False)
    instances: int | None
    """Of the whole study, as the server counts them; None: it does not say."""


@dataclass(frozen=True, slots=True)
class _Fetched:
    done: int = 0
    skipped: int = 0
    rejected: Mapping[str, str] = field(default_factory=dict)
    """Path to reason."""


def fetch(config: PipelineConfig, workspace: Workspace, backoff: Backoff | None = None) -> StageSummary:
    """Bring the folder of a pipeline's DICOMweb or STAC source up to date. Call it while holding the workspace.

    Args:
        config: the pipeline; any other kind of source needs no fetch.
        workspace: holds the key of the pseudonyms, and the studies unless the source names a folder.
        backoff: of the retries; a minute or so by default.

    Returns:
        Stage ``fetch``: `done` instances or files that arrived, `skipped` those that were there, `rejected` by code.

    Raises:
        ConfigError: the server's address, certificate, credentials or the query are wrong.
        WorkspaceError: the disk is full, the folder cannot be written, or another fetch works in it.
        TooManyRejected: more than the stated share of the instances could not be fetched.
        TransientError: the server does not answer; what has arrived is kept.
    """
    started = time.perf_counter()
    source = config.source
    if isinstance(source, StacSource):
        return fetch_scenes(config, source, workspace, backoff)
    if isinstance(source, GeotiffSource) and names_addresses(source.path):
        return fetch_addresses(config, source, workspace, backoff)
    if not isinstance(source, DicomwebSource):
        return StageSummary("fetch")
    root = Path(config.on_disk().source.path)
    pseudonym = load_pseudonymiser(workspace.root)
    job = _Job(source, read_access(), root, pseudonym, backoff)
    with arrivals.fetching(root):
        offers = job.search_studies()
        if not offers:
            raise DataError(f"{source.url} has no study that fits `source.query`; widen it, or look at the server")
        arrivals.claim(root, pseudonym("fetch", config.name), studies.COMMIT_NAME, "studies")
        wanted = {job.pseudonym("study_uid", offer.uid): offer for offer in offers}
        left_out = arrivals.leave_out(root, studies.COMMIT_NAME, wanted)
        fetched = job.fetch_all(wanted)
    done, skipped = sum(item.done for item in fetched), sum(item.skipped for item in fetched)
    lacking = {path: reason for item in fetched for path, reason in item.rejected.items()}
    rejected = [Rejected(path, FETCH_FAILED, reason) for path, reason in lacking.items()]
    arrivals.keep_failures(workspace.root, root, rejected)
    notes = [f"{len(offers)} studies, {done + skipped} instances"]
    if left_out:
        notes.append(f"{left_out} study(ies) that `source.query` does not find any more are left out")
    arrivals.check_share(source.max_reject_share, rejected, len(rejected) + done + skipped, "instances")
    return StageSummary(
        "fetch",
        done=done,
        skipped=skipped,
        rejected={FETCH_FAILED: len(rejected)} if rejected else {},
        seconds=time.perf_counter() - started,
        notes=tuple(notes),
    )


def read_failures(config: PipelineConfig, workspace: Workspace) -> list[Rejected]:
    """Name what the last fetch could not get, for the quarantine table; none where nothing is fetched."""
    return arrivals.failures_of(workspace.root, config.on_disk().source.path)


class _Job:
    """One fetch: what all its threads share."""

    def __init__(
        self, source: DicomwebSource, access: Access, root: Path, pseudonym: Pseudonymiser, backoff: Backoff | None
    ) -> None:
        self._source = source
        self._access = access
        self._root = root
        self.pseudonym = pseudonym
        self._backoff = backoff
        self._stop = threading.Event()
        self._selection = digest([self._series_filters()])

    def _server(self) -> Server:
        return Server(self._source, self._access, self._backoff, self._stop)

    def search_studies(self) -> list[_Offer]:
        """List the studies that the query finds."""
        query = self._source.query
        filters = {"includefield": "NumberOfStudyRelatedInstances"}
        filters |= {key: value for key in ("StudyDate", "ModalitiesInStudy") if (value := getattr(query, key))}
        found: dict[str, _Offer] = {}
        with self._server() as server:
            for persons in read_persons():
                for entry in server.search(("studies",), {**filters, **persons}, STUDY_UID):
                    if not _fits(entry, {**filters, **persons}):
                        continue
                    uid, count = value_of(entry, STUDY_UID) or "", value_of(entry, INSTANCE_COUNT)
                    found[uid] = _Offer(uid, int(count) if count and count.isdigit() else None)
        return list(found.values())

    def fetch_all(self, wanted: Mapping[str, _Offer]) -> list[_Fetched]:
        """Fetch studies side by side; the first failure ends the others at their next wait or study."""
        done: list[_Fetched] = []
        said = time.monotonic()
        with ThreadPoolExecutor(self._source.connections) as pool:
            futures = [pool.submit(self._fetch_study, name, offer) for name, offer in sorted(wanted.items())]
            try:
                for future in as_completed(futures):
                    done.append(future.result())
                    if time.monotonic() - said > _SAY_SECONDS:
                        said = time.monotonic()
                        _LOGGER.info("fetched %d of %d studies", len(done), len(futures))
            finally:
                self._stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
        return done

    def _series_filters(self) -> dict[str, str]:
        query = self._source.query
        asked = {"Modality": query.Modality or self._source.modality, "BodyPartExamined": query.BodyPartExamined}
        return {key: value for key, value in asked.items() if value}

    def _search_instances(self, server: Server, study_uid: str) -> tuple[dict[str, tuple[str, str]], bool]:
        """Give name to (series UID, instance UID) of all that is wanted of a study, and whether every list was whole.

        A list is so if it holds what the server counts of its series or, where it counts none, anything at all.
        """
        filters = self._series_filters()
        found: dict[str, tuple[str, str]] = {}
        whole = True
        for series in server.search(("studies", study_uid, "series"), filters, SERIES_UID):
            if not _fits(series, filters):
                continue
            series_uid = value_of(series, SERIES_UID) or ""
            place = ("studies", study_uid, "series", series_uid, "instances")
            before, count = len(found), value_of(series, _SERIES_COUNT)
            for entry in server.search(place, {}, INSTANCE_UID):
                instance_uid = value_of(entry, INSTANCE_UID) or ""
                found[studies.file_name(self.pseudonym, series_uid, instance_uid)] = series_uid, instance_uid
            listed = len(found) - before
            whole = whole and (listed == int(count) if count and count.isdigit() else listed > 0)
        return found, whole and bool(found)

    def _fetch_study(self, name: str, offer: _Offer) -> _Fetched:
        shown, hidden = arrivals.in_use(self._root, name), arrivals.out_of_use(self._root, name)
        folder = shown if shown.is_dir() else hidden
        commit = studies.read_commit(folder)
        if commit is not None and self._is_current(folder, commit, offer):
            if folder == hidden:
                hidden.rename(shown)
            return _Fetched(skipped=len(commit.files))
        with self._server() as server:
            wanted, whole = self._search_instances(server, offer.uid)
            if folder == shown and shown.is_dir():
                # Out of sight while it is incomplete.
                shown.rename(hidden)
            make_folder(hidden)
            studies.sweep(hidden)
            _set_aside(hidden, wanted)
            there = studies.stored_files(hidden, commit)
            study = _Study(hidden, offer.uid, server, self.pseudonym)
            arrived, rejected = study.fetch(
                {item: uids for item, uids in wanted.items() if item not in there}, self._stop
            )
        # Where a list was gone or short, nothing is said of the whole: the next fetch asks again.
        offered = offer.instances if whole else None
        new = StudyCommit(name, {**there, **arrived}, rejected, self._selection, offered)
        studies.write_commit(hidden, new)
        hidden.rename(shown)
        reasons = {str(shown / item): reason for item, (_, reason) in rejected.items()}
        return _Fetched(len(arrived), len(there), reasons)

    def _is_current(self, folder: Path, commit: StudyCommit, offer: _Offer) -> bool:
        same = commit.selection == self._selection and commit.offered == offer.instances
        if not self._series_filters() and len(commit.files) != offer.instances:
            # The list of the last time was shorter than the study: gone for a moment, or still arriving.
            return False
        return same and offer.instances is not None and not commit.rejected and studies.is_whole(folder, commit)


def _fits(entry: Entry, filters: Mapping[str, str]) -> bool:
    """Say whether what an entry states fits: a server may pass over a filter that it does not know, and give all."""
    for keyword, wanted in filters.items():
        stated = value_of(entry, _TAGS[keyword]) if keyword in _TAGS else None
        if stated is None:
            continue
        first, dash, last = wanted.partition("-") if keyword == "StudyDate" else (wanted, "", "")
        if not (first <= stated <= (last or "9") if dash else stated.upper() == wanted.upper()):
            return False
    return True


def _set_aside(folder: Path, wanted: Mapping[str, object]) -> None:
    """Put a dot before files that are not wanted now, and take it from those that are wanted again."""
    for path in sorted(folder.glob(f"*/*{studies.SUFFIX}")):
        name = f"{path.parent.name}/{path.name.removeprefix('.')}"
        aside = path.name.startswith(".")
        if aside == (name in wanted):
            path.rename(folder / name if aside else path.with_name(f".{path.name}"))


class _Study:
    """Retrieves what is missing of one study into its folder."""

    def __init__(self, folder: Path, uid: str, server: Server, pseudonym: Pseudonymiser) -> None:
        self._folder = folder
        self._uid = uid
        self._server = server
        self._pseudonym = pseudonym
        self._arrived: dict[str, StoredFile] = {}

    def fetch(
        self, missing: Mapping[str, tuple[str, str]], stop: threading.Event
    ) -> tuple[dict[str, StoredFile], dict[str, tuple[str, str]]]:
        """Retrieve whole series as one stream where several instances are missing, then what is left one by one.

        Returns:
            What arrived, and what did not: name to (code, reason).
        """
        rejected: dict[str, tuple[str, str]] = {}
        in_series: dict[str, dict[str, str]] = defaultdict(dict)
        for name, (series_uid, instance_uid) in missing.items():
            in_series[series_uid][instance_uid] = name
        for series_uid, names in in_series.items():
            series = ("studies", self._uid, "series", series_uid)
            begun = any((self._folder / name).parent.is_dir() for name in names.values())
            if len(names) > 1 and not begun:
                self._server.retrieve_series(series, self._taker(names))
            for instance_uid, name in names.items():
                if name in self._arrived:
                    continue
                if stop.is_set():
                    raise TransientError("stopped, since another part of the fetch has failed")
                place = (*series, "instances", instance_uid)
                try:
                    self._server.retrieve_instance(place, self._taker({instance_uid: name}), name)
                    if name not in self._arrived:
                        raise UnreadableSource(FETCH_FAILED, "the server sends another instance instead", name)
                except UnreadableSource as error:
                    rejected[name] = (error.code, error.reason)
        return self._arrived, rejected

    def _taker(self, names: Mapping[str, str]) -> Callable[[Iterator[bytes]], None]:
        """Make the function that writes one instance; one that is not among `names` is dropped."""

        def take(chunks: Iterator[bytes]) -> None:
            partial, stored = studies.write_partial(self._folder, chunks)
            try:
                with partial.open("rb") as stream:
                    uid = studies.read_uids(stream, partial.name).instance
                if uid in names:
                    studies.move_into(partial, self._folder / names[uid])
                    self._arrived[names[uid]] = stored
            except UnreadableSource:
                raise UnreadableSource(FETCH_FAILED, "what the server sends is no DICOM file", "") from None
            finally:
                partial.unlink(missing_ok=True)

        return take
