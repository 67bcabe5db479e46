"""The diffusion process, the loop, its losses, its images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ddpm_unet.config.reading import BELOW_1, SHARE, limited
from ddpm_unet.errors import UserError

PredictionType = Literal["epsilon", "sample", "v_prediction"]
BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2", "logistic"]
VarianceType = Literal["fixed_small", "fixed_large", "learned_range"]
LossName = Literal["cross_entropy", "dice", "cross_entropy+dice", "focal", "border"]
ImageLoss = Literal["l1", "l2", "huber", "ssim"]


@dataclass
class DiffusionConfig:
    """The forward process and what the network predicts.

    Args:
        process: "ddpm" (Ho 2020), or "edm" (Karras 2022), which takes sigma_data to rho and none of
            the others.
        num_train_timesteps: Length T of the chain.
        beta_schedule: "linear" (Ho 2020), "scaled_linear" (latent diffusion),
            "squaredcos_cap_v2" (cosine, Nichol 2021) or "logistic" (sigmoid, Jabri 2022, the
            usual one of denoising-diffusion-pytorch).
        beta_start: First beta (linear, scaled_linear).
        beta_end: Last beta (linear, scaled_linear).
        rescale_betas_zero_snr: Leave nothing of the image at the last timestep, where sampling
            begins (Lin 2023); with prediction type "sample" or "v_prediction" only.
        prediction_type: "epsilon" (the noise), "sample" (x0) or "v_prediction" (Salimans 2022).
        snr_shift: The resolution that the schedule was made for over that of the images, so that
            large ones, which noise hides less, get more of it (Hoogeboom 2023); 1 for none.
        min_snr_gamma: Min-SNR loss weighting (Hang 2023, gamma = 5); null for the plain loss.
        p2_gamma: P2 loss weighting (Choi 2022, gamma = 0.5 or 1); null for the plain loss.
        variance_type: Variance of a reverse step: "fixed_small" (that of the posterior, Ho 2020),
            "fixed_large" (beta), or "learned_range": the network predicts one between the two, in
            as many channels again (Nichol 2021).
        vlb_weight: "learned_range": weight of the variational bound, in bits per dimension, in
            the hybrid loss (Nichol 2021, eq. 16).
        clip_sample: Images that are predicted on the way are kept within [-1, 1]. Latents never
            are.
        sigma_data: "edm": standard deviation of the images.
        p_mean: "edm": mean of the logarithm of the noise levels in training.
        p_std: "edm": its standard deviation.
        sigma_min: "edm": the last noise level of sampling before 0.
        sigma_max: "edm": the first.
        rho: "edm": how sampling spaces them.
    """

    process: Literal["ddpm", "edm"] = "ddpm"
    num_train_timesteps: int = limited(1000, 1, 100_000)
    beta_schedule: BetaSchedule = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    rescale_betas_zero_snr: bool = False
    prediction_type: PredictionType = "epsilon"
    snr_shift: float = limited(1.0, 1e-6, 10**6)
    min_snr_gamma: float | None = limited(None, 1e-6, 10**6)
    p2_gamma: float | None = limited(None, 1e-6, 10**6)
    variance_type: VarianceType = "fixed_small"
    vlb_weight: float = 0.001
    clip_sample: bool = True
    sigma_data: float = limited(0.5, 1e-6, 10**6)
    p_mean: float = limited(-1.2, -100, 100)
    p_std: float = limited(1.2, 1e-6, 100)
    sigma_min: float = limited(0.002, 1e-9, 10**6)
    sigma_max: float = limited(80.0, 1e-6, 10**9)
    rho: float = limited(7.0, 0.1, 1000)

    @property
    def loss_options(self) -> dict[str, Any]:
        """The settings that are of the loss, by argument of `GaussianDiffusion.losses`.

        Raises:
            UserError: Two weightings.
        """
        if self.min_snr_gamma is not None and self.p2_gamma is not None:
            raise UserError("min_snr_gamma and p2_gamma: are two weightings; set one to null")
        options: dict[str, Any] = {"vlb_weight": self.vlb_weight}
        for weighting, gamma in (("min_snr", self.min_snr_gamma), ("p2", self.p2_gamma)):
            if gamma is not None:
                options |= {"weighting": weighting, "gamma": gamma}
        return options

    def output_channels(self, image_channels: int) -> int:
        """Channels of a prediction for images of so many."""
        return image_channels * (2 if self.variance_type == "learned_range" else 1)


@dataclass
class TrainConfig:
    """The training loop, the same for every job.

    Args:
        steps: Optimiser steps in all.
        batch_size: Images per step, over all processes and accumulation.
        micro_batch: Images per process and forward pass; 0 takes the process's whole share.
        optimizer: "adamw" (Loshchilov 2019) or "rmsprop" (Hinton 2012).
        lr: Peak learning rate.
        lr_schedule: After the warm-up: "constant", "linear" or "cosine" down to zero.
        warmup_steps: Steps of linear learning-rate warm-up.
        betas: AdamW's averaging coefficients.
        momentum: RMSprop's, of its steps.
        weight_decay: AdamW's is decoupled, RMSprop's is part of the gradient.
        clip_norm: Largest norm of the whole gradient; 0 leaves it as it is.
        ema_decay: Averaging of the weights, after a warm-up of (1 + step) / (10 + step).
        ema_sigma_rel: Averages kept besides, from which `scripts/ema.py` makes one of any length
            afterwards (Karras 2024): their standard deviations as shares of the training, usually
            [0.05, 0.1]; empty for none.
        ema_every: Steps between snapshots of these averages.
        mixed_precision: Autocast of the forward pass; null takes what `accelerate launch` says,
            else bf16 on a GPU that computes in it.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, slower.
        compile: torch.compile the network; null does on a GPU where that takes less time than it
            saves.
        channels_last: Memory layout of images and convolutions; null takes it on a GPU and for
            volumes, but not for images on a CPU, where `native` is faster without.
        native: On a CPU in float32, functions of our own, compiled at first use: 3x3 convolutions
            by Winograd's method (about 2.5 times as fast, with relative rounding errors of 1e-6
            instead of 2e-7), normalisation, small attention, AdamW with the average.
        checkpoint_every: Steps between checkpoints.
        keep_checkpoints: Newest checkpoints kept.
        sharded_above: Million parameters above which every process writes its own part of a
            checkpoint, while training goes on, and model/ is written when training stops; smaller
            networks have whole files.
        validate_every: Steps between validations; 0 for none.
        sample_every: Steps between image grids; 0 for none.
        evaluate_every: Steps between scores of generated images (see docs/evaluation.md), of a
            denoiser of pixels; 0 for none.
        log_every: Steps between lines of metrics.jsonl (the loss is their mean).
        early_stopping_patience: Stop after so many validations without a better score; 0 never.
            For jobs that keep their best model (segmentation).
        timeout: Minutes that processes wait for the slowest, at the start (data) and in a step.
    """

    steps: int = limited(20_000, 1, 10**9)
    batch_size: int = limited(32, 1, 10**6)
    micro_batch: int = 0
    optimizer: Literal["adamw", "rmsprop"] = "adamw"
    lr: float = limited(2e-4, 1e-12, 10)
    lr_schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup_steps: int = 500
    betas: tuple[float, float] = limited((0.9, 0.999), *BELOW_1)
    momentum: float = limited(0.9, *BELOW_1)
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    ema_decay: float = limited(0.9999, *SHARE)
    ema_sigma_rel: tuple[float, ...] = limited((), 0.01, 0.28)
    ema_every: int = limited(500, 1)
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None
    gradient_checkpointing: bool = False
    compile: bool | None = None
    channels_last: bool | None = None
    native: bool = True
    checkpoint_every: int = limited(1000, 1)
    keep_checkpoints: int = limited(2, 1)
    sharded_above: float = limited(500.0, 0, 10**9)
    validate_every: int = 1000
    sample_every: int = 1000
    evaluate_every: int = 0
    log_every: int = limited(10, 1)
    early_stopping_patience: int = 0
    timeout: float = limited(60.0, 0.1, 10**5)


@dataclass
class PreviewConfig:
    """The grids drawn during training.

    Args:
        num_images: Images in a grid, shared among the processes.
        steps: Steps of the DDIM sampler that draws them.
        validation_images: Images whose denoising loss is measured in a validation.
        evaluation_images: Images drawn, by so many steps too, and compared with real ones.
    """

    num_images: int = limited(16, 1, 4096)
    steps: int = limited(25, 1)
    validation_images: int = limited(128, 1)
    evaluation_images: int = limited(64, 4)


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
    class_weights: tuple[float, ...] = limited((), 0, 10**6)
    focal_gamma: float = 2.0
    denoise_weight: float = 1.0


@dataclass
class RegressionConfig:
    """Task "regress": what is minimised, between images whose range is -1 to 1.

    Args:
        loss: "l1" (mean absolute error), "l2" (mean squared error), "huber", or "ssim" (one minus
            the structural similarity of Wang 2004).
        huber_delta: Loss "huber": error from which on it grows in proportion and not as a square.
        residual: The network learns what is to be added to the image, of whose first channels the
            targets are a better version (He 2016; for pan-sharpening, denoising and the like).
    """

    loss: ImageLoss = "l1"
    huber_delta: float = limited(0.1, 1e-6, 2)
    residual: bool = False


@dataclass
class PredictConfig:
    """How whole images are segmented in validation, and by `scripts/segment.py` by default.

    Args:
        tile: Pixels of a tile's side that the network sees, at data.scale; null takes, for every
            image, those tiles of up to 768 x 768 pixels (of volumes 96 x 96 x 96), or of as many
            in another shape, with which the least is computed twice.
        overlap: Pixels that neighbouring tiles share; without padding the seams are exact at 0.
            Null takes 32, of volumes 16.
        margin: Pixels of a tile's border where a network with padding is not trusted; null takes
            16, of volumes 8.
        tta: Average over the 8 flips and quarter turns.
    """

    tile: int | None = limited(None, 1, 65_536)
    overlap: int | None = None
    margin: int | None = None
    tta: bool = False


@dataclass(frozen=True)
class CheckpointHints:
    """Checkpoints of other toolkits: what is needed to know the network; there are no defaults.

    Args:
        heads: Attention heads, the same at every level (`num_heads`).
        head_dim: Channels of an attention head, the same at every level (`num_head_channels`).
        qkv_order: guided-diffusion: "heads_first", each head with its queries, keys and values
            (the usual order), or "qkv_first" (`use_new_attention_order`).
        norm_num_groups: MONAI: groups of every group normalisation.
        norm_eps: MONAI: epsilon of every group normalisation.
        prefix: Start of the names of the network's tensors, where a file holds several networks.
    """

    heads: int | None = None
    head_dim: int | None = None
    qkv_order: Literal["heads_first", "qkv_first"] | None = None
    norm_num_groups: int | None = None
    norm_eps: float | None = None
    prefix: str | None = None


@dataclass(frozen=True)
class ProcessHints:
    """Likewise to sample from the network; all of it, or none for the network alone.

    Args:
        size: Height and width of the images it was trained on.
        prediction_type: What it predicts: "epsilon" (the noise), "sample" (x0) or "v_prediction".
        num_train_timesteps: Length of the chain; not needed where the file has `betas`, nor are
            the following.
        beta_schedule: "linear", "scaled_linear" (latent diffusion), "squaredcos_cap_v2" (cosine) or
            "logistic" (sigmoid of denoising-diffusion-pytorch).
        beta_start: First beta (linear, scaled_linear).
        beta_end: Last beta (linear, scaled_linear).
        drop_variance: Of a network that predicts variances too (`learn_sigma`; as shares between
            the logarithms of the smallest and the largest, as these toolkits do), keep the rest.
    """

    size: int | None = None
    prediction_type: PredictionType | None = None
    num_train_timesteps: int | None = None
    beta_schedule: BetaSchedule | None = None
    beta_start: float | None = None
    beta_end: float | None = None
    drop_variance: bool = False
