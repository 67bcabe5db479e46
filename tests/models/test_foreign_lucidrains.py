"""denoising-diffusion-pytorch: outputs that version 2.3.4 gave, and by itself where installed.

The file of this name with .json holds, for each network, the arguments of its constructor, the
shapes of its tensors by name, and 16 numbers of its output; weights and input are those of `noise`.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler
from safetensors.torch import save_file
from torch import Tensor

from ddpm_unet.config import HeadConfig
from ddpm_unet.config.foreign import LucidrainsConfig
from ddpm_unet.errors import UserError
from ddpm_unet.models import UNet, foreign
from ddpm_unet.models.as_diffusers import AsDiffusers
from ddpm_unet.models.lucidrains import LucidrainsUNet
from ddpm_unet.models.segmenter import Segmenter

WRITTEN: list[dict[str, Any]] = json.loads(Path(__file__).with_suffix(".json").read_text())


def noise(shape: list[int], number: int) -> Tensor:
    """Numbers from -1 to 1, other ones for every `number`, the same on every machine."""
    angles = torch.arange(math.prod(shape), dtype=torch.float64) * 12.9898 + 78.233 * number
    return (2 * (angles.sin() * 43758.5453).frac().abs() - 1).float().reshape(shape)


def weights_of(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """Weights of such size that every layer matters in the output."""
    weights = {}
    for number, (name, shape) in enumerate(sorted(shapes.items())):
        value = noise(shape, number)
        if name.endswith(".g"):
            value = 1 + 0.5 * value
        elif len(shape) > 1 and not name.endswith("mem_kv"):
            value = value * 2 / value[0].numel() ** 0.5
        weights[name] = value
    return weights


def picture(channels: int) -> Tensor:
    return noise([2, channels, 8, 12], 1000)


TIMES = torch.tensor([3.0, 700.0])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The first of the networks, with the schedule and the names of a `GaussianDiffusion`."""
    weights = {f"model.{n}": t for n, t in weights_of(WRITTEN[0]["shapes"]).items()}
    save_file(weights | {"betas": torch.linspace(1e-4, 0.02, 1000)}, tmp_path / "x.safetensors")
    return tmp_path / "x.safetensors"


@pytest.mark.parametrize("number", range(len(WRITTEN)))
def test_outputs_are_those_written_down(number: int, tmp_path: Path) -> None:
    written = WRITTEN[number]
    save_file(weights_of(written["shapes"]), tmp_path / "x.safetensors")
    unet = UNet.from_pretrained(tmp_path / "x.safetensors")
    with torch.no_grad():
        output = unet(picture(unet.config.in_channels), TIMES)
    numbers = output.flatten()[:: output.numel() // 16][:16]
    torch.testing.assert_close(numbers, torch.tensor(written["numbers"]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("number", range(len(WRITTEN)))
def test_outputs_are_those_of_the_peer(number: int, tmp_path: Path) -> None:
    peer = pytest.importorskip("denoising_diffusion_pytorch")
    written = WRITTEN[number]
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in written["settings"].items()}
    theirs = peer.Unet(**settings).eval()
    shapes = {name: list(tensor.shape) for name, tensor in theirs.state_dict().items()}
    assert shapes == written["shapes"]
    weights = weights_of(shapes)
    theirs.load_state_dict(weights)
    save_file(weights, tmp_path / "x.safetensors")
    unet = UNet.from_pretrained(tmp_path / "x.safetensors")
    x = picture(unet.config.in_channels)
    half = x.chunk(2, dim=1)
    conditional = settings.get("self_condition")
    with torch.no_grad():
        expected = theirs(half[1], TIMES, half[0]) if conditional else theirs(x, TIMES)
        torch.testing.assert_close(unet(x, TIMES), expected, rtol=1e-4, atol=1e-4)
        kind, given = foreign.recognise(tmp_path / "x.safetensors", foreign.ForeignConfig())
        same = kind.peer(given, unet.config)(x, TIMES, None, None)
        torch.testing.assert_close(same, expected, rtol=1e-5, atol=1e-5)


def test_a_folder_of_its_own(file: Path, tmp_path: Path) -> None:
    unet = UNet.from_pretrained(file)
    assert isinstance(unet, LucidrainsUNet)
    unet.save_pretrained(tmp_path / "out")
    again = UNet.from_pretrained(tmp_path / "out")
    assert isinstance(again, LucidrainsUNet)
    assert again.config == unet.config
    assert torch.equal(unet(picture(3), 5), again(picture(3), 5))


def test_any_size_comes_back(file: Path) -> None:
    unet = UNet.from_pretrained(file)
    assert unet(torch.randn(1, 3, 7, 10), 4).shape == (1, 3, 7, 10)
    assert [x.shape[1] for x in unet.pyramid(picture(3), 4)] == [16, 16, 8, 8, 8]


def test_gradients_reach_every_weight_also_with_checkpointing(file: Path) -> None:
    unet = UNet.from_pretrained(file).train()
    gradients = []
    for recomputed in (False, True):
        unet.enable_gradient_checkpointing(recomputed)
        unet.zero_grad()
        unet(picture(3), TIMES).square().mean().backward()
        gradients.append({name: p.grad.clone() for name, p in unet.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradients[1][name], gradient)


def test_a_segmenter_of_it(file: Path, tmp_path: Path) -> None:
    UNet.from_pretrained(file).save_pretrained(tmp_path / "unet")
    segmenter = Segmenter.from_denoiser(tmp_path / "unet", HeadConfig(num_classes=3))
    assert segmenter(picture(3)).shape == (2, 3, 8, 12)
    rates = [group["lr"] for group in segmenter.parameter_groups(1.0, 0.5)]
    assert len(rates) == len(set(rates)) == 8  # head, final block, 2 up, middle, 2 down, first
    segmenter.save_pretrained(tmp_path / "segmenter")
    again = Segmenter.from_pretrained(tmp_path / "segmenter")
    assert torch.equal(again(picture(3)), segmenter.eval()(picture(3)))
    with pytest.raises(UserError, match='"features" reads a UNet only'):
        Segmenter.from_denoiser(
            tmp_path / "unet", HeadConfig(transfer="features", feature_alphas=(0.9, 0.8, 0.7))
        )


def test_in_a_pipeline_of_diffusers(file: Path) -> None:
    unet = UNet.from_pretrained(file)
    unet.config.sample_size = 8
    pipeline = DDIMPipeline(AsDiffusers(unet), DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(num_inference_steps=2, output_type="np").images.shape == (1, 8, 8, 3)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("time_mlp.0.weights", (8,), "time_mlp.0.weights is of learned or random frequencies"),
        ("time_mlp.1.weight", (32, 17), "reads 17 sinusoids, not as many"),
        ("init_conv.weight", (8, 3, 3, 3), r"conv_in.weight has shape \[8, 3, 3, 3\]"),
        ("final_res_block.block1.norm.g", None, "up_blocks.2.rms1.weight is missing"),
        ("other.weight", (3,), "unexpected tensor other.weight"),
    ],
)
def test_other_networks_are_refused(
    name: str, shape: tuple[int, ...] | None, message: str, tmp_path: Path
) -> None:
    weights = weights_of(WRITTEN[0]["shapes"])
    if shape is None:
        del weights[name]
    else:
        weights[name] = torch.zeros(shape)
    save_file(weights, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=message):
        UNet.from_pretrained(tmp_path / "x.safetensors")


def test_settings_of_other_levels_are_refused() -> None:
    with pytest.raises(UserError, match="head_dims has not one entry per level"):
        LucidrainsUNet(LucidrainsConfig(head_dims=(8, 8)))
