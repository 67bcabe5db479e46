"""Long trainings, and many pictures."""

import json
import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ddpm_unet.config import ImageDataConfig
from ddpm_unet.data.sources import open_images
from reliability_items.children import Child
from reliability_items.place import TRAININGS, place


def soak(steps: int) -> Iterator[str]:
    """Resident memory of a long training that reads its pictures from the disk again and again."""
    for job in TRAININGS:
        with place() as here:
            args = here.arguments(job, "run", steps=steps, checkpoint_every=50, validate_every=50)
            child = Child([*args, "--data.memory_limit=0"], here.root / "log")
            metrics, seen = here.root / "run" / "metrics.jsonl", []
            while child.running():
                time.sleep(0.25)
                status = Path(f"/proc/{child.pid}/status").read_text()
                found = re.search(r"VmRSS:\s+(\d+)", status)
                last = metrics.read_text().splitlines()[-1:] if metrics.exists() else []
                if found and last and last[0].endswith("}"):
                    seen.append((json.loads(last[0])["step"], int(found[1]) / 1024))
            assert child.wait() == 0, child.log.read_text()
            early = [m for step, m in seen if steps / 10 <= step < steps / 5]
            late = [m for step, m in seen if step >= steps * 0.9]
            a, b = float(np.mean(early)), float(np.mean(late))
            yield (
                f"{job}: {steps} steps, {steps * 5 // 19} epochs; resident memory {a:.1f} MB "
                f"between a tenth and a fifth of them, {b:.1f} MB in the last tenth "
                f"({b / a - 1:+.1%})"
            )


def folder(pictures: int) -> Iterator[str]:
    """A folder of small PNGs in 100 sub-folders, opened by the denoiser's data (every header is
    read, nothing decoded).
    """
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for i in range(50):
            noise = np.random.default_rng(i).integers(0, 256, (32, 32, 3)).astype(np.uint8)
            Image.fromarray(noise).save(root / f"{i}.png")
        for i in range(100):
            (root / f"{i}").mkdir()
        for i in range(pictures - 50):
            os.link(root / f"{i % 50}.png", root / f"{i % 100}" / f"{i}.png")
        config = ImageDataConfig(source=str(root), size=32, memory_limit=0, include_held_out=True)
        begin, worked = time.monotonic(), time.process_time()
        count = len(open_images(config))
        yield (
            f"{count:,} pictures in {time.process_time() - worked:.1f} s of one core "
            f"({time.monotonic() - begin:.1f} s by the clock)"
        )
