"""What is said of input that lies far from what the model was trained on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vitpipe.infer.contract import RangeWatch


@pytest.mark.parametrize(
    ("value", "told"),
    [(0.0, 0), (5.0, 0), (40.0, 1)],
)
def test_a_channel_of_one_value_is_told_only_where_training_held_another(value: float, told: int) -> None:
    """A channel that was constant in training has its value as mean and 1 as deviation."""
    statistics = SimpleNamespace(mean=(value if not told else 5.0,), std=(1.0,), clip=None)
    contract: Any = SimpleNamespace(channels=("b8",), preprocessing=statistics, units="dn")
    watch = RangeWatch(contract)
    watch.add(np.full((2, 1, 4, 4), value, np.float32), np.ones((2, 4, 4), bool))
    assert len(watch.notes()) == told
