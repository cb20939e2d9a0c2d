"""Predict on the scenes of a STAC catalog: which one is meant, its scenes brought here, read as the model's own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import pydantic

from vitpipe.atomic import file_lock, make_folder
from vitpipe.config import PipelineConfig, StacSource
from vitpipe.config.address import is_address
from vitpipe.config.pipeline import FETCHED_SCENES
from vitpipe.errors import ConfigError, ContractError
from vitpipe.fetch import fetch, read_failures
from vitpipe.infer.contract import ModelContract
from vitpipe.infer.predictor import nothing_usable
from vitpipe.loading import load_source
from vitpipe.records import Json, Rejected, StageSummary
from vitpipe.web.address import shown
from vitpipe.workspace import Workspace

_NAME: Final = ".predict"
"""No pipeline of a user has it: else the fetch for a prediction would leave out scenes that such a one trains on."""
_LOCK: Final = ".predicted-on"
_RECIPES: Final = (".yaml", ".yml")
_DOCUMENTS: Final = (".json", ".geojson")
_OF_AN_API: Final = re.compile(r".*/collections/[^/]+(/items/[^/]+)?")
_SCENES: Final = (".tif", ".tiff", ".gtif", ".gtiff")
_OF_THE_MODEL: Final = ("bands", "grid", "clouds", "series")
"""Keys that say how pixels are read: the model's hold."""


def catalog_of(place: str | StacSource) -> StacSource | None:
    """Say which catalog is meant, None where files or addresses of scenes are.

    Args:
        place: a source of kind ``stac``, or a file of one (YAML: `source:` as in ``pipeline.yaml``, which may be such a
            file as a whole); a STAC document: a JSON file, an address that ends as one does, or as that of a collection
            or item of an API.

    Raises:
        ConfigError: the file cannot be read, or is of another kind of source; or the address may not be asked.
    """
    if isinstance(place, StacSource):
        return place
    if is_address(place):
        return _of_document(place) if _names_document(place) else None
    path = Path(place).expanduser()
    suffix = path.suffix.lower()
    if suffix in _DOCUMENTS and path.is_file():
        return _of_document(str(path.absolute()))
    if suffix not in _RECIPES or not path.is_file():
        return None
    source = load_source(path)
    if not isinstance(source, StacSource):
        raise ConfigError(
            f"{path} names a source of kind `{source.kind}`; predict takes such a file of kind `stac` alone: of other "
            "kinds give the folder, file or address itself"
        )
    return source


def _names_document(address: str) -> bool:
    path = urlsplit(address).path.rstrip("/").lower()
    return path.endswith(_DOCUMENTS) or (not path.endswith(_SCENES) and _OF_AN_API.fullmatch(path) is not None)


def _of_document(url: str) -> StacSource:
    try:
        return StacSource(url=url)
    except pydantic.ValidationError as error:
        # Its input is never repeated: an address may hold a secret.
        reason = error.errors(include_input=False, include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise ConfigError(f"the catalog cannot be used: {reason}") from None


def as_trained(catalog: StacSource, contract: ModelContract, out: str) -> StacSource:
    """Fit a catalog to a model, and say where its scenes go.

    A model that reads a band a file says which assets it needs; one scene that cannot be fetched does not stop others.

    Args:
        catalog: what the user asks for.
        contract: of the model.
        out: folder of the results; the scenes go below it where `catalog` names no folder.

    Raises:
        ContractError: the model reads no scenes.
        ConfigError: `catalog` states another way to read pixels than the model's.
    """
    if contract.source["kind"] != "geotiff":
        raise ContractError(
            f"the model reads sources of kind `{contract.source['kind']}`, and a STAC catalog holds scenes; give it "
            "what it was trained on"
        )
    known = contract.source_recipe("anywhere")
    other = [
        key for key in _OF_THE_MODEL if key in catalog.model_fields_set and getattr(catalog, key) != getattr(known, key)
    ]
    if other:
        shown = ", ".join(f"`{key}`" for key in other)
        raise ConfigError(
            f"the source states {shown}, which the model reads in another way; leave it out: its own hold"
        )
    # Where the model's clouds are dropped, the files that say where they are must be fetched too.
    changes: dict[str, Any] = {"path": catalog.path or f"{out}/{FETCHED_SCENES}", "clouds": known.clouds}
    if "max_reject_share" not in catalog.model_fields_set:
        changes["max_reject_share"] = 1.0
    if not catalog.assets and known.scenes is not None and known.series is None:
        changes["assets"] = known.bands or contract.channels
    return catalog.model_copy(update=changes)


def reading_options(catalog: StacSource) -> Mapping[str, Json]:
    """Give the reading options of a catalog's files that hold in place of the model's: names, units, verification.

    Args:
        catalog: see :func:`as_trained`.
    """
    fetched = catalog.fetched(catalog.path)
    options: dict[str, Json] = {"scenes": fetched.scenes.model_dump(mode="json") if fetched.scenes else None}
    stated: dict[str, Json] = {"units": catalog.units, "verify": catalog.verify}
    return options | {key: value for key, value in stated.items() if key in catalog.model_fields_set}


@contextmanager
def kept_in_use(catalog: StacSource) -> Iterator[None]:
    """Keep the scenes of a catalog in use until predictions on them are made.

    Predictions with folders of their own may share the one of the scenes; the fetch of others would leave out what
    their query does not find.

    Raises:
        WorkspaceError: others are being made there.
    """
    make_folder(Path(catalog.path))
    with file_lock(Path(catalog.path) / _LOCK, wait=False):
        yield


def bring(catalog: StacSource, out: str) -> StageSummary:
    """Fetch the scenes of a catalog; what is there already is not asked for again, and a broken fetch goes on.

    Args:
        catalog: see :func:`as_trained`.
        out: folder of the results.

    Raises:
        DataError: nothing fits the query, or nothing could be fetched.
        ConfigError, WorkspaceError, TransientError: see `vitpipe.fetch.fetch`.
    """
    workspace = Workspace(Path(out))
    with workspace.lock():
        summary = fetch(_pipeline(catalog, out), workspace)
    if not summary.done + summary.skipped:
        raise nothing_usable(shown(catalog.url), not_brought(catalog, out))
    return summary


def not_brought(catalog: StacSource, out: str) -> list[Rejected]:
    """Name what the last fetch of these results could not get."""
    return read_failures(_pipeline(catalog, out), Workspace(Path(out)))


def _pipeline(catalog: StacSource, out: str) -> PipelineConfig:
    return PipelineConfig(name="predict", source=catalog, workspace=out).model_copy(update={"name": _NAME})
