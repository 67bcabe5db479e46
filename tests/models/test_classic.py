from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_unet.config import ClassicConfig
from ddpm_unet.errors import UserError
from ddpm_unet.models.classic import ClassicUNet

MILESIAL = {"in_channels": 3, "padding": "same", "norm": "batch", "dropout": 0.0}
UPSAMPLE_AND_SKIP = list(product(["transposed", "bilinear"], ["concat", "add"]))
DEPTH_AND_UPSAMPLE = list(product([2, 3, 5], ["transposed", "bilinear"]))


def small(**settings) -> ClassicUNet:
    torch.manual_seed(0)
    return ClassicUNet(ClassicConfig(**{"base_width": 2, "dropout": 0.0} | settings)).eval()


def convolutions(network: nn.Module) -> list[tuple[bool, tuple[int, ...]]]:
    """Of every layer with weights, in the order they run: whether it is no up-convolution, and the
    shape of its output."""
    seen = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.register_forward_hook(
                lambda m, _, y: seen.append((isinstance(m, nn.Conv2d), tuple(y.shape[1:])))
            )
    return seen


def test_published_sizes_at_every_level():
    with torch.device("meta"):
        network = ClassicUNet(ClassicConfig())
        seen = convolutions(network)
        out = network(torch.empty(1, 1, 572, 572))
    down = [(64, 570), (64, 568), (128, 282), (128, 280), (256, 138), (256, 136)]
    down += [(512, 66), (512, 64), (1024, 30), (1024, 28)]
    up = [(512, 56), (512, 54), (512, 52), (256, 104), (256, 102), (256, 100)]
    up += [(128, 200), (128, 198), (128, 196), (64, 392), (64, 390), (64, 388), (2, 388)]
    assert [(shape[0], shape[1]) for _, shape in seen] == down + up
    assert [plain for plain, _ in seen[len(down) :: 3]] == [False] * 4 + [True]
    assert out.shape == (1, 2, 388, 388)
    assert network.margin == (572 - 388) // 2


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 31_030_658),  # Ronneberger 2015 with one channel and two classes
        (MILESIAL, 31_037_698),
        (MILESIAL | {"upsample": "bilinear"}, 17_263_042),
    ],
)
def test_published_parameter_counts(settings, expected):
    with torch.device("meta"):
        network = ClassicUNet(ClassicConfig(**settings))
    assert sum(p.numel() for p in network.parameters()) == expected


def test_the_3d_network_of_2016():
    """Cicek 2016, figure 2: sizes, channels and "19069955 parameters in total".

    That number counts one bias per convolution: batch normalisation's shift, without its scale
    and without biases of the up-convolutions.
    """
    config = ClassicConfig(
        in_channels=3, num_classes=3, dims=3, depth=4, base_width=32, norm="batch",
        doubling="before_pooling", dropout=0.0,
    )  # fmt: skip
    with torch.device("meta"):
        network = ClassicUNet(config)
        seen = []
        for module in network.modules():
            if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
                module.register_forward_hook(lambda m, _, y: seen.append(y.shape[1]))
        assert network(torch.empty(1, 3, 132, 132, 116)).shape == (1, 3, 44, 44, 28)
    down, up = [32, 64, 64, 128, 128, 256, 256, 512], [512, 256, 256, 256, 128, 128, 128, 64, 64]
    assert seen == [*down, *up, 3]
    uncounted = [
        parameter
        for module in network.modules()
        if isinstance(module, nn.BatchNorm3d | nn.ConvTranspose3d)
        for parameter in (module.weight if isinstance(module, nn.BatchNorm3d) else module.bias,)
    ]
    total = sum(p.numel() for p in network.parameters()) - sum(p.numel() for p in uncounted)
    assert total == 19_069_955


def written_out(network: ClassicUNet, x: Tensor, same: bool, bilinear: bool) -> Tensor:
    """The published network as a list of operations on the given network's weights."""
    weights = list(network.state_dict().values())

    def block(x: Tensor) -> Tensor:
        for _ in range(2):
            if same:
                w, scale, shift, mean, var, _ = (weights.pop(0) for _ in range(6))
                x = F.batch_norm(F.conv2d(x, w, padding=1), mean, var, scale, shift)
            else:
                x = F.conv2d(x, weights.pop(0), weights.pop(0))
            x = x.relu()
        return x

    skips = [block(x)]
    for _ in range(4):
        skips.append(block(F.max_pool2d(skips[-1], 2)))
    x = skips.pop()
    while skips:
        if bilinear:
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        else:
            x = F.conv_transpose2d(x, weights.pop(0), weights.pop(0), stride=2)
        skip = skips.pop()
        crop = (skip.shape[-1] - x.shape[-1]) // 2
        x = block(torch.cat([F.pad(skip, [-crop] * 4), x], dim=1))
    return F.conv2d(x, weights.pop(0), weights.pop(0))


@pytest.mark.parametrize(
    ("same", "upsample"), [(False, "transposed"), (True, "transposed"), (True, "bilinear")]
)
def test_equals_the_published_network_written_out(same, upsample):
    settings = MILESIAL if same else {"in_channels": 3}
    network = small(**settings, upsample=upsample, base_width=4).double()
    with torch.no_grad():
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.2, 0.5)
        x = torch.randn(2, 3, *((192, 208) if same else (188, 220)), dtype=torch.double)
        torch.testing.assert_close(
            network(x), written_out(network, x, same, upsample == "bilinear")
        )


@pytest.mark.parametrize(("upsample", "skip"), UPSAMPLE_AND_SKIP)
def test_tiles_on_the_grid_equal_one_pass_over_the_whole_image(upsample, skip):
    network = small(upsample=upsample, skip=skip, depth=3).double()
    tile, whole = network.valid_size(1) + network.step, network.valid_size(120)
    image = torch.randn(1, 1, whole, whole, dtype=torch.double)
    with torch.no_grad():
        expected = network(image)
        out = tile - 2 * network.margin
        for y, x in product(range(0, whole - tile + 1, network.step), repeat=2):
            part = network(image[..., y : y + tile, x : x + tile])
            torch.testing.assert_close(part, expected[..., y : y + out, x : x + out])


@pytest.mark.parametrize(("depth", "upsample"), DEPTH_AND_UPSAMPLE)
def test_valid_sizes_are_those_that_run(depth, upsample):
    with torch.device("meta"):
        network = small(depth=depth, upsample=upsample)
        smallest = network.valid_size(1)
        for size in range(smallest - network.step, smallest + 2 * network.step + 1):
            images = torch.empty(1, 1, size, smallest)
            if size >= smallest and (size - smallest) % network.step == 0:
                assert network(images).shape[2] == size - 2 * network.margin
                assert network.valid_size(size) == size
            else:
                nearest = network.valid_size(size)
                with pytest.raises(UserError, match=f"{size} pixels.*fits is {nearest}$"):
                    network(images)


@pytest.mark.parametrize("upsample", ["transposed", "bilinear"])
@pytest.mark.parametrize("size", [(1, 1), (7, 3), (33, 57), (64, 48)])
def test_same_padding_takes_any_size(size, upsample):
    network = small(padding="same", upsample=upsample)
    assert network(torch.randn(1, 1, *size)).shape == (1, 2, *size)
    assert (network.margin, network.step) == (0, 1)


def test_every_pixel_of_an_odd_image_matters():
    network = small(padding="same", depth=3)
    x = torch.randn(1, 1, 13, 11, requires_grad=True)
    network(x).square().sum().backward()
    assert (x.grad != 0).all()


def test_he_initialisation():
    torch.manual_seed(0)
    network = ClassicUNet(ClassicConfig(base_width=32, depth=4))
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.weight.numel() > 10_000:
            inputs = module.in_channels * (9 if isinstance(module, nn.Conv2d) else 1)
            assert module.weight.std().item() == pytest.approx((2 / inputs) ** 0.5, rel=0.03)
            assert not module.bias.any()


def test_dropout_at_the_end_of_the_contracting_path_only():
    network = small(dropout=0.5, base_width=4).train()
    seen = []
    network.encoder.dropout.register_forward_hook(
        lambda m, x, y: seen.append(((y == 0).float().mean(), y))
    )
    x = torch.rand(1, 1, 252, 252)
    first, second = network(x), network(x)
    assert [y.shape[1] for _, y in seen] == [32, 64, 32, 64]
    assert not torch.equal(first, second)
    network.eval()
    torch.testing.assert_close(network(x), network(x), rtol=0, atol=0)


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_gradient_checkpointing_changes_neither_gradients_nor_statistics(norm):
    results = []
    for enable in (False, True):
        network = small(padding="same", norm=norm, depth=3).train()
        if enable:
            network.enable_gradient_checkpointing()
        runs = []
        network.decoder.up[0].register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        torch.manual_seed(1)
        network(torch.randn(2, 1, 16, 16)).square().mean().backward()
        assert len(runs) == 1 + enable
        results.append([p.grad for p in network.parameters()] + list(network.buffers()))
    for plain, checkpointed in zip(*results, strict=True):
        torch.testing.assert_close(plain, checkpointed, rtol=0, atol=0)
    assert all(p is not None for p in results[0])


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"padding": "reflect"}, "padding"),
        ({"skip": "sum"}, "skip"),
        ({"depth": 1}, "depth"),
        ({"doubling": "before_pooling", "skip": "add"}, "doubling"),
    ],
)
def test_impossible_settings_are_refused(settings, word):
    with pytest.raises(UserError, match=word):
        ClassicUNet(ClassicConfig(**settings))


def test_one_logit_is_the_log_odds_of_two_classes():
    network = small(padding="same", one_logit=True, class_names=("off", "on"))
    assert network(torch.randn(2, 1, 16, 16)).shape == (2, 1, 16, 16)
    with pytest.raises(UserError, match="one_logit: 3 classes"):
        small(one_logit=True, num_classes=3)


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_saved_and_read_again_bit_by_bit(norm, tmp_path):
    network = small(padding="same", norm=norm, class_colors=((0, 0, 0), (255, 0, 0)))
    x = torch.randn(1, 1, 32, 32)
    network.train()(x)
    network.save_pretrained(tmp_path)
    again = ClassicUNet.from_pretrained(tmp_path)
    assert again.config == network.config
    assert not again.training
    assert torch.equal(again(x), network.eval()(x))
