"""Segmentation with the denoiser's encoder and decoder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddpm_unet.config import HeadConfig, UNetConfig
from ddpm_unet.errors import UserError
from ddpm_unet.models.classic import ClassicUNet, check_classes
from ddpm_unet.models.layers import NormAct, ResidualBlock, convolution
from ddpm_unet.models.pixel_features import activations, pixel_head, schedule_alphas
from ddpm_unet.models.pretrained import Pretrained, class_name, read_config, settings_from
from ddpm_unet.models.unet import UNet

FROZEN = ("frozen", "features")


class SegmentationHead(nn.Module):
    """From `UNet.features` to one score a class, by the layers that predict the noise."""

    def __init__(self, config: UNetConfig, num_classes: int) -> None:
        super().__init__()
        channels = config.block_out_channels[0]
        self.norm = NormAct(config.norm_num_groups, channels, config.norm_eps, "silu")
        self.conv = convolution(config.dims, channels, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """`[B, block_out_channels[0], *space]` to logits `[B, num_classes, *space]`."""
        return self.conv(self.norm(features))


class Segmenter(Pretrained):
    """A `UNet` and a head that labels pixels, for images of any size.

    What is trained is `config.transfer`: "finetune" everything but the noise prediction;
    "frozen" the head alone; "features" a `PixelHead` on the frozen decoder; "joint" everything.
    With "finetune" residual blocks that never learnt begin at random, not by adding nothing (Ho
    2020), which helps to denoise but makes labels slow to learn.

    A U-Net with cross-attention that is given no context attends to one vector of zeros. Keys and
    values have no bias, so its cross-attention then adds its output bias and nothing else.

    Args:
        unet: From scratch `UNet(...)`, or a denoiser's; see `from_denoiser`.
        config: The head; by default that of `HeadConfig`.
        settings: Settings of it by keyword.

    Raises:
        UserError: The settings contradict each other or the U-Net.

    Example:
        >>> import torch
        >>> from ddpm_unet import Segmenter
        >>> from ddpm_unet.models import UNet
        >>> segmenter = Segmenter(UNet(block_out_channels=(32, 64)), num_classes=3)
        >>> segmenter(torch.randn(1, 3, 40, 56)).shape
        torch.Size([1, 3, 40, 56])
    """

    config: HeadConfig
    config_class = HeadConfig
    folders = {"unet.": "unet", "head.": "head"}  # noqa: RUF012
    margin = 0
    step = 1

    def __init__(self, unet: UNet, config: HeadConfig | None = None, **settings: Any) -> None:
        super().__init__()
        config = settings_from(config, HeadConfig, settings, "Segmenter")
        check_classes(config)
        classes = unet.config.num_class_embeds or 0
        label = None if unet.config.class_embed_type else config.class_label
        if label is not None and label >= classes:
            raise UserError(
                f"class_label {config.class_label}: the U-Net knows {classes} classes; "
                "set one of them, or null where it knows none"
            )
        self.unet = unet
        self.config = config
        self.in_channels = 1 if config.repeat_grey else unet.config.in_channels
        self.dims, self.factor = unet.config.dims, unet.factor
        self.head: nn.Module
        if config.transfer == "features":
            self.head = pixel_head(config, unet.config)
        else:
            self.head = SegmentationHead(unet.config, config.num_classes)
        unet.requires_grad_(config.transfer not in FROZEN)
        if config.transfer == "finetune":
            unet.conv_norm_out.requires_grad_(False)
            unet.conv_out.requires_grad_(False)
            for block in (m for m in unet.modules() if isinstance(m, ResidualBlock)):
                if not (block.conv2.weight.is_meta or block.conv2.weight.any()):
                    block.conv2.reset_parameters()

    def forward(
        self,
        images: Tensor,
        t: Tensor | float | None = None,
        *,
        both: bool = False,
        context: Tensor | None = None,
        class_labels: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Scores of every class at every pixel.

        Args:
            images: `[B, in_channels, *space]` in [-1, 1]; with `repeat_grey` also ones that have
                the U-Net's channels already, such as noisy ones to denoise.
            t: Time steps `[B]`, or one for all; None for `config.timestep`.
            both: Return the U-Net's prediction too, from the same pass.
            context, class_labels, context_mask: As of `UNet.features`; None for a zero vector and
                `config.class_label`.

        Returns:
            Logits `[B, num_classes, *space]`; with `both` (prediction, logits).

        Raises:
            UserError: Images of other channels; a class-conditional U-Net and no class.
            ValueError: `t` or `both` with transfer "features", which reads several time steps.
        """
        config = self.config
        images = self._channels(images)
        cond = (
            self._context(images) if context is None else context,
            self._labels(images) if class_labels is None else class_labels,
            context_mask,
        )
        if config.transfer == "features":
            if both or t is not None:
                raise ValueError('transfer "features" has its own timesteps: neither t nor both')
            return self.head(activations(self.unet, config, images, cond), images.shape[2:])
        features = self.unet.features(images, config.timestep if t is None else t, *cond)
        logits = self.head(features)
        return (self.unet.head(features), logits) if both else logits

    def activations(self, images: Tensor) -> Iterator[Tensor]:
        """What the head of transfer "features" reads of images, see `pixel_features.activations`.

        Of every one of `config.feature_timesteps`, from coarse to fine, `[B, c_i, *space_i]`.
        """
        images = self._channels(images)
        cond = (self._context(images), self._labels(images), None)
        return activations(self.unet, self.config, images, cond)

    def parameter_groups(self, lr: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
        """Optimiser groups, each trained parameter once, slower from the output to the input.

        Heads learn at `lr`, and every block before at `layer_decay`, in (0, 1], times the rate of
        the next: up blocks, middle, down blocks, at last the first convolution and the embeddings
        (layer-wise decay: Howard 2018, arXiv 1801.06146, section 3.1).
        """
        unet = self.unet
        heads = nn.ModuleList([self.head, unet.conv_norm_out, unet.conv_out])
        middle = [] if unet.mid_block is None else [unet.mid_block]
        stages = [heads, *reversed(unet.up_blocks), *middle, *reversed(unet.down_blocks), unet]
        seen: set[nn.Parameter] = set()
        groups = []
        for depth, stage in enumerate(stages):
            parameters = [p for p in stage.parameters() if p.requires_grad and p not in seen]
            seen.update(parameters)
            if parameters:
                groups.append({"params": parameters, "lr": lr * layer_decay**depth})
        return groups

    def train(self, mode: bool = True) -> Segmenter:
        """Training mode; a frozen U-Net stays in evaluation mode (no dropout)."""
        super().train(mode)
        if self.config.transfer in FROZEN:
            self.unet.eval()
        return self

    def valid_size(self, at_least: int) -> int:
        """The smallest input size of at least so many pixels that the network takes: itself."""
        return at_least

    def enable_gradient_checkpointing(self, enabled: bool = True) -> None:
        """Recompute the U-Net's activations in the backward pass: less memory, slower."""
        self.unet.enable_gradient_checkpointing(enabled)

    @classmethod
    def from_denoiser(
        cls,
        denoiser: Any,
        config: HeadConfig | None = None,
        *,
        in_channels: int | None = None,
        **settings: Any,
    ) -> Segmenter:
        """A new head on a trained denoiser.

        Args:
            denoiser: A `UNet`; an object with such a `unet`, as a `Denoiser`; or the folder of a
                denoiser, ours or diffusers', or of a pipeline with `unet/` in it. The network is
                taken over, not copied.
            config: The head; by default that of `HeadConfig`.
            in_channels: Channels of the images, to be held against the denoiser's.
            settings: Settings of the head by keyword, such as `num_classes=3`.

        Raises:
            UserError: The folder holds no denoiser; it takes other channels than the images have;
                or transfer is "features" and the noise schedule is neither set nor known.
        """
        config = settings_from(config, HeadConfig, settings, "Segmenter.from_denoiser")
        unet, source = denoiser, "this denoiser"
        if isinstance(denoiser, str | PathLike):
            unet, source = UNet.from_pretrained(denoiser), str(denoiser)
        elif not isinstance(denoiser, UNet):
            unet = getattr(denoiser, "unet", None)
        if not isinstance(unet, UNet):
            raise UserError(
                f"denoiser {type(denoiser).__name__}: has no UNet of this package; give a UNet, an"
                " object with a unet, or a folder"
            )
        if config.transfer == "features" and not config.feature_alphas:
            alphas = schedule_alphas(denoiser, config.feature_timesteps)
            config = replace(config, feature_alphas=alphas)
        segmenter = cls(unet, config)
        if in_channels is not None and in_channels != segmenter.in_channels:
            raise UserError(f"{source}: {segmenter._channel_fault(in_channels)}")
        return segmenter

    @classmethod
    def _of(cls, config: HeadConfig, folder: str | PathLike[str]) -> Segmenter:
        return cls(UNet(read_config(Path(folder) / "unet")), config)

    def _write_config(self, folder: Path) -> None:
        super()._write_config(folder)
        self.unet._write_config(folder / "unet")

    def _channels(self, images: Tensor) -> Tensor:
        expected = self.unet.config.in_channels
        if self.config.repeat_grey and images.shape[1] == 1:
            return images.expand(-1, expected, *images.shape[2:])
        if images.shape[1] != expected:
            raise UserError(self._channel_fault(images.shape[1]))
        return images

    def _channel_fault(self, given: int) -> str:
        cure = "convert the images, or train from scratch"
        if given == 1 and not self.config.repeat_grey:
            cure = "set repeat_grey to repeat the grey channel, " + cure
        return f"the U-Net takes images of {self.in_channels} channels, these have {given}; {cure}"

    def _context(self, images: Tensor) -> Tensor | None:
        channels = self.unet.config.cross_attention_dim
        if channels is None:
            return None
        if isinstance(channels, tuple):
            if len(set(channels)) > 1:
                raise ValueError(f"context missing: no one vector has {channels} channels")
            channels = channels[0]
        return images.new_zeros(images.shape[0], 1, channels)

    def _labels(self, images: Tensor) -> Tensor | None:
        if self.unet.class_embedding is None:
            return None
        if self.config.class_label is None:
            raise UserError(
                "the U-Net is class-conditional; set class_label, the class it is given"
            )
        return torch.full(images.shape[:1], self.config.class_label, device=images.device)


def load_segmentation_model(
    folder: str | PathLike[str], levels: int | None = None
) -> ClassicUNet | Segmenter:
    """The segmentation network that `save_pretrained` wrote: float32, CPU, in evaluation mode.

    With `levels` a U-Net++ uses so many of the finest levels only.

    Raises:
        UserError: The folder has no such model; names the file, field or tensor at fault.
    """
    kinds: dict[str, Any] = {kind.__name__: kind for kind in (ClassicUNet, Segmenter)}
    if (Path(folder) / "model_index.json").is_file():
        raise UserError(f"{folder} is a denoiser; train a segmenter from it with --init {folder}")
    name = class_name(folder)
    if name not in kinds:
        raise UserError(
            f"{folder} holds a {name}, which does not segment; name the folder of a"
            f" {' or '.join(kinds)}"
        )
    model = kinds[name].from_pretrained(folder)
    if levels is None:
        return model
    if not isinstance(model, ClassicUNet):
        raise UserError(f"{folder} holds a {name}, which needs all its levels; leave levels out")
    return model.pruned(levels)
