"""Start, memory and images a second of large sets of images, which it makes in a temp folder.

    python scripts/benchmarks/many_images.py files tar hf slide

    files  --count PNG images of 32 x 32 in folders of 10,000
    tar    as many in ten tar files
    hf     as many rows of a Hugging Face set, with a column that is never to be decoded
    slide  a tiled, JPEG-compressed TIFF of --side x --side pixels, windows of 256 x 256;
           `segmented`: mask and overlay of the whole of it, by a network of 1,722 parameters

Each line is of processes of their own, on one core: `first` has no index, `again` finds it, `two at
once` start together without one (the one that waits is given), `packed, first` decodes all images
into a file, which `packed` finds. `start` is from the settings to the first batch; seconds are of
the processor, so that other work on the machine changes them little; `own` and `shared` are the
megabytes that this takes of the process alone and of mapped files, `peak` both at their most. Files
are in the page cache, as they have just been written.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ddpm_unet.config import ImageDataConfig
from ddpm_unet.data.sources import open_stream

BATCH = 64
WAYS = ("first", "again", "two at once", "packed, first", "packed", "segmented")


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
        from datasets import Dataset, Features
        from datasets import Image as ImageFeature

        images = pngs(count)

        def rows() -> Iterator[dict[str, Any]]:
            for image in images:
                yield {"image": {"bytes": image}, "unused": {"bytes": b"no image"}}

        features = Features({"image": ImageFeature(), "unused": ImageFeature()})
        made = Dataset.from_generator(rows, features, str(place / "made"))
        made.save_to_disk(place / "set")
        shutil.rmtree(place / "made")
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


def measure(kind: str, place: Path, way: str, seconds: float) -> dict[str, float]:
    """Seconds of the processor to the first batch, megabytes, images a second."""
    if way == "segmented":
        return segment(place)
    source = str(place)
    if kind == "hf":
        import datasets  # noqa: F401  (whose memory is not the set's)

        source = f"huggingface:{place / 'set'}?image=image"
    settings = ImageDataConfig(
        source=source, size=256 if kind == "slide" else 32, memory_limit=0,
        disk_limit=10**6 if way.startswith("packed") else 0,
    )  # fmt: skip
    with suppress(OSError):  # forget the peak
        Path("/proc/self/clear_refs").write_text("5")
    before, begin = memory(), time.process_time()
    stream = open_stream(settings, 0)
    stream.__getitems__(range(BATCH))
    start, done, rate = time.process_time() - begin, BATCH, time.process_time()
    while time.process_time() - rate < seconds or done == BATCH:
        stream.__getitems__(range(done, done + BATCH))
        done += BATCH
    took, after = time.process_time() - rate, memory()
    used = {name: after[name] - before[name] for name in ("own", "shared")}
    peak = after["peak"] - before["own"] - before["shared"]
    return {"start": start, **used, "peak": peak, "images/s": (done - BATCH) / took}


def segment(place: Path) -> dict[str, float]:
    """Seconds of the processor for the slide below `place`, and megabytes, at most."""
    import torch

    from ddpm_unet.config import ClassicConfig
    from ddpm_unet.inference.overlay import class_colors
    from ddpm_unet.inference.predictor import Predictor
    from ddpm_unet.inference.results import write_masks
    from ddpm_unet.models.classic import ClassicUNet

    torch.manual_seed(0)
    config = ClassicConfig(in_channels=3, depth=2, base_width=4, padding="same", dropout=0)
    network = ClassicUNet(config).eval()
    before, begin = memory(), time.process_time()
    with Predictor(network).open(place / "slide.tif") as source:
        counts = write_masks(source, place / "slide", class_colors(2))
    seconds, peak = time.process_time() - begin, memory()["peak"]
    return {"seconds": seconds, "peak": peak - before["own"] - before["shared"],
            "million pixels/s": counts.sum() / 1e6 / seconds}  # fmt: skip


def memory() -> dict[str, float]:
    """Of this process alone, megabytes; getrusage counts that of the parent before exec, too."""
    lines = [line.split() for line in Path("/proc/self/status").read_text().splitlines()]
    found = {words[0]: float(words[1]) / 1024 for words in lines if words[-1] == "kB"}
    shared = found["RssFile:"] + found["RssShmem:"]
    return {"own": found["RssAnon:"], "shared": shared, "peak": found["VmHWM:"]}


def in_processes(kind: str, place: Path, way: str, home: Path, seconds: float) -> dict[str, float]:
    """What a new process finds; of two the one that looked at less."""
    if way == "two at once":
        shutil.rmtree(home / ".cache" / "ddpm_unet")
    line = [sys.executable, __file__, kind, "--place", str(place), f"--seconds={seconds}"]
    line += [f"--ways={way}"]
    running = [
        subprocess.Popen(
            line, env={**os.environ, "HOME": str(home), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, text=True,
        )
        for _ in range(1 + (way == "two at once"))
    ]  # fmt: skip
    said = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise SystemExit(1)
    found: list[dict[str, float]] = [json.loads(s.splitlines()[-1]) for s in said]
    return min(found, key=lambda each: each.get("start", 0))


def main(arguments: Sequence[str] | None = None) -> None:
    """Make each set, and measure it in each way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="+", choices=["files", "tar", "hf", "slide"])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--side", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=5.0, help="of reading after the start")
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    flags = parser.parse_args(arguments)
    if flags.place:
        print(json.dumps(measure(flags.kinds[0], flags.place, flags.ways[0], flags.seconds)))
        return
    for kind in flags.kinds:
        with tempfile.TemporaryDirectory() as folder:
            place, begin = Path(folder) / "set", time.perf_counter()
            place.mkdir()
            make(kind, place, flags.count, flags.side)
            print(f"{kind}: made in {time.perf_counter() - begin:.0f} s", flush=True)
            time.sleep(3)  # what has just changed is not kept in an index
            for way in flags.ways:
                # A slide has no index, and is not packed.
                if way not in (("first", "segmented") if kind == "slide" else WAYS[:-1]):
                    continue
                found = in_processes(kind, place, way, Path(folder), flags.seconds)
                said = [f"{name} {value:,.1f}" for name, value in found.items()]
                print(f"{kind}, {way}: {', '.join(said)}", flush=True)


if __name__ == "__main__":
    main()
