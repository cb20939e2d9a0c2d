"""The name of a folder above the file is the class."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from vitpipe.config import FolderLabels
from vitpipe.errors import LabelError
from vitpipe.labels.base import LabelSet, frame_keys, make_label_set, unique_labels
from vitpipe.records import Source


def read_folder_labels(recipe: FolderLabels, sources: Sequence[Source]) -> LabelSet:
    """Take the class of each source from the folder `level` steps above its file, below the root of the data.

    Files with fewer folders above them are unlabelled.

    Raises:
        LabelError: no file lies that deep, there is one class only, or the files of one source lie in folders of two
            classes.
    """
    keys = frame_keys(sources, lambda source: source.keys.get("path", ()))
    deep = keys["key"].str.count("/") >= recipe.level
    if not deep.any():
        example = f", such as `{keys['key'].iloc[0]}`" if len(keys) else ""
        raise LabelError(
            f"no file lies {recipe.level} folder(s) below the root of the data{example}; put the files of each class "
            "into a folder of its name, or set `labels.level` to the folder that names the class (1: that of the file)"
        )
    # Counted from the file upwards: the last part is the file itself.
    folders = keys.loc[deep, "key"].str.rsplit("/", n=recipe.level + 1).str[-1 - recipe.level]
    rows = keys.loc[deep, ["source_id", "frame"]].assign(
        label=folders.astype("str"),
        group_id=pd.Series("", keys.index, dtype="str"),
    )
    rows = unique_labels(rows, "the folder names")
    origin = f"the names of the folders (`labels.level: {recipe.level}`)"
    return make_label_set(rows, rows["label"].unique().tolist(), sources, (), multi_label=False, origin=origin)
