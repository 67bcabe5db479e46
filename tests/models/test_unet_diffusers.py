"""Outputs and gradients of `UNet` against diffusers' networks with random weights."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from diffusers_twins import (
    CIFAR,
    NARROW_STABLE_DIFFUSION,
    SMALL,
    SMALL_CONDITIONAL,
    STABLE_DIFFUSION,
    Settings,
    assert_same,
    inputs,
    outputs_and_gradients,
    reference,
    reference_output,
)
from hypothesis import given as drawn
from hypothesis import settings as budget
from hypothesis import strategies as st

from ddpm_unet.models import UNet
from ddpm_unet.models.pretrained import read_config

RESNET_SMALL = SMALL | {
    "block_out_channels": (8, 8, 16),
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "downsample_type": "resnet",
    "upsample_type": "resnet",
}

VARIANTS: dict[str, Settings] = {
    "class table": SMALL | {"num_class_embeds": 5},
    "class as time": SMALL | {"class_embed_type": "timestep"},
    "class embedding given": SMALL | {"class_embed_type": "identity"},
    "scale and shift": SMALL | {"resnet_time_scale_shift": "scale_shift"},
    "scale and shift, middle norm": SMALL
    | {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 2},
    "residual down and up": RESNET_SMALL,
    "guided diffusion": RESNET_SMALL
    | {"resnet_time_scale_shift": "scale_shift", "num_class_embeds": 4},
    "no middle": SMALL | {"mid_block_type": None},
    "middle without attention": SMALL | {"add_attention": False, "mid_block_scale_factor": 1.4},
    "old names of blocks": SMALL | {"down_block_types": ("UNetResDownBlock2D", "AttnDownBlock2D")},
    "mish": SMALL | {"act_fn": "mish", "center_input_sample": True, "mid_block_scale_factor": 2.0},
    "odd embedding": SMALL | {"block_out_channels": (9, 9), "norm_num_groups": 3, "freq_shift": 1},
    "narrow heads": SMALL | {"attention_head_dim": 7},
    "conditional": SMALL_CONDITIONAL,
    "conditional gelu": SMALL_CONDITIONAL | {"act_fn": "gelu", "class_embed_type": "timestep"},
    "conditional, lone middle": SMALL_CONDITIONAL | {"mid_block_type": "UNetMidBlock2D"},
    "conditional, no middle": SMALL_CONDITIONAL | {"mid_block_type": None},
    "per level": SMALL_CONDITIONAL
    | {
        "attention_head_dim": (2, 4),
        "layers_per_block": (2, 1),
        "transformer_layers_per_block": (2, 1),
        "only_cross_attention": (True, False),
        "num_class_embeds": 3,
    },
    "conditional self-attention": SMALL_CONDITIONAL
    | {
        "down_block_types": ("AttnDownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D"),
        "attention_head_dim": (2, 4),
    },
    "Stable Diffusion 2.1": SMALL_CONDITIONAL
    | {"use_linear_projection": True, "upcast_attention": True, "only_cross_attention": True},
}


def twins(settings: Settings, dtype: torch.dtype) -> tuple[UNet, torch.nn.Module]:
    theirs = reference(settings)
    with TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = UNet.from_pretrained(folder)
    return ours.to(dtype), theirs.to(dtype)


def compare(settings: Settings, space: tuple[int, int], dtype: torch.dtype) -> None:
    ours, theirs = twins(settings, dtype)
    given = inputs(settings, space, dtype)
    tolerance = 1e-5 if dtype == torch.float64 else 1e-4
    assert_same(outputs_and_gradients(ours, given), outputs_and_gradients(theirs, given), tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_cifar(dtype: torch.dtype) -> None:
    compare(CIFAR, (8, 8), dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_narrow_stable_diffusion(dtype: torch.dtype) -> None:
    compare(NARROW_STABLE_DIFFUSION, (8, 16), dtype)


@pytest.mark.parametrize("variant", VARIANTS)
def test_variant(variant: str) -> None:
    """diffusers' UNet2DModel does not convert an embedding of classes as time to float64."""
    single = variant in ("class as time", "Stable Diffusion 2.1")
    compare(VARIANTS[variant], (8, 4), torch.float32 if single else torch.float64)


def test_parameter_counts(tmp_path: Path) -> None:
    for settings, count in ((CIFAR, 35_746_307), (STABLE_DIFFUSION, 859_520_964)):
        (tmp_path / "config.json").write_text(json.dumps(settings))
        with torch.device("meta"):
            unet = UNet(read_config(tmp_path))
        assert sum(p.numel() for p in unet.parameters()) == count


@st.composite
def random_settings(draw: st.DrawFn) -> tuple[Settings, tuple[int, int]]:
    conditional = draw(st.booleans())
    n = draw(st.integers(1, 3))
    groups = draw(st.sampled_from([1, 2, 4]))

    def per_level(values: list) -> st.SearchStrategy:
        return st.lists(st.sampled_from(values), min_size=n, max_size=n).map(tuple)

    def once_or_per_level(values: list) -> object:
        one = st.sampled_from(values)
        return draw(one | per_level(values) if conditional else one)

    cross = ["CrossAttn"] if conditional else []
    kinds = ["", "Attn", "Resnet", *cross]
    down = draw(per_level(kinds))
    up = draw(per_level(kinds))
    resnet = {"down": "ResnetDownsampleBlock2D", "up": "ResnetUpsampleBlock2D"}
    settings: Settings = {
        "in_channels": draw(st.integers(1, 4)),
        "out_channels": draw(st.integers(1, 4)),
        "block_out_channels": draw(per_level([4, 8, 12])),
        "down_block_types": tuple(
            resnet["down"] if k == "Resnet" else f"{k}DownBlock2D" for k in down
        ),
        "up_block_types": tuple(resnet["up"] if k == "Resnet" else f"{k}UpBlock2D" for k in up),
        "layers_per_block": once_or_per_level([1, 2]),
        "downsample_padding": draw(st.sampled_from([0, 1])),
        "norm_num_groups": groups,
        "norm_eps": draw(st.sampled_from([1e-6, 1e-5, 1e-3])),
        "attention_head_dim": once_or_per_level([1, 2, 4]),
        "flip_sin_to_cos": draw(st.booleans()),
        "freq_shift": draw(st.sampled_from([0, 1])),
        "resnet_time_scale_shift": draw(st.sampled_from(["default", "scale_shift"])),
        "act_fn": draw(st.sampled_from(["silu", "swish", "mish", "gelu", "relu"])),
        "mid_block_scale_factor": draw(st.sampled_from([1, 1.3])),
        "num_class_embeds": draw(st.sampled_from([None, 3])),
    }
    if conditional:
        mids = [None, "UNetMidBlock2D", "UNetMidBlock2DCrossAttn"]
        settings |= {
            "mid_block_type": draw(st.sampled_from(mids)),
            "cross_attention_dim": draw(st.sampled_from([3, 5])),
            "transformer_layers_per_block": once_or_per_level([1, 2]),
            "use_linear_projection": draw(st.booleans()),
            "only_cross_attention": once_or_per_level([False, True]),
        }
    else:
        settings |= {
            "mid_block_type": draw(st.sampled_from([None, "UNetMidBlock2D"])),
            "add_attention": draw(st.booleans()),
            "downsample_type": draw(st.sampled_from(["conv", "resnet"])),
            "upsample_type": draw(st.sampled_from(["conv", "resnet"])),
        }
    # diffusers' other decoder blocks double blindly, and fail where the skip has another size.
    sizes = st.integers(2 ** (n - 1), 9)
    if not conditional or not set(up) <= {"", "CrossAttn"}:
        sizes = st.sampled_from([2 ** (n - 1), 2**n])
    return settings, (draw(sizes), draw(sizes))


@budget(max_examples=15, deadline=None, derandomize=True)
@drawn(random_settings())
def test_random_configurations(drawn_settings: tuple[Settings, tuple[int, int]]) -> None:
    settings, space = drawn_settings
    compare(settings, space, torch.float64)


@pytest.mark.parametrize("space", [(28, 28), (5, 7), (9, 4)])
@pytest.mark.parametrize("padding", [0, 1])
def test_odd_sizes_like_the_conditional_model(space: tuple[int, int], padding: int) -> None:
    levels = {
        "block_out_channels": (4, 8, 8),
        "down_block_types": ("CrossAttnDownBlock2D", "ResnetDownsampleBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "downsample_padding": padding,
    }
    compare(SMALL_CONDITIONAL | levels, space, torch.float64)


MASK = torch.tensor([[1, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0]])


@torch.no_grad()
def test_context_mask() -> None:
    ours, theirs = twins(SMALL_CONDITIONAL, torch.float64)
    given = inputs(SMALL_CONDITIONAL, (4, 4), torch.float64)
    expected = reference_output(theirs, given | {"context_mask": MASK})
    assert (ours(**given, context_mask=MASK) - expected).norm() < 1e-5 * expected.norm()
    assert (ours(**given) - expected).norm() > 1e-2 * expected.norm()


@torch.no_grad()
def test_context_mask_covers_every_attention_to_the_context() -> None:
    settings = SMALL_CONDITIONAL | {
        "only_cross_attention": True,
        "mid_block_type": "UNetMidBlock2D",
    }
    ours, theirs = twins(settings, torch.float64)
    given = inputs(settings, (4, 4), torch.float64)
    # diffusers masks a block's first attention by attention_mask, its second by the other.
    expected = reference_output(theirs, given | {"attention_mask": MASK, "context_mask": MASK})
    assert (ours(**given, context_mask=MASK) - expected).norm() < 1e-5 * expected.norm()
