"""From what label files say of the ground to a label set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from vitpipe.digest import digest_of_digests
from vitpipe.errors import LabelError
from vitpipe.labels.base import LabelSet, check_class_names
from vitpipe.labels.boxes import EVERYWHERE, SourceBoxes
from vitpipe.labels.ground import KNOWN, GroundLabels
from vitpipe.labels.regions import SEPARATOR
from vitpipe.records import WHOLE_SOURCE, Rejected, Source, Task, count_codes


@dataclass(frozen=True)
class GroundFindings:
    """What the label files gave, before it is a label set."""

    labels: GroundLabels
    on_source: Mapping[str, Sequence[str]]
    """Source to the classes that are, or may be, on it."""
    digests: Sequence[str]
    """Of the recipe without places, and of the files used."""
    rejected: Sequence[Rejected]
    notes: Sequence[str]
    units: str = ""


def _places_of(sources: Sequence[Source]) -> str:
    """Say between which degrees sources lie: labels may be of another place, or of another CRS than they claim."""
    boxes = SourceBoxes(sources).boxes
    if not boxes:
        return "; no source has a CRS"
    # A box around the whole earth stands for one that is not known.
    known = [box for box in boxes if box != EVERYWHERE]
    if not known:
        return ""
    west, south = (min(box[side] for box in known) for side in (0, 1))
    east, north = (max(box[side] for box in known) for side in (2, 3))
    return f"; the sources lie at longitudes {west:.2f} to {east:.2f} and latitudes {south:.2f} to {north:.2f} degrees"


def check_class_count(classes: Sequence[str], path: str) -> None:
    """Refuse more classes than a byte a pixel tells apart.

    Raises:
        LabelError: there are too many; says some of them.
    """
    if len(classes) > KNOWN:
        raise LabelError(
            f"{path}: {len(classes)} classes ({', '.join(classes[:3])}, ...), at most {KNOWN} are learned; check that "
            "this is the column or band of classes, or merge some in `labels.classes`"
        )


def ground_label_set(found: GroundFindings, sources: Sequence[Source], *, per_pixel: bool, path: str) -> LabelSet:
    """Make the label set.

    Args:
        found: what the label files gave.
        sources: the catalog.
        per_pixel: whether pixels or tiles are learned.
        path: names the labels in errors.

    Raises:
        LabelError: no label file lies on a source, there is one class only, too many, or a name holds ``|``.
    """
    labels = found.labels
    counted = ", ".join(f"{count} {code}" for code, count in count_codes(found.rejected).items())
    if not labels.layers:
        # A file that was refused says itself what to do.
        remedy = "; check `labels.path`, `labels.match` and the CRS of both"
        if found.rejected:
            remedy = f"; the first is {found.rejected[0].uri}: {found.rejected[0].reason}"
        raise LabelError(
            f"no label in {path} lies on any of the {len(sources)} source(s){f' ({counted})' if counted else ''}"
            f"{'' if found.rejected else _places_of(sources)}{remedy}"
        )
    continuous = not labels.classes
    if not continuous:
        check_class_names(labels.classes)
        if len(labels.classes) < 2:
            raise LabelError(
                f"{path}: the labels have one class only ({', '.join(labels.classes)}); at least two are needed: name "
                "the others in `labels.classes`, or set `labels.background` for the ground beside it"
            )
    check_class_count(labels.classes, path)
    notes = [f"labels lie on {len(labels.layers)} source(s)", *found.notes]
    if counted:
        notes.append(f"label files not used, or not wholly: {counted} (see the quarantine table)")
    if missing := len(sources) - len(labels.layers):
        notes.append(f"{missing} of {len(sources)} source(s) have no label: kept for prediction, not trained on")
    names = sorted(labels.layers)
    rows = pd.DataFrame(
        {
            "source_id": pd.Series(names, dtype="str"),
            "frame": pd.Series(WHOLE_SOURCE, range(len(names)), dtype="int64"),
            "label": pd.Series([SEPARATOR.join(sorted(found.on_source.get(name, ()))) for name in names], dtype="str"),
            "group_id": pd.Series("", range(len(names)), dtype="str"),
        }
    )
    task = Task.CLASSIFICATION
    if per_pixel:
        task = Task.REGRESSION if continuous else Task.SEGMENTATION
    return LabelSet(
        rows=rows,
        classes=labels.classes,
        multi_label=labels.rule.multi_label,
        notes=tuple(notes),
        digest=digest_of_digests(found.digests),
        regions=labels,
        rejected=tuple(found.rejected),
        task=task,
        units=found.units,
    )
