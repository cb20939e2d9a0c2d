"""What the report shows of the worst, the middle and the best tiles of a model of pixels."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from evaluate_cases import config_of
from numpy.typing import NDArray
from PIL import Image

from tests.learn.learn_cases import PixelCase, make_pixel_manifest
from vitpipe.errors import ContractError
from vitpipe.evaluate.calibration import Calibration
from vitpipe.evaluate.judged import Judged
from vitpipe.evaluate.palette import colours
from vitpipe.evaluate.pixels.evaluation import tile_table
from vitpipe.evaluate.pixels.gallery import choose, pixel_gallery, tile_errors
from vitpipe.evaluate.pixels.tables import read_tiles
from vitpipe.learn.pixel_tables import write_pixel_tables
from vitpipe.pixel_targets import IGNORE, PixelTargets
from vitpipe.records import Task
from vitpipe.store import TileStore
from vitpipe.workspace import Workspace

RIGHT, WRONG = (199, 221, 236), (213, 94, 0)
PICTURE = re.compile(r"<img alt='([^']*)' src='data:image/png;base64,([^']*)'")


def by_brightness(tiles: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Say the class that the first channel shows, but always `a` in the left half of a tile."""
    found = np.clip(np.round((tiles[:, 0] - 100) / 40), 0, 2).astype(int)
    found[..., : found.shape[-1] // 2] = 0
    return np.moveaxis(np.eye(3, dtype=np.float32)[found], -1, 1)


def values(tiles: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
    return (1000 + 25 * (tiles[:, :1] - 100) / 40).astype(np.float32)


def judged_of(root: Path, case: PixelCase, predict: object, units: str = "") -> Judged:
    manifest = replace(make_pixel_manifest(root, case), target_units=units)
    write_pixel_tables(root / "run", manifest, TileStore(manifest.tiles_folder), predict)
    tiles = read_tiles(root / "run", manifest)
    plain = Calibration.plain(manifest.classes, 0.1)
    table = tile_table(tiles, manifest)
    return Judged(config_of(root), manifest, root / "run", Workspace(root), plain, table, {}, {})


def pictures(page: str) -> list[tuple[str, NDArray[np.uint8]]]:
    found = PICTURE.findall(page)
    return [(alt, np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))) for alt, data in found]


def test_the_four_pictures_say_what_is_right_wrong_and_not_known(tmp_path: Path) -> None:
    judged = judged_of(tmp_path, PixelCase(labelled=0.3), by_brightness)
    page = pixel_gallery(judged, by_brightness)
    shown = pictures(page)
    assert len(shown) == 10 * 4
    palette = np.array(colours(["a", "b", "c"]))
    for at in range(0, len(shown), 4):
        (_, image), (about, truth), (_, said), (_, differing) = shown[at : at + 4]
        assert image.shape == truth.shape == said.shape == differing.shape == (160, 160, 4)
        known = truth[..., 3] > 0
        assert 0.1 < known.mean() < 0.4
        assert about.startswith("reference: ")
        assert (differing[..., 3] > 0).tolist() == known.tolist()
        right = (truth == said).all(axis=-1)
        assert (differing[known & right][:, :3] == RIGHT).all()
        assert (differing[known & ~right][:, :3] == WRONG).all()
        # The left half is said to be `a`, where there is a pixel at all.
        left = said[:, :80][said[:, :80, 3] > 0][:, :3]
        assert (left == palette[0]).all()
        assert ((said[..., 3] > 0) == (image[..., 3] > 0)).all()
    for name in ("a", "b", "c", "right", "wrong", "not labelled, or not valid"):
        assert f"</i>{name}</span>" in page
    assert str(tmp_path) not in page


def test_of_a_volume_the_slice_with_the_most_labels_is_shown(tmp_path: Path) -> None:
    judged = judged_of(tmp_path, PixelCase(tiles=24, size=8, depth=3, labelled=0.5), by_brightness)
    shown = pictures(pixel_gallery(judged, by_brightness))
    assert len(shown) == 4 * 4
    test = judged.predictions.loc[judged.predictions["split"] == "test"]
    chosen = choose(test, tile_errors(test, judged.manifest))
    rows = judged.manifest.table.set_index("tile_id").loc[chosen["tile_id"]]
    targets = PixelTargets(tmp_path / "targets", Task.SEGMENTATION, (3, 8, 8)).gather(rows)
    most = (targets != IGNORE).sum(axis=(2, 3)).max(axis=1)
    # Each pixel of a slice of 8 x 8 is shown 20 times as large.
    assert [(truth[..., 3] > 0).sum() / 400 for _, truth in shown[1::4]] == most.tolist()


def test_few_logits_are_held_at_once_and_the_pictures_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = judged_of(tmp_path, PixelCase(labelled=0.3), by_brightness)
    asked: list[int] = []

    def counted(tiles: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        asked.append(len(tiles))
        return by_brightness(tiles, valid)

    whole = pixel_gallery(judged, counted)
    monkeypatch.setattr("vitpipe.evaluate.pixels.gallery._LOGIT_BYTES", 4 * 3 * 20 * 20 * 4)
    assert pixel_gallery(judged, counted) == whole
    assert asked == [10, 4, 4, 2]


def test_where_tiles_overlap_the_difference_is_of_the_pixels_that_count(tmp_path: Path) -> None:
    case = PixelCase(tiles=12, size=16)
    manifest = make_pixel_manifest(tmp_path, case)
    # Two tiles of the test split, the second half a tile to the right of the first.
    table = manifest.table.assign(source_id="one", split="test", row=20 * np.arange(12), col=0)
    table.loc[1, ["row", "col"]] = (0, 8)
    manifest = replace(manifest, table=table)
    write_pixel_tables(tmp_path / "run", manifest, TileStore(manifest.tiles_folder), by_brightness)
    tiles = tile_table(read_tiles(tmp_path / "run", manifest), manifest)
    plain = Calibration.plain(manifest.classes, 0.1)
    judged = Judged(config_of(tmp_path), manifest, tmp_path / "run", Workspace(tmp_path), plain, tiles, {}, {})
    page = pixel_gallery(judged, by_brightness)
    assert "Tiles overlap:" in page
    counts = [int(number) for number in re.findall(r" (\d+) labelled pixels", page)]
    # Each pixel is shown 10 times as large.
    assert counts == [(differing[..., 3] > 0).sum() / 100 for _, differing in pictures(page)[3::4]]
    assert min(counts) < 0.8 * 256


def test_values_have_one_scale_with_its_unit_and_errors_an_even_one(tmp_path: Path) -> None:
    judged = judged_of(tmp_path, PixelCase(labelled=0.5, task=Task.REGRESSION), values, "kg/m²")
    page = pixel_gallery(judged, values)
    assert "Values 1000 <i class='ramp'" in page
    assert "1050 kg/m²</span>" in page
    assert "Difference &minus;" in page
    assert "mean absolute error <b>" in page
    shown = pictures(page)
    assert len(shown) == 10 * 4
    (_, truth), (_, differing) = shown[1], shown[3]
    assert ((truth[..., 3] > 0) == (differing[..., 3] > 0)).all()
    assert len(np.unique(truth[truth[..., 3] > 0], axis=0)) <= 3


def test_tiles_are_chosen_by_what_they_get_wrong(tmp_path: Path) -> None:
    judged = judged_of(tmp_path, PixelCase(labelled=0.5), by_brightness)
    test = judged.predictions.loc[judged.predictions["split"] == "test"]
    errors = tile_errors(test, judged.manifest)
    cells = np.asarray(test["counts"].iloc[0]).reshape(3, 3)
    unions = [cells[k].sum() + cells[:, k].sum() - cells[k, k] for k in range(3)]
    expected = np.mean([cells[k, k] / unions[k] for k in range(3) if unions[k]])
    assert errors[0] == pytest.approx(1 - expected)


def test_few_labels_make_no_worst_tile_and_a_group_does_not_fill_a_row() -> None:
    test = pd.DataFrame(
        {
            "tile_id": [f"t{number:02d}" for number in range(20)],
            "group_id": ["one"] * 5 + [f"g{number}" for number in range(15)],
            "labelled_px": [100] * 19 + [3],
        }
    )
    errors = np.linspace(1, 0, 20)
    errors[19] = 2.0
    chosen = choose(test, errors)
    assert chosen.loc[chosen["kind"] == "worst", "tile_id"].tolist() == ["t00", "t01", "t05", "t06"]
    assert chosen.loc[chosen["kind"] == "best", "tile_id"].tolist() == ["t18", "t17", "t16", "t15"]
    assert set(chosen.loc[chosen["kind"] == "middle", "tile_id"]) <= {f"t{at:02d}" for at in range(7, 13)}
    assert chosen["tile_id"].is_unique
    few = choose(test.head(2), errors[:2])
    assert few["kind"].tolist() == ["worst", "worst"]


def test_targets_that_are_gone_are_said(tmp_path: Path) -> None:
    judged = judged_of(tmp_path, PixelCase(), by_brightness)
    (tmp_path / "targets" / "shard0.npy").unlink()
    with pytest.raises(ContractError, match=r"shard0\.npy cannot be mapped"):
        pixel_gallery(judged, by_brightness)
