"""Segmentation with the denoiser's encoder and decoder."""

from __future__ import annotations

from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddpm_unet.config import HeadConfig
from ddpm_unet.errors import UserError
from ddpm_unet.models.classic import ClassicUNet
from ddpm_unet.models.layers.convolution import convolution
from ddpm_unet.models.layers.normalisation import NormAct
from ddpm_unet.models.pixel_features import activations, pixel_head, schedule_alphas
from ddpm_unet.models.pretrained import check_weights, read_weights, write_weights
from ddpm_unet.models.segmentation_settings import (
    check_settings,
    class_name,
    read_settings,
    write_settings,
)
from ddpm_unet.models.unet import UNet

FROZEN = ("frozen", "features")


class SegmentationHead(nn.Module):
    """From `UNet.features` to one score a class: normalisation, activation, 3x3 convolution.

    The same three layers as the U-Net's own head, which predicts the noise.

    Args:
        unet: The network whose features it reads.
        num_classes: Outputs per pixel.
    """

    def __init__(self, unet: UNet, num_classes: int) -> None:
        super().__init__()
        config = unet.config
        channels = config.block_out_channels[0]
        self.norm = NormAct(config.norm_num_groups, channels, config.norm_eps, "silu")
        self.conv = convolution(config.dims, channels, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """`[B, block_out_channels[0], *space]` to logits `[B, num_classes, *space]`."""
        return self.conv(self.norm(features))


class Segmenter(nn.Module):
    """A `UNet` and a head that labels pixels, for images of any size.

    What is trained is `config.transfer`: "finetune" everything but the noise prediction;
    "frozen" the head alone; "features" a `PixelHead` on the frozen decoder; "joint" everything.

    A U-Net with cross-attention that is given no context attends to one vector of zeros. Keys and
    values have no bias, so its cross-attention then adds its output bias and nothing else.

    Attributes:
        in_channels: Channels of the images.
        margin: Pixels lost on every side: 0.
        step: Any size fits: 1.

    Args:
        unet: From scratch `UNet(config)`, or a denoiser; see `from_denoiser`.
        config: The head.

    Raises:
        UserError: The settings contradict each other or the U-Net.
    """

    margin = 0
    step = 1

    def __init__(self, unet: UNet, config: HeadConfig) -> None:
        super().__init__()
        check_settings(config)
        classes = unet.config.num_class_embeds or 0
        told = None if unet.config.class_embed_type else config.class_label
        if told is not None and told >= classes:
            raise UserError(
                f"class_label {config.class_label}: the U-Net knows {classes} classes; "
                "set one of them, or null where it knows none"
            )
        self.unet = unet
        self.config = config
        self.in_channels = 1 if config.repeat_grey else unet.config.in_channels
        self.head: nn.Module
        if config.transfer == "features":
            self.head = pixel_head(config, unet.config)
        else:
            self.head = SegmentationHead(unet, config.num_classes)
        unet.requires_grad_(config.transfer not in FROZEN)
        if config.transfer == "finetune":
            unet.conv_norm_out.requires_grad_(False)
            unet.conv_out.requires_grad_(False)

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
            context: Sequence to attend to, `[B, L, cross_attention_dim]`; None for a zero vector.
            class_labels: Classes `[B]`; None for `config.class_label`.
            context_mask: `[B, L]`, true or 1 where the context is to be attended to.

        Returns:
            Logits `[B, num_classes, *space]`; with `both` (prediction, logits).

        Raises:
            UserError: Images of other channels; a class-conditional U-Net and no class.
            ValueError: `t` or `both` with transfer "features", which reads several time steps.
        """
        config = self.config
        images = self._channels(images)
        given = (
            self._context(images) if context is None else context,
            self._labels(images) if class_labels is None else class_labels,
            context_mask,
        )
        if config.transfer == "features":
            if both or t is not None:
                raise ValueError('transfer "features" has its own timesteps: neither t nor both')
            return self.head(activations(self.unet, config, images, given), images.shape[2:])
        features = self.unet.features(images, config.timestep if t is None else t, *given)
        logits = self.head(features)
        return (self.unet.head(features), logits) if both else logits

    def parameter_groups(self, lr: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
        """Optimiser groups whose learning rate falls from the output to the input.

        Heads learn at `lr`, and every block before at `layer_decay` times the rate of the next:
        up blocks, middle, down blocks, and at last the first convolution and the embeddings.
        (Layer-wise decay: Howard 2018, arXiv 1801.06146, section 3.1.)

        Args:
            lr: Learning rate of the heads.
            layer_decay: Factor per block, in (0, 1].

        Returns:
            Every trained parameter once: `{"params": [...], "lr": ...}` a stage.
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

    def enable_gradient_checkpointing(self) -> None:
        """Recompute the U-Net's activations in the backward pass: less memory, slower."""
        self.unet.enable_gradient_checkpointing()

    @classmethod
    def from_denoiser(
        cls, folder: str | PathLike[str], config: HeadConfig, in_channels: int | None = None
    ) -> Segmenter:
        """A new head on a trained denoiser.

        Args:
            folder: A denoiser's folder, ours or diffusers', or a pipeline's with `unet/` in it.
            config: The head.
            in_channels: Channels of the images, to be held against the denoiser's.

        Raises:
            UserError: The folder holds no denoiser; it takes other channels than the images have;
                or transfer is "features" and the noise schedule is neither set nor in the folder.
        """
        unet = UNet.from_pretrained(folder)
        if config.transfer == "features" and not config.feature_alphas:
            config = replace(
                config, feature_alphas=schedule_alphas(folder, config.feature_timesteps)
            )
        segmenter = cls(unet, config)
        if in_channels is not None and in_channels != segmenter.in_channels:
            raise UserError(f"{folder}: {segmenter._channel_fault(in_channels)}")
        return segmenter

    @classmethod
    def from_pretrained(cls, folder: str | PathLike[str]) -> Segmenter:
        """Read a folder that `save_pretrained` wrote.

        Returns:
            The network in float32, on the CPU, in evaluation mode.

        Raises:
            UserError: The folder has no such model; names the file, field or tensor at fault.
        """
        config = read_settings(folder, cls.__name__, HeadConfig)
        segmenter = cls(UNet.from_pretrained(Path(folder) / "unet"), config)
        weights = read_weights(Path(folder) / "head")
        check_weights(Path(folder) / "head", segmenter.head.state_dict(), weights)
        segmenter.head.load_state_dict(weights)
        return segmenter.eval()

    def save_pretrained(
        self, folder: str | PathLike[str], state_dict: dict[str, Tensor] | None = None
    ) -> None:
        """Write `config.json`, the U-Net as diffusers does to `unet/`, and the head to `head/`.

        Args:
            folder: Made if missing.
            state_dict: Weights to write instead of the network's own, such as their average.

        Raises:
            UserError: `state_dict` is not that of this network.
        """
        weights = self.state_dict() if state_dict is None else state_dict
        check_weights("state_dict", self.state_dict(), weights)
        self.unet.save_pretrained(Path(folder) / "unet", _part(weights, "unet."))
        write_settings(self.config, type(self).__name__, folder)
        write_weights(_part(weights, "head."), Path(folder) / "head")

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
            raise UserError("the U-Net is class-conditional; set class_label, the class it is told")
        return torch.full(images.shape[:1], self.config.class_label, device=images.device)


def load_segmentation_model(
    folder: str | PathLike[str], levels: int | None = None
) -> ClassicUNet | Segmenter:
    """Read the folder of any segmentation network.

    Args:
        folder: What `save_pretrained` wrote.
        levels: Of a U-Net++, use so many of the finest levels only.

    Returns:
        The network in float32, on the CPU, in evaluation mode.

    Raises:
        UserError: The folder has no such model; names the file, field or tensor at fault.
    """
    kinds: dict[str, type[ClassicUNet] | type[Segmenter]] = {
        kind.__name__: kind for kind in (ClassicUNet, Segmenter)
    }
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


def _part(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
