"""MONAI: names by a table written here, outputs by MONAI itself where it is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers_twins import randomise
from safetensors.torch import save_file
from small import SMALL, monai_name
from torch import Tensor

from ddpm_unet.config import CheckpointHints, UNetConfig
from ddpm_unet.errors import UserError
from ddpm_unet.models import UNet

TOLD = CheckpointHints(head_dim=4, norm_num_groups=4, norm_eps=1e-6)
CROSS = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 6,
    "transformer_layers_per_block": 2,
}
RESNET = {
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "downsample_type": "resnet",
    "upsample_type": "resnet",
}
# What of ours is told by MONAI's constructor as what.
NETWORKS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"dims": 3, "layers_per_block": (1, 2)}, {"spatial_dims": 3, "num_res_blocks": (1, 2)}),
    (RESNET | {"num_class_embeds": 5}, {"resblock_updown": True, "num_class_embeds": 5}),
    (CROSS, {"with_conditioning": True, "cross_attention_dim": 6, "transformer_num_layers": 2}),
]


def config(settings: dict[str, Any]) -> UNetConfig:
    small: dict[str, Any] = {
        "in_channels": 1,
        "out_channels": 2,
        **SMALL,
        "norm_eps": 1e-6,
        "attention_head_dim": 4,
    }
    return UNetConfig(**small | settings)


def written(settings: dict[str, Any], file: Path) -> tuple[UNet, dict[str, Tensor]]:
    """A network of ours, saved by MONAI's names."""
    ours = UNet(config(settings)).eval()
    randomise(ours)
    cross = "cross_attention_dim" in settings
    weights = {monai_name(name, cross): t for name, t in ours.state_dict().items()}
    save_file(weights, file)
    return ours, weights


def same(ours: UNet, file: Path) -> UNet:
    """What is read of the file, which is the network."""
    read = UNet.from_pretrained(file, TOLD)
    for name, value in ours.state_dict().items():
        assert torch.equal(value, read.state_dict()[name]), name
    return read


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("settings", [ours for ours, _ in NETWORKS])
def test_architecture_and_weights(settings: dict[str, Any], file: Path) -> None:
    ours, _ = written(settings, file)
    read = same(ours, file)
    expected = config(settings)
    if not expected.conditional:
        expected.attn_norm_num_groups = 4
    assert read.config == expected


@pytest.mark.parametrize(("ours", "theirs"), NETWORKS)
def test_outputs_are_those_of_monai(
    ours: dict[str, Any], theirs: dict[str, Any], file: Path
) -> None:
    nets = pytest.importorskip("monai.networks.nets")
    settings: dict[str, Any] = {
        "spatial_dims": 2,
        "in_channels": 1,
        "out_channels": 2,
        "num_res_blocks": 1,
        "channels": (8, 16),
        "attention_levels": (False, True),
        "norm_num_groups": 4,
        "num_head_channels": 4,
    }
    network = nets.DiffusionModelUNet(**settings | theirs).eval()
    _, weights = written(ours, file)
    network.load_state_dict(weights)
    read = UNet.from_pretrained(file, TOLD)
    x, t = torch.randn(2, 1, *[8] * read.config.dims), torch.tensor([3.0, 700.0])
    context = torch.randn(2, 3, 6) if read.config.conditional else None
    labels = torch.tensor([0, 4]) if read.config.num_class_embeds else None
    with torch.no_grad():
        expected = network(x, t, context, labels)
        output = read(x, t, context, labels)
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("settings", [{}, CROSS])
def test_one_matrix_for_queries_keys_and_values_and_none_for_the_output(
    settings: dict[str, Any], file: Path
) -> None:
    """use_combined_linear and include_fc=False: the output projection is then the identity."""
    ours, weights = written(settings, file)
    self_attention = [n.removesuffix("to_q.weight") for n in weights if n.endswith("to_q.weight")]
    for start in [s for s in self_attention if "attn2" not in s]:
        for leaf in ("weight", "bias"):
            parts = [weights.pop(f"{start}to_{letter}.{leaf}", None) for letter in "qkv"]
            if parts[0] is not None:
                weights[f"{start}qkv.{leaf}"] = torch.cat(parts)
            weights.pop(f"{start}out_proj.{leaf}")
        place = start.replace("middle_block.attention", "mid_block.attentions.0")
        layer = ours.get_submodule(place.removesuffix("attn.").removesuffix(".")).to_out[0]
        torch.nn.init.eye_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    save_file(weights, file)
    same(ours, file)


@pytest.mark.parametrize("settings", [{}, CROSS])
def test_names_of_monai_generative(settings: dict[str, Any], file: Path) -> None:
    """Those that MONAI's own `load_old_state_dict` takes."""
    ours, weights = written(settings, file)
    old = {}
    for name, tensor in weights.items():
        name = name.replace(".postconv.", ".conv.").replace(".attn.out_proj.", ".proj_attn.")
        old[name.replace(".attn.", ".").replace(".out_proj.", ".to_out.0.")] = tensor
    save_file(old, file)
    same(ours, file)


def test_what_is_not_told_is_asked_for(file: Path) -> None:
    written({}, file)
    with pytest.raises(UserError, match=r"heads .* norm_num_groups .*1, 2, 4, 8; .*norm_eps"):
        UNet.from_pretrained(file)
    with pytest.raises(UserError, match="norm_num_groups 3"):
        UNet.from_pretrained(file, CheckpointHints(heads=1, norm_num_groups=3, norm_eps=1e-6))


def test_another_epsilon_beside_transformers_is_refused(file: Path) -> None:
    written(CROSS, file)
    with pytest.raises(UserError, match=r"norm_eps 1e-05 is not supported beside transformers"):
        UNet.from_pretrained(file, CheckpointHints(heads=1, norm_num_groups=4, norm_eps=1e-5))
