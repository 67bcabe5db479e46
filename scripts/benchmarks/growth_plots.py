"""Cost against size, drawn and told: the line of theory, and where the figures leave it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

STRAIGHT = 1.15
"""Nearer than that to the line counts as on it: the machine's own noise is half of it."""


@dataclass(frozen=True)
class Look:
    """How a curve is shown.

    Args:
        title: Above the plot.
        axis: The size.
        below: Why small sizes cost more than their share, where they do.
        above: Why large ones do.
    """

    title: str
    axis: str
    below: str
    above: str


FIXED = "costs that do not depend on the size: calling the operations, reading the weights"
CACHE = "probably activations that have outgrown the caches"
LOOKS = {
    "sampling_images": Look(
        "Sampling, a step of the histology model", "images of 64 x 64", FIXED, CACHE
    ),
    "sampling_resolution": Look(
        "Sampling, a step of the histology model", "pixels of one image", FIXED, CACHE
    ),
    "training_batch": Look(
        "Training step, DDPM-CIFAR network of half the width",
        "images of 32 x 32",
        FIXED + " and updating them",
        CACHE,
    ),
    "training_parameters": Look(
        "Training step, batch 4, DDPM-CIFAR networks of growing width",
        "parameters",
        "reading and writing activations, which grows as the width, weighs against products, "
        "which grow as its square",
        "probably weights that have outgrown the caches, each read for few images",
    ),
    "tiles_area": Look(
        "Overlap-tile, 2015 network of a quarter of the width",
        "pixels of the image",
        "a margin that is computed whatever the size",
        "the margin and overlap of the tiles, which an image of one tile has not",
    ),
}


def plot_growth(growth: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """An image `growth_<name>.png` for each curve."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import EngFormatter, LogLocator

    for name, look in LOOKS.items():
        if name not in growth:
            continue
        curve = growth[name]
        seconds, line = steadied(curve), theory(curve)
        figure, axis = plt.subplots(figsize=(5.4, 3.6), layout="constrained")
        axis.loglog(curve["sizes"], line, "--", color="grey", label="theory: time ∝ operations")
        axis.loglog(curve["sizes"], seconds, "o-", label="measured, median")
        axis.set_xlabel(look.axis)
        axis.set_ylabel("seconds")
        axis.set_title(look.title, fontsize=10)
        axis.set_xticks(
            curve["sizes"], [EngFormatter(sep="")(float(f"{n:.2g}")) for n in curve["sizes"]]
        )
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
        figure.savefig(folder / f"growth_{name}.png", dpi=110)
        plt.close(figure)


def steadied(curve: Mapping[str, Any]) -> list[float]:
    """Median seconds at each size, as if the machine had always been as fast as at the median.

    A sample counts by what the matrix products around it could have done meanwhile.
    """
    usual = median(rate for rates in curve["rates"] for rate in rates)
    return [
        median(s * rate / usual for s, rate in zip(samples, rates, strict=True))
        for samples, rates in zip(curve["samples"], curve["rates"], strict=True)
    ]


def theory(curve: Mapping[str, Any]) -> list[float]:
    """Seconds proportional to the work, at the best rate that was measured at any size."""
    best = min(s / w for s, w in zip(steadied(curve), curve["work"], strict=True))
    return [best * work for work in curve["work"]]


def growth_section(growth: Mapping[str, Mapping[str, Any]]) -> str:
    """The end of the page."""
    parts = ["## Growth\n"]
    if not growth:
        return parts[0] + "\nNot measured yet: `python scripts/benchmarks --growth`.\n"
    parts += [
        "Cost against size, both axes logarithmic, so that proportional cost is a line of slope "
        "one. The line of theory is that of the operations counted, at the best rate reached at "
        "any size. Times are brought to the machine's median rate by the matrix products around "
        "them. A size is said to be on the line within "
        f"{100 * (STRAIGHT - 1):.0f} %.\n"
    ]
    for name, look in LOOKS.items():
        if name in growth:
            plot = f"![{look.title}](growth_{name}.png)"
            parts += [
                f"### {look.title}, by {look.axis}\n",
                plot + "\n",
                told(look, growth[name]),
            ]
    if "processes" in growth:
        parts += ["### One and two processes\n", processes(growth["processes"])]
    return "\n".join(parts)


def told(look: Look, curve: Mapping[str, Any]) -> str:
    """Where the curve leaves its line, in words."""
    sizes, seconds, line = curve["sizes"], steadied(curve), theory(curve)
    factors = [s / t for s, t in zip(seconds, line, strict=True)]
    best = factors.index(min(factors))
    figures = ", ".join(
        f"{size:,.0f}: {s:.3g} s ({f:.2f} times)"
        for size, s, f in zip(sizes, seconds, factors, strict=True)
    )
    said = [f"{look.axis.capitalize()}, seconds, and times the line: {figures}."]
    small = [i for i in range(best) if factors[i] > STRAIGHT]
    large = [i for i in range(best, len(sizes)) if factors[i] > STRAIGHT]
    if small:
        excess = 1e3 * (seconds[small[0]] - line[small[0]])
        said += [
            f"Above the line up to {sizes[small[-1]]:,.0f} (at {sizes[small[0]]:,.0f} by "
            f"{excess:,.0f} ms): {look.below}."
        ]
    if large:
        said += [f"Above the line again from {sizes[large[0]]:,.0f}: {look.above}."]
    if not small and not large:
        said += ["Straight over the whole range."]
    said += [curve["note"]] if curve["note"] else []
    return " ".join(said) + "\n"


def processes(found: Mapping[str, Any]) -> str:
    """The table of one and two processes, and what the machine is."""
    cases = list(found["training"])
    lines = ["| | training, images/s | sampling, image steps/s |", "|---|---|---|"]
    alone = cases[0]
    for case in cases:
        cells = []
        for kind in ("training", "sampling"):
            rate, one = median(found[kind][case]), median(found[kind][alone])
            cells.append(f"{rate:.1f} ({rate / one:.2f}x)")
        lines.append(f"| {case} | {' | '.join(cells)} |")
    rates = found["circumstances"]["matrix_gflops"]
    measured = ", ".join(
        f"{rate:.0f} GFLOP/s on {threads} thread{'s' * (threads != '1')}"
        for threads, rate in rates.items()
    )
    gain = rates.get("2", rates["1"]) / rates["1"]
    text = f"\nMatrix products of this machine: {measured}; two threads are {gain:.2f} times one"
    if gain < 1.5:
        text += (
            ": they share the arithmetic of one core, or others use it, so that two processes "
            "cannot be twice as fast"
        )
    return "\n".join(lines) + f"\n{text}.\n"
