"""The trivial baselines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from learn_cases import Case, make_manifest

from vitpipe.learn.baselines import _block_features, fit_baselines, majority
from vitpipe.store import TileStore


def test_majority_says_the_shares_of_the_train_split(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path / "tiles", Case(tiles=97, classes=("a", "b", "c")))
    train = manifest.table.loc[manifest.table["split"] == "train", "label"]
    table = majority(manifest)
    assert table["p_0"].nunique() == 1
    assert table.loc[0, ["p_0", "p_1", "p_2"]].tolist() == [(train == name).mean() for name in manifest.classes]
    assert set(table["tile_id"]) == set(manifest.table.loc[manifest.table["split"] != "train", "tile_id"])


@pytest.mark.parametrize("multi_label", [False, True])
def test_pixels_find_what_pixels_show_and_repeat(tmp_path: Path, multi_label: bool) -> None:
    case = Case(tiles=200, classes=("a", "b", "c"), multi_label=multi_label)
    manifest = make_manifest(tmp_path / "tiles", case)
    first = fit_baselines(manifest, TileStore(manifest.tiles_folder), 0)["pixels"]
    assert first.equals(fit_baselines(manifest, TileStore(manifest.tiles_folder), 0)["pixels"])
    joined = first.merge(manifest.table, on="tile_id")
    judged = joined[["p_0", "p_1", "p_2"]].to_numpy()
    if multi_label:
        truth = np.stack([[name in label.split("|") for label in joined["label"]] for name in case.classes], 1)
        # The middle one of three brightnesses is no half-space: 0.87; the shares alone reach 0.78.
        assert ((judged > 0.5) == truth).mean() > 0.83
    else:
        assert np.allclose(judged.sum(1), 1)
        assert (np.array(case.classes)[judged.argmax(1)] == joined["label"]).mean() > 0.9


def test_features_take_valid_pixels_alone() -> None:
    tiles = np.random.default_rng(0).normal(5, 2, (3, 2, 24, 24)).astype(np.float32)
    valid = np.ones((3, 24, 24), bool)
    valid[:, :, 12:] = False
    valid[2] = False
    other = np.where(valid[:, None], tiles, 1e6).astype(np.float32)
    features = _block_features(other, valid)
    assert np.array_equal(features, _block_features(np.where(valid[:, None], tiles, 0).astype(np.float32), valid))
    inside = tiles[0, 1][valid[0]].astype(np.float64)
    assert np.isclose(features[0, 1], inside.mean())
    assert np.isclose(features[0, 3], inside.std())
    # Median of the second channel: nearest rank.
    assert np.isclose(features[0, 4 + 5 + 2], np.sort(inside)[round((len(inside) - 1) * 0.5)])
    assert (features[2] == 0).all()
