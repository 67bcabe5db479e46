"""Folders and data sets by name (offline): what they hold out, and settings that cannot be."""

import gzip
import multiprocessing
import struct
import sys
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from data_files import refused
from PIL import Image
from torchvision.datasets import FakeData

from ddpm_unet.config import ImageDataConfig
from ddpm_unet.data import named_sets
from ddpm_unet.data.collection import one_at_a_time
from ddpm_unet.data.named_sets import fashion_mnist, read_idx
from ddpm_unet.data.sources import held_out, open_images, open_stream
from ddpm_unet.errors import UserError

RNG = np.random.default_rng(0)


def write_set(root, suffix=""):
    """A small MNIST, or Fashion-MNIST, in LeCun's idx format."""
    root.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for split, number in (("train", 7), ("t10k", 3)):
        images = RNG.integers(0, 256, (number, 28, 28)).astype(np.uint8)
        labels = RNG.integers(0, 10, number).astype(np.uint8)
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            arrays[f"{split}-{name}"] = array
            data = struct.pack(f">BBBB{array.ndim}i", 0, 0, 8, array.ndim, *array.shape)
            data += array.tobytes()
            path = root / f"{split}-{name}-ubyte{suffix}"
            path.write_bytes(gzip.compress(data) if suffix else data)
    return arrays


@pytest.mark.parametrize(
    ("source", "place", "suffix"),
    [
        ("torchvision:MNIST", "MNIST/raw", ""),
        ("builtin:fashion-mnist", "", ""),
        ("builtin:fashion-mnist", "", ".gz"),
        ("builtin:fashion-mnist", "FashionMNIST/raw", ""),
    ],
)
def test_sets_with_splits(tmp_path, source, place, suffix):
    arrays = write_set(tmp_path / place, suffix)
    config = ImageDataConfig(source=source, root=str(tmp_path), size=28, class_labels=True)
    images, kept = open_images(config), held_out(config)
    for found, split in ((images, "train"), (kept.images, "t10k")):
        pixels = np.stack([found[i][0].numpy() for i in range(len(found))])
        np.testing.assert_array_equal(pixels, arrays[f"{split}-images-idx3"])
        np.testing.assert_array_equal(found.labels, arrays[f"{split}-labels-idx1"])
    assert len(images.classes) == 10
    assert "held out for validation" in images.describe()
    stream = open_stream(config, seed=0)
    assert (stream.flips, stream.rot90) == (False, False)  # a shoe has an up and a left
    config.include_held_out = True
    both = open_images(config)
    assert len(both) == 10
    np.testing.assert_array_equal(both.labels[7:], arrays["t10k-labels-idx1"])
    assert "held out" not in both.describe()
    config.class_labels = False
    assert open_images(config).labels is None


def test_fashion_mnist_faults(tmp_path, monkeypatch):
    with refused(r"holds no train-images-idx3-ubyte.*idx files as root"):
        fashion_mnist(str(tmp_path), tmp_path)

    def offline(*_, **__):
        raise OSError("Temporary failure in name resolution")

    monkeypatch.setattr("torchvision.datasets.FashionMNIST", offline)
    with refused(r"Temporary failure.*idx files as root"):
        fashion_mnist(None, tmp_path / "cache")
    write_set(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte"
    for damaged in (b"", b"no idx", path.read_bytes()[:-1], path.read_bytes()[:5]):
        path.write_bytes(damaged)
        with refused(r"train-images-idx3-ubyte: is damaged"):
            fashion_mnist(str(tmp_path), tmp_path)
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"\0\0\x08\1\0\0\0\3abc")[:-9])
    with refused(r"a\.gz: is damaged"):
        read_idx(tmp_path / "a.gz")


def test_torchvision_set_without_splits_keeps_one_in_twenty(
    monkeypatch,
):
    small = partial(FakeData, size=100, image_size=(3, 9, 9))
    monkeypatch.setattr("torchvision.datasets.FakeData", small)
    config = ImageDataConfig(source="torchvision:FakeData", size=8, fit="resize")
    images, kept = open_images(config), held_out(config)
    assert len(images) + len(kept.images) == 100
    assert len(kept.images) < 15
    assert images[0].shape == (3, 8, 8)


def message(**settings):
    with pytest.raises(UserError) as caught:
        open_images(ImageDataConfig(size=8, **settings))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_torchvision_faults(tmp_path):
    root = str(tmp_path)
    assert "no such data set; try CIFAR10" in message(source="torchvision:CIFAR_10", root=root)
    assert "cannot be opened" in message(source="torchvision:ImageNet", root=root)
    assert "folder as root" in message(source="torchvision:ImageNet", root=root)


@pytest.fixture
def hub(monkeypatch):
    """Data sets by name (with "/" and the configuration behind), in the place of the hub."""
    datasets = pytest.importorskip("datasets")
    sets: dict[str, dict[str, object]] = {}

    def load(path, name=None, cache_dir=None):
        key = f"{path}/{name}" if name else path
        if key not in sets:
            raise FileNotFoundError(f"Couldn't find {key}\non the hub")
        return sets[key]

    monkeypatch.setattr(datasets, "load_dataset", load)
    return sets


def rows(number, *columns):
    """Rows with columns "photo", "mask" (images), "species", "breed" (classes), "note"."""
    import datasets

    kinds = {
        "photo": (datasets.Image(), lambda i: Image.new("RGB", (8, 8), (i, 0, 0))),
        "mask": (datasets.Image(), lambda i: Image.new("L", (8, 8), i)),
        "species": (datasets.ClassLabel(names=["cat", "dog"]), lambda i: i % 2),
        "breed": (datasets.ClassLabel(names=["a", "b", "c"]), lambda i: i % 3),
        "note": (datasets.Value("string"), str),
    }
    chosen = {name: kinds[name] for name in columns}
    return datasets.Dataset.from_dict(
        {name: [value(i) for i in range(number)] for name, (_, value) in chosen.items()},
        features=datasets.Features({name: kind for name, (kind, _) in chosen.items()}),
    )


def test_hugging_face_set(hub):
    columns = ("photo", "species", "note")
    hub["me/pets"] = {"train": rows(6, *columns), "validation": rows(2, *columns)}
    config = ImageDataConfig(source="huggingface:me/pets", size=8, class_labels=True)
    images, kept = open_images(config), held_out(config)
    assert images.classes == ("cat", "dog")
    assert images.labels.tolist() == [0, 1] * 3
    assert [int(images[i][0, 0, 0]) for i in range(6)] == list(range(6))
    assert len(kept) == 2
    hub["me/pets"].pop("validation")
    assert held_out(config) is None


def test_hugging_face_options(hub):
    columns = ("photo", "mask", "species", "breed")
    hub["pets/large"] = {"small": rows(6, *columns), "rest": rows(3, *columns)}
    source = "huggingface:pets?config=large&split=small&held_out=rest&image=mask&label=breed"
    config = ImageDataConfig(source=source, size=8, class_labels=True)
    images, kept = open_images(config), held_out(config)
    assert images.classes == ("a", "b", "c")
    assert [int(images[i][0, 0, 0]) for i in range(6)] == list(range(6))
    assert images.labels.tolist() == [0, 1, 2] * 2
    assert images.layout.channels == 1
    assert len(kept) == 3
    for option, fault in (
        ("split=small&image=face", "has no column face for its image; it has photo, mask, species"),
        ("split=all", "has no split all, only small, rest"),
        ("split=small&held_out=all", "has no split all, only small, rest"),
        ("colour=red", "has no option colour; give config, split, held_out, image, label"),
        ("split=small", "has no column of images, or several, of the columns photo, mask"),
    ):
        assert fault in message(source=f"huggingface:pets?config=large&{option}")


def test_hugging_face_faults(hub, monkeypatch):
    source = "huggingface:x"
    found = message(source=source)
    assert "cannot be opened (FileNotFoundError: Couldn't find x on the hub)" in found
    hub["x"] = {"train": rows(2, "note")}
    assert "has no column of images" in message(source=source)
    hub["x"] = {"train": rows(2, "photo")}
    assert "has no column of classes" in message(source=source, class_labels=True)
    hub["x"] = {"all": rows(2, "photo")}
    assert "no split train, only all" in message(source=source)
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "needs `pip install datasets`" in message(source=source)


def test_hugging_face_rows_are_decoded_when_they_are_read(tmp_path, monkeypatch, cache):
    """Shapes come from headers, once; columns that are not used are never decoded."""
    datasets = pytest.importorskip("datasets")
    files = []
    for number in range(6):
        files.append(tmp_path / f"{number}.png")
        Image.new("RGB", (8 + number % 2, 8), (number, 0, 0)).save(files[-1])
    columns = {
        "photo": [
            {"bytes": file.read_bytes(), "path": "gone"} if i % 3 else {"path": str(file)}
            for i, file in enumerate(files)
        ],
        "other": [{"bytes": b"no image", "path": None}] * 6,
        "kind": [0, 1, 1] * 2,
    }
    kinds = {"photo": datasets.Image(), "other": datasets.Image()}
    features = datasets.Features(kinds | {"kind": datasets.ClassLabel(names=["a", "b"])})
    made = datasets.Dataset.from_dict(columns, features=features)
    with pytest.raises(OSError, match="cannot identify"):
        made[0]["other"]
    made.save_to_disk(tmp_path / "saved")
    source = f"huggingface:{tmp_path / 'saved'}?image=photo"
    config = ImageDataConfig(source=source, size=8, class_labels=True, memory_limit=0)

    def refuse(*_, **__):
        raise AssertionError("decoded")

    with monkeypatch.context() as patch:
        patch.setattr(named_sets.Reading, "read", refuse)
        first = open_images(config)
        patch.setattr(named_sets.Reading, "info", refuse)
        second = open_images(config)
    for images in (first, second):
        assert images.layout.sizes.tolist() == [[8, 8], [8, 9]] * 3
        assert [int(image[0, 0, 0]) for image in images] == list(range(6))
        assert images.labels.tolist() == [0, 1, 1] * 2
    assert first.digest == second.digest
    packed = open_images(replace(config, disk_limit=1))
    assert str(cache / "images") in packed.describe()
    assert [int(image[0, 0, 0]) for image in packed] == list(range(6))
    hole = made.select_columns(["photo"]).add_item({"photo": None})
    hole.save_to_disk(tmp_path / "hole")
    fault = message(source=f"huggingface:{tmp_path / 'hole'}")
    assert "hole[6]: has no image; leave the row out" in fault


def fill(folder):
    """Download unless it has been done; two at once would both find nothing."""
    with one_at_a_time(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "data").exists():
            time.sleep(0.3)
            (folder / "data").touch()
            (folder.parent / f"{multiprocessing.current_process().pid}").touch()


def test_of_several_processes_one_downloads(tmp_path):
    fork = multiprocessing.get_context("fork")
    folder = tmp_path / "new" / "cache"
    processes = [fork.Process(target=fill, args=(folder,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len(list(folder.parent.iterdir())) == 2
    assert [path.name for path in folder.iterdir()] == ["data"]


def write_folder(root, number):
    for i in range(number):
        path = root / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), i).save(path)


def values(images):
    return [int(images[i].max()) for i in range(len(images))]


def test_a_folder_keeps_about_one_in_twenty(tmp_path):
    write_folder(tmp_path, 200)
    config = ImageDataConfig(source=str(tmp_path), size=8, class_labels=True)
    train, kept = open_images(config), held_out(config)
    assert 4 <= len(kept) <= 20
    assert sorted(values(train) + values(kept.images)) == list(range(200))
    assert train.labels.tolist() == [value % 2 for value in values(train)]
    assert train.classes == ("a", "b")
    assert f"{len(kept.images)} more held out for validation" in train.describe()
    config.include_held_out = True
    assert sorted(values(open_images(config))) == list(range(200))
    # New files move no old one to the other side.
    Image.new("L", (8, 8), 250).save(tmp_path / "a" / "new.png")
    again = held_out(config)
    assert set(values(kept.images)) == set(values(again.images)) - {250}


def test_a_small_folder_keeps_nothing(tmp_path):
    write_folder(tmp_path, 19)
    config = ImageDataConfig(source=str(tmp_path), size=8)
    assert len(open_images(config)) == 19
    assert held_out(config) is None


def test_twenty_images_keep_at_least_one(tmp_path):
    """Of these names no hash is divisible by twenty."""
    for i in range(20):
        Image.new("L", (8, 8), i).save(tmp_path / f"x{i}.png")
    config = ImageDataConfig(source=str(tmp_path), size=8)
    kept = held_out(config)
    assert len(kept) >= 1
    assert len(open_images(config)) + len(kept) == 20


def test_the_summary(tmp_path):
    write_folder(tmp_path, 4)
    (tmp_path / "notes.txt").write_text("")
    config = ImageDataConfig(source=str(tmp_path), size=8, class_labels=True, channels=3)
    assert open_stream(config, seed=0).describe() == (
        "4 images, 8 x 8, 3 channels, uint8, 2 classes, 0.0 MB in memory, "
        "nothing held out for validation (fewer than 20 images), "
        "1 other files passed over (1 .txt), mirrored and turned by quarters at random "
        "(where left and up matter, set flips and rot90 to false)"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": float("nan")}, "data.scale nan"),
        ({"scale": 0.5, "fit": "resize"}, "data.scale 0.5: has no effect with fit resize"),
        ({"workers": -1}, "data.workers -1"),
        ({"memory_limit": -1}, "data.memory_limit -1"),
        ({"max_pixels": 0.0}, "data.max_pixels 0"),
        ({"source": "builtin:imagenet"}, "builtin:imagenet: the built-in sets are"),
        ({"source": "builtin:histology", "class_labels": True}, "has no class for each image"),
        ({"source": ""}, "data.source: is empty"),
    ],
)
def test_settings_that_cannot_be(tmp_path, settings, message):
    write_folder(tmp_path, 2)
    config = ImageDataConfig(**({"source": str(tmp_path), "size": 8} | settings))
    for build in (open_images, held_out):
        with refused(message):
            build(config)
