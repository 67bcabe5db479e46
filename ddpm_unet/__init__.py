"""One U-Net that denoises, generates and segments."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddpm_unet.diffusion.process import GaussianDiffusion as GaussianDiffusion
    from ddpm_unet.inference.denoiser import Denoiser as Denoiser
    from ddpm_unet.inference.denoiser import sample as sample
    from ddpm_unet.inference.predictor import Predictor as Predictor
    from ddpm_unet.models.classic import ClassicUNet as ClassicUNet
    from ddpm_unet.models.segmenter import Segmenter as Segmenter
    from ddpm_unet.models.unet import UNet as UNet
    from ddpm_unet.training.train import train as train

    __version__: str

_HOMES = {
    "UNet": "models.unet",
    "GaussianDiffusion": "diffusion.process",
    "Denoiser": "inference.denoiser",
    "Segmenter": "models.segmenter",
    "ClassicUNet": "models.classic",
    "Predictor": "inference.predictor",
    "train": "training.train",
    "sample": "inference.denoiser",
}
"""Where each name is defined; it is imported when it is first asked for (PEP 562)."""

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("ddpm-unet")
        except PackageNotFoundError:  # a checkout that is not installed
            return "0.2.0"
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
