"""No library phones home: what must be set before MLflow is imported."""

from __future__ import annotations

import os
from typing import Final

# `true` is the one spelling of DO_NOT_TRACK that both MLflow and Prefect take.
_SILENCE: Final = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
_PATIENCE: Final = {
    # Seven doubling waits, the library's choice, are four minutes of silence before a dead server is named.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    # A lock file in the caller's folder would be exported and uploaded with the model.
    "MLFLOW_UV_AUTO_DETECT": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # Standard output is for `--json`.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def silence_telemetry() -> None:
    """Turn telemetry off in this process and its children, and set patience where the user has set none."""
    os.environ.update(_SILENCE)
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
