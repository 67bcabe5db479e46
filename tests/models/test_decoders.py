from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_unet.config import ClassicConfig
from ddpm_unet.errors import UserError
from ddpm_unet.models.classic import ClassicUNet
from ddpm_unet.models.decoders import LearnedInterpolation

DECODERS = ["unet", "fcn", "ternaus", "nested", "full_scale"]
SUPERVISED = ["nested", "full_scale"]
ENCODERS = ["classic", "resnet18"]


def network(**settings) -> ClassicUNet:
    torch.manual_seed(0)
    given = {"in_channels": 3, "padding": "same", "base_width": 2, "dropout": 0.0}
    return ClassicUNet(ClassicConfig(**given | settings)).eval()


def parameters(**settings) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in network(**settings).parameters())


def convolution(channels: int, out: int, side: int = 3) -> int:
    """Weights and biases."""
    return side**2 * channels * out + out


def twice(channels: int, out: int) -> int:
    return convolution(channels, out) + convolution(out, out)


VGG11 = [(3, 64), (64, 128), (128, 256), (256, 256), (256, 512), *[(512, 512)] * 3]
VGG16 = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), *[(256, 256)] * 2, (256, 512)]
VGG16 += [(512, 512)] * 5


def test_ternausnet_has_the_published_layers():
    """github.com/ternaus/TernausNet, unet_models.py, UNet11: 22.9 million."""
    blocks = [(512, 512, 256), (768, 512, 256), (768, 512, 128), (384, 256, 64), (192, 128, 32)]
    expected = sum(convolution(*pair) for pair in [*VGG11, (96, 32)]) + convolution(32, 1, 1)
    expected += sum(convolution(a, b) + convolution(b, c) for a, b, c in blocks)
    assert expected == 22_927_393
    settings = {"encoder": "vgg11", "decoder": "ternaus", "base_width": 32, "one_logit": True}
    assert parameters(**settings) == expected


def test_unet_plus_plus_has_the_published_layers():
    """Zhou 2018, table 3: 9.04 million; without batch normalisation, with up-convolutions."""
    filters = [32, 64, 128, 256, 512]
    expected = sum(twice(a, b) for a, b in zip([3, *filters], filters, strict=False))
    for i, j in product(range(5), range(1, 5)):
        if i + j < 5:
            expected += convolution(filters[i + 1], filters[i], 2)
            expected += twice((j + 1) * filters[i], filters[i])
    expected += convolution(32, 1, 1)
    assert round(expected / 1e6, 2) == 9.04
    settings = {"decoder": "nested", "base_width": 32, "one_logit": True}
    assert parameters(**settings) == expected
    supervised = parameters(**settings, deep_supervision=True)
    assert supervised == expected + 3 * convolution(32, 1, 1)


def test_unet_3_plus_has_the_published_layers():
    """Huang 2020, table 2: 26.97 million; github.com/ZJUGiveLab/UNet-Version, UNet_3Plus.py."""
    filters = [64, 128, 256, 512, 1024]
    convolutions = [(a, b) for a, b in zip([3, *filters], filters, strict=False)]
    convolutions += [(b, b) for b in filters]
    for level in range(4):
        convolutions += [(filters[i], 64) for i in range(level + 1)]
        convolutions += [(320, 64)] * (3 - level) + [(1024, 64), (320, 320)]
    theirs = sum(convolution(a, b) + 2 * b for a, b in convolutions) + convolution(320, 1)
    biases = sum(b for _, b in convolutions)
    assert round(theirs / 1e6, 2) == 26.97
    settings = {"decoder": "full_scale", "base_width": 64, "one_logit": True, "norm": "batch"}
    assert parameters(**settings) == theirs - biases
    supervised = 3 * convolution(320, 1) + convolution(1024, 1)
    assert parameters(**settings, deep_supervision=True) == theirs - biases + supervised


def test_fcn_8s_adds_a_few_layers_to_vgg16():
    """Long 2014, section 4.2, without the layers that were fully connected."""
    expected = sum(convolution(*pair) for pair in VGG16)
    expected += 2 * convolution(512, 21, 1) + convolution(256, 21, 1)
    expected += (2 * 4**2 + 16**2) * 21**2
    assert parameters(encoder="vgg16", decoder="fcn", num_classes=21) == expected


@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize("dims", [2, 3])
def test_learned_interpolation_starts_as_the_linear_one(dims, factor):
    up = LearnedInterpolation(ClassicConfig(dims=dims), 3, factor)
    x = torch.randn(2, 3, *[5] * dims)
    mode = "bilinear" if dims == 2 else "trilinear"
    expected = F.interpolate(x, scale_factor=factor, mode=mode, align_corners=False)
    inner = (..., *[slice(factor, -factor)] * dims)
    torch.testing.assert_close(up(x)[inner], expected[inner])
    assert up(x).shape == expected.shape


def test_fcn_8s_adds_its_scores_written_out():
    net = network(decoder="fcn", num_classes=3)
    with torch.no_grad():
        for parameter in net.decoder.parameters():
            parameter.normal_()
    images = torch.randn(1, 3, 64, 96)
    pooled = [F.max_pool2d(x, 2) for x in net.encoder(images)]
    assert [x.shape[2] for x in pooled[2:]] == [64 // 8, 64 // 16, 64 // 32]
    decoder = net.decoder
    scores = [s(x) for s, x in zip(decoder.scores, pooled[2:], strict=True)]
    x = F.conv_transpose2d(scores[2], decoder.up[0].weight, stride=2, padding=1) + scores[1]
    x = F.conv_transpose2d(x, decoder.up[1].weight, stride=2, padding=1) + scores[0]
    x = F.conv_transpose2d(x, decoder.last.weight, stride=8, padding=4)
    torch.testing.assert_close(net(images), x)
    assert [n for n, p in net.named_parameters() if not p.requires_grad] == ["decoder.last.weight"]


def nested_written_out(net: ClassicUNet, images: Tensor) -> dict[int, Tensor]:
    """Zhou 2018, eq. 1, node by node: the score of every node of the finest row."""
    nodes = {(i, 0): x for i, x in enumerate(net.encoder(images))}
    for j in range(1, 4):
        for i in range(4 - j):
            block = net.decoder.nodes[f"{i}_{j}"]
            joined = [nodes[i, k] for k in range(j)] + [block.up(nodes[i + 1, j - 1])]
            nodes[i, j] = block.block(torch.cat(joined, dim=1))
    return {j: net.decoder.heads[str(j)](nodes[0, j]) for j in range(1, 4)}


def test_nested_skips_written_out_and_pruned():
    net = network(decoder="nested", depth=4, deep_supervision=True, upsample="bilinear")
    images = torch.randn(2, 3, 32, 40)
    expected = nested_written_out(net, images)
    torch.testing.assert_close(net(images), expected[3])
    for got, j in zip(net.train()(images), (3, 2, 1), strict=True):
        torch.testing.assert_close(got, expected[j])
    for depth in (2, 3, 4):
        part = net.pruned(depth)
        torch.testing.assert_close(part(images), expected[depth - 1])
        assert len(part.encoder.blocks) == depth
    with pytest.raises(UserError, match="levels 5: the network has 4"):
        net.pruned(5)
    with pytest.raises(UserError, match="trained with deep_supervision"):
        network(decoder="nested").pruned(3)


def test_full_scale_skips_written_out():
    net = network(decoder="full_scale", depth=3, deep_supervision=True, norm="batch")
    images = torch.randn(2, 3, 16, 24)
    fine, middle, coarse = net.encoder(images)

    def up(x: Tensor, factor: int) -> Tensor:
        return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)

    (a, b, c), _, join = net.decoder.levels[1].children()
    middle = join(torch.cat([a(F.max_pool2d(fine, 2)), b(middle), c(up(coarse, 2))], dim=1))
    (a, b, c), _, join = net.decoder.levels[0].children()
    fine = join(torch.cat([a(fine), b(up(middle, 2)), c(up(coarse, 4))], dim=1))
    heads = net.decoder.heads
    expected = [heads[0](fine), up(heads[1](middle), 2), up(heads[2](coarse), 4)]
    torch.testing.assert_close(net(images), expected[0])
    for module in net.modules():  # training mode without moving statistics
        module.training = not isinstance(module, nn.BatchNorm2d)
    for got, wanted in zip(net(images), expected, strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize(("encoder", "decoder"), [*product(ENCODERS, DECODERS)])
def test_any_size_comes_back_and_every_weight_learns(encoder, decoder):
    net = network(encoder=encoder, decoder=decoder, deep_supervision=decoder in SUPERVISED)
    with torch.no_grad():
        for size in ((1, 1), (37, 22)):
            assert net(torch.randn(1, 3, *size)).shape == (1, 2, *size)
    logits = net.train()(torch.randn(2, 3, 33, 40))
    for scores in logits if decoder in SUPERVISED else (logits,):
        assert scores.shape == (2, 2, 33, 40)
        (scores * torch.randn_like(scores)).sum().backward(retain_graph=True)
    still = [n for n, p in net.named_parameters() if p.requires_grad and not p.grad.any()]
    assert still == []


@pytest.mark.parametrize("decoder", DECODERS)
def test_volumes(decoder):
    net = network(decoder=decoder, dims=3, depth=3)
    assert net(torch.randn(1, 3, 5, 8, 9)).shape == (1, 2, 5, 8, 9)


@pytest.mark.parametrize("decoder", DECODERS[1:])
def test_gradient_checkpointing_changes_no_gradient(decoder):
    gradients = []
    for enable in (False, True):
        net = network(decoder=decoder, depth=3).train()
        if enable:
            net.enable_gradient_checkpointing()
        torch.manual_seed(1)
        net(torch.randn(1, 3, 16, 16)).square().mean().backward()
        gradients.append([p.grad for p in net.parameters() if p.requires_grad])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decoder": "nested", "padding": "valid"}, 'set padding "same"'),
        ({"decoder": "nested", "skip": "add"}, "has skips of its own"),
        ({"deep_supervision": True}, "decoder unet has one output; take decoder nested or full"),
        ({"decoder": "fcn", "depth": 2}, "depth is 2; take at least 3"),
        ({"decoder": "segnet"}, "decoder is 'segnet'; it must be one of unet"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        network(**settings)
