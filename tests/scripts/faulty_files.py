"""Files that are wrong in one way each: functions that put them into the current folder."""

import json
import os
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from ddpm_unet.cli import read_settings
from ddpm_unet.config import DenoiseConfig
from ddpm_unet.files import replace_text
from ddpm_unet.training.checkpoint import write_checkpoint
from ddpm_unet.training.run_folder import plain

Make = Callable[[], object]


def nothing() -> None:
    """Leave all as it is."""


def several(*steps: Make) -> Make:
    return lambda: [step() for step in steps]


def write(path: str, content: bytes | str = b"") -> Make:
    def make() -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(content.encode() if isinstance(content, str) else content)

    return make


def folder(path: str) -> Make:
    return lambda: Path(path).mkdir(parents=True)


def remove(*paths: str) -> Make:
    return lambda: [Path(path).unlink() for path in paths]


def move(old: str, new: str) -> Make:
    def make() -> None:
        Path(new).parent.mkdir(parents=True, exist_ok=True)
        Path(old).rename(new)

    return make


def copy(old: str, new: str) -> Make:
    return lambda: Path(new).write_bytes(Path(old).read_bytes())


def cut(path: str, share: float = 0.5) -> Make:
    """Keep so much of a file."""

    def make() -> None:
        whole = Path(path).read_bytes()
        Path(path).write_bytes(whole[: int(share * len(whole))])

    return make


def flip(path: str) -> Make:
    """Change a bit in the middle of a file."""

    def make() -> None:
        content = bytearray(Path(path).read_bytes())
        content[len(content) // 2] ^= 1
        Path(path).write_bytes(content)

    return make


def link(path: str, target: str) -> Make:
    return lambda: Path(path).symlink_to(target)


def pipe(path: str) -> Make:
    return lambda: os.mkfifo(path)


def forbid(path: str, mode: int = 0) -> Make:
    return lambda: Path(path).chmod(mode)


def noise(*shape: int, kind: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape).astype(kind)


def image_file(path: str, array: np.ndarray | None = None, mode: str = "", **options: Any) -> Make:
    """An image, by default 24 x 24 RGB, perhaps in another mode of Pillow."""

    def make() -> None:
        image = Image.fromarray(noise(24, 24, 3) if array is None else array)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        (image.convert(mode) if mode else image).save(path, **options)

    return make


def animation(path: str) -> Make:
    frames = [Image.fromarray(noise(24, 24, 3)), Image.fromarray(255 - noise(24, 24, 3))]
    return lambda: frames[0].save(path, save_all=True, append_images=frames[1:])


def tiff(path: str, *arrays: np.ndarray, **options: Any) -> Make:
    """A TIFF of one array, or of several of different shapes."""
    if arrays[0].shape[-1] == 3:
        options = {"photometric": "rgb", **options}

    def make() -> None:
        with tifffile.TiffWriter(path) as file:
            for array in arrays:
                file.write(array, **options)

    return make


def png_header(path: str, width: int, height: int, depth: int = 8, interlaced: int = 0) -> Make:
    """A colour PNG that claims a size, and holds next to nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + checksum

    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, interlaced)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(999))), (b"IEND", b""))
    return write(path, b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))


def tiff_header(path: str, width: int, height: int) -> Make:
    """A grey TIFF that claims a size, and holds next to nothing."""
    long, short = 4, 3
    entries = [
        (256, long, width), (257, long, height), (258, short, 8), (259, short, 1),
        (262, short, 1), (273, long, 200), (277, short, 1), (278, long, height),
        (279, long, width * height % 2**32),
    ]  # fmt: skip
    directory = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    start = b"II*\0" + struct.pack("<IH", 8, len(entries))
    return write(path, start + directory + bytes(500))


def edit(path: str, **values: Any) -> Make:
    """Change entries of a JSON file."""

    def make() -> None:
        content = json.loads(Path(path).read_text())
        Path(path).write_text(json.dumps({**content, **values}))

    return make


def spoil(path: str, **changes: Callable[[Any], Any]) -> Make:
    """Change tensors of a safetensors file; names with _ for their dots."""

    def make() -> None:
        tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
        for name, change in changes.items():
            name = next(n for n in tensors if n.replace(".", "_") == name)
            tensors[name] = change(tensors[name]).clone()
        save_file(tensors, path)

    return make


def pickled(path: str) -> Make:
    return write(path, pickle.dumps({"weight": [1.0]}))


def run_folder(**changes: Any) -> Make:
    """The folder of a run of denoise.yaml, with other settings, that knows nothing but its step."""

    def make() -> None:
        settings = plain(read_settings(DenoiseConfig, Path("denoise.yaml"), ["--data.dims=2"])[0])
        write("run/.lock")()
        replace_text(Path("run/config.yaml"), yaml.safe_dump(settings | changes, sort_keys=False))
        Path("run/samples").mkdir()
        write_checkpoint(Path("run/checkpoints"), 1, {}, {"step": 1})

    return make
