"""The options of the Basic Application Level Confidentiality Profile (PS3.15 E.3), and how a file states them."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Final

from pydicom import Dataset

from vitpipe.errors import ConfigError


class Option(enum.StrEnum):
    """What may be kept or cleaned beyond the profile. The values are those of the command line."""

    RETAIN_DATES = "retain-dates"
    """Longitudinal temporal information with modified dates: all dates of a patient are moved by the same weeks."""
    RETAIN_FULL_DATES = "retain-full-dates"
    """Longitudinal temporal information as it is."""
    RETAIN_DEVICE = "retain-device"
    RETAIN_INSTITUTION = "retain-institution"
    RETAIN_CHARACTERISTICS = "retain-characteristics"
    RETAIN_UIDS = "retain-uids"
    RETAIN_SAFE_PRIVATE = "retain-safe-private"
    CLEAN_DESCRIPTORS = "clean-descriptors"


COLUMNS: Final = {
    Option.RETAIN_DATES: "shifted_dates",
    Option.RETAIN_FULL_DATES: "full_dates",
    Option.RETAIN_DEVICE: "device",
    Option.RETAIN_INSTITUTION: "institution",
    Option.RETAIN_CHARACTERISTICS: "characteristics",
    Option.RETAIN_UIDS: "uids",
    Option.RETAIN_SAFE_PRIVATE: "safe_private",
    Option.CLEAN_DESCRIPTORS: "descriptors",
}
"""The column of the table that an option reads."""

# PS3.16 CID 7050, De-identification Method.
_PROFILE: Final = ("113100", "Basic Application Confidentiality Profile")
_CLEAN_PIXELS: Final = ("113101", "Clean Pixel Data Option")
_CODES: Final = {
    Option.CLEAN_DESCRIPTORS: ("113105", "Clean Descriptors Option"),
    Option.RETAIN_FULL_DATES: ("113106", "Retain Longitudinal Temporal Information Full Dates Option"),
    Option.RETAIN_DATES: ("113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
    Option.RETAIN_CHARACTERISTICS: ("113108", "Retain Patient Characteristics Option"),
    Option.RETAIN_DEVICE: ("113109", "Retain Device Identity Option"),
    Option.RETAIN_UIDS: ("113110", "Retain UIDs Option"),
    Option.RETAIN_SAFE_PRIVATE: ("113111", "Retain Safe Private Option"),
    Option.RETAIN_INSTITUTION: ("113112", "Retain Institution Identity Option"),
}
_METHOD: Final = "vitpipe: PS3.15 E.1-1 Basic Application Confidentiality Profile"


def options_from(names: Iterable[str]) -> frozenset[Option]:
    """Read names of options.

    Raises:
        ConfigError: a name is not known, or two options say the opposite.
    """
    known = {item.value: item for item in Option}
    asked = list(names)
    for name in asked:
        if name not in known:
            raise ConfigError(f"the option {name!r} is not known; known are {', '.join(known)}")
    found = frozenset(known[name] for name in asked)
    if {Option.RETAIN_DATES, Option.RETAIN_FULL_DATES} <= found:
        raise ConfigError("retain-dates moves the dates and retain-full-dates does not; give one of them")
    return found


def state_method(dataset: Dataset, options: frozenset[Option], *, pixels_cleaned: bool) -> None:
    """Write into a data set what was done to it: PatientIdentityRemoved, method, codes, what became of the times.

    Source: PS3.15 E.1.1, PS3.3 C.7.1.1, C.12.1 (Longitudinal Temporal Information Modified).

    Args:
        dataset: the top level of the object; changed.
        options: exactly those that were used.
        pixels_cleaned: the pixels were masked, or looked at and found without text.
    """
    codes = [_PROFILE, *([_CLEAN_PIXELS] if pixels_cleaned else [])]
    codes += sorted(_CODES[option] for option in options)
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = _METHOD
    dataset.DeidentificationMethodCodeSequence = [_code(value, meaning) for value, meaning in codes]
    if Option.RETAIN_FULL_DATES in options:
        dataset.LongitudinalTemporalInformationModified = "UNMODIFIED"
    else:
        dataset.LongitudinalTemporalInformationModified = "MODIFIED" if Option.RETAIN_DATES in options else "REMOVED"


def _code(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
    return item
