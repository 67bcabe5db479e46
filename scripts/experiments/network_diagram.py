"""A drawing of a network, made from what runs: its blocks, their sizes, and what each reads."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

COLORS = {"down": "#c1432e", "up": "#2f7d4f", "skip": "#8a8a8a"}


@dataclass(frozen=True)
class Block:
    """An activation of a network.

    Args:
        name: Of the module that gave it.
        channels: Its channels.
        size: Its height and width.
        sources: Names of the blocks whose activations went into it, "image" for the image.
    """

    name: str
    channels: int
    size: tuple[int, ...]
    sources: tuple[str, ...]


def trace(network: nn.Module, images: Tensor) -> list[Block]:
    """The blocks of a `ClassicUNet` in the order in which they run.

    A block is a child of the encoder or decoder, or of a list in it. What it reads is found in the
    graph that torch keeps for the backward pass, so that whatever lies between two blocks
    (pooling, interpolation, concatenation) is looked through.

    Args:
        network: On any device, also "meta".
        images: What it takes.
    """
    images = images.detach().requires_grad_()
    blocks: list[Block] = []
    known: dict[Any, str] = {}

    def sources(node: Any) -> tuple[str, ...]:
        found, seen, ahead = set(), set(), [node]
        while ahead:
            node = ahead.pop()
            for before, _ in node.next_functions:
                if before is None or before in seen:
                    continue
                seen.add(before)
                if before in known:
                    found.add(known[before])
                elif getattr(before, "variable", None) is images:
                    found.add("image")
                else:
                    ahead.append(before)
        order = ["image", *(block.name for block in blocks)]
        return tuple(sorted(found, key=order.index))

    def note(name: str, output: Tensor | dict[str, Tensor]) -> None:
        if isinstance(output, dict):
            for key, tensor in output.items():
                note(f"{name}.{key}", tensor)
        elif output.grad_fn not in known:
            size = tuple(output.shape[2:])
            blocks.append(Block(name, output.shape[1], size, sources(output.grad_fn)))
            known[output.grad_fn] = name

    hooks = [
        module.register_forward_hook(lambda _module, _input, output, n=name: note(n, output))
        for name, module in _units(network)
    ]
    try:
        with torch.enable_grad():
            network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return blocks


def _units(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for part in ("encoder", "decoder"):
        for name, child in network.get_submodule(part).named_children():
            if isinstance(child, nn.ModuleList | nn.ModuleDict):
                yield from ((f"{part}.{name}.{key}", unit) for key, unit in child.named_children())
            elif next(child.parameters(), None) is not None:  # pooling is no block
                yield f"{part}.{name}", child


def places(blocks: list[Block], side: int) -> dict[str, tuple[int, int]]:
    """Column and row of every block.

    The column counts the blocks on the longest way from the image, and goes on to the next free
    one; the row counts the halvings.

    Args:
        blocks: As they run.
        side: Height of the image.
    """
    found = {"image": (0, 0)}
    for block in blocks:
        column = 1 + max(found[source][0] for source in block.sources)
        row = math.floor(math.log2(side / block.size[0]) + 1e-6)
        while (column, row) in found.values():
            column += 1
        found[block.name] = (column, row)
    return found


def draw(axis: Any, blocks: list[Block], side: int, title: str = "") -> None:
    """Draw the blocks as bars, as wide as they have channels (logarithm), and what they read.

    Args:
        axis: Of matplotlib.
        blocks: As they run.
        side: Height of the image.
        title: Above.
    """
    from matplotlib.patches import Rectangle

    at = places(blocks, side)
    widths = {"image": 0.6} | {b.name: 0.09 * math.log2(b.channels + 1) for b in blocks}
    deepest = max(row for _, row in at.values())
    for block in blocks:
        (column, row), width = at[block.name], widths[block.name]
        height = 0.75 * 0.82**row
        for source in block.sources:
            before, above = at[source]
            kind = "skip" if above == row else "down" if above < row else "up"
            far = kind == "skip" and column - before > 1
            axis.annotate(
                "",
                xy=(column - width / 2, -row),
                xytext=(before + widths[source] / 2, -above),
                arrowprops={
                    "arrowstyle": "-|>",
                    "color": COLORS[kind],
                    "linewidth": 0.9,
                    "shrinkA": 0,
                    "shrinkB": 0,
                    "connectionstyle": f"arc3,rad={-0.16 if far else 0}",
                },
            )
        corner = (column - width / 2, -row - height / 2)
        axis.add_patch(Rectangle(corner, width, height, fc="#cfe0f1", ec="#33567a", zorder=3))
        axis.text(column, -row + height / 2 + 0.04, block.channels, ha="center", fontsize=6)
    for row in range(deepest + 1):
        sizes = [b.size for b in blocks if at[b.name][1] == row]
        text = "x".join(map(str, sizes[0])) if sizes else ""
        axis.text(-0.2, -row, text, ha="right", va="center", fontsize=6, color="#555555")
    axis.set_xlim(-1.4, max(column for column, _ in at.values()) + 0.8)
    axis.set_ylim(-deepest - 0.7, 0.9)
    axis.set_title(title, fontsize=9)
    axis.axis("off")
