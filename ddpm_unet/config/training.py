"""The loop, its loss, its pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LossName = Literal["cross_entropy", "dice", "cross_entropy+dice", "focal", "border"]
PictureLoss = Literal["l1", "l2", "huber", "ssim"]


@dataclass
class TrainConfig:
    """The training loop, the same for every job.

    Args:
        steps: Optimiser steps in all.
        batch_size: Images per step, over all processes and accumulation.
        micro_batch: Images per process and forward pass; 0 takes the process's whole share.
        optimizer: "adamw" (Loshchilov 2019) or "rmsprop" (Hinton 2012).
        lr: Peak learning rate.
        lr_schedule: After the warm-up: "constant", or "cosine" down to zero.
        warmup_steps: Steps of linear learning-rate warm-up.
        betas: AdamW's averaging coefficients.
        momentum: RMSprop's, of its steps.
        weight_decay: AdamW's is decoupled, RMSprop's is part of the gradient.
        clip_norm: Largest norm of the whole gradient; 0 leaves it as it is.
        ema_decay: Averaging of the weights, after a warm-up of (1 + step) / (10 + step).
        ema_lengths: Averages kept besides, from which `scripts/ema.py` makes one of any length
            afterwards (Karras 2024): their standard deviations as shares of the training, usually
            [0.05, 0.1]; empty for none.
        ema_every: Steps between snapshots of these averages.
        mixed_precision: Autocast of the forward pass.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, slower.
        compile: torch.compile the network.
        channels_last: Memory layout of images and convolutions; null takes it on a GPU and for
            volumes, but not for pictures on a CPU, where `native` is faster without.
        native: On a CPU in float32, functions of our own, compiled at first use: 3x3 convolutions
            by Winograd's method (about 2.5 times as fast, with relative rounding errors of 1e-6
            instead of 2e-7), normalisation, small attention, AdamW with the average.
        checkpoint_every: Steps between checkpoints.
        keep_checkpoints: Newest checkpoints kept.
        validate_every: Steps between validations; 0 for none.
        sample_every: Steps between picture grids; 0 for none.
        log_every: Steps between lines of metrics.jsonl (the loss is their mean).
        patience: Stop after so many validations without a better score; 0 never. For jobs that
            keep their best model (segmentation).
    """

    steps: int = 20_000
    batch_size: int = 32
    micro_batch: int = 0
    optimizer: Literal["adamw", "rmsprop"] = "adamw"
    lr: float = 2e-4
    lr_schedule: Literal["constant", "cosine"] = "cosine"
    warmup_steps: int = 500
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.9
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    ema_decay: float = 0.9999
    ema_lengths: tuple[float, ...] = ()
    ema_every: int = 500
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    gradient_checkpointing: bool = False
    compile: bool = False
    channels_last: bool | None = None
    native: bool = True
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    validate_every: int = 1000
    sample_every: int = 1000
    log_every: int = 10
    patience: int = 0


@dataclass
class PreviewConfig:
    """The grids drawn during training.

    Args:
        num_images: Images in a grid, shared among the processes.
        steps: Steps of the DDIM sampler that draws them.
        validation_images: Images whose denoising loss is measured in a validation.
    """

    num_images: int = 16
    steps: int = 25
    validation_images: int = 128


@dataclass
class SegmentLossConfig:
    """What the segmenter minimises.

    Args:
        name: "cross_entropy+dice" (their sum), "cross_entropy", "dice", "focal", or "border":
            cross-entropy under the weight maps of Ronneberger 2015, eq. 2.
        class_weights: One factor per class, or empty.
        focal_gamma: Exponent of the focal loss.
        denoise_weight: Transfer "joint": factor of the denoising loss that is added.
    """

    name: LossName = "cross_entropy+dice"
    class_weights: tuple[float, ...] = ()
    focal_gamma: float = 2.0
    denoise_weight: float = 1.0


@dataclass
class RegressionConfig:
    """Task "regress": what is minimised, between pictures whose range is -1 to 1.

    Args:
        loss: "l1" (mean absolute error), "l2" (mean squared error), "huber", or "ssim" (one minus
            the structural similarity of Wang 2004).
        huber_delta: Loss "huber": error from which on it grows in proportion and not as a square.
        residual: The network learns what is to be added to the image, of whose first channels the
            targets are a better version (He 2016; for pan-sharpening, denoising and the like).
    """

    loss: PictureLoss = "l1"
    huber_delta: float = 0.1
    residual: bool = False


@dataclass
class PredictConfig:
    """How whole pictures are segmented in validation, and by `scripts/segment.py` by default.

    Args:
        tile: Pixels of a tile's side that the network sees, at data.scale; null takes, for every
            picture, those tiles of up to 768 x 768 pixels (of volumes 96 x 96 x 96), or of as many
            in another shape, with which the least is computed twice.
        overlap: Pixels that neighbouring tiles share; without padding the seams are exact at 0.
            Null takes 32, of volumes 16.
        margin: Pixels of a tile's border where a network with padding is not trusted; null takes
            16, of volumes 8.
        turns: Average over the 8 flips and quarter turns.
    """

    tile: int | None = None
    overlap: int | None = None
    margin: int | None = None
    turns: bool = False
