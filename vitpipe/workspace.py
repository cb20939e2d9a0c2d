"""Where everything that is made lies: the paths of a workspace, and its lock."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vitpipe.atomic import file_lock, make_folder


@dataclass(frozen=True, slots=True)
class Workspace:
    """The folder of one pipeline. Nothing in it is edited in place: files are replaced whole, tables only grow."""

    root: Path

    @property
    def index(self) -> Path:
        """A row a file that was looked at: the cheap key, the digest, the header (no identifier in clear)."""
        return self.root / "index.parquet"

    @property
    def catalog(self) -> Path:
        """A row a source."""
        return self.root / "catalog.parquet"

    @property
    def quarantine(self) -> Path:
        """A row a rejection: uri, code, reason, junk."""
        return self.root / "quarantine.parquet"

    @property
    def splits(self) -> Path:
        """Group to split; append-only."""
        return self.root / "splits.parquet"

    @property
    def ground_block(self) -> Path:
        """The size of the blocks of ground, chosen once."""
        return self.root / "ground_block.json"

    @property
    def test_ledger(self) -> Path:
        """A line for every use of the test split."""
        return self.root / "test_ledger.jsonl"

    @property
    def runs(self) -> Path:
        """Folder of the runs."""
        return self.root / "runs"

    def labels(self, digest: str) -> Path:
        """The label table of one label recipe and label file."""
        return self.root / "labels" / f"{digest}.parquet"

    def targets(self, digest: str) -> Path:
        """Folder of the targets of every pixel, of one label set on one tile store."""
        return self.root / "labels" / digest

    def tiles(self, recipe_digest: str) -> Path:
        """Folder of the shards of one tiling recipe."""
        return self.root / "tiles" / recipe_digest

    def run(self, run_id: str) -> Path:
        """Folder of one run."""
        return self.runs / run_id

    def prepare(self) -> None:
        """Make the folder.

        Raises:
            WorkspaceError: it cannot be made or written.
        """
        make_folder(self.root)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the workspace for one run.

        Raises:
            WorkspaceError: another run holds it.
        """
        self.prepare()
        with file_lock(self.root / "lock", wait=False):
            yield
