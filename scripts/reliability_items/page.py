"""docs/reliability.md."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

REPORT = Path(__file__).parents[2] / "docs" / "reliability.md"


def write_section(
    item: str, lines: Sequence[str], items: Mapping[str, Callable[..., object]]
) -> None:
    """Put the figures of an item in its place, among all items, in the report."""
    text = REPORT.read_text() if REPORT.exists() else "# Reliability\n\n" + INTRODUCTION
    doc = " ".join((items[item].__doc__ or "").split())
    figures = "\n".join(f"- {line}" for line in lines)
    section = f"## {item}\n\n{doc}\n\n    python scripts/reliability.py {item}\n\n{figures}\n"
    parts = re.split(r"(?m)^(?=## )", text)
    sections = {p.split("\n")[0][3:]: p.rstrip() + "\n" for p in parts[1:]} | {item: section}
    ordered = [sections[name] for name in items if name in sections]
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text("\n".join([parts[0].rstrip() + "\n", *ordered]))


INTRODUCTION = """What `scripts/reliability.py` found, written by it. The trainings are small: a
U-Net of 45,000 parameters on 24 pictures of 24 x 24, batches of 5 in passes of 2, on two busy CPU
cores, with torch 2.15 and accelerate 1.15. `make test` tries the same at a smaller size.

Not tried, for want of GPUs: NCCL, and fp16 on a GPU (its loss scale is tested with a CPU's
autocast). The files of `configs/accelerate` were launched on processors without one.

torchrun takes a script's `--run` for an option of its own, and stops; put `--` before the script:

    torchrun --nproc_per_node 2 -- scripts/train_ddpm.py --run runs/a

On a machine without a GPU this is also how to get several processes: `accelerate launch --cpu
--num_processes 2` starts one. A run says how many it has.
"""
