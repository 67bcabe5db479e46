"""Networks are plain modules: what PyTorch and its libraries do with any module, they take.

Accelerated networks too: there the compiled functions stand back.
"""

import doctest
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers_twins import SMALL, SMALL_CONDITIONAL, Settings, inputs, randomise
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

from ddpm_unet.cpu import accelerate_cpu, modules
from ddpm_unet.errors import UserError
from ddpm_unet.models import ClassicUNet, Segmenter, UNet, classic, segmenter, unet
from ddpm_unet.models.blocks import DOWN_BLOCKS, Cond, DownBlock

RESNET = SMALL | {
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "resnet_time_scale_shift": "scale_shift",
    "num_class_embeds": 3,
}
WIDE = SMALL | {"block_out_channels": (16, 32), "downsample_padding": 0}
CLASSIC = {"depth": 3, "base_width": 16, "padding": "same", "dropout": 0.0, "in_channels": 3}
NETWORKS: dict[str, Any] = {
    "unet": (lambda: UNet(**WIDE), inputs(WIDE, (8, 12), torch.float32)),
    "scale_shift": (lambda: UNet(**RESNET), inputs(RESNET, (8, 12), torch.float32)),
    "conditional": (
        lambda: UNet(**SMALL_CONDITIONAL, in_channels=3, out_channels=3),
        inputs(SMALL_CONDITIONAL | {"in_channels": 3}, (8, 12), torch.float32)
        | {"context_mask": torch.tensor([[1, 1, 1, 0, 0, 0, 0], [1] * 7])},
    ),
    "segmenter": (lambda: Segmenter(UNet(**WIDE)), {"images": torch.randn(2, 3, 8, 12)}),
    "classic": (lambda: ClassicUNet(**CLASSIC), {"images": torch.randn(2, 3, 8, 12)}),
}


@pytest.fixture(params=[False, True], ids=["plain", "accelerated"])
def accelerated(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture(params=NETWORKS)
def case(request: pytest.FixtureRequest, accelerated: bool) -> tuple[nn.Module, dict[str, Tensor]]:
    make, given = NETWORKS[request.param]
    torch.manual_seed(0)
    network = make().eval()
    randomise(network)
    return accelerate_cpu(network) if accelerated else network, dict(given)


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def gradients(network: nn.Module, output: Tensor) -> dict[str, Tensor]:
    named = {name: p for name, p in network.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(output.square().mean(), list(named.values()), allow_unused=True)
    return {name: g for name, g in zip(named, found, strict=True) if g is not None}


def test_vmap(case: tuple[nn.Module, dict[str, Tensor]]) -> None:
    network, given = case
    many = {name: value.unsqueeze(1) for name, value in given.items()}
    close(vmap(lambda g: network(**g))(many)[:, 0], network(**given))


def test_a_gradient_of_each_image(case: tuple[nn.Module, dict[str, Tensor]]) -> None:
    network, given = case
    weights = {n: p.detach() for n, p in network.named_parameters() if p.requires_grad}

    def loss(weights: dict[str, Tensor], one: dict[str, Tensor]) -> Tensor:
        batch = {name: value.unsqueeze(0) for name, value in one.items()}
        return functional_call(network, weights, (), batch).square().mean()

    each = vmap(grad(loss), in_dims=(None, 0))(weights, given)
    expected = gradients(network, network(**{name: v[1:] for name, v in given.items()}))
    for name, value in expected.items():
        close(each[name][1], value)


def test_jvp(case: tuple[nn.Module, dict[str, Tensor]]) -> None:
    network, given = case
    network = network.double()
    name = next(iter(given))
    given = {n: v.double() if v.is_floating_point() else v for n, v in given.items()}
    x, rest = given[name], {n: v for n, v in given.items() if n != name}
    tangent, h = torch.randn_like(x), 1e-6
    _, found = jvp(lambda x: network(x, **rest), (x,), (tangent,))
    with torch.no_grad():
        expected = (network(x + h * tangent, **rest) - network(x - h * tangent, **rest)) / (2 * h)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_traced_with_gradients(case: tuple[nn.Module, dict[str, Tensor]]) -> None:
    network, given = case
    traced: Any = torch.jit.trace(network, example_kwarg_inputs=given, check_trace=False)
    found = gradients(network, traced(**given))
    expected = gradients(network, network(**given))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        close(found[name], value)


@pytest.mark.parametrize(  # of the blocks that differ in one graph, each once
    ("case", "accelerated"),
    [("scale_shift", False), ("classic", False), ("conditional", True), ("segmenter", True)],
    indirect=True,
)
def test_compiled_and_exported_in_one_graph(case: tuple[nn.Module, dict[str, Tensor]]) -> None:
    network, given = case
    expected = network(**given)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    close(gradients(network, compiled(**given)), gradients(network, expected))
    close(torch.export.export(network, (), given).module()(**given), expected)


@pytest.mark.filterwarnings("ignore")
def test_quantized_linear_layers(case: tuple[nn.Module, dict[str, Tensor]]) -> None:
    network, given = case
    with torch.no_grad():
        expected = network(**given)
        small: Any = torch.ao.quantization.quantize_dynamic(network, {nn.Linear}, torch.qint8)
        found = small(**given)
    assert (found - expected).norm() < 0.1 * expected.norm()
    assert any("quantized" in type(m).__module__ for m in small.modules()) == any(
        isinstance(m, nn.Linear) for m in network.modules()
    )


@pytest.mark.parametrize("settings", [WIDE, SMALL_CONDITIONAL])
def test_lora(settings: Settings, accelerated: bool) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    unet = UNet(**settings)
    randomise(unet)
    given = inputs(settings | {"in_channels": 3}, (8, 12), torch.float32)
    expected = unet(**given)
    if accelerated:
        accelerate_cpu(unet)
    lora = peft.LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v"])
    adapted = peft.get_peft_model(unet, lora)
    close(adapted(**given), expected)  # B is zero at first
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert trained
    assert all(".lora_" in name for name in trained)
    adapted(**given).square().mean().backward()
    updates = [p.grad for n, p in adapted.named_parameters() if ".lora_B." in n]
    assert all(g is not None and g.any() for g in updates)


@pytest.mark.parametrize("settings", [WIDE, RESNET, SMALL_CONDITIONAL])
def test_names_come_in_diffusers_order(settings: Settings, accelerated: bool) -> None:
    theirs = (UNet2DConditionModel if "cross_attention_dim" in settings else UNet2DModel)(
        **settings | {"in_channels": 3, "out_channels": 3}
    )
    ours = UNet(**settings)
    if accelerated:
        accelerate_cpu(ours)
    for names in ("named_parameters", "named_buffers"):
        assert [n for n, _ in getattr(ours, names)()] == [n for n, _ in getattr(theirs, names)()]
    assert list(ours.state_dict()) == list(theirs.state_dict())


def test_the_arguments_of_diffusers() -> None:
    unet = UNet(sample_size=64, block_out_channels=[32, 64], time_embedding_type="positional")
    assert unet.config.down_block_types == ("DownBlock2D", "AttnDownBlock2D")
    assert unet.config.up_block_types == ("AttnUpBlock2D", "UpBlock2D")
    assert UNet().config == UNet(block_out_channels=(64, 128, 128)).config
    text = UNet(block_out_channels=(32, 64), cross_attention_dim=8)
    assert text.config.down_block_types == ("CrossAttnDownBlock2D", "DownBlock2D")
    assert text.config.mid_block_type == "UNetMidBlock2DCrossAttn"
    changed = UNet(unet.config, dropout=0.1).config
    assert (changed.dropout, changed.sample_size, unet.config.dropout) == (0.1, 64, 0.0)
    for given, message in (
        ({"block_out_chanels": (32,)}, "unknown key .*; did you mean block_out_channels"),
        ({"in_channels": "three"}, "in_channels is 'three'; it must be a whole number"),
        ({"time_embedding_type": "fourier"}, "'fourier' is not supported; only 'positional'"),
    ):
        with pytest.raises(UserError, match=message):
            UNet(**given)
    with pytest.raises(UserError, match="did you mean num_classes"):
        Segmenter(unet, num_clases=2)
    with pytest.raises(UserError, match="did you mean base_width"):
        ClassicUNet(base_with=2)
    assert ClassicUNet(depth=2, base_width=2).config.depth == 2


class Twice(DownBlock):
    """A block of one's own: the level's output is doubled."""

    def forward(self, x: Tensor, cond: Cond) -> list[Tensor]:
        return [2 * output for output in super().forward(x, cond)]


class Middle(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, cond: Cond) -> Tensor:
        return x + self.mix(x)


def test_blocks_of_ones_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setitem(DOWN_BLOCKS, "TwiceDownBlock2D", Twice)
    settings = SMALL | {"down_block_types": ("TwiceDownBlock2D", "AttnDownBlock2D")}
    unet = UNet(**settings)
    assert isinstance(unet.down_blocks[0], Twice)
    randomise(unet)
    x = torch.randn(1, 3, 8, 8)
    unet.save_pretrained(tmp_path)
    assert torch.equal(UNet.from_pretrained(tmp_path)(x, 3), unet(x, 3))
    unet.mid_block = Middle(16)
    unet(x, 3).sum().backward()
    assert unet.mid_block.mix.weight.grad.any()
    with pytest.raises(UserError, match="did you mean TwiceDownBlock2D"):
        UNet(**settings | {"down_block_types": ("TwiceDownBlock", "AttnDownBlock2D")})


@pytest.mark.parametrize("module", [unet, segmenter, classic, modules])
def test_examples_in_docstrings(module: Any) -> None:
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed
