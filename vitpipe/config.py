"""One frozen model a stage: read from ``pipeline.yaml``, drawn as a form by the Prefect UI, digested into recipes.

No model here touches the disk: `vitpipe.loading` reads the file and makes paths absolute.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator
from pydantic.main import IncEx

from vitpipe.digest import digest


class Recipe(BaseModel):
    """Base of all configuration models: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    def digest(self) -> str:
        """Fingerprint of every value, defaults included; 16 hexadecimal characters."""
        return digest(self.model_dump(mode="json"))


# ------------------------------------------------------------------------------------------------------------- source


DataPath = Annotated[str, Field(title="Path", description="Folder (or one file) that holds the data.", min_length=1)]
RejectShare = Annotated[
    float,
    Field(ge=0, le=1, title="Largest share of rejects", description="The run stops when more sources are rejected."),
]


class DicomSource(Recipe):
    """A tree of DICOM files; names and extensions do not matter."""

    model_config = ConfigDict(title="DICOM")
    kind: Literal["dicom"] = "dicom"
    path: DataPath
    max_reject_share: RejectShare = 0.2
    modality: str | None = Field(None, title="Modality", description="Keep this modality alone, such as CT.")


class GeotiffSource(Recipe):
    """GeoTIFF scenes."""

    model_config = ConfigDict(title="GeoTIFF")
    kind: Literal["geotiff"] = "geotiff"
    path: DataPath
    max_reject_share: RejectShare = 0.2
    bands: tuple[str, ...] | None = Field(
        None,
        title="Bands",
        description="Names of the bands to use, in this order (B04, or b1 for the first unnamed). All when empty.",
    )
    units: str = Field("dn", title="Units", description="What the pixel values mean: reflectance, dn, m, ...")
    block_m: float = Field(
        10_000.0, gt=0, title="Ground block (m)", description="Edge of the ground blocks that never straddle splits."
    )


class ImagesSource(Recipe):
    """A tree of JPEG, PNG or TIFF photographs."""

    model_config = ConfigDict(title="Images")
    kind: Literal["images"] = "images"
    path: DataPath
    max_reject_share: RejectShare = 0.2


SourceRecipe = Annotated[DicomSource | GeotiffSource | ImagesSource, Field(discriminator="kind")]


# ------------------------------------------------------------------------------------------------------------- labels

KeyKind = Literal["path", "scene", "patient", "study_uid", "series_uid", "instance_uid"]


class TableLabels(Recipe):
    """A CSV or Parquet table, a row a labelled thing."""

    model_config = ConfigDict(title="Table")
    kind: Literal["table"] = "table"
    path: str = Field(title="Table", description="CSV or Parquet file.", min_length=1)
    key: KeyKind = Field("path", title="Key", description="What the key column names.")
    key_column: str | None = Field(
        None, title="Key column", description="Column of the key; named as the key if empty."
    )
    column: str | tuple[str, ...] = Field(
        title="Label column", description="One column of classes, or a list of 0/1 columns (multi-label)."
    )
    group: str | None = Field(None, title="Group column", description="Column of what must not straddle splits.")
    attributes: tuple[str, ...] = Field((), title="Attribute columns", description="Columns kept as subgroups.")


class FolderLabels(Recipe):
    """The name of a folder above the file is the class."""

    model_config = ConfigDict(title="Folder names")
    kind: Literal["folder"] = "folder"
    level: int = Field(
        1, ge=1, title="Level", description="1: the folder that holds the file, 2: the one above it, ..."
    )


# The title is the tab of the form, beside "None".
LabelRecipe = Annotated[TableLabels | FolderLabels, Field(discriminator="kind", title="Labels")]


# -------------------------------------------------------------------------------------------------- tiles and splits


class TileRecipe(Recipe):
    """How tiles are cut."""

    model_config = ConfigDict(title="Tiles")

    cut: Literal["grid", "whole"] = Field(
        "grid", title="Cut", description="grid: tiles on a grid; whole: each frame resampled into one tile."
    )
    size: int = Field(224, ge=8, le=4096, title="Tile size (px)")
    stride: int | None = Field(None, ge=1, title="Stride (px)", description="Step between tiles; the size if empty.")
    edge: Literal["pad", "shift", "drop"] = Field(
        "pad",
        title="Edge",
        description="At the right and bottom edge: pad and mask, shift the last tile inwards, or drop it.",
    )
    min_valid_fraction: float = Field(0.5, ge=0, le=1, title="Least valid share of a tile")
    spacing_mm: float | None = Field(None, gt=0, title="Spacing (mm)", description="Resample to it first (DICOM).")
    gsd_m: float | None = Field(None, gt=0, title="Ground sampling distance (m)", description="Resample to it first.")
    shard_mib: int = Field(128, ge=1, le=4096, title="Shard size (MiB)", description="Tiles written by one task.")

    @property
    def step(self) -> int:
        """The stride, or the size where none is given."""
        return self.stride or self.size

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if self.spacing_mm is not None and self.gsd_m is not None:
            raise ValueError("set spacing_mm (DICOM) or gsd_m (earth observation), not both")
        if self.step > self.size:
            raise ValueError(f"stride {self.step} is larger than size {self.size}: pixels between tiles would be lost")
        return self


class SplitRecipe(Recipe):
    """Shares of groups; what is left is the train split."""

    model_config = ConfigDict(title="Split")

    val: float = Field(0.15, ge=0, lt=1, title="Validation share")
    calibration: float = Field(0.15, ge=0, lt=1, title="Calibration share")
    test: float = Field(0.2, gt=0, lt=1, title="Test share")
    seed: int = Field(0, ge=0, title="Seed", description="Orders new groups; assigned groups never move.")

    @property
    def train(self) -> float:
        """The share that is left."""
        return 1.0 - self.val - self.calibration - self.test

    @model_validator(mode="after")
    def _leaves_train(self) -> Self:
        if self.train <= 0:
            raise ValueError(f"val + calibration + test = {1 - self.train:g} leaves no group to train on")
        return self


# ---------------------------------------------------------------------------------------------------------- learning


class PreprocessRecipe(Recipe):
    """From physical units to what the model sees. The statistics come from the train split."""

    model_config = ConfigDict(title="Preprocessing")

    clip: tuple[float, float] | None = Field(
        None, title="Clip", description="Lowest and highest physical value, such as -200 and 400 HU."
    )
    normalise: Literal["train", "weights", "none"] = Field(
        "train", title="Normalise", description="Mean and deviation of the train split, or those of the weights."
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.clip is not None and self.clip[0] >= self.clip[1]:
            raise ValueError(f"clip: the lowest value {self.clip[0]:g} is not below the highest {self.clip[1]:g}")
        return self


class RandomWeights(Recipe):
    """Random weights: a model from scratch."""

    model_config = ConfigDict(title="Random")
    source: Literal["random"] = "random"


class TimmWeights(Recipe):
    """The weights that timm names; they are downloaded once."""

    model_config = ConfigDict(title="timm")
    source: Literal["timm"] = "timm"
    licences: tuple[str, ...] = Field(
        ("apache-2.0", "mit", "cc-by-4.0", "bsd-3-clause"),
        title="Licences allowed",
        description="Weights under another licence are refused.",
    )


class FileWeights(Recipe):
    """A safetensors file with timm's names."""

    model_config = ConfigDict(title="File")
    source: Literal["file"] = "file"
    path: str = Field(title="File", description="A .safetensors file.", min_length=1)
    sha256: str | None = Field(None, title="SHA-256", description="Refuse another file.")
    licence: str | None = Field(None, title="Licence", description="Kept in the model card.")


class MlflowWeights(Recipe):
    """A model of ours from the registry."""

    model_config = ConfigDict(title="MLflow")
    source: Literal["mlflow"] = "mlflow"
    uri: str = Field(title="URI", description="models:/name@champion or models:/name/3", min_length=1)


Weights = Annotated[RandomWeights | TimmWeights | FileWeights | MlflowWeights, Field(discriminator="source")]


class ModelRecipe(Recipe):
    """A timm ViT; sizes that are given override those of the named architecture."""

    model_config = ConfigDict(title="Model")

    name: str = Field(
        "vit_tiny_patch16_224",
        title="Architecture",
        description="A name of timm.list_models(), or monai_vit for MONAI's ViT.",
    )
    weights: Weights = Field(title="Weights")
    img_size: int | None = Field(None, ge=8, title="Image size (px)", description="The tile size if empty.")
    patch_size: int | None = Field(None, ge=1, title="Patch size (px)", description="Footprint of one token.")
    in_chans: int | None = Field(None, ge=1, title="Channels", description="Checked against the tiles.")
    num_classes: int | None = Field(None, ge=1, title="Classes", description="Checked against the labels.")
    embed_dim: int | None = Field(None, ge=8, title="Embedding width")
    depth: int | None = Field(None, ge=1, title="Depth")
    num_heads: int | None = Field(None, ge=1, title="Heads")
    drop_path_rate: float = Field(0.0, ge=0, lt=1, title="Stochastic depth")


class AugmentRecipe(Recipe):
    """Random changes of training tiles, drawn per tile and applied to the whole batch on the device."""

    model_config = ConfigDict(title="Augmentation")

    flip_horizontal: bool = Field(False, title="Horizontal flips")
    flip_vertical: bool = Field(False, title="Vertical flips")
    quarter_turns: bool = Field(False, title="Quarter turns")
    translate: float = Field(
        0.0, ge=0, le=0.5, title="Translation", description="Largest shift, as a share of the edge."
    )
    scale: float = Field(0.0, ge=0, lt=1, title="Scale", description="Largest relative zoom.")
    rotate_degrees: float = Field(0.0, ge=0, le=180, title="Rotation (degrees)")
    brightness: float = Field(0.0, ge=0, title="Brightness", description="Largest offset, in deviations.")
    contrast: float = Field(0.0, ge=0, lt=1, title="Contrast", description="Largest relative gain.")


class TrainRecipe(Recipe):
    """How the model learns."""

    model_config = ConfigDict(title="Training")

    recipe: Literal["probe", "full"] = Field(
        "full", title="Recipe", description="probe: logistic head on frozen features; full: all weights."
    )
    epochs: int = Field(20, ge=1, le=10_000, title="Epochs")
    batch_size: int = Field(64, ge=1, title="Batch size", description="Over all devices.")
    learning_rate: float = Field(1e-3, gt=0, title="Learning rate", description="Peak, at this batch size.")
    weight_decay: float = Field(0.05, ge=0, title="Weight decay")
    layer_decay: float | None = Field(
        None, gt=0, le=1, title="Layer decay", description="0.65-0.75 for pretrained weights."
    )
    warmup_share: float = Field(0.1, ge=0, lt=1, title="Warm-up share", description="Share of all steps.")
    label_smoothing: float = Field(0.1, ge=0, lt=1, title="Label smoothing")
    logit_adjustment: float = Field(
        0.0, ge=0, title="Logit adjustment", description="tau of Menon et al. 2021: 1 balances the classes, 0 is off."
    )
    clip_grad: float | None = Field(1.0, gt=0, title="Gradient norm limit")
    ema_decay: float | None = Field(0.99, gt=0, lt=1, title="EMA decay", description="Averaged weights; empty: off.")
    patience: int | None = Field(None, ge=1, title="Patience", description="Epochs without a better validation loss.")
    checkpoint_seconds: float = Field(60.0, ge=0, title="Seconds between checkpoints")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", title="Precision", description="auto: bf16 where the device computes in it, else fp32."
    )
    compile: bool = Field(False, title="torch.compile")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", title="Device")
    processes: int | None = Field(
        None, ge=1, title="Processes", description="One a device if empty; more than one: DDP."
    )
    seed: int = Field(0, ge=0, title="Seed")
    augment: AugmentRecipe = AugmentRecipe()


# --------------------------------------------------------------------------------------------- evaluate and register

MetricName = Literal["accuracy", "balanced_accuracy", "macro_f1", "auroc", "average_precision", "brier"]


class EvaluateRecipe(Recipe):
    """How the model is judged."""

    model_config = ConfigDict(title="Evaluation")

    subgroups: tuple[str, ...] = Field((), title="Subgroups", description="Attribute columns; all known ones if empty.")
    level: Literal["tile", "source", "group"] = Field(
        "group", title="Level", description="Level of the headline numbers."
    )
    bootstrap: int = Field(2000, ge=200, le=100_000, title="Bootstrap draws")
    confidence: float = Field(0.95, gt=0.5, lt=1, title="Confidence")
    alpha: float = Field(0.1, gt=0, lt=0.5, title="Conformal error rate")
    seed: int = Field(0, ge=0, title="Seed")


class GateRecipe(Recipe):
    """When a challenger becomes the champion."""

    model_config = ConfigDict(title="Gate")

    metric: MetricName = Field("balanced_accuracy", title="Metric")
    margin: float = Field(
        0.0,
        ge=0,
        title="Margin",
        description="The challenger may be worse by less than this (non-inferiority); 0: better.",
    )


class RegisterRecipe(Recipe):
    """Where the model is kept."""

    model_config = ConfigDict(title="Registration")

    model: str = Field(title="Registered name", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    gate: GateRecipe = GateRecipe()
    approval: Literal["auto", "manual"] = Field(
        "auto", title="Approval", description="auto: the gate moves the alias; manual: `vitpipe promote` does."
    )


_PLACES: dict[str, IncEx | bool] = {
    "workspace": True,
    "source": {"path"},
    "labels": {"path"},
    "model": {"weights": {"path"}},
}
"""Where things lie on one machine."""


class PipelineConfig(Recipe):
    """A whole pipeline: ``pipeline.yaml``, and the form of the flow."""

    model_config = ConfigDict(title="Pipeline")

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

    def without_places(self) -> dict[str, JsonValue]:
        """Give every value but where things lie on this machine: a report of it may be handed on."""
        return self.model_dump(mode="json", by_alias=True, exclude=_PLACES)

    def content_digest(self) -> str:
        """Fingerprint of what was asked for: the same on every machine, and however often a checkpoint is written."""
        values = self.model_dump(mode="json", exclude=_PLACES | {"train": {"checkpoint_seconds"}})
        return digest(values)
