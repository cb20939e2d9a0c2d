"""Fetch the scenes of a STAC catalog into a folder of GeoTIFFs, once: what is there is not asked for again.

Find the items, choose their assets, download what is missing, commit the scene. A fetch that was killed goes on at the
next missing byte. Scenes that the query does not find any more are left out, by a dot before their name.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from vitpipe import arrivals
from vitpipe.arrivals import FETCH_FAILED
from vitpipe.atomic import make_folder
from vitpipe.config import PipelineConfig, StacSource
from vitpipe.digest import digest
from vitpipe.errors import DataError, TransientError, UnreadableSource
from vitpipe.records import Rejected, StageSummary, count_codes
from vitpipe.stac import folders
from vitpipe.stac.catalog import find_items
from vitpipe.stac.download import Arrived, StillBusy, download
from vitpipe.stac.folders import SceneCommit, StoredFile
from vitpipe.stac.items import WantedFile, WantedScene, choose, scene_names
from vitpipe.web.access import read_access
from vitpipe.web.address import Rules, shown
from vitpipe.web.client import Client
from vitpipe.web.retries import Backoff
from vitpipe.workspace import Workspace

_LOGGER = logging.getLogger(__name__)
_SAY_SECONDS: Final = 10.0
_HOPELESS: Final = 3
"""Files in a row that all tries did not get: the server is gone, not a file."""


@dataclass(slots=True)
class _Progress:
    """What the main thread knows of a fetch."""

    arrived: dict[str, dict[str, Arrived]] = field(default_factory=dict)
    """Scene to file to what arrived."""
    rejected: dict[str, Rejected] = field(default_factory=dict)
    """Scene to what is wrong with it, or with the first of its files."""
    before: dict[str, SceneCommit] = field(default_factory=dict)
    """Scene to what there was of it, as the catalog still describes it."""
    in_vain: int = 0
    busy: TransientError | None = None


def fetch_scenes(
    config: PipelineConfig, source: StacSource, workspace: Workspace, backoff: Backoff | None = None
) -> StageSummary:
    """Bring the folder of a pipeline's STAC source up to date. Call it while holding the workspace.

    Args:
        config: the pipeline.
        source: its source.
        workspace: holds the scenes unless the source names a folder, and the list of what failed.
        backoff: of the retries; a minute or so by default.

    Returns:
        Stage ``fetch``: `done` files that arrived, `skipped` those that were there, `rejected` by code.

    Raises:
        ConfigError: the address, the certificate, the credentials, the query or the choice of assets are wrong.
        DataError: the catalog is none, or has no item that fits.
        WorkspaceError: the disk is full, the folder cannot be written, or another fetch works in it.
        TooManyRejected: more than the stated share of the scenes could not be fetched.
        TransientError: a server does not answer; what has arrived is kept.
    """
    started = time.perf_counter()
    root = Path(config.on_disk().source.path)
    rules = Rules(source.url, source.plain_http, source.sign or "")
    with arrivals.fetching(root), Client(rules, read_access(), source.connections, backoff) as client:
        found = find_items(source, client)
        if not found:
            raise DataError(
                f"{shown(source.url)} has no item that fits `source.query`; widen it, or look at the catalog"
            )
        arrivals.claim(root, digest(["stac", config.name]), folders.COMMIT_NAME, "scenes")
        progress = _Progress()
        wanted: dict[str, WantedScene] = {}
        for entry, name in zip(found, scene_names(found), strict=True):
            try:
                wanted[name] = choose(entry, name, source)
            except UnreadableSource as error:
                progress.rejected[name] = Rejected(str(arrivals.in_use(root, name)), error.code, error.reason)
        left_out = arrivals.leave_out(root, folders.COMMIT_NAME, wanted)
        missing = [name for name, scene in wanted.items() if not _is_there(root, scene)]
        _fetch_all(root, [wanted[name] for name in missing], client, progress, source.connections)
    if progress.busy and not progress.arrived and len(missing) == len(wanted):
        # Nothing at all has ever come: it is the server, not a file.
        raise progress.busy
    rejected = list(progress.rejected.values())
    arrivals.keep_failures(workspace.root, root, rejected)
    there = sum(len(wanted[name].files) for name in wanted.keys() - set(missing))
    arrivals.check_share(source.max_reject_share, rejected, len(found), "scenes")
    arrived = [file for files in progress.arrived.values() for file in files.values()]
    fresh, unchecked = sum(file.fresh for file in arrived), sum(file.unchecked for file in arrived)
    notes = [f"{len(found)} item(s), {len(wanted) - len(missing)} of them were there"]
    notes += [f"{left_out} scene(s) that `source.query` does not find any more are left out"] * bool(left_out)
    notes += [f"{unchecked} file(s) have a checksum of a kind that is not known here"] * bool(unchecked)
    notes += [f"`source.max_items` ({source.max_items}) is reached: there may be more"] * (
        len(found) == source.max_items
    )
    return StageSummary(
        "fetch",
        done=fresh,
        skipped=there + len(arrived) - fresh,
        rejected=count_codes(rejected),
        seconds=time.perf_counter() - started,
        notes=tuple(notes),
    )


def _is_there(root: Path, scene: WantedScene) -> bool:
    """Say whether a scene is complete and in use; one that was left out comes back, one that is not whole is hidden."""
    visible, hidden = arrivals.in_use(root, scene.name), arrivals.out_of_use(root, scene.name)
    folder = visible if visible.is_dir() else hidden
    current = folders.is_current(folder, folders.read_commit(folder), scene)
    if current:
        folders.write_item(folder, scene.item)
    if current and folder == hidden:
        hidden.rename(visible)
    elif not current and folder == visible:
        visible.rename(hidden)
    return current


def _fetch_all(
    root: Path, scenes: Sequence[WantedScene], client: Client, progress: _Progress, connections: int
) -> None:
    """Download files side by side, and commit each scene whose last file has come.

    Raises:
        TransientError: the servers do not answer any more; the others end at their next wait.
    """
    said = time.monotonic()
    with ThreadPoolExecutor(connections) as pool:
        futures: dict[Future[Arrived], tuple[WantedScene, WantedFile]] = {}
        for scene in scenes:
            folder = arrivals.out_of_use(root, scene.name)
            make_folder(folder)
            folders.set_aside(folder, scene)
            before = folders.read_commit(folder)
            if before is not None and before.updated == scene.updated:
                progress.before[scene.name] = before
            for file in scene.files:
                futures[pool.submit(_fetch_file, file, folder, client, scene, before)] = scene, file
        left = {scene.name: len(scene.files) for scene in scenes}
        try:
            for number, future in enumerate(as_completed(futures), start=1):
                scene, file = futures[future]
                _take(future, root, scene, file, progress)
                left[scene.name] -= 1
                if left[scene.name] == 0:
                    _finish(root, scene, progress.arrived.get(scene.name, {}))
                if time.monotonic() - said > _SAY_SECONDS:
                    said = time.monotonic()
                    _LOGGER.info("fetched %d of %d files", number, len(futures))
        finally:
            client.stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


def _fetch_file(
    file: WantedFile, folder: Path, client: Client, scene: WantedScene, before: SceneCommit | None
) -> Arrived:
    known = before.files.get(file.name) if before else None
    if client.stop.is_set():
        raise TransientError("stopped, since another part of the fetch has failed")
    if known is None or known.identity != file.identity or arrivals.size_of(folder / file.name) != known.bytes:
        return download(file, folder, client)
    if before is not None and before.updated == scene.updated:
        return Arrived(known.bytes, known.validator, fresh=False)
    # The catalog says that something changed, which need not be this file.
    return download(file, folder, client, before=known.validator)


def _take(future: Future[Arrived], root: Path, scene: WantedScene, file: WantedFile, progress: _Progress) -> None:
    """Note what became of one file.

    Raises:
        TransientError: several in a row did not come.
    """
    place = str(arrivals.in_use(root, scene.name) / file.name)
    try:
        progress.arrived.setdefault(scene.name, {})[file.name] = future.result()
        progress.in_vain = 0
        _write_commit(arrivals.out_of_use(root, scene.name), scene, progress)
    except UnreadableSource as error:
        progress.rejected.setdefault(scene.name, Rejected(place, error.code, error.reason))
    except StillBusy as error:
        progress.in_vain += 1
        progress.busy = error
        if progress.in_vain >= _HOPELESS:
            raise
        reason = f"{error} in all tries, while other files are answered; look at the server"
        progress.rejected.setdefault(scene.name, Rejected(place, FETCH_FAILED, reason))


def _finish(root: Path, scene: WantedScene, arrived: Mapping[str, Arrived]) -> None:
    """Bring a scene into use that is whole; one that lacks a file stays out of use."""
    if len(arrived) < len(scene.files):
        return
    hidden = arrivals.out_of_use(root, scene.name)
    folders.write_item(hidden, scene.item)
    hidden.rename(arrivals.in_use(root, scene.name))


def _write_commit(folder: Path, scene: WantedScene, progress: _Progress) -> None:
    """Note what there is of a scene; while some is missing it is out of use, and a killed fetch goes on from here.

    What was there before stays noted until its turn comes.
    """
    arrived, before = progress.arrived[scene.name], progress.before.get(scene.name)
    names = {file.name for file in scene.files}
    stored = {name: item for name, item in before.files.items() if name in names} if before else {}
    stored |= {
        file.name: StoredFile(file.identity, arrived[file.name].bytes, arrived[file.name].validator)
        for file in scene.files
        if file.name in arrived
    }
    folders.write_commit(folder, SceneCommit(stored, scene.updated))
