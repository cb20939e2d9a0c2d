"""Labels: from tables and folder names to rows that say which class a source, or a frame of it, belongs to."""

from __future__ import annotations

from collections.abc import Sequence

from vitpipe.config import LabelRecipe, TableLabels
from vitpipe.labels.base import LabelSet
from vitpipe.labels.folder import read_folder_labels
from vitpipe.labels.table import read_table_labels
from vitpipe.pseudonym import Pseudonymiser
from vitpipe.records import Source

__all__ = ["LabelSet", "read_labels"]


def read_labels(recipe: LabelRecipe, sources: Sequence[Source], pseudonym: Pseudonymiser) -> LabelSet:
    """Read the labels of a catalog.

    Raises:
        ConfigError: the label table is not there.
        LabelError: the labels do not fit the sources; the sentence names what was found and what to do.
    """
    if isinstance(recipe, TableLabels):
        return read_table_labels(recipe, sources, pseudonym)
    return read_folder_labels(recipe, sources)
