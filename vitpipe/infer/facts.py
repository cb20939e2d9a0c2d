"""What the registry keeps of a run, as flat names and numbers: no pixel, no path, no identifier."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vitpipe import __version__
from vitpipe.errors import ContractError
from vitpipe.infer.package import Package

if TYPE_CHECKING:
    import pandas as pd

    from vitpipe.config import PipelineConfig
    from vitpipe.manifest import Manifest

METRICS_FILE: Final = "metrics.json"
RUN_ARTIFACTS: Final = (METRICS_FILE, "report.html", "model_card.md")
TAG_PREFIX: Final = "vitpipe."
PACKAGE_TAG: Final = "vitpipe.package_digest"
SHA_TAG: Final = "vitpipe.sha256"
RUN_TAG: Final = "vitpipe.run_id"

_LEVELS: Final = ("tile", "source", "group")
_BOUNDS: Final = {"estimate": "", "low": "/low", "high": "/high"}


def read_metrics(run_folder: Path) -> dict[str, Any]:
    """Read metrics.json of a run.

    Raises:
        ContractError: it is missing; the run was not evaluated.
    """
    path = run_folder / METRICS_FILE
    if not path.is_file():
        raise ContractError(f"no {path}: the run was not evaluated; run `vitpipe evaluate` first")
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def flat_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Flatten metrics.json to ``test/<level>/<metric>`` with ``/low`` and ``/high`` beside it.

    Baselines become ``test/<level>/<metric>/<baseline>``; what a random split would claim and what the split by
    groups says become ``split_gap/<metric>/random_split``, ``/group_split`` and ``/difference`` (``/low``, ``/high``).
    What is not a finite number is left out.
    """
    flat = dict(_level_metrics(metrics, suffix="")) | dict(_gap_metrics(metrics.get("split_gap")))
    for name, levels in sorted(metrics.get("baselines", {}).items()):
        flat |= {key: value for key, value in _level_metrics(levels, suffix=f"/{name}") if _is_estimate(key, name)}
    return flat


def headline_tags(metrics: Mapping[str, Any], config: PipelineConfig) -> dict[str, str]:
    """Give the number that the gate looks at, with its interval; nothing where it is not defined."""
    if config.registration is None:
        return {}
    # Values of pixels have no balanced accuracy: the evaluation says which metric stands in.
    metric = metrics.get("headline", {}).get("metric", config.registration.gate.metric)
    entry = metrics.get(config.evaluate.level, {}).get(metric)
    if not isinstance(entry, Mapping) or not _finite(entry.get("estimate")):
        return {}
    text = f"{metric} {entry['estimate']:.3f}"
    if _finite(entry.get("low")) and _finite(entry.get("high")):
        text += f" [{entry['low']:.3f}, {entry['high']:.3f}]"
    return {"vitpipe.headline": f"{text} ({entry.get('n_groups', '?')} groups, level {config.evaluate.level})"}


def package_tags(package: Package) -> dict[str, str]:
    """Give the tags of a model version."""
    described = package.description
    weights = described.get("weights") or {}
    tags = {
        PACKAGE_TAG: package.digest,
        SHA_TAG: package.sha256,
        "vitpipe.version": __version__,
        "vitpipe.channels": ", ".join(described.get("channels", ())),
        "vitpipe.units": str(described.get("units", "")),
        "vitpipe.classes": ", ".join(described.get("classes", ())),
    }
    if isinstance(weights, Mapping):
        tags |= {f"vitpipe.weights_{key}": str(value) for key, value in weights.items() if value and _is_plain(value)}
    digests = described.get("digests") or {}
    if isinstance(digests, Mapping):
        tags |= {f"vitpipe.{key}_digest": str(value) for key, value in digests.items() if value}
    return {key: value[:1000] for key, value in tags.items()}


def contract(described: Mapping[str, Any]) -> dict[str, Any]:
    """Give what a reader of an MLmodel file wants to know: what goes in and what comes out."""
    return {
        "input": "a table with the column `path` (a DICOM series, a GeoTIFF, a photograph, a folder of them), or an "
        "array of tiles (N, C, H, W), of volumes (N, C, D, H, W), in physical units",
        "channels": list(described["channels"]),
        "units": described["units"],
        "tile_size_px": described["tiles"]["size"],
        **({"tile_depth": depth} if (depth := described["tiles"].get("depth")) else {}),
        "classes": list(described["classes"]),
        "multi_label": bool(described["multi_label"]),
    }


def output_columns(described: Mapping[str, Any]) -> dict[str, type]:
    """Give name and type of the columns that a model gives for a tile."""
    probabilities = dict.fromkeys((f"p_{name}" for name in described["classes"]), float)
    return {"predicted": str, **probabilities, "conformal_set": str, "abstain": bool}


def lineage(manifest: Manifest) -> dict[str, str]:
    """Give the data of a run as MLflow keeps a dataset: digest and counts, no pixel, no path."""
    profile = {"splits": count_tiles(manifest.table), "classes": list(manifest.classes)}
    return {
        "name": "manifest",
        "digest": manifest.digest,
        "source_type": "vitpipe",
        "source": json.dumps({"manifest_digest": manifest.digest}),
        "schema": json.dumps({"channels": list(manifest.channels), "units": manifest.units}),
        "profile": json.dumps(profile),
    }


def count_tiles(table: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Count tiles, sources and groups of each split of a manifest."""
    counts = table.groupby("split", sort=True).agg(
        tiles=("tile_id", "size"), sources=("source_id", "nunique"), groups=("group_id", "nunique")
    )
    return {str(split): {str(name): int(value) for name, value in row.items()} for split, row in counts.iterrows()}


def _level_metrics(levels: Mapping[str, Any], *, suffix: str) -> Iterator[tuple[str, float]]:
    for level in _LEVELS:
        for metric, entry in sorted(levels.get(level, {}).items()):
            if not isinstance(entry, Mapping):
                continue
            for bound, ending in _BOUNDS.items():
                if _finite(entry.get(bound)):
                    yield f"test/{level}/{metric}{suffix}{ending}", float(entry[bound])


def _gap_metrics(gap: Mapping[str, Any] | None) -> Iterator[tuple[str, float]]:
    if not gap:
        return
    # Runs from before other metrics were measured name none.
    name = f"split_gap/{gap.get('metric', 'balanced_accuracy')}"
    numbers = {which: {"estimate": gap.get(which)} for which in ("random_split", "group_split")}
    for which, entry in (numbers | {"difference": gap.get("difference") or {}}).items():
        for bound, ending in _BOUNDS.items():
            if _finite(entry.get(bound)):
                yield f"{name}/{which}{ending}", float(entry[bound])


def _is_estimate(key: str, baseline: str) -> bool:
    return key.endswith(f"/{baseline}")


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int | float) and not Path(str(value)).is_absolute()
