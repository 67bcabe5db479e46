"""Small pictures, masks and settings of both trainings, in a folder that goes away."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

SCRIPTS = Path(__file__).parents[1]

TRAININGS = {"denoise": "train_ddpm.py", "segment": "train_seg.py"}

MODEL = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
}

TRAIN = {
    "steps": 50, "batch_size": 5, "micro_batch": 2, "lr": 1e-3, "lr_schedule": "constant",
    "warmup_steps": 10, "ema_decay": 0.95, "log_every": 5, "checkpoint_every": 5,
    "validate_every": 25, "sample_every": 0,
}  # fmt: skip


class Place:
    """A folder with small pictures, masks and the settings of both trainings."""

    def __init__(self, root: Path) -> None:
        self.root = root
        pictures, masks = root / "pictures", root / "masks"
        pictures.mkdir()
        masks.mkdir()
        rng = np.random.default_rng(0)
        y, x = np.mgrid[:24, :24]
        for i in range(24):
            centre = rng.uniform(6, 18, 2)
            blob = np.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / 12)
            colours = (blob[..., None] * rng.uniform(100, 255, 3)).astype(np.uint8)
            Image.fromarray(colours).save(pictures / f"{i:02d}.png")
            Image.fromarray((blob > 0.4).astype(np.uint8)).save(masks / f"{i:02d}.png")
        preview = {"num_images": 3, "steps": 2, "validation_images": 5}
        augment = {"elastic_sigma": 1}
        pairs = {"images": str(pictures), "masks": str(masks), "size": 16, "augment": augment}
        both = {"model": MODEL, "train": TRAIN}
        self._write("denoise", both | {"data": {"source": str(pictures), "size": 16}} | {
            "preview": preview})  # fmt: skip
        self._write("segment", both | {"data": pairs, "init": "scratch"})

    def _write(self, job: str, settings: dict[str, Any]) -> None:
        (self.root / f"{job}.yaml").write_text(yaml.safe_dump(settings))

    def arguments(self, job: str, run: str | Path, **train: Any) -> list[str]:
        """Script and arguments of a training; `train` overrides its settings."""
        flags = [f"--train.{name}={value}" for name, value in train.items()]
        config, script = self.root / f"{job}.yaml", SCRIPTS / TRAININGS[job]
        return [str(script), "--config", str(config), "--run", str(self.root / run), *flags]


@contextmanager
def place() -> Iterator[Place]:
    with tempfile.TemporaryDirectory() as folder:
        yield Place(Path(folder))
