"""Keep Prefect's pages from asking anyone but this machine.

With analytics off, the second interface still asks for the settings of Amplitude on every page. The server has no
option against it, but serves its pages from a folder of ours: a content policy in them makes the browser refuse.
"""

from __future__ import annotations

import re
from pathlib import Path

from flows.settings import LOOPBACK
from vitpipe.atomic import write_file

_HEAD = "<head>"
_POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy" content="connect-src [^"]*">')


def forbid_foreign_requests(folder: Path, port: int) -> int:
    """Write the policy into each ``index.html`` below a folder of Prefect's pages.

    Args:
        folder: ``PREFECT_UI_STATIC_DIRECTORY``; filled by the server when it starts.
        port: of the Prefect server.

    Returns:
        How many pages carry the policy now.
    """
    hosts = " ".join(f"{scheme}://{name}:{port}" for name in (LOOPBACK, "localhost") for scheme in ("http", "ws"))
    tag = f'<meta http-equiv="Content-Security-Policy" content="connect-src \'self\' {hosts}">'
    done = 0
    for page in sorted(folder.glob("*/index.html")):
        text = page.read_text(encoding="utf-8")
        # One for another port would forbid what this one needs.
        wanted = _POLICY.sub("", text).replace(_HEAD, f"{_HEAD}{tag}", 1)
        if wanted != text:
            with write_file(page) as partial:
                partial.write_text(wanted, encoding="utf-8")
        done += tag in wanted
    return done
