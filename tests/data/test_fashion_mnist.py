"""idx files, gzipped or not, from an explicit folder, Debian's package or a download."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from ddpm_unet.config import ImageDataConfig
from ddpm_unet.data import fashion_mnist
from ddpm_unet.data.fashion_mnist import load, read_idx
from ddpm_unet.data.sources import held_out, open_images
from ddpm_unet.data.stream import Stream
from ddpm_unet.errors import UserError

RNG = np.random.default_rng(0)


def write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(f">BBBB{array.ndim}i", 0, 0, 8, array.ndim, *array.shape)
    data = header + array.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_set(root: Path, suffix: str) -> dict[str, np.ndarray]:
    arrays = {}
    for split, number in (("train", 7), ("t10k", 3)):
        images = RNG.integers(0, 256, (number, 28, 28)).astype(np.uint8)
        labels = RNG.integers(0, 10, number).astype(np.uint8)
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            arrays[f"{split}-{name}"] = array
            write_idx(root / f"{split}-{name}-ubyte{suffix}", array)
    return arrays


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("place", ["root", "torchvision", "debian", "cache"])
def test_wherever_the_files_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, place: str
) -> None:
    folders = {
        "root": tmp_path / "mine",
        "torchvision": tmp_path / "mine" / "FashionMNIST" / "raw",
        "debian": tmp_path / "debian",
        "cache": tmp_path / "cache" / "FashionMNIST" / "raw",
    }
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", folders["debian"])
    arrays = write_set(folders[place], suffix)
    root = str(tmp_path / "mine") if place in ("root", "torchvision") else None
    for split, train in (("train", True), ("t10k", False)):
        images, labels = load(root, train, tmp_path / "cache")
        np.testing.assert_array_equal(images[..., 0], arrays[f"{split}-images-idx3"])
        np.testing.assert_array_equal(labels, arrays[f"{split}-labels-idx1"])


def test_training_and_test_split(tmp_path: Path) -> None:
    arrays = write_set(tmp_path, ".gz")
    config = ImageDataConfig(
        source="builtin:fashion-mnist",
        root=str(tmp_path),
        size=28,
        flips=False,
        rot90=False,
        class_labels=True,
    )
    images, kept = open_images(config), held_out(config)
    assert images.classes[9] == "Ankle boot"
    stream = Stream(images, config, seed=0)
    batch = stream.__getitems__(range(7))
    numbers = stream.windows(range(7)).picture
    np.testing.assert_array_equal(batch["image"][:, 0], arrays["train-images-idx3"][numbers])
    np.testing.assert_array_equal(batch["label"], arrays["train-labels-idx1"][numbers])
    assert kept is not None
    assert len(kept) == 3
    config.include_held_out = True
    both = open_images(config)
    assert len(both) == 10
    assert both.labels is not None
    np.testing.assert_array_equal(both.labels[7:], arrays["t10k-labels-idx1"])
    config.class_labels = False
    assert open_images(config).labels is None


def test_faults_give_the_cures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cure = "dataset-fashion-mnist.*data.root"
    with pytest.raises(UserError, match=f"holds no train-images-idx3-ubyte.*{cure}"):
        load(str(tmp_path), True, tmp_path)
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "none")

    def offline(*_: object, **__: object) -> None:
        raise OSError("Temporary failure in name resolution")

    monkeypatch.setattr("torchvision.datasets.FashionMNIST", offline)
    with pytest.raises(UserError, match=f"download to .* failed .Temporary failure.*{cure}"):
        load(None, True, tmp_path / "cache")
    write_set(tmp_path, "")
    path = tmp_path / "train-images-idx3-ubyte"
    for damaged in (b"", b"no idx", path.read_bytes()[:-1], path.read_bytes()[:5]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"train-images-idx3-ubyte: is damaged"):
            load(str(tmp_path), True, tmp_path)
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"\0\0\x08\1\0\0\0\3abc")[:-9])
    with pytest.raises(UserError, match=r"a\.gz: is damaged"):
        read_idx(tmp_path / "a.gz")
