"""Cheap results that are not kept for the backward pass, but computed again from their inputs.

A normalisation and its activation cost a few per cent of the convolution they precede, yet the
convolution's input and what is between the two are most of what a residual block keeps. (Chen
2016, arXiv:1604.06174, of cheap layers; Rota Bulo 2018, arXiv:1712.02616, of this one.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge, saved_tensors_hooks

from ddpm_unet.cpu.kernels import transformed

Function = Callable[..., Tensor]


def recompute(function: Function, *inputs: Tensor | None) -> Tensor:
    """`function(*inputs)`, of which the inputs alone are kept for the backward pass.

    The function has no randomness and does not change its inputs, one of which is a tensor.
    """
    if transformed() or not torch.is_grad_enabled():
        return function(*inputs)  # a compiler chooses for itself what to keep
    output: Tensor = _Recompute.apply(function, *inputs)
    return output


def keep_recipe(layer: Function, x: Tensor) -> Tensor:
    """`layer(x)`; where its backward pass needs an x of `recompute`, x is computed again."""
    node: Any = None if transformed() else x.grad_fn
    if not hasattr(node, "recipe"):
        return layer(x)
    storage, shape = x.untyped_storage()._cdata, x.shape  # not x: the graph keeps the hooks

    def pack(kept: Tensor) -> Any:
        is_x = kept.untyped_storage()._cdata == storage and kept.shape == shape
        return node if is_x else kept

    def unpack(kept: Any) -> Tensor:
        return node.recipe.output(node).detach() if kept is node else kept

    with saved_tensors_hooks(pack, unpack):
        return layer(x)


class _Recipe:
    """How to compute a tensor that is not kept, and its gradient, from what a node keeps."""

    def __init__(self, function: Function, device: str) -> None:
        self._function = function
        self._precision: Callable[[], AbstractContextManager[Any]] = nullcontext
        if torch.amp.is_autocast_available(device):
            dtype, enabled = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
            self._precision = partial(torch.autocast, device, dtype, enabled)
        self._computed: tuple[Sequence[Tensor | None], GradientEdge] | None = None

    def output(self, node: Any) -> Tensor:
        """The tensor, computed from leaves of a graph of its own, which waits for `gradients`."""
        if self._computed is None:
            wanted = node.needs_input_grad[1:]
            inputs: Sequence[Tensor | None] = [
                saved if saved is None else saved.detach().requires_grad_(want)
                for saved, want in zip(node.saved_tensors, wanted, strict=True)
            ]
        else:
            inputs = self._computed[0]
        output = self._compute(inputs)
        self._computed = inputs, get_gradient_edge(output)
        return output

    def gradients(self, node: Any, gradient: Tensor) -> Iterator[Tensor | None]:
        """Of every input that has one."""
        again = torch.is_grad_enabled()  # the gradients are to be differentiated again
        if again:
            inputs: Sequence[Tensor | None] = node.saved_tensors
            output = get_gradient_edge(self._compute(inputs))
        else:
            if self._computed is None:
                self.output(node)
            assert self._computed is not None
            (inputs, output), self._computed = self._computed, None
        wanted = node.needs_input_grad[1:]
        leaves = [x for x, want in zip(inputs, wanted, strict=True) if x is not None and want]
        found = iter(torch.autograd.grad(output, leaves, gradient, create_graph=again))
        return (next(found) if want else None for want in wanted)

    def _compute(self, inputs: Sequence[Tensor | None]) -> Tensor:
        with torch.enable_grad(), self._precision():
            return self._function(*inputs)


class _Recompute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Function, *inputs: Tensor | None) -> Tensor:
        ctx.save_for_backward(*inputs)
        ctx.recipe = _Recipe(function, next(x.device.type for x in inputs if x is not None))
        return function(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.recipe.gradients(ctx, gradient)
