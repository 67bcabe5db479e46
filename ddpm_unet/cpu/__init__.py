"""Faster on a CPU, when asked: compiled modules in place of plain ones, and a fused optimizer step.

    accelerate_cpu(model)       # in place; the same parameters, names, order and results

Only `accelerate_cpu`, and a training of its model, compile anything (C++ beside the Python that
calls it, for the machine at hand). Nothing else of the package imports this one.
"""

from ddpm_unet.cpu.fused_adamw_ema import FusedAdamWEMA
from ddpm_unet.cpu.modules import accelerate_cpu, is_accelerated

__all__ = ["FusedAdamWEMA", "accelerate_cpu", "is_accelerated"]
