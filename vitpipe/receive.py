"""Take studies that are sent by C-STORE (PS3.4 annex B): to the disk as they come, and on when they are quiet.

A data set is written undecoded: only its three UIDs are read. A sender is told that an instance is stored when it is
synced to the disk under its name. A study of which nothing came for a while is complete: it gets its commit file and
comes into sight of ingest. What comes later for it is kept apart until it is quiet again.
"""

from __future__ import annotations

import importlib
import logging
import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from vitpipe import arrivals, studies
from vitpipe.atomic import file_lock, make_folder, sync_directory
from vitpipe.errors import ConfigError, UnreadableSource, WorkspaceError
from vitpipe.pseudonym import Pseudonymiser, load_pseudonymiser
from vitpipe.studies import StoredFile, StudyCommit

if TYPE_CHECKING:
    from pynetdicom.ae import ApplicationEntity
    from pynetdicom.events import Event

_LOGGER = logging.getLogger(__name__)

STORED: Final = 0x0000
OUT_OF_RESOURCES: Final = 0xA700
CANNOT_UNDERSTAND: Final = 0xC000
CONFLICTING_SOP: Final = "CONFLICTING_SOP"

_WORK: Final = ".receiver"
_HIDDEN_STUDY: Final = re.compile(r"\.[0-9a-f]{16}")
_VERIFICATION: Final = "1.2.840.10008.1.1"
_MOST_ASSOCIATIONS: Final = 64
_LARGEST_PDU_BYTES: Final = 1 << 18
"""The default of 16 KiB costs a turn of Python's loop each."""
_META_BEGINS: Final = 132
_BLOCK_BYTES: Final = 1 << 20
_GRACE_SECONDS: Final = 10.0
_LONGEST_TICK_SECONDS: Final = 1.0


def receiver_key(folder: Path) -> Pseudonymiser:
    """Take the key of the pseudonyms from ``VITPIPE_KEY``, else from the folder, where one is made once."""
    return load_pseudonymiser(folder / _WORK)


@dataclass(frozen=True, slots=True)
class ReceiverOptions:
    """Where to listen, to whom, and when a study is complete."""

    folder: Path
    host: str = "127.0.0.1"
    port: int = 11112
    """0: any free one."""
    ae_title: str = "VITPIPE"
    quiet_seconds: float = 60.0
    """A study of which nothing came for so long is complete."""
    allowed: tuple[str, ...] = ()
    """AE titles that may send; empty: all."""


class Inbox:
    """Writes instances into the folder, from any number of threads.

    Args:
        folder: of the studies.
        pseudonym: names them.
    """

    def __init__(self, folder: Path, pseudonym: Pseudonymiser) -> None:
        self._folder = folder
        self._pseudonym = pseudonym
        self._lock = threading.Lock()
        self._files: dict[str, dict[str, StoredFile]] = defaultdict(dict)
        self._last: dict[str, float] = {}
        make_folder(folder / _WORK)
        studies.sweep(folder / _WORK)
        # What a killed receiver had not committed yet is waited for anew.
        for place in sorted(folder.iterdir()):
            if place.is_dir() and _HIDDEN_STUDY.fullmatch(place.name):
                self._last[place.name.removeprefix(".")] = time.monotonic()

    def take(self, *encoded: bytes) -> int:
        """Store one instance.

        Args:
            encoded: the pieces of a whole DICOM file, from its preamble.

        Returns:
            The status of the C-STORE response (PS3.4 table B.2-1): stored, out of resources or cannot understand.
        """
        try:
            partial, stored = studies.write_partial(self._folder / _WORK, encoded)
            try:
                with partial.open("rb") as stream:
                    uids = studies.read_uids(stream, "an instance")
                self._place(uids.study_name(self._pseudonym), uids.file_name(self._pseudonym), partial, stored)
            finally:
                partial.unlink(missing_ok=True)
        except UnreadableSource:
            _LOGGER.warning("an instance was refused: it states no study, series and instance UID")
            return CANNOT_UNDERSTAND
        except (WorkspaceError, OSError) as error:
            # The text of an error of the system names no more than our own path.
            reason = error if isinstance(error, WorkspaceError) else error.strerror
            _LOGGER.error("an instance was refused, the sender may try again: %s", reason)
            return OUT_OF_RESOURCES
        return STORED

    def _place(self, study: str, name: str, partial: Path, stored: StoredFile) -> None:
        hidden = arrivals.out_of_use(self._folder, study)
        with self._lock:
            if (before := self._find(study, name)) is not None:
                if _same_data_set(before, partial):
                    return
                # Beside the first one: ingest sees both and uses neither, for nobody knows which is right.
                name = _beside(name, stored)
                if self._find(study, name) is not None:
                    return
                _LOGGER.warning(
                    "%s: %s/%s has the UID of another instance, but other bytes", CONFLICTING_SOP, study, name
                )
            new = not (hidden / name).parent.is_dir()
            studies.move_into(partial, hidden / name)
            self._files[study][name] = stored
            self._last[study] = time.monotonic()
            # The sender deletes its copy when it is told that ours is stored.
            for folder in ((hidden / name).parent, *((hidden, self._folder) if new else ())):
                sync_directory(folder)

    def _find(self, study: str, name: str) -> Path | None:
        """Give the file of that name, whether its study is complete or not."""
        for folder in (arrivals.out_of_use(self._folder, study), arrivals.in_use(self._folder, study)):
            if (folder / name).is_file():
                return folder / name
        return None

    def quiet(self, seconds: float) -> list[str]:
        """Name the studies of which nothing came for so long, and which are not committed."""
        now = time.monotonic()
        with self._lock:
            return sorted(study for study, last in self._last.items() if now - last >= seconds)

    def commit(self, study: str) -> StudyCommit:
        """Write a study's commit file and bring it into sight; what is new of a known study is added to it.

        Raises:
            WorkspaceError: the folder cannot be written or is full.
        """
        hidden, shown = arrivals.out_of_use(self._folder, study), arrivals.in_use(self._folder, study)
        with self._lock:
            arrived = studies.stored_files(hidden, _commit(study, self._files[study]))
            if shown.is_dir():
                before = studies.read_commit(shown)
                for name in arrived:
                    studies.move_into(hidden / name, shown / name)
                # What lies there, not what was there plus what came: a receiver may have been killed between the two.
                known = _commit(study, {**(before.files if before else {}), **arrived})
                commit = _commit(study, studies.stored_files(shown, known))
                studies.write_commit(shown, commit)
                studies.remove_empty(hidden)
            else:
                commit = _commit(study, arrived)
                studies.write_commit(hidden, commit)
                hidden.rename(shown)
            del self._last[study], self._files[study]
        return commit

    def put_off(self, study: str) -> None:
        """Wait anew for a study that could not be committed."""
        with self._lock:
            self._last[study] = time.monotonic()


def _same_data_set(one: Path, other: Path) -> bool:
    """Compare two files behind their meta groups: those name the release that wrote them."""
    with one.open("rb") as first, other.open("rb") as second:
        for stream in (first, second):
            head = stream.read(_META_BEGINS + 12)
            # (0002,0000) UL, the length of the group (PS3.10 7.1); a file of another form is compared whole.
            has_length = head[128 : _META_BEGINS + 8] == b"DICM\x02\x00\x00\x00UL\x04\x00"
            stream.seek(len(head) + int.from_bytes(head[-4:], "little") if has_length else 0)
        while (block := first.read(_BLOCK_BYTES)) == second.read(_BLOCK_BYTES):
            if not block:
                return True
    return False


def _beside(name: str, stored: StoredFile) -> str:
    path = Path(name)
    return str(path.with_name(f"{path.stem}-{stored.digest[:8]}{path.suffix}"))


def _commit(study: str, files: Mapping[str, StoredFile]) -> StudyCommit:
    reason = "another file has the same SOPInstanceUID but other bytes; keep the right one of them"
    return StudyCommit(study, files, {name: (CONFLICTING_SOP, reason) for name in files if "-" in Path(name).stem})


def _entity_of(options: ReceiverOptions) -> tuple[ApplicationEntity, Any]:
    """Make the application entity; takes every storage class in every transfer syntax, for ingest names what it is not.

    Returns:
        The entity, and the module of its events.
    """
    try:
        from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, _config, evt
    except ModuleNotFoundError:
        raise ConfigError("`vitpipe receive` needs the package pynetdicom; `pip install 'vitpipe[network]'`") from None
    # Its own lines hold UIDs, and the text of an error may hold a value. It also makes pydicom warn, in threads of its
    # own, of UIDs that do not follow the standard, and quote them: this import keeps pydicom silent in the process.
    importlib.import_module("vitpipe.domains.dicom.quiet")
    _config.LOG_HANDLER_LEVEL = "none"
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)
    entity = AE(ae_title=options.ae_title)
    for context in AllStoragePresentationContexts:
        entity.add_supported_context(str(context.abstract_syntax), ALL_TRANSFER_SYNTAXES)
    entity.add_supported_context(_VERIFICATION)
    entity.maximum_associations = _MOST_ASSOCIATIONS
    entity.maximum_pdu_size = _LARGEST_PDU_BYTES
    entity.require_calling_aet = list(options.allowed)
    return entity, evt


class Receiver:
    """A C-STORE SCP with its threads; use it as a context manager.

    Args:
        options: where to listen.
        pseudonym: names studies, series and instances.
        on_study: told of every complete study, in a thread that receives nothing.

    Raises:
        ConfigError: pynetdicom is not installed, another receiver has the folder, or the address is taken.
    """

    def __init__(
        self, options: ReceiverOptions, pseudonym: Pseudonymiser, on_study: Callable[[StudyCommit], None]
    ) -> None:
        self._options = options
        self._pseudonym = pseudonym
        self._on_study = on_study
        self._stop = threading.Event()
        self._watch = threading.Thread(target=self._watch_studies, name="quiet studies")
        self._stack = ExitStack()
        self._server: Any = None
        self._entity: ApplicationEntity | None = None

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return int(self._server.socket.getsockname()[1])

    def __enter__(self) -> Self:
        """Listen."""
        with ExitStack() as stack:
            try:
                stack.enter_context(file_lock(self._options.folder / _WORK / "lock", wait=False))
            except WorkspaceError as error:
                if not isinstance(error.__cause__, BlockingIOError):
                    raise
                raise ConfigError(
                    f"another `vitpipe receive` writes to {self._options.folder}; end it, or give another `--to`"
                ) from error
            self._inbox = Inbox(self._options.folder, self._pseudonym)
            self._listen()
            self._watch.start()
            # Nothing has failed: what was entered stays so until the end.
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Take no more associations, let those that are open end for a while, and stop."""
        assert self._entity is not None
        self._server.shutdown()
        deadline = time.monotonic() + _GRACE_SECONDS
        while self._entity.active_associations and time.monotonic() < deadline:
            time.sleep(0.05)
        for association in self._entity.active_associations:
            association.abort()
        self._stop.set()
        self._watch.join()
        self._stack.close()

    def _listen(self) -> None:
        entity, evt = _entity_of(self._options)
        handlers: list[Any] = [
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_C_ECHO, lambda _event: STORED),
        ]
        address = (self._options.host, self._options.port)
        try:
            self._server = entity.start_server(address, block=False, evt_handlers=handlers)
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {address[0]}:{address[1]} ({error.strerror}); choose another `--port` or `--host`"
            ) from None
        self._entity = entity

    def _store(self, event: Event) -> int:
        from pynetdicom.dsutils import encode_file_meta

        # Apart: together they would be one more copy of what may be gigabytes.
        head = b"\0" * 128 + b"DICM" + encode_file_meta(event.file_meta)
        return self._inbox.take(head, event.encoded_dataset(include_meta=False))

    def _watch_studies(self) -> None:
        tick = min(_LONGEST_TICK_SECONDS, self._options.quiet_seconds / 4)
        while not self._stop.wait(tick):
            for study in self._inbox.quiet(self._options.quiet_seconds):
                try:
                    commit = self._inbox.commit(study)
                except (WorkspaceError, OSError) as error:
                    reason = error if isinstance(error, WorkspaceError) else error.strerror
                    _LOGGER.error("study %s could not be committed, tried again later: %s", study, reason)
                    self._inbox.put_off(study)
                    continue
                _LOGGER.info("study %s is complete: %d series, %d instances", study, commit.series, len(commit.files))
                try:
                    self._on_study(commit)
                except OSError as error:
                    # A closed terminal ends no watch.
                    _LOGGER.error("study %s is complete, but that could not be told: %s", study, error.strerror)
