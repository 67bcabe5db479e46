"""Pipelines of diffusers draw the same images with our U-Net as with theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import AutoencoderKL, DDIMPipeline, DDIMScheduler
from diffusers_twins import SMALL, SMALL_CONDITIONAL, reference
from torch import Tensor

from ddpm_unet.models import UNet
from ddpm_unet.models.as_diffusers import AsDiffusers

MISSING: dict[str, Any] = dict.fromkeys(
    ("tokenizer", "safety_checker", "feature_extractor", "image_encoder")
)


@pytest.fixture
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[torch.nn.Module, UNet]:
    """diffusers' network of some settings, and ours."""
    theirs = reference(request.param)
    theirs.save_pretrained(tmp_path)
    return theirs, UNet.from_pretrained(tmp_path)


def seed() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("pair", [SMALL | {"sample_size": 8}], indirect=True)
def test_an_unconditional_pipeline(pair: tuple[Any, UNet]) -> None:
    images = []
    for unet in (pair[0], AsDiffusers(pair[1])):
        pipeline = DDIMPipeline(unet, DDIMScheduler())
        pipeline.set_progress_bar_config(disable=True)
        given: dict[str, Any] = {"num_inference_steps": 3, "output_type": "np"}
        images.append(torch.tensor(pipeline(batch_size=2, generator=seed(), **given).images))
    assert images[0].std() > 0.1
    torch.testing.assert_close(images[1], images[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "pair",
    [SMALL_CONDITIONAL | {"in_channels": 4, "out_channels": 4, "sample_size": 8}],
    indirect=True,
)
def test_a_stable_diffusion_pipeline(pair: tuple[Any, UNet], tmp_path: Path) -> None:
    """Text encoder, guidance and autoencoder around our U-Net: in the pipeline, and from a folder
    in which our U-Net was saved.
    """
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 10, "intermediate_size": 16, "num_attention_heads": 2}
    sizes |= {"num_hidden_layers": 1, "vocab_size": 99, "max_position_embeddings": 7}
    text = transformers.CLIPTextModel(transformers.CLIPTextConfig(**sizes))
    autoencoder = AutoencoderKL(
        block_out_channels=(8,), norm_num_groups=4, latent_channels=4, sample_size=8
    )
    words = [text(torch.randint(99, (1, 7)))[0].detach() for _ in range(2)]

    def draw(pipeline: Any) -> Tensor:
        pipeline.set_progress_bar_config(disable=True)
        given = {"num_inference_steps": 3, "guidance_scale": 4.0, "output_type": "pt"}
        given |= {"prompt_embeds": words[0], "negative_prompt_embeds": words[1]}
        return pipeline(generator=seed(), **given).images

    kind = diffusers.StableDiffusionPipeline
    parts = {
        "vae": autoencoder,
        "text_encoder": text,
        "scheduler": DDIMScheduler(clip_sample=False, steps_offset=1),
    }
    pipeline = kind(unet=pair[0], **parts, **MISSING, requires_safety_checker=False)
    expected = draw(pipeline)
    assert expected.std() > 0.01
    ours = kind(unet=AsDiffusers(pair[1]), **parts, **MISSING, requires_safety_checker=False)
    torch.testing.assert_close(draw(ours), expected, rtol=0, atol=1e-4)

    pipeline.save_pretrained(tmp_path / "pipeline")
    (tmp_path / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    pair[1].save_pretrained(tmp_path / "pipeline" / "unet")
    again = kind.from_pretrained(tmp_path / "pipeline", **MISSING)
    torch.testing.assert_close(draw(again), expected, rtol=0, atol=1e-4)
    read = AsDiffusers(UNet.from_pretrained(tmp_path / "pipeline"))
    again = kind.from_pretrained(tmp_path / "pipeline", unet=read, **MISSING)
    torch.testing.assert_close(draw(again), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("pair", [SMALL_CONDITIONAL], indirect=True)
def test_called_as_diffusers_calls(pair: tuple[Any, UNet]) -> None:
    ours = AsDiffusers(pair[1])
    given = (torch.randn(2, ours.config.in_channels, 8, 8), 7, torch.randn(2, 5, 10))
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    with torch.no_grad():
        expected = pair[0](*given, encoder_attention_mask=mask).sample
        output = ours(*given, encoder_attention_mask=mask, cross_attention_kwargs=None)
        assert torch.equal(output[0], output.sample)
        torch.testing.assert_close(output.sample, expected, rtol=1e-4, atol=1e-4)
        assert isinstance(ours(*given, return_dict=False), tuple)
    assert ours.config.keys() >= pair[0].config.keys() - {"_use_default_values"}
    assert (ours.dtype, ours.device) == (torch.float32, torch.device("cpu"))
    with pytest.raises(ValueError, match="mid_block_additional_residual given"):
        ours(*given, mid_block_additional_residual=torch.zeros(1))


@pytest.mark.parametrize("pair", [SMALL | {"sample_size": 8}], indirect=True)
def test_a_pipeline_with_ours_is_saved_and_read_by_diffusers_alone(
    pair: tuple[Any, UNet], tmp_path: Path
) -> None:
    DDIMPipeline(AsDiffusers(pair[1]), DDIMScheduler()).save_pretrained(tmp_path / "saved")
    read = DDIMPipeline.from_pretrained(tmp_path / "saved").unet
    assert type(read) is type(pair[0])
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(read(x, 5).sample, pair[0](x, 5).sample)


@pytest.mark.parametrize("pair", [SMALL], indirect=True)
def test_gradient_checkpointing_by_diffusers_names(pair: tuple[Any, UNet]) -> None:
    ours = AsDiffusers(pair[1])
    calls: list[int] = []
    pair[1].down_blocks[0].resnets[0].register_forward_pre_hook(lambda *_: calls.append(0))
    for change, runs in (
        (ours.enable_gradient_checkpointing, 2),
        (ours.disable_gradient_checkpointing, 1),
    ):
        change()
        assert ours.is_gradient_checkpointing == (runs == 2)
        calls.clear()
        ours(torch.randn(1, 3, 8, 8), 3).sample.sum().backward()
        assert len(calls) == runs
