"""The per-pixel network on frozen features, beside Baranchuk 2022 as it is written."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from small_segmenters import FEATURES, images, segmenter
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ddpm_unet.config import HeadConfig
from ddpm_unet.errors import UserError
from ddpm_unet.models.pixel_features import activations
from ddpm_unet.models.segmenter import Segmenter


def per_pixel(network: Segmenter, x: Tensor, chunk: int) -> Tensor:
    """Baranchuk 2022 as written: enlarge, concatenate, classify so many pixels at a time."""
    head = network.head
    size = x.shape[2:]
    columns = torch.cat(
        [
            F.interpolate(a, size, mode="bilinear")
            for a in activations(network.unet, network.config, x, (None, None, None))
        ],
        dim=1,
    )
    columns = columns.movedim(1, -1).flatten(0, -2)

    def classify(rows: Tensor) -> Tensor:
        rows = F.linear(rows, head.first.weight.flatten(1), head.bias.flatten())
        for layer in head.rest:
            if isinstance(layer, nn.Conv2d):
                rows = F.linear(rows, layer.weight.flatten(1), layer.bias)
            elif isinstance(layer, nn.BatchNorm2d):
                mean, var = layer.running_mean, layer.running_var
                rows = F.batch_norm(rows, mean, var, layer.weight, layer.bias, layer.training)
            else:
                rows = rows.relu()
        return rows

    rows = torch.cat([classify(part) for part in columns.split(chunk)])
    return rows.unflatten(0, (len(x), *size)).movedim(-1, 1)


@pytest.mark.parametrize("chunk", [1, 50, 10_000])
def test_features_equal_the_enlarged_and_concatenated_ones(chunk):
    network = segmenter(**FEATURES, feature_layers=(3, 0, 2)).double().eval()
    for p in network.head.buffers():
        p.copy_(torch.rand(p.shape) + 0.5)
    x = images(2, 3, 9, 14).double()
    torch.testing.assert_close(network(x), per_pixel(network, x, chunk))


def test_features_train_like_the_enlarged_and_concatenated_ones():
    network = segmenter(**FEATURES).double().train()
    x = images(2, 3, 9, 14).double()
    grads = [
        torch.autograd.grad(out.square().mean(), list(network.head.parameters()))
        for out in (network(x), per_pixel(network, x, 10_000))
    ]
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_features_noise_images_by_the_schedule():
    network = segmenter(**FEATURES)
    x = images(2, 3, 16, 16)
    seen = []
    network.unet.conv_in.register_forward_hook(lambda m, args, y: seen.append(args[0]))
    embedded = []
    network.unet.time_embedding.register_forward_hook(lambda m, args, y: embedded.append(y))
    network(x)
    assert len(seen) == 2
    network.unet.embed(5), network.unet.embed(50)
    torch.testing.assert_close(embedded[:2], embedded[2:])
    noises = [
        (noisy - a**0.5 * x) / (1 - a) ** 0.5
        for noisy, a in zip(seen, FEATURES["feature_alphas"], strict=True)
    ]
    for noise in (noises[0], noises[1]):
        torch.testing.assert_close(noise, noises[0][:1].expand_as(noise), rtol=1e-4, atol=1e-5)
    assert abs(noises[0].mean()) < 0.1
    assert abs(noises[0].std() - 1) < 0.1
    torch.manual_seed(5)
    network.eval()
    assert torch.equal(network(x), network(x))


class LargestTensor(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation makes."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def test_features_are_never_concatenated_at_the_size_of_the_image():
    network = segmenter(**FEATURES, feature_widths=(4, 4)).eval()
    size = 32 * 32
    with LargestTensor() as largest:
        network(images(1, 3, 32, 32))
    assert sum(network.head.channels) * size == 96 * size
    assert largest.numel <= 24 * size  # what the U-Net itself makes at its finest level


@pytest.mark.parametrize("sub", ["", "unet"])
def test_features_take_the_schedule_of_the_denoiser(denoiser_folder, sub):
    config = HeadConfig(transfer="features", feature_timesteps=(50, 999))
    network = Segmenter.from_denoiser(denoiser_folder / sub, config)
    betas = torch.linspace(0.0001**0.5, 0.02**0.5, 1000, dtype=torch.float64) ** 2
    expected = (1 - betas).cumprod(0)[[50, 999]].tolist()
    assert network.config.feature_alphas == pytest.approx(expected, rel=1e-3)
    with pytest.raises(UserError, match="0 to 999"):
        Segmenter.from_denoiser(
            denoiser_folder, HeadConfig(transfer="features", feature_timesteps=(1000,))
        )


def test_features_without_a_schedule_say_what_to_set(stable_diffusion_folder):
    with pytest.raises(UserError, match="set feature_alphas"):
        Segmenter.from_denoiser(stable_diffusion_folder, HeadConfig(transfer="features"))


def test_features_read_their_own_timesteps():
    with pytest.raises(ValueError, match="neither t nor both"):
        segmenter(**FEATURES)(images(1, 3, 8, 8), 3)


def test_torch_compile_goes_around_the_noise():
    unet = SimpleNamespace(pyramid=lambda x, t, *given: [x])
    config = HeadConfig(feature_timesteps=(5, 50), feature_alphas=(0.9, 0.4))

    def features(x: Tensor) -> Tensor:
        return torch.cat(list(activations(unet, config, x, (None, None, None))))

    x = images(2, 3, 8, 8)
    torch.testing.assert_close(torch.compile(features, backend="eager")(x), features(x))
