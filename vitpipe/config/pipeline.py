"""A whole pipeline: all stages in one model."""

from __future__ import annotations

from typing import Final, Self

from pydantic import ConfigDict, Field, JsonValue, model_validator
from pydantic.main import IncEx

from vitpipe.config.address import names_addresses
from vitpipe.config.base import Recipe
from vitpipe.config.judging import EvaluateRecipe, RegisterRecipe
from vitpipe.config.labels import LabelRecipe
from vitpipe.config.learning import ModelRecipe, PreprocessRecipe, TrainRecipe
from vitpipe.config.source import DicomwebSource, GeotiffSource, SourceRecipe, StacSource
from vitpipe.config.split import SplitRecipe
from vitpipe.config.tiles import TileRecipe
from vitpipe.digest import digest

_PLACES: dict[str, IncEx | bool] = {
    "workspace": True,
    "source": {"path", "url", "sign"},
    "labels": {"path", "aoi"},
    "model": {"weights": {"path"}},
}
"""Where things lie on one machine."""


FETCHED: Final = "studies"
"""Folder in the workspace of the studies that were fetched, if the source names no other."""
FETCHED_SCENES: Final = "scenes"
"""Folder in the workspace of the scenes that were fetched, if the source names no other."""
REMOTE_SCENES: Final = "remote"
"""Folder in the workspace of what stands for scenes that are read where they lie."""


class PipelineConfig(Recipe):
    """A whole pipeline: ``pipeline.yaml``, and the form of the flow."""

    # An error must not repeat an address that holds a password.
    model_config = ConfigDict(title="Pipeline", hide_input_in_errors=True)

    name: str = Field(title="Name", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    source: SourceRecipe = Field(title="Source")
    labels: LabelRecipe | None = Field(None, title="Labels", description="Without labels the run ends after tiling.")
    tiles: TileRecipe = TileRecipe()
    split: SplitRecipe = SplitRecipe()
    preprocess: PreprocessRecipe = PreprocessRecipe()
    model: ModelRecipe | None = Field(None, title="Model", description="Needed where there are labels.")
    train: TrainRecipe = TrainRecipe()
    evaluate: EvaluateRecipe = EvaluateRecipe()
    registration: RegisterRecipe | None = Field(
        None, alias="register", title="Register", description="Without it the model stays in the workspace."
    )
    workspace: str = Field(
        "workspace", title="Workspace", description="Folder of everything that is made.", min_length=1
    )

    @model_validator(mode="after")
    def _labels_need_a_model(self) -> Self:
        if self.labels is not None and self.model is None:
            raise ValueError("labels are given but no model: add `model: {name: ..., weights: {source: ...}}`")
        return self

    def on_disk(self) -> Self:
        """Give the pipeline whose source lies on this machine: what is fetched is read as plain files of its kind.

        Every stage after the fetch takes this one: the same files make the same tiles and models.
        """
        if isinstance(self.source, DicomwebSource):
            return self.model_copy(update={"source": self.source.fetched(f"{self.workspace}/{FETCHED}")})
        if isinstance(self.source, StacSource):
            return self.model_copy(update={"source": self.source.fetched(f"{self.workspace}/{FETCHED_SCENES}")})
        if isinstance(self.source, GeotiffSource) and names_addresses(self.source.path):
            place = {"path": f"{self.workspace}/{REMOTE_SCENES}"}
            return self.model_copy(update={"source": self.source.model_copy(update=place)})
        return self

    def without_places(self) -> dict[str, JsonValue]:
        """Give every value but where things lie on this machine: a report of it may be handed on."""
        return self.model_dump(mode="json", by_alias=True, exclude=_PLACES)

    def content_digest(self) -> str:
        """Fingerprint of what was asked for: the same on every machine, and however often a checkpoint is written."""
        values = self.model_dump(mode="json", exclude=_PLACES | {"train": {"checkpoint_seconds"}})
        return digest(values)
