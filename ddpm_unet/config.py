"""Every setting of every job: one dataclass a topic, one line of help each.

The same names are the keys of `configs/*.yaml`, the dotted flags of the scripts and the
content of a run folder's `config.yaml`. Nothing here imports torch, so `--help` is quick.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

PredictionType = Literal["epsilon", "sample", "v_prediction"]
BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]


@dataclass
class UNetConfig:
    """Architecture of a `UNet`, in the names of diffusers' `config.json`.

    Block types containing "CrossAttn" make it the conditional network of Stable Diffusion
    (diffusers' UNet2DConditionModel); without them it is that of DDPM (UNet2DModel).

    Args:
        in_channels: Channels of the input image.
        out_channels: Channels of the prediction.
        sample_size: Height and width the network was trained at; any other size works too.
        dims: Spatial dimensions, 2 for images or 3 for volumes.
        center_input_sample: Map inputs from [0, 1] to [-1, 1] first.
        down_block_types: One block type per level, from fine to coarse.
        mid_block_type: Type of the middle block, or null for none.
        up_block_types: One block type per level, from coarse to fine.
        block_out_channels: Channels per level, from fine to coarse.
        layers_per_block: Residual blocks per level of the encoder (the decoder has one more).
        downsample_padding: Padding of strided convolutions; 0 pads right and bottom only.
        downsample_type: "conv", or "resnet" for a residual block that halves.
        upsample_type: "conv", or "resnet" for a residual block that doubles.
        mid_block_scale_factor: Divisor of the middle block's residual sums.
        act_fn: Activation of the residual blocks.
        dropout: Dropout inside residual blocks, 0 to 1.
        norm_num_groups: Groups of every group normalisation.
        norm_eps: Epsilon of every group normalisation.
        attn_norm_num_groups: Groups of the attention's own normalisation, if different.
        attention_head_dim: DDPM networks: channels per head (null: one head). Conditional
            networks: number of heads (one, or one per level), as diffusers reads it.
        num_attention_heads: Conditional networks: number of heads, when written under this name.
        cross_attention_dim: Channels of the context sequence (conditional networks).
        transformer_layers_per_block: Transformer blocks per attention (one, or one per level).
        use_linear_projection: Linear instead of 1x1 convolution around the transformer.
        only_cross_attention: First attention attends to the context too (one, or one per level).
        dual_cross_attention: Two transformers per attention. Not supported, must be false.
        upcast_attention: Compute attention logits in float32.
        time_embedding_type: "positional": sinusoids (Vaswani 2017; Ho 2020).
        freq_shift: Shift in the sinusoids' frequency exponent (1: Ho 2020; 0: Stable Diffusion).
        flip_sin_to_cos: Cosines first (Stable Diffusion) instead of sines first.
        resnet_time_scale_shift: "default" adds the time embedding; "scale_shift" modulates by it.
        class_embed_type: null, "timestep" or "identity"; a table when num_class_embeds is set.
        num_class_embeds: Number of classes of the class embedding table.
    """

    in_channels: int = 3
    out_channels: int = 3
    sample_size: int | tuple[int, ...] | None = None
    dims: Literal[2, 3] = 2
    center_input_sample: bool = False
    down_block_types: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D")
    mid_block_type: str | None = "UNetMidBlock2D"
    up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    block_out_channels: tuple[int, ...] = (64, 128, 128)
    layers_per_block: int | tuple[int, ...] = 2
    downsample_padding: int = 1
    downsample_type: Literal["conv", "resnet"] = "conv"
    upsample_type: Literal["conv", "resnet"] = "conv"
    mid_block_scale_factor: float = 1.0
    act_fn: str = "silu"
    dropout: float = 0.0
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    attn_norm_num_groups: int | None = None
    attention_head_dim: int | tuple[int, ...] | None = 8
    num_attention_heads: int | tuple[int, ...] | None = None
    cross_attention_dim: int | None = None
    transformer_layers_per_block: int | tuple[int, ...] = 1
    use_linear_projection: bool = False
    only_cross_attention: bool | tuple[bool, ...] = False
    dual_cross_attention: bool = False
    upcast_attention: bool = False
    time_embedding_type: Literal["positional"] = "positional"
    freq_shift: int = 0
    flip_sin_to_cos: bool = True
    resnet_time_scale_shift: Literal["default", "scale_shift"] = "default"
    class_embed_type: Literal["timestep", "identity"] | None = None
    num_class_embeds: int | None = None


@dataclass
class ClassicConfig:
    """Architecture of a `ClassicUNet`; the defaults are Ronneberger 2015.

    Args:
        in_channels: Channels of the input image.
        num_classes: Outputs per pixel, one score a class.
        class_names: One name per class, or empty.
        class_colors: One RGB colour (0 to 255) per class, or empty.
        dims: Spatial dimensions, 2 for images or 3 for volumes.
        depth: Levels, of which all but the last are pooled.
        base_width: Channels of the finest level; every level below doubles them.
        padding: "valid" (the output is smaller than the input) or "same".
        norm: "batch" after every 3x3 convolution, or "none".
        upsample: "transposed" (2x2 up-convolution) or "bilinear" (trilinear in 3-D).
        skip: Join encoder and decoder by "concat", or by "add" as FCN does.
        dropout: Dropout at the end of the contracting path (its last two levels), 0 to 1.
    """

    in_channels: int = 1
    num_classes: int = 2
    class_names: tuple[str, ...] = ()
    class_colors: tuple[tuple[int, int, int], ...] = ()
    dims: Literal[2, 3] = 2
    depth: int = 5
    base_width: int = 64
    padding: Literal["valid", "same"] = "valid"
    norm: Literal["none", "batch"] = "none"
    upsample: Literal["transposed", "bilinear"] = "transposed"
    skip: Literal["concat", "add"] = "concat"
    dropout: float = 0.5


@dataclass
class HeadConfig:
    """Segmentation by a `UNet`: the head on its features and how the U-Net's weights transfer.

    Args:
        num_classes: Outputs per pixel, one score a class.
        class_names: One name per class, or empty.
        class_colors: One RGB colour (0 to 255) per class, or empty.
        transfer: "finetune" trains the encoder, decoder and head; "frozen" the head alone;
            "features" a per-pixel network on frozen activations of the decoder at several noise
            levels (Baranchuk 2022); "joint" everything, for denoising in the same steps.
        timestep: Timestep the U-Net is told when it segments; 0 is a clean image.
        repeat_grey: Images have one channel, repeated to the U-Net's number of channels.
        feature_timesteps: "features": noise levels at which the decoder is read.
        feature_blocks: "features": up blocks read, 0 is the coarsest; null for all.
        feature_widths: "features": hidden widths of the per-pixel network.
        feature_seed: "features": seed of the noise, the same for every image.
    """

    num_classes: int = 2
    class_names: tuple[str, ...] = ()
    class_colors: tuple[tuple[int, int, int], ...] = ()
    transfer: Literal["finetune", "frozen", "features", "joint"] = "finetune"
    timestep: int = 0
    repeat_grey: bool = False
    feature_timesteps: tuple[int, ...] = (50, 150, 250)
    feature_blocks: tuple[int, ...] | None = None
    feature_widths: tuple[int, int] = (128, 32)
    feature_seed: int = 0


@dataclass
class DiffusionConfig:
    """The forward process and what the network predicts.

    Args:
        num_train_timesteps: Length T of the chain.
        beta_schedule: "linear" (Ho 2020), "scaled_linear" (latent diffusion) or
            "squaredcos_cap_v2" (cosine, Nichol 2021).
        beta_start: First beta (linear, scaled_linear).
        beta_end: Last beta (linear, scaled_linear).
        prediction_type: "epsilon" (the noise), "sample" (x0) or "v_prediction" (Salimans 2022).
        min_snr_gamma: Min-SNR loss weighting (Hang 2023, gamma = 5); null for the plain loss.
    """

    num_train_timesteps: int = 1000
    beta_schedule: BetaSchedule = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    prediction_type: PredictionType = "epsilon"
    min_snr_gamma: float | None = None


@dataclass
class ImageDataConfig:
    """Images without labels, for the denoiser.

    Args:
        source: "builtin:histology", "builtin:fashion-mnist", a folder of images,
            "torchvision:CIFAR10" (any torchvision image data set) or "huggingface:NAME".
        root: Folder of a data set's files (torchvision: downloaded there when missing).
        size: Height and width of the training images, pixels.
        fit: "crop" cuts size x size windows at random places (at the pictures' own scale);
            "resize" scales the shorter side to size and cuts the centre.
        scale: Factor applied to the pictures before cropping (0.5 halves them).
        channels: 1 (grey), 3 (RGB) or 4; null keeps what the pictures have.
        flips: Mirror at random: left-right and, for "crop", top-bottom.
        turns: Turn by a random multiple of 90 degrees.
        class_labels: Take a class from the data set, or from the folder's sub-folder names.
        include_held_out: Train on what the source keeps for scoring too.
        workers: Loader processes; 0 loads in the main one (best for sets kept in memory).
        memory_limit: Sets whose decoded pictures fit in so many MB are decoded once and kept.
        max_pixels: Refuse pictures of more than so many million pixels (decompression bombs).
    """

    source: str = "builtin:histology"
    root: str | None = None
    size: int = 64
    fit: Literal["crop", "resize"] = "crop"
    scale: float = 1.0
    channels: int | None = None
    flips: bool = True
    turns: bool = True
    class_labels: bool = False
    include_held_out: bool = False
    workers: int = 0
    memory_limit: int = 2048
    max_pixels: float = 200.0


@dataclass
class TrainConfig:
    """The training loop, the same for every job.

    Args:
        steps: Optimiser steps in all.
        batch_size: Images per step, over all processes and accumulation.
        micro_batch: Images per process and forward pass; 0 takes the process's whole share.
        lr: Peak learning rate of AdamW.
        lr_schedule: After the warm-up: "constant", or "cosine" down to zero.
        warmup_steps: Steps of linear learning-rate warm-up.
        betas: AdamW's averaging coefficients.
        weight_decay: AdamW's decoupled weight decay.
        clip_norm: Largest norm of the whole gradient; 0 leaves it as it is.
        ema_decay: Averaging of the weights, after a warm-up of (1 + step) / (10 + step).
        mixed_precision: Autocast of the forward pass.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, slower.
        compile: torch.compile the network.
        channels_last: Memory layout of images and convolutions.
        checkpoint_every: Steps between checkpoints.
        keep_checkpoints: Newest checkpoints kept.
        validate_every: Steps between validations; 0 for none.
        sample_every: Steps between picture grids; 0 for none.
        log_every: Steps between lines of metrics.jsonl (the loss is their mean).
    """

    steps: int = 20_000
    batch_size: int = 32
    micro_batch: int = 0
    lr: float = 2e-4
    lr_schedule: Literal["constant", "cosine"] = "cosine"
    warmup_steps: int = 500
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    ema_decay: float = 0.9999
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    gradient_checkpointing: bool = False
    compile: bool = False
    channels_last: bool = False
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    validate_every: int = 1000
    sample_every: int = 1000
    log_every: int = 10


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
class DenoiseConfig:
    """Settings of `scripts/train_ddpm.py`.

    Args:
        run: Run folder; null takes runs/ and the configuration file's name.
        resume: "auto" goes on from the run's newest good checkpoint; "never" refuses a used run folder.
        seed: The order of the data, augmentation, noise and initial weights depend on it alone.
        tracker: Besides metrics.jsonl, log to tensorboard or wandb through accelerate.
        data: The images.
        model: The network.
        diffusion: The forward process.
        train: The loop.
        preview: Grids and validation during training.
    """

    run: str | None = None
    resume: Literal["auto", "never"] = "auto"
    seed: int = 0
    tracker: Literal["none", "tensorboard", "wandb"] = "none"
    data: ImageDataConfig = field(default_factory=ImageDataConfig)
    model: UNetConfig = field(default_factory=UNetConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    preview: PreviewConfig = field(default_factory=PreviewConfig)
