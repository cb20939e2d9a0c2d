"""Where a model starts from: weights that timm names, a safetensors file, a model of ours, or random on request."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import get_pretrained_cfg
from torch import nn

from vitpipe.config import FileWeights, MlflowWeights, ModelRecipe, TimmWeights
from vitpipe.errors import ConfigError, ContractError, TransientError
from vitpipe.learn.channels import RGB, adapt_channels, colour_names
from vitpipe.learn.preprocessing import Preprocessing
from vitpipe.records import Json

MODEL_FILE = "model.safetensors"
RECORD_FILE = "model.json"
_READ_BYTES = 1 << 20
_LISTED = 8


@dataclass(frozen=True, slots=True)
class StartingWeights:
    """Weights before they are fitted to a model."""

    state: Mapping[str, torch.Tensor]
    channels: tuple[str, ...]
    """What the first layer's filters were learnt for."""
    mean: tuple[float, ...] | None
    """Per channel of `channels`, for values in 0..1; None: not known."""
    std: tuple[float, ...] | None
    provenance: dict[str, Json]
    """source, id, sha256, licence."""


def sha256_of(path: Path) -> str:
    """Give the SHA-256 of a file, 64 hexadecimal characters."""
    state = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_READ_BYTES):
            state.update(block)
    return state.hexdigest()


def read_weights(recipe: ModelRecipe, weights_folder: Path | None) -> StartingWeights | None:
    """Read the weights that the recipe names; None for ``random``, which nothing else ever falls back to.

    Args:
        recipe: the model.
        weights_folder: for ``mlflow``: the model folder on this disk.

    Raises:
        ConfigError: no such weights, or a licence that is not allowed.
        ContractError: the file is not what was asked for.
        TransientError: the weights cannot be downloaded.
    """
    weights = recipe.weights
    if isinstance(weights, TimmWeights):
        return _from_timm(recipe.name, weights)
    if isinstance(weights, FileWeights):
        return _from_file(recipe.name, weights)
    if isinstance(weights, MlflowWeights):
        if weights_folder is None:
            raise ConfigError(f"model.weights: {weights.uri} was not fetched; run the training through `vitpipe run`")
        return _from_model_folder(weights_folder, weights.uri)
    return None


def _from_timm(name: str, weights: TimmWeights) -> StartingWeights:
    known = _pretrained(name)
    if known is None or not (known.get("hf_hub_id") or known.get("url") or known.get("file")):
        raise ConfigError(
            f"model.weights: timm has no weights for `{name}`; timm.list_pretrained() gives the names that have "
            "some, or set `weights: {source: random}`"
        )
    identity, licence = f"{known['architecture']}.{known['tag']}", str(known.get("license") or "unknown")
    # Before the download: what may not be used is not fetched.
    if licence.lower() not in {item.lower() for item in weights.licences}:
        raise ConfigError(
            f"model.weights: the licence of {identity} is `{licence}`, which is not among the allowed "
            f"{', '.join(weights.licences)}; choose other weights, or add it to "
            "`model.weights.licences` if you may use it"
        )
    try:
        state = timm.create_model(name, pretrained=True).state_dict()
    except OSError as error:
        raise TransientError(
            f"model.weights: {identity} cannot be downloaded ({' '.join(str(error).split())[:200]}). Without a "
            "network, fetch its model.safetensors elsewhere and set `weights: {source: file, path: model.safetensors}`"
        ) from error
    except RuntimeError as error:
        raise ConfigError(f"model.weights: timm cannot load {identity}: {error}") from error
    return StartingWeights(
        state=state,
        channels=RGB,
        mean=tuple(known["mean"]),
        std=tuple(known["std"]),
        provenance={"source": "timm", "id": identity, "sha256": _state_sha256(state), "licence": licence},
    )


def _pretrained(name: str) -> dict[str, Any] | None:
    try:
        known = get_pretrained_cfg(name, allow_unregistered=True)
    except RuntimeError:
        return None
    return dataclasses.asdict(known) if known is not None else None


def _state_sha256(state: Mapping[str, torch.Tensor]) -> str:
    """Digest tensors in the order of their names: weights have one digest, whatever file they came in."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _from_file(name: str, weights: FileWeights) -> StartingWeights:
    path = Path(weights.path)
    if not path.is_file():
        raise ConfigError(f"model.weights: no file {path}; correct `model.weights.path`")
    found = sha256_of(path)
    if weights.sha256 is not None and found != weights.sha256.strip().lower():
        raise ContractError(
            f"{path} has the SHA-256 {found}, but model.weights.sha256 is {weights.sha256}; it is another file: "
            "fetch it again, or correct the key"
        )
    state = _load(path)
    first = next((tensor for key, tensor in state.items() if key.endswith("patch_embed.proj.weight")), None)
    statistics = _pretrained(name) or {}
    colours = first is None or first.ndim < 4 or first.shape[1] == len(RGB)
    count = len(RGB) if first is None or first.ndim < 4 else int(first.shape[1])
    return StartingWeights(
        state=state,
        channels=RGB if colours else tuple(f"channel {number + 1}" for number in range(count)),
        mean=tuple(statistics["mean"]) if colours and "mean" in statistics else None,
        std=tuple(statistics["std"]) if colours and "std" in statistics else None,
        provenance={"source": "file", "id": path.name, "sha256": found, "licence": weights.licence or "unknown"},
    )


def _load(path: Path) -> dict[str, torch.Tensor]:
    try:
        state: dict[str, torch.Tensor] = load_file(path)
    except SafetensorError as error:
        raise ContractError(
            f"{path} is no safetensors file ({error}); pickled weights (.pt, .pth) are not read: convert them with "
            "safetensors.torch.save_file"
        ) from error
    return state


def _from_model_folder(folder: Path, uri: str) -> StartingWeights:
    path = folder / MODEL_FILE
    if not path.is_file() or not (folder / RECORD_FILE).is_file():
        raise ContractError(f"{uri}: no {MODEL_FILE} and {RECORD_FILE} in {folder}; it is no model of vitpipe")
    record = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
    preprocessing = Preprocessing.from_json(record["preprocessing"])
    state = _load(path)
    if record["head"] in ("probe", "pixels"):
        if not any(key.startswith("backbone.") for key in state):
            raise ConfigError(
                f"model.weights: {uri} is a `{record['architecture']}`, which has no ViT to start from; name another "
                "model"
            )
        state = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
    return StartingWeights(
        state=state,
        channels=preprocessing.channels,
        mean=None,
        std=None,
        provenance={
            "source": "mlflow",
            "id": uri,
            "sha256": sha256_of(path),
            "licence": record["weights"].get("licence", "unknown"),
            "started_from": record["weights"],
        },
    )


def statistics_for(
    weights: StartingWeights | None, channels: Sequence[str]
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Give mean and deviation of the weights for the channels at hand, for values in 0..1; None: not known.

    One channel is taken as the grey of the three colours: the mean of their means and of their deviations.
    """
    if weights is None or weights.mean is None or weights.std is None:
        return None
    have, want = colour_names(weights.channels), colour_names(channels)
    mean, std = weights.mean, weights.std
    if len(want) == 1 and want[0] not in have:
        return (sum(mean) / len(mean),), (sum(std) / len(std),)
    if set(want) <= set(have):
        places = [have.index(name) for name in want]
        return tuple(mean[place] for place in places), tuple(std[place] for place in places)
    return None


def load_into(model: nn.Module, weights: StartingWeights, channels: Sequence[str], name: str) -> list[str]:
    """Load starting weights into a timm model: strict but for the classifier.

    Position embeddings and patch filters of other sizes are resampled by timm's own filter, first-layer filters are
    placed on the channels by name. The classifier is loaded where its shape fits only when the weights were ours for
    the same classes; else it stays fresh.

    Args:
        model: a timm model (of a probe: the backbone).
        weights: from :func:`read_weights`.
        channels: of the tiles.
        name: of the architecture, for the errors.

    Returns:
        Sentences on what was adapted.

    Raises:
        ContractError: keys are missing, unexpected or of another shape.
    """
    fresh = model.state_dict()
    notes: list[str] = []
    state = _filtered(model, dict(weights.state), name)
    state, note = _adapt_first_layer(model, fresh, state, weights.channels, channels)
    notes += [note] if note else []
    if "pos_embed" in weights.state and "pos_embed" in fresh:
        before, after = weights.state["pos_embed"].shape[1], fresh["pos_embed"].shape[1]
        notes += [f"position embedding resampled from {before} to {after} tokens"] if before != after else []
    head = _classifier(model)
    for key in [key for key in state if key.startswith(head)]:
        # The classifier of other classes says nothing here, even where its shape happens to fit.
        del state[key]
    missing = sorted(key for key in fresh if key not in state and not key.startswith(head))
    unexpected = sorted(key for key in state if key not in fresh)
    shapes = sorted(
        f"{key} {tuple(value.shape)} instead of {tuple(fresh[key].shape)}"
        for key, value in state.items()
        if key in fresh and value.shape != fresh[key].shape
    )
    if missing or unexpected or shapes:
        found = [
            f"{what}: {', '.join(keys[:_LISTED])}{f' and {len(keys) - _LISTED} more' if len(keys) > _LISTED else ''}"
            for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
            if keys
        ]
        raise ContractError(
            f"the weights {weights.provenance['id']} do not fit the architecture `{name}` ({'; '.join(found)}); name "
            "the architecture they are of, without overriding embed_dim, depth or num_heads"
        )
    model.load_state_dict(state, strict=False)
    return [*notes, "the classifier starts fresh"]


def _filtered(model: nn.Module, state: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return state
    try:
        converted: dict[str, torch.Tensor] = convert(state, model)
    except (RuntimeError, KeyError, AttributeError, ValueError, AssertionError) as error:
        raise ContractError(
            f"the weights do not fit the architecture `{name}`: timm cannot convert them ({error})"
        ) from error
    return converted


def _first_conv(model: nn.Module) -> str:
    first = (getattr(model, "pretrained_cfg", None) or {}).get("first_conv") or "patch_embed.proj"
    return str(first if isinstance(first, str) else first[0])


def _classifier(model: nn.Module) -> str:
    head = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or "head"
    return f"{head if isinstance(head, str) else head[0]}."


def _adapt_first_layer(
    model: nn.Module,
    fresh: Mapping[str, torch.Tensor],
    state: dict[str, torch.Tensor],
    known: Sequence[str],
    channels: Sequence[str],
) -> tuple[dict[str, torch.Tensor], str]:
    key = f"{_first_conv(model)}.weight"
    weight = state.get(key)
    if weight is None or key not in fresh:
        return state, ""
    if weight.ndim != 4 or weight.shape[1] != len(known):
        if weight.shape == fresh[key].shape and len(channels) == len(known):
            return state, ""
        raise ContractError(
            f"the first layer {key} has the shape {tuple(weight.shape)}, which cannot be placed on the channels "
            f"{', '.join(channels)}; choose an architecture with convolutional patches"
        )
    adapted, note = adapt_channels(weight, known, channels)
    return state | {key: adapted}, f"first layer: {note}"
