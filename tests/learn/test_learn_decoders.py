"""Networks of pixels: shapes, padding, plans that read back, and what does not fit."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from vitpipe.config import ModelRecipe, TrainRecipe
from vitpipe.errors import ConfigError, ContractError
from vitpipe.learn.architecture import rebuild
from vitpipe.learn.decoders import ConvDecoder, doublings
from vitpipe.learn.fit import make_optimiser
from vitpipe.learn.outlook import pixel_outlook
from vitpipe.learn.pixel_model import DecoderPlan, PixelModel, build_pixel_model, rebuild_pixel_model
from vitpipe.learn.place import resolve_precision
from vitpipe.learn.task import LearnTask
from vitpipe.learn.unet_baseline import cost_of, plan_of_equal_cost

TIMM = {"patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}
MONAI = {"name": "monai_vit", "embed_dim": 24, "depth": 2, "num_heads": 2}


def recipe_of(**keys: object) -> ModelRecipe:
    return ModelRecipe.model_validate({"weights": {"source": "random"}, **keys})


@pytest.mark.parametrize(
    ("keys", "tile", "padded"),
    [
        (TIMM, (20, 20), (24, 24)),
        (TIMM | {"img_size": 24}, (16, 16), (24, 24)),
        (TIMM | {"decoder": "dpt", "patch_size": 7, "depth": 1}, (16, 16), (21, 21)),
        (TIMM | {"decoder": "unetr"}, (20, 20), (24, 24)),
        (MONAI | {"patch_size": [2, 8, 8]}, (3, 12, 12), (4, 16, 16)),
        (MONAI | {"patch_size": [2, 8, 8], "decoder": "dpt"}, (4, 16, 16), (4, 16, 16)),
        (MONAI | {"patch_size": [2, 8, 8], "decoder": "unetr"}, (3, 12, 12), (4, 16, 16)),
        ({"decoder": "unet", "embed_dim": 8}, (19, 19), (20, 20)),
        ({"decoder": "unet", "embed_dim": 8}, (3, 16, 16), (3, 16, 16)),
        ({"decoder": "swin_unetr", "embed_dim": 12}, (40, 40), (64, 64)),
        ({"decoder": "swin_unetr", "embed_dim": 12}, (17, 32, 32), (32, 32, 32)),
    ],
)
def test_a_network_gives_a_map_of_the_tile_and_is_rebuilt_from_its_plan(
    keys: dict[str, object], tile: tuple[int, ...], padded: tuple[int, ...]
) -> None:
    recipe = recipe_of(**keys)
    torch.manual_seed(0)
    module, used, plan = build_pixel_model(recipe, 2, 3, tile, probe=False)
    assert plan.padded_px == padded
    images = torch.rand(2, 2, *plan.image_px)
    with torch.inference_mode():
        maps = module.eval()(images)
    assert maps.shape == (2, 3, *tile)
    read = DecoderPlan.from_json(json.loads(json.dumps(plan.to_json())))
    assert read == plan
    again = rebuild_pixel_model(read, rebuild(recipe.name, used, "timm") if used else None)
    again.load_state_dict(module.state_dict(), strict=True)
    with torch.inference_mode():
        assert torch.equal(again.eval()(images), maps)
    storages = [value.untyped_storage().data_ptr() for value in module.state_dict().values()]
    assert len(set(storages)) == len(storages), "a file of tensors takes each once"


@pytest.mark.parametrize(
    ("keys", "tile"),
    [
        *((TIMM | {"depth": 4, "decoder": decoder}, (16, 16)) for decoder in ("conv", "dpt", "unetr")),
        ({"decoder": "unet", "embed_dim": 8}, (16, 16)),
        ({"decoder": "swin_unetr", "embed_dim": 12}, (32, 32)),
        (MONAI | {"patch_size": [2, 8, 8], "decoder": "unetr"}, (4, 16, 16)),
    ],
)
def test_every_weight_learns(keys: dict[str, object], tile: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    module, _, _ = build_pixel_model(recipe_of(**keys), 2, 3, tile, probe=False)
    module(torch.rand(2, 2, *tile)).square().sum().backward()
    still = {name for name, weight in module.named_parameters() if weight.grad is None}
    # DDP waits for every one; MONAI's blocks have a norm that is never called, which `Fit` leaves out.
    assert not {name for name in still if "norm_cross_attn" not in name}


def test_gradients_of_volumes_are_not_taken_in_bfloat16_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitpipe.learn.place.computes_bf16", lambda _: True)
    cpu = torch.device("cpu")
    assert resolve_precision("auto", cpu) == "bf16"
    assert resolve_precision("auto", cpu, maps_of_volumes=True) == "fp32"
    with pytest.raises(ConfigError, match="3-D convolutions are not right in bfloat16"):
        resolve_precision("bf16", cpu, maps_of_volumes=True)


def test_the_padding_of_a_tile_is_cut_off_and_the_rest_stays_in_place() -> None:
    class Same(nn.Module):
        taps = (1.0,)

        def forward(self, maps: list[torch.Tensor], image: torch.Tensor) -> torch.Tensor:
            assert maps[0].shape[2:] == (3, 3)
            return image

    module, _, plan = build_pixel_model(recipe_of(**TIMM), 2, 2, (20, 20), probe=False)
    assert isinstance(module, PixelModel)
    images = torch.rand(1, 2, 20, 20)
    assert torch.equal(PixelModel(module.backbone, Same(), plan)(images), images)


@pytest.mark.parametrize(
    ("keys", "tile", "patch", "place"),
    [(TIMM, (24, 24), (8, 8), (0, 2)), (MONAI | {"patch_size": [2, 8, 4]}, (4, 16, 16), (2, 8, 4), (1, 0, 3))],
)
def test_a_token_lies_in_the_map_where_its_patch_lies_in_the_image(
    keys: dict[str, object], tile: tuple[int, ...], patch: tuple[int, ...], place: tuple[int, ...]
) -> None:
    module, _, _ = build_pixel_model(recipe_of(**keys), 2, 3, tile, probe=False)
    assert isinstance(module, PixelModel)
    with torch.no_grad():
        # Blocks that add nothing: a token knows its own patch alone.
        for weight in module.backbone.blocks.parameters():  # type: ignore[union-attr]
            weight.zero_()
        image = torch.rand(1, 2, *tile)
        other = image.clone()
        inside = tuple(slice(at * step, (at + 1) * step) for at, step in zip(place, patch, strict=True))
        other[(slice(None), slice(None), *inside)] += 1
        one, two = (
            module.backbone.forward_intermediates(each, indices=[0, 1], norm=True, intermediates_only=True)[0]  # type: ignore[operator]
            for each in (image, other)
        )
    changed = (one != two).any(1)[0].nonzero().tolist()
    assert changed == [list(place)]


@pytest.mark.parametrize("patch", [(8, 8), (2, 4, 4)])
def test_tokens_that_are_alike_draw_no_grid_into_the_map(patch: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    decoder = ConvDecoder(48, 3, 2, patch).eval()
    grid = (9,) * len(patch)
    size = [count * step for count, step in zip(grid, patch, strict=True)]
    with torch.inference_mode():
        found = decoder([torch.rand(1, 48, *(1,) * len(patch)).expand(1, 48, *grid)], torch.ones(1, 2, *size))
    # Past what zeros beyond the edge reach.
    inner = found[(..., *(slice(3 * step, -3 * step) for step in patch))].flatten(2)
    assert torch.allclose(inner, inner[..., :1].expand_as(inner), atol=1e-5)


def test_steps_double_the_axes_that_have_room() -> None:
    assert doublings((2, 16, 16)) == [(1, 2, 2), (1, 2, 2), (1, 2, 2), (2, 2, 2)]
    assert doublings((14, 14)) == [(2, 2), (2, 2), (2, 2)]
    assert doublings((1, 1)) == []


def test_unetr_of_a_plain_vit_has_the_layers_of_monais_own() -> None:
    from monai.networks.nets.unetr import UNETR

    keys = MONAI | {"depth": 12, "patch_size": 16, "decoder": "unetr"}
    module, _, _ = build_pixel_model(recipe_of(**keys), 2, 3, (32, 32), probe=False)
    theirs = UNETR(2, 3, (32, 32), hidden_size=24, mlp_dim=96, num_heads=2, spatial_dims=2, qkv_bias=True)

    def matrices(network: nn.Module) -> list[tuple[int, ...]]:
        return sorted(tuple(weight.shape) for weight in network.parameters() if weight.ndim > 1)

    assert matrices(module) == matrices(theirs)


def test_a_probe_learns_one_linear_layer_on_tokens_that_stay() -> None:
    module, _, plan = build_pixel_model(recipe_of(**TIMM | {"drop_path_rate": 0.5}), 2, 3, (20, 20), probe=True)
    assert plan.kind == "linear"
    learning = [name for name, weight in module.named_parameters() if weight.requires_grad]
    assert learning == ["decoder.out.weight", "decoder.out.bias"]
    module.train()
    images = torch.rand(1, 2, 20, 20)
    assert torch.equal(module(images), module(images)), "a frozen backbone drops no path"
    with pytest.raises(ConfigError, match=r"`probe`, which learns one linear layer.*remove `model.decoder`"):
        build_pixel_model(recipe_of(**TIMM | {"decoder": "dpt"}), 2, 3, (20, 20), probe=True)


@pytest.mark.parametrize(
    ("keys", "tile", "said"),
    [
        ({"decoder": "unet", "depth": 3}, (16, 16), r"model.depth: the decoder `unet` is a whole network"),
        ({"decoder": "unet", "embed_dim": 10}, (16, 16), r"`unet` needs a multiple of 4 from 8 on"),
        ({"decoder": "swin_unetr", "embed_dim": 16}, (32, 32), "multiple of 12"),
        ({"decoder": "swin_unetr"}, (4, 64, 64), r"tiles of 4 x 64 x 64 would be mostly padding; set tiles.size"),
        (
            {"decoder": "unet", "weights": {"source": "mlflow", "uri": "models:/x/1"}},
            (16, 16),
            "weights of a ViT do not fit it",
        ),
        (TIMM | {"decoder": "unetr", "patch_size": 6}, (18, 18), r"model.patch_size to powers of two"),
        ({"name": "resnet18"}, (32, 32), r"a plain Vision Transformer.*`model.decoder: unet`"),
        ({"name": "swin_tiny_patch4_window7_224"}, (56, 56), r"a plain Vision Transformer"),
        (TIMM | {"num_classes": 4}, (16, 16), r"model.num_classes is 4"),
        ({"decoder": "unet", "in_chans": 4}, (16, 16), r"model.in_chans is 4"),
        (TIMM | {"img_size": [4, 16, 16]}, (16, 16), r"the tiles are 2-D; give one number"),
    ],
)
def test_what_does_not_fit_is_said(keys: dict[str, object], tile: tuple[int, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build_pixel_model(recipe_of(**keys), 2, 3, tile, probe=False)


def test_a_plan_of_another_vitpipe_is_refused() -> None:
    _, _, plan = build_pixel_model(recipe_of(**TIMM), 2, 3, (16, 16), probe=False)
    with pytest.raises(ContractError, match="decoder cannot be read"):
        DecoderPlan.from_json(dict(plan.to_json()) | {"other": 1})
    with pytest.raises(ContractError, match="no whole network"):
        rebuild_pixel_model(plan, None)


def test_layers_of_the_vit_have_rates_of_their_own_and_the_decoder_the_full_one() -> None:
    module, _, _ = build_pixel_model(recipe_of(**TIMM), 2, 3, (16, 16), probe=False)
    keys = {"layer_decay": 0.5, "learning_rate": 0.01}
    task = LearnTask.model_construct(train=TrainRecipe.model_validate(keys))
    optimiser = make_optimiser(module, task)
    rates = {
        id(weight): (group["lr_scale"], group["weight_decay"])
        for group in optimiser.param_groups
        for weight in group["params"]
    }
    named = dict(module.named_parameters())
    scale = {name: rates[id(weight)][0] for name, weight in named.items()}
    assert scale["decoder.out.1.weight"] == 1.0
    assert [scale[f"backbone.blocks.{block}.attn.qkv.weight"] for block in (2, 1)] == [0.5, 0.25]
    assert scale["backbone.patch_embed.proj.weight"] < scale["backbone.blocks.0.attn.qkv.weight"] < 1.0
    assert rates[id(named["backbone.pos_embed"])][1] == 0.0


def test_the_unet_of_a_budget_takes_about_as_many_multiply_adds() -> None:
    module, _, plan = build_pixel_model(recipe_of(decoder="conv"), 3, 4, (64, 64), probe=False)
    of_model = cost_of(module, plan)
    chosen, cost = plan_of_equal_cost(plan, of_model.multiply_adds)
    assert 0.7 < cost.multiply_adds / of_model.multiply_adds < 1.4
    assert cost.parameters == sum(weight.numel() for weight in rebuild_pixel_model(chosen, None).parameters())
    # The convolution of the whole image alone, counted by hand.
    lone, _, small = build_pixel_model(recipe_of(decoder="unet", embed_dim=8), 3, 4, (64, 64), probe=False)
    assert cost_of(lone, small).multiply_adds > 64 * 64 * 9 * (3 * 8 + 8 * 8)


@pytest.mark.parametrize("decoder", ["conv", "swin_unetr", "unet"])
def test_what_a_run_will_take_is_known_before_it(decoder: str) -> None:
    keys = TIMM if decoder == "conv" else {"embed_dim": 24}
    recipe, train = recipe_of(**keys | {"decoder": decoder, "num_classes": 3}), TrainRecipe()
    found = pixel_outlook(recipe, train, 2, (36, 36))
    module, _, plan = build_pixel_model(recipe, 2, 3, (36, 36), probe=False)
    assert found.cost == cost_of(module, plan)
    assert found.padded_px == plan.padded_px
    assert found.tokens == (26 if decoder == "conv" else 0)
    assert (found.unet is None) == (decoder == "unet")
    assert pixel_outlook(recipe, TrainRecipe(baseline="none"), 2, (36, 36)).unet is None
