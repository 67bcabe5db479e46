"""Losses and gradients of a GPU in each precision, beside a CPU's in float64."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from ddpm_unet.config import ClassicConfig, HeadConfig, UNetConfig
from ddpm_unet.diffusion.process import GaussianDiffusion
from ddpm_unet.models import UNet
from ddpm_unet.models.classic import ClassicUNet
from ddpm_unet.models.segmenter import Segmenter

PLAIN = UNetConfig(
    sample_size=16,
    block_out_channels=(32, 64),
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    layers_per_block=1,
    norm_num_groups=8,
    attention_head_dim=16,
)
CONTEXT = replace(
    PLAIN,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    mid_block_type="UNetMidBlock2DCrossAttn",
    cross_attention_dim=24,
    attention_head_dim=4,
)
VOLUMES = replace(PLAIN, dims=3)
NETWORKS = {
    "unet": lambda: UNet(PLAIN),
    "context": lambda: UNet(CONTEXT),
    "volumes": lambda: UNet(VOLUMES),
    "segmenter": lambda: Segmenter(UNet(PLAIN), HeadConfig()),
    "classic": lambda: ClassicUNet(ClassicConfig(in_channels=3, depth=2, base_width=16, dropout=0)),
}
PRECISIONS = {"float32": (1e-5, 1e-4), "tf32": (1e-3, 1e-2), "bf16": (2e-2, 6e-2)}
"""By precision, the largest error of a loss, relative, and of all gradients together, of their
norm. A product of tf32 errs by some 3e-4, of bfloat16 by some 3e-3, and a gradient has passed
through dozens of them."""


def losses(name, network, dtype, device):
    """Of 4 images: of denoising, or of pixel labels."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(shape, generator=generator).to(device, dtype)

    space = (8, 8, 8) if name == "volumes" else (48, 48) if name == "classic" else (16, 16)
    images, noise = draw(4, 3, *space).clamp(-1, 1), draw(4, 3, *space)
    if name in ("segmenter", "classic"):
        logits = network(images)
        labels = (noise[:, 0] > 0).long()[:, : logits.shape[2], : logits.shape[3]]
        return nn.functional.cross_entropy(logits.to(dtype), labels, reduction="none").mean((1, 2))
    cond = {"context": draw(4, 5, 24)} if name == "context" else {}
    t = torch.tensor([3, 200, 600, 990], device=device)
    diffusion = GaussianDiffusion().to(device)
    x_t = diffusion.add_noise(images, t, noise).to(dtype)
    prediction = network(x_t, t, **cond)
    return (prediction.to(dtype) - diffusion.target(images, t, noise)).square().flatten(1).mean(1)


@pytest.fixture(scope="module")
def reference():
    """By name, a network in float64 on the CPU, its losses and its gradients."""
    found = {}
    for name, make in NETWORKS.items():
        torch.manual_seed(0)
        network = make()
        with torch.no_grad():
            for parameter in network.parameters():  # those that begin at 0 hide what goes in
                if parameter.ndim > 1 and not parameter.any():
                    nn.init.normal_(parameter, std=0.05)
        network.double().train()
        values = losses(name, network, torch.float64, "cpu")
        values.sum().backward()
        found[name] = (
            network,
            values.detach(),
            [p.grad for p in network.parameters() if p.requires_grad],
        )
    return found


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", NETWORKS)
def test_losses_and_gradients(name, precision, compiled, reference, device, exact):
    if compiled and (device.type == "cpu" or precision == "tf32" or name != "unet"):
        pytest.skip("one network is compiled, on a GPU")
    source, expected, gradients = reference[name]
    network = NETWORKS[name]().to(device, memory_format=last(source)).train()
    network.load_state_dict(source.float().state_dict())
    source.double()
    if precision == "tf32":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    if compiled:
        network.compile()
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        values = losses(name, network, torch.float32, device)
    values.sum().backward()
    of_loss, of_gradient = PRECISIONS[precision]
    torch.testing.assert_close(values.cpu().double(), expected, rtol=of_loss, atol=0)
    found = [p.grad.cpu().double() for p in network.parameters() if p.requires_grad]
    pairs = list(zip(found, gradients, strict=True))
    error = sum((a - b).square().sum() for a, b in pairs).sqrt()
    norm = sum(b.square().sum() for _, b in pairs).sqrt()
    assert error < of_gradient * norm, f"gradients off by {error / norm:.1e}"


def last(network):
    """Channels last, as on a GPU by default."""
    volumes = any(p.ndim == 5 for p in network.parameters())
    return torch.channels_last_3d if volumes else torch.channels_last
