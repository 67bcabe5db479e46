"""Configurations that make no network are refused, by the name of the setting and the cure."""

from typing import Any

import pytest
from small import SMALL

from ddpm_unet.config import UNetConfig
from ddpm_unet.errors import UserError
from ddpm_unet.models import UNet

CROSS = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "cross_attention_dim": 8}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block_out_channels": ()}, "block_out_channels is empty"),
        ({"block_out_channels": (8,)}, "down_block_types has 2 entries.*give one per level"),
        ({"up_block_types": ("UpBlock2D",)}, "up_block_types has 1 entries"),
        ({"block_out_channels": (8, 18)}, "18 is not a multiple of norm_num_groups 4"),
        ({"down_block_types": ("DownBlock", "DownBlock2D")}, "did you mean DownBlock2D"),
        ({"up_block_types": ("Foo", "UpBlock2D")}, "unknown block 'Foo'; take one of UpBlock2D, "),
        ({"mid_block_type": "MidBlock"}, "mid_block_type: unknown block 'MidBlock'"),
        ({"down_block_types": CROSS["down_block_types"]}, "cross_attention_dim is null"),
        ({"mid_block_type": "UNetMidBlock2DCrossAttn"}, "cross_attention_dim is null"),
        ({"use_linear_projection": True}, "use_linear_projection is for conditional networks"),
        ({"layers_per_block": (1, 2, 3)}, "layers_per_block has 3 entries"),
        ({"layers_per_block": 0}, "layers_per_block 0: must be between 1 and 64"),
        ({"in_channels": 0}, "in_channels 0: must be"),
        ({"norm_num_groups": None}, "norm_num_groups is null"),
        ({"attention_head_dim": 32}, "attention_head_dim: 32 is too large.*16 channels"),
        ({"attn_norm_num_groups": 5}, "attn_norm_num_groups 5 does not divide"),
        (
            {"block_out_channels": (2, 8), "norm_num_groups": 2, "freq_shift": 1},
            "the first, 2, is too small for freq_shift 1; take at least 4",
        ),
        ({"dims": 1}, "dims is 1; it must be one of 2, 3"),
        ({"act_fn": "tanh"}, "act_fn is 'tanh'; it must be one of silu"),
        ({"downsample_padding": 2}, "downsample_padding is 2"),
        ({"resnet_time_scale_shift": "ada"}, "resnet_time_scale_shift is 'ada'"),
        ({"class_embed_type": "projection"}, "class_embed_type is 'projection'"),
        ({"dropout": 1.0}, "dropout 1: must be"),
        (CROSS | {"attention_head_dim": None}, "attention_head_dim is null"),
        (CROSS | {"attention_head_dim": (1, 2, 4)}, "attention_head_dim has 3 entries"),
        (CROSS | {"attention_head_dim": 9}, "attention_head_dim: 9 is too large.*8 channels"),
        (CROSS | {"downsample_type": "resnet"}, "downsample_type is for networks without context"),
        (CROSS | {"transformer_layers_per_block": (1, 0)}, "transformer_layers_per_block 0"),
    ],
)
def test_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        UNet(UNetConfig(**SMALL | settings))
    assert "\n" not in str(caught.value)


def test_default_is_accepted() -> None:
    UNet(UNetConfig())
