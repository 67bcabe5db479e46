"""Every setting of every job: one dataclass a topic, one line of help each.

The same names are the keys of `configs/*.yaml`, the dotted flags of the scripts and the
content of a run folder's `config.yaml`. Nothing here imports torch, so `--help` is quick.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

PredictionType = Literal["epsilon", "sample", "v_prediction"]
BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
MaskKind = Literal["auto", "classes", "values", "threshold", "colors", "instances", "boundaries"]
LossName = Literal["cross_entropy", "dice", "cross_entropy+dice", "focal", "border"]


@dataclass
class UNetConfig:
    """Architecture of a `UNet`, in the names of diffusers' `config.json`.

    With `cross_attention_dim` it is the conditional network of Stable Diffusion (diffusers'
    UNet2DConditionModel), without it that of DDPM (UNet2DModel). Settings marked (DDPM) or
    (conditional) belong to one of the two only.

    Args:
        in_channels: Channels of the input image.
        out_channels: Channels of the prediction.
        sample_size: Height and width the network was trained at; any other size works too.
        dims: Spatial dimensions, 2 for images or 3 for volumes.
        center_input_sample: Map inputs from [0, 1] to [-1, 1] first.
        down_block_types: One block type per level, from fine to coarse: DownBlock2D,
            AttnDownBlock2D, ResnetDownsampleBlock2D or CrossAttnDownBlock2D.
        mid_block_type: UNetMidBlock2D, UNetMidBlock2DCrossAttn (conditional), or null for none.
        up_block_types: One block type per level, from coarse to fine: UpBlock2D,
            AttnUpBlock2D, ResnetUpsampleBlock2D or CrossAttnUpBlock2D.
        block_out_channels: Channels per level, from fine to coarse.
        layers_per_block: Residual blocks per level of the encoder (the decoder has one more);
            conditional networks may have one number per level.
        downsample_padding: Padding of strided convolutions; 0 pads right and bottom only.
        downsample_type: (DDPM) What AttnDownBlock2D halves with: "conv" or "resnet", a
            residual block.
        upsample_type: (DDPM) What AttnUpBlock2D doubles with: "conv" or "resnet".
        add_attention: (DDPM) Self-attention in the middle block.
        mid_block_scale_factor: Divisor of the middle block's residual sums.
        act_fn: Activation: silu, swish, mish, gelu or relu.
        dropout: Dropout inside residual blocks, 0 to 1.
        norm_num_groups: Groups of every group normalisation.
        norm_eps: Epsilon of every group normalisation.
        attn_norm_num_groups: (DDPM) Groups of the middle attention's normalisation; null: as
            elsewhere, or no normalisation at all with "scale_shift".
        attention_head_dim: Attn blocks: channels per head (null: one head). CrossAttn blocks:
            number of heads (one, or one per level). So does diffusers read it.
        cross_attention_dim: Channels of the context sequence (one, or one per level).
        transformer_layers_per_block: (conditional) Transformer blocks per attention (one, or
            one per level).
        use_linear_projection: (conditional) Linear instead of 1x1 convolution around the
            transformer.
        only_cross_attention: (conditional) The first attention of a transformer block attends
            to the context too (one, or one per level).
        upcast_attention: (conditional) Attention logits in float32, which they always are
            here; kept because diffusers writes it.
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
    add_attention: bool = True
    mid_block_scale_factor: float = 1.0
    act_fn: str = "silu"
    dropout: float = 0.0
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    attn_norm_num_groups: int | None = None
    attention_head_dim: int | tuple[int, ...] | None = 8
    cross_attention_dim: int | tuple[int, ...] | None = None
    transformer_layers_per_block: int | tuple[int, ...] = 1
    use_linear_projection: bool = False
    only_cross_attention: bool | tuple[bool, ...] = False
    upcast_attention: bool = False
    freq_shift: int = 0
    flip_sin_to_cos: bool = True
    resnet_time_scale_shift: Literal["default", "scale_shift"] = "default"
    class_embed_type: Literal["timestep", "identity"] | None = None
    num_class_embeds: int | None = None

    @property
    def conditional(self) -> bool:
        """Whether it is diffusers' UNet2DConditionModel rather than its UNet2DModel."""
        return self.cross_attention_dim is not None


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
        class_label: Class that a class-conditional U-Net is told when it segments.
        repeat_grey: Images have one channel, repeated to the U-Net's number of channels.
        feature_timesteps: "features": noise levels at which the decoder is read.
        feature_alphas: "features": cumulative alpha of each of these timesteps; empty takes them
            from the schedule in the denoiser's folder.
        feature_layers: "features": decoder layers read, 0 is the coarsest; null for all.
        feature_widths: "features": hidden widths of the per-pixel network.
        feature_seed: "features": seed of the noise, the same for every image.
    """

    num_classes: int = 2
    class_names: tuple[str, ...] = ()
    class_colors: tuple[tuple[int, int, int], ...] = ()
    transfer: Literal["finetune", "frozen", "features", "joint"] = "finetune"
    timestep: int = 0
    class_label: int | None = None
    repeat_grey: bool = False
    feature_timesteps: tuple[int, ...] = (50, 150, 250)
    feature_alphas: tuple[float, ...] = ()
    feature_layers: tuple[int, ...] | None = None
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
        value_range: Pixel values that become black and white, -1 and 1; outside is clipped. Null
            is the full range: 255 for 8 bits, 65535 for 16, and floats must be within 0 to 1.
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
    value_range: tuple[float, float] | None = None
    flips: bool = True
    turns: bool = True
    class_labels: bool = False
    include_held_out: bool = False
    workers: int = 0
    memory_limit: int = 2048
    max_pixels: float = 200.0


@dataclass
class SplitConfig:
    """Which labelled pictures train, which choose the best checkpoint and which are kept to test.

    A single labelled picture is cut in strips instead.

    Args:
        by: "blocks": in order of their names, training first and test last, as the slices of a
            stack must be (neighbours are nearly equal); "files": shuffled.
        validation: Share of the pictures; 1 and more count them.
        test: Share of the pictures; 1 and more count them.
        folds: k-fold cross-validation of what is not test; 0 for one split.
        fold: The fold that validates, counted from 0.
        limit: Train on so many of the training pictures, spread evenly over them; null for all.
        gap: Pixels between the strips of a single picture.
        seed: Shuffles "files"; not the seed of the run, so that runs can be compared.
    """

    by: Literal["blocks", "files"] = "blocks"
    validation: float = 0.2
    test: float = 0.0
    folds: int = 0
    fold: int = 0
    limit: int | None = None
    gap: int = 32
    seed: int = 0


@dataclass
class AugmentConfig:
    """Random changes of an image together with its mask; 0 or false for none.

    Args:
        flips: Mirror left-right and top-bottom.
        turns: Turn by a random multiple of 90 degrees.
        elastic_sigma: Standard deviation, in pixels, of the displacements of a coarse grid,
            joined by bicubic interpolation (Ronneberger 2015). Above size / 12 it may fold.
        elastic_grid: Nodes of that grid along each side of the window.
        brightness: Largest shift, as a share of the grey range.
        contrast: Largest relative change of the distance to the mean.
        gamma: Largest natural logarithm of the exponent of the grey curve.
        noise: Largest standard deviation of white noise, as a share of the grey range.
    """

    flips: bool = True
    turns: bool = True
    elastic_sigma: float = 10.0
    elastic_grid: int = 3
    brightness: float = 0.1
    contrast: float = 0.2
    gamma: float = 0.2
    noise: float = 0.03


@dataclass
class PairDataConfig:
    """Images with masks, for the segmenter.

    Args:
        images: "builtin:histology" (or "builtin:histology/held-out", the part kept for scoring),
            a folder of images, or a stack (multi-page TIFF).
        masks: "builtin:nucleus" or "builtin:nucleus-type" (built-in images), or the folder or
            stack of masks.
        image_name: Image files' names, without ending; {} is what an image and its mask share.
        mask_name: Mask files' names likewise, for instance "{}_mask".
        skip_unlabelled: Leave out images that have no mask, instead of stopping.
        mask_kind: What the masks' values mean. "classes": class indices; "values": those of
            mask_values; "threshold": class 1 above half of the depth; "colors": those of
            class_colors; "instances": numbered objects, to background and foreground;
            "boundaries": numbered objects, to background, inside and outline. "auto" takes what
            leaves no doubt, such as 0/255, and asks about the rest.
        mask_values: "values": the value of each class, in order.
        ignore_value: Value (for "colors": red, green, blue) of pixels that are not labelled.
        boundary_width: "boundaries": width of the outline, pixels.
        num_classes: Number of classes; null counts the names, or what the masks hold.
        class_names: One name per class, or empty.
        class_colors: One RGB colour (0 to 255) per class, or empty.
        channels: 1 (grey), 3 (RGB) or any number; null keeps what the images have.
        value_range: Pixel values that become black and white, -1 and 1; outside is clipped. Null
            is the full range of the type: 0 to 255, 0 to 65535, or 0.0 to 1.0.
        scale: Factor applied to images and masks before anything is cut (0.5 halves them).
        size: Height and width of the training windows, pixels.
        augment: Random changes in training.
        split: Training, validation and test.
        border_w0: Loss "border": weight of a border between touching cells.
        border_sigma: Loss "border": width of the weighted borders, pixels.
        border_classes: Loss "border": classes whose connected pieces are cells, where the masks
            do not number them; empty for all but class 0.
        include_held_out: Train on what the built-in images keep for scoring, too.
        workers: Loader processes; 0 loads in the main one (best for sets kept in memory).
        memory_limit: Sets whose decoded pictures fit in so many MB are decoded once and kept.
        max_pixels: Refuse pictures of more than so many million pixels (decompression bombs).
    """

    images: str = "builtin:histology"
    masks: str = "builtin:nucleus"
    image_name: str = "{}"
    mask_name: str = "{}"
    skip_unlabelled: bool = False
    mask_kind: MaskKind = "auto"
    mask_values: tuple[int, ...] = ()
    ignore_value: int | tuple[int, int, int] | None = None
    boundary_width: int = 1
    num_classes: int | None = None
    class_names: tuple[str, ...] = ()
    class_colors: tuple[tuple[int, int, int], ...] = ()
    channels: int | None = None
    value_range: tuple[float, float] | None = None
    scale: float = 1.0
    size: int = 128
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    border_w0: float = 10.0
    border_sigma: float = 5.0
    border_classes: tuple[int, ...] = ()
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
        patience: Stop after so many validations without a better score; 0 never. For jobs that
            keep their best model (segmentation).
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
class DenoiseConfig:
    """Settings of `scripts/train_ddpm.py`.

    Args:
        run: Run folder; null takes runs/ and the configuration file's name.
        resume: "auto" goes on from the run's newest good checkpoint; "never" refuses a used
            run folder.
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
class PredictConfig:
    """How whole pictures are segmented in validation, and by `scripts/segment.py` by default.

    Args:
        tile: Pixels of a tile's side that the network sees, at data.scale.
        overlap: Pixels that neighbouring tiles share; without padding the seams are exact at 0.
        turns: Average over the 8 flips and quarter turns.
    """

    tile: int = 256
    overlap: int = 32
    turns: bool = False


@dataclass
class SegmentConfig:
    """Settings of `scripts/train_seg.py`; with --check it checks the labelled images and stops.

    Args:
        run: Run folder; null takes runs/ and the configuration file's name.
        resume: "auto" goes on from the run's newest good checkpoint; "never" refuses a used
            run folder.
        seed: The order of the data, augmentation, noise and initial weights depend on it alone.
        tracker: Besides metrics.jsonl, log to tensorboard or wandb through accelerate.
        init: Folder of the denoiser to start from; null takes that of the newest run, else the
            one that ships; "scratch" starts from random weights.
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
        layer_decay: Learning rate of each block as a share of the next block's, output to input.
        predict: Whole pictures, in validation.
        criterion: Validation score by which the best model is kept.
        train: The loop.
    """

    run: str | None = None
    resume: Literal["auto", "never"] = "auto"
    seed: int = 0
    tracker: Literal["none", "tensorboard", "wandb"] = "none"
    init: str | None = None
    architecture: Literal["unet", "classic"] = "unet"
    data: PairDataConfig = field(default_factory=PairDataConfig)
    unlabelled: ImageDataConfig = field(default_factory=ImageDataConfig)
    model: UNetConfig = field(default_factory=UNetConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    classic: ClassicConfig = field(default_factory=ClassicConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    loss: SegmentLossConfig = field(default_factory=SegmentLossConfig)
    layer_decay: float = 1.0
    predict: PredictConfig = field(default_factory=PredictConfig)
    criterion: Literal["mean_dice", "mean_iou"] = "mean_dice"
    train: TrainConfig = field(default_factory=TrainConfig)
