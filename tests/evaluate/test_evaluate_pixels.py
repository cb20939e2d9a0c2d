"""Models of pixels: exact numbers against counting by hand, intervals, baselines, and the stage as a whole."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pixel_cases import CLASSES, PixelCase, add_baseline, make_pixel_case
from sklearn import metrics as sklearn_metrics

from vitpipe.config import GateRecipe, RegisterRecipe
from vitpipe.config.judging import MetricName
from vitpipe.errors import ConfigError, ContractError
from vitpipe.evaluate.calibration import load_calibration
from vitpipe.evaluate.evaluation import EvaluationSummary, evaluate
from vitpipe.evaluate.pixels.sums import group_numbers, pool_sums, statistic_of, tile_sums
from vitpipe.records import Level, Task


@pytest.fixture(scope="module")
def segmented(tmp_path_factory: pytest.TempPathFactory) -> tuple[PixelCase, EvaluationSummary]:
    made = make_pixel_case(tmp_path_factory.mktemp("segmentation"))
    generator = np.random.default_rng(7)
    add_baseline(made, "majority", np.broadcast_to(np.array([1, 0, 0.0])[None, :, None, None], made.said.shape).copy())
    add_baseline(made, "unet", made.said + generator.normal(0, 2.5, made.said.shape))
    return made, judge(made)


@pytest.fixture(scope="module")
def regressed(tmp_path_factory: pytest.TempPathFactory) -> tuple[PixelCase, EvaluationSummary]:
    made = make_pixel_case(tmp_path_factory.mktemp("regression"), task=Task.REGRESSION)
    add_baseline(made, "mean", np.full(made.said.shape, 6.0))
    return made, judge(made)


def judge(made: PixelCase) -> EvaluationSummary:
    case = made.case
    return evaluate(case.config, case.manifest, case.run_folder, case.workspace)


def numbers_of(made: PixelCase) -> dict:
    return json.loads((made.case.run_folder / "metrics.json").read_text(encoding="utf-8"))


def test_the_numbers_of_tiles_are_those_of_their_pixels(segmented: tuple[PixelCase, EvaluationSummary]) -> None:
    made, _ = segmented
    _, truth, said = made.of_split("test")
    known = truth != 255
    y, p = truth[known], said.argmax(axis=1)[known]
    numbers = numbers_of(made)
    expected = {
        "accuracy": sklearn_metrics.accuracy_score(y, p),
        "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(y, p),
        "macro_f1": sklearn_metrics.f1_score(y, p, average="macro"),
        "mean_iou": sklearn_metrics.jaccard_score(y, p, average="macro"),
    }
    for name, value in expected.items():
        assert numbers["tile"][name]["estimate"] == pytest.approx(value, abs=1e-12)
    iou = sklearn_metrics.jaccard_score(y, p, average=None)
    for index, name in enumerate(CLASSES):
        found = numbers["per_class"]["tile"][name]
        assert found["iou"]["estimate"] == pytest.approx(iou[index])
        assert found["support"] == int((y == index).sum())
    assert numbers["confusion"]["tile"]["counts"] == sklearn_metrics.confusion_matrix(y, p).tolist()
    assert numbers["pixels"] == y.size


def test_by_group_every_group_counts_once(segmented: tuple[PixelCase, EvaluationSummary]) -> None:
    made, _ = segmented
    table, truth, said = made.of_split("test")
    right = truth == said.argmax(axis=1)
    shares = [
        right[rows][truth[rows] != 255].mean()
        for rows in (table["group_id"] == name for name in table["group_id"].unique())
    ]
    found = numbers_of(made)["group"]["accuracy"]
    assert found["estimate"] == pytest.approx(np.mean(shares))
    assert (found["n"], found["n_groups"], found["design_effect"]) == (30, 30, 1.0)
    # The interval is about that of a mean of independent groups.
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * np.std(shares, ddof=1) / np.sqrt(30), rel=0.2)
    of_tiles = numbers_of(made)["tile"]["accuracy"]
    assert of_tiles["n"] == 120
    assert of_tiles["design_effect"] > 1.3


def test_probabilities_are_judged_by_the_weighted_sample(segmented: tuple[PixelCase, EvaluationSummary]) -> None:
    made, _ = segmented
    case = made.case
    sample = pd.read_parquet(case.run_folder / "pixel_sample.parquet")
    sample = sample.loc[sample["split"] == "test"]
    calibration = load_calibration(case.run_folder / "model")
    p = calibration.probabilities(sample[["logit_0", "logit_1", "logit_2"]].to_numpy(np.float64))
    y, w = sample["truth"].to_numpy(), sample["weight"].to_numpy()
    numbers = numbers_of(made)["tile"]
    nll = np.average(-np.log(p[np.arange(len(y)), y]), weights=w)
    assert numbers["nll"]["estimate"] == pytest.approx(nll)
    assert numbers["brier"]["estimate"] == pytest.approx(np.average(((p - np.eye(3)[y]) ** 2).sum(axis=1), weights=w))
    areas = [sklearn_metrics.roc_auc_score(y == k, p[:, k], sample_weight=w) for k in range(3)]
    assert numbers["auroc"]["estimate"] == pytest.approx(np.mean(areas))
    precisions = [sklearn_metrics.average_precision_score(y == k, p[:, k], sample_weight=w) for k in range(3)]
    assert numbers["average_precision"]["estimate"] == pytest.approx(np.mean(precisions))
    # The sample stands for all labelled pixels.
    _, truth, said = made.of_split("test")
    everything = calibration.probabilities(np.moveaxis(said, 1, -1)[truth != 255].astype(np.float64))
    known = truth[truth != 255]
    assert numbers["nll"]["estimate"] == pytest.approx(
        -np.log(everything[np.arange(known.size), known]).mean(), rel=0.08
    )
    # The logits are 1.8 times too sure of noise of deviation 1, and the calibration split shows it.
    assert calibration.temperature > 1.1


def test_by_source_the_sample_weighs_every_source_alike(segmented: tuple[PixelCase, EvaluationSummary]) -> None:
    made, _ = segmented
    sample = pd.read_parquet(made.case.run_folder / "pixel_sample.parquet")
    sample = sample.loc[sample["split"] == "test"]
    calibration = load_calibration(made.case.run_folder / "model")
    p = calibration.probabilities(sample[["logit_0", "logit_1", "logit_2"]].to_numpy(np.float64))
    loss = -np.log(p[np.arange(len(p)), sample["truth"]]) * sample["weight"]
    source = sample["tile_id"].str.split(":").str[0]
    means = loss.groupby(source).sum() / sample["weight"].groupby(source).sum()
    assert numbers_of(made)["source"]["nll"]["estimate"] == pytest.approx(means.mean())


def test_baselines_stand_beside_the_model(segmented: tuple[PixelCase, EvaluationSummary]) -> None:
    made, summary = segmented
    numbers = numbers_of(made)
    assert summary.baselines == {"majority": "better", "unet": "better"}
    assert "beats" in summary.verdict
    assert "U-Net of equal budget" in summary.verdict
    gap = numbers["baselines"]["unet"]["group_difference"]["mean_iou"]
    ours, theirs = (each["group"]["mean_iou"]["estimate"] for each in (numbers, numbers["baselines"]["unet"]))
    assert gap["estimate"] == pytest.approx(ours - theirs)
    assert gap["low"] < gap["estimate"] < gap["high"]
    assert summary.metric == "mean_iou"
    assert [row[0] for row in summary.headline] == ["model", "majority", "unet"]


def test_values_are_judged_by_their_errors(regressed: tuple[PixelCase, EvaluationSummary]) -> None:
    made, summary = regressed
    _, truth, said = made.of_split("test")
    known = np.isfinite(truth)
    y, p = truth[known].astype(np.float64), said[:, 0][known].astype(np.float64)
    numbers = numbers_of(made)
    expected = {
        "r2": sklearn_metrics.r2_score(y, p),
        "rmse": sklearn_metrics.root_mean_squared_error(y, p),
        "mae": sklearn_metrics.mean_absolute_error(y, p),
        "bias": (p - y).mean(),
        "pearson_r": np.corrcoef(y, p)[0, 1],
    }
    assert set(numbers["tile"]) == set(expected)
    for name, value in expected.items():
        assert numbers["tile"][name]["estimate"] == pytest.approx(value)
        assert numbers["tile"][name]["low"] < value < numbers["tile"][name]["high"]
    assert summary.metric == "r2"
    assert summary.baselines == {"mean": "better"}
    assert numbers["baselines"]["mean"]["tile"]["r2"]["estimate"] == pytest.approx(0, abs=0.05)
    assert numbers["baselines"]["mean"]["tile"]["pearson_r"]["estimate"] is None


@pytest.mark.parametrize("which", ["segmented", "regressed"])
def test_the_stage_leaves_all_that_belongs_to_it_and_judges_once(which: str, request: pytest.FixtureRequest) -> None:
    made, _ = request.getfixturevalue(which)
    case = made.case
    folder = case.run_folder
    for name in (
        "report.html",
        "model_card.md",
        "predictions.parquet",
        "error_blocks.geojson",
        "model/calibration.json",
    ):
        assert (folder / name).is_file(), name
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Errors on the ground" in page
    assert "By distance to the nearest training tile" in page
    assert ("Predicted and true values" if which == "regressed" else "Mean IoU") in page
    card = (folder / "model_card.md").read_text(encoding="utf-8")
    assert "every pixel of tiles" in card
    assert "| R² |" in card or "| Mean IoU |" in card
    table = pd.read_parquet(folder / "predictions.parquet")
    assert {"tile_id", "split", "labelled_px", "sex"} <= set(table.columns)
    assert judge(made).summary.skipped == 1


def test_a_scene_on_many_blocks_is_one_source_in_the_report(tmp_path: Path) -> None:
    made = make_pixel_case(tmp_path, groups=40)
    table = made.case.manifest.table.assign(source_id="one-scene")
    judge(replace(made, case=replace(made.case, manifest=replace(made.case.manifest, table=table))))
    page = (made.case.run_folder / "report.html").read_text(encoding="utf-8")
    assert "<td class='r'>10</td><td class='dim'>parts of 1 source</td>" in page
    assert "<td class='dim'>sources</td>" not in page


def test_errors_of_values_carry_their_unit_and_a_report_is_the_same_twice(tmp_path: Path) -> None:
    pages = []
    for name in ("one", "two"):
        made = make_pixel_case(tmp_path / name, task=Task.REGRESSION, groups=40)
        manifest = replace(made.case.manifest, target_units="t/ha")
        judge(replace(made, case=replace(made.case, manifest=manifest)))
        pages.append((made.case.run_folder / "report.html").read_text(encoding="utf-8"))
    assert pages[0] == pages[1]
    assert "RMSE (t/ha)" in pages[0]
    assert "their error: RMSE of labelled pixels (t/ha)" in pages[0]
    assert "R² (t/ha)" not in pages[0]


def test_where_the_model_errs_is_a_layer_and_a_curve(segmented: tuple[PixelCase, EvaluationSummary]) -> None:
    made, _ = segmented
    layer = json.loads((made.case.run_folder / "error_blocks.geojson").read_text())
    table, truth, said = made.of_split("test")
    assert len(layer["features"]) == table["group_id"].nunique()
    wrong = ((truth != said.argmax(axis=1)) & (truth != 255)).sum(axis=(1, 2))
    known = (truth != 255).sum(axis=(1, 2))
    for feature in layer["features"]:
        own = feature["properties"]
        rows = (table["group_id"] == own["group_id"]).to_numpy()
        assert own["error"] == pytest.approx(wrong[rows].sum() / known[rows].sum())
        assert own["low"] <= own["error"] <= own["high"]
        assert own["tiles"] == 4
    bins = numbers_of(made)["ground"]["by_distance"]
    assert [each["from_m"] for each in bins][1:] == [each["to_m"] for each in bins][:-1]
    assert sum(each["n"] for each in bins) == len(table)
    inside = (table["distance_to_train_m"] >= bins[1]["from_m"]) & (table["distance_to_train_m"] < bins[1]["to_m"])
    assert bins[1]["estimate"] == pytest.approx(wrong[inside].sum() / known[inside].sum())


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    made = make_pixel_case(tmp_path, groups=40)
    case = made.case
    table = pd.read_parquet(case.run_folder / "pixels.parquet")
    table.iloc[1:].to_parquet(case.run_folder / "pixels.parquet")
    with pytest.raises(ContractError, match="not the same"):
        judge(made)
    table.assign(counts=[np.zeros(4, np.int64)] * len(table)).to_parquet(case.run_folder / "pixels.parquet")
    with pytest.raises(ContractError, match="3 classes"):
        judge(made)
    table.to_parquet(case.run_folder / "pixels.parquet")
    wrong = replace(case, manifest=replace(case.manifest, task=Task.REGRESSION, classes=()))
    with pytest.raises(ContractError, match="another task"):
        judge(replace(made, case=wrong))
    (case.run_folder / "pixel_sample.parquet").unlink()
    with pytest.raises(ContractError, match="train the run first"):
        judge(made)


def gated(made: PixelCase, metric: MetricName | None) -> PixelCase:
    recipe = RegisterRecipe(model="made-up", gate=GateRecipe() if metric is None else GateRecipe(metric=metric))
    return replace(made, case=replace(made.case, config=made.case.config.model_copy(update={"registration": recipe})))


def test_the_gate_names_the_headline(segmented: tuple[PixelCase, EvaluationSummary], tmp_path: Path) -> None:
    from vitpipe.evaluate.headline import headline_metric

    made, _ = segmented
    manifest = made.case.manifest
    assert headline_metric(gated(made, "macro_f1").case.config, manifest) == "macro_f1"
    with pytest.raises(ConfigError, match=r"auroc.*mean_iou"):
        headline_metric(gated(made, "auroc").case.config, manifest)
    values = replace(manifest, task=Task.REGRESSION)
    assert headline_metric(gated(made, None).case.config, values) == "r2"
    assert headline_metric(gated(made, "rmse").case.config, values) == "rmse"
    tiles = replace(manifest, task=Task.CLASSIFICATION)
    with pytest.raises(ConfigError, match="mean_iou"):
        headline_metric(gated(made, "mean_iou").case.config, tiles)


CELLS = st.lists(st.integers(0, 5), min_size=9, max_size=9)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(CELLS, st.integers(0, 3)), min_size=2, max_size=12), st.randoms(use_true_random=False))
def test_neither_the_order_of_tiles_nor_how_pixels_are_cut_into_tiles_matters(
    tiles: list[tuple[list[int], int]], random: object
) -> None:
    table = pd.DataFrame(
        {
            "counts": [np.array(cells) + np.eye(3, dtype=int).ravel() for cells, _ in tiles],
            "group_id": [f"g{group}" for _, group in tiles],
            "source_id": [f"s{group}" for _, group in tiles],
        }
    )
    shuffled = table.iloc[list(np.random.default_rng(3).permutation(len(table)))].reset_index(drop=True)
    merged = table.groupby("group_id", as_index=False).agg({"counts": "sum", "source_id": "first"})
    manifest = type("Any", (), {"task": Task.SEGMENTATION, "classes": CLASSES})
    results = []
    for each in (table, shuffled, merged):
        numbered = group_numbers(each)
        for level in Level:
            units = pool_sums(each, tile_sums(each, manifest), level, numbered)  # type: ignore[arg-type]
            values = statistic_of(Task.SEGMENTATION, 3)(units)(np.ones((1, units.n_groups), np.int32))
            results.append({name: value[0] for name, value in values.items()})
    for level in range(3):
        for name, value in results[level].items():
            assert results[3 + level][name] == pytest.approx(value, nan_ok=True)
            assert results[6 + level][name] == pytest.approx(value, nan_ok=True)


def test_intervals_of_pixels_hold_as_often_as_they_say() -> None:
    """Groups differ; pixels of a group are alike. The truth is the mean over groups of the whole country."""
    from vitpipe.evaluate.assess import sample
    from vitpipe.evaluate.statistics import Sampling, interval

    generator = np.random.default_rng(11)
    held = 0
    make = statistic_of(Task.SEGMENTATION, 2)
    for _ in range(200):
        share = generator.beta(6, 2, 40)
        n = generator.integers(20, 400, 40)
        right = generator.binomial(n, share)
        sums = np.column_stack([n, right, right, 0 * n, n, 0 * n, right, n - right]).astype(np.float64)
        table = pd.DataFrame({"group_id": np.arange(40), "source_id": np.arange(40)})
        units = pool_sums(table, sums, Level.GROUP, group_numbers(table))
        found = sample(units, make(units), 400, 0)
        each = interval(
            float(found.estimates["accuracy"]), Sampling(found.draws["accuracy"], np.empty(0), 40, 40, 0.95)
        )
        assert each.low is not None
        assert each.high is not None
        held += each.low <= 0.75 <= each.high
    assert 0.9 <= held / 200 <= 0.985


def test_overlapping_tiles_are_said(tmp_path: Path) -> None:
    made = make_pixel_case(tmp_path, groups=40)
    judge(made)
    assert not any("overlap" in note for note in numbers_of(made)["notes"])
    table = made.case.manifest.table
    more = table.assign(labelled_px=table["labelled_px"] + (table["split"] == "test") * 5)
    judge(replace(made, case=replace(made.case, manifest=replace(made.case.manifest, table=more, digest="other"))))
    count = 5 * int((table["split"] == "test").sum())
    assert f"Tiles overlap, in {count} labelled pixels more than once" in " ".join(numbers_of(made)["notes"])
