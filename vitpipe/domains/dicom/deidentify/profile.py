"""Table E.1-1 of PS3.15: which attribute is removed, emptied, replaced or kept, by option and by its type."""

from __future__ import annotations

import csv
import enum
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vitpipe.domains.dicom.deidentify.options import COLUMNS, Option

_TABLES: Final = Path(__file__).with_name("tables")
_CLASS_ROOT: Final = "1.2.840.10008.5.1.4.1.1."
_CURVES: Final = range(0x5000, 0x5020, 2)
_OVERLAYS: Final = range(0x6000, 0x6020, 2)

TOP: Final = 0
"""Stands for "in no sequence" where a tag of the sequence that holds an attribute is asked for."""


class Action(enum.StrEnum):
    """What is done to an attribute (PS3.15 table E.1-1a)."""

    DUMMY = "D"
    EMPTY = "Z"
    REMOVE = "X"
    KEEP = "K"
    CLEAN = "C"
    REPLACE_UID = "U"


@dataclass(frozen=True, slots=True)
class Profile:
    """The table, and the types by which its choices are made."""

    rows: Mapping[int, Mapping[str, str]]
    top_types: Mapping[tuple[int, str], str]
    nested_types: Mapping[tuple[int, int], str]

    def row(self, tag: int) -> Mapping[str, str] | None:
        """Give the row of a tag; None where the table does not name it."""
        return self.rows.get(tag)

    def type_of(self, tag: int, holder: int, sop_class: str) -> str | None:
        """Give an attribute's type, ``1``, ``1C``, ``2``, ``2C`` or ``3``; None where it is not known.

        Args:
            tag: the attribute.
            holder: the sequence that it stands in, or ``TOP``.
            sop_class: of the object.
        """
        if holder == TOP:
            return self.top_types.get((tag, sop_class.removeprefix(_CLASS_ROOT)))
        return self.nested_types.get((tag, holder))

    def choose(self, choice: str, kind: str | None) -> Action:
        """Choose among actions such as ``X/Z/D`` by the attribute's type.

        Type 1 needs a value, type 2 an empty one, type 3 nothing; a conditional type counts as if its condition held.
        Of an attribute whose type is not known the choice is the one that type 1 needs: the object stays valid, and the
        value goes in any case.

        ``X/Z/U*`` stands at sequences of references: they are always kept and their UIDs replaced, so that files still
        know each other, in a way that says nothing.
        """
        if choice.endswith("*"):
            return Action.REPLACE_UID
        allowed = [Action(item) for item in choice.split("/")]
        wanted = {"3": Action.REMOVE, "2": Action.EMPTY, "2C": Action.EMPTY}.get(kind or "1", allowed[-1])
        return wanted if wanted in allowed else allowed[0] if wanted == Action.REMOVE else allowed[-1]

    def action(self, tag: int, place: tuple[int, str], options: frozenset[Option]) -> Action | None:
        """Give what the profile and the options want of an attribute; None where the table does not name it.

        Keeping goes before cleaning, cleaning before the basic action; where dates are moved, all of them are.

        Args:
            tag: the attribute.
            place: the sequence that it stands in (or ``TOP``), and the SOP class of the object.
            options: those in use.
        """
        row = self.row(tag)
        if row is None:
            return Action.REMOVE if tag >> 16 in _CURVES or tag >> 16 in _OVERLAYS else None
        # Beside dates that are moved, one that is kept (a scanner calibrated on the same day) tells by how much.
        if Option.RETAIN_DATES in options and row[COLUMNS[Option.RETAIN_DATES]] == Action.CLEAN:
            return Action.CLEAN
        asked = {row[COLUMNS[option]] for option in options}
        for stronger in (Action.KEEP, Action.CLEAN):
            if stronger in asked:
                return stronger
        return self.basic(tag, place)

    def basic(self, tag: int, place: tuple[int, str]) -> Action:
        """Give the basic action of an attribute that the table names; see :meth:`action`."""
        return self.choose(self.rows[tag]["basic"], self.type_of(tag, *place))


@functools.cache
def load_profile() -> Profile:
    """Read the tables that come with the package."""
    # The rows of curves, overlays and private attributes are no single tags: they are removed by their groups.
    rows = {
        int(row["tag"], 16): row for row in _read("profile.tsv") if "x" not in row["tag"] and row["tag"] != "private"
    }
    top: dict[tuple[int, str], str] = {}
    nested: dict[tuple[int, int], str] = {}
    for row in _read("types.tsv"):
        for holder in row["holders"].split():
            if row["place"] == "top":
                top[int(row["tag"], 16), holder] = row["type"]
            else:
                nested[int(row["tag"], 16), int(holder, 16)] = row["type"]
    return Profile(rows, top, nested)


@functools.cache
def load_vocabulary() -> frozenset[str]:
    """Read the words that a cleaned description may keep, in lower case."""
    lines = (_TABLES / "vocabulary.txt").read_text(encoding="ascii").splitlines()
    return frozenset(word for line in lines if not line.startswith("#") for word in line.split())


@functools.cache
def load_words(name: str) -> frozenset[str]:
    """Read a list of keywords, one a line; the rest of a line is its reason."""
    lines = (_TABLES / name).read_text(encoding="ascii").splitlines()
    return frozenset(line.split()[0] for line in lines if line and not line.startswith("#"))


def _read(name: str) -> Iterator[dict[str, str]]:
    with (_TABLES / name).open(encoding="ascii", newline="") as stream:
        yield from csv.DictReader((line for line in stream if not line.startswith("#")), delimiter="\t")
