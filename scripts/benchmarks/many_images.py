"""Start, memory and images a second of large sets of images, which it makes in a temp folder.

    python scripts/benchmarks/many_images.py tar files slide hf

    tar    --count PNG images of 32 x 32 in ten tar files
    files  as many files in folders of 10,000
    slide  a tiled, JPEG-compressed TIFF of --side x --side pixels, windows of 256 x 256
    hf     --count rows of a Hugging Face set (Arrow), read as `train` reads it

Every figure is of a process of its own, on one core: the first start makes the index, the second
one finds it. Memory is what a process has more at its peak than before it opened the set.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ddpm_unet.config import ImageDataConfig
from ddpm_unet.data.dataset import as_dataset, stream_of
from ddpm_unet.data.sources import open_stream

BATCH, SECONDS = 64, 5.0


def pngs(count: int) -> list[bytes]:
    """That many encoded images, of 256 different ones."""
    rng, found = np.random.default_rng(0), []
    for _ in range(min(count, 256)):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(file, "PNG")
        found.append(file.getvalue())
    return [found[number % len(found)] for number in range(count)]


def make(kind: str, place: Path, count: int, side: int) -> None:
    """Write the set below `place`."""
    if kind == "tar":
        images = pngs(count)
        for shard in range(10):
            with tarfile.open(place / f"{shard}.tar", "w") as tar:
                for number in range(shard, count, 10):
                    member = tarfile.TarInfo(f"{number:08d}.png")
                    member.size = len(images[number])
                    tar.addfile(member, io.BytesIO(images[number]))
    elif kind == "files":
        for number, image in enumerate(pngs(count)):
            folder = place / f"{number // 10_000:04d}"
            if number % 10_000 == 0:
                folder.mkdir()
            (folder / f"{number:08d}.png").write_bytes(image)
    elif kind == "hf":
        from datasets import Dataset, Features, Value
        from datasets import Image as ImageFeature

        rows: dict[str, list[Any]] = {
            "image": [{"bytes": image, "path": None} for image in pngs(count)],
        }
        rows["number"] = list(range(count))
        features = Features({"image": ImageFeature(), "number": Value("int64")})
        Dataset.from_dict(rows, features=features).save_to_disk(place / "set")
    else:
        import tifffile

        rng = np.random.default_rng(0)
        tile = rng.integers(0, 256, (256, 256, 3), np.uint8)
        columns = -(-side // 256)
        tiles: Any = (np.roll(tile, int(number), axis=1) for number in range(columns**2))
        tifffile.imwrite(
            place / "slide.tif", tiles, shape=(side, side, 3), dtype=np.uint8, tile=(256, 256),
            photometric="rgb", compression="jpeg",
        )  # fmt: skip


def measure(kind: str, place: Path) -> dict[str, float]:
    """Seconds to the first batch, megabytes, images a second."""
    before, begin = _peak(), time.perf_counter()
    stream: Any
    if kind == "hf":
        from datasets import load_from_disk

        stream = stream_of(as_dataset(load_from_disk(place / "set")), size=32, seed=0)
    else:
        size = 256 if kind == "slide" else 32
        settings = ImageDataConfig(source=str(place), size=size, memory_limit=0)
        stream = open_stream(settings, 0)
    stream.__getitems__(range(BATCH))
    start, done, rate = time.perf_counter() - begin, BATCH, time.perf_counter()
    while time.perf_counter() - rate < SECONDS:
        stream.__getitems__(range(done, done + BATCH))
        done += BATCH
    took = time.perf_counter() - rate
    return {"start": start, "MB": _peak() - before, "images/s": (done - BATCH) / took}


def _peak() -> float:
    """Of this process alone, megabytes; getrusage counts that of the parent before exec, too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def main() -> None:
    """Make each set, and measure it in two processes one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="+", choices=["tar", "files", "slide", "hf"])
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--side", type=int, default=20_000)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.place:
        print(json.dumps(measure(flags.kinds[0], flags.place)))
        return
    for kind in flags.kinds:
        with tempfile.TemporaryDirectory() as folder:
            place, begin = Path(folder) / "set", time.perf_counter()
            place.mkdir()
            make(kind, place, flags.count, flags.side)
            print(f"{kind}: made in {time.perf_counter() - begin:.0f} s", flush=True)
            home = {**os.environ, "HOME": folder, "OMP_NUM_THREADS": "1"}
            for which in ("first", "second"):
                line = [sys.executable, __file__, kind, "--place", str(place)]
                said = subprocess.run(line, env=home, check=True, capture_output=True, text=True)
                values = json.loads(said.stdout.splitlines()[-1])
                print(kind, which, {name: round(value, 1) for name, value in values.items()})


if __name__ == "__main__":
    main()
