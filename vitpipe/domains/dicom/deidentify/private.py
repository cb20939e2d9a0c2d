"""Private elements that the standard knows to be safe (PS3.15 E.3.10): numbers of scanners, such as a b-value."""

from __future__ import annotations

import csv
import functools
from pathlib import Path

from pydicom import Dataset
from pydicom.tag import Tag

from vitpipe.domains.dicom.deidentify import values
from vitpipe.domains.dicom.files import PARSE_ERRORS


@functools.cache
def _safe() -> dict[tuple[int, str, int], str]:
    path = Path(__file__).with_name("tables") / "safe_private.tsv"
    with path.open(encoding="ascii", newline="") as stream:
        rows = csv.DictReader((line for line in stream if not line.startswith("#")), delimiter="\t")
        return {(int(row["group"], 16), row["creator"], int(row["element"], 16)): row["vr"] for row in rows}


def keep_safe_private(dataset: Dataset) -> None:
    """Remove all private elements of one level but the safe ones and the creators of their blocks, in place.

    A safe element whose VR or value is not what the table says goes too: a name may stand in its place.
    """
    kept: set[int] = set()
    for tag in [tag for tag in dataset.keys() if tag.is_private]:  # noqa: SIM118
        if tag.element > 0xFF and _is_safe(dataset, int(tag)):
            kept |= {int(tag), tag.group << 16 | tag.element >> 8}
    for tag in [tag for tag in dataset.keys() if tag.is_private]:  # noqa: SIM118
        if int(tag) not in kept:
            del dataset[tag]


def _is_safe(dataset: Dataset, tag: int) -> bool:
    group, element = tag >> 16, tag & 0xFFFF
    try:
        creator = str(dataset[Tag(group, element >> 8)].value).strip()
        found = dataset[Tag(tag)]
        return _safe().get((group, creator, element & 0xFF)) == found.VR and values.fits_shape(found)
    except PARSE_ERRORS:
        return False
