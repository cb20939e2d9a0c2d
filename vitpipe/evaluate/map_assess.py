"""`vitpipe accuracy`: a class map and its reference in, accuracies and error-adjusted areas with intervals out."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from vitpipe import __version__
from vitpipe.atomic import write_file, write_json
from vitpipe.errors import ConfigError, DataError
from vitpipe.evaluate.map_accuracy import Design, MapAccuracy, Share, allocate, map_accuracy, pool_small, sample_size
from vitpipe.evaluate.map_blocks import BLOCKS_FILE, MOST_BLOCKS, BlockErrors, Blocks, block_errors, write_blocks
from vitpipe.evaluate.map_ground import ClassRaster, count_classes, open_classes, pixel_edge_m
from vitpipe.evaluate.map_reference import TIFF_SUFFIXES, Look, Reference, read_reference
from vitpipe.records import Findings, Json

NUMBERS_FILE: Final = "accuracy.json"
PAGE_FILE: Final = "accuracy.html"
CLASSES_DIFFER: Final = "CLASSES_DIFFER"
CLASS_TAG: Final = "CLASS_"
"""Tags of a map of ours: ``CLASS_3`` holds the name of the value 3."""
_TARGET_HALF_WIDTH: Final = 0.02
"""Of the overall accuracy, in the advice on sample size."""


@dataclass(frozen=True, slots=True)
class AccuracyRequest:
    """What is asked."""

    map: Path
    reference: Path
    column: str = "label"
    """Of the reference: holds the class, as its name or as its value on the map."""
    strata: Path | None = None
    """Class raster that the sample was drawn by; None: by the map's classes."""
    cluster: str | None = None
    block_m: float | None = None
    classes: str | None = None
    """``1=forest,2=water``; None: the map's own names, else the values."""
    reference_classes: str | None = None
    """The same for numbers in the reference; None: they are values of the map, where `classes` names those."""
    pool_small: bool = False
    confidence: float = 0.95


@dataclass(frozen=True, slots=True)
class MapFindings:
    """The numbers of one map, and how they are to be read."""

    accuracy: MapAccuracy
    mapped: Mapping[str, tuple[int, float]]
    """Class to pixels and ground in m2 (NaN without a CRS) on the map."""
    total_m2: float | None
    """Ground of the map; None: no CRS, all areas are shares."""
    design: str
    """How the sample is taken to have been drawn, in a sentence."""
    reference: Reference
    advice: str
    notes: tuple[str, ...]
    confidence: float
    by_block: BlockErrors | None = None
    """Where the clusters are blocks of ground: the errors of each."""

    @property
    def total(self) -> float:
        """Size of the map: m2, or pixels without a CRS."""
        return self.total_m2 if self.total_m2 is not None else float(sum(px for px, _ in self.mapped.values()))


def assess_map(request: AccuracyRequest, out: Path) -> Findings:
    """Estimate a map's accuracy and areas from a reference, and write both as JSON and as a page.

    Args:
        request: what is asked.
        out: folder for `accuracy.json` and `accuracy.html`, and `error_blocks.tif` where clusters are blocks.

    Raises:
        ConfigError: a file is missing, or the request contradicts itself.
        DataError: a coded sentence; see `map_accuracy`, `map_ground` and `map_reference`.
    """
    from vitpipe.evaluate.map_report import map_html

    found = judge_map(request)
    numbers = findings_json(found)
    if found.by_block is not None:
        write_blocks(found.by_block, out / BLOCKS_FILE)
    write_json(out / NUMBERS_FILE, numbers)
    with write_file(out / PAGE_FILE) as partial:
        partial.write_text(map_html(found, request.map.name), encoding="utf-8")
    written = [PAGE_FILE, *([BLOCKS_FILE] if found.by_block is not None else [])]
    return Findings((*_lines(found), f"written: {out / NUMBERS_FILE} and {', '.join(written)}"), numbers)


def _classes_of(place: Path) -> Path:
    """Give the class raster of a map: of the folder of a map of ours, the file in it."""
    classes = place / "classes.tif"
    if place.is_dir() and not classes.is_file():
        below = sorted(str(found) for found in place.glob("**/classes.tif"))[:3]
        hint = f", such as {', '.join(below)}" if below else ""
        raise ConfigError(f"{place} is a folder without classes.tif; name a class GeoTIFF{hint}")
    return classes if place.is_dir() else place


def judge_map(request: AccuracyRequest) -> MapFindings:
    """Do what :func:`assess_map` does, without writing."""
    if request.cluster is not None and request.block_m is not None:
        raise ConfigError("both a column of clusters and `--block-m` are given; choose one")
    request = dataclasses.replace(request, map=_classes_of(request.map))
    for path in (request.map, request.strata):
        if path is not None and not path.is_file():
            raise ConfigError(f"there is no file {path}; name a class GeoTIFF")
    with contextlib.ExitStack() as stack:
        raster = stack.enter_context(open_classes(request.map))
        strata = stack.enter_context(open_classes(request.strata)) if request.strata is not None else None
        names = class_names(raster, request.classes)
        theirs = _reference_names(request, names)
        counted = count_classes(raster, strata)
        if counted.empty:
            raise DataError(f"NOT_CLASSES: {request.map} holds no valid pixel")
        blocks = _blocks(raster, request.block_m)
        reference = read_reference(request.reference, Look(raster, strata, request.column, request.cluster, blocks))
        has_crs = raster.dataset.crs is not None
    return _judged(request, counted, (names, theirs, reference), blocks, has_crs=has_crs)


def _judged(
    request: AccuracyRequest,
    counted: pd.DataFrame,
    read: tuple[Mapping[int, str], Mapping[int, str] | None, Reference],
    blocks: Blocks | None,
    *,
    has_crs: bool,
) -> MapFindings:
    names, theirs, reference = read
    measure = "area_m2" if has_crs else "pixels"
    sample = _named(reference.table, (names, theirs), counted, of_map=request.strata is None)
    counted = counted.assign(map=[names.get(value, str(value)) for value in counted["value"]])
    counted["name"] = counted["map"] if request.strata is None else [f"stratum {each}" for each in counted["stratum"]]
    sizes = {str(name): float(size) for name, size in counted.groupby("name")[measure].sum().items()}
    notes = [f"{count} unit(s) of the reference left out: {reason}" for reason, count in reference.dropped.items()]
    notes += reference.notes
    by_block = block_errors(sample, blocks) if blocks is not None else None
    if blocks is not None and by_block is None:
        notes.append(f"the map has more than {MOST_BLOCKS:,} blocks: their errors are not drawn, nor written")
    if not has_crs:
        notes.append("the map has no CRS: areas are shares of its pixels, not of ground")
    if request.pool_small:
        sample, sizes, merged = pool_small(sample, sizes)
        if merged:
            notes.append(f"strata merged, as too few units were sampled in them: {', '.join(merged)}")
    classes = tuple(sorted({*counted["map"], *sample["reference"]}))
    accuracy = map_accuracy(sample, Design(sizes, confidence=request.confidence), classes)
    by_class = counted.groupby("map")[["pixels", "area_m2"]].sum(min_count=1)
    mapped = {str(name): (int(row["pixels"]), float(row["area_m2"])) for name, row in by_class.iterrows()}
    return MapFindings(
        accuracy=accuracy,
        mapped=mapped,
        total_m2=float(counted["area_m2"].sum()) if has_crs else None,
        design=_design_sentence(request, reference),
        reference=reference,
        advice=_advice(accuracy, {name: px if not has_crs else m2 for name, (px, m2) in mapped.items()}),
        notes=(*notes, *accuracy.notes),
        confidence=request.confidence,
        by_block=by_block,
    )


def _blocks(raster: ClassRaster, block_m: float | None) -> Blocks | None:
    if block_m is None:
        return None
    edge = pixel_edge_m(raster)
    if edge is None or edge <= 0:
        raise ConfigError(f"{raster.path} has no CRS, so `--block-m` has no metres to count in; name a cluster column")
    return Blocks.of(raster, max(1, round(block_m / edge)))


def class_names(raster: ClassRaster, stated: str | None) -> dict[int, str]:
    """Give the names of class values: those stated, else those of the map's tag, else none.

    Raises:
        ConfigError: what is stated is no list ``1=forest,2=water``, or names one class twice.
    """
    if stated is None:
        tags = {key.removeprefix(CLASS_TAG): name for key, name in raster.dataset.tags().items() if CLASS_TAG in key}
        return {int(value): name for value, name in tags.items() if value.isdigit() and name}
    return _parsed(stated, "--classes")


def _parsed(stated: str, option: str) -> dict[int, str]:
    names: dict[int, str] = {}
    for part in filter(None, (each.strip() for each in stated.split(","))):
        value, found, name = part.partition("=")
        if not found or not value.strip().isdigit() or not name.strip():
            raise ConfigError(f"`{option}` holds {part!r}; write value=name, such as 1=forest,2=water")
        names[int(value)] = name.strip()
    if len(set(names.values())) < len(names):
        raise ConfigError(f"`{option}` gives one name to two values: {stated}")
    return names


def _reference_names(request: AccuracyRequest, names: Mapping[int, str]) -> Mapping[int, str] | None:
    """Give the names of numbers in the reference; None: a number there has no meaning.

    A map of ours counts its classes from 0 in the order of their names; labels it was trained on may count otherwise,
    and a mistaken number looks like any other. So numbers are only taken for the map's where the user names those.
    """
    if request.reference_classes is not None:
        return _parsed(request.reference_classes, "--reference-classes")
    if request.reference.suffix.lower() in TIFF_SUFFIXES and request.reference.is_file():
        with open_classes(request.reference) as raster:
            if own := class_names(raster, None):
                return own
    return names if request.classes is not None or not names else None


def _named(
    table: pd.DataFrame,
    naming: tuple[Mapping[int, str], Mapping[int, str] | None],
    counted: pd.DataFrame,
    *,
    of_map: bool,
) -> pd.DataFrame:
    """Give map classes, strata and reference labels their names."""
    names, theirs = naming
    known = {names.get(int(value), str(value)) for value in counted["value"]} | set(names.values())
    labels: dict[str, str] = {}
    for label in table["reference"].unique():
        if label in known or not label.isdigit():
            labels[label] = label
        elif theirs is None:
            raise DataError(
                f"{CLASSES_DIFFER}: the reference has the number {label}, but the map's classes have names "
                f"({', '.join(sorted(known))}); say what the numbers mean, such as `--reference-classes "
                "1=forest,2=water`"
            )
        else:
            labels[label] = theirs.get(int(label), label)
    if not known & set(labels.values()):
        raise DataError(
            f"{CLASSES_DIFFER}: the reference has the classes {', '.join(sorted(labels))}, the map "
            f"{', '.join(sorted(known))}, and none is in both; say which value is which, such as "
            "`--classes 1=forest,2=water`"
        )
    mapped = [names.get(int(value), str(value)) for value in table["value"]]
    strata = mapped if of_map else [f"stratum {value}" for value in table["stratum"]]
    columns = {"stratum": strata, "map": mapped, "reference": table["reference"].map(labels), "count": table["count"]}
    if "cluster" in table:
        columns["cluster"] = table["cluster"]
    return pd.DataFrame(columns)


def _design_sentence(request: AccuracyRequest, reference: Reference) -> str:
    strata = "the classes of the map" if request.strata is None else f"the classes of {request.strata.name}"
    drawn = "each unit was drawn by itself"
    if "cluster" in reference.table:
        wholes = {"points": "groups of points", "polygons": "polygons", "raster": "blocks of pixels"}
        drawn = f"units were drawn in clusters ({wholes[reference.kind] if request.block_m is None else 'blocks'})"
    return (
        f"These numbers hold if the reference is a probability sample within the strata ({strata}), and {drawn}. No "
        "program can see that from the labels: labels placed where they were easy to get, or taken from the training "
        "data, make every number here too good."
    )


def _advice(accuracy: MapAccuracy, mapped: Mapping[str, float]) -> str:
    """Say how many units another sample would need."""
    users = {name: share.estimate for name, share in accuracy.users.items()}
    # A class without an estimate is planned as if half of it were wrong, the worst case.
    expected = {name: 0.5 if (users.get(name)) is None else float(users[name] or 0.0) for name in mapped}
    n = max(sample_size(mapped, expected, _TARGET_HALF_WIDTH / 1.96), 2 * len(mapped))
    dealt = ", ".join(f"{name} {count}" for name, count in allocate(mapped, n).items())
    return (
        f"For an overall accuracy to +-{_TARGET_HALF_WIDTH:.0%} with units drawn singly by map class, plan about {n} "
        f"units ({dealt}); rare classes get 50."
    )


def findings_json(found: MapFindings) -> dict[str, Json]:
    """Give the JSON form."""
    accuracy = found.accuracy
    classes: dict[str, Json] = {}
    for index, name in enumerate(accuracy.classes):
        pixels, ground = found.mapped.get(name, (0, 0.0))
        classes[name] = {
            "sampled_as_map": int(accuracy.counts[index].sum()),
            "sampled_as_reference": int(accuracy.counts[:, index].sum()),
            "mapped_px": pixels,
            "mapped_m2": ground if np.isfinite(ground) else None,
            "users_accuracy": accuracy.users[name].to_json(),
            "producers_accuracy": accuracy.producers[name].to_json(),
            "area_share": accuracy.areas[name].to_json(),
            "area_m2": _scaled(accuracy.areas[name], found.total_m2, 1.0),
            "area_ha": _scaled(accuracy.areas[name], found.total_m2, 1e-4),
        }
    return {
        "overall_accuracy": accuracy.overall.to_json(),
        "classes": classes,
        "error_matrix": {
            "rows_map_columns_reference": list(accuracy.classes),
            "counts": accuracy.counts.tolist(),
            "area_proportions": accuracy.proportions.tolist(),
        },
        "total_m2": found.total_m2,
        "n": accuracy.n,
        "n_clusters": accuracy.n_clusters,
        "confidence": found.confidence,
        "reference": found.reference.kind,
        "left_out": dict(found.reference.dropped),
        **(
            {} if found.by_block is None else {"blocks": {"edge_m": found.by_block.blocks.edge_m, "layer": BLOCKS_FILE}}
        ),
        "assumption": found.design,
        "advice": found.advice,
        "notes": list(found.notes),
        "vitpipe": __version__,
    }


def _scaled(share: Share, total: float | None, unit: float) -> Json:
    return None if total is None else share.times(total * unit).to_json()


def plus_minus(share: Share, digits: int = 3) -> str:
    """Write a share with half its interval."""
    if share.estimate is None:
        return "not defined"
    if share.high is None:
        return f"{share.estimate:,.{digits}f}"
    return f"{share.estimate:,.{digits}f} +- {share.high - share.estimate:,.{digits}f}"


def _lines(found: MapFindings) -> list[str]:
    accuracy = found.accuracy
    clusters = f" in {accuracy.n_clusters} clusters" if accuracy.n_clusters is not None else ""
    lines = [
        f"overall accuracy {plus_minus(accuracy.overall)} ({found.confidence:.0%} interval; {accuracy.n} reference "
        f"units{clusters})"
    ]
    for name in accuracy.classes:
        line = f"{name}: user's {plus_minus(accuracy.users[name])}, producer's {plus_minus(accuracy.producers[name])}"
        if found.total_m2 is not None:
            line += (
                f"; mapped {found.mapped.get(name, (0, 0.0))[1] * 1e-4:,.1f} ha, error-adjusted "
                f"{plus_minus(accuracy.areas[name].times(found.total_m2 * 1e-4), 1)} ha"
            )
        lines.append(line)
    return [*lines, found.design, *found.notes, found.advice]
