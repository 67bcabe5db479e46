"""`builtin:fashion-mnist` (Xiao 2017): 60,000 + 10,000 grey pictures of 28 x 28, 10 classes."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np

from ddpm_unet.data.downloads import one_at_a_time
from ddpm_unet.errors import UserError

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
CURE = (
    "install Debian's package dataset-fashion-mnist, or give a folder with the four idx files "
    "as data.root"
)


def load(root: str | None, train: bool, cache: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pictures and classes of one split.

    Args:
        root: Folder with the idx files, or with torchvision's FashionMNIST/raw; None looks in
            `DEBIAN_FOLDER`, then in `cache`, and then downloads there by torchvision.
        train: The training split, else the test split.
        cache: Folder of downloads.

    Returns:
        `[N, 28, 28, 1]` uint8 and `[N]` int64.

    Raises:
        UserError: No files and no network, or a damaged file.
    """
    names = [f"{'train' if train else 't10k'}-{kind}-ubyte" for kind in _KINDS]
    if root is not None:
        folders = [Path(root), Path(root) / "FashionMNIST" / "raw"]
        paths = _find(folders, names)
        if paths is None:
            raise UserError(f"{root}: holds no {names[0]}(.gz) and {names[1]}(.gz); {CURE}")
    else:
        folders = [DEBIAN_FOLDER, cache / "FashionMNIST" / "raw"]
        paths = _find(folders, names) or _download(cache, folders, names)
    images, labels = (read_idx(path) for path in paths)
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise UserError(f"{paths[0]}: does not belong to {paths[1]}; {CURE}")
    return images[..., None], labels.astype(np.int64)


_KINDS = ("images-idx3", "labels-idx1")


def read_idx(path: Path) -> np.ndarray:
    """An array of bytes in LeCun's idx format, gzipped or not.

    Raises:
        UserError: Truncated or not such a file.
    """
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
        if data[:3] != b"\0\0\x08":
            raise ValueError("no idx file of bytes")
        shape = np.frombuffer(data, ">i4", count=data[3], offset=4)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise UserError(f"{path}: is damaged ({error}); {CURE}") from error


def _find(folders: list[Path], names: list[str]) -> list[Path] | None:
    for folder in folders:
        candidates = [(folder / name, folder / f"{name}.gz") for name in names]
        paths = [next((p for p in pair if p.is_file()), None) for pair in candidates]
        found = [path for path in paths if path]
        if len(found) == len(names):
            return found
    return None


def _download(cache: Path, folders: list[Path], names: list[str]) -> list[Path]:
    from torchvision.datasets import FashionMNIST

    try:
        with one_at_a_time(cache):
            FashionMNIST(str(cache), download=True)  # looks first whether it is there
    except Exception as error:  # urllib, ssl and torchvision each have their own
        cause = " ".join(str(error).split())[:120]
        raise UserError(
            f"builtin:fashion-mnist: the download to {cache} failed ({cause}); {CURE}"
        ) from error
    paths = _find(folders, names)
    assert paths is not None, "torchvision has just written them"
    return paths
