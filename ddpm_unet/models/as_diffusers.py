"""A U-Net of this package in a pipeline of diffusers.

    StableDiffusionPipeline.from_pretrained(folder, unet=AsDiffusers(unet))

A pipeline saved with it is read by diffusers alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from typing import Any

from diffusers.configuration_utils import FrozenDict
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import Tensor

from ddpm_unet.models.pretrained import FIXED, settings_of
from ddpm_unet.models.unet import UNet


@dataclass
class Prediction(BaseOutput):
    """What diffusers' U-Nets return: the prediction as attribute `sample`, or first element."""

    sample: Tensor


class AsDiffusers(ModelMixin):
    """Called as diffusers calls its UNet2DModel and UNet2DConditionModel, with their `config`."""

    _supports_gradient_checkpointing = True

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet
        settings = settings_of(unet.config)
        kind = settings["_class_name"]
        self.config = FrozenDict(FIXED[kind] | settings)
        # A saved pipeline names the class and the package of its parts.
        self.__class__ = type(kind, (AsDiffusers,), {"__module__": "diffusers"})

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor | None = None,
        class_labels: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        return_dict: bool = True,
        **others: Any,
    ) -> Prediction | tuple[Tensor]:
        """`UNet.forward` by diffusers' names; a `Prediction`, or a tuple without `return_dict`.

        Raises:
            ValueError: One of `others`, such as the outputs of a ControlNet, is not None.
        """
        for name, value in others.items():
            if value is not None:
                raise ValueError(f"{name} given to a UNet of ddpm_unet, which has no place for it")
        output = self.unet(
            sample, timestep, encoder_hidden_states, class_labels, encoder_attention_mask
        )
        return Prediction(sample=output) if return_dict else (output,)

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | PathLike[str], **options: Any
    ) -> None:
        """Write a folder that diffusers' own network and `UNet` read; see `UNet.save_pretrained`.

        Of the options `variant` and `push_to_hub` are refused, the others ignored.
        """
        for name in ("variant", "push_to_hub"):
            if options.get(name):
                raise ValueError(f"{name} is not supported; save the pipeline, then rename or push")
        self.unet.save_pretrained(save_directory, card=False)

    def enable_gradient_checkpointing(self, *_: Any) -> None:
        """Recompute the activations in the backward pass."""
        self.unet.enable_gradient_checkpointing()

    def disable_gradient_checkpointing(self) -> None:
        """Keep the activations for the backward pass."""
        self.unet.enable_gradient_checkpointing(False)
