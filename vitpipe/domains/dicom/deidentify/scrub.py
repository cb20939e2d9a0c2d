"""Take the identity out of a data set, through all its sequences.

What the table of the profile names is done as it says. Of what it does not name, this goes: private elements, elements
of no dictionary, values that do not fit their VR or tag, names, dates, UIDs that are not the standard's, links, curves
and overlays, and every text but those that a machine writes (``tables/kept.txt``) and the known words of the others.
A text or defined term that stays is replaced where it holds a part of a name or an identifier of the same file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from pydicom import DataElement, Dataset
from pydicom.datadict import dictionary_has_tag, keyword_for_tag
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag

from vitpipe.domains.dicom.deidentify import values
from vitpipe.domains.dicom.deidentify.identity import (
    Patient,
    is_time,
    is_uid,
    replace_uid,
    shift_date,
    shift_datetime,
)
from vitpipe.domains.dicom.deidentify.options import Option
from vitpipe.domains.dicom.deidentify.private import keep_safe_private
from vitpipe.domains.dicom.deidentify.profile import TOP, Action, Profile, load_profile, load_words
from vitpipe.domains.dicom.deidentify.traces import parts_of
from vitpipe.domains.dicom.files import PARSE_ERRORS
from vitpipe.pseudonym import Pseudonymiser

_FIRST_GROUP: Final = 0x0008
_NEVER_WORDS: Final = frozenset({"PN", "UR", "AE"})
_PIXELS: Final = frozenset({"PixelData", "FloatPixelData", "DoubleFloatPixelData"})
_CODE_TAGS: Final = frozenset({0x00080100, 0x00080102, 0x00080104})
# The version of a coding scheme's list is a known date: moved, it would tell by how much the others were.
_PUBLIC_DATES: Final = frozenset({"ContextGroupVersion", "ContextGroupLocalVersion"})


_MAKERS: Final = frozenset({"Manufacturer", "ManufacturerModelName"})
# Without these no reader decodes or places the pixels; their terms are listed, so a name that equals one says nothing.
_TERMS: Final = {
    "PhotometricInterpretation": re.compile(r"MONOCHROME[12]|PALETTE COLOR|RGB|YBR_(FULL|FULL_422|ICT|RCT)"),
    "PatientPosition": re.compile(r"[HF]F(S|P|DR|DL)|[LR]F[SP]|[AP]FD[LR]"),
    "ImageType": re.compile(r"ORIGINAL|DERIVED|PRIMARY|SECONDARY|AXIAL|LOCALIZER|VOLUME|MIXED|NONE"),
}


@dataclass(frozen=True, slots=True)
class Subject:
    """What one file is, for the rules that depend on it."""

    patient: Patient
    sop_class: str
    traces: frozenset[str] = frozenset()
    """Parts of names and identifiers, which no text that stays may hold; see :mod:`.traces`."""


class Scrubber:
    """Applies the profile with a set of options under one key.

    Args:
        options: those in use.
        pseudonym: the key.
    """

    def __init__(self, options: frozenset[Option], pseudonym: Pseudonymiser) -> None:
        self._options = options
        self._pseudonym = pseudonym
        self._profile: Profile = load_profile()
        self._kept = load_words("kept.txt")
        self._removed = load_words("removed.txt")

    def scrub(self, dataset: Dataset, subject: Subject) -> None:
        """Take the identity out of a data set, in place.

        Raises:
            RecursionError: sequences are nested deeper than Python goes.
        """
        self._walk(dataset, TOP, subject)

    def _walk(self, dataset: Dataset, holder: int, subject: Subject) -> None:
        if Option.RETAIN_SAFE_PRIVATE in self._options:
            keep_safe_private(dataset)
        else:
            _remove_private(dataset)
        coded = values.clean_code(dataset, subject.traces) if holder != TOP else False
        for tag in list(dataset.keys()):
            if tag.is_private or (coded and int(tag) in _CODE_TAGS):
                continue
            element = _converted(dataset, tag)
            if element is None:
                del dataset[tag]
            else:
                self._apply(dataset, element, holder, subject)

    def _apply(self, dataset: Dataset, element: DataElement, holder: int, subject: Subject) -> None:
        tag = int(element.tag)
        place = (holder, subject.sop_class)
        keyword = keyword_for_tag(element.tag)
        if keyword in self._removed or not values.fits_dictionary(element):
            del dataset[element.tag]
        elif keyword in ("PatientName", "PatientID"):
            element.value = self._alias(keyword, element, holder, subject)
        else:
            action = self._profile.action(tag, place, self._options)
            if action == Action.CLEAN:
                action = self._clean(element, subject) or self._profile.basic(tag, place)
            if action is None:
                action = self._unlisted(element, keyword, place, subject)
            self._carry_out(dataset, element, action, subject)

    def _alias(self, keyword: str, element: DataElement, holder: int, subject: Subject) -> str:
        """Name the patient; in a sequence an ID may be another's (a twin, a donor), and its own pseudonym is given."""
        own = "/".join(values.texts(element)).strip()
        if holder == TOP or keyword == "PatientName" or not own:
            return subject.patient.alias
        return self._pseudonym("patient", own)

    def _carry_out(self, dataset: Dataset, element: DataElement, action: Action, subject: Subject) -> None:
        if action == Action.REMOVE:
            del dataset[element.tag]
        elif element.VR == "SQ":
            self._sequence(element, action, subject)
        elif action == Action.EMPTY or element.is_empty:
            element.value = element.empty_value
        elif action == Action.KEEP:
            self._keep(dataset, element, subject)
        elif element.VR == "UI":
            self._replace_uids(element)
        else:
            element.value = values.dummy(element.VR)

    def _sequence(self, element: DataElement, action: Action, subject: Subject) -> None:
        if action == Action.EMPTY:
            element.value = Sequence()
        elif action == Action.DUMMY:
            for item in element.value[1:]:
                element.value.remove(item)
            for item in element.value:
                self._make_dummy(item)
        else:
            # Kept, or kept for its UIDs: what stands in it is looked at one by one.
            for item in element.value:
                self._walk(item, int(element.tag), subject)

    def _make_dummy(self, item: Dataset) -> None:
        """Keep the shape of an item, and nothing of what it says."""
        _remove_private(item)
        for tag in list(item.keys()):
            element = _converted(item, tag)
            if element is None or not values.fits_dictionary(element):
                del item[tag]
            elif element.VR == "SQ":
                for nested in element.value:
                    self._make_dummy(nested)
            elif element.VR == "UI":
                self._replace_uids(element)
            else:
                element.value = values.dummy(element.VR)

    def _replace_uids(self, element: DataElement) -> None:
        found = [replace_uid(value, self._pseudonym) for value in values.texts(element)]
        element.value = found[0] if len(found) == 1 else found or None

    def _keep(self, dataset: Dataset, element: DataElement, subject: Subject) -> None:
        if element.VR == "AS":
            element.value = [values.cap_age(value) for value in values.texts(element)]
        elif element.VR == "UI" and not all(map(is_uid, values.texts(element))):
            self._replace_uids(element)
        elif not (values.fits_shape(element) and _fits_time(element)):
            del dataset[element.tag]
        elif _holds_trace(element, subject):
            # Whatever its type: a dummy is valid where a value is needed, and harmless where none is.
            element.value = values.dummy(element.VR)

    def _clean(self, element: DataElement, subject: Subject) -> Action | None:
        """Clean a value in place (C): moved dates, known words. None where nothing may stay: the basic action holds."""
        found = values.texts(element)
        cleaned: list[str | None] = []
        if element.VR in ("DA", "DT"):
            move = shift_date if element.VR == "DA" else shift_datetime
            public = keyword_for_tag(element.tag) in _PUBLIC_DATES
            cleaned = [None if public else move(value, subject.patient.weeks) for value in found if value]
        elif element.VR == "TM":
            cleaned = [value if is_time(value) else None for value in found if value]
        elif element.VR in values.TEXTS and Option.CLEAN_DESCRIPTORS in self._options:
            cleaned = [values.clean_text(value) or None for value in found]
        if not cleaned or None in cleaned:
            return None
        element.value = cleaned[0] if len(cleaned) == 1 else cleaned
        return Action.KEEP

    def _unlisted(self, element: DataElement, keyword: str, place: tuple[int, str], subject: Subject) -> Action:
        """Decide on what the table does not name."""
        vr, keep = element.VR, keyword in self._kept
        if vr in values.TIMES:
            keep = self._keep_time(element, subject)
        elif vr == "UI":
            return Action.KEEP if Option.RETAIN_UIDS in self._options else Action.REPLACE_UID
        elif vr in values.TEXTS:
            keep = keep or _keep_words(element)
        elif keyword in _PIXELS and place[0] != TOP:
            # A small picture of the picture: nobody judged its pixels.
            return Action.REMOVE
        elif vr == "OB":
            return Action.KEEP if keep else Action.REMOVE
        else:
            # Numbers, tags and defined terms.
            keep = True
        if keep:
            return Action.KEEP
        return self._profile.choose("X/Z/D", self._profile.type_of(int(element.tag), *place))

    def _keep_time(self, element: DataElement, subject: Subject) -> bool:
        if Option.RETAIN_FULL_DATES in self._options:
            return True
        return Option.RETAIN_DATES in self._options and self._clean(element, subject) is not None


def _holds_trace(element: DataElement, subject: Subject) -> bool:
    """Tell whether a text that would stay names somebody of the file; makers' names aside, who may share it."""
    texts = element.VR in values.TEXTS or element.VR == "CS"
    terms = _TERMS.get(keyword_for_tag(element.tag))
    if terms is not None and all(map(terms.fullmatch, values.texts(element))):
        return False
    return texts and keyword_for_tag(element.tag) not in _MAKERS and not subject.traces.isdisjoint(parts_of(element))


def _fits_time(element: DataElement) -> bool:
    """Tell whether dates and times are such; true for other values."""
    move = {"DA": shift_date, "DT": shift_datetime}.get(element.VR)
    found = [value for value in values.texts(element) if value]
    if move is not None:
        return all(move(value, 0) for value in found)
    return element.VR != "TM" or all(map(is_time, found))


def _keep_words(element: DataElement) -> bool:
    """Reduce a text to its known words, in place; false where none is left, or where it is a name or a link."""
    if element.VR in _NEVER_WORDS:
        return False
    known = [values.clean_text(value) for value in values.texts(element)]
    if any(known):
        element.value = known[0] if len(known) == 1 else known
    return any(known)


def _converted(dataset: Dataset, tag: BaseTag) -> DataElement | None:
    """Give an element as pydicom converts it; None where it does not convert or is none of a data set of an object."""
    if tag.group < _FIRST_GROUP or tag.element == 0 or not dictionary_has_tag(tag):
        return None
    try:
        element: Any = dataset[tag]
        # Numbers are read when they are asked for.
        _ = element.value
    except PARSE_ERRORS:
        return None
    found: DataElement = element
    return None if found.VR == "UN" else found


def _remove_private(dataset: Dataset) -> None:
    for tag in [tag for tag in dataset.keys() if tag.is_private]:  # noqa: SIM118
        del dataset[tag]
