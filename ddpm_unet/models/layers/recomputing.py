"""Activations that are computed again in the backward pass: less memory, slower."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


class Recomputing(nn.Module):
    """A module that runs its blocks by `run`.

    Attributes:
        checkpointing: Whether the backward pass computes the blocks' activations again.
    """

    checkpointing = False

    def run(self, block: nn.Module, *inputs: Tensor) -> Tensor:
        """The block's output."""
        if not (self.checkpointing and torch.is_grad_enabled()):
            return block(*inputs)
        contexts = partial(_recomputing, block)
        return checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts)


def _recomputing(block: nn.Module) -> tuple[AbstractContextManager[Any], Any]:
    """Contexts of the first and the second forward pass of a checkpointed block."""
    return nullcontext(), _spare_statistics(block)


@contextmanager
def _spare_statistics(block: nn.Module) -> Iterator[None]:
    """Batch normalisation counts a batch once: what the recomputation adds is thrown away."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
    kept = [norm._buffers for norm in norms]
    for norm in norms:
        norm._buffers = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            norm._buffers = buffers
