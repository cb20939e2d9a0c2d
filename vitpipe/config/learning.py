"""What the model is and how it learns."""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import (
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from vitpipe.config.base import Recipe

_SINCE_FIRST: Final[dict[str, JsonValue]] = {"decoder": None, "loss": None, "baseline": "unet"}
"""Keys of models and training that came later, with the value that means what was done before: left out of every dump,
and so of every digest, so that runs from before stay what they are."""


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


_Size8 = Annotated[int, Field(ge=8)]
_Size1 = Annotated[int, Field(ge=1)]


class ModelRecipe(Recipe):
    """A timm ViT, or MONAI's (2-D and 3-D); sizes that are given override those of the named architecture."""

    model_config = ConfigDict(title="Model")

    name: str = Field(
        "vit_tiny_patch16_224",
        title="Architecture",
        description="A name of timm.list_models(), or monai_vit for MONAI's ViT.",
    )
    weights: Weights = Field(title="Weights")
    img_size: _Size8 | tuple[_Size1, _Size8, _Size8] | None = Field(
        None,
        title="Image size (px)",
        description="The tile size if empty; depth, height and width for 3-D tiles.",
    )
    patch_size: _Size1 | tuple[_Size1, _Size1, _Size1] | None = Field(
        None,
        title="Patch size (px)",
        description="Footprint of one token; for 3-D tiles the edge of a cube, or depth, height and width.",
    )
    in_chans: int | None = Field(None, ge=1, title="Channels", description="Checked against the tiles.")
    num_classes: int | None = Field(None, ge=1, title="Classes", description="Checked against the labels.")
    decoder: Literal["conv", "dpt", "unetr", "swin_unetr", "unet"] | None = Field(
        None,
        title="Decoder",
        description="For labels of every pixel; conv if empty. conv, dpt, unetr: on the tokens of the named ViT. "
        "swin_unetr, unet: MONAI's whole networks; of the keys of the ViT only the embedding width is read.",
    )
    embed_dim: int | None = Field(
        None, ge=8, title="Embedding width", description="Of swin_unetr and unet: channels at full resolution."
    )
    depth: int | None = Field(None, ge=1, title="Depth")
    num_heads: int | None = Field(None, ge=1, title="Heads")
    drop_path_rate: float = Field(0.0, ge=0, lt=1, title="Stochastic depth")

    @model_serializer(mode="wrap")
    def _without_what_changes_nothing(self, dump: SerializerFunctionWrapHandler) -> dict[str, JsonValue]:
        values: dict[str, JsonValue] = dump(self)
        return {key: value for key, value in values.items() if key not in _SINCE_FIRST or value != _SINCE_FIRST[key]}


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
        "full",
        title="Recipe",
        description="probe: linear head on frozen features, of a tile or of each token; full: all weights.",
    )
    loss: Literal["cross_entropy", "dice_cross_entropy", "huber", "mse"] | None = Field(
        None,
        title="Loss of pixels",
        description="Classes: cross_entropy (if empty) or dice_cross_entropy. Values: huber (if empty) or mse.",
    )
    baseline: Literal["unet", "none"] = Field(
        "unet",
        title="Baseline",
        description="For labels of every pixel: a U-Net of as many multiply-adds learns beside, in as many steps.",
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

    @model_serializer(mode="wrap")
    def _without_what_changes_nothing(self, dump: SerializerFunctionWrapHandler) -> dict[str, JsonValue]:
        values: dict[str, JsonValue] = dump(self)
        return {key: value for key, value in values.items() if key not in _SINCE_FIRST or value != _SINCE_FIRST[key]}
