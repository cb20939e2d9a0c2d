"""From ``pipeline.yaml`` to a :class:`vitpipe.config.PipelineConfig` with absolute paths."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pydantic
import yaml

from vitpipe.config import (
    FileWeights,
    PipelineConfig,
    RasterLabels,
    Recipe,
    RegionLabelRecipe,
    SourceRecipe,
    StacSource,
    TableLabels,
    VectorLabels,
)
from vitpipe.config.address import is_address
from vitpipe.errors import ConfigError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_MISSING = "missing"
_EXTRA = "extra_forbidden"
_NO_TAG = "union_tag_not_found"
_WRONG_TAG = "union_tag_invalid"
_NO_KEYS = "model_attributes_type"
_KINDS: dict[type, str] = {type(None): "nothing", list: "a list", int: "a number", float: "a number"}


def load_config(path: Path) -> PipelineConfig:
    """Read a pipeline file; every path in it is relative to the file.

    Raises:
        ConfigError: the file is missing, is no YAML, or does not fit; the text names each key and what to write.
    """
    if path.is_dir():
        path = path / "pipeline.yaml"
    if not path.is_file():
        raise ConfigError(f"no pipeline file at {path}; `vitpipe init FOLDER` writes one")
    return resolve_paths(parse_config(_read_keys(path), origin=str(path)), path.resolve().parent)


def load_source(path: Path) -> SourceRecipe:
    """Read the source of a pipeline file, or of a file that holds nothing else; paths are relative to the file.

    Raises:
        ConfigError: the file is no YAML, names no source, or its source does not fit.
    """
    values = _read_keys(path)
    if "source" not in values:
        raise ConfigError(f"{path}: no `source:`; write one as in a pipeline file, such as source: {{kind: stac, ...}}")
    config = parse_config({"name": "source", "source": values["source"]}, origin=str(path))
    return resolve_paths(config, path.resolve().parent).source


def _read_keys(path: Path) -> dict[str, object]:
    """Read a YAML file of keys.

    Raises:
        ConfigError: it cannot be read, or is no such file.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise ConfigError(f"{path} is not YAML: {error.problem or error.context}{place}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); give this user access") from error
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path}: expected keys such as `name:` and `source:`, found {_KINDS.get(type(values), 'text')}"
        )
    return values


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

    # Without a path, what is fetched goes into the workspace.
    place = config.source.path
    source: dict[str, object] = {"path": absolute(place) if place and not is_address(place) else place}
    if isinstance(config.source, StacSource) and "://" not in config.source.url:
        source["url"] = absolute(config.source.url)
    changes: dict[str, object] = {
        "source": config.source.model_copy(update=source),
        "workspace": absolute(config.workspace),
    }
    if isinstance(config.labels, TableLabels | RegionLabelRecipe):
        places = {"path": absolute(config.labels.path)}
        if isinstance(config.labels, TableLabels | RasterLabels | VectorLabels) and config.labels.aoi is not None:
            places["aoi"] = absolute(config.labels.aoi)
        changes["labels"] = config.labels.model_copy(update=places)
    if config.model is not None and isinstance(config.model.weights, FileWeights):
        weights = config.model.weights.model_copy(update={"path": absolute(config.model.weights.path)})
        changes["model"] = config.model.model_copy(update={"weights": weights})
    return config.model_copy(update=changes)


def _explain(error: pydantic.ValidationError) -> Iterator[str]:
    for item in error.errors(include_url=False):
        place = [str(part) for part in item["loc"]]
        models, key = _walk(place)
        shown = ".".join(key) or "the file"
        if item["type"] == _EXTRA:
            models, _ = _walk(place[:-1])
            known = sorted({field.alias or name for model in models for name, field in model.model_fields.items()})
            yield f"{shown}: unknown key; {_nearest(place[-1], known, 'known keys here')}"
        elif item["type"] == _MISSING:
            yield f"{shown}: missing; it must be given"
        elif item["type"] in (_NO_TAG, _WRONG_TAG, _NO_KEYS):
            yield f"{shown}{_explain_kind(item, sorted({tag for model in models for tag in _tags(model)}))}"
        else:
            message = item["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
            found = "" if isinstance(item["input"], dict | list) else f" (found {item['input']!r})"
            yield f"{shown}: {message.partition(', unable')[0]}{found}"


def _explain_kind(item: ErrorDetails, known: list[str]) -> str:
    """Say what is wrong with a place that takes one of several kinds, or with a place that takes keys."""
    context = item.get("ctx", {})
    kinds = f"write one of: {', '.join(known)}"
    if item["type"] == _WRONG_TAG:
        tag = str(context["tag"])
        return f".{str(context['discriminator']).strip(chr(39))}: unknown {tag!r}; {_nearest(tag, known, 'known')}"
    if item["type"] == _NO_TAG:
        return f".{str(context['discriminator']).strip(chr(39))}: missing; {kinds}"
    return f": expected keys below it, found {item['input']!r}" + (
        f"; its kinds are: {', '.join(known)}" if known else ""
    )


def _nearest(word: str, known: list[str], otherwise: str) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean `{near[0]}`?" if near else f"{otherwise}: {', '.join(known)}"


def _walk(place: list[str]) -> tuple[list[type[Recipe]], list[str]]:
    """Go down to a place such as ``["source", "dicom", "path"]``, in which pydantic names the kind that was chosen.

    Returns:
        The models that may stand there, and the place as it is in the file: without the kinds.
    """
    models: list[type[Recipe]] = [PipelineConfig]
    key: list[str] = []
    for part in place:
        fields = [
            field for model in models for name, field in model.model_fields.items() if part in (name, field.alias)
        ]
        # A tag of a union (`dicom`) is no field: it selects among the models found so far.
        tagged = [model for model in models if part in _tags(model)]
        if fields or not tagged:
            key.append(part)
        models = [model for field in fields for model in _models_in(field.annotation)] if fields else tagged or models
    return models, key


def _models_in(annotation: object) -> Iterator[type[Recipe]]:
    if isinstance(annotation, type) and issubclass(annotation, Recipe):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models_in(argument)


def _tags(model: type[Recipe]) -> set[str]:
    defaults = (field.default for name, field in model.model_fields.items() if name in ("kind", "source"))
    return {tag for tag in defaults if isinstance(tag, str)}
