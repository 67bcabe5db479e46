"""Small pictures of cells, settings of trainings on them, and what such a run leaves."""

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from small import SMALL
from torch import nn

from ddpm_unet.config import ClassicConfig, PairDataConfig, UNetConfig
from ddpm_unet.diffusion.process import GaussianDiffusion

UNET = UNetConfig(**SMALL, sample_size=16)

DIFFUSION = GaussianDiffusion(num_timesteps=300, beta_schedule="squaredcos_cap_v2")

CLASSIC = ClassicConfig(depth=2, base_width=4, dropout=0.1)


def write_cells(folder, channels, count=4):
    """Noisy pictures of bright discs, and masks of 0 and 255."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:40, :48]
    for number in range(count):
        cells = np.zeros((40, 48), bool)
        for _ in range(6):
            centre = rng.uniform(4, 36, 2)
            cells |= (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < 30
        image = np.where(cells, 170, 80)[..., None] + rng.normal(0, 20, (40, 48, channels))
        image = image.clip(0, 255).astype(np.uint8)
        for name, array in (("images", image.squeeze()), ("masks", cells.astype(np.uint8) * 255)):
            (folder / name).mkdir(exist_ok=True)
            Image.fromarray(array).save(folder / name / f"{number}.png")
    return folder


def pair_data(folder, **changes):
    data = PairDataConfig(images=f"{folder}/images", masks=f"{folder}/masks", size=16, **changes)
    data.augment.elastic_sigma = 1.0
    return data


def records(folder, key):
    return [r[key] for r in folder.read_metrics() if key in r]


CHANGES = {
    "finetune": {},
    "frozen": {"transfer": "frozen"},
    "features": {"transfer": "features"},
    "joint": {"transfer": "joint"},
    "scratch": {"init": "scratch"},
    "classic, same": {"architecture": "classic", "padding": "same"},
    "classic, valid": {"architecture": "classic"},
    "teaching": {"architecture": "classic", "padding": "same", "rmsprop": True},
    "nested": {"architecture": "classic", "padding": "same", "decoder": "nested"},
    "border": {"loss": "border"},
    "focal, weighted": {"loss": "focal", "weights": (0.5, 2.0)},
}


def changed(settings, way):
    changes = CHANGES[way]
    settings.head.transfer = changes.get("transfer", "finetune")
    settings.init = changes.get("init", settings.init)
    settings.architecture = changes.get("architecture", "unet")
    settings.init = "scratch" if settings.architecture == "classic" else settings.init
    settings.classic.decoder = changes.get("decoder", "unet")
    settings.classic.deep_supervision = settings.classic.decoder == "nested"
    settings.classic.padding = changes.get("padding", "valid")
    settings.loss.name = changes.get("loss", settings.loss.name)
    settings.loss.class_weights = changes.get("weights", ())
    if changes.get("rmsprop"):
        settings.classic.one_logit = True
        settings.train.optimizer, settings.train.lr = "rmsprop", 1e-3
    return settings


class Bright(nn.Module):
    """Class 1 where the first channel is above 0."""

    margin = 0
    step = 1
    dims = 2
    in_channels = 3
    config = ClassicConfig()

    def forward(self, images):
        return torch.cat([-images[:, :1], images[:, :1]], dim=1)


def first_batch(job, model, count=4):
    return job.stream(model, Accelerator(cpu=True)).__getitems__(range(count))
