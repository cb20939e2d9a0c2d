"""The ledger of every use of the test split."""

from __future__ import annotations

import datetime
import json
import os

from vitpipe.atomic import file_lock, workspace_errors
from vitpipe.workspace import Workspace


def record_test_use(workspace: Workspace, run_id: str, purpose: str, digest: str) -> int:
    """Write one use of the test split into the ledger, before the split is looked at.

    Args:
        workspace: holds the ledger.
        run_id: the run that is judged.
        purpose: such as ``evaluate`` or ``gate``.
        digest: of the test tiles.

    Returns:
        Which use this is, from 1. The same run, purpose and digest again (a retry) is the same use.

    Raises:
        WorkspaceError: the ledger cannot be written: then the test split must not be used.
    """
    path = workspace.test_ledger
    with file_lock(path.with_suffix(".lock"), wait=True), workspace_errors(path):
        content = path.read_bytes() if path.exists() else b""
        # A line without its end was cut off by a crash before it was synced: that use never began.
        whole = content[: content.rfind(b"\n") + 1]
        entries = [json.loads(line) for line in whole.splitlines()]
        use = {"run_id": run_id, "purpose": purpose, "digest": digest}
        for number, entry in enumerate(entries, start=1):
            if all(entry.get(name) == value for name, value in use.items()):
                return number
        when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        line = json.dumps({"use": len(entries) + 1, "when": when, **use}, ensure_ascii=False)
        with path.open("r+b" if path.exists() else "w+b") as stream:
            stream.truncate(len(whole))
            stream.seek(len(whole))
            stream.write(line.encode("utf-8") + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
    return len(entries) + 1
