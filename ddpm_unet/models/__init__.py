"""Networks, and reading and writing their weights."""

from ddpm_unet.models.unet import UNet

__all__ = ["UNet"]
