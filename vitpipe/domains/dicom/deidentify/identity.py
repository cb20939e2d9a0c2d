"""Who a file speaks of, under another name: keyed UIDs, keyed patient names, and the patient's own shift of dates.

All of it is a function of the identifier and the key alone: every worker and every later run finds the same, and no
table of pairs exists that could be lost or stolen.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final

from pydicom import Dataset

from vitpipe.domains.dicom.fields import text
from vitpipe.pseudonym import Pseudonymiser

_MOST_WEEKS: Final = 520
# A registered UID has short parts: a longer one, such as a date, is no UID of the standard.
_WELL_KNOWN: Final = re.compile(r"1\.2\.840\.10008(\.\d{1,4}){1,9}")
_UID: Final = re.compile(r"([0-9]+(\.[0-9]+)*)?")
_DATE: Final = re.compile(r"(\d{4})\.?(\d{2})\.?(\d{2})")
_DATETIME: Final = re.compile(r"(\d{4})(\d{2})?(\d{2})?(\d{2,6}(?:\.\d{1,6})?)?([+-]\d{4})?")
_TIME: Final = re.compile(r"\d{2}(:?\d{2}(:?\d{2}(\.\d{1,6})?)?)?")


@dataclass(frozen=True, slots=True)
class Patient:
    """What stands in the place of a patient."""

    alias: str
    """The keyed pseudonym: PatientID and PatientName of every file, and the patient's folder."""
    weeks: int
    """All dates are moved back by so many whole weeks, 1 to 520: the day of the week stays, and no time of day moves,
    so an examination over midnight keeps its length."""


def read_patient(dataset: Dataset, pseudonym: Pseudonymiser) -> Patient:
    """Find the patient of a file: by PatientID, or, where there is none, by the study alone.

    Returns:
        The same for all files of the patient. `alias` is what an ingest under the same key calls the group.
    """
    stated = text(dataset, "PatientID")
    kind, value = ("patient", stated) if stated else ("study_uid", text(dataset, "StudyInstanceUID") or "")
    number = int.from_bytes(pseudonym.mac(f"weeks of {kind}", value)[:8], "big")
    return Patient(pseudonym(kind, value), 1 + number % _MOST_WEEKS)


def is_well_known(uid: str) -> bool:
    """Tell whether a UID names something of the standard (a SOP class, a syntax, a coding scheme), never a person."""
    return _WELL_KNOWN.fullmatch(uid) is not None


def is_uid(value: str) -> bool:
    """Tell whether a text is a UID at all, or empty."""
    return _UID.fullmatch(value.strip(" \x00")) is not None


def replace_uid(uid: str, pseudonym: Pseudonymiser) -> str:
    """Give the UID that stands for `uid` everywhere: ``2.25.`` and a UUID of version 8 made of the keyed digest.

    Source: PS3.5 B.2; RFC 9562, section 5.8. 122 bits of HMAC-SHA256 tell UIDs apart.
    """
    stripped = uid.strip(" \x00")
    if not stripped or is_well_known(stripped):
        return stripped
    number = int.from_bytes(pseudonym.mac("uid", stripped)[:16], "big")
    number = number & ~(0xF << 76) | 8 << 76
    number = number & ~(0x3 << 62) | 2 << 62
    return f"2.25.{number}"


def shift_date(value: str, weeks: int) -> str | None:
    """Move a DA back by whole weeks; None where it is no date."""
    found = _DATE.fullmatch(value.strip(" \x00"))
    moved = _moved(found[1], found[2], found[3], weeks) if found else None
    return f"{moved.year:04d}{moved.month:02d}{moved.day:02d}" if moved else None


def shift_datetime(value: str, weeks: int) -> str | None:
    """Move a DT back by whole weeks, time of day and offset from UTC as they are; None where it is no date and time.

    A date without day or month is moved from its middle and stays as coarse as it was.
    """
    found = _DATETIME.fullmatch(value.strip(" \x00"))
    if not found:
        return None
    year, month, day, time, offset = found.groups()
    moved = _moved(year, month or "07", day or "15", weeks)
    if moved is None:
        return None
    parts = [f"{moved.year:04d}", f"{moved.month:02d}" if month else "", f"{moved.day:02d}" if day else ""]
    return "".join([*parts, time or "", offset or ""])


def is_time(value: str) -> bool:
    """Tell whether a TM is one: a time of day stays as it is where dates are moved."""
    return _TIME.fullmatch(value.strip(" \x00")) is not None


def _moved(year: str, month: str, day: str, weeks: int) -> date | None:
    try:
        return date(int(year), int(month), int(day)) - timedelta(weeks=weeks)
    except (ValueError, OverflowError):
        return None
