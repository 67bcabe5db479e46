"""Networks, and reading and writing their weights."""

from ddpm_unet.models.lucidrains import LucidrainsUNet
from ddpm_unet.models.unet import UNet

__all__ = ["LucidrainsUNet", "UNet"]
