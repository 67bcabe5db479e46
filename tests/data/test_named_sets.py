"""Data sets by name, offline: torchvision's own readers, and a stand-in for `datasets`."""

import sys
import types
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_fashion_mnist import write_set
from torchvision.datasets import FakeData

from ddpm_unet.config import ImageDataConfig
from ddpm_unet.data.sources import held_out, open_images
from ddpm_unet.errors import UserError


def test_torchvision_set_with_splits(tmp_path: Path) -> None:
    arrays = write_set(tmp_path / "MNIST" / "raw", "")
    config = ImageDataConfig(
        source="torchvision:MNIST", root=str(tmp_path), size=28, class_labels=True
    )
    images, kept = open_images(config), held_out(config)
    assert kept is not None
    for found, split in ((images, "train"), (kept.images, "t10k")):
        pictures = np.stack([found[i][0].numpy() for i in range(len(found))])
        np.testing.assert_array_equal(pictures, arrays[f"{split}-images-idx3"])
        assert found.labels is not None
        np.testing.assert_array_equal(found.labels, arrays[f"{split}-labels-idx1"])
    assert len(images.classes) == 10


def test_torchvision_set_without_splits_keeps_one_in_twenty(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = partial(FakeData, size=100, image_size=(3, 9, 9))
    monkeypatch.setattr("torchvision.datasets.FakeData", small)
    config = ImageDataConfig(source="torchvision:FakeData", size=8, fit="resize")
    images, kept = open_images(config), held_out(config)
    assert kept is not None
    assert len(images) + len(kept.images) == 100
    assert len(kept.images) < 15
    assert images[0].shape == (3, 8, 8)


def test_torchvision_faults(tmp_path: Path) -> None:
    def message(source: str, **settings: bool) -> str:
        with pytest.raises(UserError) as caught:
            open_images(ImageDataConfig(source=source, root=str(tmp_path), size=8, **settings))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no such data set; try CIFAR10" in message("torchvision:CIFAR_10")
    assert "cannot be opened" in message("torchvision:ImageNet")
    assert "data.root" in message("torchvision:ImageNet")


class FakeImage:
    pass


class FakeClassLabel:
    names = ("cat", "dog")


class FakeRows:
    """The few things that are used of datasets.Dataset."""

    def __init__(self, number: int, **features: object) -> None:
        self.number, self.features = number, features

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, key: int | str) -> object:
        if key == "species":
            return [i % 2 for i in range(self.number)]
        return {"photo": Image.new("RGB", (8, 8), (key, 0, 0)), "species": key % 2}


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, FakeRows]]:
    hub: dict[str, dict[str, FakeRows]] = {}

    def load(name: str, cache_dir: str | None) -> dict[str, FakeRows]:
        if name not in hub:
            raise FileNotFoundError(f"Couldn't find {name}\non the hub")
        return hub[name]

    module = types.SimpleNamespace(load_dataset=load, Image=FakeImage, ClassLabel=FakeClassLabel)
    monkeypatch.setitem(sys.modules, "datasets", module)
    return hub


def test_hugging_face_set(fake_hub: dict[str, dict[str, FakeRows]]) -> None:
    features = {"photo": FakeImage(), "species": FakeClassLabel(), "note": "text"}
    fake_hub["me/pets"] = {"train": FakeRows(6, **features), "validation": FakeRows(2, **features)}
    config = ImageDataConfig(source="huggingface:me/pets", size=8, class_labels=True)
    images, kept = open_images(config), held_out(config)
    assert images.classes == ("cat", "dog")
    assert images.labels is not None
    assert images.labels.tolist() == [0, 1] * 3
    assert [int(images[i][0, 0, 0]) for i in range(6)] == list(range(6))
    assert kept is not None
    assert len(kept) == 2
    fake_hub["me/pets"].pop("validation")
    assert held_out(config) is None


def test_hugging_face_faults(
    fake_hub: dict[str, dict[str, FakeRows]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def message(**settings: bool) -> str:
        with pytest.raises(UserError) as caught:
            open_images(ImageDataConfig(source="huggingface:x", size=8, **settings))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "cannot be opened (FileNotFoundError: Couldn't find x on the hub)" in message()
    fake_hub["x"] = {"train": FakeRows(2, text="text")}
    assert "0 columns of images" in message()
    fake_hub["x"] = {"train": FakeRows(2, photo=FakeImage())}
    assert "0 columns of classes" in message(class_labels=True)
    fake_hub["x"] = {"all": FakeRows(2, photo=FakeImage())}
    assert "no split train, only all" in message()
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "needs `pip install datasets`" in message()
