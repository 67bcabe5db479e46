"""The settings of each script that trains."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ddpm_unet.config.data import ImageDataConfig, LatentConfig, PairDataConfig
from ddpm_unet.config.network import AutoencoderConfig, ClassicConfig, HeadConfig, UNetSettings
from ddpm_unet.config.reading import SEED, SHARE, limited
from ddpm_unet.config.training import (
    DiffusionConfig,
    PredictConfig,
    PreviewConfig,
    RegressionConfig,
    SegmentLossConfig,
    TrainConfig,
)


@dataclass
class RunConfig:
    """Settings of every training.

    Args:
        run: Run folder; null takes runs/ and the configuration file's name.
        resume: "auto" goes on from the run's newest good checkpoint; "never" refuses a used
            run folder. `--resume runs/x` goes on with all settings of that run but those given.
        seed: The order of the data, augmentation, noise and initial weights depend on it alone.
        tracker: Besides metrics.jsonl, log to tensorboard or wandb through accelerate.
        minutes: Choose train.steps, by the time that some trial steps take, so that all ends after
            so many minutes, and the schedule of the learning rate with it.
        train: The loop.
    """

    run: str | None = None
    resume: Literal["auto", "never"] = "auto"
    seed: int = limited(0, *SEED)
    tracker: Literal["none", "tensorboard", "wandb"] = "none"
    minutes: float | None = limited(None, 0.01, 10**6)
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass
class LoraConfig:
    """Training of low-rank changes alone (Hu 2021, arXiv:2106.09685), of a denoiser given as init.

    Args:
        rank: Their rank, 4 to 64; 0 trains the weights themselves. The model's folder has a LoRA
            file that diffusers loads beside the whole, changed model.
        alpha: Their factor times the rank; null for the rank.
        layers: "attention" (its projections) or "all" (linear layers and convolutions).
    """

    rank: int = limited(0, 0, 4096)
    alpha: float | None = limited(None, 1e-6, 10**6)
    layers: Literal["attention", "all"] = "attention"


@dataclass
class DenoiseConfig(RunConfig):
    """Settings of `scripts/train_ddpm.py`.

    Args:
        init: Folder of a denoiser, of this toolkit or of diffusers, that is trained further: the
            network and the process are its own, and model and diffusion say nothing but the loss's
            weighting. Null begins from random weights.
        lora: Low-rank changes of it, in place of all its weights.
        condition_dropout: Share of the images whose class, context and condition are dropped in
            training, so that sampling can be guided (Ho 2022: 0.1 to 0.2). A table of classes
            then has a row more, the last, for none.
        self_conditioning: Tell the network, for half of the images in training and all in
            sampling, its own estimate of the clean image, in further input channels (Chen 2022).
        data: The images.
        latent: The space that is denoised in, if not that of pixels.
        model: The network.
        diffusion: The forward process.
        preview: Grids and validation during training.
    """

    init: str | None = None
    lora: LoraConfig = field(default_factory=LoraConfig)
    condition_dropout: float = limited(0.0, *SHARE)
    self_conditioning: bool = False
    data: ImageDataConfig = field(default_factory=ImageDataConfig)
    latent: LatentConfig = field(default_factory=LatentConfig)
    model: UNetSettings = field(default_factory=UNetSettings)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    preview: PreviewConfig = field(default_factory=PreviewConfig)


@dataclass
class AutoencodeConfig(RunConfig):
    """Settings of `scripts/train_autoencoder.py`.

    Args:
        kl_weight: Weight of the latents' divergence from standard normal ones, nats per number.
        data: The images.
        model: The network.
        preview: Grids and validation during training.
    """

    kl_weight: float = 1e-4
    data: ImageDataConfig = field(default_factory=ImageDataConfig)
    model: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    preview: PreviewConfig = field(default_factory=PreviewConfig)


@dataclass
class SegmentConfig(RunConfig):
    """Settings of `scripts/train_seg.py`; with --check it checks the labelled images and stops.

    Args:
        task: "segment" labels pixels; "regress" gives them numbers, those of the images in
            data.masks, of any number of channels (the validation score is then PSNR).
        init: Folder of the denoiser to start from; null takes the newest run's that takes such
            images, else the one that ships, else "scratch", random weights. Architecture
            "classic" with an encoder of torchvision: "imagenet", or a safetensors file of its
            weights.
        architecture: "unet" (the denoiser's, with a head) or "classic" (2015, from scratch).
        data: The labelled images.
        unlabelled: Transfer "joint": images to denoise in the same steps. Size and channels are
            those of data; scale counts on top of data.scale (1: as fine as the labelled images),
            and null value_range takes that of data.
        model: The U-Net, when init is "scratch".
        head: The head, and how weights transfer.
        classic: The network of architecture "classic".
        diffusion: Transfer "joint": the forward process when init is "scratch"; a denoiser's
            folder has its own, of which only the loss weighting min_snr_gamma is set here.
        loss: What is minimised.
        regression: Task "regress": what is minimised instead.
        layer_decay: Learning rate of each block as a share of the next block's, output to input.
        predict: Whole images, in validation.
        criterion: Validation score by which the best model is kept.
        cell_class: Class whose connected pieces are cells, parted by membranes: the test then gives
            V_rand and V_info too (2-D, two classes).
        objects: Learn the interior of every object too, so that objects that touch come out apart:
            those that masks of kind instances number, else the connected pieces of each class.
    """

    task: Literal["segment", "regress"] = "segment"
    init: str | None = None
    architecture: Literal["unet", "classic"] = "unet"
    data: PairDataConfig = field(default_factory=PairDataConfig)
    unlabelled: ImageDataConfig = field(default_factory=ImageDataConfig)
    model: UNetSettings = field(default_factory=UNetSettings)
    head: HeadConfig = field(default_factory=HeadConfig)
    classic: ClassicConfig = field(default_factory=ClassicConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    loss: SegmentLossConfig = field(default_factory=SegmentLossConfig)
    regression: RegressionConfig = field(default_factory=RegressionConfig)
    layer_decay: float = limited(1.0, 1e-6, 1)
    predict: PredictConfig = field(default_factory=PredictConfig)
    criterion: Literal["mean_dice", "mean_iou"] = "mean_dice"
    cell_class: int | None = None
    objects: bool = False


@dataclass
class CheckConfig:
    """Settings of `ddpm-unet check`.

    Args:
        data: The labelled images.
    """

    data: PairDataConfig = field(default_factory=PairDataConfig)


SCRIPTS: dict[str, type] = {
    "train_ddpm": DenoiseConfig,
    "train_seg": SegmentConfig,
    "train_autoencoder": AutoencodeConfig,
}

_RUN = (
    "run", "minutes", "train.steps", "train.batch_size", "train.micro_batch", "train.lr",
    "train.mixed_precision",
)  # fmt: skip
COMMON: dict[type, tuple[str, ...]] = {
    DenoiseConfig: (
        *_RUN, "init", "data.source", "data.size", "data.fit", "data.scale", "data.channels",
        "data.value_range", "data.flips", "data.rot90", "data.class_labels", "data.workers",
        "model.block_out_channels", "model.layers_per_block", "diffusion.prediction_type",
        "train.validate_every", "train.sample_every",
    ),
    AutoencodeConfig: (*_RUN, "data.source", "data.size", "kl_weight"),
    SegmentConfig: (
        *_RUN, "init", "architecture", "task", "data.images", "data.masks", "data.mask_kind",
        "data.num_classes", "data.class_names", "data.size", "data.scale", "data.value_range",
        "data.split.by", "data.split.validation", "data.split.test", "data.augment.flips",
        "data.augment.rot90", "head.transfer", "loss.name", "objects",
        "train.early_stopping_patience",
    ),
}  # fmt: skip
"""The settings that people use, which --help lists; --help-all lists all."""
