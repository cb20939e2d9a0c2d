"""Read single header values leniently: an optional value that does not parse is absent, a needed one is an error."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sized
from datetime import date
from typing import Any

from pydicom import Dataset
from pydicom.multival import MultiValue

from vitpipe.domains.dicom.files import PARSE_ERRORS
from vitpipe.records import Attribute

_OLDEST_AGE = 90.0
"""Ages of 90 and more are identifying: HIPAA's safe harbour lumps them."""
_TEXT_LIMIT = 64
_SEVERAL = (list, MultiValue)
_DAYS = {"D": 1.0, "W": 7.0, "M": 365.25 / 12, "Y": 365.25}


def text(dataset: Dataset, keyword: str) -> str | None:
    """Give a value as stripped text; several values joined by ``/``; None where absent or empty."""
    value = value_of(dataset, keyword)
    # Most values are plain texts; to ask whether one is a `MultiValue` costs more than all the rest.
    if type(value) is not str:
        if value is None:
            return None
        value = "/".join(str(item) for item in value) if isinstance(value, _SEVERAL) else str(value)
    return value.strip(" \x00") or None


def numbers(dataset: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    """Give exactly `count` finite numbers, or None."""
    value = value_of(dataset, keyword)
    if value is None:
        return None
    values = value if isinstance(value, _SEVERAL) else (value,)
    if len(values) != count:
        return None
    try:
        found = tuple(map(float, values))
    except (TypeError, ValueError):
        return None
    return found if all(map(math.isfinite, found)) else None


def number(dataset: Dataset, keyword: str) -> float | None:
    """Give one finite number, or None."""
    found = numbers(dataset, keyword, 1)
    return found[0] if found else None


def children(dataset: Dataset, keyword: str) -> Iterator[Dataset]:
    """Iterate over the items of a sequence; nothing where it is absent."""
    value = value_of(dataset, keyword)
    if value is not None and not isinstance(value, str | bytes | int | float):
        yield from value


def value_of(dataset: Dataset, keyword: str) -> Any:  # noqa: ANN401
    """Give a value as pydicom converts it, or None where it is absent or does not convert."""
    try:
        return dataset.get(keyword)
    except PARSE_ERRORS:
        return None


def is_empty(dataset: Dataset, keyword: str) -> bool:
    """Tell whether an element is absent or has no value; False where it has one that does not convert."""
    try:
        value = dataset.get(keyword)
    except PARSE_ERRORS:
        return False
    return value is None or (isinstance(value, Sized) and not len(value))


def acquired_year(dataset: Dataset) -> str | None:
    """Give the year of the acquisition: a date says more than a study's reader may know."""
    for keyword in ("AcquisitionDateTime", "AcquisitionDate", "ContentDate", "SeriesDate", "StudyDate"):
        value = text(dataset, keyword)
        if value and _is_number(value[:4]) and 1900 <= int(value[:4]) <= 2200:
            return value[:4]
    return None


def age_years(dataset: Dataset) -> float | None:
    """Give the patient's age in years at the study, 90 and more as 90."""
    stated = text(dataset, "PatientAge")
    years = None
    if stated and len(stated) <= 4 and _is_number(stated[:-1]) and stated[-1] in _DAYS:
        years = round(int(stated[:-1]) * _DAYS[stated[-1]] / _DAYS["Y"], 2)
    else:
        born, seen = (_date(text(dataset, key)) for key in ("PatientBirthDate", "StudyDate"))
        if born and seen and seen >= born:
            years = float(math.floor((seen - born).days / _DAYS["Y"]))
    return None if years is None else min(years, _OLDEST_AGE)


def _is_number(value: str) -> bool:
    # Text of another character set may hold digits that `int` does not take, such as superscripts.
    return value.isascii() and value.isdigit()


def _date(value: str | None) -> date | None:
    if value is None or len(value) != 8 or not _is_number(value):
        return None
    try:
        return date(int(value[:4]), int(value[4:6]), int(value[6:]))
    except ValueError:
        return None


def attributes(dataset: Dataset) -> dict[str, Attribute]:
    """Give the subgroup columns: who, which machine, how; None where the file does not say."""

    def short(keyword: str) -> str | None:
        value = text(dataset, keyword)
        return value[:_TEXT_LIMIT] if value else None

    sex = (text(dataset, "PatientSex") or "").upper()
    return {
        "sex": sex if sex in ("M", "F", "O") else None,
        "age_years": age_years(dataset),
        "modality": short("Modality"),
        "manufacturer": short("Manufacturer"),
        "model_name": short("ManufacturerModelName"),
        "body_part": short("BodyPartExamined"),
        "view_position": short("ViewPosition"),
        "kvp": number(dataset, "KVP"),
        "slice_thickness_mm": number(dataset, "SliceThickness"),
        "convolution_kernel": short("ConvolutionKernel"),
        "magnetic_field_t": number(dataset, "MagneticFieldStrength"),
    }
