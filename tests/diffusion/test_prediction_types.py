import pytest
import torch

from ddpm_unet.config import DiffusionConfig
from ddpm_unet.diffusion.prediction import (
    image_mixture,
    min_snr_weight,
    noise_mixture,
    target_mixture,
)
from ddpm_unet.diffusion.schedule import alphas_cumprod, snr

ABAR = alphas_cumprod(DiffusionConfig())
TYPES = ["epsilon", "sample", "v_prediction"]


@pytest.mark.parametrize("kind", TYPES)
def test_image_and_noise_come_back_from_the_target(kind):
    image, noise = torch.randn(2, 1000, dtype=torch.float64)
    x = ABAR.sqrt() * image + (1 - ABAR).sqrt() * noise
    p, q = target_mixture(kind, ABAR)
    target = p * image + q * noise
    for mixture, truth in ((image_mixture, image), (noise_mixture, noise)):
        of_x, of_target = mixture(kind, ABAR)
        torch.testing.assert_close(of_x * x + of_target * target, truth, rtol=1e-9, atol=1e-9)


def test_targets_are_what_their_names_say():
    image, noise = torch.randn(2, 1000, dtype=torch.float64)
    made = {}
    for kind in TYPES:
        p, q = target_mixture(kind, ABAR)
        made[kind] = p * image + q * noise
    torch.testing.assert_close(made["epsilon"], noise)
    torch.testing.assert_close(made["sample"], image)
    angle = ABAR.sqrt().acos()  # v is dx/d(angle) of x = cos x_0 + sin eps (Salimans 2022)
    torch.testing.assert_close(made["v_prediction"], angle.cos() * noise - angle.sin() * image)


def test_an_unknown_type_is_refused():
    with pytest.raises(ValueError, match="velocity"):
        target_mixture("velocity", ABAR)


def test_min_snr_weights_of_each_type():
    ratio = snr(ABAR)
    capped = torch.minimum(ratio, torch.tensor(5.0))
    for kind, expected in {
        "epsilon": capped / ratio,
        "sample": capped,
        "v_prediction": capped / (ratio + 1),
    }.items():
        torch.testing.assert_close(min_snr_weight(kind, ABAR, 5.0), expected, rtol=1e-9, atol=0)
