"""pipeline.yaml: paths relative to the file, and errors that say what to write."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitpipe.config import PipelineConfig
from vitpipe.errors import ConfigError
from vitpipe.loading import load_config, parse_config

MINIMAL = """
name: ct
source: {kind: dicom, path: images}
labels: {kind: table, path: labels.csv, column: y}
model: {weights: {source: file, path: w.safetensors}}
register: {model: ct}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "pipeline.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep").mkdir()
    path = write(tmp_path / "deep", MINIMAL)
    monkeypatch.chdir(tmp_path)
    config = load_config(Path("deep/pipeline.yaml"))
    assert config == load_config(path) == load_config(path.parent)
    assert config.source.path == str(tmp_path / "deep" / "images")
    assert config.workspace == str(tmp_path / "deep" / "workspace")
    assert config.labels is not None
    assert getattr(config.labels, "path") == str(tmp_path / "deep" / "labels.csv")  # noqa: B009
    assert config.model is not None
    assert getattr(config.model.weights, "path") == str(tmp_path / "deep" / "w.safetensors")  # noqa: B009


def test_the_configuration_goes_through_json_unchanged(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, MINIMAL))
    assert parse_config(config.model_dump(mode="json"), origin="json") == config
    assert parse_config(config.model_dump(mode="json", by_alias=True), origin="json") == config
    assert config.digest() == PipelineConfig.model_validate(config.model_dump()).digest()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("tils: {size: 64}", "tils: unknown key; did you mean `tiles`?"),
        ("tiles: {siz: 64}", "tiles.siz: unknown key; did you mean `size`?"),
        ("tiles: {size: 64, stride: 65}", "stride 65 is larger than size 64"),
        ("split: {val: 0.5, test: 0.5}", "leaves no group to train on"),
        ("preprocess: {clip: [3, 1]}", "the lowest value 3 is not below the highest 1"),
        ("train: {epochs: 0}", "train.epochs: must be greater than or equal to 1 (found 0)"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_its_remedy(tmp_path: Path, change: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, f"{MINIMAL}{change}\n"))
    assert said in str(caught.value)


def test_an_unknown_key_within_a_source_names_the_keys_of_that_kind(tmp_path: Path) -> None:
    text = "name: x\nsource: {kind: geotiff, path: a, band: [B04]}\n"
    with pytest.raises(ConfigError, match=r"source\.band: unknown key; did you mean `bands`\?"):
        load_config(write(tmp_path, text))


def test_labels_need_a_model(tmp_path: Path) -> None:
    text = "name: x\nsource: {kind: dicom, path: a}\nlabels: {kind: folder}\n"
    with pytest.raises(ConfigError, match="labels are given but no model"):
        load_config(write(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "said"),
    [("[1, 2", r"is not YAML: .*line 1, column 6"), ("- a\n- b\n", "found a list"), ("", "found nothing")],
)
def test_what_is_no_pipeline_is_said_so(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(write(tmp_path, text))


def test_a_missing_file_names_the_command_that_writes_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="vitpipe init"):
        load_config(tmp_path)
