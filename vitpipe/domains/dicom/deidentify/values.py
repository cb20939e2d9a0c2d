"""Single values: dummies by VR, values that do not fit their VR, texts reduced to known words, and codes."""

from __future__ import annotations

import functools
import re
from typing import Any, Final

from pydicom import DataElement, Dataset
from pydicom.datadict import dictionary_VR
from pydicom.multival import MultiValue

from vitpipe.domains.dicom.deidentify.profile import load_vocabulary
from vitpipe.domains.dicom.fields import text

DUMMY_TEXT: Final = "ANONYMIZED"
TEXTS: Final = frozenset({"LO", "SH", "ST", "LT", "UT", "UC", "UR", "PN", "AE"})
TIMES: Final = frozenset({"DA", "DT", "TM"})

_DUMMIES: Final[dict[str, Any]] = {
    **dict.fromkeys(("LO", "SH", "ST", "LT", "UT", "UC", "PN"), DUMMY_TEXT),
    **dict.fromkeys(("US", "SS", "UL", "SL", "UV", "SV", "DS", "IS", "AT"), 0),
    **dict.fromkeys(("FL", "FD"), 0.0),
    **dict.fromkeys(("OB", "OW", "UN"), b"\0\0"),
    **dict.fromkeys(("OF", "OL"), b"\0" * 4),
    **dict.fromkeys(("OD", "OV"), b"\0" * 8),
    "AE": "ANON",
    "AS": "000Y",
    "CS": "ANON",
    "DA": "19000101",
    "DT": "19000101000000",
    "TM": "000000",
    "UR": "urn:anonymized",
}
# PS3.5 6.2: what a value of these VRs may look like. A name in the place of a number does not.
_SHAPES: Final = {
    "CS": re.compile(r"[A-Z0-9 _]{0,16}"),
    "DS": re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*|"),
    "IS": re.compile(r"\s*[+-]?\d+\s*|"),
    "AS": re.compile(r"\d{3}[DWMY]|"),
}
_AGE: Final = re.compile(r"(\d{3})([DWMY])")
_YEARS: Final = {"D": 365.25, "W": 365.25 / 7, "M": 12.0, "Y": 1.0}
_OLDEST_YEARS: Final = 90
_WORD: Final = re.compile(r"[A-Za-z0-9.]+")
_LENGTH_MM: Final = re.compile(r"\d{1,2}(\.\d{1,2})?(mm|cm)")
_SMALL_NUMBER: Final = re.compile(r"\d{1,3}")
# Coding schemes of the standard (PS3.16 table 8-1) and what their codes look like.
_SCHEMES: Final = {
    "DCM": re.compile(r"\d{6}|[A-Z]{1,10}"),
    "SCT": re.compile(r"\d{6,18}"),
    "SRT": re.compile(r"[A-Z]-[0-9A-F]{5}"),
    "SNM3": re.compile(r"[A-Z]-[0-9A-F]{5}"),
    "LN": re.compile(r"\d{1,5}-\d"),
    "RADLEX": re.compile(r"RID\d{1,6}"),
    "FMA": re.compile(r"\d{1,6}"),
    "NCIt": re.compile(r"C\d{1,6}"),
    "UMLS": re.compile(r"C\d{7}"),
    "UCUM": re.compile(r"[A-Za-z0-9/.*%^\[\]{}'_\-]{1,16}"),
    "MDC": re.compile(r"\d{1,7}"),
    "IBSI": re.compile(r"[0-9A-Z]{3,4}"),
}


def dummy(vr: str) -> Any:  # noqa: ANN401
    """Give the dummy of a VR (not of SQ and UI, which have none)."""
    return _DUMMIES[vr]


def fits_dictionary(element: DataElement) -> bool:
    """Tell whether an element has a VR that the dictionary gives its tag: a text in the place of a number does not."""
    try:
        wanted = dictionary_VR(element.tag)
    except KeyError:
        return False
    # pydicom leaves a VR such as `US or SS` open where the data set does not decide it.
    if element.VR in (wanted, *wanted.split(" or ")):
        return True
    numbers = {"US", "SS", "UL", "SL", "FL", "FD", "DS", "IS"}
    return element.VR in numbers and bool(numbers & set(wanted.split(" or ")))


def texts(element: DataElement) -> list[str]:
    """Give an element's values as texts."""
    if element.VM == 0:
        return []
    values = element.value if isinstance(element.value, MultiValue | list | tuple) else [element.value]
    return [value.decode("latin-1") if isinstance(value, bytes) else str(value) for value in values]


def fits_shape(element: DataElement) -> bool:
    """Tell whether the values look as the VR wants them; true for a VR without such a shape."""
    shape = _SHAPES.get(element.VR)
    return shape is None or all(shape.fullmatch(value) for value in _as_written(element))


def _as_written(element: DataElement) -> list[str]:
    values = element.value if isinstance(element.value, MultiValue | list | tuple) else [element.value]
    # Numbers know the text that they were read from; what is no text is a number in any case.
    return ["" if value is None else str(getattr(value, "original_string", value)) for value in values]


def cap_age(age: str) -> str:
    """Give an AS, of 90 years and more as ``090Y``: who is older is identifiable by age (HIPAA safe harbour)."""
    found = _AGE.fullmatch(age)
    if not found:
        return ""
    old = int(found[1]) / _YEARS[found[2]] >= _OLDEST_YEARS
    return f"{_OLDEST_YEARS:03d}Y" if old else age


def clean_text(value: str) -> str:
    """Keep of a text the words of the vocabulary and lengths such as ``5mm``, nothing else.

    A name, a number of a record, a date or a comment has no such word: what is left says which part of the body and
    which technique, as far as a fixed list of words knows it. A small number that stands alone is kept too.
    """
    if _SMALL_NUMBER.fullmatch(value.strip()):
        return value.strip()
    known = load_vocabulary()
    words = _WORD.findall(value.replace("_", " "))
    return " ".join(word for word in words if word.lower() in known or _LENGTH_MM.fullmatch(word.lower()))


@functools.cache
def _meanings() -> dict[tuple[str, str], str]:
    from pydicom.sr import _concepts_dict

    concepts: Any = _concepts_dict.concepts
    return {
        (scheme, code): stated[0]
        for scheme, names in concepts.items()
        for found in names.values()
        for code, stated in found.items()
    }


def clean_code(item: Dataset, traces: frozenset[str] = frozenset()) -> bool:
    """Make a coded entry safe: a code of a scheme of the standard stays and gets the scheme's own meaning.

    Source: PS3.3 section 8. A private scheme's code and meaning are free texts of a site.

    Args:
        item: a data set; changed.
        traces: parts of names and identifiers of the file, in lower case: no code may hold one.

    Returns:
        Whether it is a coded entry, so that its elements were dealt with.
    """
    scheme, code = text(item, "CodingSchemeDesignator"), text(item, "CodeValue")
    if scheme is None or code is None or "CodeMeaning" not in item:
        return False
    shape = _SCHEMES.get(scheme)
    # Many a name and number looks like a code; one that the scheme lists says nothing.
    listed = shape is not None and (scheme, code) in _meanings()
    named = not traces.isdisjoint(re.findall(r"[^\W_]+", code.lower()))
    if not listed and (shape is None or not shape.fullmatch(code) or named):
        item.CodingSchemeDesignator, item.CodeValue, item.CodeMeaning = "99ANON", "ANON", DUMMY_TEXT
    else:
        item.CodeMeaning = _meanings().get((scheme, code)) or clean_text(str(item.CodeMeaning)) or DUMMY_TEXT
    # The designator of a version may be any text; without it the newest is meant.
    for keyword in ("CodingSchemeVersion", "LongCodeValue", "URNCodeValue"):
        if keyword in item:
            delattr(item, keyword)
    return True
