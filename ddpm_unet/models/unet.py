"""The U-Net of denoising diffusion: Ho 2020, Dhariwal 2021, Rombach 2022."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import torch
from torch import Tensor, nn

from ddpm_unet.config import UNetConfig
from ddpm_unet.config.foreign import ForeignConfig
from ddpm_unet.models import foreign, pretrained
from ddpm_unet.models.architecture import down_levels, mid_level, up_levels
from ddpm_unet.models.blocks import Block, Conditions, DownBlock, MidBlock, UpBlock
from ddpm_unet.models.checks import check
from ddpm_unet.models.layers.convolution import convolution, zeroed
from ddpm_unet.models.layers.embeddings import TimestepEmbedding, sinusoids
from ddpm_unet.models.layers.normalisation import ACTIVATIONS, NormAct


class UNet(nn.Module):
    """A network from an image and a time step to an image of the same size.

    Its weights and configuration are those of diffusers' UNet2DModel or, with
    `cross_attention_dim`, of its UNet2DConditionModel. The last layer of every residual branch
    and of the network is zero at first, so a new network returns zeros.

    Args:
        config: The architecture.

    Raises:
        UserError: The configuration makes no network; names the setting and the cure.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        check(config)
        self.config = config
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
            self.down_blocks.append(DownBlock(config, level, channels, last))
            channels = level.channels
            skips += [channels] * (level.layers + (not last))

        middle = mid_level(config)
        self.mid_block = MidBlock(config, middle) if middle else None

        self.up_blocks = nn.ModuleList()
        self.skips_per_block = [level.layers for level in ups]
        for i, level in enumerate(ups):
            own = [skips.pop() for _ in range(level.layers)]
            self.up_blocks.append(UpBlock(config, level, channels, own, i == len(ups) - 1))
            channels = level.channels

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
        """The prediction, `[B, out_channels, *space]`; arguments as in `features`."""
        return self.head(self.features(x, t, context, class_labels, context_mask))

    def features(
        self,
        x: Tensor,
        t: Tensor | float,
        context: Tensor | None = None,
        class_labels: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor:
        """The decoder's output, before the last normalisation and convolution (`head`).

        Args:
            x: Image `[B, in_channels, *space]`, of any height and width (and depth).
            t: Time steps `[B]`, or one for all.
            context: Sequence to attend to, `[B, L, cross_attention_dim]`.
            class_labels: `int64 [B]` (a table), time-like `[B]` ("timestep") or the embedding
                itself `[B, 4 * block_out_channels[0]]` ("identity").
            context_mask: `[B, L]`, true or 1 where the context is to be attended to.

        Returns:
            `[B, block_out_channels[0], *space]`.

        Raises:
            ValueError: A condition that the network needs is missing, or has no place in it.
        """
        return self._run(x, self._conditions(t, context, class_labels, context_mask), None)

    def pyramid(
        self,
        x: Tensor,
        t: Tensor | float,
        context: Tensor | None = None,
        class_labels: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> list[Tensor]:
        """The output of every layer of the decoder, from coarse to fine (Baranchuk 2022).

        A layer is a residual block and its attention, before any upsampling. The last of the
        list is what `features` returns; arguments are the same.
        """
        seen: list[Tensor] = []
        self._run(x, self._conditions(t, context, class_labels, context_mask), seen)
        return seen

    def head(self, features: Tensor) -> Tensor:
        """From `features` to the prediction."""
        return self.conv_out(self.conv_norm_out(features))

    def embed(self, t: Tensor | float, class_labels: Tensor | None = None) -> Tensor:
        """The activated embedding of time and class that all residual blocks read.

        Args:
            t: Time steps `[B]`, or one for all.
            class_labels: As in `features`.

        Returns:
            `[B or 1, 4 * block_out_channels[0]]`, one row if `t` is one and there are no labels.
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

    @classmethod
    def from_pretrained(
        cls, source: str | PathLike[str], told: ForeignConfig | None = None
    ) -> UNet:
        """Read a folder that `save_pretrained` wrote, ours or diffusers', or a foreign file.

        Args:
            source: The model's folder, a pipeline's with the model in `unet/`, or a safetensors
                file of another toolkit; see `pretrained` and `foreign`.
            told: What the tensors of such a file do not say.

        Returns:
            The network in float32, on the CPU, in evaluation mode.

        Raises:
            UserError: There is no such model; names the file, field or tensor at fault.
        """
        if Path(source).is_file():
            config, weights = foreign.read(source, told or ForeignConfig())
            cure = "UNet, whose names these are, cannot hold this network"
        else:
            source = pretrained.model_folder(source)
            config, weights = pretrained.read_config(source), pretrained.read_weights(source)
            cure = "take the weights that belong to this configuration"
        with torch.device("meta"):
            unet = cls(config)
        pretrained.check_weights(source, unet.state_dict(), weights, cure)
        unet.load_state_dict(weights, assign=True)
        return unet.eval()

    def save_pretrained(
        self, folder: str | PathLike[str], state_dict: dict[str, Tensor] | None = None
    ) -> None:
        """Write a folder that diffusers' `from_pretrained` reads.

        Args:
            folder: Made if missing.
            state_dict: Weights to write instead of the network's own, such as their average.

        Raises:
            UserError: `state_dict` is not that of this network.
        """
        weights = self.state_dict() if state_dict is None else state_dict
        pretrained.check_weights("state_dict", self.state_dict(), weights)
        pretrained.write_config(self.config, folder)
        pretrained.write_weights(weights, folder)

    def _sinusoids(self, t: Tensor | float) -> Tensor:
        config = self.config
        t = torch.as_tensor(t, device=self.conv_in.weight.device).reshape(-1)
        return sinusoids(
            t,
            config.block_out_channels[0],
            flip_sin_to_cos=config.flip_sin_to_cos,
            freq_shift=config.freq_shift,
        )

    def _conditions(
        self,
        t: Tensor | float,
        context: Tensor | None,
        class_labels: Tensor | None,
        context_mask: Tensor | None,
    ) -> Conditions:
        if self.config.conditional != (context is not None):
            raise ValueError(
                "context missing: the network attends to one"
                if self.config.conditional
                else "context given to a network without cross-attention"
            )
        bias = None
        if context is not None and context_mask is not None:
            # Finite, as in diffusers: where everything is masked, attention is even, not NaN.
            bias = (1 - context_mask.to(context.dtype)) * -10000.0
            bias = bias[:, None, None, :]
        return Conditions(self.embed(t, class_labels), context, bias)

    def _run(self, x: Tensor, given: Conditions, seen: list[Tensor] | None) -> Tensor:
        if self.config.center_input_sample:
            x = 2 * x - 1
        x = self.conv_in(x)
        skips = [x]
        for down in self.down_blocks:
            skips += down(x, given)
            x = skips[-1]
        if self.mid_block is not None:
            x = self.mid_block(x, given)
        for up, layers in zip(self.up_blocks, self.skips_per_block, strict=True):
            own = [skips.pop() for _ in range(layers)]
            x = up(x, own, given, skips[-1].shape[2:] if skips else None, seen)
        return x
