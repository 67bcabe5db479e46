"""The U-Net of denoising diffusion: Ho 2020, Dhariwal 2021, Rombach 2022."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ddpm_unet.config import UNetConfig
from ddpm_unet.models.architecture import check, down_levels, mid_level, up_levels
from ddpm_unet.models.blocks import DOWN_BLOCKS, UP_BLOCKS, Block, Cond, MidBlock
from ddpm_unet.models.layers import (
    ACTIVATIONS,
    NormAct,
    TimestepEmbedding,
    convolution,
    sinusoids,
    zeroed,
)
from ddpm_unet.models.pretrained import Pretrained, unet_config


class UNet(Pretrained):
    """A network from an image and a time step to an image of the same size.

    Its weights and configuration are those of diffusers' UNet2DModel or, with
    `cross_attention_dim`, of its UNet2DConditionModel. The last layer of every residual branch
    and of the network is zero at first, so a new network returns zeros.

    Args:
        config: The architecture; by default that of `UNetConfig`.
        settings: Settings of it by keyword, by diffusers' names. Block types that are not given
            follow from the number of `block_out_channels`.

    Raises:
        UserError: The configuration makes no network; names the setting and the cure.

    Example:
        >>> import torch
        >>> from ddpm_unet import UNet
        >>> unet = UNet(sample_size=64, in_channels=3, block_out_channels=(32, 64))
        >>> unet(torch.randn(2, 3, 64, 64), torch.tensor([10, 500])).shape
        torch.Size([2, 3, 64, 64])
    """

    config: UNetConfig
    config_class = UNetConfig

    def __init__(self, config: UNetConfig | None = None, **settings: Any) -> None:
        super().__init__()
        if settings or config is None:
            config = unet_config(config, settings)
        check(config, DOWN_BLOCKS, UP_BLOCKS)
        self.config = config
        self.factor = 2 ** (len(config.block_out_channels) - 1)  # of the coarsest level
        base = config.block_out_channels[0]
        # diffusers' UNet2DModel uses act_fn in the residual blocks only.
        outer_act = config.act_fn if config.conditional else "silu"
        self.conv_in = convolution(config.dims, config.in_channels, base)
        self.time_embedding = TimestepEmbedding(base, 4 * base, outer_act)
        self.class_embedding: nn.Module | None = None
        if config.class_embed_type == "timestep":
            self.class_embedding = TimestepEmbedding(base, 4 * base, outer_act)
        elif config.class_embed_type == "identity":
            self.class_embedding = nn.Identity()
        elif config.num_class_embeds is not None:
            self.class_embedding = nn.Embedding(config.num_class_embeds, 4 * base)
        self.emb_act = ACTIVATIONS[config.act_fn]

        channels = base
        skips = [base]
        self.down_blocks = nn.ModuleList()
        downs, ups = down_levels(config), up_levels(config)
        for i, level in enumerate(downs):
            last = i == len(downs) - 1
            make = DOWN_BLOCKS[config.down_block_types[i]]
            self.down_blocks.append(make(config, level, channels, last))
            channels = level.channels
            skips += [channels] * (level.layers + (not last))

        middle = mid_level(config)
        mid_block = MidBlock(config, middle) if middle else None

        self.up_blocks = nn.ModuleList()
        self.skips_per_block = [level.layers for level in ups]
        for i, level in enumerate(ups):
            own = [skips.pop() for _ in range(level.layers)]
            make = UP_BLOCKS[config.up_block_types[i]]
            self.up_blocks.append(make(config, level, channels, own, i == len(ups) - 1))
            channels = level.channels
        self.mid_block = mid_block  # after the decoder, as in diffusers

        self.conv_norm_out = NormAct(config.norm_num_groups, base, config.norm_eps, outer_act)
        self.conv_out = zeroed(convolution(config.dims, base, config.out_channels))

    def forward(
        self,
        x: Tensor,
        t: Tensor | float,
        context: Tensor | None = None,
        class_labels: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor:
        """The prediction, `[B, out_channels, *space]`.

        Args:
            x: Image `[B, in_channels, *space]`, of any height and width (and depth).
            t: Time steps `[B]`, or one for all.
            context: Sequence to attend to, `[B, L, cross_attention_dim]`.
            class_labels: `int64 [B]` (a table), time-like `[B]` ("timestep") or the embedding
                itself `[B, 4 * block_out_channels[0]]` ("identity").
            context_mask: `[B, L]`, true or 1 where the context is to be attended to.

        Raises:
            ValueError: Conditioning that the network needs is missing, or has no place in it.
        """
        return self.head(self.features(x, t, context, class_labels, context_mask))

    def features(self, x: Tensor, t: Tensor | float, *cond: Any, **named: Any) -> Tensor:
        """The decoder's output, before the last normalisation and convolution (`head`).

        `[B, block_out_channels[0], *space]`; arguments as in `forward`.
        """
        return self._run(x, self._cond(t, *cond, **named), None)

    def pyramid(self, x: Tensor, t: Tensor | float, *cond: Any, **named: Any) -> list[Tensor]:
        """The output of every layer of the decoder, from coarse to fine (Baranchuk 2022).

        A layer is a residual block and its attention, before any upsampling. The last of the
        list is what `features` returns; arguments are the same.
        """
        seen: list[Tensor] = []
        self._run(x, self._cond(t, *cond, **named), seen)
        return seen

    def head(self, features: Tensor) -> Tensor:
        """From `features` to the prediction."""
        return self.conv_out(self.conv_norm_out(features))

    def embed(self, t: Tensor | float, class_labels: Tensor | None = None) -> Tensor:
        """The activated embedding of time and class, `[B or 1, 4 * block_out_channels[0]]`.

        All residual blocks read it; it is one row if `t` is one and there are no labels.
        """
        emb = self.time_embedding(self._sinusoids(t))
        if self.class_embedding is None:
            if class_labels is not None:
                raise ValueError("class_labels given to a network without class embedding")
        elif class_labels is None:
            raise ValueError("class_labels missing: the network has a class embedding")
        else:
            if self.config.class_embed_type == "timestep":
                class_labels = self._sinusoids(class_labels)
            emb = emb + self.class_embedding(class_labels).to(emb.dtype)
        return self.emb_act(emb)

    def enable_gradient_checkpointing(self, enabled: bool = True) -> None:
        """Recompute the activations in the backward pass: less memory, slower."""
        for module in self.modules():
            if isinstance(module, Block):
                module.gradient_checkpointing = enabled

    def _sinusoids(self, t: Tensor | float) -> Tensor:
        config, weight = self.config, self.conv_in.weight
        if not isinstance(t, Tensor):
            t = torch.full((1,), t, device=weight.device)  # made there: a GPU is not waited for
        order: Any = {"flip_sin_to_cos": config.flip_sin_to_cos, "freq_shift": config.freq_shift}
        t = t.to(weight.device).reshape(-1)
        return sinusoids(t, config.block_out_channels[0], **order).to(weight.dtype)

    def _cond(
        self,
        t: Tensor | float,
        context: Tensor | None = None,
        class_labels: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> Cond:
        if self.config.conditional != (context is not None):
            raise ValueError(
                "context missing: the network attends to one"
                if self.config.conditional
                else "context given to a network without cross-attention"
            )
        bias = None
        if context is not None and context_mask is not None:
            # Finite, as in diffusers: where everything is masked, attention is even, not NaN.
            bias = (1 - context_mask.to(context.dtype))[:, None, None, :] * -10000.0
        return Cond(self.embed(t, class_labels), context, bias)

    def _run(self, x: Tensor, cond: Cond, seen: list[Tensor] | None) -> Tensor:
        if self.config.center_input_sample:
            x = 2 * x - 1
        x = self.conv_in(x)
        skips = [x]
        for down in self.down_blocks:
            skips += down(x, cond)
            x = skips[-1]
        if self.mid_block is not None:
            x = self.mid_block(x, cond)
        for up, layers in zip(self.up_blocks, self.skips_per_block, strict=True):
            own = [skips.pop() for _ in range(layers)]
            x = up(x, own, cond, skips[-1].shape[2:] if skips else None, seen)
        return x
