"""The stage from logits to the report, on made-up runs."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from evaluate_cases import Case, config_of, make_case
from PIL import Image
from sklearn.metrics import balanced_accuracy_score

from vitpipe.errors import ConfigError, ContractError
from vitpipe.evaluate.calibration import load_calibration
from vitpipe.evaluate.evaluation import EvaluationSummary, evaluate
from vitpipe.evaluate.report_gallery import choose, middle_slice, short_group, shown_channels, thumbnail, window_of
from vitpipe.learn import baselines

Judge = Callable[[Case], EvaluationSummary]
METRICS = {"accuracy", "balanced_accuracy", "macro_f1", "auroc", "average_precision", "brier", "nll", "ece"}


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> Judge:
    def run(case: Case) -> EvaluationSummary:
        monkeypatch.setattr(baselines, "fit_baselines", lambda *_: case.baselines)
        return evaluate(case.config, case.manifest, case.run_folder, case.workspace)

    return run


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, EvaluationSummary]:
    """One run, judged once for the tests that only look."""
    case = make_case(tmp_path_factory.mktemp("whole"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baselines, "fit_baselines", lambda *_: case.baselines)
        return case, evaluate(case.config, case.manifest, case.run_folder, case.workspace)


def metrics_of(case: Case) -> dict:
    return json.loads((case.run_folder / "metrics.json").read_text(encoding="utf-8"))


def test_a_run_is_judged_with_all_that_belongs_to_it(done: tuple[Case, EvaluationSummary]) -> None:
    case, summary = done
    numbers = metrics_of(case)
    for level in ("tile", "source", "group"):
        assert set(numbers[level]) == METRICS
        assert numbers[level]["accuracy"]["n_groups"] == 40
        for name in ("majority", "pixels"):
            assert set(numbers["baselines"][name][level]) == METRICS
    assert [numbers[level]["accuracy"]["n"] for level in ("tile", "source", "group")] == [240, 120, 40]
    assert numbers["group"]["accuracy"]["design_effect"] == 1.0
    assert numbers["tile"]["accuracy"]["design_effect"] > 1.0
    assert 0 < numbers["tile"]["ece"]["null_95"] < 0.2
    assert np.array(numbers["confusion"]["tile"]["counts"]).sum() == 240
    assert {item["attribute"] for item in numbers["subgroups"]} == {"sex", "age_years", "site"}
    assert numbers["beats_baseline"]["majority"] == "better"
    assert numbers["conformal"]["coverage"]["estimate"] > 0.8
    assert "The model beats" in summary.verdict
    assert summary.headline[0][0] == "model"
    assert summary.summary.done == 240
    assert len(case.workspace.test_ledger.read_text(encoding="utf-8").splitlines()) == 1


def test_the_predictions_are_what_the_saved_calibration_makes_of_the_logits(
    done: tuple[Case, EvaluationSummary],
) -> None:
    case, _ = done
    table = pd.read_parquet(case.run_folder / "predictions.parquet")
    logits = pd.read_parquet(case.run_folder / "logits.parquet").set_index("tile_id").loc[table["tile_id"]]
    record = load_calibration(case.run_folder / "model")
    p = table[["p_cat", "p_dog", "p_owl"]].to_numpy()
    assert p.dtype == np.float64
    assert np.array_equal(p, record.probabilities(logits.filter(like="logit_").to_numpy()))
    assert table["tile_id"].is_monotonic_increasing
    assert set(table["split"]) == {"val", "calibration", "test"}
    assert (table["predicted"] == np.array(["cat", "dog", "owl"])[p.argmax(axis=1)]).all()
    sets = ["|".join(np.array(["cat", "dog", "owl"])[row]) for row in record.prediction_sets(p)]
    assert table["conformal_set"].tolist() == sets
    assert (table["abstain"] == (table["conformal_set"].str.count(r"\|") != 0) | (table["conformal_set"] == "")).all()
    assert {"sex", "age_years", "site"} <= set(table.columns)
    test = table.loc[table["split"] == "test"]
    found = metrics_of(case)["tile"]["balanced_accuracy"]["estimate"]
    assert found == pytest.approx(balanced_accuracy_score(test["label"], test["predicted"]))


def test_the_same_inputs_are_judged_once_and_other_inputs_again(tmp_path: Path, judged: Judge) -> None:
    case = make_case(tmp_path, groups=80, per_group=3)
    judged(case)
    before = os.stat(case.run_folder / "predictions.parquet").st_mtime_ns
    again = judged(case)
    assert again.summary.skipped == 1
    assert os.stat(case.run_folder / "predictions.parquet").st_mtime_ns == before
    other = replace(case, config=config_of(tmp_path, level="tile"))
    assert judged(other).level == "tile"
    # A run that was killed before metrics.json is judged again, with the same bytes.
    contents = {path.name: path.read_bytes() for path in case.run_folder.iterdir() if path.is_file()}
    (case.run_folder / "metrics.json").unlink()
    judged(other)
    assert {path.name: path.read_bytes() for path in case.run_folder.iterdir() if path.is_file()} == contents


def test_the_report_stands_alone_and_names_no_one(done: tuple[Case, EvaluationSummary]) -> None:
    case, _ = done
    page = (case.run_folder / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert not re.findall(r"(?:src|href)=['\"](?!data:)", page)
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", page).replace("http-equiv", "")
    assert page.count("data:image/png;base64,") == 24
    said = re.findall("<img alt='tile said to be (?:cat|dog|owl)(, labelled (?:cat|dog|owl))?' ", page)
    assert (len(said), sum(map(bool, said))) == (24, 16)
    assert page.count("<img ") == len(re.findall("<img alt='[^']+'", page))
    for heading in ("Numbers by level", "Beside trivial baselines", "Confusion", "By class", "Ranking", "Subgroups"):
        assert f"<h2>{heading}</h2>" in page
    assert "Training</h2>" in page
    assert str(case.workspace.root) not in page
    assert not any(group in page for group in case.manifest.table["group_id"].unique())
    card = (case.run_folder / "model_card.md").read_text(encoding="utf-8")
    for part in ("Intended use", "Data", "Training", "Numbers on the test split", "Limits", "Digests"):
        assert f"## {part}" in card
    assert case.manifest.digest in card


def test_a_model_that_knows_nothing_is_said_to_be_no_better_than_guessing(tmp_path: Path, judged: Judge) -> None:
    case = make_case(tmp_path, groups=80, skill=0.0)
    summary = judged(case)
    assert summary.baselines["majority"] != "better"
    assert "cannot be told from always guessing" in summary.verdict or "is worse than" in summary.verdict
    assert "class='top warn'" in (case.run_folder / "report.html").read_text(encoding="utf-8") or (
        "class='top bad'" in (case.run_folder / "report.html").read_text(encoding="utf-8")
    )


def test_a_multi_label_run_is_judged_by_its_own_numbers(tmp_path: Path, judged: Judge) -> None:
    case = make_case(tmp_path, groups=80, multi_label=True, level="tile")
    summary = judged(case)
    numbers = metrics_of(case)
    assert summary.metric == "macro_f1"
    assert numbers["conformal"] is None
    assert numbers["confusion"]["tile"] is None
    table = pd.read_parquet(case.run_folder / "predictions.parquet")
    test = table.loc[table["split"] == "test"]
    assert numbers["tile"]["accuracy"]["estimate"] == pytest.approx((test["label"] == test["predicted"]).mean())
    assert (table["conformal_set"] == "").all()


def test_few_groups_and_a_class_missing_from_the_test_split_are_said(tmp_path: Path, judged: Judge) -> None:
    case = make_case(tmp_path, groups=32)
    table = case.manifest.table
    table.loc[(table["split"] == "test") & (table["label"] == "owl"), "label"] = "cat"
    judged(case)
    numbers = metrics_of(case)
    assert numbers["per_class"]["group"]["owl"]["recall"]["estimate"] is None
    assert numbers["per_class"]["group"]["owl"]["support"] == 0
    notes = " ".join(numbers["notes"])
    assert "8 groups, fewer than 20" in notes
    assert "nothing of owl" in notes
    assert numbers["group"]["balanced_accuracy"]["estimate"] is not None


def test_a_subgroup_that_no_source_has_stops_before_the_test_split_is_used(tmp_path: Path, judged: Judge) -> None:
    case = make_case(tmp_path, subgroups=["vendor"])
    with pytest.raises(ConfigError, match="names `vendor`"):
        judged(case)
    assert not case.workspace.test_ledger.exists()
    assert not (case.run_folder / "metrics.json").exists()


def test_logits_that_do_not_fit_are_refused(tmp_path: Path, judged: Judge) -> None:
    case = make_case(tmp_path)
    path = case.run_folder / "logits.parquet"
    logits = pd.read_parquet(path)
    logits.iloc[1:].to_parquet(path)
    with pytest.raises(ContractError, match="they are not the same"):
        judged(case)
    logits.assign(logit_0=np.nan).to_parquet(path)
    with pytest.raises(ContractError, match="not finite"):
        judged(case)
    logits.drop(columns="logit_2").to_parquet(path)
    with pytest.raises(ContractError, match="2 columns of logits"):
        judged(case)
    path.unlink()
    with pytest.raises(ContractError, match="train the run first"):
        judged(case)


def test_of_a_volume_the_middle_slice_is_shown() -> None:
    pixels, valid = np.random.default_rng(0).random((1, 5, 4, 4), np.float32), np.ones((5, 4, 4), bool)
    valid[2, 0] = False
    shown, inside = middle_slice(pixels, valid)
    assert np.array_equal(shown, pixels[:, 2])
    assert np.array_equal(inside, valid[2])
    assert thumbnail(shown, inside) == thumbnail(*middle_slice(shown, inside))
    # Padded in depth: the middle of what is there.
    padded = np.zeros((8, 4, 4), bool)
    padded[:3] = True
    shown, inside = middle_slice(np.random.default_rng(0).random((1, 8, 4, 4), np.float32), padded)
    assert inside.all()


def test_the_gallery_takes_the_surest_errors_and_two_a_group_at_most() -> None:
    n = 60
    sure = np.linspace(0.55, 0.99, n)
    table = pd.DataFrame(
        {
            "tile_id": [f"t{index:02d}" for index in range(n)],
            "group_id": [f"g{index // 6}" for index in range(n)],
            "label": "a",
            "predicted": np.where(np.arange(n) % 2, "a", "b"),
            "p_a": np.where(np.arange(n) % 2, sure, 1 - sure),
            "p_b": np.where(np.arange(n) % 2, 1 - sure, sure),
        }
    )
    chosen = choose(table, ("a", "b"))
    errors = chosen.loc[~chosen["hit"]]
    assert len(errors) == 16
    assert errors["group_id"].value_counts().max() == 2
    assert errors["tile_id"].iloc[0] == "t58"
    assert errors["probability"].is_monotonic_decreasing
    assert chosen["hit"].sum() == 8


def test_thumbnails_show_colour_where_there_is_and_hide_what_is_not_valid() -> None:
    import io

    from PIL import Image

    assert shown_channels(("B02", "B03", "B04", "B08")) == [2, 1, 0]
    assert shown_channels(("HU",)) == [0]
    # Slices beside the centre are no colours.
    assert shown_channels(("HU-1", "HU", "HU+1")) == [1]
    assert shown_channels(("r-1", "g-1", "b-1", "r", "g", "b", "r+1", "g+1", "b+1")) == [3, 4, 5]
    assert shown_channels(("VV", "VH")) == [0]
    pixels = np.linspace(-1000, 1000, 32 * 32, dtype=np.float32).reshape(1, 32, 32)
    valid = np.ones((32, 32), dtype=bool)
    valid[:, 16:] = False
    image = np.asarray(Image.open(io.BytesIO(thumbnail(pixels, valid))))
    assert image.shape == (160, 160, 4)
    assert (image[:, :80, 3] == 255).all()
    assert (image[:, 80:, 3] == 0).all()
    assert image[0, 0, 0] == 0
    assert image[-1, 79, 0] == 255
    blank = np.asarray(Image.open(io.BytesIO(thumbnail(pixels, np.zeros((32, 32), dtype=bool)))))
    assert (blank[..., 3] == 0).all()


def test_tiles_are_shown_in_one_window_and_noise_stays_dark() -> None:
    assert window_of((0.0, 300.0), "HU", {"int16"}) == (0.0, 300.0)
    assert window_of(None, "HU", {"int16"}) == (-160.0, 240.0)
    assert window_of(None, "dn", {"uint8"}) == (0.0, 255.0)
    assert window_of(None, "reflectance", {"float32"}) is None
    noise = np.random.default_rng(0).integers(0, 9, (1, 32, 32)).astype(np.float32)
    png = thumbnail(noise, np.ones((32, 32), dtype=bool), (0.0, 255.0))
    assert np.asarray(Image.open(io.BytesIO(png)))[..., :3].max() < 10


def test_a_group_is_a_short_pseudonym_or_a_place() -> None:
    assert short_group("0123456789abcdef") == "012345"
    assert short_group("ground--3-58") == "ground--3-58"
