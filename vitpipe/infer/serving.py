"""What a served model takes: a table of paths, an array of paths, or an array of tiles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from vitpipe.errors import ContractError

if TYPE_CHECKING:
    from vitpipe.infer.predictor import Predictor


def serve(predictor: Predictor, model_input: Any) -> pd.DataFrame:  # noqa: ANN401 - whatever a caller sends
    """Predict on what a caller sends.

    Args:
        predictor: the model.
        model_input: a DataFrame with the one column ``path``, an array of paths (N,), or tiles (N, C, H, W) (volumes:
            (N, C, D, H, W)) in physical units; JSON may give them as lists.

    Returns:
        A row a tile: predicted, p_<class>, conformal_set, abstain; for paths also the place of the tile, and ``input``,
        the number of the path.

    Raises:
        ContractError: the input is none of these, or does not fit the model.
    """
    if isinstance(model_input, pd.DataFrame):
        if list(model_input.columns) != ["path"]:
            found = ", ".join(map(str, model_input.columns))
            raise ContractError(f"expected a table with the one column `path`, found: {found}")
        model_input = model_input["path"].to_numpy()
    try:
        values = np.asarray(model_input)
    except ValueError as error:
        raise ContractError("the tiles are not all of one shape; give one array (N, C, H, W)") from error
    if values.ndim == 1 and len(values) and all(isinstance(value, str) for value in values):
        tables = [predictor.predict_path(str(value)).tiles.assign(input=number) for number, value in enumerate(values)]
        return pd.concat(tables, ignore_index=True)
    if values.dtype == object:
        # JSON gives numbers as objects.
        try:
            values = np.array(values.tolist(), dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise ContractError("expected paths, or tiles (N, C, H, W) of numbers of one shape") from error
    return predictor.predict_tiles(values).tiles
