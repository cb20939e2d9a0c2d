"""A champion that gives its values in other units is not compared by its numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.infer.pixel_cases import pixel_predictor
from vitpipe.infer.contest import _CannotCompare, _check_comparable
from vitpipe.manifest import Manifest
from vitpipe.records import Task


def test_values_of_other_units_cannot_be_compared(tmp_path: Path) -> None:
    champion = pixel_predictor(tmp_path, Task.REGRESSION)
    contract = champion.contract

    def manifest(units: str) -> Manifest:
        return Manifest(
            table=pd.DataFrame({"tile_id": np.array([], dtype=str)}),
            classes=contract.classes,
            multi_label=False,
            channels=contract.channels,
            units=contract.units,
            tile_size=contract.tiles.size,
            tiles_folder=tmp_path,
            digest="",
            notes=(),
            unlabelled=0,
            task=Task.REGRESSION,
            target_units=units,
        )

    _check_comparable(champion, manifest("t/ha"))
    with pytest.raises(_CannotCompare, match="other units of its values: t/ha there, kg/ha here"):
        _check_comparable(champion, manifest("kg/ha"))
    with pytest.raises(_CannotCompare, match="none here"):
        _check_comparable(champion, manifest(""))
