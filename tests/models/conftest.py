import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel, UNet2DModel
from small_segmenters import CONTEXT, SMALL, randomise


@pytest.fixture(scope="module")
def denoiser_folder(tmp_path_factory):
    """A pipeline's folder as diffusers writes it."""
    folder = tmp_path_factory.mktemp("denoiser")
    torch.manual_seed(0)
    randomise(UNet2DModel(**SMALL)).save_pretrained(folder / "unet")
    DDPMScheduler(beta_schedule="scaled_linear").save_pretrained(folder / "scheduler")
    return folder


@pytest.fixture(scope="module")
def stable_diffusion_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sd")
    torch.manual_seed(0)
    randomise(UNet2DConditionModel(**CONTEXT)).save_pretrained(folder / "unet")
    return folder
