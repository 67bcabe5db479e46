"""What a row of the page is: its work, its sides, its goals; and the file that keeps all rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

from benchmarks.timing import Effort, Timer
from ddpm_unet.files import replace_text

OURS = "ours"
DIFFUSERS, LUCIDRAINS, MONAI, SMP = (
    "diffusers",
    "denoising-diffusion-pytorch",
    "monai",
    "segmentation-models-pytorch",
)
MODULES = {LUCIDRAINS: "denoising_diffusion_pytorch", SMP: "segmentation_models_pytorch"}
Unit = Literal["ms", "us", "s", "MB", "images/s"]


class Goal(NamedTuple):
    """The ratio wanted: at least, and aimed at."""

    least: float
    aim: float


@dataclass
class Measured:
    """One row's figures, raw.

    Args:
        samples: By side, one number a round: seconds, or MB where the row's unit says so.
        rates: By side, FLOP/s of the matrix products (or the GPU's peak) around each sample.
        per: Steps or images in a sample.
        gflop: By side, the work of one step (image), 10^9 floating-point operations.
        differences: By peer, largest difference of the outputs, relative to the largest output.
        notes: What a reader must know to read the figures.
    """

    samples: dict[str, list[float]]
    rates: dict[str, list[float]] = field(default_factory=dict)
    per: float = 1.0
    gflop: dict[str, float] = field(default_factory=dict)
    differences: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def timed(cls, timer: Timer, **others: Any) -> Measured:
        """With the samples of a timer, and its rates where it knows any."""
        known = all(rate > 0 for rates in timer.rates.values() for rate in rates)
        return cls(timer.samples, timer.rates if known else {}, **others)


@dataclass(frozen=True)
class Row:
    """A row of the page.

    Args:
        title: What is measured.
        unit: Of the figures shown.
        peers: Those compared with, and the goal if there is one.
        measure: Does it.
        within: For rows with a goal of their own instead of a ratio: at most so much, and aim.
        smaller: The ratio is ours / theirs, and to be small (memory).
        device: "cpu" or "cuda".
    """

    title: str
    unit: Unit
    peers: Mapping[str, Goal | None]
    measure: Callable[[Effort], Measured]
    within: Goal | None = None
    smaller: bool = False
    device: Literal["cpu", "cuda"] = "cpu"


def installed(peer: str) -> bool:
    """Whether a peer can be measured here."""
    return find_spec(MODULES.get(peer, peer)) is not None


class Results:
    """All that was measured, in a JSON file that is written anew after every row.

    Args:
        path: The file; what it holds stays until it is measured again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, dict[str, Any]] = {}
        self.growth: dict[str, dict[str, Any]] = {}
        if path.is_file():
            kept = json.loads(path.read_text())
            self.rows, self.growth = kept["rows"], kept["growth"]

    def add(self, name: str, measured: Measured, circumstances: dict[str, Any]) -> None:
        """Take in a row, with the machine, versions and date it was measured with."""
        self.rows[name] = asdict(measured) | {"circumstances": circumstances}
        self.write()

    def add_growth(self, name: str, curve: dict[str, Any], circumstances: dict[str, Any]) -> None:
        """Take in a curve of cost against size."""
        self.growth[name] = curve | {"circumstances": circumstances}
        self.write()

    def write(self) -> None:
        """Replace the file."""
        parts = {"rows": self.rows, "growth": self.growth}
        text = ",\n".join(f"{json.dumps(part)}: {one_per_line(v)}" for part, v in parts.items())
        replace_text(self.path, f"{{{text}}}\n")


def one_per_line(items: Mapping[str, Any]) -> str:
    """JSON with a line for each item, so that files compare well."""
    lines = [f"{json.dumps(name)}: {json.dumps(rounded(item))}" for name, item in items.items()]
    return "{\n" + ",\n".join(lines) + "\n}"


def rounded(value: Any) -> Any:
    """The same with all numbers to five digits."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return value
