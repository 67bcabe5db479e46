import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from ddpm_unet.config import ClassicConfig
from ddpm_unet.errors import UserError
from ddpm_unet.models import backbones
from ddpm_unet.models.backbones import MEAN, STD, levels
from ddpm_unet.models.classic import ClassicUNet


def small(**settings) -> ClassicUNet:
    torch.manual_seed(0)
    given = {"encoder": "resnet18", "in_channels": 3, "padding": "same", "base_width": 4}
    return ClassicUNet(ClassicConfig(**given | settings)).eval()


@pytest.mark.parametrize(
    ("name", "nodes", "channels"),
    [
        ("vgg11", ["features.0", "features.3", "features.8", "features.18"], 512),
        ("vgg16_bn", ["features.4", "features.41"], 512),
        ("resnet50", ["conv1", "layer1.2.bn3", "layer3.5.bn3"], 1024),
    ],
)
def test_levels_are_the_last_activations_of_each_size(name, nodes, channels):
    with torch.device("meta"):
        network, widths = levels(name, 5)
        outputs = network(torch.empty(2, 3, 64, 96))
    assert [tuple(outputs[str(level)].shape[1:]) for level in range(5)] == [
        (width, 64 // 2**level, 96 // 2**level) for level, width in enumerate(widths)
    ]
    assert widths[-1] == channels
    modules = dict(network.named_modules())
    assert all(node in modules for node in nodes)
    assert not any(name.startswith(("classifier", "fc", "layer4")) for name in modules)


def test_activations_are_the_networks_own_on_images_as_it_was_trained_to_see():
    network = small(decoder="ternaus", depth=6)
    peer = models.resnet18().eval()
    peer.load_state_dict(network.encoder.network.state_dict(), strict=False)
    images = torch.rand(2, 3, 64, 96) * 2 - 1
    x = ((images + 1) / 2 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    with torch.no_grad():
        expected = [x, peer.relu(peer.bn1(peer.conv1(x)))]
        x = peer.maxpool(expected[1])
        for layer in (peer.layer1, peer.layer2, peer.layer3, peer.layer4):
            expected.append(x := layer(x))
        for got, wanted in zip(network.encoder(images), expected, strict=True):
            torch.testing.assert_close(got, wanted)


def test_grey_is_repeated_and_odd_sizes_are_continued():
    network = small(in_channels=1)
    grey = torch.rand(1, 1, 37, 50)
    features = network.encoder(grey)
    assert [tuple(x.shape[2:]) for x in features] == [(48 >> i, 64 >> i) for i in range(5)]
    continued = torch.nn.functional.pad(grey, (0, 14, 0, 11), mode="replicate")
    with torch.no_grad():
        torch.testing.assert_close(network(grey), network(continued)[..., :37, :50])


def test_initial_weights_are_finite_and_scaled():
    network = small()
    for module in network.encoder.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 10_000:
            inputs = module.weight[0].numel()
            assert module.weight.std().item() == pytest.approx((2 / inputs) ** 0.5, rel=0.03)
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.running_var == 1).all()


def test_weights_from_a_file_and_from_torchvision(tmp_path, monkeypatch):
    torch.manual_seed(1)
    weights = models.resnet18().state_dict()
    save_file(weights, tmp_path / "resnet18.safetensors")
    network = small()
    network.load_encoder(str(tmp_path / "resnet18.safetensors"))
    own = network.encoder.network.state_dict()
    assert len(own) > 50
    assert all(torch.equal(tensor, weights[name]) for name, tensor in own.items())

    asked = []

    def fetched(self, **options):
        asked.append((self.url, options["weights_only"]))
        return weights

    monkeypatch.setattr(models.ResNet18_Weights, "get_state_dict", fetched)
    again = small()
    again.load_encoder("imagenet")
    assert asked == [(models.ResNet18_Weights.IMAGENET1K_V1.url, True)]
    assert torch.equal(own["conv1.weight"], again.encoder.network.state_dict()["conv1.weight"])


def test_weights_that_cannot_be_had(tmp_path, monkeypatch):
    def unreachable(self, **options):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(models.ResNet18_Weights, "get_state_dict", unreachable)
    network = small()
    with pytest.raises(UserError, match=r"Network is unreachable\); give init a safetensors file"):
        network.load_encoder("imagenet")
    with pytest.raises(UserError, match=r"no\.safetensors is no safetensors file of resnet18"):
        network.load_encoder(str(tmp_path / "no.safetensors"))
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"conv1\.weight has shape \[1\]"):
        network.load_encoder(str(tmp_path / "other.safetensors"))
    with pytest.raises(UserError, match="encoder classic starts from random weights"):
        ClassicUNet(ClassicConfig(base_width=1)).load_encoder("imagenet")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder": "resnet35"}, "no such network; did you mean resnet"),
        ({"encoder": "resnet18", "depth": 7}, "have 6 sizes, each half the one before"),
        ({"encoder": "vit_b_16"}, "have 0 sizes"),
        ({"encoder": "convnext_tiny"}, "have 1 sizes"),
        ({"in_channels": 4}, "takes images of 1 or 3 channels"),
        ({"dims": 3}, "not 3-D data"),
        ({"padding": "valid"}, 'set padding "same"'),
        ({"skip": "add"}, r"\[3, 64, 64, 128\] channels and the decoder \[4, 8, 16, 32\]"),
    ],
)
def test_impossible_encoders_are_refused(settings, message):
    with torch.device("meta"), pytest.raises(UserError, match=message):
        small(**settings)


def test_saved_and_read_again(tmp_path, monkeypatch):
    network = small(decoder="ternaus")
    network.save_pretrained(tmp_path)
    monkeypatch.setattr(backbones.Backbone, "load", lambda *_: pytest.fail("fetched again"))
    again = ClassicUNet.from_pretrained(tmp_path)
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(again(x), network(x))
