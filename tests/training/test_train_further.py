"""Trainings that begin from a denoiser, and runs that get more steps than they had."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from diffusers import DDPMPipeline
from PIL import Image
from short_runs import build, kill, run

from ddpm_unet import Denoiser, cli
from ddpm_unet.config import DiffusionConfig
from ddpm_unet.diffusion.process import GaussianDiffusion
from ddpm_unet.errors import UserError
from ddpm_unet.inference.pipeline import read_pipeline, write_pipeline
from ddpm_unet.models import UNet
from ddpm_unet.models.lora import FILE, load_lora


@pytest.fixture
def denoiser(settings, tmp_path):
    """A denoiser of another size and process than those of the settings."""
    torch.manual_seed(3)
    model = {**settings.model.__dict__, "block_out_channels": (12, 24), "sample_size": 16}
    model |= {"in_channels": 3, "out_channels": 3, "dims": 2, "norm_num_groups": 4}
    unet = UNet(**model)
    process = GaussianDiffusion(
        num_timesteps=50, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"
    )
    write_pipeline(tmp_path / "denoiser", unet, process)
    return tmp_path / "denoiser", unet


@pytest.mark.parametrize("of", ["ours", "diffusers'"])
def test_a_denoiser_is_trained_further(settings, denoiser, tmp_path, of):
    folder, unet = denoiser
    if of != "ours":
        pipeline = DDPMPipeline.from_pretrained(folder)
        folder = tmp_path / "pipeline"
        pipeline.save_pretrained(folder)
    settings.init, settings.train.steps, settings.train.lr = str(folder), 2, 1e-12
    finished = run(settings)
    trained, process = read_pipeline(finished.model)
    for name, tensor in unet.state_dict().items():
        torch.testing.assert_close(trained.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)
    assert trained.config == replace(unet.config, sample_size=8)
    assert (process.num_timesteps, process.prediction_type) == (50, "v_prediction")
    said = yaml.safe_load((finished.path / "config.yaml").read_text())
    assert said["model"]["block_out_channels"] == [12, 24]
    assert said["diffusion"]["prediction_type"] == "v_prediction"
    settings.train.steps, settings.train.lr_schedule = 4, "linear"
    with pytest.raises(UserError, match=r"train\.lr_schedule = cosine, not linear"):
        run(settings)


def test_a_denoiser_of_something_else_is_refused(settings, denoiser):
    folder, _ = denoiser
    settings.init, settings.self_conditioning = str(folder), True
    with pytest.raises(UserError, match="has self_conditioning False, these settings have True"):
        build(settings)
    (folder / "vae").mkdir()
    settings.self_conditioning = False
    with pytest.raises(UserError, match=r"denoises latents, and latent\.autoencoder says"):
        build(settings)


def test_more_steps_and_a_jump_of_the_rate_are_said(settings, capsys):
    settings.diffusion = DiffusionConfig(num_train_timesteps=20)
    settings.train.steps, settings.train.warmup_steps = 6, 0
    run(settings)
    assert "jumps" not in capsys.readouterr().out
    settings.train.steps = 12
    run(settings)
    said = capsys.readouterr().out
    assert "train.steps is 12, was 6" in said
    assert "the learning rate jumps from 6.7e-05 to 0.0005, as its cosine schedule is" in said


# LoRA


@pytest.fixture
def attending(settings, tmp_path):
    """A denoiser with attention, which ours and diffusers' classes read."""
    torch.manual_seed(4)
    model = {**settings.model.__dict__, "sample_size": 8, "dropout": 0.0}
    unet = UNet(**model | {"in_channels": 3, "out_channels": 3, "dims": 2})
    torch.nn.init.normal_(unet.conv_out.weight, std=0.1)
    write_pipeline(tmp_path / "base", unet, GaussianDiffusion(num_timesteps=50))
    return tmp_path / "base"


@pytest.mark.parametrize(("layers", "native"), [("attention", False), ("all", True)])
def test_lora_trains_changes_alone_and_diffusers_reads_them(
    settings, attending, tmp_path, layers, native
):
    pytest.importorskip("peft")
    from diffusers import UNet2DModel
    from diffusers.loaders import PeftAdapterMixin

    settings.init, settings.model.dropout = str(attending), 0.0
    settings.lora.rank, settings.lora.alpha, settings.lora.layers = 2, 3.0, layers
    settings.train.steps, settings.train.lr, settings.train.native = 6, 0.05, native
    finished = run(settings)
    whole, _ = read_pipeline(finished.model)
    before, _ = read_pipeline(attending)
    x, t = (
        torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)),
        torch.tensor([3, 40]),
    )
    expected = whole(x, t)
    assert (expected - before(x, t)).abs().max() > 1e-3
    changed = {n for n, w in whole.state_dict().items() if not w.equal(before.state_dict()[n])}
    ends = ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight")
    assert changed if layers == "all" else all(name.endswith(ends) for name in changed)
    assert len(changed) > (8 if layers == "all" else 3)
    ours = Denoiser.from_pretrained(attending, lora=finished.model).unet
    torch.testing.assert_close(ours(x, t), expected, rtol=1e-4, atol=1e-5)
    if not native:
        draw = ["--num_images", "1", "--steps", "2", "--out", str(tmp_path / "drawn")]
        cli.run("sample", ["--model", str(attending), "--lora", str(finished.model), *draw])
        made = Denoiser.from_pretrained(finished.model).sample(1, steps=2, batch_size=16)
        with Image.open(tmp_path / "drawn" / "00000.png") as file:
            np.testing.assert_allclose(np.asarray(file).astype(int), made[0], atol=1)
    half = Denoiser.from_pretrained(attending, lora=finished.model / FILE, lora_scale=0.5).unet
    mean = {n: (w + before.state_dict()[n]) / 2 for n, w in whole.state_dict().items()}
    torch.testing.assert_close(dict(half.state_dict()), mean, rtol=1e-4, atol=1e-5)

    class Loading(UNet2DModel, PeftAdapterMixin):
        """Diffusers' class with the loader that its other classes have."""

    theirs = Loading.from_pretrained(attending / "unet")
    theirs.load_lora_adapter(finished.model, prefix="unet", weight_name=FILE)
    torch.testing.assert_close(theirs(x, t).sample, expected, rtol=1e-4, atol=1e-5)


def test_a_lora_of_diffusers_is_read(tmp_path):
    peft = pytest.importorskip("peft")
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel
    from diffusers.utils import convert_state_dict_to_diffusers

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), norm_num_groups=4, cross_attention_dim=6,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), attention_head_dim=4,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), layers_per_block=1,
    )  # fmt: skip
    unet.save_pretrained(tmp_path / "unet")
    names = ["to_q", "to_k", "to_v", "to_out.0"]
    unet.add_adapter(peft.LoraConfig(r=3, lora_alpha=5, target_modules=names))
    for name, parameter in unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    layers = convert_state_dict_to_diffusers(peft.get_peft_model_state_dict(unet))
    about = unet.peft_config["default"].to_dict()
    about["target_modules"] = sorted(about["target_modules"])
    StableDiffusionPipeline.save_lora_weights(
        tmp_path, unet_lora_layers=layers, unet_lora_adapter_metadata=about
    )
    ours = load_lora(UNet.from_pretrained(tmp_path), tmp_path)
    x, t, context = torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), torch.randn(2, 5, 6)
    expected = unet.eval()(x, t, context).sample
    assert (UNet.from_pretrained(tmp_path)(x, t, context) - expected).abs().max() > 1e-2
    torch.testing.assert_close(ours(x, t, context), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match=r"changes down_blocks.0.attentions.0.* has not in this"):
        load_lora(UNet(block_out_channels=(8, 16), norm_num_groups=4), tmp_path)


def test_lora_goes_on_where_it_stopped_and_says_what_it_lacks(settings, attending, capsys):
    pytest.importorskip("peft")
    settings.init, settings.lora.rank, settings.train.steps = str(attending), 2, 6
    whole = read_pipeline(run(settings).model)[0].state_dict()
    settings.run += "-killed"
    kill(settings, 11)
    for name, tensor in read_pipeline(run(settings).model)[0].state_dict().items():
        assert tensor.equal(whole[name]), name
    assert "are trained" in capsys.readouterr().out
    settings.train.ema_sigma_rel = (0.1,)
    with pytest.raises(UserError, match=r"lora\.rank 2: set train\.ema_sigma_rel \[\]"):
        build(settings)
    settings.init = None
    with pytest.raises(UserError, match=r"lora\.rank 2: give init"):
        build(settings)
