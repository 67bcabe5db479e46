"""Segmenters of two levels with weights that are nowhere zero."""

import small
import torch
from torch import Tensor, nn

from ddpm_unet.config import HeadConfig, UNetConfig
from ddpm_unet.models.segmenter import Segmenter
from ddpm_unet.models.unet import UNet

SMALL = small.SMALL | {"attention_head_dim": 8}

CONTEXT = SMALL | {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 2,
    "cross_attention_dim": 12,
}

FEATURES = {"transfer": "features", "feature_timesteps": (5, 50), "feature_alphas": (0.9, 0.5)}

TRANSFERS = [{"transfer": "finetune"}, {"transfer": "frozen"}, {"transfer": "joint"}, FEATURES]


def randomise(network: nn.Module) -> nn.Module:
    """Weights that are nowhere zero, as a trained network's."""
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return network


def segmenter(unet: dict | None = None, **head) -> Segmenter:
    torch.manual_seed(0)
    network = UNet(UNetConfig(**(SMALL | {"dropout": 0.2} | (unet or {}))))
    return randomise(Segmenter(network, HeadConfig(**({"num_classes": 3} | head))))


def images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
