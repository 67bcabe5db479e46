"""Properties of `UNet` that need no reference."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import small
import torch
from torch import Tensor, nn

from ddpm_unet.config import UNetConfig
from ddpm_unet.errors import UserError
from ddpm_unet.models import UNet

SMALL = UNetConfig(**small.SMALL, attention_head_dim=4)
DEEP = replace(
    SMALL,
    block_out_channels=(8, 8, 8, 8),
    down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
)
CONDITIONAL = replace(
    SMALL,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    mid_block_type="UNetMidBlock2DCrossAttn",
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    attention_head_dim=2,
    cross_attention_dim=6,
)


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def randomised(config: UNetConfig) -> UNet:
    unet = UNet(config)
    for parameter in unet.parameters():
        nn.init.normal_(parameter, std=0.2)
    return unet.eval()


@pytest.mark.parametrize("downsample_padding", [0, 1])
@pytest.mark.parametrize("downsample_type", ["conv", "resnet"])
@pytest.mark.parametrize("space", [(28, 28), (33, 17), (7, 1), (1, 1)])
@torch.no_grad()
def test_any_size_comes_back(
    space: tuple[int, int], downsample_padding: int, downsample_type: str
) -> None:
    config = replace(DEEP, in_channels=2, out_channels=5, downsample_padding=downsample_padding)
    config.downsample_type = config.upsample_type = downsample_type
    unet = randomised(config)
    output = unet(torch.randn(1, 2, *space), 3)
    assert output.shape == (1, 5, *space)
    assert output.isfinite().all()


@torch.no_grad()
def test_a_volume_of_equal_slices_is_an_image() -> None:
    """With kernels that look at their own slice only, 3-D must equal 2-D, attention included."""
    for config in (DEEP, CONDITIONAL):
        flat = randomised(config)
        deep = UNet(replace(config, dims=3)).eval()
        weights = {
            name: torch.stack([torch.zeros_like(w), w, torch.zeros_like(w)], dim=2)
            if w.ndim == 4 and w.shape[-1] == 3
            else (w.unsqueeze(2) if w.ndim == 4 else w)
            for name, w in flat.state_dict().items()
        }
        deep.load_state_dict(weights)
        image = torch.randn(1, 3, 16, 8)
        volume = image[:, :, None].expand(-1, -1, 8, -1, -1)
        context = torch.randn(1, 3, 6) if config.conditional else None
        expected = flat(image, 7, context)[:, :, None].expand(-1, -1, 8, -1, -1)
        torch.testing.assert_close(deep(volume, 7, context), expected, rtol=1e-4, atol=1e-4)


def test_starts_at_zero_as_does_every_branch() -> None:
    last_layers = (".conv2.", ".proj_out.", "conv_out.")
    for config in (DEEP, CONDITIONAL):
        unet = UNet(config)
        x = torch.randn(2, 3, 8, 8)
        assert not unet(x, 0, *_context(config)).any()
        assert unet.features(x, 0, *_context(config)).any()
        for name, parameter in unet.named_parameters():
            zero = any(part in f".{name}" for part in last_layers) or (
                ".to_out." in name and ".transformer_blocks." not in name
            )
            if zero or name.endswith("weight"):
                assert parameter.any() != zero, name


def _context(config: UNetConfig) -> tuple[Tensor, ...]:
    return (torch.randn(2, 5, 6),) if config.conditional else ()


@torch.no_grad()
def test_features_pyramid_and_head() -> None:
    unet = randomised(DEEP)
    x, t = torch.randn(2, 3, 20, 12), torch.tensor([3, 800])
    features = unet.features(x, t)
    assert features.shape == (2, 8, 20, 12)
    assert torch.equal(unet.head(features), unet(x, t))
    pyramid = unet.pyramid(x, t)
    sizes = [(3, 2), (3, 2), (5, 3), (5, 3), (10, 6), (10, 6), (20, 12), (20, 12)]
    assert [tuple(level.shape[2:]) for level in pyramid] == sizes
    assert torch.equal(pyramid[-1], features)


@torch.no_grad()
def test_one_time_step_for_all() -> None:
    unet = randomised(replace(SMALL, num_class_embeds=3))
    x, labels = torch.randn(3, 3, 8, 8), torch.tensor([0, 2, 1])
    expected = unet(x, torch.tensor([5, 5, 5]), class_labels=labels)
    for t in (5, 5.0, torch.tensor(5), torch.tensor([5])):
        torch.testing.assert_close(unet(x, t, class_labels=labels), expected)
    assert not torch.allclose(unet(x, 6, class_labels=labels), expected)


@torch.no_grad()
def test_masked_context_has_no_influence() -> None:
    unet = randomised(CONDITIONAL)
    x, context = torch.randn(2, 3, 8, 8), torch.randn(2, 5, 6)
    mask = torch.tensor([[True, True, False, False, False], [True] * 5])
    expected = torch.cat((unet(x[:1], 3, context[:1, :2]), unet(x[1:], 3, context[1:])))
    torch.testing.assert_close(unet(x, 3, context, context_mask=mask), expected)


def test_conditions_that_do_not_fit() -> None:
    x = torch.randn(1, 3, 8, 8)
    with pytest.raises(ValueError, match="context missing"):
        UNet(CONDITIONAL)(x, 0)
    with pytest.raises(ValueError, match="context given"):
        UNet(SMALL)(x, 0, torch.randn(1, 5, 6))
    with pytest.raises(ValueError, match="class_labels missing"):
        UNet(replace(SMALL, num_class_embeds=3))(x, 0)
    with pytest.raises(ValueError, match="class_labels given"):
        UNet(SMALL)(x, 0, class_labels=torch.tensor([0]))


@pytest.mark.parametrize("config", [DEEP, CONDITIONAL])
def test_gradient_checkpointing_recomputes_and_changes_nothing(config: UNetConfig) -> None:
    unet = randomised(replace(config, dropout=0.3)).train()
    x, context = torch.randn(2, 3, 8, 8), _context(config)
    calls = []
    unet.down_blocks[0].resnets[0].register_forward_pre_hook(lambda *_: calls.append(0))

    def gradients() -> list[Tensor]:
        unet.zero_grad()
        torch.manual_seed(1)
        unet(x, 3, *context).square().sum().backward()
        return [p.grad for p in unet.parameters() if p.grad is not None]

    plain = gradients()
    assert len(calls) == 1
    unet.enable_gradient_checkpointing()
    recomputed = gradients()
    assert len(calls) == 3
    assert all(map(torch.equal, plain, recomputed))
    unet.enable_gradient_checkpointing(False)
    gradients()
    assert len(calls) == 4


def test_channels_last_and_bfloat16_give_nearly_the_same() -> None:
    unet = randomised(SMALL)
    x = torch.randn(2, 3, 12, 8)
    with torch.no_grad():
        expected = unet(x, 400)
        half = unet.to(torch.bfloat16)(x.bfloat16(), 400)
        assert half.dtype == torch.bfloat16
        assert (half.float() - expected).norm() < 0.05 * expected.norm()
        unet = randomised(SMALL)
        expected = unet(x, 400)
        unet = unet.to(memory_format=torch.channels_last)
        last = unet(x.contiguous(memory_format=torch.channels_last), 400)
        torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-4)
        assert last.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "config", [SMALL, replace(SMALL, resnet_time_scale_shift="scale_shift"), CONDITIONAL]
)
def test_autocast_trains(config: UNetConfig) -> None:
    unet = randomised(config)
    x, context = torch.randn(2, 3, 8, 8), _context(config)
    given = {"context_mask": torch.tensor([[1, 1, 0, 1, 1]] * 2)} if config.conditional else {}
    with torch.no_grad():
        expected = unet(x, 400, *context, **given)
        with torch.autocast("cpu", torch.bfloat16):
            output = unet(x, 400, *context, **given)
    assert (output - expected).norm() < 0.05 * expected.norm()
    with torch.autocast("cpu", torch.bfloat16):
        loss = unet(x, 400, *context, **given).square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in unet.parameters())


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
        ({"norm_num_groups": None}, "norm_num_groups is null"),
        ({"attention_head_dim": 32}, "attention_head_dim: 32 is too large.*16 channels"),
        ({"attn_norm_num_groups": 5}, "attn_norm_num_groups 5 does not divide"),
        (
            {"block_out_channels": (2, 8), "norm_num_groups": 2, "freq_shift": 1},
            "the first, 2, is too small for freq_shift 1; take at least 4",
        ),
        ({"act_fn": "tanh"}, "act_fn is 'tanh'; it must be one of silu"),
        (CROSS | {"attention_head_dim": None}, "attention_head_dim is null"),
        (CROSS | {"attention_head_dim": (1, 2, 4)}, "attention_head_dim has 3 entries"),
        (CROSS | {"attention_head_dim": 9}, "attention_head_dim: 9 is too large.*8 channels"),
        (CROSS | {"downsample_type": "resnet"}, "downsample_type is for networks without context"),
        (CROSS | {"transformer_layers_per_block": (1, 0)}, "transformer_layers_per_block 0"),
    ],
)
def test_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        UNet(UNetConfig(**small.SMALL | settings))
    assert "\n" not in str(caught.value)
