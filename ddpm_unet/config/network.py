"""The networks: `UNet`, `ClassicUNet`, and what turns a U-Net into a segmenter."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from ddpm_unet.config.reading import BELOW_1, limited


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
        layers_per_block: Residual blocks per level of the encoder (the decoder has one more): one
            number, or one per level, which diffusers reads in conditional networks only.
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
            number of heads. So does diffusers read it. One, or one per level, which diffusers
            reads in conditional networks only.
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

    in_channels: int = limited(3, 1, 65_536)
    out_channels: int = limited(3, 1, 65_536)
    sample_size: int | tuple[int, ...] | None = limited(None, 1, 65_536)
    dims: Literal[2, 3] = 2
    center_input_sample: bool = False
    down_block_types: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D")
    mid_block_type: str | None = "UNetMidBlock2D"
    up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    block_out_channels: tuple[int, ...] = limited((64, 128, 128), 1, 16_384)
    layers_per_block: int | tuple[int, ...] = limited(2, 1, 64)
    downsample_padding: Literal[0, 1] = 1
    downsample_type: Literal["conv", "resnet"] = "conv"
    upsample_type: Literal["conv", "resnet"] = "conv"
    add_attention: bool = True
    mid_block_scale_factor: float = limited(1.0, 1e-6, 10**6)
    act_fn: Literal["silu", "swish", "mish", "gelu", "relu"] = "silu"
    dropout: float = limited(0.0, *BELOW_1)
    norm_num_groups: int = limited(32, 1)
    norm_eps: float = limited(1e-5, 1e-12, 1)
    attn_norm_num_groups: int | None = limited(None, 1)
    attention_head_dim: int | tuple[int, ...] | None = limited(8, 1)
    cross_attention_dim: int | tuple[int, ...] | None = limited(None, 1, 65_536)
    transformer_layers_per_block: int | tuple[int, ...] = limited(1, 1, 64)
    use_linear_projection: bool = False
    only_cross_attention: bool | tuple[bool, ...] = False
    upcast_attention: bool = False
    freq_shift: int = 0
    flip_sin_to_cos: bool = True
    resnet_time_scale_shift: Literal["default", "scale_shift"] = "default"
    class_embed_type: Literal["timestep", "identity"] | None = None
    num_class_embeds: int | None = limited(None, 1, 10**6)

    @property
    def conditional(self) -> bool:
        """Whether it is diffusers' UNet2DConditionModel rather than its UNet2DModel."""
        return self.cross_attention_dim is not None

    def filled(self, **found: int | None) -> UNetConfig:
        """The architecture, with `found` in place of what is null; what is set stays."""
        own = {each.name: getattr(self, each.name) for each in fields(UNetConfig)}
        return UNetConfig(**own | {k: v for k, v in found.items() if own[k] is None})


@dataclass
class UNetSettings(UNetConfig):
    """Architecture of a `UNet` for given data, which fill in what is null.

    Args:
        in_channels: Channels of the input image; null takes those of the data, with what the
            network is conditioned on.
        out_channels: Channels of the prediction; null takes those of the data.
        dims: Spatial dimensions, 2 for images or 3 for volumes; null takes those of the data.
        num_class_embeds: Number of classes of the class embedding table; null takes that of
            data.class_labels, and one for none with condition_dropout.
    """

    in_channels: int | None = limited(None, 1, 65_536)  # type: ignore[assignment]
    out_channels: int | None = limited(None, 1, 65_536)  # type: ignore[assignment]
    dims: Literal[2, 3] | None = None  # type: ignore[assignment]


@dataclass
class AutoencoderConfig:
    """Architecture of an autoencoder, in the names of diffusers' AutoencoderKL.

    Args:
        latent_channels: Channels of the latents.
        block_out_channels: Channels per level, from fine to coarse; every level but the first
            halves the sides.
        layers_per_block: Residual blocks per level of the encoder (the decoder has one more).
        norm_num_groups: Groups of every group normalisation.
        mid_block_add_attention: Self-attention in the middle of both.
    """

    latent_channels: int = limited(4, 1, 65_536)
    block_out_channels: tuple[int, ...] = limited((16, 32, 64), 1, 16_384)
    layers_per_block: int = limited(1, 1, 64)
    norm_num_groups: int = limited(8, 1)
    mid_block_add_attention: bool = False


@dataclass
class ClassicConfig:
    """Architecture of a `ClassicUNet`; the defaults are Ronneberger 2015.

    The decoder is that of the U-Net ("unet"), of FCN-8s ("fcn", Long 2014), of TernausNet
    ("ternaus", Iglovikov 2018), of U-Net++ ("nested", Zhou 2018) or of U-Net 3+ ("full_scale",
    Huang 2020). Any but the first needs padding "same", and so does an encoder of torchvision.

    Args:
        in_channels: Channels of the input image.
        num_classes: Outputs per pixel, one score a class.
        class_names: One name per class, or empty.
        class_colors: One RGB colour (0 to 255) per class, or empty.
        dims: Spatial dimensions, 2 for images or 3 for volumes.
        encoder: "classic", or a network of torchvision such as vgg11 or resnet34.
        decoder: "unet", "fcn", "ternaus", "nested" or "full_scale".
        deep_supervision: Decoders "nested" and "full_scale": in training every level gives scores.
        depth: Levels, of which all but the last are pooled.
        base_width: Channels of the finest level; every level below doubles them.
        doubling: Where a level's channels double: "after_pooling", by its first convolution, or
            "before_pooling", by its last one, so that pooling loses less (3D U-Net, Cicek 2016).
        padding: "valid" (the output is smaller than the input) or "same".
        norm: "batch" after every 3x3 convolution, or "none".
        upsample: "transposed" (2x2 up-convolution) or "bilinear" (trilinear in 3-D).
        skip: Join encoder and decoder by "concat", or by "add" as FCN does.
        dropout: Dropout at the end of the contracting path (its last two levels), 0 to 1.
        one_logit: Two classes as one score per pixel, whose sigmoid is the probability of the
            second: their cross-entropy is the binary one.
    """

    in_channels: int = 1
    num_classes: int = 2
    class_names: tuple[str, ...] = ()
    class_colors: tuple[tuple[int, int, int], ...] = ()
    dims: Literal[2, 3] = 2
    encoder: str = "classic"
    decoder: Literal["unet", "fcn", "ternaus", "nested", "full_scale"] = "unet"
    deep_supervision: bool = False
    depth: int = limited(5, 2, 8)
    base_width: int = limited(64, 1, 4096)
    doubling: Literal["after_pooling", "before_pooling"] = "after_pooling"
    padding: Literal["valid", "same"] = "valid"
    norm: Literal["none", "batch"] = "none"
    upsample: Literal["transposed", "bilinear"] = "transposed"
    skip: Literal["concat", "add"] = "concat"
    dropout: float = limited(0.5, *BELOW_1)
    one_logit: bool = False


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
        timestep: Timestep that the U-Net is given when it segments; 0 is a clean image.
        class_label: Class that a class-conditional U-Net is given when it segments.
        repeat_grey: Images have one channel, repeated to the U-Net's number of channels.
        feature_timesteps: "features": noise levels at which the decoder is read.
        feature_alphas: "features": cumulative alpha of each of these timesteps; empty takes them
            from the schedule in the denoiser's folder.
        feature_layers: "features": decoder layers read, 0 is the coarsest; null for all.
        feature_widths: "features": hidden widths of the per-pixel network.
        feature_seed: "features": seed of the noise, the same for every image.
    """

    num_classes: int = limited(2, 1, 256)
    class_names: tuple[str, ...] = ()
    class_colors: tuple[tuple[int, int, int], ...] = limited((), 0, 255)
    transfer: Literal["finetune", "frozen", "features", "joint"] = "finetune"
    timestep: int = limited(0, 0, 100_000)
    class_label: int | None = None
    repeat_grey: bool = False
    feature_timesteps: tuple[int, ...] = (50, 150, 250)
    feature_alphas: tuple[float, ...] = limited((), 1e-12, 1)
    feature_layers: tuple[int, ...] | None = None
    feature_widths: tuple[int, int] = limited((128, 32), 1, 65_536)
    feature_seed: int = 0
