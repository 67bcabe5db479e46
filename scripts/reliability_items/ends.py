"""How runs ended, and how far from each other."""

import hashlib
import json
from pathlib import Path

from safetensors.torch import load_file

from ddpm_unet.training.checkpoint import checkpoint_paths

STATE = ("model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json")


def digest(run: Path) -> dict[str, str]:
    """Every file of a run's end that must not depend on how it got there."""
    newest = checkpoint_paths(run / "checkpoints")[-1]
    files = [newest / name for name in STATE] + [run / "metrics.jsonl"]
    files += [path for path in (run / "model").rglob("*") if path.is_file()]
    return {str(f.relative_to(run)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def difference(one: Path, other: Path) -> str:
    """How far two runs ended from each other."""
    ends = [checkpoint_paths(run / "checkpoints")[-1] for run in (one, other)]
    assert ends[0].name == ends[1].name
    found = []
    for name in ("model", "ema"):
        a, b = (load_file(end / f"{name}.safetensors") for end in ends)
        error = sum(float((a[k] - b[k]).double().square().sum()) for k in a) ** 0.5
        size = sum(float(a[k].double().square().sum()) for k in a) ** 0.5
        found.append(f"{name} {error / size:.1e}")
    lines = [[json.loads(x) for x in (r / "metrics.jsonl").open()] for r in (one, other)]
    assert [x["step"] for x in lines[0]] == [x["step"] for x in lines[1]]
    losses = max(abs(a["loss"] / b["loss"] - 1) for a, b in zip(*lines, strict=True) if "loss" in a)
    return f"{', '.join(found)}, logged losses {losses:.1e}"
