"""From ``pipeline.yaml`` to a :class:`vitpipe.config.PipelineConfig` with absolute paths."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pydantic
import yaml

from vitpipe.config import FileWeights, PipelineConfig, Recipe, TableLabels
from vitpipe.errors import ConfigError

_MISSING = "missing"
_EXTRA = "extra_forbidden"


def load_config(path: Path) -> PipelineConfig:
    """Read a pipeline file; every path in it is relative to the file.

    Raises:
        ConfigError: the file is missing, is no YAML, or does not fit; the text names each key and what to write.
    """
    if path.is_dir():
        path = path / "pipeline.yaml"
    if not path.is_file():
        raise ConfigError(f"no pipeline file at {path}; `vitpipe init FOLDER` writes one")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected keys such as `name:` and `source:`, found {type(values).__name__}")
    return resolve_paths(parse_config(values, origin=str(path)), path.resolve().parent)


def parse_config(values: Mapping[str, object], *, origin: str) -> PipelineConfig:
    """Check a mapping.

    Args:
        values: as YAML or JSON gave it.
        origin: where it is from, for the error.

    Raises:
        ConfigError: it does not fit.
    """
    try:
        return PipelineConfig.model_validate(values)
    except pydantic.ValidationError as error:
        lines = "\n".join(f"  {line}" for line in _explain(error))
        raise ConfigError(f"{origin} does not fit:\n{lines}") from error


def resolve_paths(config: PipelineConfig, base: Path) -> PipelineConfig:
    """Make every path of the configuration absolute, relative ones below `base`."""

    def absolute(text: str) -> str:
        return str((base / Path(text).expanduser()).resolve())

    changes: dict[str, object] = {
        "source": config.source.model_copy(update={"path": absolute(config.source.path)}),
        "workspace": absolute(config.workspace),
    }
    if isinstance(config.labels, TableLabels):
        changes["labels"] = config.labels.model_copy(update={"path": absolute(config.labels.path)})
    if config.model is not None and isinstance(config.model.weights, FileWeights):
        weights = config.model.weights.model_copy(update={"path": absolute(config.model.weights.path)})
        changes["model"] = config.model.model_copy(update={"weights": weights})
    return config.model_copy(update=changes)


def _explain(error: pydantic.ValidationError) -> Iterator[str]:
    for item in error.errors(include_url=False, include_context=False):
        place = [str(part) for part in item["loc"]]
        key = ".".join(place) or "the file"
        if item["type"] == _EXTRA:
            known = sorted(_known_keys(place[:-1]))
            near = difflib.get_close_matches(place[-1], known, n=1)
            remedy = f"did you mean `{near[0]}`?" if near else f"known keys here: {', '.join(known)}"
            yield f"{key}: unknown key; {remedy}"
        elif item["type"] == _MISSING:
            yield f"{key}: missing; it must be given"
        else:
            message = item["msg"].removeprefix("Value error, ")
            shown = "" if isinstance(item["input"], dict | list) else f" (found {item['input']!r})"
            yield f"{key}: {message}{shown}"


def _known_keys(place: list[str]) -> set[str]:
    """Give the keys that may stand at a place such as ``["source", "dicom"]`` (a union shows its tag in the place)."""
    models: list[type[Recipe]] = [PipelineConfig]
    for part in place:
        deeper: list[type[Recipe]] = []
        for model in models:
            for name, field in model.model_fields.items():
                if part in (name, field.alias):
                    deeper.extend(_models_in(field.annotation))
        # A tag of a union (`dicom`) is no field: it selects among the models found so far.
        tagged = [model for model in models if part in _tags(model)]
        models = deeper or tagged or models
    return {field.alias or name for model in models for name, field in model.model_fields.items()}


def _models_in(annotation: object) -> Iterator[type[Recipe]]:
    if isinstance(annotation, type) and issubclass(annotation, Recipe):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models_in(argument)


def _tags(model: type[Recipe]) -> set[object]:
    return {field.default for name, field in model.model_fields.items() if name in ("kind", "source")}
