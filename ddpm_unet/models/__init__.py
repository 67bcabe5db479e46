"""Networks, and reading and writing their weights."""

from ddpm_unet.models.classic import ClassicUNet
from ddpm_unet.models.precomputed import precompute_time_embeddings
from ddpm_unet.models.segmenter import Segmenter
from ddpm_unet.models.unet import UNet

__all__ = ["ClassicUNet", "Segmenter", "UNet", "precompute_time_embeddings"]
