"""The data protocol: whatever gives images by number becomes items of one form, and a stream."""

import numpy as np
import pytest
import torch
from data_files import refused
from PIL import Image
from torch.utils.data import TensorDataset
from torchvision import tv_tensors
from torchvision.datasets import FakeData

from ddpm_unet.data.collection import ArrayCollection
from ddpm_unet.data.dataset import as_dataset, grid_of, stream_of
from ddpm_unet.data.image_set import open_collection
from ddpm_unet.data.pixels import Fit
from ddpm_unet.data.stream import Grid, Stream

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (6, 12, 10, 3), np.uint8)
UNIT = torch.from_numpy(BYTES).permute(0, 3, 1, 2) / 127.5 - 1
MASKS = torch.from_numpy(RNG.integers(0, 3, (6, 12, 10)))


def half(images):
    return images / 2 + 0.5


FORMS = {
    "tensor": half(UNIT),
    "signed tensor": UNIT,
    "list of tensors": list(half(UNIT)),
    "arrays": list(BYTES),
    "channels first": list(BYTES.transpose(0, 3, 1, 2)),
    "floats": list(half(UNIT).permute(0, 2, 3, 1).numpy().astype(np.float64)),
    "pillow": [Image.fromarray(image) for image in BYTES],
    "one part": TensorDataset(half(UNIT)),
    "labels": TensorDataset(torch.from_numpy(BYTES).permute(0, 3, 1, 2), torch.arange(6)),
    "dicts": [{"image": image, "note": "unused"} for image in BYTES],
    "columns": [{"img": image} for image in BYTES],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_images(form):
    columns = {"image": "img"} if form == "columns" else None
    data = as_dataset(FORMS[form], columns=columns)
    assert (len(data), data.channels, data.dims) == (6, 3, 2)
    for index in range(6):
        image = data[index]["image"]
        assert image.dtype == data.dtype
        image = image / 127.5 - 1 if image.dtype == torch.uint8 else image
        torch.testing.assert_close(image, UNIT[index], rtol=0, atol=2e-7)
    assert as_dataset(data) is data
    if form == "labels":
        assert [data[i]["label"] for i in range(6)] == list(range(6))


def test_depths_and_ranges():
    deep = [np.array([[0, 65535]], np.uint16)]
    assert as_dataset(deep)[0]["image"].tolist() == [[[-1, 1]]]
    units = [torch.tensor([[[-1000, 0, 1000]]])]
    found = as_dataset(units, value_range=(-1000, 1000))[0]["image"]
    assert found.tolist() == [[[-1, 0, 1]]]
    assert as_dataset([torch.zeros(2, 2, dtype=torch.bool)])[0]["image"].unique().tolist() == [-1]
    dark = [torch.full((1, 2, 2), 0.25)] * 99 + [torch.full((1, 2, 2), -0.5)]
    assert as_dataset(dark)[0]["image"].unique().tolist() == [0.25]  # the last is looked at
    assert as_dataset(dark[:99])[0]["image"].unique().tolist() == [-0.5]


@pytest.mark.parametrize("second", ["tensor", "array", "pillow", "dict"])
def test_masks(second):
    masks = {
        "tensor": list(MASKS),
        "array": list(MASKS[..., None].numpy().astype(np.uint8)),
        "pillow": [Image.fromarray(mask.numpy().astype(np.uint8)) for mask in MASKS],
        "dict": list(MASKS[:, None]),
    }[second]
    pairs = list(zip(BYTES, masks, strict=True))
    if second == "pillow":
        masks[0].putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    if second == "dict":
        pairs = [{"image": image, "label": mask} for image, mask in pairs]
    data = as_dataset(pairs, num_classes=3, ignore_value=1)
    found = torch.stack([data[i]["mask"] for i in range(6)])
    assert torch.equal(found, torch.where(MASKS == 1, -100, MASKS))
    stream = stream_of(pairs, for_masks=True, flips=True)
    batch = stream.__getitems__(range(6))
    assert batch["image"].dtype == torch.float32
    for image, mask in zip(batch["image"], batch["mask"], strict=True):
        flips = [image.flip(axes) for axes in ([], [1], [2], [1, 2])]
        (i, axes), *_ = [
            (i, axes)
            for i in range(6)
            for axes, turned in enumerate(flips)
            if torch.allclose(turned, UNIT[i])
        ]
        assert torch.equal(mask, MASKS[i].flip([[], [0], [1], [0, 1]][axes]))


def test_torchvision_and_hugging_face():
    fake = as_dataset(FakeData(size=4, image_size=(3, 8, 9), num_classes=5))
    assert fake[1]["image"].shape == (3, 8, 9)
    assert 0 <= fake[1]["label"] < 5
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        img=datasets.Image(),
        kind=datasets.ClassLabel(names=["cat", "dog"]),
        note=datasets.Value("string"),
    )
    rows = {
        "img": [Image.fromarray(image) for image in BYTES],
        "kind": [0, 1] * 3,
        "note": ["x"] * 6,
    }
    rows = datasets.Dataset.from_dict(rows, features=features)
    data = as_dataset(rows, name="pets")
    assert data.classes == ("cat", "dog")
    assert [data[i]["label"] for i in range(6)] == [0, 1] * 3
    np.testing.assert_array_equal(data[2]["image"], BYTES[2].transpose(2, 0, 1))
    assert data.items.column_names == ["img", "kind"]  # what is not used is not decoded
    with refused("pets: has no column mask for its mask; it has img, kind, note"):
        as_dataset(rows, name="pets", columns={"mask": "mask"})
    with refused("is a dict of train; give one of them"):
        as_dataset(datasets.DatasetDict(train=rows))


def test_a_batch_is_its_positions_and_nothing_else():
    whole = RNG.integers(0, 256, (5, 20, 24), np.uint8)
    items = [
        {"image": w[: 16 + i], "mask": (w[: 16 + i] > 99) * 1, "condition": w[: 16 + i],
         "context": np.full((i + 1, 2), i), "label": i}
        for i, w in enumerate(whole)
    ]  # fmt: skip
    options = {"size": 9, "flips": True, "rot90": True, "seed": 4}
    stream = stream_of(items, **options)
    positions = [3, 0, 12, 7, 7]
    batch = stream.__getitems__(positions)
    assert torch.equal(batch["condition"], batch["image"])
    assert torch.equal(batch["mask"], (batch["image"][:, 0] > 99).long())
    assert batch["context_mask"].sum(1).tolist() == (batch["label"] + 1).tolist()
    assert batch["position"].tolist() == positions
    for row, position in enumerate(positions):
        alone = stream_of(items, **options)[position]
        for key in ("image", "mask", "condition", "label"):
            assert torch.equal(alone[key], batch[key][row])
    seen = stream.__getitems__(range(5, 10))["label"].tolist()
    assert sorted(seen) == list(range(5))
    assert stream.name(5) == f"list[{seen[0]}]"
    assert len(np.unique(stream.__getitems__(range(200))["image"].numpy(), axis=0)) > 190


def test_the_grid_is_the_middle_of_each_item():
    grid = grid_of(
        [np.pad(np.full((4, 4), i, np.uint8), ((2, 2), (3, 3))) for i in range(7)], size=4
    )
    batch = grid.__getitems__(range(len(grid)))
    assert sorted(batch["image"].flatten(1).unique(dim=1).flatten().tolist()) == list(range(7))


def test_a_transform_is_a_function_of_the_position():
    def change(item):
        assert isinstance(item["image"], tv_tensors.Image)
        item["image"] = item["image"] + torch.rand(())
        return item

    stream = stream_of(UNIT, transform=change, seed=2)
    batch, plain = stream.__getitems__([5, 1]), stream_of(UNIT, seed=2).__getitems__([5, 1])
    shift = (batch["image"] - plain["image"]).flatten(1)
    assert shift.std(1).max() < 1e-6 < shift.mean(1).diff().abs()
    assert torch.equal(stream[1]["image"], batch["image"][1])


def test_image_sets_have_streams_of_their_own():
    images = open_collection(ArrayCollection(list(BYTES), "set"), Fit(8))
    stream, grid = stream_of(images, flips=True, seed=3), grid_of(images)
    assert isinstance(stream, Stream)
    assert isinstance(grid, Grid)
    wanted = Stream(images, flips=True, seed=3).__getitems__(range(5))
    assert torch.equal(stream.__getitems__(range(5))["image"], wanted["image"])
    with refused("size 9: the image set was opened for windows of 8"):
        stream_of(images, size=9)
    floats = open_collection(ArrayCollection([BYTES[0] / np.float32(255)], "set"), Fit(8))
    torch.testing.assert_close(as_dataset(floats)[0]["image"], UNIT[0])


def test_digests_tell_data_sets_apart():
    digests = {stream_of(data).digest for data in (UNIT, UNIT[:5], UNIT.flip(0), UNIT[:, :, :8])}
    assert len(digests) == 4
    assert stream_of(UNIT.clone()).digest in digests


FAULTS = {
    "no images": ([], "list: is empty"),
    "neither range": ([UNIT[0], UNIT[0] * 2], r"float values from -\S+ to \S+, not within -1 to 1"),
    "whole numbers": ([MASKS[0]], r"list\[0\]: is int64; give uint8, uint16 or floats"),
    "nan": ([torch.full((1, 2, 2), torch.nan)], "NaN or infinite"),
    "channels last": ([torch.zeros(8, 8, 3)], r"list\[0\]: has the shape \[8, 8, 3\]"),
    "no channels": ([np.zeros((8, 8, 8), np.uint8)], r"has the shape \[8, 8, 8\]"),
    "other channels": ([UNIT[0], UNIT[0, :1]], r"list\[1\]: has 1 channels of float32"),
    "other type": ([UNIT[0], BYTES[0]], r"list\[1\]: has 3 channels of uint8, the first image 3"),
    "other size": ([UNIT[0], UNIT[0, :, 1:]], r"list\[1\]: is 10 x 11 pixels, .* give size"),
    "a stream": (iter([UNIT[0]]), "has no length and items by number"),
    "tensors": ((UNIT, MASKS), r"TensorDataset\(\*tensors\)"),
    "three parts": ([(UNIT[0], 1, 2)], r"list\[0\]: has 3 parts"),
    "no image": ([{"photo": UNIT[0]}], r"has no image, but photo; .*columns"),
    "a path": (["a.png"], r"list\[0\]: is a str; an image is"),
    "float mask": ([(UNIT[0], MASKS[0] / 3)], "its mask is float32; give whole numbers"),
    "mask size": ([(UNIT[0], MASKS[0, 1:])], "its mask is 10 x 11 pixels, the image 10 x 12"),
    "turned mask": ([(UNIT[0], MASKS[0].T)], "its mask is 12 x 10 pixels, the image 10 x 12"),
    "mask class": ([(UNIT[0], MASKS[0] - 1)], "its mask has the class -1, not 0 to"),
    "no mask": ([(UNIT[0], MASKS[0]), UNIT[0]], r"list\[1\]: differs .* in its mask"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_name_the_item_and_the_cure(fault):
    data, message = FAULTS[fault]
    with refused(message):
        stream_of(data).__getitems__(range(4))


def test_streams_that_cannot_be():
    with refused(r"10 x 12 pixels hold no window of size 11"):
        stream_of(UNIT, size=11)[0]
    with refused("rot90: turns square images only"):
        stream_of(UNIT, rot90=True)
    with refused("has no mask; give items"):
        stream_of(UNIT, for_masks=True)
    with refused("has the class 2, not 0 to 1"):
        stream_of(TensorDataset(UNIT, MASKS), num_classes=2)[0]
